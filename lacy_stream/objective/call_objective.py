"""The loss that trains a model to call, under any trainer, and what it keeps from one microbatch of a step to the next.

    loss on the true token --selectors--> call mask, ignore mask --losses--> scalar       (equations A.2 to A.4)

The masks belong to the mini-batch: 15% of the tokens of all microbatches, and with ``scope="global"`` of all ranks,
whatever the sizes of the parts. There are two ways to know the losses among which the masks are selected:

- One microbatch on each rank is the cheap case. Its losses are known when its loss is computed.
- With more of them, the masks must be known before the last microbatch has been seen. A first pass without gradient
  finds the losses (one more forward: about a third more arithmetic a step); the second pass trains.

Methods that do not look at the model's loss need no first pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lacy_stream import distributed as dist
from lacy_stream.errors import UsageError
from lacy_stream.objective.batch import Batch, check_batch, logits_of, shift_labels
from lacy_stream.objective.call_statistics import CallStatistics
from lacy_stream.objective.losses import IGNORED_LABEL, token_losses, training_loss, true_losses
from lacy_stream.objective.methods import OBJECTIVES, RANKS, SCOPES, Objective, Rank, Scope, check_fractions
from lacy_stream.objective.minibatch import Masks, select_masks, uniform
from lacy_stream.objective.reference import ReferenceLosses
from lacy_stream.objective.scores import call_score
from lacy_stream.objective.selectors import METHODS, Method, Selector, Targets

log = logging.getLogger(__name__)

ALMOST_EVERYWHERE = 0.95
"""Share of the targets: where <CALL> leads at more of them, its place says little."""


class ObjectiveError(UsageError):
    """The checkpoint was trained with another objective; the message says which."""


class CallObjective:
    """The loss that trains a model to emit <CALL>, by one of the methods of table 5. It needs no particular trainer.

    A step of training has one or more microbatches on each rank::

        objective.begin_step(step, microbatches, model)
        for microbatch in microbatches:
            objective(model(microbatch["input_ids"]), microbatch).backward()
        optimizer.step()

    The gradients of the microbatches add up to that of the whole mini-batch, also where they differ in size. Over
    several ranks, the average of their gradients does, as DistributedDataParallel makes it. The ranks and their number
    come from torch.distributed.

    Args:
        call_token_id: id of <CALL>, an entry of the model's vocabulary that never occurs in the data.
        call_fraction: share of the mini-batch's tokens to delegate, in (0, 1).
        method: a name of ``selectors.METHODS``, such as ``lacy``; or a selector of your own.
        scope: the tokens among which the selection is made: ``global``, the mini-batch over all ranks; ``rank``,
            this rank's part of it; ``microbatch``, each microbatch alone (no first pass; fewer calls where facts are
            spread unevenly).
        ignore_fraction: share of the mini-batch's tokens to ignore, in [0, 1), for the methods that fill up to it.
        call_fraction_warmup: steps over which the share of calls grows linearly to ``call_fraction``; 0 for none.
            Early in a run losses say little, and the model learns from what is not delegated.
        reference: for the methods that need one, a causal language model of transformers with the same tokenizer, with
            or without an entry for <CALL>. It is frozen, moved to the device, and run whole on every rank.
        objective: what is learned where <CALL> is not the target. ``defer``: the true token and that this is no place
            to call, so that p(<CALL>) means what it says. ``paper`` (A.3, A.4): the true token, with <CALL> left out of
            the softmax, so that nothing lowers its logit there. See ``methods.Objective``.
        rank_calls_by: the score by which ``precision`` ranks positions. See ``methods.Rank``.
        accept_changes: continue from a state that was saved with another objective.
        seed: of the methods that draw at random. The draw depends on the seed, the step and the place in the
            mini-batch: not on microbatches, ranks, or whether the run was resumed.

    Raises:
        UsageError: an argument that cannot be; the message says which, and what it may be.
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
        reference: nn.Module | None = None,
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
        self.scope: Scope = scope
        self.objective: Objective = objective
        self.rank_calls_by: Rank = rank_calls_by
        self.accept_changes, self.seed = accept_changes, seed
        self._method_name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
        self._reference = None if reference is None else ReferenceLosses(reference, call_token_id)
        self._warned = False
        # Of the step in work:
        self._fraction = call_fraction
        self._labels: list[Tensor] = []  # [B, T] of each microbatch
        self._random_BT = torch.empty(0, 0)  # of all microbatches
        self._row = 0  # of these, where the next microbatch begins
        self._masks: Masks | None = None  # of all microbatches, where they are known before the losses
        self._targets_per_rank: Tensor | None = None
        self._statistics = CallStatistics(call_fraction)

    # --- a step, microbatch by microbatch -------------------------------------------------------------------

    def begin_step(
        self,
        step: int,
        microbatches: Sequence[Batch],
        model: nn.Module | None = None,
        forward: Callable[[Batch], Any] | None = None,
    ) -> None:
        """Announce the microbatches of a step, and select their masks where there are several. Collective with scope
        ``global`` and several microbatches, of which every rank must then have the same number.

        Args:
            step: number of the step since the start of the run, from 0. A resumed run continues the count.
            microbatches: of this rank, on the model's device, in the order in which their losses will be asked for.
                Each has ``labels`` int64 [B, T], not shifted, -100 ignored, and ``token_class`` uint8 [B, T],
                ``FactClass``; T is the same for all of them.
            model: needed where there are several microbatches and the method looks at the model's loss.
            forward: batch -> the model's outputs; by default ``model`` is called with ``input_ids`` and
                ``attention_mask`` as keywords. It runs as the model does in evaluation.

        Raises:
            UsageError: no microbatch, one without labels or classes, rows of several lengths, or no model where one is
                needed.
        """
        if not microbatches:
            raise UsageError("a step needs at least one microbatch")
        for microbatch in microbatches:
            check_batch(microbatch)
        self._labels = [microbatch["labels"] for microbatch in microbatches]
        lengths = sorted({labels.shape[1] for labels in self._labels})
        if len(lengths) != 1:
            raise UsageError(f"the rows of a step have the lengths {lengths}: pad all of them to one length")
        self._masks, self._row, self._targets_per_rank = None, 0, None
        self._statistics = CallStatistics(self.call_fraction)
        if self._reference is not None:
            self._reference.clear_clock()
        self._fraction = self.call_fraction * min(1.0, (step + 1) / max(1, self.call_fraction_warmup))
        rows = sum(len(labels) for labels in self._labels)
        # A tensor on the device "meta" has a shape and takes no memory.
        self._random_BT = uniform(self.seed, step, self._labels[0].new_empty(rows, lengths[0], device="meta"))
        if len(microbatches) > 1 and self.scope != "microbatch":
            self._masks = self._first_pass(microbatches, model, forward)

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """The part of one microbatch in the loss of the mini-batch: ``mean_loss`` times its share of all targets, a
        scalar. The first call of a step is collective.

        Args:
            outputs: the model's, with logits [B, T, V]: a tensor, a mapping with ``logits``, or an object with them.
            batch: the next one of the microbatches that ``begin_step`` was given.

        Raises:
            UsageError: there are no logits, or no microbatch is left of those that were announced.
        """
        loss = self.mean_loss(outputs, batch)
        if self._targets_per_rank is None:
            targets = torch.stack([_count(labels_BT) for labels_BT in self._labels]).sum().to(loss.device)
            dist.all_reduce(targets, "SUM")
            # Gradients are averaged over the ranks: with the mean number of targets, that is the mean over all targets.
            self._targets_per_rank = targets.clamp(min=1) / dist.get_world_size()
        return loss * (_count(batch["labels"]).to(loss.device) / self._targets_per_rank)

    def mean_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss over the valid targets of one microbatch, a scalar, for trainers that weigh microbatches
        themselves. With one microbatch on each rank, collective with scope ``global``. Arguments and errors as for a
        call of the objective."""
        targets_BT, classes_BT = shift_labels(batch["labels"], batch["token_class"])
        valid_BT, rows = targets_BT != IGNORED_LABEL, len(targets_BT)
        if self._row + rows > len(self._random_BT):
            raise UsageError(
                f"the step has {len(self._random_BT)} rows, and this microbatch is beyond them: call begin_step with "
                "all microbatches of a step before their losses"
            )
        logits_BTV = logits_of(outputs)
        losses = token_losses(logits_BTV, targets_BT, self.call_token_id)
        if self._masks is not None:
            masks = self._masks.rows(self._row, rows)
        else:
            random_BT = self._random_BT[self._row : self._row + rows].to(valid_BT.device)
            reference_BT = None if self._reference is None else self._reference(batch, targets_BT)
            masks = self._select(Targets(losses.true.detach(), classes_BT, valid_BT, random_BT, reference_BT))
        self._row += rows
        score_BT = call_score(logits_BTV.detach(), self.call_token_id, self.rank_calls_by, losses.detach())
        self._statistics.add(losses, score_BT, masks.selection, classes_BT, valid_BT)
        return training_loss(
            losses, valid_BT, *masks.selection, learned_share=masks.learned_share, objective=self.objective
        )

    def _select(self, targets: Targets) -> Masks:
        return select_masks(self.method.select, targets, self._fraction, self.ignore_fraction, self.scope)

    @torch.no_grad()
    def _first_pass(
        self, microbatches: Sequence[Batch], model: nn.Module | None, forward: Callable[[Batch], Any] | None
    ) -> Masks:
        """The masks of all microbatches of this rank, from losses of the model as it is before the step."""
        if self.method.loss and model is None:
            raise UsageError(
                f"method {self._method_name!r} needs the losses of all {len(microbatches)} microbatches before the "
                "first is trained on: give begin_step the model"
            )
        loss, classes, valid, reference = [], [], [], []
        with _evaluating(model):
            for microbatch in microbatches:
                targets_BT, classes_BT = shift_labels(microbatch["labels"], microbatch["token_class"])
                valid.append(targets_BT != IGNORED_LABEL)
                classes.append(classes_BT)
                if self.method.loss and model is not None:
                    logits_BTV = logits_of(forward(microbatch) if forward else _forward(model, microbatch))
                    loss.append(true_losses(logits_BTV, targets_BT, self.call_token_id))
                    del logits_BTV  # before the next microbatch makes its own
                else:
                    # The method does not look at it.
                    loss.append(torch.zeros_like(targets_BT, dtype=torch.float32))
                if self._reference is not None:
                    reference.append(self._reference(microbatch, targets_BT))
        random_BT = self._random_BT.to(valid[0].device)
        reference_BT = torch.cat(reference) if reference else None
        return self._select(Targets(torch.cat(loss), torch.cat(classes), torch.cat(valid), random_BT, reference_BT))

    # --- what is logged, and what a checkpoint holds -----------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Metrics of the step's masks over all ranks, to be asked for after the last microbatch. Collective; losses in
        nats.

        - ``call_fraction``, ``ignore_fraction``, ``factual_fraction``: shares of the valid targets;
        - ``calls_factual``, ``calls_grammatical``, ``calls_other``: what the calls are, as shares of them; and
          ``ignored_factual`` and so on;
        - ``call_loss``: mean loss of <CALL> on the call mask; ``called_token_loss``: of the true token there;
          ``ignored_token_loss``: of the true token on the ignore mask; ``rest_loss``: of the true token on what is
          learned;
        - ``threshold``: the lowest loss that was delegated;
        - ``precision``: of the call_fraction that the model itself would call now, the share that the call mask wants,
          and ``chance``, what calls at random would have; each microbatch of a rank is ranked by itself;
        - ``call_probability``: mean p(<CALL>); ``call_majority``: the share of the targets where it is more than half;
        - ``reference_s``: seconds that the reference model took, on the rank where it took longest.

        A metric that has no value, such as the loss of calls where nothing was called, is left out.
        """
        metrics = self._statistics.metrics()
        if not metrics:
            return {}
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
            metrics["reference_s"] = self._reference.seconds()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The names of the objective and of the method. Nothing else is carried from one step to the next."""
        return {"objective": self.objective, "method": self._method_name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a run whose model was trained to call by another objective.

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


def _count(labels_BT: Tensor) -> Tensor:
    """The number of valid targets of a microbatch, a scalar on its device."""
    return (labels_BT[:, 1:] != IGNORED_LABEL).sum()


def _forward(model: nn.Module, batch: Batch) -> Any:
    return model(**{key: batch[key] for key in ("input_ids", "attention_mask") if key in batch})


@contextmanager
def _evaluating(model: nn.Module | None) -> Iterator[None]:
    """No dropout, and no use of its random numbers; each module's own mode is put back."""
    training = [] if model is None else [module for module in model.modules() if module.training]
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
