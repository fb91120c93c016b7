"""The loss that trains a model to call, under any trainer, and what it keeps from one microbatch of a step to the next.

    loss on the true token --selectors--> call mask, ignore mask --losses--> scalar       (equations A.2 to A.4)

The masks belong to the mini-batch: 15% of the tokens of all microbatches, and with ``scope="global"`` of all ranks,
whatever the sizes of the parts. There are two ways to know the losses among which the masks are selected:

- One microbatch on each rank is the cheap case. Its losses are known when its loss is computed.
- With more of them, the masks must be known before the last microbatch has been seen. A first pass without gradient
  finds the losses (one more forward: about a third more arithmetic a step); the second pass trains.

Methods that do not look at the model's loss need no first pass. With ``scope="running"`` none does: each microbatch is
selected among the last ones, some of which are of the step before, so that the share of calls is exact on average only.
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
from lacy_stream.objective.auxiliary_loss import auxiliary_loss
from lacy_stream.objective.batch import Batch, check_batch, logits_of, shift_labels
from lacy_stream.objective.call_statistics import CallStatistics
from lacy_stream.objective.losses import IGNORED_LABEL, token_losses, training_loss, true_losses
from lacy_stream.objective.methods import OBJECTIVES, RANKS, SCOPES, Objective, Rank, Scope, check_fractions
from lacy_stream.objective.minibatch import Masks, RecentTargets, select_masks, select_running_masks, uniform
from lacy_stream.objective.reference import ReferenceLosses
from lacy_stream.objective.scores import call_score
from lacy_stream.objective.selectors import METHODS, Method, Selector, Targets
from lacy_stream.objective.step_check import StepCheck, StepCounts, check_counts

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

    Instead of logits it takes ``HiddenStates``, which are never multiplied out as a whole: the logits of 32,000 entries
    are the largest arrays of a small model's step. A load-balancing loss that a mixture of experts returns is added.

    The gradients of the microbatches add up to that of the whole mini-batch, also where they differ in size. Over
    several ranks, the average of their gradients does, as DistributedDataParallel makes it. The ranks and their number
    come from torch.distributed.

    A step whose losses are not finite numbers on every rank is an error on all of them, before the last ``backward``:
    neither the weights nor the moments of the optimizer take anything from it.

    Args:
        call_token_id: id of <CALL>, an entry of the model's vocabulary that never occurs in the data.
        call_fraction: share of the mini-batch's tokens to delegate, in (0, 1).
        method: a name of ``selectors.METHODS``, such as ``lacy``; or a selector of your own.
        scope: the tokens among which the selection is made: ``global``, the mini-batch over all ranks; ``rank``,
            this rank's part of it; ``microbatch``, each microbatch alone (fewer calls where facts are spread
            unevenly); ``running``, each microbatch with those before it, as many as a step has, over all ranks (the
            share of calls is exact on average only). The last two need no first pass.
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
        check_losses: whether a step with a NaN or an infinite loss, of the model or of the reference, is an error.
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
        check_losses: bool = True,
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
        self.method = METHODS[method] if isinstance(method, str) else Method(select=method, loss=True, random=True)
        if self.method.reference and reference is None:
            raise UsageError(f"method {method!r} needs a reference model: give one as reference")
        self.call_token_id, self.call_fraction, self.ignore_fraction = call_token_id, call_fraction, ignore_fraction
        self.call_fraction_warmup = call_fraction_warmup
        self.scope: Scope = scope
        self.objective: Objective = objective
        self.rank_calls_by: Rank = rank_calls_by
        self.accept_changes, self.check_losses, self.seed = accept_changes, check_losses, seed
        self._method_name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
        self._reference = None if reference is None else ReferenceLosses(reference, call_token_id)
        self._warned = False
        self._recent = RecentTargets()
        # The state of the current step:
        self._step = 0
        self._model: nn.Module | None = None
        self._fraction = call_fraction
        self._labels: list[Tensor] = []  # [B, T] of each microbatch
        self._rows, self._row = 0, 0  # of all microbatches, and where the next one begins
        self._random_BT = torch.empty(0, 0)  # of all microbatches
        self._masks: Masks | None = None  # of all microbatches, where they are known before the losses
        self._targets_per_rank: Tensor | None = None
        self._statistics = CallStatistics(call_fraction)
        self._check = StepCheck()
        self._gathered: list[list[float]] = []  # see `_found`

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
            model: needed where there are several microbatches and the method looks at the model's loss, and where the
                model is a mixture of experts.
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
        self._step, self._model = step, model
        self._masks, self._row, self._targets_per_rank = None, 0, None
        self._statistics, self._check = CallStatistics(self.call_fraction), StepCheck()
        self._gathered = []
        if self._reference is not None:
            self._reference.clear_clock()
        self._fraction = self.call_fraction * min(1.0, (step + 1) / max(1, self.call_fraction_warmup))
        self._rows = sum(len(labels) for labels in self._labels)
        # A tensor on the device "meta" has a shape and takes no memory.
        shape_BT = torch.empty(self._rows, lengths[0], device="meta")
        device = self._labels[0].device
        # Where nobody looks at them, nothing is drawn or copied to the device: one zero stands for all.
        zero_BT = torch.zeros((), device=device).expand(shape_BT.shape)
        self._random_BT = uniform(self.seed, step, shape_BT).to(device) if self.method.random else zero_BT
        self._recent.begin_step(len(microbatches))
        if len(microbatches) > 1 and self.scope in ("global", "rank"):
            self._masks = self._first_pass(microbatches, model, forward)

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """The part of one microbatch in the loss of the mini-batch: ``mean_loss`` times its share of all targets, a
        scalar. The first and the last call of a step are collective.

        Args:
            outputs: the model's, with logits [B, T, V]: a tensor, a mapping with ``logits``, or an object with them.
                Or ``HiddenStates``, of states [B, T, D].
            batch: the next one of the microbatches that ``begin_step`` was given.

        Raises:
            UsageError: there are no logits, no microbatch is left of those that were announced, no rank has a target in
                this step, or the weight of an auxiliary loss is not known.
            LossError: with the last microbatch, a loss of the step is NaN or infinite on some rank.
        """
        loss = self.mean_loss(outputs, batch)
        if self._targets_per_rank is None:
            targets = self._targets().to(loss.device)
            dist.all_reduce(targets, "SUM")
            # Gradients are averaged over the ranks: with the mean number of targets, that is the mean over all targets.
            self._targets_per_rank = targets.clamp(min=1) / dist.get_world_size()
        if self._row == self._rows:
            self.check_step()
        return loss * (_count(batch["labels"]).to(loss.device) / self._targets_per_rank)

    def mean_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss over the valid targets of one microbatch and the auxiliary loss, a scalar, for trainers that
        weigh microbatches themselves. Collective with scope ``running``, and with ``global`` if each rank has one
        microbatch. Arguments and errors as for a call of the objective, but that the losses are only looked at by
        ``check_step``."""
        targets_BT, classes_BT = shift_labels(batch["labels"], batch["token_class"])
        valid_BT, rows = targets_BT != IGNORED_LABEL, len(targets_BT)
        if self._row + rows > self._rows:
            raise UsageError(
                f"the step has {self._rows} rows, and this microbatch is beyond them: call begin_step with "
                "all microbatches of a step before their losses"
            )
        logits = logits_of(outputs)
        losses = token_losses(logits, targets_BT, self.call_token_id)
        if self._masks is not None:
            masks = self._masks.rows(self._row, rows)
        else:
            random_BT = self._random_BT[self._row : self._row + rows]
            reference_BT = self._reference_losses(batch, targets_BT)
            masks = self._select(Targets(losses.true.detach(), classes_BT, valid_BT, random_BT, reference_BT))
        self._row += rows
        score_BT = call_score(logits.detach(), self.call_token_id, self.rank_calls_by, losses.detach())
        self._statistics.add(losses, score_BT, masks.selection, classes_BT, valid_BT)
        loss = training_loss(
            losses, valid_BT, *masks.selection, learned_share=masks.learned_share, objective=self.objective
        )
        loss = loss + auxiliary_loss(self._model, outputs)
        self._check.add(losses.true, valid_BT)  # those that are ignored, too: they had a part in the masks
        self._check.add(loss)
        return loss

    def check_step(self) -> None:
        """Look at the losses of the step, after the loss of its last microbatch and before the optimizer's step. A call
        of the objective does it by itself; those who take ``mean_loss`` call it. Collective. Nothing is looked at with
        ``check_losses=False``.

        Raises:
            LossError: a loss of the model, or of the reference model, is NaN or infinite on some rank.
            UsageError: no rank has a target in this step.
        """
        if self.check_losses:
            check_counts([StepCounts(*values[:_COUNTS]) for values in self._found()], self._step)

    def _found(self) -> list[list[float]]:
        """What each rank has found out about the step: ``StepCounts``, the seconds of the reference model, and
        ``CallStatistics.values``. There is one gathering and one copy from the device for all of them, and nothing else
        in a step waits for a GPU. Collective at the first call of a step."""
        if not self._gathered:
            counts, statistics = self._check.counts(self._targets()), self._statistics.values()
            seconds = 0.0 if self._reference is None else self._reference.seconds()
            own = [counts, counts.new_full((1,), seconds), *([] if statistics is None else [statistics])]
            self._gathered = torch.stack(dist.all_gather(torch.cat(own))).tolist()
        return self._gathered

    def _targets(self) -> Tensor:
        """How many valid targets this rank has in the step, a scalar."""
        return torch.stack([_count(labels_BT) for labels_BT in self._labels]).sum()

    def _reference_losses(self, batch: Batch, targets_BT: Tensor) -> Tensor | None:
        if self._reference is None:
            return None
        losses_BT = self._reference(batch, targets_BT)
        self._check.add_reference(losses_BT, targets_BT != IGNORED_LABEL)
        return losses_BT

    def _select(self, targets: Targets) -> Masks:
        fractions = self._fraction, self.ignore_fraction
        if self.scope == "running":
            return select_running_masks(self.method.select, targets, self._recent, *fractions)
        return select_masks(self.method.select, targets, *fractions, self.scope)

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
        with evaluating(model):
            for microbatch in microbatches:
                targets_BT, classes_BT = shift_labels(microbatch["labels"], microbatch["token_class"])
                valid.append(targets_BT != IGNORED_LABEL)
                classes.append(classes_BT)
                if self.method.loss and model is not None:
                    logits = logits_of(forward(microbatch) if forward else _forward(model, microbatch))
                    loss.append(true_losses(logits, targets_BT, self.call_token_id))
                    self._check.add(loss[-1], valid[-1])
                    del logits  # before the next microbatch makes its own
                else:
                    # The method does not look at it.
                    loss.append(torch.zeros_like(targets_BT, dtype=torch.float32))
                if (reference_BT := self._reference_losses(microbatch, targets_BT)) is not None:
                    reference.append(reference_BT)
        reference_BT = torch.cat(reference) if reference else None
        targets = (torch.cat(loss), torch.cat(classes), torch.cat(valid), self._random_BT, reference_BT)
        return self._select(Targets(*targets))

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
        if self._statistics.values() is None:
            return {}
        found = self._found()
        metrics = self._statistics.metrics([values[_COUNTS + 1 :] for values in found])
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
            metrics["reference_s"] = max(values[_COUNTS] for values in found)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The names of the objective and of the method; and with scope ``running`` the targets of the last step, which
        have a part in the masks of the next one. Nothing else is carried from one step to the next."""
        state: dict[str, Any] = {"objective": self.objective, "method": self._method_name}
        if self.scope == "running":
            parts = self._recent.of_last_step()
            state["recent"] = [tuple(None if value is None else value.cpu() for value in part) for part in parts]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave, and refuse the state of a run whose model was trained to call by another
        objective.

        Raises:
            ObjectiveError: it was, and ``accept_changes`` is not set.
        """
        if state.get("method") == self._method_name:
            self._recent.restore([Targets(*part) for part in state.get("recent", ())])
        before = state.get("objective", self.objective)
        if before == self.objective or "baseline" in (state.get("method"), self._method_name):
            return  # without a call mask, both objectives are the same
        message = f"the checkpoint was trained with objective {before!r}, and this run has {self.objective!r}"
        if not self.accept_changes:
            raise ObjectiveError(message + ". To continue all the same, set accept_changes")
        log.warning("%s. The run continues (accept_changes)", message)


_COUNTS = len(StepCounts._fields)


def _count(labels_BT: Tensor) -> Tensor:
    """The number of valid targets of a microbatch, a scalar on its device."""
    return (labels_BT[:, 1:] != IGNORED_LABEL).sum()


def _forward(model: nn.Module, batch: Batch) -> Any:
    return model(**{key: batch[key] for key in ("input_ids", "attention_mask") if key in batch})


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """No dropout, and no use of its random numbers; each module's own mode is put back."""
    training = [] if model is None else [module for module in model.modules() if module.training]
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
