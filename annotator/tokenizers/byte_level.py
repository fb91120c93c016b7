"""The table of chunks for a byte-level BPE tokenizer.json, and whether a file admits one.

A border is one U+0020 between two characters that are no white space. A chunk goes from one border to the next, its
space included. The ids of a text are those of its chunks, one after the other, if each step of the tokenizer works on
both sides of a border as if the other side were not there, and one step cuts there:

- Added tokens are found first. None may hold a border's space, other than as its first character.
- NFC composes nothing with U+0020, and moves no mark over it.
- A pattern cuts the text into matches and what lies between them. No alternative of ``_ALTERNATIVES`` looks back, and
  each looks ahead only from the end of a run of white space, which never ends at a border. A match that holds a space
  as its second or a later character is white space throughout, so that no match holds a border's space and the
  character before it. Where ``\\s+`` is an alternative, each space belongs to a match: then each border is a cut.
- Digits are cut by what they are alone. BPE works inside what the patterns have cut.

All of this can be read in the file (``find_obstacle``). An unknown pattern is encoded text by text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from annotator.tokenizers.chunk_table import ChunkTable, IdsAndEnds, cut_rows, join_rows

# More than any library's regular expressions take for white space.
_BLANK = "\\s\\x00-\\x20\\x7f-\\xa0\\u1680\\u180e\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u2064\\u3000\\ufeff"
_BORDER = re.compile(f" (?=[^{_BLANK}])(?<=[^{_BLANK}] )")
_HOLDS_BORDER = re.compile(f"[^{_BLANK}] ")
# The same characters as a set, by which the first and the last character of a chunk are checked.
_BLANKS = frozenset(re.findall(f"[{_BLANK}]", "".join(map(chr, [*range(0x3001), 0xFEFF]))))

_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ALTERNATIVES = frozenset(
    [
        # GPT-2
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'(?:[sdmt]|ll|ve|re)"),
        *(r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)", r"\s+"),
        # GPT-4, Llama 3, Qwen, OLMo 2
        *(_SUFFIX, "'(?i:[sdmt]|ll|ve|re)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r"\p{N}{1,2}", r"\p{N}{1,3}"),
        *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]"),
        # the same, without giving back
        *(r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}++", r"\p{N}{1,3}+", r" ?[^\s\p{L}\p{N}]++[\r\n]*"),
        *(r" ?[^\s\p{L}\p{N}]++[\r\n]*+", r"\s++"),
        # GPT-4o, Mistral Nemo
        *(
            f"{first}{upper}{suffix}"
            for first in [r"[^\r\n\p{L}\p{N}]?", r"[^\r\n\p{L}\p{N}]?+"]
            for upper in [f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"]
            for suffix in ["", f"{_SUFFIX}?"]
        ),
        *(r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]+"),
        # DeepSeek
        "[一-龥\u3040-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+",
        *("[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+", " ?[\\p{P}\\p{S}]+[\r\n]*", "\\s*[\r\n]+"),
    ]
)


class ByteLevelTable:
    """The ids of a text from those of its chunks.

    Args:
        encode: text -> its ids and where each ends.
        encode_spelled: the same; None where the pieces do not spell the text.
        limit: see ``ChunkTable``.
    """

    def __init__(
        self,
        encode: Callable[[str], IdsAndEnds],
        encode_spelled: Callable[[str], IdsAndEnds | None],
        limit: int = 100_000,
    ) -> None:
        self._encode, self._encode_spelled = encode, encode_spelled
        # Its chunks are stored without their first space. They begin and end with characters other than white space.
        # The first chunk of a text, which has no space, is stored with one. So it is not taken for the same chunk
        # inside a text.
        self._table = ChunkTable(limit)

    def __len__(self) -> int:
        return len(self._table)

    def pieces(self, text: str) -> IdsAndEnds | None:
        """The ids and ends that ``encode`` gives for a text; None if the pieces of its chunks do not reach its end."""
        # Most texts have single spaces only, and known words. Then each space is a border, and no expression is needed.
        chunks = text.split(" ")
        chunks[0] = f" {chunks[0]}"
        rows = self._table.recent(chunks)  # if there are all of them, each space is a border
        if not all(rows):
            unknown = {chunk for chunk, row in zip(chunks, rows, strict=True) if not row}
            if not all(map(_is_clean, unknown)):
                chunks = _BORDER.split(text)
                chunks[0] = f" {chunks[0]}"
                rows = self._table.recent(chunks)
                unknown = {chunk for chunk, row in zip(chunks, rows, strict=True) if not row}
            found = self._rows(unknown)
            rows = [row or found[chunk] for chunk, row in zip(chunks, rows, strict=True)]
        ids, ends = join_rows(rows)  # pyright: ignore
        return (ids, ends) if len(ends) and ends[-1] == len(text) else None

    def _rows(self, chunks: set[str]) -> dict[str, bytes]:
        """The rows of chunks that the new table lacks."""
        clean = set(filter(_is_clean, chunks))
        return (self._table.find(clean, self._unseen) or {}) | self._alone(chunks - clean)

    def _unseen(self, chunks: set[str]) -> dict[str, bytes]:
        """The rows of clean chunks."""
        first = {chunk for chunk in chunks if chunk[0] == " "}
        inner = list(chunks - first)
        return self._alone(first) | (self._together(inner) if inner else {})

    def _together(self, chunks: list[str]) -> dict[str, bytes]:
        """The rows of clean chunks, encoded in one text. If its pieces do not spell it, each half is encoded alone."""
        encoded = self._encode_spelled(" " + " ".join(chunks))
        if encoded is not None:
            return cut_rows(chunks, *encoded)
        if len(chunks) == 1:
            return self._alone(set(chunks))
        half = len(chunks) // 2
        return self._together(chunks[:half]) | self._together(chunks[half:])

    def _alone(self, chunks: set[str]) -> dict[str, bytes]:
        rows = {}
        for chunk in chunks:
            # A first chunk is kept with a space and stands in its text without one. All others are kept without and
            # stand with one.
            ids, ends = self._encode(chunk[1:] if chunk.startswith(" ") else f" {chunk}")
            rows[chunk] = np.stack([ids, np.diff(ends, prepend=np.int32(0))], axis=1).astype(np.int32).tobytes()
        return rows


def _is_clean(chunk: str) -> bool:
    """Tell whether a chunk begins and ends with other characters than white space, except for a first chunk's space."""
    first = chunk[1:2] if chunk[:1] == " " else chunk[:1]
    return bool(first) and first not in _BLANKS and chunk[-1] not in _BLANKS


