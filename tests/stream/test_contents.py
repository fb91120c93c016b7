"""Streams in which there is nothing to learn, and rows of token ids that are not what they are taken for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from workers import ThreadWorkers

from annotator import AnnotatorSettings
from lacy_stream.stream.batches import annotated_dataloader
from lacy_stream.stream.mds_index import DataError
from lacy_stream.stream.pool import AnnotationPool

EOS, TEXT = 2, 3000  # ids of </s>, and of a piece that spells letters


@pytest.fixture
def pool(tokenizer_path: Path) -> Iterator[AnnotationPool]:
    """Tokenises only."""
    settings = AnnotatorSettings(tokenizer_path, model=None)
    with AnnotationPool(settings, num_workers=1, start_worker=ThreadWorkers()) as pool:
        yield pool


def write(folder: Path, texts: list[str]) -> Path:
    with MDSWriter(out=str(folder), columns={"id": "str", "text": "str"}) as writer:
        for number, text in enumerate(texts):
            writer.write({"id": f"doc-{number}", "text": text})
    return folder


def write_ids(folder: Path, rows: list[list[int]], dtype: str = "int64") -> Path:
    with MDSWriter(out=str(folder), columns={"tokens": "bytes"}) as writer:
        for row in rows:
            writer.write({"tokens": np.array(row, dtype).tobytes()})
    return folder


def batches(folder: Path, pool: AnnotationPool, count: int, **options) -> list[dict]:
    settings = {"batch_size": 4, "max_seq_len": 16, "lanes": 4}
    return list(islice(annotated_dataloader(folder, pool, **(settings | options)), count))


@pytest.mark.parametrize("texts", [[""] * 5, [" ", "\n\n", "\t \n"]], ids=["empty", "white space"])
@pytest.mark.parametrize("repeat", [True, False])
def test_corpus_without_text(tmp_path: Path, pool: AnnotationPool, texts: list[str], repeat: bool) -> None:
    """A corpus of empty documents is an error that names some of them, in training and in validation: its rows would
    hold end-of-document tokens, or white space, alone."""
    folder = write(tmp_path / "data", texts)
    with pytest.raises(
        DataError, match="no text, so there is nothing to learn from|no document of the stream has text"
    ):
        batches(folder, pool, 100, repeat=repeat)


def test_empty_documents_among_others_do_no_harm(tmp_path: Path, pool: AnnotationPool) -> None:
    """Where any document has text, the stream continues, also in the lanes that have empty ones alone."""
    folder = write(tmp_path / "data", ["", "", "The only text of this corpus.", ""])
    assert len(batches(folder, pool, 60)) == 60
    assert len(batches(folder, pool, 60, repeat=False)) == 1


@pytest.mark.parametrize("repeat", [True, False])
def test_rows_that_all_fail(
    tmp_path: Path, pool: AnnotationPool, monkeypatch: pytest.MonkeyPatch, repeat: bool
) -> None:
    """A small data set of which no row can be read is an error with the reason, after a few tries of each row, and only
    one more annotator is made for all of them."""
    made = []
    build = AnnotatorSettings.build
    monkeypatch.setattr(AnnotatorSettings, "build", lambda settings: made.append(settings) or build(settings))
    folder = write_ids(tmp_path / "data", [[50_000 + number, 7, 40_000, 9] for number in range(6)])
    with pytest.raises(DataError, match="nothing to learn from.*token id 5000. at position 0.*ids 0 to 31999"):
        batches(folder, pool, 3, tokens_column="tokens", repeat=repeat)
    # Each of 4 lanes has tried 6 of the documents at most, and has 16 more in the pool, for 4 rows of 16 tokens.
    assert pool.report.counts()["document_skipped"] <= 4 * (6 + 16)
    assert len(made) <= 2, "the worker's, and the one that is tried after it"


def test_rows_of_one_control_id(tmp_path: Path, pool: AnnotationPool) -> None:
    """Rows that hold the end-of-document id alone are no text."""
    folder = write_ids(tmp_path / "data", [[EOS] * 16] * 5)
    with pytest.raises(DataError, match="the last 64 rows of the stream have no text"):
        batches(folder, pool, 100, tokens_column="tokens")


@pytest.mark.parametrize(
    ("written", "read"),
    [("int64", "int32"), ("int64", "uint32"), ("int64", "uint16"), ("int64", "int16"), ("int32", "uint16")],
)
@pytest.mark.parametrize("padding", [0, -100])
def test_ids_read_in_a_narrower_type(
    tmp_path: Path, pool: AnnotationPool, written: str, read: str, padding: int
) -> None:
    """Each id would be followed by one or three 0: the first row says in which type it was written."""
    folder = write_ids(tmp_path / "data", [[*range(TEXT, TEXT + 12), *[padding] * 4]] * 5, written)
    count = 16 * np.dtype(written).itemsize // np.dtype(read).itemsize
    message = f"a row of {count} ids of type {read}.*as 16 ids of type {written}. Set token_encoding_type: {written}"
    with pytest.raises(DataError, match=message):
        batches(folder, pool, 1, tokens_column="tokens", token_encoding_type=read)


@pytest.mark.parametrize(("written", "read"), [("int32", "int64"), ("uint16", "int64"), ("uint16", "int32")])
def test_ids_read_in_a_wider_type(tmp_path: Path, pool: AnnotationPool, written: str, read: str) -> None:
    """Two or four ids would be one number that no tokenizer has: the reason names the type that fits."""
    folder = write_ids(tmp_path / "data", [list(range(TEXT, TEXT + 16))] * 5, written)
    with pytest.raises(DataError, match=f"read as {read}. Set token_encoding_type: {written}"):
        batches(folder, pool, 1, tokens_column="tokens", token_encoding_type=read)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint32", "uint16"])
def test_right_type_is_not_suspected(tmp_path: Path, pool: AnnotationPool, dtype: str) -> None:
    """Rows with unknown pieces, of one id, and padded with 0, are read in the type that is right for them."""
    rows = [[TEXT, 0] * 4 + [TEXT] * 8, [TEXT] + [0] * 15, list(range(TEXT, TEXT + 16))]
    folder = write_ids(tmp_path / "data", rows, dtype)
    assert batches(folder, pool, 2, tokens_column="tokens", token_encoding_type=dtype)


def test_rows_without_separators_are_counted(
    tmp_path: Path, pool: AnnotationPool, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of token ids without a control id are counted; where none of the first hundred has one, the log says so."""
    with_end = [[TEXT] * 7 + [EOS] + [TEXT] * 8]
    folder = write_ids(tmp_path / "data", [[TEXT] * 16] * 3 + with_end)
    loader = annotated_dataloader(folder, pool, batch_size=4, max_seq_len=16, lanes=4, tokens_column="tokens")
    list(islice(loader, 10))
    stats = loader.dataset.stats()
    assert stats.rows_of_ids >= 40 and stats.unseparated_rows / stats.rows_of_ids == pytest.approx(0.75, abs=0.05)
    assert "control token" not in caplog.text
    folder = write_ids(tmp_path / "unseparated", [[TEXT] * 16] * 3)
    batches(folder, pool, 40, tokens_column="tokens")
    assert caplog.text.count("none of the first 100 rows of token ids has a control token") == 1
