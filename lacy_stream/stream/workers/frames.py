"""A message as bytes: a header of plain values, written as JSON, and bytes that follow it.

Nothing is unpickled where such a message is read, so a message can do no more than be wrong.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

_LENGTH = struct.Struct("<I")


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Write a message."""
    # Texts may hold lone surrogates, which are no characters: they stay what they are.
    written = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(written)) + written + body


def unpack(message: bytes | memoryview) -> tuple[dict[str, Any], memoryview]:
    """Read a message.

    Returns:
        The header, and the bytes after it.

    Raises:
        ValueError: it is no message.
    """
    view = memoryview(message)
    if len(view) < _LENGTH.size:
        raise ValueError(f"a message of {len(view)} bytes has no header")
    end = _LENGTH.size + _LENGTH.unpack_from(view)[0]
    header = json.loads(str(view[_LENGTH.size : end], "utf-8", "surrogatepass"))
    if end > len(view) or not isinstance(header, dict):
        raise ValueError("the header of a message is damaged")
    return header, view[end:]
