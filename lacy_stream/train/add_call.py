"""A Composer checkpoint of any run -> the same with a row for <CALL>, in its weights and in its optimizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from annotator.tokenizers import Tokenizer
from lacy_stream.errors import FileError, UsageError
from lacy_stream.files import check_writable, read_text, replaced_file
from lacy_stream.train.call_row import set_call_row
from lacy_stream.train.checkpoint import CheckpointError, ModelNotFoundError
from lacy_stream.train.hugging_face import model_of_config
from lacy_stream.train.model import for_composer
from lacy_stream.train.padding import round_up

SAMPLE_ROW, SAMPLE_TOKENS = 512, 4096


@dataclass(frozen=True)
class AddCallSummary:
    """The rows before and after, the id of <CALL>, the tensors that grew, and the mean of p(<CALL>) on the sample of
    text; None without a sample."""

    rows_before: int
    rows: int
    call_token_id: int
    tensors: list[str]
    probability: float | None


def add_call(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    text: str | os.PathLike[str] | None = None,
    call_fraction: float = 0.15,
    pad_to_multiple_of: int = 1,
    device: str = "cpu",
) -> AddCallSummary:
    """Write a checkpoint whose model has a row for <CALL>: the mean of the other rows, with moments of 0.

    Args:
        checkpoint: file of a Composer run with a model of transformers, from any trainer. It is a pickle, which can
            run code: use only your own.
        out: the file to write.
        tokenizer: of the run. <CALL> is the first id after its ids, which may be a spare row; without one, the first id
            after the rows of the model.
        text: with a tokenizer, a file by which the row is set so that p(<CALL>) is near ``call_fraction``.
        pad_to_multiple_of: the rows are a multiple of this.
        device: torch device on which the model reads the text.

    Raises:
        ModelNotFoundError: there is no such checkpoint.
        CheckpointError: the file is not a checkpoint, or it holds no model of transformers.
        FileError: ``out`` exists, or the text cannot be read.
        UsageError: the model has <CALL> already; or the tokenizer is not its own; or a text comes without one.
    """
    if Path(out).exists():
        raise FileError(f"{os.fspath(out)!r} exists: name a file that does not")
    check_writable(out)
    if text is not None and tokenizer is None:
        raise UsageError("a text is turned into ids by the tokenizer of the run: name it, too")
    file = _read(checkpoint)
    state, config = file["state"], _config(file, checkpoint)
    before = config["vocab_size"]
    call_token_id = before if tokenizer is None else tokenizer.vocab_size
    if "call_token_id" in config:
        raise UsageError(f"{os.fspath(checkpoint)} has <CALL> already: it is {config['call_token_id']}")
    if call_token_id > before:
        raise UsageError(f"the model has {before} rows, and the tokenizer {call_token_id} ids: it is not its tokenizer")
    rows = round_up(max(before, call_token_id + 1), pad_to_multiple_of)
    names = _grow(state["model"], before, rows, _mean)
    # Moments have the shape of their parameter, and those of a new parameter are 0.
    for optimizer in state.get("optimizers", {}).values():
        for name in names:
            _grow(optimizer["state"].get(name, {}), before, rows, _zeros)
    config |= {"vocab_size": rows, "call_token_id": call_token_id}
    probability = None
    if tokenizer is not None and text is not None:
        probability = _set_row(state["model"], config, _ids(text, tokenizer), call_fraction, device)
    else:
        _wrap(state["model"], config)
    with replaced_file(out) as new:
        torch.save(file, new)
    return AddCallSummary(before, rows, call_token_id, names if rows > before else [], probability)


def _read(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    if os.path.isdir(checkpoint):
        raise CheckpointError(f"{os.fspath(checkpoint)} is a folder: a sharded checkpoint must be made one file first")
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=False)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {os.fspath(checkpoint)!r}") from error
    except Exception as error:
        raise CheckpointError(f"{os.fspath(checkpoint)} is no checkpoint ({type(error).__name__}: {error})") from error


def _config(file: Any, checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the model, as it stands in the file."""
    try:
        content = file["state"]["integrations"]["huggingface"]["model"]["config"]["content"]
        whole = "vocab_size" in content and "model" in file["state"]
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"{os.fspath(checkpoint)} is no checkpoint of a Composer run with a model of transformers"
        )
    return content


def _grow(tensors: dict[str, Any], before: int, rows: int, fill: Any) -> list[str]:
    """Give all tensors with a row for each id more rows, in place. Tensors that share memory still do.

    Returns:
        The names of the tensors.
    """
    # Tied embeddings are one memory under two names. A tensor whose first axis has the length of the vocabulary by
    # chance would grow, too: ``_wrap`` then finds that the weights no longer fit.
    grown: dict[int, Tensor] = {}
    names = [name for name, value in tensors.items() if torch.is_tensor(value) and value.shape[:1] == (before,)]
    for name in names:
        old = tensors[name]
        if old.data_ptr() not in grown:
            more = fill(old).to(old.dtype).expand(rows - before, *old.shape[1:])
            grown[old.data_ptr()] = torch.cat([old, more])
        tensors[name] = grown[old.data_ptr()]
    return names


def _mean(tensor: Tensor) -> Tensor:
    return tensor.float().mean(dim=0, keepdim=True)


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor[:1])


def _wrap(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Any:
    """The model that a checkpoint holds, as a check that it still does."""
    wrapper = for_composer(model_of_config(config))
    try:
        wrapper.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit their configuration: {error}") from None
    return wrapper


def _ids(text: str | os.PathLike[str], tokenizer: Tokenizer) -> Tensor:
    """The first tokens of a text, int64 [B, T]."""
    ids_N = torch.from_numpy(tokenizer.encode(read_text(text)).ids[:SAMPLE_TOKENS].astype(np.int64))
    if not len(ids_N):
        raise UsageError(f"{os.fspath(text)!r} is empty")
    length = min(SAMPLE_ROW, len(ids_N))
    return ids_N[: len(ids_N) // length * length].view(-1, length)


def _set_row(
    weights: dict[str, Any], config: Mapping[str, Any], ids_BT: Tensor, call_fraction: float, device: str
) -> float:
    """Set the row of <CALL> in the weights of a checkpoint."""
    wrapper, call_token_id = _wrap(weights, config).to(device), config["call_token_id"]
    probability = set_call_row(wrapper.model, call_token_id, ids_BT, call_fraction)
    # The row in the input embeddings and, where they are not tied to it, in the output layer.
    for name, value in wrapper.state_dict().items():
        if value.shape[:1] == (config["vocab_size"],):
            weights[name][call_token_id] = value[call_token_id]
    return probability
