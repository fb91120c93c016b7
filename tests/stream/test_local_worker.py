"""The worker that is a process, by itself and in a pool: real processes, the real parser, signals."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import psutil
import pytest

from annotator import Annotator, AnnotatorSettings, Document
from lacy_stream.stream.pool import AnnotationError, AnnotationPool
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.local import LocalWorker

pytestmark = pytest.mark.process

TEXTS = [f"Ada Lovelace was born in {1800 + i} in London. She wrote {i} notes about the engine." for i in range(40)]


def submit_all(pool: AnnotationPool, texts: list[str]) -> list[Future]:
    return [pool.submit(Document(f"doc-{number}", text)) for number, text in enumerate(texts)]


def restarts(pool: AnnotationPool) -> int:
    return pool.report.counts()["worker_restarted"]


def gone(pids: list[int], within_s: float) -> bool:
    """Whether all of these processes end in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def pool(tokenizer_path: Path):
    with AnnotationPool(AnnotatorSettings(tokenizer_path), num_workers=2) as pool:
        yield pool


def test_labels_are_those_of_the_annotator(pool: AnnotationPool, annotator: Annotator) -> None:
    """Each future holds what the annotator gives for its document, whichever worker and batch it was in."""
    futures = [pool.submit(Document(str(i), text)) for i, text in enumerate(TEXTS)]
    for future, expected in zip(futures, annotator.annotate(TEXTS), strict=True):
        labelled = future.result(timeout=240)
        np.testing.assert_array_equal(labelled.ids, expected.ids)
        np.testing.assert_array_equal(labelled.classes, expected.classes)
        np.testing.assert_array_equal(labelled.offsets, expected.offsets)


def test_fingerprint_is_the_annotators(pool: AnnotationPool, annotator: Annotator) -> None:
    """The pool tells which tokenizer, parser and rules its labels come from, by name and as one digest."""
    assert pool.identity == annotator.identity and {"tokenizer", "rules", "model"} <= set(annotator.identity)
    assert pool.fingerprint == annotator.fingerprint


def test_engine_is_a_setting(tokenizer_path: Path, annotator: Annotator) -> None:
    """The workers run spaCy itself where it is asked for, which their identity shows; the labels are the same."""
    with AnnotationPool(AnnotatorSettings(tokenizer_path, engine="spacy"), num_workers=1) as plain:
        futures = submit_all(plain, TEXTS[:5])
        for future, expected in zip(futures, annotator.annotate(TEXTS[:5]), strict=True):
            np.testing.assert_array_equal(future.result(timeout=240).classes, expected.classes)
        assert "engine" in annotator.identity and "engine" not in plain.identity


def test_hit_rates_come_with_the_answers(pool: AnnotationPool) -> None:
    """The engine's hit rates come with each answer: after texts that were seen before, most look-ups hit."""
    for _ in range(2):
        for future in submit_all(pool, TEXTS):
            future.result(timeout=240)
    stats = pool.stats()
    assert set(stats.hit_rates) == {"chunk_hit_rate", "vector_hit_rate"}
    assert all(0.3 < rate <= 1 for rate in stats.hit_rates.values())
    assert stats.tokens_per_s_per_core > 0


FAILING_ENGINE = """
from annotator.engine import Engine, InexactError
words = Engine.words
def fail(self, segments):
    if any("Babbage" in text for text, _ in segments):
        raise InexactError("made up")
    return words(self, segments)
Engine.words = fail
"""


