"""What a label cache keeps, alone and with other threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from label_caches import FINGERPRINT, MB, OTHER, assert_same, child, document, filled, finish, line_of, offsets

from annotator.records import Document, LabelledTokens
from lacy_stream.stream.labels import cache as cache_module
from lacy_stream.stream.labels import codec
from lacy_stream.stream.labels.cache import LabelCache
from lacy_stream.stream.report import Report

# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 1000, 200_000])
def test_round_trip(tmp_path: Path, tokens: int) -> None:
    """Labels of any length come back from the buffer, from the disk, and in another cache object."""
    each, labelled = document(7, tokens)
    cache = LabelCache(tmp_path, FINGERPRINT, 100 * MB)
    assert cache.get(each) is None
    cache.put(each, labelled)
    assert_same(cache.get(each), labelled)
    cache.flush()
    assert_same(cache.get(each), labelled)
    cache.close()
    cache = LabelCache(tmp_path, FINGERPRINT, 100 * MB)
    assert_same(cache.get(Document("another name", each.text)), labelled)
    assert (cache.stats().hits, cache.stats().misses, cache.stats().damaged) == (1, 0, 0)
    cache.close()


def test_large_ids(tmp_path: Path) -> None:
    """Ids of a vocabulary of more than 65,536 pieces come back as they are."""
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    for number, top in enumerate((65_535, 65_536, 200_000)):
        labelled = LabelledTokens(np.array([5, top], np.int32), np.array([1, 2], np.uint8), offsets(2))
        cache.put(Document("", str(number)), labelled)
        assert_same(cache.get(Document("", str(number))), labelled)
    cache.close()


def test_rows_of_ids(tmp_path: Path) -> None:
    """A row of token ids comes back with its ids, of which nothing is stored."""
    _, labelled = document(1, 100_000)
    row = Document("row", "", labelled.ids)
    cache = LabelCache(tmp_path, FINGERPRINT, 10 * MB)
    before = cache.stats().bytes_used
    cache.put(row, labelled)
    cache.flush()
    assert cache.stats().bytes_used - before < 50_000  # classes are 2 bits each
    assert_same(cache.get(Document("row", "", labelled.ids.copy())), labelled)
    cache.close()


def test_annotator_settings_are_part_of_the_key(tmp_path: Path) -> None:
    """The same content with and without annotation, and as text or as ids, are four documents."""
    text = "abcdefgh"
    ids = np.frombuffer(text.encode(), dtype=np.int32)
    documents = [Document("", text, None, flag) for flag in (True, False)]
    documents += [Document("", "", ids, flag) for flag in (True, False)]
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    for number, each in enumerate(documents):
        assert all(cache.get(later) is None for later in documents[number:])
        cache.put(each, document(number, 10 + number)[1])
        cache.flush()
    for number, each in enumerate(documents):
        assert_same(cache.get(each), document(number, 10 + number)[1])
    cache.close()


def test_spans_are_part_of_the_key(tmp_path: Path) -> None:
    """Other spans of the same text, the text without spans, and a text that ends as the spans begin are other
    documents; where nothing is annotated the spans do not matter."""
    text, spans = "Ada wrote.", np.array([[0, 3]], np.int32)
    documents = [
        Document("x", text),
        Document("x", text, spans="[[0, 3]]"),
        Document("x", text, spans="[[0, 4]]"),
        Document("x", text + "[[0, 3]]", spans=""),
        Document("x", text, spans=spans),
        Document("x", text, spans=spans.reshape(-1)),
        Document("x", text, spans=spans.astype(np.int64)),
        Document("x", text, spans=spans + 1),
    ]
    cache = LabelCache(tmp_path, FINGERPRINT, 1 << 30)
    labels = [document(number, 30)[1] for number in range(len(documents))]
    for each, labelled in zip(documents, labels, strict=True):
        assert cache.get(each) is None
        cache.put(each, labelled)
    for each, labelled in zip(documents, labels, strict=True):
        assert_same(cache.get(each), labelled)
    keys = {codec.document_key(Document("x", text, annotate=False, spans=s)) for s in (None, "[[0, 3]]", spans)}
    assert len(keys) == 1
    cache.close()


def test_another_fingerprint_misses(tmp_path: Path) -> None:
    """Labels of another annotator are never served, and come back with their own."""
    filled(tmp_path, 10)
    other = LabelCache(tmp_path, OTHER, MB)
    assert all(other.get(document(number)[0]) is None for number in range(10))
    other.close()
    same = LabelCache(tmp_path, FINGERPRINT, MB)
    assert all(same.get(document(number)[0]) is not None for number in range(10))
    same.close()


@pytest.mark.process
def test_fingerprint_that_shares_the_folder_name(tmp_path: Path) -> None:
    """Of two fingerprints that begin alike, the second does not get the labels of the first: its store is replaced,
    or, while the first is in use, is an error."""
    twin = FINGERPRINT[:16] + "0" * 48
    filled(tmp_path, 10)
    process = child(f"hold({str(tmp_path)!r}, {FINGERPRINT!r})")
    assert line_of(process) == "open"
    with pytest.raises(ValueError, match="to another version or annotator"):
        LabelCache(tmp_path, twin, MB)
    process.kill()
    process.wait()
    cache = LabelCache(tmp_path, twin, MB)
    assert all(cache.get(document(number)[0]) is None for number in range(10))
    with pytest.raises(ValueError, match="already open in this process"):
        LabelCache(tmp_path, FINGERPRINT, MB)
    cache.close()


def test_lone_surrogate_is_not_kept(tmp_path: Path) -> None:
    """A text that cannot be encoded is a miss before and after it is put."""
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    bad = Document("bad", "a \ud800 b")
    assert cache.get(bad) is None
    cache.put(bad, document(1)[1])
    cache.flush()
    assert cache.get(bad) is None
    assert (cache.stats().added, cache.stats().misses) == (0, 2)
    cache.close()


def test_document_is_written_once(tmp_path: Path) -> None:
    """What is on disk, or in the buffer, is not written again."""
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    for _ in range(3):
        cache.put(*document(1, 1000))
        cache.put(*document(1, 1000))
        cache.flush()
    assert cache.stats().added == 1
    cache.close()


def test_puts_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer is written when it is large enough, or with the first put after the time is over."""
    monkeypatch.setattr(cache_module, "COMMIT_BYTES", 10_000)
    monkeypatch.setattr(cache_module, "COMMIT_S", 1e9)
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    added = []
    for number in range(10):
        cache.put(*document(number, 1000))
        added.append(cache.stats().added)
    assert added == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10]
    cache.put(*document(10, 10))
    assert cache.stats().added == 10
    monkeypatch.setattr(cache_module, "COMMIT_S", 0)
    cache.put(*document(11, 10))
    assert cache.stats().added == 12
    cache.close()


