"""A checkpoint of a run -> its recipe, its tokenizer's file and its model, on the CPU, for inference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from transformers import PreTrainedModel

from annotator import Annotator
from lacy_stream.model import build_model
from lacy_stream.recipe import Recipe, check_recipe, tokenizer_path


class CheckpointError(ValueError):
    """The file is no checkpoint of a lacy-stream run; the message says why."""


class Checkpoint(NamedTuple):
    """recipe: of the run. tokenizer: its file. model: the Hugging Face model, in eval mode. call_token_id: the last
    id. annotation: one line for people about the annotation of the run."""

    recipe: Recipe
    tokenizer: Path
    model: PreTrainedModel
    call_token_id: int
    annotation: str


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint file that a recipe's ``save_folder`` holds, for example ``latest-rank0.pt``.

    Composer's checkpoints are pickles, which can run code: load only your own.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one of a run without lacy-stream's ``StreamMonitor``.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)["state"]
        monitor = state["callbacks"]["StreamMonitor"]
        recipe, annotation = check_recipe(yaml.safe_load(monitor["recipe"])), monitor["annotation"]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{os.fspath(path)} is no checkpoint of a recipe's run ({type(error).__name__}: {error})"
        ) from error
    tokenizer = tokenizer_path(recipe.tokenizer.name)
    pieces = Annotator(tokenizer, model=None)
    wrapper = build_model(
        recipe.model,
        vocab_size=pieces.vocab_size + 1,
        max_seq_len=recipe.max_seq_len,
        call_token_id=pieces.vocab_size,
        eos_id=pieces.eos_id,
    )
    try:
        wrapper.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{os.fspath(path)}: its weights do not fit its recipe: {error}") from None
    return Checkpoint(recipe, tokenizer, wrapper.model.eval(), pieces.vocab_size, annotation)  # type: ignore[arg-type]
