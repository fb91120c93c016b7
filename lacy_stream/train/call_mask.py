"""The Composer Algorithm that selects targets and puts the loss of the selection in the place of the model's own.

    loss on the true token --selectors--> call mask, ignore mask --losses--> scalar       (equations A.2 to A.4)

The masks belong to the mini-batch: 15% of the tokens of all microbatches, and with ``scope="global"`` of all
ranks, whatever the sizes of the parts. One microbatch on each rank is the cheap case, since the losses are
known when the loss is computed; with more of them, a forward pass without gradient finds the losses first
(one more forward: about a third more arithmetic a step). Methods that do not look at the model's loss need none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from composer.core import Algorithm, Event, State
from composer.core.data_spec import default_split_batch
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor

from annotator import FactClass
from lacy_stream.errors import UsageError
from lacy_stream.objective.call_statistics import CallStatistics
from lacy_stream.objective.losses import IGNORED_LABEL, TokenLosses, token_losses, training_loss, true_losses
from lacy_stream.objective.methods import OBJECTIVES, RANKS, SCOPES, Objective, Rank, Scope, check_fractions
from lacy_stream.objective.minibatch import gathered, own_part, uniform
from lacy_stream.objective.selectors import METHODS, Method, Selection, Selector, Targets, budget
from lacy_stream.train.auxiliary_loss import auxiliary_loss

log = logging.getLogger(__name__)

ALMOST_EVERYWHERE = 0.95
"""Share of the targets: where <CALL> leads at more of them, its place says little."""


class ObjectiveError(UsageError):
    """The checkpoint was trained with another objective; the message says which."""


class _Masks(NamedTuple):
    """A selection for this rank's rows, [B, T], and the share of the targets of its scope that are not ignored."""

    selection: Selection
    learned_share: Tensor

    def rows(self, start: int, count: int) -> _Masks:
        part = (None if mask is None else mask[start : start + count] for mask in self.selection)
        return _Masks(Selection(*part), self.learned_share)


