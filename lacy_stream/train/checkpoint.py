"""A checkpoint of a run -> its recipe, its tokenizer's file and its model, on the CPU, for inference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file

from annotator import AnnotatorSettings
from annotator.errors import MissingFileError
from annotator.tokenizers import Tokenizer, tokenizer_file
from lacy_stream.errors import UsageError
from lacy_stream.files import is_hub_name
from lacy_stream.recipe import HFCausalLM, Recipe, check_recipe, tokenizer_path
from lacy_stream.train.hugging_face import model_of_config
from lacy_stream.train.padding import remove_padding
from lacy_stream.train.recipe_data import annotator_settings
from lacy_stream.train.transformers_names import weights_dtype

if TYPE_CHECKING:
    from composer.models import HuggingFaceModel

SENTENCEPIECE, TOKENIZER_JSON, RECIPE = "tokenizer.model", "tokenizer.json", "recipe.yaml"
"""Names of files in the folder of a model."""


class CheckpointError(UsageError):
    """The file is not a checkpoint of a lacy-stream run; the message says why."""


class ModelNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint, folder or name of a model."""


@dataclass(frozen=True)
class CallingModel:
    """A causal language model that may know <CALL>.

    model: float32, on the CPU, in eval mode.
    tokenizer: its SentencePiece file or tokenizer.json, with the files that belong to it beside it.
    call_token_id: id of <CALL>, the first after the tokenizer's pieces; None for a model without. It is the last entry
        of the model's vocabulary: rows that padded it in training are gone.
    eos_id: end of text.
    max_seq_len: positions.
    name: for people. recipe: of the run, where known.
    other_start: what stands before a text's first token in a model of others; None for a model of a run, which was
        trained with the end of text there.
    further_ends: ids that end a text, too.
    """

    model: PreTrainedModel
    tokenizer: Path
    call_token_id: int | None
    eos_id: int
    max_seq_len: int
    name: str
    recipe: Recipe | None
    other_start: tuple[int, ...] | None = field(default=None, kw_only=True)
    further_ends: frozenset[int] = field(default=frozenset(), kw_only=True)

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The ids that stand before a text's first token; there may be none."""
        return (self.eos_id,) if self.other_start is None else self.other_start

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a text."""
        return self.further_ends | {self.eos_id}

    @property
    def rank_calls_by(self) -> str:
        """How its run ranked calls, see ``methods.Rank``; by probability where no run is known."""
        return "probability" if self.recipe is None else self.recipe.algorithms.call_mask.rank_calls_by

    @property
    def annotator_settings(self) -> AnnotatorSettings:
        """An annotator with its tokenizer, set as in its run, and without a pipeline."""
        if self.recipe is None:
            return AnnotatorSettings(self.tokenizer, None)
        own = self.recipe.tokenizer
        return AnnotatorSettings(
            self.tokenizer, None, eos_token=own.eos_token, split_special_tokens=own.split_special_tokens
        )

    def open_tokenizer(self) -> Tokenizer:
        """Open its tokenizer, set as in its run."""
        return self.annotator_settings.open_tokenizer()


def describe_training(recipe: Recipe) -> str:
    """One line about how a run trains its model to call."""
    mask = recipe.algorithms.call_mask
    if mask.method == "baseline":
        return "trained without calls"
    return f"method {mask.method}, objective {mask.objective}, calls ranked by {mask.rank_calls_by}"


@dataclass(frozen=True)
class Checkpoint(CallingModel):
    """The model of a run. annotation: one line for people about the annotation of the run."""

    call_token_id: int
    recipe: Recipe
    annotation: str


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint file that a recipe's ``save_folder`` holds, for example ``latest-rank0.pt``.

    Composer's checkpoints are pickles, which can run code: load only your own.

    Raises:
        ModelNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one of a run without lacy-stream's ``RunRecord``.
    """
    state = _read(path)
    recipe, annotation = _recorded(state, path)
    tokenizer = tokenizer_path(recipe.tokenizer.name)
    pieces = annotator_settings(recipe, tokenizer).open_tokenizer()
    wrapper = _network(state, recipe, pieces)
    try:
        wrapper.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{os.fspath(path)}: its weights do not fit its recipe: {error}") from None
    remove_padding(wrapper.model, pieces.vocab_size + 1)  # type: ignore[arg-type]
    return Checkpoint(
        model=wrapper.model.eval(),  # type: ignore[arg-type]
        tokenizer=tokenizer,
        call_token_id=pieces.vocab_size,
        eos_id=pieces.eos_id,
        max_seq_len=recipe.max_seq_len,
        name=recipe.run_name or Path(path).stem,
        recipe=recipe,
        annotation=annotation,
    )


def _network(state: Mapping[str, Any], recipe: Recipe, tokenizer: Tokenizer) -> HuggingFaceModel:
    """The model of a run with random weights. That of a Hugging Face model is built from the configuration in the
    checkpoint: what the recipe names may have moved."""
    # Composer takes 8 s to import, and a folder of transformers is used without it.
    from lacy_stream.train.model import build_model, for_composer

    if isinstance(recipe.model, HFCausalLM):
        return for_composer(model_of_config(state["integrations"]["huggingface"]["model"]["config"]["content"]))
    return build_model(
        recipe.model, max_seq_len=recipe.max_seq_len, call_token_id=tokenizer.vocab_size, eos_id=tokenizer.eos_id
    )


