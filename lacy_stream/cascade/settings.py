"""Settings of a cascade, for `generate`, `evaluate` and the Python interface. This file does not import torch, so that
`--help` answers at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, get_args

from lacy_stream.cascade.identity import model_settings, partner_settings
from lacy_stream.compute import ComputeOptions
from lacy_stream.errors import UsageError
from lacy_stream.files import file_fingerprint
from lacy_stream.objective.methods import RANKS, Rank

DelegationMethod = Literal["call", "random", "ilacy-logprob", "ilacy-entropy"]
"""Ways to decide which tokens are delegated, see docs/cascade.md."""
Estimator = Literal["tracking", "paper"]
"""Ways to estimate the threshold of the calls, see ``thresholds``."""
ThresholdPer = Literal["run", "text"]
"""Whether all texts share a threshold."""

DELEGATION_METHODS: tuple[DelegationMethod, ...] = get_args(DelegationMethod)
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
THRESHOLDS_PER: tuple[ThresholdPer, ...] = get_args(ThresholdPer)
MANY_TEXTS = 8
"""Batch size for writing many texts that nobody watches as they grow."""


@dataclass(frozen=True)
class Delegation:
    """The settings of delegation: which tokens the small model delegates, and how many.

    Raises:
        UsageError: a value is not one of the known ones or out of range.
    """

    method: DelegationMethod = "call"
    """What decides: the score of <CALL>, chance, or the uncertainty of the model at facts (i-LaCy)."""

    call_rate: float = 0.15
    """Share of the tokens that the partner writes, from 0 (no calls) to 1."""

    estimator: Estimator = "tracking"
    """How the threshold of the calls is estimated: `tracking` keeps to the call rate; `paper` is the quantile of all
    scores so far."""

    threshold_per: ThresholdPer = "run"
    """`run`: all texts share a threshold, so the call rate is that of all of them. `text`: each text has its own, and
    does not depend on other texts."""

    seed: int = 0
    """Seed of random delegation."""

    rank_calls_by: Rank | None = None
    """The score of <CALL>, where it decides; `logit` is the paper's. Default: that of the model's run."""

    def __post_init__(self) -> None:
        if self.method not in DELEGATION_METHODS:
            raise UsageError(f"delegate: {self.method!r} is none of {', '.join(DELEGATION_METHODS)}")
        if self.rank_calls_by is not None and self.rank_calls_by not in RANKS:
            raise UsageError(f"rank_calls_by: {self.rank_calls_by!r} is none of {', '.join(RANKS)}")
        if self.rank_calls_by is not None and self.method != "call":
            raise UsageError(
                f"rank_calls_by: {self.rank_calls_by!r} ranks calls by <CALL>, and delegate {self.method!r} does not: "
                "leave it out"
            )
        if not 0 <= self.call_rate <= 1:
            raise UsageError(f"call_rate is {self.call_rate}: give a share of the tokens, 0 to 1")
        if self.estimator not in ESTIMATORS:
            raise UsageError(f"estimator: {self.estimator!r} is none of {', '.join(ESTIMATORS)}")
        if self.threshold_per not in THRESHOLDS_PER:
            raise UsageError(f"threshold_per: {self.threshold_per!r} is none of {', '.join(THRESHOLDS_PER)}")


@dataclass(frozen=True)
class Decoding:
    """The settings of decoding.

    Raises:
        UsageError: a value is out of range.
    """

    max_new_tokens: int = 256
    """Longest text, in tokens of the small model. A call at the end may exceed it by the rest of its pieces."""

    repetition_penalty: float = 1.2
    """Repetition penalty of the small model and of a partner that is loaded here; 1 for none."""

    batch_size: int = 1
    """Texts that are written at once. With a threshold for all of them, they depend slightly on it."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")
        if self.repetition_penalty <= 0:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty}: give 1 for none, more to discourage repetition"
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}: give at least 1")


def flat_settings(delegation: Delegation, decoding: Decoding) -> dict[str, object]:
    """Both settings as one mapping of JSON values, with the option names of the command line."""
    values = asdict(delegation)
    return {"delegate": values.pop("method")} | values | asdict(decoding)


@dataclass(frozen=True)
class GenerateOptions:
    """The options of a run of `lacy-stream generate`. If texts are written one at a time, they are shown as they grow.
    Otherwise they are shown when they are finished.

    Raises:
        UsageError: values that do not fit together.
    """

    model: Annotated[str, "MODEL"]
    """Checkpoint, exported folder, or another causal language model."""

    prompt: tuple[Annotated[str, "TEXT"], ...] = ()
    """A text to continue; may be given several times."""

    prompts: Annotated[str, "FILE"] | None = None
    """Texts to continue: one a line, or .jsonl with "prompt" and "title"."""

    partner: Annotated[str, "PARTNER"] | None = None
    """The larger model. Without one, there are no calls."""

    partner_tokenizer: Annotated[str, "NAME"] | None = None
    """Tokenizer of a partner at an endpoint: a folder or hub name. It tells text from names of tokens."""

    partner_device: Annotated[str, "DEVICE"] | None = None
    """The torch device of a partner that is loaded here. Default: that of the small model."""

    out: Annotated[str, "FILE"] | None = None
    """JSONL file of the texts, token by token; the same command resumes it. Required with --prompts."""

    html: Annotated[str, "FILE"] | None = None
    """Also write a page that shows who wrote each token."""

    compute: ComputeOptions = ComputeOptions()
    """Where the models run."""

    delegation: Delegation = Delegation()
    """What is delegated."""

    decoding: Decoding = Decoding()
    """How the texts are written."""

    knowledge: Annotated[str, "FILE"] | None = None
    """Articles that the partner reads first: a store made by `lacy-stream knowledge build`."""

    title: Annotated[str, "TITLE"] | None = None
    """Title of the article for --prompt. Default: NAME in "Tell me a bio of NAME. NAME is"."""

    template: Annotated[str, "FILE"] | None = None
    """Text around {title} and {article}. Default: the paper's, for Qwen 3."""

    def __post_init__(self) -> None:
        if bool(self.prompt) == (self.prompts is not None):
            raise UsageError("there are no prompts, or two kinds of them: give either --prompt TEXT or --prompts FILE")
        if self.prompts is not None and self.out is None:
            raise UsageError("--prompts needs --out FILE, where its texts are kept")

    def settings(self) -> dict[str, object]:
        """The settings on which the texts depend, besides the prompts."""
        files = {"knowledge": self.knowledge, "template": self.template}
        prints = {name: file and file_fingerprint(file) for name, file in files.items()}
        texts = {**model_settings(self.model), "partner": self.partner, "title": self.title}
        partner = partner_settings(self.partner, self.partner_tokenizer)
        return texts | partner | flat_settings(self.delegation, self.decoding) | prints
