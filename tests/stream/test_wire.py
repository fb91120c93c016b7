"""Messages between the pool and workers on other machines: what goes in comes out, and rubbish is an error."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from annotator import AnnotatorSettings, Document, FactClass, LabelledTokens
from lacy_stream.stream.workers import wire
from lacy_stream.stream.workers.frames import pack
from lacy_stream.stream.workers.protocol import Answer

NO_OFFSETS = np.zeros((0, 2), np.int32)


def labelled(ids: list[int]) -> LabelledTokens:
    return LabelledTokens(np.array(ids, np.int32), np.arange(len(ids), dtype=np.uint8) % 3, NO_OFFSETS)


def answer_to(documents: list[Document], results: list[LabelledTokens | str]) -> bytes:
    return wire.encode_answer(Answer(results, 1.5, {"fallbacks": 2.0}, {"a": "spaCy did"}), documents)


@pytest.mark.parametrize(
    "text", ["", "Ada\0 lived", "naïve “quotes” 東京 🙂", "lone \ud800", "two halves \ud83d\ude42", "x\u2028y"]
)
def test_texts_stay_what_they_are(text: str) -> None:
    """Texts and ids of documents keep all their code points, surrogates included."""
    (found,) = wire.decode_documents(wire.encode_documents([Document(text, text, annotate=False)]))
    assert (found.id, found.text, found.annotate, found.ids, found.spans) == (text, text, False, None, None)


@pytest.mark.parametrize("ids", [[], [0, 65_535], [65_536, 2], [1 << 40], [-1, 5]])
def test_rows_of_ids_stay_what_they_are(ids: list[int]) -> None:
    """Ids keep their values, impossible ones too, which the worker must refuse as a local one does."""
    documents = [Document("a", "", np.array(ids, np.int64)), Document("b", "text")]
    first, second = wire.decode_documents(wire.encode_documents(documents))
    assert first.ids is not None and first.ids.tolist() == ids and (second.text, second.ids) == ("text", None)


@pytest.mark.parametrize(
    "spans", ["[[0, 3]]", np.array([[0, 3], [4, 5]]), np.array([0, 3], np.int32), "", np.zeros((0, 2))]
)
def test_spans_stay_what_they_are(spans: str | np.ndarray) -> None:
    """Spans that come with the data keep their form."""
    spans = spans if isinstance(spans, str) else spans.astype(np.int64)
    (found,) = wire.decode_documents(wire.encode_documents([Document("a", "Ada ran", spans=spans)]))
    if isinstance(spans, str):
        assert found.spans == spans
    else:
        np.testing.assert_array_equal(found.spans, spans)


def test_answers_stay_what_they_are() -> None:
    """Labels, error texts and counters of an answer arrive; offsets do not."""
    documents = [Document("a", "x"), Document("b", "x"), Document("c", "", np.array([5, 6, 7]))]
    results: list[LabelledTokens | str] = [labelled([1, 70_000, 3]), "ValueError: \ud800", labelled([5, 6, 7])]
    found = wire.decode_answer(answer_to(documents, results), documents)
    assert found[1:] == (1.5, {"fallbacks": 2.0}, {"a": "spaCy did"}) and found.results[1] == results[1]
    for mine, expected in ((found.results[0], results[0]), (found.results[2], results[2])):
        assert isinstance(mine, LabelledTokens) and isinstance(expected, LabelledTokens)
        np.testing.assert_array_equal(mine.ids, expected.ids)
        np.testing.assert_array_equal(mine.classes, expected.classes)
        assert (mine.ids.dtype, mine.classes.dtype, mine.offsets.shape) == (np.int32, np.uint8, (0, 2))


def test_messages_are_small() -> None:
    """A whole batch and its answer stay below the 100 kB that Ray sends without its object store; labels take 2.25
    bytes a token, and 0.25 where the document has the ids."""
    documents = [Document(str(number), "東京" * 1000) for number in range(16)]
    results: list[LabelledTokens | str] = [labelled([number] * 2000) for number in range(16)]
    assert len(wire.encode_documents(documents)) < 100_000
    assert len(answer_to(documents, results)) < 2.25 * 32_000 + 1_000
    rows = [Document("a", "", np.arange(2000))]
    assert len(wire.encode_documents(rows)) < 4_200 and len(answer_to(rows, [labelled([*range(2000)])])) < 700


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xff\xff\x7f{}",
        pickle.dumps(print),
        pack({}),
        pack({"results": 5}),
        pack({"results": ["a"], "cpu_s": 1, "engine": {}, "fallbacks": {}}),
        pack({"results": [100, 100], "cpu_s": 1, "engine": {}, "fallbacks": {}}, b"x" * 200),
        pack({"results": ["a", "b"], "cpu_s": "x", "engine": {}, "fallbacks": {}}),
        pack({"results": ["a", "b"], "cpu_s": 1, "engine": [], "fallbacks": {}}),
    ],
)
def test_rubbish_is_an_error(message: bytes) -> None:
    """Bytes that are no answer raise a ValueError, and are not unpickled."""
    with pytest.raises(ValueError):
        wire.decode_answer(message, [Document("a", "x"), Document("b", "x")])


def test_damaged_labels_are_an_error() -> None:
    """A flipped bit in the labels, or a class that there is not, is noticed."""
    documents = [Document("a", "x")]
    good = bytearray(answer_to(documents, [labelled([1, 2, 3])]))
    good[-1] ^= 1
    with pytest.raises(ValueError, match="'a' are damaged"):
        wire.decode_answer(bytes(good), documents)
    wrong = LabelledTokens(np.array([1], np.int32), np.array([3], np.uint8), NO_OFFSETS)
    assert 3 not in list(FactClass)
    with pytest.raises(ValueError, match="no fact classes"):
        wire.decode_answer(answer_to(documents, [wrong]), documents)


def test_tokenizer_goes_with_the_settings(tokenizer_path: Path, tmp_path: Path) -> None:
    """The settings that arrive name a copy of the tokenizer, and make an annotator with the same identity."""
    settings = AnnotatorSettings(tokenizer_path, None, "numba", "capitals:capitals", eos_token="</s>")
    found = wire.decode_settings(wire.encode_settings(settings), tmp_path)
    assert (
        Path(found.tokenizer).parent == tmp_path and Path(found.tokenizer).read_bytes() == tokenizer_path.read_bytes()
    )
    assert (found.model, found.engine, found.labeller, found.eos_token) == (None, "numba", "capitals:capitals", "</s>")
    assert found.build().identity == settings.build().identity


def test_files_beside_a_tokenizer_json_go_with_it(tmp_path: Path) -> None:
    """A tokenizer.json arrives with the config files that say how a document ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    vocabulary = {
        letter: number for number, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "here" / "tokenizer.json"))
    (tmp_path / "here" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    settings = AnnotatorSettings(tmp_path / "here", None)
    found = wire.decode_settings(wire.encode_settings(settings), tmp_path / "there").build()
    assert found.eos_id == 256 and found.identity == settings.build().identity


def test_other_versions_are_named(tmp_path: Path) -> None:
    """A machine with another version of the messages says so."""
    with pytest.raises(ValueError, match="of version .*, not 0.0"):
        wire.decode_settings(pack({"version": "0.0"}), tmp_path)