def _read(path: str | os.PathLike[str], mmap: bool = False) -> dict[str, Any]:
    """The state in a checkpoint file; with ``mmap``, tensors are read when they are used."""
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)["state"]
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {os.fspath(path)!r}") from error
    except Exception as error:  # torch.load raises errors of many kinds for other files
        raise _no_checkpoint(path, error) from error


def _recorded(state: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[Recipe, str]:
    """The recipe in a checkpoint's state, and the line about its annotation."""
    try:
        callbacks = state["callbacks"]
        # StreamMonitor held the record before there was RunRecord. Such checkpoints are read in 0.1 only.
        record = callbacks["RunRecord" if "RunRecord" in callbacks else "StreamMonitor"]
        return check_recipe(yaml.safe_load(record["recipe"])), record["annotation"]
    except Exception as error:
        raise _no_checkpoint(path, error) from error


def _no_checkpoint(path: str | os.PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(f"{os.fspath(path)} is no checkpoint of a recipe's run ({type(error).__name__}: {error})")


def read_recipe(path: str | os.PathLike[str]) -> Recipe | None:
    """The recipe of the run that made a checkpoint file or an exported folder, without reading its weights; None where
    there is none.

    Raises:
        CheckpointError: the file is not a checkpoint.
    """
    if os.path.isfile(path):
        return _recorded(_read(path, mmap=True), path)[0]
    file = Path(path) / RECIPE
    return check_recipe(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else None


def load_model(path: str | os.PathLike[str]) -> CallingModel:
    """Load a checkpoint file of a run, a folder that ``lacy-stream export`` wrote, or by folder or hub name any causal
    language model of transformers (which has no <CALL>).

    Raises:
        ModelNotFoundError: no such file or folder.
        CheckpointError: not a checkpoint, or a folder without a model or a tokenizer.
    """
    return load_checkpoint(path) if os.path.isfile(path) else _from_transformers(os.fspath(path))


def _from_transformers(name: str) -> CallingModel:
    if not os.path.isdir(name) and not is_hub_name(name):
        raise ModelNotFoundError(f"there is no file or folder {name!r}")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, **weights_dtype(torch.float32))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} is no causal language model: {str(error).strip().splitlines()[0]}") from None
    tokenizer = model_tokenizer_file(name)
    if tokenizer is None:
        raise CheckpointError(f"{name} has no tokenizer: add its {SENTENCEPIECE} or {TOKENIZER_JSON}")
    config = model.config
    recipe = _file_of(name, RECIPE)
    recipe = None if recipe is None else check_recipe(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    positions = (context_of(config) or UNKNOWN_CONTEXT) if recipe is None else recipe.max_seq_len
    ends = [*_ids(config.eos_token_id), *_ids(getattr(model.generation_config, "eos_token_id", None))]
    if not ends:
        raise CheckpointError(f"{name} names no eos_token_id in its config.json: add the id that ends a text")
    call_token_id = getattr(config, "call_token_id", None)
    if call_token_id is not None:
        remove_padding(model, call_token_id + 1)
    is_ours = recipe is not None or call_token_id is not None
    return CallingModel(
        model.eval(),
        tokenizer,
        call_token_id,
        ends[0],
        positions,
        Path(name).name,
        recipe,
        other_start=None if is_ours else _start_of(name, config),
        further_ends=frozenset(ends[1:]),
    )


CONTEXT_NAMES = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "max_sequence_length",
    "seq_length", "context_length", "model_max_length",
)  # fmt: skip
UNKNOWN_CONTEXT = 2048
"""Positions of a small model whose configuration names none, as lm-eval assumes."""


def context_of(config: Any) -> int | None:
    """The number of positions that a configuration of transformers names, by whatever name; None where it names none,
    as with ALiBi and recurrent models."""
    config = config.get_text_config(decoder=True)
    named = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((value for value in named if isinstance(value, int) and value > 0), None)


def start_of_text(tokenizer: Any) -> tuple[int, ...]:
    """The ids that a tokenizer of transformers puts before each text, such as its beginning-of-text token."""
    alone: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    places = [at for at in range(len(whole)) if alone and whole[at : at + len(alone)] == alone]
    return tuple(whole[: places[0]]) if places else ()


def _start_of(name: str, config: Any) -> tuple[int, ...]:
    """What stands before a text in a model of others."""
    try:
        return start_of_text(AutoTokenizer.from_pretrained(name))
    except Exception:  # transformers lacks files of the tokenizer, or what it converts them with
        begin, ends = _ids(config.bos_token_id), _ids(config.eos_token_id)
        return tuple(begin) if begin != ends else ()


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def model_tokenizer_file(name: str) -> Path | None:
    """The file of the tokenizer in a model's folder or hub repository; None where it has none."""
    if os.path.isdir(name):
        try:
            return tokenizer_file(name)
        except MissingFileError:
            return None
    return _file_of(name, SENTENCEPIECE) or _file_of(name, TOKENIZER_JSON)


def _file_of(name: str, file: str) -> Path | None:
    """A file of a model's folder or hub repository; None where it has none."""
    found = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(found)
