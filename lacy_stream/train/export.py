"""Checkpoint -> a Hugging Face folder that transformers and lm-eval load without our code."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from annotator.tokenizers import is_tokenizer_json
from annotator.tokenizers.sentencepiece import SentencePieceTokenizer
from lacy_stream.errors import UsageError
from lacy_stream.files import new_folder
from lacy_stream.recipe import dump_recipe
from lacy_stream.train.checkpoint import RECIPE, SENTENCEPIECE, TOKENIZER_JSON, CallingModel, load_model
from lacy_stream.train.padding import pad_vocabulary, resize_vocabulary

CALL_TOKEN = "<CALL>"
CALL_SETTINGS = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
MODEL_INPUTS = ["input_ids", "attention_mask"]
"""Names of the tensors that the tokenizer gives to a model: a Llama refuses token_type_ids."""
PROBE = "  Größe 1987: the ꙮ's\n\n</s> <CALL> unbelievable mitochondria "
"""A text in which tokenizers that are set up otherwise differ."""


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    without_call: bool = False,
    pad_vocab_to_multiple_of: int = 1,
) -> CallingModel:
    """Write model.safetensors, config.json, generation_config.json, the tokenizer and the recipe of a run.

    The folder appears when it is whole, or not at all. Other tools do not know that <CALL> is no text, so
    generation_config.json suppresses it and any rows after it: ``generate`` of transformers never writes them.

    Args:
        checkpoint: file in a run's ``save_folder``.
        out: the folder to make.
        without_call: leave <CALL> out of the model and the tokenizer, for tools that read no generation_config.json, or
            that score texts: the row of <CALL> has a share in their softmax.
        pad_vocab_to_multiple_of: round the rows of the embeddings up to a multiple of this, for tools that want it.
            Rows that padded the vocabulary in training are left out; the new ones are zero, and have a share in the
            softmax of tools that do not know of them.

    Returns:
        The model that was written.

    Raises:
        FileError: ``out`` exists, or cannot be written.
        CheckpointError: as ``load_model``.
        UsageError: the tokenizer cannot be given as a fast one of transformers.
    """
    with new_folder(out) as folder:
        calling = load_model(checkpoint)
        if calling.call_token_id is None:
            raise UsageError(f"{calling.name} is a Hugging Face model already: there is nothing to export")
        if without_call:
            calling = _without_call(calling)
        if pad_vocab_to_multiple_of > 1:
            pad_vocabulary(calling.model, pad_vocab_to_multiple_of)
        write_folder(calling, folder)
    return calling


def _without_call(calling: CallingModel) -> CallingModel:
    """The same model without the row of <CALL>.

    Raises:
        UsageError: the model does not let its embeddings be resized.
    """
    assert calling.call_token_id is not None, "export refuses a model without <CALL>"
    resize_vocabulary(calling.model, calling.call_token_id)
    return replace(calling, call_token_id=None)


def write_folder(calling: CallingModel, folder: Path) -> None:
    """Write a model as ``export`` does, into a new folder.

    Raises:
        UsageError: the model is one of others; or the tokenizer cannot be given as a fast one of transformers.
    """
    config = calling.model.config
    config.use_cache = True  # off in training; generation is slow without
    if calling.call_token_id is not None:
        config.call_token_id = calling.call_token_id
    if (generation := calling.model.generation_config) is not None:
        generation.use_cache = True
        if calling.call_token_id is not None:
            generation.suppress_tokens = list(range(calling.call_token_id, config.vocab_size))
    calling.model.save_pretrained(folder)
    if is_tokenizer_json(calling.tokenizer):
        _copy_tokenizer_json(calling, folder)
    else:
        transformers_tokenizer(calling).save_pretrained(folder)
        shutil.copyfile(calling.tokenizer, folder / SENTENCEPIECE)
    if calling.recipe is not None:
        (folder / RECIPE).write_text(dump_recipe(calling.recipe), encoding="utf-8")


def _copy_tokenizer_json(calling: CallingModel, folder: Path) -> None:
    """Copy a tokenizer.json and what belongs to it. It stays as it is, so that it gives its ids: the
    tokenizer_config.json beside it adds <CALL> where the model has it, and says what else the run has set.

    Raises:
        UsageError: transformers gives other ids than the run, or <CALL> another id.
    """
    tokenizer = calling.open_tokenizer()
    original, *companions = tokenizer.files
    shutil.copyfile(original, folder / TOKENIZER_JSON)
    for file in companions:
        if file.name not in (CONFIG, SPECIAL_TOKENS):  # they become one
            shutil.copyfile(file, folder / file.name)
    config = _config(original.parent / SPECIAL_TOKENS) | _config(original.parent / CONFIG)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": MODEL_INPUTS} | config
    config["eos_token"] = tokenizer.pieces()[calling.eos_id]
    config["split_special_tokens"] = calling.annotator_settings.split_special_tokens
    if calling.call_token_id is not None:
        further = [token for token in config.get("additional_special_tokens") or [] if _name(token) != CALL_TOKEN]
        config["additional_special_tokens"] = [*further, CALL_TOKEN]
        if "added_tokens_decoder" in config:  # then transformers reads special tokens from there only
            config["added_tokens_decoder"][str(calling.call_token_id)] = {"content": CALL_TOKEN} | CALL_SETTINGS
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    theirs = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))
    _check_call_id(theirs, calling)
    if theirs(PROBE, add_special_tokens=False)["input_ids"] != tokenizer.encode(PROBE).ids.tolist():
        raise UsageError(
            f"{calling.tokenizer}: transformers reads it as {type(theirs).__name__}, which gives other ids than the "
            f"tokenizer.json. Set tokenizer_class to PreTrainedTokenizerFast in the {CONFIG} beside it"
        )


def _config(path: Path) -> dict[str, Any]:
    """A config file beside a tokenizer.json, in which a token is its name."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: _name(value) if key.endswith("_token") and value else value for key, value in found.items()}