def find_obstacle(spec: dict[str, Any]) -> str:
    """The reason why the pieces of a text may differ from those of its chunks, from a tokenizer.json; "" for none."""
    model = spec["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}, not BPE"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its pieces have a prefix or suffix"
    if others := [step["type"] for step in steps(spec.get("normalizer"), "normalizers") if step["type"] != "NFC"]:
        return f"it normalises by {', '.join(others)}"
    return _inseparable_pattern(spec) or _inseparable_token(spec)


def _inseparable_pattern(spec: dict[str, Any]) -> str:
    found = steps(spec.get("pre_tokenizer"), "pretokenizers")
    if not found or found[-1]["type"] != "ByteLevel":
        return "it is not byte-level"
    if found[-1].get("add_prefix_space"):
        return "it puts a space before a text"
    cuts = found[-1].get("use_regex", True)
    for step in found[:-1]:
        if step["type"] == "Digits":
            continue
        pattern = step["pattern"].get("Regex") if step["type"] == "Split" else None
        if pattern is None or (step["behavior"], step["invert"]) not in (("Isolated", False), ("Removed", True)):
            return f"its pre-tokenizer {step['type']} is not known to keep to words"
        alternatives = list(_alternatives(pattern))
        if unknown := [one for one in alternatives if one not in _ALTERNATIVES]:
            return f"its pattern is not known to keep to words: {unknown[0]!r}"
        # With such an alternative each space belongs to a match, so that each border is a cut.
        cuts |= bool({r"\s+", r"\s++"} & set(alternatives))
    return "" if cuts else "it does not split at spaces"


def _inseparable_token(spec: dict[str, Any]) -> str:
    for token in spec.get("added_tokens") or []:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or _HOLDS_BORDER.search(token["content"]):
            return f"its added token {token['content']!r} reaches over a space"
    return ""


def steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json: one, or those of a sequence, which has them under ``name``."""
    if part is None:
        return []
    return [inner for step in part[name] for inner in steps(step, name)] if part["type"] == "Sequence" else [part]


def _alternatives(pattern: str) -> Iterator[str]:
    """The alternatives of a regular expression, cut at each | outside brackets."""
    depth, start, at, in_class = 0, 0, 0, False
    while at < len(pattern):
        character = pattern[at]
        # An escaped character has no meaning, so it is passed over.
        if character == "\\":
            at += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            yield pattern[start:at]
            start = at + 1
        at += 1
    yield pattern[start:]
