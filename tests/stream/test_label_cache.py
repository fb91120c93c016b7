"""The label cache, with real processes, signals, full disks and damaged files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest

from annotator.records import Document, LabelledTokens
from lacy_stream.stream import label_cache
from lacy_stream.stream.label_cache import LabelCache
from lacy_stream.stream.report import Report

FINGERPRINT, OTHER, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
MB = 1 << 20


def document(number: int, tokens: int | None = None) -> tuple[Document, LabelledTokens]:
    """A document and its labels, which follow from its number (and length)."""
    generator = np.random.default_rng(number)
    tokens = int(generator.integers(0, 400)) if tokens is None else tokens
    ids = generator.integers(0, 32000, tokens, dtype=np.int32)
    classes = generator.integers(0, 3, tokens, dtype=np.uint8)
    return Document(f"doc-{number}", f"text {number} of {tokens}"), LabelledTokens(ids, classes, _offsets(tokens))


def _offsets(tokens: int) -> np.ndarray:
    ends = np.arange(1, tokens + 1, dtype=np.int32)
    return np.stack([ends - 1, ends], axis=1)


def assert_same(found: LabelledTokens | None, expected: LabelledTokens) -> None:
    assert found is not None
    assert (found.ids.dtype, found.classes.dtype) == (np.int32, np.uint8)
    assert (found.offsets.dtype, found.offsets.shape) == (np.int32, (0, 2))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.classes, expected.classes)


def data_file(folder: Path, fingerprint: str = FINGERPRINT) -> Path:
    return folder / fingerprint[:16] / "data.mdb"


def filled(folder: Path, count: int, tokens: int | None = None, fingerprint: str = FINGERPRINT) -> None:
    """A folder whose store holds the documents 0 to count - 1."""
    cache = LabelCache(folder, fingerprint, 1 << 30)
    for number in range(count):
        cache.put(*document(number, tokens))
    cache.close()


# --- what other processes do --------------------------------------------------------------------------------------


def child(call: str, *wrapper: str) -> subprocess.Popen[str]:
    """Start a process that calls a function of this module."""
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    code = f"import sys; sys.path[:0] = {folders!r}; import test_label_cache as t; t.{call}"
    command = [*wrapper, sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> str:
    """Its output, once it has ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output.strip()


def write_for_ever(folder: str, first: int) -> None:
    label_cache.COMMIT_BYTES = 20_000
    cache = LabelCache(folder, FINGERPRINT, 1 << 30)
    for number in range(first, 1 << 30):
        cache.put(*document(number))
        if number == first + 100:
            cache.flush()
            print("writing", flush=True)


def write_and_read(folder: str, part: int) -> None:
    """Write every other document, one after the other, and read those of a process that writes the rest."""
    label_cache.COMMIT_BYTES = 5_000
    cache = LabelCache(folder, FINGERPRINT, 1 << 30)
    for number in range(part, 400, 2):
        cache.put(*document(number))
        other = document(number ^ 1)
        cache.get(other[0])
    cache.flush()
    deadline = time.monotonic() + 240
    for number in range(400):
        expected = document(number)
        while (found := cache.get(expected[0])) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert_same(found, expected[1])
    assert cache.stats().damaged == 0
    cache.close()


def close_while_threads_read(folder: str) -> None:
    """Close a cache while four threads are held up in the middle of a value."""
    cache = LabelCache(folder, FINGERPRINT, 1 << 30)
    reading, decoded = threading.Barrier(5), label_cache._decoded

    def slowly(key: bytes, value: memoryview, document: Document) -> LabelledTokens | None:
        reading.wait()
        time.sleep(0.5)
        return decoded(key, value, document)

    label_cache._decoded = slowly
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(cache.get, document(number, 100_000)[0]) for number in range(4)]
        reading.wait()
        cache.close()
        for number in range(4):
            assert_same(found[number].result(), document(number, 100_000)[1])
    print("closed")


def hold(folder: str, fingerprint: str) -> None:
    cache = LabelCache(folder, fingerprint, 1 << 30)
    print("open", flush=True)
    sys.stdin.read()
    cache.close()


