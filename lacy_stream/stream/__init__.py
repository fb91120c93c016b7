"""MDS shards -> annotated batches. This room knows neither a recipe nor a model, and does not import Composer.

source      what a stream is made of; mds_index, download, shards  its samples, every value checked
corpus      samples in an order that depends on (data, seed, epoch) alone
pool        documents -> labels, by the workers of ``workers``, with ``label_cache`` in front of them
packing     labelled documents -> rows; batches  rows -> batches, and a position that a checkpoint can hold
report      counts what was skipped
"""