def test_document_that_makes_the_engine_fail_is_named(
    tokenizer_path: Path, tmp_path: Path, annotator: Annotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document on which the engine of the worker fails has spaCy's labels, is counted as a fallback, and stands in
    the report's file by its id; its neighbours in the batch do not."""
    (tmp_path / "sitecustomize.py").write_text(FAILING_ENGINE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    texts = [*TEXTS[:4], "Charles Babbage was born in London in 1791.", *TEXTS[4:8]]
    report = Report(tmp_path / "rank0.jsonl")
    with AnnotationPool(AnnotatorSettings(tokenizer_path), num_workers=1, report=report) as pool:
        for future, expected in zip(submit_all(pool, texts), annotator.annotate(texts), strict=True):
            np.testing.assert_array_equal(future.result(timeout=240).classes, expected.classes)
        assert not pool.quarantine
    assert report.counts()["engine_fallback"] == 1 and sum(report.counts().values()) == 1
    (event,) = map(json.loads, (tmp_path / "rank0.jsonl").read_text().splitlines())
    assert (event["event"], event["what"]) == ("engine_fallback", "doc-4") and "spaCy annotated them" in event["reason"]


def test_document_that_cannot_be_annotated_is_named(tokenizer_path: Path) -> None:
    """A lone surrogate cannot be encoded: the document has no tokens and is named; its neighbours in the batch are
    annotated."""
    texts = ["Anna was born in Rome.", "bad \ud800", "She died in Paris."]
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=1) as pool:
        labelled = [future.result(timeout=240) for future in submit_all(pool, texts)]
        assert [len(label) > 0 for label in labelled] == [True, False, True]
        assert list(pool.quarantine) == ["doc-1"] and "surrogate" in pool.quarantine["doc-1"]
        assert pool.report.counts()["document_skipped"] == 1


def test_nul_and_two_million_characters(pool: AnnotationPool) -> None:
    """NULs and a document of two million characters are annotated like any other, in full."""
    giant = Document("giant", "word " * 400_000)
    odd = Document("nul", "Anna\0 lived\0\0 in Rome.")
    giant_future, odd_future = pool.submit(giant), pool.submit(odd)
    assert odd_future.result(timeout=240).offsets[-1, 1] == len(odd.text)
    assert giant_future.result(timeout=240).offsets[-1, 1] == len(giant.text)


def test_unknown_parser_is_reported_by_every_future(tokenizer_path: Path) -> None:
    """A pool whose workers cannot load the parser fails each future with the reason and the way out."""
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model="en_core_web_nothing"), num_workers=1) as pool:
        with pytest.raises(AnnotationError, match="en_core_web_nothing"):
            pool.submit(Document("x", "text")).result(timeout=240)
        with pytest.raises(AnnotationError, match="en_core_web_nothing"):
            assert pool.fingerprint


STANDSTILL = """
import pathlib, time
def label(text):
    began = pathlib.Path({began!r})
    if text == "stand still" and not began.exists():
        began.touch()
        time.sleep(10_000)
    return [(0, 3)]
"""


@pytest.fixture
def standstill(
    tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[AnnotatorSettings, Path]]:
    """A labeller that stands still at its first "stand still", and the file that it makes then."""
    began = tmp_path / "began"
    (tmp_path / "standstill.py").write_text(STANDSTILL.format(began=str(began)))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield AnnotatorSettings(tokenizer_path, labeller="standstill:label"), began
    sys.modules.pop("standstill", None)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_killed_worker_does_not_show(standstill: tuple[AnnotatorSettings, Path]) -> None:
    """SIGKILL in the middle of a batch: the worker is replaced, and every label is that of an undisturbed run."""
    settings, began = standstill
    texts = [*TEXTS[:6], "stand still", *TEXTS[6:]]
    with AnnotationPool(settings, num_workers=1) as pool:
        futures = submit_all(pool, texts)
        wait_for(began.exists)
        os.kill(pool._workers[0].pid, signal.SIGKILL)
        for future, expected in zip(futures, settings.build().annotate(texts), strict=True):
            labelled = future.result(timeout=240)
            np.testing.assert_array_equal(labelled.ids, expected.ids)
            np.testing.assert_array_equal(labelled.classes, expected.classes)
        assert restarts(pool) == 1 and not pool.quarantine


def test_workers_that_die_without_work_blame_no_document(tokenizer_path: Path) -> None:
    """Workers that are killed while they wait are replaced before they get a document: none is quarantined."""
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=2) as pool:
        for _ in range(3):
            assert all(len(future.result(timeout=240)) for future in submit_all(pool, TEXTS[:4]))
            while len(pool._workers) < 2 or pool.stats().in_flight:
                time.sleep(0.01)
            pids = [worker.pid for worker in pool._workers.values()]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert gone(pids, 60)
        assert submit_all(pool, TEXTS[:1])[0].result(timeout=240)
        assert restarts(pool) >= 3 and not pool.quarantine


def test_hung_worker_is_replaced(tokenizer_path: Path) -> None:
    """SIGSTOP: when the time limit of its batch has passed, the worker is killed and another one does the work."""
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=1, timeout_s=3) as pool:
        assert pool.fingerprint
        stopped = pool._workers[0].pid
        os.kill(stopped, signal.SIGSTOP)
        labelled = pool.submit(Document("slow", TEXTS[0])).result(timeout=240)
        np.testing.assert_array_equal(labelled.ids, pool.settings.build().annotate(TEXTS[:1])[0].ids)
        assert gone([stopped], 60) and restarts(pool) == 1 and not pool.quarantine


