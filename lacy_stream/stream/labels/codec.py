"""A document and its labels <-> the key and the record under which they are kept.

A record is little-endian bytes without padding:

    bytes 0 to 3   CRC-32 of the key and of all bytes that follow
    bytes 4 to 7   number of tokens * 4 + kind of ids
    ids            kind 0: none, they are those of the document; 1: 2 bytes each; 2: 4 bytes each
    classes        4 tokens a byte, the first in the lowest 2 bits

The checksum covers the key, so a record that an index entry points to by mistake is not taken for another document's.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np

from annotator.records import Document, LabelledTokens
from annotator.spans import SPANS_VERSION

KEY_BYTES = 16
FORMAT = "1"
"""Version of keys and records. A store of another version is replaced."""

_HEADER = struct.Struct("<II")
_IDS_OF_DOCUMENT, _IDS_16, _IDS_32 = range(3)
_IDS_TYPE = {_IDS_16: np.dtype("<u2"), _IDS_32: np.dtype("<i4")}

_NO_OFFSETS = np.zeros((0, 2), dtype=np.int32)
# Row b holds the four classes in byte b: row 0b11_10_01_00 is [0, 1, 2, 3].
_CLASSES_OF_BYTE = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.uint8)


def document_key(document: Document) -> bytes | None:
    """Hash everything about a document that its labels depend on. The annotator is not part of it.

    Returns:
        KEY_BYTES bytes; None for a text with lone surrogates, which cannot be encoded.
    """
    # The first byte keeps documents apart whose content is the same: a text and token ids, annotated or not.
    if document.ids is None:
        kind = b"T" if document.annotate else b"t"
        try:
            content = document.text.encode()
            if document.annotate and document.spans is not None:
                kind, content = b"S", _with_spans(content, document.spans)
        except UnicodeEncodeError:
            return None
    else:
        kind = b"J" if document.annotate else b"j"  # "I" was for rows that were cut at fewer ids
        content = np.ascontiguousarray(document.ids, dtype="<i8").tobytes()
    return hashlib.blake2b(kind + content, digest_size=KEY_BYTES).digest()


def _with_spans(text: bytes, spans: str | np.ndarray) -> bytes:
    """Join a text and its raw spans. The length of the text comes first, so that no other pair gives the same bytes."""
    if isinstance(spans, str):
        written = spans.encode()
    else:
        written = f"{spans.dtype.str} {spans.shape} ".encode() + np.ascontiguousarray(spans).tobytes()
    return struct.pack("<IQ", SPANS_VERSION, len(text)) + text + written


def encode_record(key: bytes, document: Document, labelled: LabelledTokens) -> bytes:
    """Write the labels of a document as a record. The offsets are dropped."""
    ids, classes = labelled.ids, labelled.classes
    assert len(ids) == len(classes) and classes.max(initial=0) < 4
    if document.ids is not None and np.array_equal(ids, document.ids):
        kind, stored = _IDS_OF_DOCUMENT, b""
    else:
        kind = _IDS_16 if ids.min(initial=0) >= 0 and ids.max(initial=0) < 1 << 16 else _IDS_32
        stored = ids.astype(_IDS_TYPE[kind]).tobytes()
    # Five classes [1, 2, 0, 0, 2] become the rows [1, 2, 0, 0] and [2, 0, 0, 0], and these the bytes 0b1001 and 0b10.
    fours = np.zeros((-(-len(classes) // 4), 4), dtype=np.uint8)
    fours.reshape(-1)[: len(classes)] = classes
    packed = fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6
    size = len(ids) << 2 | kind
    body = stored + packed.tobytes()
    return _HEADER.pack(zlib.crc32(body, zlib.crc32(size.to_bytes(4, "little"), zlib.crc32(key))), size) + body


def decode_record(key: bytes, record: bytes | memoryview, document: Document) -> LabelledTokens | None:
    """Read the labels of a document from a record.

    Returns:
        The labels, with offsets int32 [0, 2]; None where the checksum does not fit: the record is damaged, or it was
        written for another key.
    """
    record = memoryview(record)
    if len(record) < _HEADER.size or zlib.crc32(record[4:], zlib.crc32(key)) != _HEADER.unpack_from(record)[0]:
        return None
    size = _HEADER.unpack_from(record)[1]
    count, kind = size >> 2, size & 3
    first = _HEADER.size
    if kind == _IDS_OF_DOCUMENT:
        ids = np.array(document.ids, dtype=np.int32)
    else:
        ids = np.frombuffer(record, dtype=_IDS_TYPE[kind], count=count, offset=first).astype(np.int32)
        first += count * _IDS_TYPE[kind].itemsize
    classes = _CLASSES_OF_BYTE[np.frombuffer(record, dtype=np.uint8, offset=first)].reshape(-1)[:count]
    return LabelledTokens(ids, classes, _NO_OFFSETS)
