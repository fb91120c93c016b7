"""What a run does where torch.compile fails: it trains the model uncompiled, or it stops."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from lacy_stream.errors import UsageError


class CompileError(UsageError):
    """torch.compile failed, and the recipe asks that the run then stops. The cause has the whole message."""


def guard_compiled(model: nn.Module, *, fallback: bool) -> None:
    """Watch the forward of a compiled model. The compiler works at the first forward with inputs of a shape, so there
    is no earlier moment to know whether it can.

    Args:
        model: with a compiled ``forward``, as Composer makes it.
        fallback: after a failure of the compiler, run the model without it from then on, with one warning.

    Raises:
        CompileError: by the model's forward, where the compiler fails and there is no fallback.
    """
    compiled, failed = model.forward, False

    def forward(*arguments: Any, **settings: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*arguments, **settings)
            except RuntimeError as error:
                if not isinstance(error, TorchDynamoException):
                    raise
                reason = f"torch.compile failed ({type(error).__name__}: {_beginning(error)})"
                if not fallback:
                    raise CompileError(
                        f"compile_config: {reason}. Set compile_config=null, or compile_fallback=true to train "
                        "uncompiled"
                    ) from error
                warnings.warn(f"{reason}: the model is trained uncompiled (compile_fallback)", stacklevel=2)
                failed = True
        with torch.compiler.set_stance("force_eager"):
            return compiled(*arguments, **settings)

    model.forward = forward


def _beginning(error: Exception) -> str:
    """The first two lines of a message: PyTorch names the backend in the first, and its error in the second."""
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
