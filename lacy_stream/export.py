"""Checkpoint -> a Hugging Face folder that transformers and lm-eval load without our code."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from transformers import LlamaTokenizerFast

from annotator.tokens import Tokenizer
from lacy_stream.checkpoint import RECIPE, SENTENCEPIECE, CallingModel, load_model
from lacy_stream.recipe import dump_recipe

CALL_TOKEN = "<CALL>"


def export(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str]) -> CallingModel:
    """Write model.safetensors, config.json, generation_config.json, the tokenizer and the recipe of a run.

    The folder appears when it is whole, or not at all.

    Args:
        checkpoint: file in a run's ``save_folder``.
        out: the folder to make.

    Returns:
        The model that was written.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError, CheckpointError: as ``load_model``.
        ValueError: the tokenizer cannot be given as a fast one of transformers.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists: name a new folder, or remove it")
    calling = load_model(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        partial = Path(scratch) / out.name
        config = calling.model.config
        config.use_cache = True  # off in training; generation is slow without
        config.call_token_id = calling.call_token_id
        if (generation := calling.model.generation_config) is not None:
            generation.use_cache = True
        calling.model.save_pretrained(partial)
        transformers_tokenizer(calling).save_pretrained(partial)
        shutil.copyfile(calling.tokenizer, partial / SENTENCEPIECE)
        if calling.recipe is not None:
            (partial / RECIPE).write_text(dump_recipe(calling.recipe), encoding="utf-8")
        partial.rename(out)
    return calling


def transformers_tokenizer(calling: CallingModel) -> LlamaTokenizerFast:
    """The SentencePiece model as a fast tokenizer of transformers, with <CALL> as the last id. It gives SentencePiece's
    ids, puts nothing before a text, and reads a literal "<CALL>" or "</s>" in a text as text.

    Raises:
        ValueError: <CALL> would get another id than the model's.
    """
    pieces = Tokenizer(calling.tokenizer).pieces()
    end = pieces[calling.eos_id]
    tokenizer = LlamaTokenizerFast(
        vocab_file=os.fspath(calling.tokenizer),
        legacy=True,
        add_prefix_space=True,
        add_bos_token=False,
        add_eos_token=False,
        bos_token=end,  # what stands before a document in training
        eos_token=end,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_max_length=calling.max_seq_len,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [CALL_TOKEN]})
    found = tokenizer.convert_tokens_to_ids(CALL_TOKEN)
    if found != calling.call_token_id:
        raise ValueError(f"{CALL_TOKEN} would be id {found} instead of {calling.call_token_id} in {calling.tokenizer}")
    return tokenizer
