"""What the pool and a worker on another machine say to one another, as bytes: settings, documents and labels.

A label is the record of the label cache, without offsets: 2.25 bytes a token for a vocabulary of up to 65,536 ids, and
4.25 for a larger one; 0.25 where the ids are those of the document.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator import AnnotatorSettings, Document, FactClass, LabelledTokens
from lacy_stream.stream.labels.codec import FORMAT, decode_record, encode_record
from lacy_stream.stream.workers.frames import pack, unpack
from lacy_stream.stream.workers.protocol import Answer

VERSION = f"1.{FORMAT}"
"""Version of these messages. A worker of another version is refused."""

_LAST_CLASS = max(FactClass)
_NARROW = (np.dtype("<u2"), np.dtype("<u4"))


# --- settings: the files of the tokenizer go with them, since a path means nothing on another machine ---------------


def encode_settings(settings: AnnotatorSettings) -> bytes:
    """Write the settings of an annotator, with the content of its tokenizer's files.

    Raises:
        MissingFileError, AnnotatorError: the tokenizer cannot be opened here.
    """
    files = {path.name: path.read_bytes() for path in settings.open_tokenizer().files}
    header = {
        "version": VERSION,
        "files": {name: len(content) for name, content in files.items()},  # the tokenizer's own file comes first
        "model": None if settings.model is None else os.fspath(settings.model),
        "engine": settings.engine,
        "labeller": settings.labeller,
        "eos_token": settings.eos_token,
        "split_special_tokens": settings.split_special_tokens,
    }
    return pack(header, b"".join(files.values()))


def decode_settings(message: bytes, folder: Path) -> AnnotatorSettings:
    """Read the settings of an annotator, and write the files of its tokenizer into a folder.

    Raises:
        ValueError: they were written by another version of this package.
    """
    header, rest = unpack(message)
    if header["version"] != VERSION:
        raise ValueError(f"lacy-stream here understands messages of version {VERSION}, not {header['version']}")
    for name, size in header["files"].items():
        (folder / Path(name).name).write_bytes(rest[:size])
        rest = rest[size:]
    return AnnotatorSettings(
        folder / next(iter(header["files"])),
        header["model"],
        header["engine"],
        header["labeller"],
        eos_token=header["eos_token"],
        split_special_tokens=header["split_special_tokens"],
    )


# --- documents ------------------------------------------------------------------------------------------------------


def encode_documents(documents: Sequence[Document]) -> bytes:
    """Write a batch of documents."""
    headers, arrays = [], []
    for document in documents:
        header: dict[str, Any] = {"id": document.id, "text": document.text, "annotate": document.annotate}
        if document.ids is not None:
            header["ids"] = _put(document.ids, arrays)
        if isinstance(document.spans, str):
            header["spans_text"] = document.spans
        elif document.spans is not None:
            header["spans"] = _put(document.spans, arrays)
        headers.append(header)
    return pack({"documents": headers}, b"".join(arrays))


def decode_documents(message: bytes) -> list[Document]:
    """Read a batch of documents."""
    header, rest = unpack(message)
    documents = []
    for one in header["documents"]:
        ids, rest = _get(one.get("ids"), rest)
        spans, rest = _get(one.get("spans"), rest)
        documents.append(Document(one["id"], one["text"], ids, one["annotate"], one.get("spans_text", spans)))
    return documents


def _put(array: NDArray[np.integer], arrays: list[bytes]) -> tuple[str, tuple[int, ...]]:
    """Add the bytes of an array, in the narrowest type that holds its values; returns its type and shape."""
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    dtype = next((dtype for dtype in _NARROW if low >= 0 and high <= np.iinfo(dtype).max), np.dtype("<i8"))
    arrays.append(np.ascontiguousarray(array, dtype).tobytes())
    return dtype.str, array.shape


def _get(described: Any, rest: memoryview) -> tuple[NDArray[np.integer] | None, memoryview]:
    """Take an array from the front of the bytes, as int64."""
    if described is None:
        return None, rest
    dtype, shape = np.dtype(described[0]), tuple(described[1])
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(rest[:size], dtype).reshape(shape).astype(np.int64), rest[size:]


# --- answers --------------------------------------------------------------------------------------------------------


def encode_answer(answer: Answer, documents: Sequence[Document]) -> bytes:
    """Write the answer to a batch of documents, without the offsets of its tokens."""
    records, results = [], []
    for document, result in zip(documents, answer.results, strict=True):
        if isinstance(result, str):
            results.append(result)
        else:
            records.append(encode_record(b"", document, result))
            results.append(len(records[-1]))
    header = {"results": results, "cpu_s": answer.cpu_s, "engine": answer.engine, "fallbacks": answer.fallbacks}
    return pack(header, b"".join(records))


def decode_answer(message: bytes | memoryview, documents: Sequence[Document]) -> Answer:
    """Read the answer to a batch of documents. The worker is not trusted to have written one.

    Returns:
        The answer. The offsets of its tokens are int32 [0, 2].

    Raises:
        ValueError: it is no answer to these documents.
    """
    header, rest = unpack(message)
    try:
        found = header["results"]
        if len(found) != len(documents):
            raise ValueError(f"{len(found)} results for {len(documents)} documents")
        results: list[LabelledTokens | str] = []
        for document, result in zip(documents, found):
            if not isinstance(result, str):
                record, rest = rest[:result], rest[result:]
                result = _read_labels(record, document)
            results.append(result)
        engine = {str(name): float(value) for name, value in header["engine"].items()}
        fallbacks = {str(name): str(reason) for name, reason in header["fallbacks"].items()}
        return Answer(results, float(header["cpu_s"]), engine, fallbacks)
    except (KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _read_labels(record: memoryview, document: Document) -> LabelledTokens:
    labelled = decode_record(b"", record, document)
    if labelled is None:
        raise ValueError(f"the labels of document {document.id!r} are damaged")
    if len(labelled.ids) != len(labelled.classes) or labelled.classes.max(initial=0) > _LAST_CLASS:
        raise ValueError(f"the labels of document {document.id!r} are no fact classes of its tokens")
    return labelled
