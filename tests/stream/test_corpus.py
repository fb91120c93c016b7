"""Documents in canonical order, from one or several real MDS folders, of text or of token ids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from annotator.spans import read_spans
from lacy_stream.stream.corpus import Corpus, Order, Source, open_corpus
from lacy_stream.stream.shards import DataError

DOCUMENTS = 57


def write(folder: Path, rows: list[dict], columns: dict[str, str], size_limit: int = 1000) -> Path:
    with MDSWriter(out=str(folder), columns=columns, size_limit=size_limit) as writer:
        for row in rows:
            writer.write(row)
    return folder


def texts(folder: Path, count: int = DOCUMENTS, prefix: str = "doc") -> Path:
    rows = [{"id": f"{prefix}-{n}", "text": f"Title {n}\n\n" + f"word{n} " * 20} for n in range(count)]
    return write(folder, rows, {"id": "str", "text": "str"})


def ids(corpus: Corpus, epoch: int = 0) -> list[str]:
    return [corpus.document(epoch * len(corpus) + place).id for place in range(len(corpus))]


def test_each_document_once_an_epoch(tmp_path: Path) -> None:
    """Unshuffled, the order is the index's; shuffled, every epoch holds each document once, in its own order."""
    folder = texts(tmp_path / "data")
    expected = [f"doc-{number}" for number in range(DOCUMENTS)]
    plain = open_corpus(folder)
    assert ids(plain) == ids(plain, 3) == expected
    shuffled = open_corpus(folder, shuffle=True, shuffle_seed=1)
    first, second = ids(shuffled, 0), ids(shuffled, 1)
    assert sorted(first) == sorted(second) == sorted(expected)
    assert len({tuple(first), tuple(second), tuple(expected)}) == 3
    assert shuffled.document(3).text.startswith(f"Title {first[3].removeprefix('doc-')}\n\n")


def test_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """The same seed gives the same order in another object, and another seed another order."""
    folder = texts(tmp_path / "data")
    one, same, other = (open_corpus(folder, shuffle=True, shuffle_seed=seed) for seed in (1, 1, 2))
    assert ids(one) == ids(same) != ids(other)
    assert one.identity == same.identity != other.identity


def test_documents_are_found_in_any_order(tmp_path: Path) -> None:
    """Lanes cross the border of an epoch one by one: going back and forth between epochs gives the same documents."""
    corpus = open_corpus(texts(tmp_path / "data"), shuffle=True)
    epochs = [ids(corpus, epoch) for epoch in range(4)]
    for epoch in (3, 0, 2, 1, 3):
        assert corpus.document(epoch * DOCUMENTS + 7).id == epochs[epoch][7]


def test_data_without_ids_and_with_another_text_column(tmp_path: Path) -> None:
    """A text-only data set made by others works: ids are sample numbers, the column name is a setting."""
    folder = write(tmp_path / "data", [{"content": "hello"}], {"content": "str"})
    document = open_corpus(folder, text_column="content").document(0)
    assert (document.id, document.text, document.ids) == ("0", "hello", None)
    with pytest.raises(DataError, match=r"no column 'text'; it has \['content'\]"):
        open_corpus(folder)


def test_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A text column that holds numbers is an error that names it."""
    folder = write(tmp_path / "data", [{"text": 5}], {"text": "int"})
    with pytest.raises(DataError, match="column 'text' of .* is int, not text"):
        open_corpus(folder).document(0)


@pytest.mark.parametrize(
    ("encoding", "options"),
    [("bytes", {}), ("bytes", {"token_encoding_type": "uint16"}), ("ndarray:int32", {}), ("ndarray:uint16:5", {})],
)
def test_token_ids(tmp_path: Path, encoding: str, options: dict) -> None:
    """LLM Foundry's pre-tokenised rows, in bytes of any integer type or as arrays, come back as the same ids."""
    values = [[1, 2, 31999, 7, 2], [9, 8, 7, 6, 5]]
    dtype = options.get("token_encoding_type", "int64")
    if encoding == "bytes":
        rows = [{"tokens": np.array(row, dtype).tobytes()} for row in values]
    else:
        rows = [{"tokens": np.array(row, encoding.split(":")[1])} for row in values]
    folder = write(tmp_path / "data", rows, {"tokens": encoding})
    corpus = open_corpus(folder, tokens_column="tokens", **options)
    documents = [corpus.document(place) for place in range(2)]
    assert [document.ids.tolist() for document in documents] == values
    assert documents[0].text == ""
    with pytest.raises(DataError, match="no column 'text'.*set tokens_column: tokens"):
        open_corpus(folder)


