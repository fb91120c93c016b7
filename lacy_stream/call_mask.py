"""Which targets become <CALL>, the loss that follows, and the Composer Algorithm that applies both.

    loss on the true token --select_calls--> call mask --lacy_loss--> scalar       (equation A.3)

The mask belongs to the mini-batch: 15% of the tokens of all microbatches, and with ``scope="global"`` of all
ranks, whatever the sizes of the parts. One microbatch on each rank is the cheap case, since the losses are
known when the loss is computed; with more of them, a forward pass without gradient finds the losses first
(one more forward: about a third more arithmetic a step).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from composer.core import Algorithm, Event, State
from composer.core.data_spec import default_split_batch
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from annotator import FactClass

IGNORED_LABEL = -100
Method = Literal["lacy", "baseline"]
Scope = Literal["global", "rank", "microbatch"]


class TokenLosses(NamedTuple):
    """Negative log-likelihoods in nats, float32 (or the dtype of the logits if it is wider), [B, T].

    true: of the target token, with the <CALL> logit left out of the softmax.
    call: of <CALL>, over the whole vocabulary.
    """

    true: Tensor
    call: Tensor


def token_losses(logits_BTV: Tensor, targets_BT: Tensor, call_token_id: int) -> TokenLosses:
    """Both losses of every position, from one log-sum-exp.

    With L = logsumexp of all logits but <CALL>'s, c the <CALL> logit and t the target's: true = L - t and
    call = log(e^L + e^c) - c = softplus(L - c). Targets of -100 give finite values that mean nothing.
    Differentiable once; beside the gradient of the logits, no second array of their size is ever held.
    """
    true_BT, call_BT = cast(tuple[Tensor, Tensor], _TokenLosses.apply(logits_BTV, targets_BT, call_token_id))
    return TokenLosses(true_BT, call_BT)


_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that are handled at once: 16 MB in float32 on a CPU, whose cache keeps them; on a GPU 256 MB, so that
few kernels do much each."""


