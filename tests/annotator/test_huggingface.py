"""tokenizer.json: ids against the library itself, on odd text and odd ids; what is refused; the table of chunks."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from real_tokenizers import GPT4, REAL, SMALL, byte_level, tiktoken_file
from test_tokenizers import assert_in_order, odd_text, word_at

from annotator import Annotator, AnnotatorError, AnnotatorSettings, FactClass
from annotator.align import classify
from annotator.facts import class_of_rule
from annotator.tokenizers import open_tokenizer
from annotator.tokenizers.byte_level import _ALTERNATIVES, ByteLevelTable, _alternatives, find_obstacle
from annotator.tokenizers.huggingface import HuggingFaceTokenizer

ODDER = [
    "<|endoftext|>",
    "|||IP_ADDRESS|||",
    "<|im_end|>",
    "\u0085",
    "\x1c",
    "\u0301",
    "\u212b",
    "\u1100\u1161",
    "'LL",
    "\x04",
]
odder_text = st.lists(odd_text | st.sampled_from([*ODDER, " ", " the "]), max_size=3).map("".join)
some = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=[*REAL, *SMALL])
def hf(request: pytest.FixtureRequest, tokenizer_folder: Callable[[str], Path]) -> HuggingFaceTokenizer:
    """One tokenizer after the other."""
    tokenizer = open_tokenizer(tokenizer_folder(request.param))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


@pytest.fixture
def write(tmp_path: Path):
    """Write a tokenizer, changed by keyword, and say where."""

    def write(tokenizer: tokenizers.Tokenizer | None = None, **change: object) -> Path:
        spec = json.loads((tokenizer or byte_level()).to_str())
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec | change))
        return tmp_path / "tokenizer.json"

    return write


def library(tokenizer: HuggingFaceTokenizer) -> tokenizers.Tokenizer:
    """The library itself, with the same file."""
    own = tokenizers.Tokenizer.from_file(str(tokenizer.files[0]))
    own.no_truncation()
    own.encode_special_tokens = True
    return own


def test_which_are_separable(hf: HuggingFaceTokenizer) -> None:
    """All real byte-level ones have the table; the small ones of other kinds have not."""
    assert (hf._table is not None) == (hf.files[0].parent.name in REAL)


@some
@example("")
@example(" ")
@example(" lead")
@example("trail  ")
@example("\n \n")
@example("\U00050000 lost")
@example("a \U00050000 b")
@example("the \u0301 the")
@given(odder_text)
@pytest.mark.slow
def test_ids_and_offsets_on_odd_text(hf: HuggingFaceTokenizer, text: str) -> None:
    """Ids are the library's for the whole text, twice; offsets are monotone from 0 to the text's end, without gaps."""
    ids = library_of(hf).encode(text, add_special_tokens=False).ids
    for _ in range(2):
        pieces = hf.encode(text)
        assert pieces.ids.tolist() == ids
        if ids:
            assert_in_order(pieces.offsets, pieces.ids, text)
    if hf._table is not None:
        assert not pieces.control.any(), "a control id"


@functools.cache
def library_of(tokenizer: HuggingFaceTokenizer) -> tokenizers.Tokenizer:
    """``library``, loaded once."""
    return library(tokenizer)


@settings(parent=some, max_examples=15)
@example("born  in 1987\n \u4e2d 7")
@example("Marie Curie was born in 1987 \U0001f600 ")
@given(odd_text)
@pytest.mark.slow
def test_a_piece_has_the_class_of_its_word(hf: HuggingFaceTokenizer, annotator: Annotator, text: str) -> None:
    """A piece has the class of the word that holds its first code point other than a space; see test_tokenizers."""
    found = annotator.explain(text)
    classes = class_of_rule(found.rules)
    pieces = hf.encode(text)
    tokens = classify(pieces, found.words, classes)
    for (start, end), label, control in zip(tokens.offsets, tokens.classes, pieces.control, strict=True):
        anchor = next((i for i in range(start, end) if text[i] != " "), end)
        word = word_at(found.words, anchor)
        assert label == (FactClass.GRAMMATICAL if control else FactClass.OTHER if word is None else classes[word])


@some
@example("\U0001f9ff\t\n x")
@given(text=odder_text)
@pytest.mark.slow
def test_decode_gives_the_text_and_the_places_back(hf: HuggingFaceTokenizer, text: str) -> None:
    """Ids that spell a text decode to it, and to the offsets that encode gives."""
    encoded, decoded = hf.encode(text), hf.decode(hf.encode(text).ids)
    assert_in_order(decoded.offsets, decoded.ids, decoded.text)
    if hf._encode_spelled(text) is not None:
        assert decoded.text == text and np.array_equal(decoded.offsets, encoded.offsets)
    elif hf._table is not None:
        normalizer = library_of(hf).normalizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        lost = [c for c in normal if c in "\x04\x06\x13\x14\x16\x1d" or 0x40000 <= ord(c) < 0xC0000]
        assert decoded.text == normal or lost, "only SmolLM2 lacks the bytes of such characters"


@some
@given(ids=st.lists(st.integers(0, 300), max_size=24))
@pytest.mark.slow
def test_segments_of_any_ids(hf: HuggingFaceTokenizer, ids: list[int]) -> None:
    """Whatever the ids, segments joined are the row, in order, and each ends with the only end-of-document id."""
    special = [id for id in (hf.eos_id, hf.bos_id) if id >= 0]
    row = np.array([special[id % len(special)] if id < 40 else id % hf.vocab_size for id in ids], np.int64)
    row = row[~hf._holes[row]]
    segments = hf.segments(row)
    assert [id for segment in segments for id in segment.ids.tolist()] == row.tolist()
    assert all(len(segment) for segment in segments) or not len(row)
    for segment in segments:
        assert_in_order(segment.offsets, segment.ids, segment.text)
        assert hf.eos_id not in segment.ids[:-1]
        assert hf.bos_id == hf.eos_id or hf.bos_id not in segment.ids[1:]


def test_rows_of_documents(hf: HuggingFaceTokenizer) -> None:
    """A row of documents is cut into them, with the classes of their words; control ids are GRAMMATICAL."""
    begin = [hf.bos_id] if hf.bos_id >= 0 else []
    texts = [hf.encode(text).ids.tolist() for text in ("the fine file", "radium in 1898")]
    row = [id for text in texts for id in [*begin, *text, hf.eos_id]]
    segments = hf.segments(np.array(row))
    if begin and hf.bos_id == hf.eos_id:
        segments = [segment for segment in segments if segment.text]
    assert [segment.text for segment in segments] == ["the fine file", "radium in 1898"]
    assert all(segment.control[-1] for segment in segments)
    assert classify(segments[0]).classes[-1] == FactClass.GRAMMATICAL


def test_beginning_alone_cuts_a_row(tokenizer_folder: Callable[[str], Path]) -> None:
    """Rows of a tool that writes only the beginning of documents are cut before it."""
    tokenizer = open_tokenizer(tokenizer_folder("llama2"))
    the = tokenizer.encode("the").ids.tolist()
    segments = tokenizer.segments(np.array([*the, tokenizer.bos_id, *the, tokenizer.bos_id, *the]))
    assert [segment.text for segment in segments] == ["the", "the", "the"]


# --- special tokens, config files -------------------------------------------------------------------------------


def test_special_names_are_spelled_or_parsed(write, tmp_path: Path) -> None:
    """The name of a special token is text; with the key it is the token, GRAMMATICAL, and has its name's place."""
    path, text = write(), "the <|endoftext|> file"
    spelled = open_tokenizer(path).encode(text)
    parsed = open_tokenizer(path, split_special_tokens=False).encode(text)
    id = open_tokenizer(path).pieces().index("<|endoftext|>")
    assert id not in spelled.ids and not spelled.control.any()
    at = parsed.ids.tolist().index(id)
    assert parsed.control.tolist().count(True) == 1 and parsed.control[at]
    assert text[slice(*parsed.offsets[at])] == "<|endoftext|>" and parsed.offsets[-1, 1] == len(text)