def test_stopped_worker_does_not_block_a_large_message(tokenizer_path: Path) -> None:
    """A worker that is stopped before it has read a message larger than the pipe is replaced, too."""
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=1) as pool:
        assert pool.fingerprint
        pool._timeout_s = -997.0
        os.kill(pool._workers[0].pid, signal.SIGSTOP)
        large = Document("large", "word " * 200_400)  # 1,002 s by its length: 5 s in all
        assert len(pool.submit(large).result(timeout=240)) > 200_000
        assert restarts(pool) == 1


def test_close_ends_the_processes(standstill: tuple[AnnotatorSettings, Path]) -> None:
    """After close, no worker is left, open futures fail instead of waiting, and submit says why it cannot."""
    pool = AnnotationPool(standstill[0], num_workers=2)
    submit_all(pool, TEXTS)[-1].result(timeout=240)
    pids = [worker.pid for worker in pool._workers.values()]
    future = pool.submit(Document("x", "stand still"))
    pool.close()
    pool.close()
    assert pids and gone(pids, 60)
    with pytest.raises(AnnotationError, match="closed"):
        future.result(timeout=5)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(Document("y", "text"))


def test_closed_pools_leave_no_descriptors(tokenizer_path: Path) -> None:
    """Descriptors do not wait for the garbage collector, also where a pool is closed at work: as many are open after
    four pools as after one."""

    def descriptors() -> int:
        with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=1) as pool:
            assert pool.fingerprint
            pool.submit(Document("large", "word " * 1_000_000))
            while not pool.stats().in_flight:
                time.sleep(0.01)
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    gc.disable()
    try:
        first = descriptors()
        assert [descriptors() for _ in range(3)] == [first] * 3
    finally:
        gc.enable()


def test_closed_worker_can_be_killed_and_closed(tokenizer_path: Path) -> None:
    """A watchdog that comes late, and a second close, find nothing to do."""
    worker = LocalWorker("late", AnnotatorSettings(tokenizer_path, model=None))
    worker.close()
    worker.kill()
    worker.close()
    assert not psutil.pid_exists(worker.pid)


SCRIPT = """
import sys, time
print("main script runs", flush=True)
from annotator import AnnotatorSettings, Document
from lacy_stream.stream.pool import AnnotationPool
pool = AnnotationPool(AnnotatorSettings({tokenizer!r}, {model!r}), num_workers=2)
pool.submit(Document("x", "Anna lived in Rome.")).result(timeout=100)
while len(pool._workers) < 2:
    time.sleep(0.1)
import psutil
pids = [w.pid for w in pool._workers.values()]
maps = [open(f"/proc/{{pid}}/maps").read() for pid in pids]
print("torch" if any("libtorch" in m for m in maps) else "no torch", flush=True)
print("threads", *[psutil.Process(pid).num_threads() for pid in pids], flush=True)
print("pids", *pids, flush=True)
{end}
"""


def run_script(tmp_path: Path, tokenizer_path: Path, end: str, model: str | None = None) -> subprocess.Popen[str]:
    script = tmp_path / "user_script.py"
    script.write_text(SCRIPT.format(tokenizer=str(tokenizer_path), model=model, end=end))
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def read_pids(process: subprocess.Popen[str]) -> tuple[list[str], list[int]]:
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith("pids"):
            return lines, [int(pid) for pid in line.split()[1:]]
    raise AssertionError(f"the script ended early: {lines}")


@pytest.mark.parametrize(
    ("end", "code", "model"),
    [("", 0, "en_core_web_sm"), ("raise RuntimeError('boom')", 1, None), ("del pool; sys.exit(3)", 3, None)],
)
def test_workers_are_light_and_leave_with_the_script(
    tmp_path: Path, tokenizer_path: Path, end: str, code: int, model: str | None
) -> None:
    """A script without a main guard runs once; its workers load no torch and use one thread each; however it ends
    without closing the pool, its exit code is its own and no process is left."""
    process = run_script(tmp_path, tokenizer_path, end, model)
    lines, pids = read_pids(process)
    assert process.wait(timeout=120) == code
    assert lines.count("main script runs") == 1
    assert "no torch" in lines
    assert "threads 1 1" in lines
    assert gone(pids, 60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_the_trainer(tmp_path: Path, tokenizer_path: Path, number: signal.Signals) -> None:
    """When the process that owns the pool is killed, its workers are gone soon."""
    process = run_script(tmp_path, tokenizer_path, "time.sleep(100)")
    _, pids = read_pids(process)
    assert not gone(pids, 0.2)
    process.send_signal(number)
    process.wait(timeout=60)
    assert gone(pids, 60)