def test_closed_cache(tmp_path: Path) -> None:
    """After close every get misses, and nothing fails: threads of a pool that ends may still call."""
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    cache.put(*document(1))
    cache.close()
    cache.close()
    cache.put(*document(2))
    cache.flush()
    assert cache.get(document(1)[0]) is None
    assert cache.stats().added == 1


@pytest.mark.parametrize("arguments", [("../../etc/passwd", MB), ("abc", MB), (FINGERPRINT, 0)])
def test_impossible_arguments(tmp_path: Path, arguments: tuple[str, int]) -> None:
    """An invalid fingerprint, and a limit without room, are errors before anything is made."""
    with pytest.raises(ValueError):
        LabelCache(tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.process
def test_imports_stay_light() -> None:
    """The cache brings in neither torch nor composer nor Streaming nor spaCy."""
    code = "import sys, lacy_stream.stream.labels.cache; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"torch", "composer", "streaming", "spacy", "sentencepiece"}


# --- several users ------------------------------------------------------------------------------------------------


def test_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that put and get the same documents at once see whole labels only, and all are written once."""
    monkeypatch.setattr(cache_module, "COMMIT_BYTES", 20_000)
    cache = LabelCache(tmp_path, FINGERPRINT, 100 * MB)
    documents = [document(number) for number in range(300)]

    def work(thread: int) -> None:
        for each, labelled in documents[thread * 20 :] + documents[: thread * 20]:
            if cache.get(each) is None:
                cache.put(each, labelled)
            assert_same(cache.get(each), labelled)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    cache.flush()
    stats = cache.stats()
    assert (stats.added, stats.damaged) == (300, 0)
    assert stats.hits + stats.misses == 2 * 8 * 300
    cache.close()


@pytest.mark.process
def test_close_while_threads_read(tmp_path: Path) -> None:
    """Closing waits for the threads that read: the map that they read from does not vanish under them."""
    filled(tmp_path, 20, tokens=100_000)
    assert finish(child(f"close_while_threads_read({str(tmp_path)!r})")) == "closed"


def test_two_caches_of_a_process_share_a_store(tmp_path: Path) -> None:
    """Two caches on one folder (two pools in a process) see each other's labels, and outlive each other."""
    first, second = (LabelCache(path, FINGERPRINT, MB) for path in (tmp_path, f"{tmp_path}/./"))
    first.put(*document(1))
    first.close()
    assert_same(second.get(document(1)[0]), document(1)[1])
    second.put(*document(2))
    second.close()
    third = LabelCache(tmp_path, FINGERPRINT, MB)
    assert_same(third.get(document(2)[0]), document(2)[1])
    third.close()


@pytest.mark.process
def test_two_processes(tmp_path: Path) -> None:
    """Two processes that write and read one folder at once each get what the other has written."""
    processes = [child(f"write_and_read({str(tmp_path)!r}, {part})") for part in (0, 1)]
    for process in processes:
        finish(process)
    cache = LabelCache(tmp_path, FINGERPRINT, 1 << 30)
    for number in range(400):
        assert_same(cache.get(document(number)[0]), document(number)[1])
    cache.close()


@pytest.mark.process
def test_killed_while_writing(tmp_path: Path) -> None:
    """A process that is killed while it writes, again and again, leaves a store that opens and holds whole labels:
    all that was flushed, and of the rest what its last transactions wrote."""
    for attempt in range(3):
        process = child(f"write_for_ever({str(tmp_path)!r}, {attempt * 1_000_000})")
        assert line_of(process) == "writing"
        time.sleep(0.3 + 0.1 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        report = Report()
        cache = LabelCache(tmp_path, FINGERPRINT, 1 << 30, report)
        for first in range(0, (attempt + 1) * 1_000_000, 1_000_000):
            number = first
            while (found := cache.get(document(number)[0])) is not None:
                assert_same(found, document(number)[1])
                number += 1
            assert number > first + 100
            assert all(cache.get(document(later)[0]) is None for later in range(number, number + 300))
        cache.put(*document(5_000_000 + attempt))
        cache.flush()
        assert cache.stats().added == 1 and report.counts()["cache_entry_damaged"] == 0
        cache.close()
