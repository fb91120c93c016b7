"""Text <-> the pieces of a tokenizer.json of Hugging Face. The only file of the annotator that imports tokenizers.

The library does the encoding. Known words come from a table where the file proves that this gives the same ids.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import processors

from annotator.errors import AnnotatorError
from annotator.records import Pieces
from annotator.tokenizers.byte_level import ByteLevelTable, find_obstacle
from annotator.tokenizers.chunk_table import IdsAndEnds
from annotator.tokenizers.rows import as_row, cut_row, describe_outside
from annotator.tokenizers.spelling import REPLACEMENT, Spellings, offsets_of
from annotator.tokenizers.tokenizer_json import read_spec, read_special_ids, spell, unused_settings

log = logging.getLogger(__name__)

COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""Files that belong to a tokenizer.json, in the same folder."""


class HuggingFaceTokenizer:
    """A ``Tokenizer`` that is a tokenizer.json.

    Its template, truncation and padding are not used, which is said: the ids of a text are those of all of it, and
    nothing more.

    Args:
        path: a tokenizer.json. The config files beside it say which tokens begin and end a text.
        eos_token: the piece that ends a text; None for the one that the config files name.
        split_special_tokens: whether the name of a special token in a text is spelled out, or becomes the token.

    Raises:
        AnnotatorError: the file is damaged, is not a tokenizer.json, cannot spell usual texts, or has no such piece.
    """

    def __init__(self, path: Path, eos_token: str | None = None, split_special_tokens: bool = True) -> None:
        data = path.read_bytes()
        spec = read_spec(path, data)
        self._path, self._spec = path, spec
        try:
            self._library = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library has no class of its own for it
            raise AnnotatorError(
                f"tokenizer: {path} cannot be loaded by tokenizers {tokenizers.__version__}: {error}. Take the file "
                "again from where it comes from, or install a newer tokenizers."
            ) from None
        self._library.no_truncation()
        self._library.no_padding()
        # The library's switch by which names of special tokens in a text are encoded as text.
        self._library.encode_special_tokens = split_special_tokens
        # This replaces the file's own post-processor, which may add tokens or take spaces out of the offsets.
        self._library.post_processor = processors.ByteLevel(trim_offsets=False)  # pyright: ignore
        self._split_special_tokens = split_special_tokens
        self._vocabulary = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        special = read_special_ids(path, self._vocabulary, eos_token)
        self.eos_id, self.bos_id = special.eos, special.bos
        self.sha256 = hashlib.sha256(data).hexdigest()
        why = find_obstacle(spec)
        self._table = None if why else ByteLevelTable(self._encode_whole, self._encode_spelled)
        if unused := unused_settings(spec):
            _say_once(
                f"tokenizer: {path}: a text gets the ids of all of it, and no others. Not used: {'; '.join(unused)}"
            )
        if why:
            _say_once(f"tokenizer: {path} is exact, but without the table of known words, so it is slower: {why}")

    @property
    def identity(self) -> dict[str, str]:
        """Everything on which the pieces of a text and the cuts of a row depend, by name."""
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, str]:
        parts = {part: self._spec.get(part) for part in ("added_tokens", "normalizer", "pre_tokenizer", "decoder")}
        model = dict(self._spec["model"])
        if "merges" in model:  # "a b" in files of older versions
            model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        text = json.dumps(parts | {"model": model}, sort_keys=True)
        return {
            "tokenizer": hashlib.sha256(text.encode()).hexdigest(),
            "tokenizers": tokenizers.__version__,
            "special tokens": f"{'split' if self._split_special_tokens else 'parsed'}, "
            f"end {self.eos_id}, begin {self.bos_id}",
        }

    @property
    def files(self) -> list[Path]:
        """The tokenizer.json and its ``COMPANIONS``."""
        return [self._path, *(file for name in COMPANIONS if (file := self._path.parent / name).is_file())]

    @property
    def adds_space(self) -> bool:
        """Whether a space is put before each text."""
        return self._adds_space

    @cached_property
    def _adds_space(self) -> bool:
        first = self._library.encode("a", add_special_tokens=False).ids[:1]
        return any(self._names[id].startswith(("\u0120", "\u2581")) for id in first)

    def pieces(self) -> list[str]:
        """The name of each id; "" for a hole."""
        return list(self._names)

    @cached_property
    def _names(self) -> list[str]:
        names = [""] * self.vocab_size
        for name, id in self._vocabulary.items():
            names[id] = name
        return names

    def spellings(self) -> list[bytes | None]:
        """The spelling of each id in UTF-8; None for ids that no text has (control, unknown, hole)."""
        none = self._spellings.control | self._holes
        none[self._unknown] = True
        return [None if gone else spelled for spelled, gone in zip(self._spellings.spelling, none, strict=True)]

    def encode(self, text: str) -> Pieces:
        """The pieces of a whole text.

        If normalisation has changed the text, so that the pieces do not spell it, their places are the library's. White
        space that was dropped belongs to the piece before it, except for the space before a piece.
        """
        found = self._table.pieces(text) if self._table is not None and text else None
        ids, ends = self._encode_whole(text) if found is None else found
        return Pieces(text, ids, offsets_of(ends), self._spellings.control[ids])

    def decode(self, ids: NDArray[np.int32]) -> Pieces:
        """The text that the ids of one text, or of a part of one, spell, as ``Tokenizer.decode``.

        Raises:
            AnnotatorError: not a row of integers; an id that the tokenizer does not have, with its position; or a
                tokenizer whose ids cannot be read.
        """
        return self._read(self._check_row(ids))

    def segments(self, ids: NDArray[np.integer]) -> list[Pieces]:
        """Cut a row of ids into its documents (see ``rows.cut_row``), and decode each segment on its own.

        Several unknown pieces at an end of a segment are padding: they are control pieces there.

        Returns:
            At least one segment, of no pieces for an empty row.

        Raises:
            AnnotatorError: as ``decode``.
        """
        row, (unknown,) = self._check_row(ids), self._unknown or [-1]
        parts = cut_row(row, self._spellings.control, self.eos_id, self.bos_id)
        return [self._spellings.read_segment(part, unknown) for part in parts]

    def _read(self, ids: NDArray[np.int32]) -> Pieces:
        text, end = self._spellings.read(ids)
        return Pieces(text, ids, offsets_of(end), self._spellings.control[ids])

    def _encode_whole(self, text: str) -> IdsAndEnds:
        encoded = self._library.encode(text, add_special_tokens=False)
        ids = np.array(encoded.ids, np.int32)
        ends = self._spelled_ends(ids, text)
        return ids, _total_ends(np.array(encoded.offsets, np.int32).reshape(-1, 2), text) if ends is None else ends

    def _encode_spelled(self, text: str) -> IdsAndEnds | None:
        ids = np.array(self._library.encode(text, add_special_tokens=False).ids, np.int32)
        ends = self._spelled_ends(ids, text)
        return None if ends is None else (ids, ends)

    def _spelled_ends(self, ids: NDArray[np.int32], text: str) -> NDArray[np.int32] | None:
        """The end of each piece, int32 [n]; None if the pieces do not spell the text."""
        if self._unread:
            return None
        spelled, ends = self._in_text.read(ids)
        return ends.astype(np.int32) if spelled == text else None

    def _check_row(self, ids: NDArray[np.integer]) -> NDArray[np.int32]:
        if self._unread:
            raise AnnotatorError(f"the tokenizer {self._path} cannot read rows of ids: {self._unread}. Use raw text.")
        row = as_row(ids)
        outside = (row < 0) | (row >= self.vocab_size)
        # Only ids in range can be looked up among the holes.
        outside[~outside] = self._holes[row[~outside]]
        if outside.any():
            raise AnnotatorError(describe_outside(row, np.flatnonzero(outside), self.vocab_size))
        return row.astype(np.int32)

    # --- the vocabulary -----------------------------------------------------------------------------------

    @cached_property
    def _unread(self) -> str:
        return "" if spell(self._spec) is not None else "what its pieces spell is not known"

    @cached_property
    def _holes(self) -> NDArray[np.bool_]:
        holes = np.ones(self.vocab_size, np.bool_)
        holes[list(self._vocabulary.values())] = False
        return holes

    @cached_property
    def _unknown(self) -> list[int]:
        """The id of the unknown piece, if there is one: it stands for text, also where it is a special token."""
        model = self._spec["model"]
        id = model.get("unk_id") if model.get("type") == "Unigram" else self._vocabulary.get(model.get("unk_token"))
        return [] if id is None or id in (self.eos_id, self.bos_id) else [id]

    @cached_property
    def _spellings(self) -> Spellings:
        """The spellings of ids in a row."""
        return self._spelled_by(control_names=False)

    @cached_property
    def _in_text(self) -> Spellings:
        """The spellings of the ids of a text, in which a special token stands by its name."""
        return self._spellings if self._split_special_tokens else self._spelled_by(control_names=True)

    def _spelled_by(self, control_names: bool) -> Spellings:
        spelled = spell(self._spec) or (lambda piece: b"")
        added = {token["id"]: token for token in self._spec.get("added_tokens") or []}
        control = np.zeros(self.vocab_size, np.bool_)
        control[[id for id, token in added.items() if token["special"]]] = True
        control[[id for id in (self.eos_id, self.bos_id) if id >= 0]] = True
        control[self._unknown] = False
        spelling = [b""] * self.vocab_size
        for name, id in self._vocabulary.items():
            spelling[id] = name.encode() if id in added else spelled(name)
            if control[id] and not control_names:
                spelling[id] = b""
        for id in self._unknown:
            spelling[id] = REPLACEMENT.encode()
        spaced = [self._drops_space and spelled.startswith(b" ") for spelled in spelling]
        return Spellings.of(spelling, control, np.array(spaced, np.bool_))

    @property
    def _drops_space(self) -> bool:
        """Whether a space at the beginning of a text was put there."""
        return self.adds_space or self._spec["model"].get("type") == "WordPiece"


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def _total_ends(offsets: NDArray[np.int32], text: str) -> NDArray[np.int32]:
    """The end of each piece, int32 [n], from the library's offsets: the pieces cover the text in order.

    Pieces inside one character all have its place: only the last of them keeps its width.
    """
    if not len(offsets):
        return np.zeros(0, np.int32)
    start, end = offsets.T.copy()
    inner = np.append(end[1:] == end[:-1], False)
    end[inner] = np.minimum(start, end)[inner]
    # Text that was dropped before a piece belongs to the piece before it, except for spaces.
    inked = np.flatnonzero(np.frombuffer(text.encode("utf-32-le"), np.uint32) != 0x20)
    # ``before`` counts the code points other than spaces before each piece but the first.
    before = np.searchsorted(inked, start[1:])
    end[:-1] = np.maximum(end[:-1], np.where(before > 0, inked[before - 1] + 1, 0) if len(inked) else 0)
    end[-1] = len(text)
    return np.minimum(np.maximum.accumulate(end), len(text)).astype(np.int32)