class CallMask(Algorithm):
    """Trains a model to emit <CALL>, by one of the methods of table 5: changes the loss of any Composer model that
    yields logits.

    The batch needs ``input_ids``-shaped ``labels`` (not shifted, -100 ignored, as in transformers) and
    ``token_class`` (``FactClass`` values), as ``annotated_dataloader`` yields them. The model is not changed:
    its ``loss`` is replaced while ``fit`` runs.

    Args:
        call_token_id: id of <CALL>, an entry of the model's vocabulary that never occurs in the data.
        call_fraction: share of the mini-batch's tokens to delegate, in (0, 1).
        method: a name of ``selectors.METHODS``, such as ``lacy``; or a selector of your own.
        scope: the tokens among which the selection is made: ``global``, the mini-batch over all ranks; ``rank``,
            this rank's part of it; ``microbatch``, each microbatch alone (no second forward pass; fewer calls where
            facts are spread unevenly).
        ignore_fraction: share of the mini-batch's tokens to ignore, in [0, 1), for the methods that fill up to it.
        call_fraction_warmup: batches over which the share of calls grows linearly to ``call_fraction``; 0 for none.
            Early in a run losses say little, and the model learns from what is not delegated.
        reference: for the methods that need one, a causal language model of transformers with the same tokenizer, with
            or without an entry for <CALL>. It is frozen, moved to the device, and run in the trainer's precision,
            whole on every rank.
        objective: what is learned where <CALL> is not the target. ``defer``: the true token and that this is no place
            to call, so that p(<CALL>) means what it says. ``paper`` (A.3, A.4): the true token, with <CALL> left out of
            the softmax, so that nothing lowers its logit there. See ``methods.Objective``.
        rank_calls_by: the score by which ``precision`` ranks positions. See ``methods.Rank``.
        accept_changes: continue from a checkpoint that was trained with another objective.
        seed: of the methods that draw at random. The draw depends on the seed, the step and the place in the
            mini-batch: not on microbatches, ranks, or whether the run was resumed.

    The loss of a microbatch is the mean over its valid targets, which Composer weights by rows. Where rows are
    padded, give the Trainer ``accumulate_train_batch_on_tokens=True`` and a DataSpec that counts the valid targets,
    as for any other loss; ``annotated_dataloader`` pads no training rows. ``global`` needs the same number of
    microbatches on every rank: set ``device_train_microbatch_size`` to a number rather than ``auto``.

    Logged at each batch, over all ranks, under ``call_mask/``; losses in nats:

    - ``call_fraction``, ``ignore_fraction``, ``factual_fraction``: shares of the valid targets;
    - ``calls_factual``, ``calls_grammatical``, ``calls_other``: what the calls are, as shares of them; and
      ``ignored_factual`` and so on;
    - ``call_loss``: mean loss of <CALL> on the call mask; ``called_token_loss``: of the true token there;
      ``ignored_token_loss``: of the true token on the ignore mask; ``rest_loss``: of the true token on what is learned;
    - ``threshold``: the lowest loss that was delegated;
    - ``precision``: of the call_fraction that the model itself would call now, the share that the call mask wants, and
      ``chance``, what calls at random would have; each microbatch of a rank is ranked by itself;
    - ``call_probability``: mean p(<CALL>); ``call_majority``: the share of the targets where it is more than a half;
    - ``reference_s``: seconds that the reference model took, on the rank where it took longest.
    """

    def __init__(
        self,
        call_token_id: int,
        call_fraction: float = 0.15,
        method: str | Selector = "lacy",
        scope: Scope = "global",
        *,
        ignore_fraction: float = 0.15,
        call_fraction_warmup: int = 0,
        reference: torch.nn.Module | None = None,
        objective: Objective = "defer",
        rank_calls_by: Rank = "probability",
        accept_changes: bool = False,
        seed: int = 17,
    ) -> None:
        check_fractions(call_fraction, ignore_fraction)
        if isinstance(method, str) and method not in METHODS:
            raise UsageError(f"method is {method!r}: choose one of {tuple(METHODS)}, or give a selector")
        if scope not in SCOPES:
            raise UsageError(f"scope is {scope!r}: choose one of {SCOPES}")
        if call_fraction_warmup < 0:
            raise UsageError(f"call_fraction_warmup is {call_fraction_warmup}: give a number of batches, 0 for none")
        if objective not in OBJECTIVES:
            raise UsageError(f"objective is {objective!r}: choose one of {OBJECTIVES}")
        if rank_calls_by not in RANKS:
            raise UsageError(f"rank_calls_by is {rank_calls_by!r}: choose one of {RANKS}")
        if call_token_id < 0:
            raise UsageError(f"call_token_id is {call_token_id}: it must be an id of the model's vocabulary")
        self.method = METHODS[method] if isinstance(method, str) else Method(select=method, loss=True)
        if self.method.reference and reference is None:
            raise UsageError(f"method {method!r} needs a reference model: give one as reference")
        self.call_token_id, self.call_fraction, self.ignore_fraction = call_token_id, call_fraction, ignore_fraction
        self.call_fraction_warmup = call_fraction_warmup
        self._fraction = call_fraction  # of this mini-batch
        self.scope, self.seed, self.accept_changes = scope, seed, accept_changes
        self.objective: Objective = objective
        self.rank_calls_by: Rank = rank_calls_by
        self._method_name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
        self._reference = None if reference is None else reference.eval().requires_grad_(False)
        self._reference_clock = _Stopwatch()
        self._model: Any = None
        self._original_loss: Any = None
        self._masks: _Masks | None = None  # of this rank's mini-batch, where they are known before its losses
        self._random_BT = torch.empty(0)  # of this rank's mini-batch
        self._row = 0  # of the mini-batch, where the next microbatch begins
        self._batch: Any = None  # the microbatch in work, whole
        self._precision: tuple[Any, Any] = (None, None)
        self._statistics = CallStatistics(call_fraction)
        self._warned = False

    def match(self, event: Event, state: State) -> bool:
        return event in (
            Event.INIT,
            Event.FIT_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.BEFORE_FORWARD,
            Event.AFTER_FORWARD,
            Event.BATCH_END,
            Event.FIT_END,
        )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"objective": self.objective, "method": self._method_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained to call by another objective.

        Raises:
            ObjectiveError: it was, and ``accept_changes`` is not set.
        """
        before = state.get("objective", self.objective)
        if before == self.objective or "baseline" in (state.get("method"), self._method_name):
            return  # without a call mask, both objectives are the same
        message = f"the checkpoint was trained with objective {before!r}, and this run has {self.objective!r}"
        if not self.accept_changes:
            raise ObjectiveError(message + ". To continue all the same, set accept_changes")
        log.warning("%s. The run continues (accept_changes)", message)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._model = state.model  # before DDP wraps it; Composer calls this object's `loss`
            self._original_loss = self._model.__dict__.get("loss")
            if isinstance(getattr(self._original_loss, "__self__", None), CallMask):
                self._original_loss = None  # left by a fit that was broken off
        elif event == Event.FIT_START:
            _check_call_token(self.call_token_id, getattr(state.train_dataloader, "dataset", None))
            if self._reference is not None:
                state.device.module_to_device(self._reference)
            self._model.loss = self._loss
        elif event == Event.BEFORE_TRAIN_BATCH:  # again after an out-of-memory retry: start over
            _check_batch(state.batch)
            self._masks, self._row, self._statistics = None, 0, CallStatistics(self.call_fraction)
            self._reference_clock.clear()
            self._precision = (state.precision, state.precision_config)
            step = state.timestamp.batch.value + 1
            self._fraction = self.call_fraction * min(1.0, step / max(1, self.call_fraction_warmup))
            self._random_BT = uniform(self.seed, state.timestamp.batch.value, state.batch["labels"])
            if self._selects_first(state):
                self._masks = self._first_pass(state)
        elif event == Event.BEFORE_FORWARD:
            self._batch = state.batch
            state.batch = self._without_labels(state.batch)
        elif event == Event.AFTER_FORWARD and self._batch is not None:
            state.batch, self._batch = self._batch, None
        elif event == Event.BATCH_END:
            self._log(state, logger)
        elif event == Event.FIT_END:
            del self._model.loss
            if self._original_loss is not None:
                self._model.loss = self._original_loss

    # --- the loss of one microbatch -----------------------------------------------------------------------

    def _loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Takes the place of ``ComposerModel.loss``."""
        labels_BT, classes_BT = _shifted(batch)
        valid_BT, rows = labels_BT != IGNORED_LABEL, len(labels_BT)
        logits_BTV = _logits(outputs)
        losses = token_losses(logits_BTV, labels_BT, self.call_token_id)
        if self._masks is not None:
            masks = self._masks.rows(self._row, rows)
        else:
            random_BT = self._random_BT[self._row : self._row + rows].to(valid_BT.device)
            reference_BT = self._reference_losses(batch, labels_BT)
            masks = self._select(Targets(losses.true.detach(), classes_BT, valid_BT, random_BT, reference_BT))
        self._row += rows
        self._statistics.add(losses, self._score(logits_BTV, losses), masks.selection, classes_BT, valid_BT)
        loss = training_loss(
            losses, valid_BT, *masks.selection, learned_share=masks.learned_share, objective=self.objective
        )
        return loss + auxiliary_loss(self._model, outputs)

    def _score(self, logits_BTV: Tensor, losses: TokenLosses) -> Tensor:
        """How much the model wants to call at each position, [B, T]; without a pass of its own over the logits."""
        if self.rank_calls_by == "logit":
            return logits_BTV[..., self.call_token_id].detach().float()
        return losses.call_log_odds.detach()

    def _select(self, targets: Targets) -> _Masks:
        """The masks of these targets [B, T], chosen among them and, with ``scope="global"``, those of all ranks."""
        if self.scope == "global" and dist.get_world_size() > 1:
            whole = gathered(targets)
            masks = self._selected(whole)
            return _Masks(Selection(*(own_part(mask, targets.valid) for mask in masks.selection)), masks.learned_share)
        return self._selected(targets)

    def _selected(self, targets: Targets) -> _Masks:
        counts = (budget(targets.valid, fraction) for fraction in (self._fraction, self.ignore_fraction))
        call, ignore = self.method.select(targets, *counts)
        for name, mask in (("call", call), ("ignore", ignore)):
            if mask is not None and (mask.dtype != torch.bool or mask.shape != targets.valid.shape):
                raise UsageError(
                    f"the selector's {name} mask is {mask.dtype} {list(mask.shape)}: it must be bool, "
                    f"{list(targets.valid.shape)}, as the targets are"
                )
        call = None if call is None else call & targets.valid
        ignore = None if ignore is None else ignore & targets.valid
        if call is not None and ignore is not None:
            ignore = ignore & ~call
        tokens = targets.valid.sum().clamp(min=1)
        learned = tokens if ignore is None else tokens - ignore.sum()
        return _Masks(Selection(call, ignore), learned / tokens)

    # --- where the masks are known before the losses: no loss is needed, or a first pass finds it -----------------

    def _selects_first(self, state: State) -> bool:
        rows = len(state.batch["labels"])
        return rows > (state.device_train_microbatch_size or rows) and self.scope != "microbatch"

    @torch.no_grad()
    def _first_pass(self, state: State) -> _Masks:
        """The masks of this rank's whole mini-batch, from losses of the model as it is before the step."""
        loss, classes, valid, reference = [], [], [], []
        with _evaluating(state.model):
            for microbatch in default_split_batch(state.batch, state.device_train_microbatch_size or 1):
                microbatch = state.device.batch_to_device(microbatch)
                labels_BT, classes_BT = _shifted(microbatch)
                valid.append(labels_BT != IGNORED_LABEL)
                classes.append(classes_BT)
                loss.append(torch.zeros_like(labels_BT, dtype=torch.float32))
                if self.method.loss:
                    with get_precision_context(*self._precision):
                        logits_BTV = _logits(state.model(self._without_labels(microbatch)))
                    loss[-1] = true_losses(logits_BTV, labels_BT, self.call_token_id)
                    del logits_BTV
                reference.append(self._reference_losses(microbatch, labels_BT))
        random_BT = self._random_BT.to(valid[0].device)
        reference_BT = torch.cat(reference) if self._reference is not None else None
        return self._select(Targets(torch.cat(loss), torch.cat(classes), torch.cat(valid), random_BT, reference_BT))

    @torch.no_grad()
    def _reference_losses(self, batch: Mapping[str, Tensor], labels_BT: Tensor) -> Tensor | None:
        """The reference model's loss of the true token; None without one."""
        if self._reference is None:
            return None
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        with self._reference_clock.running(labels_BT.device), get_precision_context(*self._precision):
            logits_BTV = _logits(self._reference(**inputs))
            if logits_BTV.shape[-1] not in (self.call_token_id, self.call_token_id + 1):
                raise UsageError(
                    f"the reference model's vocabulary has {logits_BTV.shape[-1]} entries: it must be that of the "
                    f"tokenizer, {self.call_token_id}, or one more for <CALL>"
                )
            return true_losses(logits_BTV, labels_BT, self.call_token_id)

    def _without_labels(self, batch: Any) -> Any:
        """Hugging Face models compute their own loss in forward wherever they see labels: hide them."""
        if isinstance(self._model, HuggingFaceModel):
            return {key: value for key, value in batch.items() if key != "labels"}
        return batch

    # --- what is logged -------------------------------------------------------------------------------------

    def _log(self, state: State, logger: Logger) -> None:
        metrics = self._statistics.metrics()
        if not metrics:
            return
        if metrics["call_majority"] > ALMOST_EVERYWHERE and not self._warned:
            self._warned = True
            log.warning(
                "<CALL> is the most likely token at %.0f%% of the targets, so it tells little about where to call. %s",
                100 * metrics["call_majority"],
                "Objective 'paper' has no term that lowers it where it is not the target: use objective 'defer'"
                if self.objective == "paper"
                else "The call mask may delegate nearly all that is learned: look at call_fraction",
            )
        if self._reference is not None:
            seconds = state.device.tensor_to_device(torch.tensor([self._reference_clock.seconds()]))
            dist.all_reduce(seconds, "MAX")
            metrics["reference_s"] = seconds.item()
        logger.log_metrics({f"call_mask/{name}": value for name, value in metrics.items()})