def test_template_truncation_and_padding_are_not_used(write, caplog: pytest.LogCaptureFixture) -> None:
    """A template that adds tokens, a limit of length and padding change nothing, and are named once."""
    plain, changed = byte_level(), byte_level()
    changed.enable_truncation(3)
    changed.enable_padding(length=50)
    changed.post_processor = tokenizers.processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    text = "the fine file of Marie Curie"
    first = open_tokenizer(write(plain))
    assert not caplog.records
    second = open_tokenizer(write(changed))
    open_tokenizer(second.files[0])
    assert [record.getMessage().split("Not used: ")[1] for record in caplog.records] == [
        "the template that adds <|endoftext|>, <|endoftext|> to a text; truncation to 3 tokens; padding"
    ]
    assert second.encode(text).ids.tolist() == first.encode(text).ids.tolist() and len(first.encode(text)) > 3
    assert second.identity == first.identity, "they do not change ids"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<|endoftext|>"}}),
        ("special_tokens_map.json", {"eos_token": "<|endoftext|>"}),
        ("config.json", {"eos_token_id": 0}),
        ("config.json", {"eos_token_id": [0, 7]}),
    ],
)
def test_end_of_document_from_the_files_beside(write, name: str, content: dict) -> None:
    """The end-of-document id stands in one of the config files, and changes the fingerprint; or a key names it."""
    path = write()
    without = open_tokenizer(path)
    (path.parent / name).write_text(json.dumps(content))
    assert (without.eos_id, open_tokenizer(path).eos_id, open_tokenizer(path.parent).eos_id) == (-1, 0, 0)
    assert open_tokenizer(path).identity != without.identity
    assert open_tokenizer(path, eos_token="t").eos_id == without.pieces().index("t")
    with pytest.raises(AnnotatorError, match="eos_token '<end>' is no piece of .*<|endoftext|>"):
        AnnotatorSettings(path, eos_token="<end>").open_tokenizer()


