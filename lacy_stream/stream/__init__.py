"""MDS shards -> annotated batches. This room knows neither a recipe nor a model, and does not import Composer.

source      the description of a data set: where it lies, and how its rows are read
mds_index, download, shards   its samples, with every value checked
corpus      documents, in an order that depends on (data, seed, epoch) alone
pool        documents -> labels, by the ``workers``; ``labels`` keeps what they have made before
packing     labelled documents -> rows of fixed length
batches     rows -> batches, and a position that a checkpoint can hold
report      counts and logs the faults that a run recovered from
"""