def fill_the_disk(folder: str) -> None:
    """Put documents until the disk is full, and go on."""
    label_cache.COMMIT_BYTES = 100_000
    report = Report()
    cache = LabelCache(folder, FINGERPRINT, 1 << 30, report)
    documents = [document(number, 1000) for number in range(2000)]
    for each in documents:
        cache.put(*each)
    cache.flush()
    stats = cache.stats()
    assert stats.full and report.counts()["cache_full"] == 1, stats
    assert 200 < stats.added < 900 and stats.bytes_used <= 2 * MB, stats
    found = [cache.get(each[0]) for each in documents]
    assert sum(each is not None for each in found) == stats.added
    cache.close()
    again = LabelCache(folder, FINGERPRINT, 1 << 30)  # what a restarted run does
    for each, labelled in zip(documents, found, strict=True):
        if labelled is not None:
            assert_same(again.get(each[0]), each[1])
    print(report.counts())


def open_or_say_why(folder: str) -> None:
    try:
        LabelCache(folder, FINGERPRINT, MB)
    except ValueError as error:
        print(error)


def read_and_write_again(folder: str) -> None:
    """Read what can be read of a store, annotate the rest anew, and print how much was whole and damaged."""
    report = Report()
    cache = LabelCache(folder, FINGERPRINT, 1 << 30, report)
    for number in range(300):
        each = document(number)
        found = cache.get(each[0])
        if found is None:
            cache.put(*each)
        else:
            assert_same(found, each[1])
    cache.close()
    print(cache.stats().hits, report.counts()["cache_entry_damaged"])