def test_identity_is_of_what_changes_ids(write) -> None:
    """Another way of writing the same file has the same identity; other merges, or the other key, have another."""
    tokenizer = byte_level()
    path = write(tokenizer)
    before = open_tokenizer(path).identity
    assert open_tokenizer(path, split_special_tokens=False).identity != before
    spec = json.loads(path.read_text())
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
    path.write_text(json.dumps(spec, indent=1))
    assert open_tokenizer(path).identity == before
    spec["model"]["merges"].pop()
    path.write_text(json.dumps(spec))
    assert open_tokenizer(path).identity != before


# --- ids of other tokenizers, bad files -------------------------------------------------------------------------


def test_ids_that_are_none_are_told_apart(write) -> None:
    """Padding, a hole in the vocabulary, and ids of another tokenizer."""
    tokenizer = byte_level()
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"] = {piece: id + (id >= 10) for piece, id in spec["model"]["vocab"].items()}
    reader = open_tokenizer(write(None, model=spec["model"]))
    size = reader.vocab_size
    for row, message in [
        ([5, 6, -100, -100], "token id -100 at position 2, as padding.*end-of-document id in its place"),
        ([5, 6, -1, 7], "token id -1 at position 2, as padding"),
        ([5, size, size, size], f"token id {size} at position 1, as padding"),
        ([5, 10, 6], "token id 10 at position 1 is a hole in the vocabulary.*another version of the tokenizer"),
        ([5, size + 3, 6, 7], f"token id {size + 3} at position 1, but .* 0 to {size - 1}.*give the tokenizer of the"),
        ([[5, 6]], "of shape .* instead of a row of token ids"),
    ]:
        with pytest.raises(AnnotatorError, match=message):
            reader.segments(np.array(row))


