"""A reference model (rho-1, spacy+refloss): a Hugging Face folder or a checkpoint, with the tokenizer of the run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from annotator.tokenizers import Tokenizer, is_tokenizer_json, open_tokenizer
from lacy_stream.errors import UsageError
from lacy_stream.train.checkpoint import load_checkpoint, model_tokenizer_file
from lacy_stream.train.padding import remove_padding
from lacy_stream.train.transformers_names import weights_dtype


class ReferenceModelError(UsageError):
    """The model cannot judge this run's tokens; the message says why."""


def load_reference(path: str | os.PathLike[str], tokenizer: Path, max_seq_len: int) -> PreTrainedModel:
    """Load a causal language model for the losses of a run's tokens: float32, on the CPU, in eval mode.

    Args:
        path: a checkpoint file of a recipe's run, or a Hugging Face folder. A folder's own tokenizer, where it has one,
            must give each of our pieces its id.
        tokenizer: the file of the run's tokenizer.
        max_seq_len: of the run's rows.

    Raises:
        ReferenceModelError: another vocabulary, another tokenizer, a shorter context, or no model.
    """
    path = Path(path)
    if not path.exists():
        raise ReferenceModelError(f"there is no file or folder {os.fspath(path)!r}")
    ours = open_tokenizer(tokenizer)
    model, same = _from_folder(path, tokenizer.name, ours) if path.is_dir() else _from_checkpoint(path, ours)
    pieces, entries = ours.vocab_size, model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
    # If the ids are known to be the same, further rows can only be padding. Otherwise they might be other tokens.
    if same and entries > pieces + 1:
        # A folder of our export names its <CALL>.
        remove_padding(model, pieces + (getattr(model.config, "call_token_id", None) == pieces))
    elif entries not in (pieces, pieces + 1):
        raise ReferenceModelError(
            f"{path} has a vocabulary of {entries} entries; the tokenizer {tokenizer.name} has {pieces} pieces: the "
            f"reference model must have {pieces} entries, or one more for <CALL>; or a tokenizer of its own that gives "
            "the same ids"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and context < max_seq_len:
        raise ReferenceModelError(
            f"{path} has a context of {context} tokens, and rows have {max_seq_len}: set max_seq_len"
        )
    return model.eval().requires_grad_(False)


def _from_checkpoint(path: Path, ours: Tokenizer) -> tuple[PreTrainedModel, bool]:
    checkpoint = load_checkpoint(path)
    if _sha256(checkpoint.tokenizer) != ours.sha256:
        raise ReferenceModelError(f"{path} was trained with another tokenizer, {checkpoint.tokenizer.name}")
    return checkpoint.model, True


def _from_folder(path: Path, name: str, ours: Tokenizer) -> tuple[PreTrainedModel, bool]:
    """The model of a folder, and whether its tokenizer is known to give our ids."""
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **weights_dtype(torch.float32))
    except (OSError, ValueError) as error:
        raise ReferenceModelError(f"{path} is no Hugging Face model: {str(error).splitlines()[0]}") from None
    own = model_tokenizer_file(os.fspath(path))
    if own is None or _sha256(own) == ours.sha256:
        return model, own is not None
    if not (is_tokenizer_json(own) or is_tokenizer_json(ours.files[0])):
        raise ReferenceModelError(f"{path} has another tokenizer: its {own.name} is not {name}")
    theirs = {piece: number for number, piece in enumerate(open_tokenizer(own).pieces())}
    for number, piece in enumerate(ours.pieces()):
        if piece and theirs.get(piece) != number:
            raise ReferenceModelError(
                f"{path} has another tokenizer: piece {piece!r} is {theirs.get(piece)} there, {number} here"
            )
    return model, True


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
