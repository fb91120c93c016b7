"""Files, folders and datasets -> MDS shards of raw text, without torch.

inputs     JSONL, text, Parquet, Hugging Face datasets -> rows; lmlm  rows with the spans of a judge
convert    rows -> shards, whole or not at all
knowledge  articles -> a table of titles and texts for biographies
"""