def test_wrong_token_encoding_is_refused(tmp_path: Path) -> None:
    """Bytes that are no whole number of ids, an empty row, a type that is no integer, and a text are refused."""
    rows = [{"tokens": b"\0" * 12, "text": "x"}, {"tokens": b"", "text": "x"}]
    folder = write(tmp_path / "data", rows, {"tokens": "bytes", "text": "str"})
    corpus = open_corpus(folder, tokens_column="tokens")
    with pytest.raises(DataError, match="12 bytes.*token_encoding_type"):
        corpus.document(0)
    with pytest.raises(DataError, match="a row without token ids"):
        corpus.document(1)
    for kind in ("float32", "nonsense"):
        with pytest.raises(DataError, match=f"token_encoding_type is '{kind}'"):
            open_corpus(folder, tokens_column="tokens", token_encoding_type=kind)
    with pytest.raises(DataError, match="is str, not token ids"):
        open_corpus(folder, tokens_column="text").document(0)


@pytest.mark.parametrize("encoding", ["str", "json", "ndarray:int32", "ndarray:uint16:1,2"])
def test_spans(tmp_path: Path, encoding: str) -> None:
    """Spans in a column of text, JSON or arrays go with their document, and the identity names the column."""
    row = {"text": "Ada wrote.", "judge": "[[0, 3]]"}
    if encoding != "str":
        row["judge"] = [[0, 3]] if encoding == "json" else np.array([[0, 3]], encoding.split(":")[1])
    folder = write(tmp_path / "data", [row], {"text": "str", "judge": encoding})
    corpus, plain = open_corpus(folder, spans_column="judge"), open_corpus(folder)
    document = corpus.document(0)
    assert document.text == "Ada wrote." and read_spans(document.spans, document.text).tolist() == [[0, 3]]
    assert plain.document(0).spans is None
    assert "spans (rule 1) in column judge" in corpus.identity["data"] and corpus.identity != plain.identity


def test_spans_that_do_not_fit_their_text_are_left_to_the_pool(tmp_path: Path) -> None:
    """One bad row must not end the run: it comes through as it is, and is found where the spans are used."""
    folder = write(tmp_path / "data", [{"text": "Ada", "spans": "[[0, 99]]"}], {"text": "str", "spans": "str"})
    assert open_corpus(folder, spans_column="spans").document(0).spans == "[[0, 99]]"


def test_spans_column_that_cannot_be_right(tmp_path: Path) -> None:
    """A column that is missing or of another kind, spans of token ids, and spans of a stream without labels."""
    rows = [{"text": "a", "n": 5, "tokens": b"\0" * 8}]
    folder = write(tmp_path / "data", rows, {"text": "str", "n": "int", "tokens": "bytes"})
    with pytest.raises(DataError, match=r"no column 'spans'; it has \['n', 'text', 'tokens'\].*--spans-column"):
        open_corpus(folder, spans_column="spans")
    with pytest.raises(DataError, match="column 'n' of .* is int, neither JSON nor array"):
        open_corpus(folder, spans_column="n").document(0)
    with pytest.raises(ValueError, match="tokens_column has none"):
        open_corpus(folder, spans_column="spans", tokens_column="tokens")
    with pytest.raises(ValueError, match="annotate: false wants none"):
        open_corpus(folder, spans_column="n", annotate=False)


