"""The options of each evaluation, with their defaults. This file imports no torch, so that `--help` answers at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from lacy_stream.cascade.settings import MANY_TEXTS, Decoding, Delegation, DelegationMethod
from lacy_stream.compute import ComputeOptions
from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import Rank


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options that all evaluations have.

    Raises:
        UsageError: a count below 1.
    """

    models: tuple[Annotated[str, "MODEL"], ...]
    """Checkpoints of runs (runs/NAME/latest-rank0.pt) or exported folders, as many as you like."""

    out: Annotated[str, "DIR"]
    """Folder for the results, and for what the same command resumes from."""

    limit: int | None = None
    """Only the first N items."""

    compute: ComputeOptions = ComputeOptions()
    """Where the models run."""

    def __post_init__(self) -> None:
        check_positive(self, "limit", "batch_size", "documents")


@dataclass(frozen=True, kw_only=True)
class LossesOptions(EvaluationOptions):
    """The options of `evaluate_losses`.

    Raises:
        UsageError: a value is out of range.
    """

    baseline: Annotated[str, "MODEL"] | None = None
    """A model to compare with on the call masks of the others. It need not know <CALL>."""

    data: Annotated[str, "DIR"] | None = None
    """Folder of MDS shards. Default: the held-out data of the first model's run."""

    split: str = "val"
    """Split of the folder; '' for the folder itself."""

    call_fraction: float = 0.15
    """Share of the targets on a call mask."""

    rank_calls_by: Rank | None = None
    """The score of <CALL> that decides which targets are on a mask. Default: that of each model's run."""

    parser: str = "en_core_web_sm"
    """spaCy pipeline that tells which targets are facts."""

    batch_size: int = 8
    """Rows that a model reads at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.call_fraction < 1:
            raise UsageError(
                f"--call-fraction is {self.call_fraction}: give a share between 0 and 1, so that there are targets on "
                "the call mask and off it"
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(EvaluationOptions):
    """The options that all evaluations by lm-eval have. ``limit`` counts the items of each task."""

    batch_size: int = 8
    """Sequences that a model reads at once."""


@dataclass(frozen=True, kw_only=True)
class LeakageOptions(BenchmarkOptions):
    """The options of `evaluate_leakage`."""

    data: Annotated[str, "DIR"]
    """Folder with the two files of questions."""


@dataclass(frozen=True, kw_only=True)
class NluOptions(BenchmarkOptions):
    """The options of `evaluate_nlu`."""

    data: Annotated[str, "DIR"] | None = None
    """Folder with the benchmarks, for a run without network. Default: the Hugging Face hub."""


# ---------------------------------------------------------------- judges


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """The options of a judge, see ``judge.Judge``.

    Raises:
        UsageError: a count below 1.
    """

    judge: Annotated[str, "URL"]
    """Base URL of the endpoint, such as http://localhost:8000/v1."""

    judge_model: str
    """Name by which the endpoint knows the model."""

    judge_timeout: Annotated[float, "SECONDS"] = 60.0
    """Seconds that one attempt may take."""

    judge_retries: int = 4
    """Further attempts after one that failed."""

    judge_cache: Annotated[str, "FILE"] | None = None
    """File that keeps the answers; several runs may share it. Default: DIR/judge.sqlite."""

    judge_max_tokens: int | None = None
    """Longest answer in tokens, thoughts included. Default: 512 for facts and for reasons, 256 for verdicts."""

    judge_extra_body: Annotated[str, "JSON"] = ""
    """Further fields of the requests, such as '{"chat_template_kwargs": {"enable_thinking": false}}'. They replace
    fields of the same name."""

    judge_concurrency: int = 8
    """Questions that are asked at once."""

    def __post_init__(self) -> None:
        check_positive(self, "judge_concurrency", "judge_max_tokens")
        if not self.judge_timeout > 0:
            raise UsageError(f"--judge-timeout is {self.judge_timeout}: give a number of seconds above 0")
        if self.judge_retries < 0:
            raise UsageError(f"--judge-retries is {self.judge_retries}: give 0 or more")
        self.extra_body()

    def extra_body(self) -> dict[str, Any]:
        """The further fields of the requests.

        Raises:
            UsageError: they are no JSON object.
        """
        try:
            fields = json.loads(self.judge_extra_body or "{}")
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise UsageError(
                f"--judge-extra-body is {self.judge_extra_body!r}: give a JSON object, such as '{{\"temperature\": 1}}'"
            )
        return fields