def _rows_at_once(logits_NV: Tensor) -> int:
    return max(1, _CHUNK.get(logits_NV.device.type, _CHUNK["cuda"]) // logits_NV.shape[1])


class _TokenLosses(torch.autograd.Function):
    """The arithmetic of ``token_losses``, in chunks of positions."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, targets_BT: Tensor, call_token_id: int) -> tuple[Tensor, Tensor]:
        logits_NV = logits_BTV.reshape(-1, logits_BTV.shape[-1])
        targets_N = targets_BT.reshape(-1).clamp(min=0)
        dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
        parts = []
        for rows in logits_NV.split(_rows_at_once(logits_NV)):
            rows = rows.to(dtype)
            part = torch.logsumexp(rows[:, :call_token_id], dim=1)
            if call_token_id + 1 < rows.shape[1]:
                part = torch.logaddexp(part, torch.logsumexp(rows[:, call_token_id + 1 :], dim=1))
            parts.append(part)
        normaliser_N = torch.cat(parts)
        target_logit_N = logits_NV.gather(1, targets_N[:, None]).squeeze(1).to(dtype)
        call_logit_N = logits_NV[:, call_token_id].to(dtype)
        ctx.save_for_backward(logits_NV, targets_N, normaliser_N)
        ctx.call_token_id, ctx.shape = call_token_id, logits_BTV.shape
        shape = targets_BT.shape
        return (normaliser_N - target_logit_N).view(shape), F.softplus(normaliser_N - call_logit_N).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_true: Tensor, grad_call: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, targets_N, normaliser_N = ctx.saved_tensors
        call_token_id = ctx.call_token_id
        true_N, call_N = grad_true.reshape(-1), grad_call.reshape(-1)
        # d softplus(L - c) is sigmoid(L - c) dL - sigmoid(L - c) dc, and dL is the softmax without <CALL>.
        call_N = call_N * torch.sigmoid(normaliser_N - logits_NV[:, call_token_id].to(normaliser_N.dtype))
        weight_N = true_N + call_N
        grad_NV = torch.empty_like(logits_NV)
        size = _rows_at_once(logits_NV)
        for rows, out, targets, normaliser, weight, true, call in zip(
            *(whole.split(size) for whole in (logits_NV, grad_NV, targets_N, normaliser_N, weight_N, true_N, call_N)),
            strict=True,
        ):
            grad = (rows - normaliser[:, None]).exp_().mul_(weight[:, None])
            grad[:, call_token_id] = -call
            grad.scatter_add_(1, targets[:, None], -true[:, None])
            out.copy_(grad)  # rounded once where the logits are bf16
        return grad_NV.view(ctx.shape), None, None


def budget(valid: Tensor, fraction: float) -> Tensor:
    """How many of the valid positions are ``fraction`` of them, rounded down; a scalar that stays on the device,
    so that the host need not wait for the GPU. 0.29 x 100, which floats make 28.999…, is 29."""
    return torch.floor(valid.sum(dtype=torch.float64) * fraction + 1e-6)


def select_calls(loss: Tensor, factual: Tensor, valid: Tensor, fraction: float) -> Tensor:
    """The LaCy call mask (section 4): the fact tokens with the highest loss, to ``fraction`` of all tokens.

    Args:
        loss: of the true token, any shape.
        factual: bool, same shape: the targets that are facts.
        valid: bool, same shape: the targets that count (no padding).
        fraction: of the valid targets, in (0, 1); the count is rounded down.

    Returns:
        bool, same shape: exactly floor(fraction x valid) positions, or all valid facts where there are fewer.
        Equal losses are taken in order of position.
    """
    candidates = factual & valid
    scores = loss.detach().masked_fill(~candidates, -torch.inf).flatten()
    order = torch.argsort(scores, descending=True, stable=True)
    chosen = torch.arange(len(order), device=order.device) < budget(valid, fraction)
    return torch.zeros_like(chosen).scatter(0, order, chosen).view_as(candidates) & candidates


def lacy_loss(losses: TokenLosses, call: Tensor, valid: Tensor) -> Tensor:
    """Equation A.3: <CALL> is the target on the mask, the true token elsewhere; the mean over valid targets."""
    loss = torch.where(call, losses.call, losses.true)
    return torch.where(valid, loss, 0).sum() / valid.sum().clamp(min=1)


class CallMask(Algorithm):
    """Trains a model to emit <CALL>: changes the loss of any Composer model that yields logits.

    The batch needs ``input_ids``-shaped ``labels`` (not shifted, -100 ignored, as in transformers) and
    ``token_class`` (``FactClass`` values), as ``annotated_dataloader`` yields them. The model is not changed:
    its ``loss`` is replaced while ``fit`` runs.

    Args:
        call_token_id: id of <CALL>, an entry of the model's vocabulary that never occurs in the data.
        call_fraction: share of the mini-batch's tokens to delegate, in (0, 1).
        method: ``lacy``; or ``baseline``: no calls, the loss on every token with <CALL> excluded.
        scope: the tokens among which the highest losses are chosen: ``global``, the mini-batch over all
            ranks; ``rank``, this rank's part of it; ``microbatch``, each microbatch alone (no second forward
            pass; fewer calls where facts are spread unevenly).

    The loss of a microbatch is the mean over its valid targets, which Composer weights by rows. Where rows are
    padded, give the Trainer ``accumulate_train_batch_on_tokens=True`` and a DataSpec that counts the valid targets,
    as for any other loss; ``annotated_dataloader`` pads no training rows. ``global`` needs the same number of
    microbatches on every rank: set ``device_train_microbatch_size`` to a number rather than ``auto``.

    Logged at each batch, over all ranks: ``call_mask/call_fraction``, ``call_mask/factual_fraction`` (shares
    of the valid targets), ``call_mask/call_loss`` (mean loss of <CALL> on the mask), ``call_mask/rest_loss``
    (mean loss of the true token off the mask), ``call_mask/called_token_loss`` (mean loss of the true token
    on the mask) and ``call_mask/threshold`` (the lowest loss that was delegated), all in nats.
    """

    def __init__(
        self, call_token_id: int, call_fraction: float = 0.15, method: Method = "lacy", scope: Scope = "global"
    ) -> None:
        if not 0 < call_fraction < 1:
            raise ValueError(f"call_fraction is {call_fraction}: it must lie between 0 and 1 (the paper: 0.15)")
        if method not in get_args(Method):
            raise ValueError(f"method is {method!r}: choose one of {get_args(Method)}")
        if scope not in get_args(Scope):
            raise ValueError(f"scope is {scope!r}: choose one of {get_args(Scope)}")
        if call_token_id < 0:
            raise ValueError(f"call_token_id is {call_token_id}: it must be an id of the model's vocabulary")
        self.call_token_id, self.call_fraction = call_token_id, call_fraction
        self.method, self.scope = method, scope
        self._model: Any = None
        self._original_loss: Any = None
        self._calls_BT: Tensor | None = None  # of this rank's mini-batch, where a first pass selected them
        self._row = 0  # of the mini-batch, where the next microbatch begins
        self._labels: Tensor | None = None
        self._totals: Tensor | None = None
        self._threshold: Tensor | None = None

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

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._model = state.model  # before DDP wraps it; Composer calls this object's `loss`
            self._original_loss = self._model.__dict__.get("loss")
            if isinstance(getattr(self._original_loss, "__self__", None), CallMask):
                self._original_loss = None  # left by a fit that was broken off
        elif event == Event.FIT_START:
            _check_call_token(self.call_token_id, getattr(state.train_dataloader, "dataset", None))
            self._model.loss = self._loss
        elif event == Event.BEFORE_TRAIN_BATCH:  # again after an out-of-memory retry: start over
            _check_batch(state.batch)
            self._calls_BT, self._row, self._totals, self._threshold = None, 0, None, None
            if self._needs_first_pass(state):
                self._calls_BT = self._first_pass(state)
        elif event == Event.BEFORE_FORWARD:
            self._hide_labels(state)
        elif event == Event.AFTER_FORWARD:
            self._show_labels(state)
        elif event == Event.BATCH_END:
            self._log(logger)
        elif event == Event.FIT_END:
            del self._model.loss
            if self._original_loss is not None:
                self._model.loss = self._original_loss

    # --- the loss of one microbatch -----------------------------------------------------------------------

    def _loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Takes the place of ``ComposerModel.loss``."""
        losses, factual_BT, valid_BT = self._token_losses(outputs, batch)
        rows = len(factual_BT)
        if self._calls_BT is not None:
            call_BT = self._calls_BT[self._row : self._row + rows]
            self._row += rows
        else:
            call_BT = self._select(losses.true, factual_BT, valid_BT, across_ranks=self.scope == "global")
        self._count(losses, call_BT, factual_BT, valid_BT)
        return lacy_loss(losses, call_BT, valid_BT)

    def _token_losses(self, outputs: Any, batch: Mapping[str, Tensor]) -> tuple[TokenLosses, Tensor, Tensor]:
        """Losses, fact flags and valid flags [B, T] of the targets: position i predicts token i + 1, and the
        last position nothing."""
        logits_BTV = _logits(outputs)
        if self.call_token_id >= logits_BTV.shape[-1]:
            raise ValueError(
                f"call_token_id is {self.call_token_id}, but the model's vocabulary has {logits_BTV.shape[-1]} "
                "entries: give the model one entry more than the tokenizer has pieces"
            )
        targets_BT = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
        factual_BT = F.pad(batch["token_class"][:, 1:] == FactClass.FACTUAL, (0, 1))
        losses = token_losses(logits_BTV, targets_BT, self.call_token_id)
        return losses, factual_BT, targets_BT != IGNORED_LABEL

    def _select(self, loss: Tensor, factual: Tensor, valid: Tensor, across_ranks: bool) -> Tensor:
        if self.method == "baseline":
            return torch.zeros_like(factual)
        if not across_ranks or dist.get_world_size() == 1:
            return select_calls(loss, factual, valid, self.call_fraction)
        parts = torch.stack([loss.detach().flatten(), factual.flatten().to(loss), valid.flatten().to(loss)])
        whole = _concatenate_ranks(parts)
        call = select_calls(whole[0], whole[1] > 0, whole[2] > 0, self.call_fraction)
        start = whole.shape[1] // dist.get_world_size() * dist.get_global_rank()
        return call[start : start + loss.numel()].view_as(factual)

    # --- the first pass, where the mini-batch comes in several microbatches ----------------------------------

    def _needs_first_pass(self, state: State) -> bool:
        rows = len(state.batch["labels"])
        in_parts = rows > (state.device_train_microbatch_size or rows)
        return in_parts and self.method != "baseline" and self.scope != "microbatch"

    @torch.no_grad()
    def _first_pass(self, state: State) -> Tensor:
        """The call mask of this rank's whole mini-batch, from losses of the model as it is before the step."""
        parts = []
        with _evaluating(state.model):
            for microbatch in default_split_batch(state.batch, state.device_train_microbatch_size or 1):
                microbatch = state.device.batch_to_device(microbatch)
                with get_precision_context(state.precision, state.precision_config):
                    outputs = state.model(self._without_labels(microbatch))
                    losses, factual_BT, valid_BT = self._token_losses(outputs, microbatch)
                parts.append((losses.true, factual_BT, valid_BT))
        loss_BT, factual_BT, valid_BT = (torch.cat(part) for part in zip(*parts, strict=True))
        return self._select(loss_BT, factual_BT, valid_BT, across_ranks=self.scope == "global")

    # --- Hugging Face models compute their own loss in forward wherever they see labels: hide them -------------

    def _without_labels(self, batch: Any) -> Any:
        if isinstance(self._model, HuggingFaceModel):
            return {key: value for key, value in batch.items() if key != "labels"}
        return batch

    def _hide_labels(self, state: State) -> None:
        self._labels = state.batch.get("labels")
        state.batch = self._without_labels(state.batch)

    def _show_labels(self, state: State) -> None:
        if self._labels is not None:
            state.batch = {**state.batch, "labels": self._labels}
            self._labels = None

    # --- what is logged -------------------------------------------------------------------------------------

    def _count(self, losses: TokenLosses, call: Tensor, factual: Tensor, valid: Tensor) -> None:
        """Add one microbatch to the sums, on the device: no waiting for the GPU before the batch ends."""
        true, called = losses.true.detach(), losses.call.detach()
        counts = [valid.sum(), call.sum(), (factual & valid).sum()]
        sums = [(called * call).sum(), (true * call).sum(), (true * (valid & ~call)).sum()]
        totals = torch.stack([value.double() for value in counts + sums])
        lowest = true.masked_fill(~call, torch.inf).min()
        self._totals = totals if self._totals is None else self._totals + totals
        self._threshold = lowest if self._threshold is None else torch.minimum(self._threshold, lowest)

    def _log(self, logger: Logger) -> None:
        if self._totals is None or self._threshold is None:
            return
        dist.all_reduce(self._totals, "SUM")
        dist.all_reduce(self._threshold, "MIN")
        tokens, calls, facts, call_loss, called_token_loss, rest_loss = self._totals.tolist()
        metrics = {
            "call_fraction": calls / max(tokens, 1),
            "factual_fraction": facts / max(tokens, 1),
            "rest_loss": rest_loss / max(tokens - calls, 1),
        }
        if calls:
            metrics |= {
                "call_loss": call_loss / calls,
                "called_token_loss": called_token_loss / calls,
                "threshold": self._threshold.item(),
            }
        logger.log_metrics({f"call_mask/{name}": value for name, value in metrics.items()})


def _check_batch(batch: Any) -> None:
    keys = sorted(batch) if isinstance(batch, Mapping) else []
    for key in ("labels", "token_class"):
        if key not in keys:
            raise ValueError(f"the batch has no {key!r} (it has {keys}): use annotated_dataloader")


def _check_call_token(call_token_id: int, dataset: Any) -> None:
    """<CALL> must not be a piece of the tokenizer, where the data set says how many there are."""
    pieces = getattr(dataset, "vocab_size", None)
    if pieces is not None and call_token_id < pieces:
        raise ValueError(
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
        raise ValueError(
            f"the model's forward returned {type(outputs).__name__} without logits [B, T, V]: the call mask needs "
            "them (turn off a fused loss that does not keep the logits)"
        )
    return logits


def _concatenate_ranks(values: Tensor) -> Tensor:
    """[C, n] of every rank -> [C, ranks x max n], the missing places being zero (not valid)."""
    longest = torch.tensor([values.shape[1]], device=values.device)
    dist.all_reduce(longest, "MAX")
    values = F.pad(values, (0, int(longest.item()) - values.shape[1]))
    return torch.cat(list(dist.all_gather(values)), dim=1)


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