def mixture(tmp_path: Path, weights: dict[str, dict], **options) -> Corpus:
    sizes = {"a": 40, "b": 10, "c": 25}
    sources = {
        name: Source(local=texts(tmp_path / name, sizes[name], name), **weight) for name, weight in weights.items()
    }
    return Corpus(sources, Order("py1e", 1), **options)


def names(corpus: Corpus, epoch: int = 0) -> Counter[str]:
    return Counter(name.split("/")[0] for name in ids(corpus, epoch))


def test_unweighted_streams_give_all_they_have(tmp_path: Path) -> None:
    """Without weights an epoch is every document of every stream once, mixed, with the stream's name in its id."""
    corpus = mixture(tmp_path, {"a": {}, "b": {}})
    first = ids(corpus)
    assert len(set(first)) == 50 and "a/a-0" in first and "b/b-9" in first
    assert len({name[0] for name in first[:25]}) == len({name[0] for name in first[25:]}) == 2, "they are mixed"
    assert ids(corpus, 1) != first


def test_proportions(tmp_path: Path) -> None:
    """Proportions are shares of the epoch, whose size is a setting: whole repeats, and a rest that is drawn again."""
    corpus = mixture(tmp_path, {"a": {"proportion": 0.5}, "b": {"proportion": 0.5}}, epoch_size=60)
    assert names(corpus) == names(corpus, 1) == {"a": 30, "b": 30}
    counts = [Counter(ids(corpus, epoch)) for epoch in (0, 1)]
    assert all(count[f"b/b-{n}"] == 3 for count in counts for n in range(10)), "three whole repeats"
    drawn = [{name for name in count if name.startswith("a/")} for count in counts]
    assert len(drawn[0]) == len(drawn[1]) == 30 and drawn[0] != drawn[1]


def test_repeat_and_choose(tmp_path: Path) -> None:
    """`repeat` is a multiple of a stream's size, `choose` a number of documents; 0 leaves a stream out."""
    corpus = mixture(tmp_path, {"a": {"repeat": 0.5}, "b": {"choose": 13}, "c": {"repeat": 0}})
    assert names(corpus) == {"a": 20, "b": 13} and len(corpus) == 33
    assert sorted(Counter(ids(corpus)).values()) == [1] * (20 + 7) + [2] * 3


def test_stream_that_is_not_annotated(tmp_path: Path) -> None:
    """Each document knows whether its stream is to be annotated, and the identity says so."""
    corpus = mixture(tmp_path, {"a": {}, "b": {"annotate": False}})
    documents = [corpus.document(place) for place in range(50)]
    assert {document.id[0]: document.annotate for document in documents} == {"a": True, "b": False}
    assert "not annotated" in corpus.identity["data"]["b"] and "not annotated" not in corpus.identity["data"]["a"]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"a": {"proportion": 1.0}, "b": {"repeat": 1.0}}, {}, "weights of the streams a, b"),
        ({"a": {"choose": 0}}, {}, "without a document"),
        ({"a": {"choose": 3}}, {"epoch_size": 9}, "weights of the streams a"),
        ({}, {}, "at least one stream"),
    ],
)
def test_weights_that_do_not_go_together(tmp_path: Path, weights: dict, options: dict, message: str) -> None:
    """Mixed kinds of weights, an empty epoch, and no stream at all are errors that name the streams."""
    with pytest.raises(DataError, match=message):
        mixture(tmp_path, weights, **options)


def test_weights_that_exclude_one_another() -> None:
    """A source has one weight at most."""
    with pytest.raises(ValueError, match="proportion and choose exclude one another"):
        Source(local="a", proportion=0.5, choose=3)


def test_settings_of_a_stream_beside_several(tmp_path: Path) -> None:
    """A source's setting beside several sources is refused: nobody could tell which one it is for."""
    with pytest.raises(ValueError, match="split: set it for each of the streams a"):
        open_corpus({"a": Source(local=texts(tmp_path / "a", 3))}, split="train")
