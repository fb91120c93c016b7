"""What a label cache does to its disk: limits, eviction, full disks, damaged files."""

from __future__ import annotations

import time
from pathlib import Path

import lmdb
import pytest
from label_caches import (
    FINGERPRINT,
    MB,
    OTHER,
    THIRD,
    assert_same,
    child,
    data_file,
    document,
    filled,
    finish,
    line_of,
    mounted,
)

from lacy_stream.stream.labels import codec, store
from lacy_stream.stream.labels.cache import LabelCache
from lacy_stream.stream.report import Report

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
    labelled again it is whole."""
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
    keys = [codec.document_key(document(number, 100)[0]) for number in (0, 1)]
    with lmdb.open(str(data_file(tmp_path).parent), max_dbs=2) as env, env.begin(write=True) as txn:
        index = env.open_db(b"index", txn=txn)
        places = {"of document 1": txn.get(keys[1], db=index), "beyond the chunk": store._LOCATION.pack(0, 9999, 9)}
        places |= {"no chunk": store._LOCATION.pack(7, 0, 9), "short": b"?"}
        txn.put(keys[0], places[place], db=index)
    cache = LabelCache(tmp_path, FINGERPRINT, MB)
    assert cache.get(document(0, 100)[0]) is None
    assert_same(cache.get(document(1, 100)[0]), document(1, 100)[1])
    assert cache.stats().damaged == 1
    cache.close()


@pytest.mark.process
@pytest.mark.parametrize("damage", ["no LMDB file", "zeroed", "cut off", "empty", "index page"])
def test_damaged_store(tmp_path: Path, damage: str) -> None:
    """Where LMDB itself cannot read the file, the run continues without a crash, and the store is replaced, at the
    latest when it is opened again."""
    filled(tmp_path, 300)
    file = data_file(tmp_path)
    raw = file.read_bytes()
    changed = {"no LMDB file": b"?" * len(raw), "empty": b"", "cut off": raw[: len(raw) // 8]}
    changed["zeroed"] = raw[:8192] + bytes(len(raw) - 8192)
    pages = [raw[first : first + 4096] for first in range(0, len(raw), 4096)]
    key = codec.document_key(document(150)[0])
    assert key is not None
    changed["index page"] = b"".join(bytes(4096) if key in page and b"chunks" not in page else page for page in pages)
    assert changed["index page"] != raw
    file.write_bytes(changed[damage])
    runs = [finish(child(f"read_and_write_again({str(tmp_path)!r})")).split() for _ in range(3)]
    hits, events = zip(*[map(int, run) for run in runs])
    assert hits[0] < 300 and hits[2] == 300
    assert events == (1 if damage == "index page" else 0, 0, 0)
