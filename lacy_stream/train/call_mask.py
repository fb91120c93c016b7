"""The Composer Algorithm that puts ``CallObjective`` in the place of the model's own loss."""

from __future__ import annotations

import logging
from typing import Any

from composer.core import Algorithm, Event, State
from composer.core.data_spec import default_split_batch
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch import Tensor

from lacy_stream.errors import UsageError
from lacy_stream.objective.batch import check_batch
from lacy_stream.objective.call_objective import CallObjective
from lacy_stream.objective.methods import FusedLoss, Scope
from lacy_stream.objective.selectors import Selector
from lacy_stream.train.output_layer import OutputLayer

log = logging.getLogger(__name__)


class CallMask(Algorithm):
    """Trains a model to emit <CALL>, by one of the methods of table 5: changes the loss of any Composer model that
    yields logits.

    The batch needs ``input_ids``-shaped ``labels`` (not shifted, -100 ignored, as in transformers) and
    ``token_class`` (``FactClass`` values), as ``annotated_dataloader`` yields them. The model is not changed:
    its ``loss`` is replaced while ``fit`` runs.

    Args:
        call_token_id: id of <CALL>, an entry of the model's vocabulary that never occurs in the data.
        call_fraction: share of the mini-batch's tokens to delegate, in (0, 1).
        method: a name of ``METHODS``, such as ``lacy``; or a selector of your own.
        scope: the tokens among which the selection is made: ``global``, ``rank``, ``microbatch`` or ``running``.
        fused_loss: compute the loss from the model's last hidden states, so that its logits are never held. ``auto``:
            on a GPU, where the model's logits are those of its output layer and nothing more. True: an error where
            they are not.
        settings: the other arguments of ``CallObjective``: ``ignore_fraction``, ``call_fraction_warmup``,
            ``reference``, ``objective``, ``rank_calls_by``, ``accept_changes``, ``check_losses`` and ``seed``. A
            reference model runs in the trainer's precision.

    The loss of a microbatch is the mean over its valid targets, which Composer weights by rows. Where rows are
    padded, give the Trainer ``accumulate_train_batch_on_tokens=True`` and a DataSpec that counts the valid targets,
    as for any other loss; ``annotated_dataloader`` pads no training rows. ``global`` needs the same number of
    microbatches on every rank: set ``device_train_microbatch_size`` to a number rather than ``auto``.

    ``CallObjective.metrics`` says what is logged at each batch, under ``call_mask/``.
    """

    def __init__(
        self,
        call_token_id: int,
        call_fraction: float = 0.15,
        method: str | Selector = "lacy",
        scope: Scope = "global",
        *,
        fused_loss: FusedLoss = "auto",
        **settings: Any,
    ) -> None:
        self.objective = CallObjective(call_token_id, call_fraction, method, scope, **settings)
        self._fused_loss: FusedLoss = fused_loss
        self._output_layer: OutputLayer | None = None
        self._model: Any = None
        self._original_loss: Any = None
        self._step_batch: Any = None  # of the current step, with all its microbatches
        self._batch: Any = None  # the current microbatch, with its labels

    def match(self, event: Event, state: State) -> bool:
        return event in (
            Event.INIT,
            Event.FIT_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.BEFORE_FORWARD,
            Event.AFTER_FORWARD,
            Event.AFTER_TRAIN_BATCH,
            Event.BATCH_END,
            Event.FIT_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._model = state.model  # before DDP wraps it; Composer calls this object's `loss`
            self._original_loss = self._model.__dict__.get("loss")
            if isinstance(getattr(self._original_loss, "__self__", None), CallMask):
                self._original_loss = None  # left by a fit that was interrupted
        elif event == Event.FIT_START:
            _check_call_token(self.objective.call_token_id, getattr(state.train_dataloader, "dataset", None))
            self._output_layer = self._open_output_layer(state)
            self._step_batch, self._model.loss = None, self._loss
        elif event == Event.BEFORE_TRAIN_BATCH:  # again after an out-of-memory retry: the step starts over
            self._begin_step(state)
        elif event == Event.BEFORE_FORWARD:
            self._batch = state.batch
            state.batch = self._without_labels(state.batch)
            self._pass_hidden_states(True)
        elif event == Event.AFTER_FORWARD and self._batch is not None:
            self._pass_hidden_states(False)
            state.batch, self._batch = self._batch, None
        elif event == Event.AFTER_TRAIN_BATCH:  # the gradients are there, and the optimizer has not taken its step
            self.objective.check_step()
        elif event == Event.BATCH_END:
            self._step_batch = None
            logger.log_metrics({f"call_mask/{name}": value for name, value in self.objective.metrics().items()})
        elif event == Event.FIT_END:
            if self._output_layer is not None:
                self._output_layer.close()
            del self._model.loss
            if self._original_loss is not None:
                self._model.loss = self._original_loss

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.objective.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained to call by another objective.

        Raises:
            ObjectiveError: it was, and ``accept_changes`` is not set.
        """
        self.objective.load_state_dict(state)

    def _loss(self, outputs: Any, batch: Any) -> Tensor:
        """Takes the place of ``ComposerModel.loss``."""
        return self.objective.mean_loss(self._for_objective(outputs), batch)

    def _for_objective(self, outputs: Any) -> Any:
        return outputs if self._output_layer is None else self._output_layer.hidden_states(outputs)

    def _pass_hidden_states(self, passes: bool) -> None:
        if self._output_layer is not None:
            self._output_layer.passes = passes

    def _open_output_layer(self, state: State) -> OutputLayer | None:
        """The output layer by which the loss needs no logits; None where they are to be used."""
        if self._fused_loss is False or (self._fused_loss == "auto" and state.device.name != "gpu"):
            return None
        try:
            if not isinstance(self._model, HuggingFaceModel):
                raise UsageError(f"{type(self._model).__name__} is no HuggingFaceModel")
            if self._model.get_metrics(is_train=True):
                raise UsageError("its training metrics need logits")
            if getattr(state.model, "find_unused_parameters", False):
                raise UsageError("DistributedDataParallel looks for unused parameters, and would find the output layer")
            return OutputLayer(self._model.model)
        except UsageError as error:
            if self._fused_loss is True:
                raise UsageError(f"fused_loss: {error}: set it to false") from None
            log.warning("call mask: the loss is computed from logits, which takes more memory, since %s", error)
            return None

    def _begin_step(self, state: State) -> None:
        # When Composer starts a step over, state.batch is the microbatch for which the memory did not suffice.
        batch = self._step_batch = state.batch if self._step_batch is None else self._step_batch
        self._pass_hidden_states(False)
        check_batch(batch)
        microbatches = [batch]
        if len(batch["labels"]) > (size := state.device_train_microbatch_size or len(batch["labels"])):
            microbatches = [state.device.batch_to_device(part) for part in default_split_batch(batch, size)]
        # The first pass runs in the precision that Composer gives the second one.
        with get_precision_context(state.precision, state.precision_config):
            self.objective.begin_step(
                state.timestamp.batch.value,
                microbatches,
                state.model,
                forward=lambda batch: self._forward(state.model, batch),
            )

    def _forward(self, model: Any, batch: Any) -> Any:
        self._pass_hidden_states(True)
        try:
            return self._for_objective(model(self._without_labels(batch)))
        finally:
            self._pass_hidden_states(False)

    def _without_labels(self, batch: Any) -> Any:
        """Hugging Face models compute their own loss in forward wherever they see labels: hide them."""
        if isinstance(self._model, HuggingFaceModel):
            return {key: value for key, value in batch.items() if key != "labels"}
        return batch


def _check_call_token(call_token_id: int, dataset: Any) -> None:
    """<CALL> must not be a piece of the tokenizer, where the data set says how many there are."""
    pieces = getattr(dataset, "vocab_size", None)
    if pieces is not None and call_token_id < pieces:
        raise UsageError(
            f"call_token_id is {call_token_id}, which is one of the {pieces} pieces of the tokenizer: give <CALL> an "
            f"id of its own, {pieces} or more, and the model an entry for it in its vocabulary"
        )