def test_bad_files_are_named(write, tmp_path: Path) -> None:
    """Each file that is no usable tokenizer.json, with the way out."""
    path = write()
    whole = path.read_text()
    spec = json.loads(whole)
    few = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    for content, message in [
        (whole[:500], "tokenizer.json is damaged: .*again from where"),
        ("{}", "JSON without a model, and not a tokenizer.json"),
        (json.dumps(spec | {"model": None}), "JSON without a model"),
        (json.dumps({"config": {}, "vocab": []}), "a tekken.json of Mistral"),
        (json.dumps(spec | {"model": {"type": "BPE", "vocab": {}, "merges": []}}), "without a vocabulary"),
        (json.dumps(spec | {"model": spec["model"] | {"dropout": 0.1}}), "dropout: 0.1.*Set its dropout to null"),
        (json.dumps(spec | {"model": few}), "lacks .* bytes .0x09.*initial_alphabet"),
        (json.dumps(spec | {"model": few, "pre_tokenizer": None}), "neither bytes nor an unknown piece.*unk_token"),
        (json.dumps(spec | {"normalizer": {"type": "Later"}}), "cannot be loaded by tokenizers .*newer"),
        ("GGUF\x03\0\0\0", "is a GGUF file.*a conversion.*tokenizer.json of the model"),
        ("version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("IQ== 0\nIg== 1\n", "is a tiktoken file.*TikTokenConverter"),
    ]:
        path.write_text(content)
        with pytest.raises(AnnotatorError, match=message):
            open_tokenizer(path)


@pytest.mark.parametrize("name", ["llama3", "qwen"])
def test_real_tiktoken_files_are_named(name: str) -> None:
    """Llama 3's tokenizer.model and qwen.tiktoken."""
    with pytest.raises(AnnotatorError, match="is a tiktoken file"):
        open_tokenizer(tiktoken_file(name))


def test_names_of_tokenizers(write, tmp_path: Path, tokenizer_path: Path) -> None:
    """A folder, a package's file; a name of the hub, an empty folder and a missing package are errors."""
    path = write()
    assert open_tokenizer(tmp_path).sha256 == open_tokenizer(path).sha256
    assert open_tokenizer("package:mistral_common/data/tokenizer.model.v1").vocab_size == 32_000
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    assert open_tokenizer(tmp_path).vocab_size == 32_000, "SentencePiece's file before its conversion"
    (tmp_path / "tokenizer.model").write_text("IQ== 0\n")
    assert open_tokenizer(tmp_path).sha256 == open_tokenizer(path).sha256
    with pytest.raises(FileNotFoundError, match="names of the Hugging Face hub are not looked up.*hf download"):
        open_tokenizer("HuggingFaceTB/SmolLM2-135M")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json: it is empty"):
        open_tokenizer(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no_such_package.*not installed"):
        open_tokenizer("package:no_such_package/tokenizer.json")


def test_sentencepiece_takes_the_same_keys(tokenizer_path: Path) -> None:
    """Another end-of-document piece; special names cannot be parsed. Without keys the identity is what it was."""
    assert set(open_tokenizer(tokenizer_path).identity) == {"tokenizer", "sentencepiece"}
    assert open_tokenizer(tokenizer_path, eos_token="<s>").eos_id == 1
    with pytest.raises(AnnotatorError, match="eos_token '<end>' is no piece"):
        open_tokenizer(tokenizer_path, eos_token="<end>")
    with pytest.raises(AnnotatorError, match="always spells"):
        open_tokenizer(tokenizer_path, split_special_tokens=False)


# --- the table of chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (byte_level(GPT4), ""),
        (byte_level(r"\S+ \S+|\s+"), "its pattern is not known to keep to words: '"),
        (byte_level(r"\p{N}{1,3}"), "it does not split at spaces"),
        (byte_level(added=(tokenizers.AddedToken("of the"),)), "its added token 'of the' reaches over a space"),
        (byte_level(added=(tokenizers.AddedToken("the "),)), "its added token 'the ' reaches over a space"),
        (byte_level(added=(tokenizers.AddedToken("   "),)), ""),
        (byte_level(added=(tokenizers.AddedToken("x", rstrip=True),)), "its added token 'x' reaches over a space"),
    ],
)
def test_what_is_separable(tokenizer: tokenizers.Tokenizer, why: str) -> None:
    """Known patterns are; what may reach over a space is not, for a reason that is said."""
    found = find_obstacle(json.loads(tokenizer.to_str()))
    assert found.startswith(why) and bool(found) == bool(why)