def mounted(folder: Path, options: str) -> tuple[str, ...]:
    """Command that runs the rest with a file system of its own on a folder; skips where that is not allowed."""
    mount = f'mount -t tmpfs -o {options} none {folder} && exec "$@"'
    command = ("unshare", "-m", "sh", "-c", mount, "sh")
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if allowed.returncode:
        pytest.skip(f"may not mount a file system: {allowed.stderr.strip()}")
    return command


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
        labelled = LabelledTokens(np.array([5, top], np.int32), np.array([1, 2], np.uint8), _offsets(2))
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
    keys = {label_cache._key(Document("x", text, annotate=False, spans=s)) for s in (None, "[[0, 3]]", spans)}
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
    """Of two fingerprints that begin alike, the second does not get the labels of the first: its store is made anew,
    or, while the first is in use, is an error."""
    twin = FINGERPRINT[:16] + "0" * 48
    filled(tmp_path, 10)
    process = child(f"hold({str(tmp_path)!r}, {FINGERPRINT!r})")
    assert line_of(process) == "open"
    with pytest.raises(ValueError, match="of another version or annotator"):
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
    monkeypatch.setattr(label_cache, "COMMIT_BYTES", 10_000)
    monkeypatch.setattr(label_cache, "COMMIT_S", 1e9)
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    added = []
    for number in range(10):
        cache.put(*document(number, 1000))
        added.append(cache.stats().added)
    assert added == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10]
    cache.put(*document(10, 10))
    assert cache.stats().added == 10
    monkeypatch.setattr(label_cache, "COMMIT_S", 0)
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
    """A fingerprint that is none, and a limit without room, are errors before anything is made."""
    with pytest.raises(ValueError):
        LabelCache(tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.process
def test_imports_stay_light() -> None:
    """The cache brings in neither torch nor composer nor Streaming nor spaCy."""
    code = "import sys, lacy_stream.stream.label_cache; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"torch", "composer", "streaming", "spacy", "sentencepiece"}


# --- several users ------------------------------------------------------------------------------------------------


def test_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that put and get the same documents at once see whole labels only, and all are written once."""
    monkeypatch.setattr(label_cache, "COMMIT_BYTES", 20_000)
    cache = LabelCache(tmp_path, FINGERPRINT, 100 * MB)
    documents = [document(number) for number in range(500)]

    def work(thread: int) -> None:
        for each, labelled in documents[thread * 20 :] + documents[: thread * 20]:
            if cache.get(each) is None:
                cache.put(each, labelled)
            assert_same(cache.get(each), labelled)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    cache.flush()
    stats = cache.stats()
    assert (stats.added, stats.damaged) == (500, 0)
    assert stats.hits + stats.misses == 2 * 16 * 500
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


# --- limits -------------------------------------------------------------------------------------------------------


def test_size_limit(tmp_path: Path) -> None:
    """A full cache stops adding, says so once, stays within its limit on disk, and is read on."""
    report = Report()
    limit = 2 * MB
    cache = LabelCache(tmp_path, FINGERPRINT, limit, report)
    documents = [document(number, 500) for number in range(4000)]
    for each in documents:
        cache.put(*each)
    cache.flush()
    stats = cache.stats()
    assert stats.full and report.counts()["cache_full"] == 1
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert stats.bytes_used == on_disk
    assert 0.6 * limit < on_disk <= limit
    found = [cache.get(each) for each, _ in documents]
    assert 0 < sum(labelled is not None for labelled in found) == stats.added < 4000
    for (_, expected), labelled in zip(documents, found, strict=True):
        if labelled is not None:
            assert_same(labelled, expected)
    cache.close()


@pytest.mark.process
def test_idle_stores_of_other_annotators_make_room(tmp_path: Path) -> None:
    """When a cache is opened in a folder above its limit, stores of other fingerprints go, the least recently used
    first and no more than needed; but none that a living process has open, until it is dead."""
    for fingerprint in (OTHER, THIRD):
        filled(tmp_path, 400, tokens=1000, fingerprint=fingerprint)  # 1 MB each
        time.sleep(0.05)
    process = child(f"hold({str(tmp_path)!r}, {OTHER!r})")  # now THIRD is the least recently used
    assert line_of(process) == "open"
    LabelCache(tmp_path, FINGERPRINT, 10 * MB).close()
    assert data_file(tmp_path, OTHER).exists() and data_file(tmp_path, THIRD).exists()
    LabelCache(tmp_path, FINGERPRINT, 3 * MB // 2).close()
    assert data_file(tmp_path, OTHER).exists() and not data_file(tmp_path, THIRD).exists()
    LabelCache(tmp_path, FINGERPRINT, MB // 2).close()
    assert data_file(tmp_path, OTHER).exists()
    process.kill()
    process.wait()
    LabelCache(tmp_path, FINGERPRINT, MB // 2).close()
    assert not data_file(tmp_path, OTHER).exists() and data_file(tmp_path, FINGERPRINT).exists()


def test_least_recently_used_store_goes_first(tmp_path: Path) -> None:
    """Use is what counts, not writing: a store that was only read is newer than one that was written before."""
    for fingerprint in (OTHER, THIRD):
        filled(tmp_path, 400, tokens=1000, fingerprint=fingerprint)
        time.sleep(0.05)
    reader = LabelCache(tmp_path, OTHER, 10 * MB)
    assert reader.get(document(0, 1000)[0]) is not None
    reader.close()
    LabelCache(tmp_path, FINGERPRINT, 3 * MB // 2).close()
    assert data_file(tmp_path, OTHER).exists() and not data_file(tmp_path, THIRD).exists()


def test_full_cache_takes_the_place_of_idle_stores(tmp_path: Path) -> None:
    """A store that grows to the limit evicts idle ones of other annotators before it stops adding, and never one
    that the same process has open."""
    filled(tmp_path, 400, tokens=1000, fingerprint=OTHER)
    filled(tmp_path, 10, tokens=1000, fingerprint=THIRD)
    open_one = LabelCache(tmp_path, THIRD, 10 * MB)
    report = Report()
    cache = LabelCache(tmp_path, FINGERPRINT, 2 * MB, report)
    assert data_file(tmp_path, OTHER).exists()
    for number in range(500):
        cache.put(*document(number, 1000))
    cache.flush()
    assert not data_file(tmp_path, OTHER).exists()
    assert report.counts()["cache_full"] == 0 and cache.stats().added == 500
    cache.close()
    assert_same(open_one.get(document(3, 1000)[0]), document(3, 1000)[1])
    open_one.close()


def test_nothing_else_in_the_folder_is_removed(tmp_path: Path) -> None:
    """Files and folders that are no stores stay, whatever the limit."""
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "0123456789abcdef" / "thesis.tex").write_text("x" * MB)
    (tmp_path / "notes.removed").mkdir()
    LabelCache(tmp_path, FINGERPRINT, MB // 2).close()
    assert (tmp_path / "0123456789abcdef" / "thesis.tex").exists() and (tmp_path / "notes.removed").exists()


@pytest.mark.process
def test_disk_full(tmp_path: Path) -> None:
    """On a disk of 2 MB the cache stops adding, says so once, and what it has is read on, also by the next run."""
    output = finish(child(f"fill_the_disk({str(tmp_path)!r})", *mounted(tmp_path, "size=2m")))
    assert "'cache_full': 1" in output and "'cache_entry_damaged': 0" in output


@pytest.mark.process
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A read-only file system, and a file in the folder's place, are errors at start that name the folder."""
    wrapper = mounted(tmp_path, "size=1m,ro")
    output = finish(child(f"open_or_say_why({str(tmp_path)!r})", *wrapper))
    assert str(tmp_path) in output and "Read-only file system" in output
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{tmp_path}/file cannot be used"):
        LabelCache(tmp_path / "file", FINGERPRINT, MB)


# --- damage -------------------------------------------------------------------------------------------------------


def test_damaged_value(tmp_path: Path) -> None:
    """A bit that flips in a value makes it a miss with an event; its neighbours are served, and once the document is
    annotated anew it is whole again."""
    filled(tmp_path, 50, tokens=1000)
    raw = bytearray(data_file(tmp_path).read_bytes())
    place = raw.find(document(20, 1000)[1].ids.astype("<u2").tobytes())
    assert place > 0
    raw[place + 700] ^= 4
    data_file(tmp_path).write_bytes(raw)
    report = Report()
    cache = LabelCache(tmp_path, FINGERPRINT, 10 * MB, report)
    for number in range(50):
        each, labelled = document(number, 1000)
        if number == 20:
            assert cache.get(each) is None
        else:
            assert_same(cache.get(each), labelled)
    assert (cache.stats().damaged, cache.stats().misses, report.counts()["cache_entry_damaged"]) == (1, 1, 1)
    cache.put(*document(20, 1000))
    cache.close()
    cache = LabelCache(tmp_path, FINGERPRINT, 10 * MB)
    assert_same(cache.get(document(20, 1000)[0]), document(20, 1000)[1])
    cache.close()


@pytest.mark.parametrize("place", ["of document 1", "beyond the chunk", "no chunk", "short"])
def test_damaged_index(tmp_path: Path, place: str) -> None:
    """An index entry that points at another document's labels, or nowhere, is a miss: labels are never mixed up."""
    filled(tmp_path, 2, tokens=100)
    keys = [label_cache._key(document(number, 100)[0]) for number in (0, 1)]
    with lmdb.open(str(data_file(tmp_path).parent), max_dbs=2) as env, env.begin(write=True) as txn:
        index = env.open_db(b"index", txn=txn)
        places = {"of document 1": txn.get(keys[1], db=index), "beyond the chunk": label_cache._PLACE.pack(0, 9999, 9)}
        places |= {"no chunk": label_cache._PLACE.pack(7, 0, 9), "short": b"?"}
        txn.put(keys[0], places[place], db=index)
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    assert cache.get(document(0, 100)[0]) is None
    assert_same(cache.get(document(1, 100)[0]), document(1, 100)[1])
    assert cache.stats().damaged == 1
    cache.close()


@pytest.mark.process
@pytest.mark.parametrize("damage", ["no LMDB file", "zeroed", "cut off", "empty", "index page"])
def test_damaged_store(tmp_path: Path, damage: str) -> None:
    """Where LMDB itself cannot read the file, the run goes on without crash, and the store is made anew, at the
    latest when it is opened again."""
    filled(tmp_path, 300)
    file = data_file(tmp_path)
    raw = file.read_bytes()
    changed = {"no LMDB file": b"?" * len(raw), "empty": b"", "cut off": raw[: len(raw) // 8]}
    changed["zeroed"] = raw[:8192] + bytes(len(raw) - 8192)
    pages = [raw[first : first + 4096] for first in range(0, len(raw), 4096)]
    key = label_cache._key(document(150)[0])
    assert key is not None
    changed["index page"] = b"".join(bytes(4096) if key in page and b"chunks" not in page else page for page in pages)
    assert changed["index page"] != raw
    file.write_bytes(changed[damage])
    runs = [finish(child(f"read_and_write_again({str(tmp_path)!r})")).split() for _ in range(3)]
    hits, events = zip(*[map(int, run) for run in runs])
    assert hits[0] < 300 and hits[2] == 300
    assert events == (1 if damage == "index page" else 0, 0, 0)