class _Stopwatch:
    """Seconds of work on a device; on a GPU without waiting for it until they are asked for."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []  # of CUDA

    def clear(self) -> None:
        self._seconds, self._events = 0.0, []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            yield
            end.record(torch.cuda.current_stream(device))
            self._events.append((start, end))
        else:
            before = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - before

    def seconds(self) -> float:
        for _, end in self._events:
            end.synchronize()
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000


def _check_batch(batch: Any) -> None:
    keys = sorted(batch) if isinstance(batch, Mapping) else []
    for key in ("labels", "token_class"):
        if key not in keys:
            raise UsageError(f"the batch has no {key!r} (it has {keys}): use annotated_dataloader")


def _check_call_token(call_token_id: int, dataset: Any) -> None:
    """<CALL> must not be a piece of the tokenizer, where the data set says how many there are."""
    pieces = getattr(dataset, "vocab_size", None)
    if pieces is not None and call_token_id < pieces:
        raise UsageError(
            f"call_token_id is {call_token_id}, which is one of the {pieces} pieces of the tokenizer: give <CALL> an "
            f"id of its own, {pieces} or more, and the model an entry for it in its vocabulary"
        )


def _logits(outputs: Any) -> Tensor:
    logits = outputs if isinstance(outputs, Tensor) else None
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif logits is None:
        logits = getattr(outputs, "logits", None)
    if logits is None or logits.ndim != 3:
        raise UsageError(
            f"the model's forward returned {type(outputs).__name__} without logits [B, T, V]: the call mask needs "
            "them (turn off a fused loss that does not keep the logits)"
        )
    return logits


def _shifted(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Labels and classes [B, T] of the targets: position i predicts token i + 1, and the last position nothing."""
    labels_BT = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
    return labels_BT, F.pad(batch["token_class"][:, 1:], (0, 1), value=int(FactClass.OTHER))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, and no use of its random numbers; each module's own mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