@pytest.mark.parametrize("alternative", sorted(_ALTERNATIVES))
def test_no_alternative_reaches_over_a_border(alternative: str) -> None:
    """Each known alternative, by itself: what it cuts on both sides of a border is what it cuts of each side alone."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(alternative), "isolated")
    sides = [
        "a",
        "7",
        "?",
        "'",
        "''ll",
        "A\u0301b",
        "12\u4e2d",
        "a \n\r\n  b",
        "!x",
        "\u0301",
        "...\n x",
        "/\n/",
        "\x01",
        "L'S",
    ]
    for left in sides:
        for right in sides:
            whole = {end for _, (_, end) in split.pre_tokenize_str(f"{left} {right}")}
            apart = {end for _, (_, end) in split.pre_tokenize_str(left)}
            apart |= {len(left) + end for _, (_, end) in split.pre_tokenize_str(f" {right}")}
            assert apart - whole <= {len(left)} and whole <= apart, (left, right)


def test_alternatives_are_cut_outside_brackets() -> None:
    """Not inside groups, classes, or after a backslash."""
    assert list(_alternatives(r"(?i:a|b)|[|)]+|\||c")) == ["(?i:a|b)", "[|)]+", r"\|", "c"]


@pytest.mark.parametrize("limit", [2, 100_000])
def test_table_asks_only_for_what_is_new(write, limit: int) -> None:
    """Known words are not encoded again, their rows are the same, and the table is bounded."""
    tokenizer = open_tokenizer(write())
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    asked: list[str] = []

    def counted(encode):
        return lambda text: (asked.append(text), encode(text))[1]

    table = ByteLevelTable(counted(tokenizer._encode_whole), counted(tokenizer._encode_spelled), limit)
    for text in [
        "the fine file",
        "fine the file",
        "the  file",
        "the file ",
        " the",
        "the",
        "\nthe file",
        "the fine file",
    ]:
        ids, ends = table.pieces(text) or pytest.fail(text)
        want = tokenizer._encode_whole(text)
        assert ids.tolist() == want[0].tolist() and ends.tolist() == want[1].tolist()
        assert len(table) <= 2 * (limit + 3)
    if limit > 2:
        asked.clear()
        table.pieces("the file fine file")
        assert not asked
        table.pieces("the new file word")
        assert sorted("".join(asked).split()) == ["new", "word"]


def test_slow_path_is_said_once(write, caplog: pytest.LogCaptureFixture) -> None:
    """A tokenizer without the table says why, once."""
    path = write(byte_level(r"\S+ \S+|\s+"))
    with caplog.at_level(logging.WARNING):
        open_tokenizer(path)
        open_tokenizer(path)
    assert len(caplog.records) == 1 and "without the table of known words" in caplog.text


def test_annotator_with_a_tokenizer_json(write, annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole annotator: raw text and rows of ids have the same labels, those of the words."""
    tokenizer = open_tokenizer(write(), eos_token="<|endoftext|>")
    monkeypatch.setattr(annotator, "tokenizer", tokenizer)
    text = "Marie Curie found radium in 1898."
    (raw,) = annotator.annotate([text])
    (row,) = annotator.annotate_ids([np.append(raw.ids, tokenizer.eos_id)])
    assert row.classes.tolist() == [*raw.classes.tolist(), FactClass.GRAMMATICAL]
    factual = "".join(text[slice(*place)] for place in raw.offsets[raw.classes == FactClass.FACTUAL])
    assert factual.startswith("Marie Curie") and factual.endswith(" 1898")
