"""Reads a tokenizer.json and the config files beside it, and refuses those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from annotator.errors import AnnotatorError
from annotator.tokenizers.byte_level import steps

_SPACE = "\u2581"  # stands for U+0020 in SentencePiece's vocabularies
_SUFFIX = "##"  # of WordPiece: a piece that continues a word


class SpecialIds(NamedTuple):
    """The ids that end and begin a document; -1 where there is none."""

    eos: int
    bos: int


def read_spec(path: Path, data: bytes) -> dict[str, Any]:
    """The content of a tokenizer.json.

    Raises:
        AnnotatorError: it is damaged, no tokenizer.json, draws its pieces at random, or cannot spell usual texts.
    """
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotatorError(
            f"tokenizer: {path} is damaged: {error}. Take it again from where it comes from."
        ) from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        kind = "a tekken.json of Mistral" if "config" in spec and "vocab" in spec else "JSON without a model"
        raise AnnotatorError(
            f"tokenizer: {path} is {kind}, and not a tokenizer.json. Give the tokenizer.json of the model's folder, "
            "or the folder."
        )
    model = spec["model"]
    if not model.get("vocab"):
        raise AnnotatorError(f"tokenizer: {path} has a model without a vocabulary. Give the whole tokenizer.json.")
    if model.get("dropout"):
        raise AnnotatorError(
            f"tokenizer: {path} draws other pieces each time (dropout: {model['dropout']}). Set its dropout to null."
        )
    _check_bytes(path, spec)
    return spec


def _check_bytes(path: Path, spec: dict[str, Any]) -> None:
    """Refuse a BPE model that would silently drop characters: it has neither their bytes nor an unknown piece."""
    model = spec["model"]
    if model.get("type", "BPE") != "BPE" or model.get("unk_token") or model.get("byte_fallback"):
        return
    way = "Train it with initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()"
    if not _is_byte_level(spec):
        raise AnnotatorError(
            f"tokenizer: {path} has neither bytes nor an unknown piece: what it does not know would vanish from the "
            f"texts. {way} and the byte-level pre-tokenizer, or give it an unk_token."
        )
    letter_of = {byte: letter for letter, byte in _byte_of().items()}
    missing = [byte for byte in _NEEDED_BYTES if letter_of[byte] not in model["vocab"]]
    if missing:
        names = ", ".join(f"0x{byte:02X}" for byte in missing[:8]) + (", …" if len(missing) > 8 else "")
        raise AnnotatorError(
            f"tokenizer: {path} lacks {len(missing)} bytes ({names}), so that its pieces do not spell each text. "
            f"{way}, or give the original file."
        )


def unused_settings(spec: dict[str, Any]) -> list[str]:
    """What a tokenizer.json says about rows for a model, and the annotator does not do, since it takes whole texts."""
    found = []
    if added := _added_by_template(spec.get("post_processor")):
        found.append(f"the template that adds {', '.join(added)} to a text")
    if truncation := spec.get("truncation"):
        found.append(f"truncation to {truncation.get('max_length')} tokens")
    if spec.get("padding"):
        found.append("padding")
    return found


def _added_by_template(processor: dict[str, Any] | None) -> list[str]:
    """Names of the tokens that a post-processor puts around a text, in order."""
    added = []
    for step in steps(processor, "processors"):
        if step["type"] == "TemplateProcessing":
            added += [part["SpecialToken"]["id"] for part in step["single"] if "SpecialToken" in part]
        elif step["type"] in ("BertProcessing", "RobertaProcessing"):
            added += [step["cls"][0], step["sep"][0]]
    return added


def _is_byte_level(spec: dict[str, Any]) -> bool:
    parts = [*steps(spec.get("pre_tokenizer"), "pretokenizers"), *steps(spec.get("normalizer"), "normalizers")]
    return any(step["type"] == "ByteLevel" for step in parts)


# The bytes in the UTF-8 of all characters that Unicode has assigned so far, without control characters.
_NEEDED_BYTES = [0x09, 0x0A, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)]


def _byte_of() -> dict[str, int]:
    """The letter of byte-level vocabularies -> the byte that it stands for. (GPT-2's table.)"""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def spell(spec: dict[str, Any]) -> Callable[[str], bytes] | None:
    """The function that spells a piece in UTF-8, by the decoder of a tokenizer.json; None if the decoder is unknown.

    A piece of WordPiece that begins a word has the space before it.
    """
    kinds = {step["type"] for step in steps(spec.get("decoder"), "decoders")}
    if "ByteLevel" in kinds:
        byte_of = _byte_of()

        def byte_level(piece: str) -> bytes:
            try:
                return bytes([byte_of[letter] for letter in piece])
            except KeyError:  # as the library reads it
                return piece.encode()

        return byte_level
    if kinds & {"ByteFallback", "Metaspace"}:
        return lambda piece: _sentencepiece(piece, "ByteFallback" in kinds)
    if kinds == {"WordPiece"}:
        return lambda piece: (piece[len(_SUFFIX) :] if piece.startswith(_SUFFIX) else f" {piece}").encode()
    return None


def _sentencepiece(piece: str, bytes_too: bool) -> bytes:
    if bytes_too and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def read_special_ids(path: Path, vocabulary: Mapping[str, int], eos_token: str | None) -> SpecialIds:
    """The ids that end and begin a document.

    Args:
        eos_token: the name of the first; None: as the files beside the tokenizer.json say, in this order:
            tokenizer_config.json, special_tokens_map.json, config.json.

    Raises:
        AnnotatorError: the tokenizer has no such piece, or a file beside it is not JSON.
    """
    files = {name: _beside(path, name) for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json")}
    if eos_token is None:
        return SpecialIds(_find_id(files, vocabulary, "eos"), _find_id(files, vocabulary, "bos"))
    if eos_token not in vocabulary:
        raise AnnotatorError(f"tokenizer: eos_token {eos_token!r} is no piece of {path}.{_candidates(vocabulary)}")
    return SpecialIds(vocabulary[eos_token], _find_id(files, vocabulary, "bos"))


def _find_id(files: Mapping[str, dict[str, Any]], vocabulary: Mapping[str, int], kind: str) -> int:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        # The token is named by a string, or by a mapping that holds it.
        token = files[name].get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in vocabulary:
            return vocabulary[token]
    # A model may have several ids that end a text. The first one stands between documents.
    id = files["config.json"].get(f"{kind}_token_id")
    id = id[0] if isinstance(id, list) and id else id
    return id if isinstance(id, int) and id in vocabulary.values() else -1


def _candidates(vocabulary: Mapping[str, int]) -> str:
    names = [name for name in vocabulary if "end" in name.lower() and name[:1] in "<[|"] + ["</s>"]
    names = [name for name in names if name in vocabulary][:5]
    return f" It has {', '.join(map(repr, names))}." if names else ""


def _beside(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((path.parent / name).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise AnnotatorError(f"tokenizer: {path.parent / name} is damaged: {error}. Repair it, or remove it.") from None
    return content if isinstance(content, dict) else {}