@dataclass(frozen=True, kw_only=True)
class AcceptabilityOptions(EvaluationOptions):
    """The options of the evaluation of acceptability."""

    judging: JudgeOptions
    """The judge: any OpenAI-style chat endpoint. Its key is read from OPENAI_API_KEY."""

    texts: Annotated[str, "FILE"] | None = None
    """Documents, JSONL or Parquet. Default: the held-out data of each model's run."""

    documents: int = 112
    """Number of documents to read; 112 as in the paper."""

    parser: str = "en_core_web_sm"
    """spaCy pipeline that tells which tokens are facts."""


# ---------------------------------------------------------------- biographies


@dataclass(frozen=True, kw_only=True)
class FactCheckOptions:
    """Whom the texts are about, and what their facts are checked against."""

    names: Annotated[str, "FILE"] | None = None
    """Names to write about, one a line. Required, unless each MODEL is a file of texts."""

    knowledge: Annotated[str, "FILE"]
    """Articles: a store made by `lacy-stream knowledge build`."""

    demonstrations: Annotated[str, "FILE"] | None = None
    """JSON of sentence: [fact, ...], which replaces the demonstrations of the package."""

    gamma: int = 10
    """Number of facts below which a text is penalised."""


@dataclass(frozen=True, kw_only=True)
class PartnerOptions:
    """With whom the texts are written."""

    partner: Annotated[str, "PARTNER"] | None = None
    """The model that answers calls, as in `lacy-stream generate`. Without one, there are no calls."""

    partner_tokenizer: Annotated[str, "NAME"] | None = None
    """Tokenizer of a partner at an endpoint, as in `lacy-stream generate`."""

    partner_device: Annotated[str, "DEVICE"] | None = None
    """The torch device of a partner that is loaded here. Default: that of the small model."""

    rag: bool = False
    """The partner first reads the person's article in --knowledge."""

    template: Annotated[str, "FILE"] | None = None
    """Text around {title} and {article}. Default: the paper's, for Qwen 3."""


@dataclass(frozen=True, kw_only=True)
class FactscoreOptions(EvaluationOptions):
    """The options of the evaluation of biographies."""

    judging: JudgeOptions
    """The judge: any OpenAI-style chat endpoint. Its key is read from OPENAI_API_KEY."""

    checking: FactCheckOptions
    """What is judged, and by what."""

    writing: PartnerOptions = PartnerOptions()
    """How the texts are written."""

    decoding: Decoding = Decoding(batch_size=MANY_TEXTS)
    """How the texts are written."""

    delegation: Delegation = Delegation()
    """What is delegated."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(FactscoreOptions):
    """The options of the sweep. The delegation's method and call rate are those of the tables.

    Raises:
        UsageError: there is no partner.
    """

    rates: tuple[float, ...] = (0.0, 0.15, 0.45, 0.60, 0.75)
    """Target call rates of table 8."""

    baseline: tuple[Annotated[str, "MODEL"], ...] = ()
    """A model for table 9; may be given several times."""

    methods: tuple[Annotated[DelegationMethod, "METHOD"], ...] = ("random", "ilacy-logprob", "ilacy-entropy")
    """Ways of delegating in table 9: values of `lacy-stream generate --delegate`."""

    method_rate: float = 0.22
    """Call rate of table 9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.writing.partner is None:
            raise UsageError("--partner is missing: a sweep measures what delegating to a partner brings")
        for rate in (*self.rates, self.method_rate):
            if not 0 <= rate <= 1:
                raise UsageError(f"a call rate of the sweep is {rate}: give shares of the tokens, 0 to 1")


# ---------------------------------------------------------------- show-calls


@dataclass(frozen=True, kw_only=True)
class ShowCallsOptions:
    """The options of `show_calls`.

    Raises:
        UsageError: nothing would be shown, or two models without a page.
    """

    checkpoint: Annotated[str, "CHECKPOINT"]
    """File in the run's save_folder, such as latest-rank0.pt."""

    files: tuple[Annotated[str, "FILE"], ...] = ()
    """Texts. Default: documents of the run's held-out data."""

    documents: int = 1
    """Number of held-out documents to show."""

    sample: int = 0
    """Number of held-out documents that give the threshold and the shares; at least those that are shown."""

    beside: Annotated[str, "CHECKPOINT"] | None = None
    """A second model with the same tokenizer, shown beside the first on the page."""

    html: Annotated[str, "FILE"] | None = None
    """Also write a page."""

    compute: ComputeOptions = ComputeOptions()
    """Where the models run."""

    def __post_init__(self) -> None:
        check_positive(self, "documents")
        if self.beside is not None and self.html is None:
            raise UsageError("--beside shows two models on a page: name it by --html FILE")


def check_positive(options: object, *names: str) -> None:
    """Check counts, where they are among the options and given.

    Raises:
        UsageError: one is below 1.
    """
    for name in names:
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}: give 1 or more")
