"""Documents with labels, label caches that hold them, and processes that use one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from annotator.records import Document, LabelledTokens
from lacy_stream.stream.labels import cache as cache_module
from lacy_stream.stream.labels.cache import LabelCache
from lacy_stream.stream.report import Report

FINGERPRINT, OTHER, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
MB = 1 << 20


def document(number: int, tokens: int | None = None) -> tuple[Document, LabelledTokens]:
    """A document and its labels, which follow from its number (and length)."""
    generator = np.random.default_rng(number)
    tokens = int(generator.integers(0, 400)) if tokens is None else tokens
    ids = generator.integers(0, 32000, tokens, dtype=np.int32)
    classes = generator.integers(0, 3, tokens, dtype=np.uint8)
    return Document(f"doc-{number}", f"text {number} of {tokens}"), LabelledTokens(ids, classes, offsets(tokens))


def offsets(tokens: int) -> np.ndarray:
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
    """Start a process that calls a function of this file."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import label_caches; label_caches.{call}"
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
    cache_module.COMMIT_BYTES = 20_000
    cache = LabelCache(folder, FINGERPRINT, 1 << 30)
    for number in range(first, 1 << 30):
        cache.put(*document(number))
        if number == first + 100:
            cache.flush()
            print("writing", flush=True)


def write_and_read(folder: str, part: int) -> None:
    """Write every other document, one after the other, and read those of a process that writes the rest."""
    cache_module.COMMIT_BYTES = 5_000
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
    reading, decoded = threading.Barrier(5), cache_module.decode_record

    def slowly(key: bytes, value: memoryview, document: Document) -> LabelledTokens | None:
        reading.wait()
        time.sleep(0.5)
        return decoded(key, value, document)

    cache_module.decode_record = slowly
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
    """Put documents until the disk is full, and continue."""
    cache_module.COMMIT_BYTES = 100_000
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
    """Read what can be read of a store, annotate the rest again, and print how much was whole and damaged."""
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
