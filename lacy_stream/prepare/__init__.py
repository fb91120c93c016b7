"""Files, folders and datasets -> MDS shards of raw text, without torch.

inputs     JSONL, Parquet, Hugging Face data sets -> rows
lmlm       text with lookup calls -> text and the spans of the values
convert    rows -> shards, complete or absent
knowledge  articles -> a SQLite file of titles and texts, for biographies
"""
