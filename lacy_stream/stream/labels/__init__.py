"""Labels of documents on disk, so that nothing is parsed from the second epoch on.

cache   ``LabelCache``, which the pool uses: buffered writes, a limit on disk, damage reported
store   one LMDB environment: the records of one annotator
folder  all stores of a folder: locks, sizes, eviction
codec   a document and its labels <-> key and record, as bytes
"""
