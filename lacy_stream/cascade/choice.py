"""Logits -> the small model's own token, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lacy_stream.cascade.decoder import apply_repetition_penalty
from lacy_stream.cascade.texts import LogProbabilities, TextSettings


class TokenChoice:
    """Chooses the small model's own tokens of one text.

    Args:
        settings: how the text is written.
        penalty: the repetition penalty.
        call_token_id: id of <CALL>, which is never chosen, nor are the rows after it, which pad the vocabulary; None
            for a model without.
    """

    def __init__(self, settings: TextSettings, penalty: float, call_token_id: int | None) -> None:
        self._settings, self._penalty, self._call_token_id = settings, penalty, call_token_id
        self._random = torch.Generator()
        if settings.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(settings.seed)

    def choose(self, logits_V: Tensor, row: Sequence[int]) -> int:
        """Choose the next token.

        Args:
            logits_V: raw logits, float32 [V].
            row: the ids before it, for the repetition penalty.
        """
        scores_V = apply_repetition_penalty(logits_V, row, self._penalty)[: self._call_token_id]
        if self._settings.temperature == 0:
            return int(scores_V.argmax())
        scores_V = scores_V.cpu() / self._settings.temperature
        probabilities_V = most_likely(torch.softmax(scores_V, -1), self._settings.top_p)
        return int(torch.multinomial(probabilities_V, 1, generator=self._random))

    def log_probabilities(self, logits_TV: Tensor, ids: Sequence[int]) -> list[LogProbabilities]:
        """How likely the tokens were that follow T positions.

        Args:
            logits_TV: raw logits, float32 [T, V].
            ids: the T tokens.
        """
        top = self._settings.log_probabilities or 0
        values_TV = torch.log_softmax(logits_TV[:, : self._call_token_id], -1)
        own_T = values_TV.gather(1, torch.tensor(ids, device=logits_TV.device)[:, None])[:, 0].tolist()
        best_TN, ids_TN = (tensor.tolist() for tensor in values_TV.topk(top, -1))
        return [
            LogProbabilities(own, tuple(zip(ids_N, best_N, strict=True)))
            for own, ids_N, best_N in zip(own_T, ids_TN, best_TN, strict=True)
        ]


def most_likely(probabilities_V: Tensor, share: float) -> Tensor:
    """Set all probabilities to 0 but the highest ones, whose sum reaches a share. The highest one always stays.

    Args:
        probabilities_V: float [V], with the sum 1.
        share: 0 to 1; 1 changes nothing.
    """
    if share >= 1:
        return probabilities_V
    sorted_V, order_V = probabilities_V.sort(descending=True)
    before_V = sorted_V.cumsum(-1) - sorted_V
    sorted_V[(before_V >= share) & (torch.arange(len(sorted_V)) > 0)] = 0.0
    return torch.zeros_like(probabilities_V).scatter(0, order_V, sorted_V)