def _name(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token


def _check_call_id(tokenizer: PreTrainedTokenizerFast, calling: CallingModel) -> None:
    if calling.call_token_id is None:
        return
    found = tokenizer.convert_tokens_to_ids(CALL_TOKEN)
    if found != calling.call_token_id:
        raise UsageError(f"{CALL_TOKEN} would be id {found} instead of {calling.call_token_id} in {calling.tokenizer}")


def transformers_tokenizer(calling: CallingModel) -> PreTrainedTokenizerFast:
    """The SentencePiece model as a fast tokenizer of transformers, with <CALL> as the last id where the model has it.
    It gives SentencePiece's ids, puts nothing before a text, and reads a literal "<CALL>" or "</s>" in a text as text.

    It is built from pieces and scores: the converter of transformers needs a protobuf that fits sentencepiece's,
    when it converts and, with some settings, whenever the folder is loaded.

    Raises:
        UsageError: not a BPE model as LLaMA's, or <CALL> would get another id than the model's.
    """
    ours = SentencePieceTokenizer(calling.tokenizer)
    pieces = ours.pieces()
    end = pieces[calling.eos_id]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bpe(ours, pieces),
        bos_token=end,  # what stands before a document in training
        eos_token=end,
        unk_token=pieces[0],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_max_length=calling.max_seq_len,
        model_input_names=MODEL_INPUTS,
    )
    if calling.call_token_id is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": [CALL_TOKEN]})
    _check_call_id(tokenizer, calling)
    if tokenizer(PROBE)["input_ids"] != ours.encode(PROBE).ids.tolist():
        raise UsageError(
            f"{calling.tokenizer} is no SentencePiece BPE model with byte pieces and a space before each text"
        )
    return tokenizer


def _bpe(ours: SentencePieceTokenizer, pieces: list[str]) -> Tokenizer:
    """LLaMA's pipeline in the library tokenizers: a space before the text, spaces as U+2581, BPE over all of it."""
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    # The library's BPE needs merges in their order, which the scores of the pieces give.
    merges = generate_merges(vocabulary, dict(zip(pieces, ours.scores(), strict=True)))
    bpe = models.BPE(vocabulary, merges, unk_token=pieces[0], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    space = "\u2581"
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    tokenizer.decoder = decoders.Sequence(
        # The last step takes away the space that the normalizer has put before the text.
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control = [piece for piece, spelling in zip(pieces, ours.spellings(), strict=True) if spelling is None]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    return tokenizer
