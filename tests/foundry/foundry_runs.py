"""What the tests of the Foundry plug-in share: changes of a YAML, and the record of a run's batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

MAX_SEQ_LEN = 32
TEXT = {"max_seq_len": MAX_SEQ_LEN, "split": "train", "shuffle": True, "shuffle_seed": 5, "num_canonical_nodes": 1}

CALLS = {
    "train_loader": {"name": "text_with_calls", "annotator": {"num_workers": 1}},
    "algorithms": {"call_mask": {"call_token": "<CALL>", "call_fraction": 0.15}},
}
"""What turns a run into one with calls."""


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a YAML with changes, key by key; ``None`` removes a key."""
    result = dict(config)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def batch_record() -> type:
    """A callback class; made here, since Composer may be absent."""
    import torch
    from composer import Callback

    class BatchRecord(Callback):
        """The digest of each training batch without its labels of facts, and those labels."""

        def __init__(self) -> None:
            self.digests: list[str] = []
            self.keys: list[set[str]] = []
            self.classes: list[Any] = []

        def before_train_batch(self, state: Any, logger: Any) -> None:
            self.keys.append(set(state.batch))
            self.classes.append(state.batch.get("token_class"))
            digest = hashlib.sha256()
            for key in sorted(set(state.batch) - {"token_class"}):
                value = torch.as_tensor(state.batch[key])
                digest.update(f"{key} {value.dtype} {list(value.shape)}".encode() + value.numpy().tobytes())
            self.digests.append(digest.hexdigest())

    return BatchRecord


def weights(trainer: Any) -> float:
    """The sum of all weights of a model."""
    return sum(parameter.detach().double().sum().item() for parameter in trainer.state.model.parameters())
