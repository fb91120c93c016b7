"""What the runs of test_any_trainer.py have in common: a model, an optimizer and a loader. As a program, it runs code
of the documents with them, without Composer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from annotator import AnnotatorSettings
from lacy_stream.stream.batches import AnnotatedDataLoader, annotated_dataloader
from lacy_stream.stream.pool import AnnotationPool

ROWS, MICROBATCHES, LENGTH = 4, 2, 48
"""Rows of a mini-batch over all ranks, its parts on each rank, and tokens of a row."""


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32_001,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=2,
            eos_token_id=2,
        )
    )


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@contextmanager
def rows(folder: Path, batch_size: int) -> Iterator[AnnotatedDataLoader]:
    """A loader of shuffled, annotated rows of the data in a folder."""
    settings = AnnotatorSettings(folder / "tokenizer.model", model=None, labeller="capitals:capitals")
    with AnnotationPool(settings, num_workers=1) as pool:
        yield annotated_dataloader(
            folder / "data", pool, split="train", shuffle=True, batch_size=batch_size, max_seq_len=LENGTH, lanes=4
        )


def main(code: str, folder: str, *stops: str) -> None:
    """Run the code once for each stop, each time with a new model and loader, in a folder of its own."""
    torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    for stop in stops:
        model = torch.nn.parallel.DistributedDataParallel(gpt2()) if ranks > 1 else gpt2()
        with rows(Path(folder), ROWS // MICROBATCHES // ranks) as loader:
            names = {"model": model, "optimizer": sgd(model), "loader": loader, "steps": int(stop)}
            exec(compile(Path(code).read_text(encoding="utf-8"), code, "exec"), names)
    assert names["start"] > 0, "the second run continued the first"
    torch.save(getattr(model, "module", model).state_dict(), f"weights-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    assert "composer" not in sys.modules
