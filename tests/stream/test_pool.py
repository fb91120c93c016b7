"""The worker pool alone, with workers that need no process; test_local_worker.py has the processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from workers import WordSource, WordWorker, WordWorkers, words_as_tokens

from annotator import AnnotatorSettings, Document, FactClass, LabelledTokens
from annotator.annotate import fingerprint
from lacy_stream.stream import jobs as jobs_module
from lacy_stream.stream import places as places_module
from lacy_stream.stream import pool as pool_module
from lacy_stream.stream.jobs import BATCH_CHARACTERS, BATCH_DOCUMENTS
from lacy_stream.stream.pool import AnnotationError, AnnotationPool, default_num_workers
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.protocol import WorkerCannotStart, WorkerDied, WorkerRefused
from lacy_stream.stream.workers.remote_settings import RemoteSettings

TEXTS = [f"Ada Lovelace was born in {1800 + i} in London. She wrote {i} notes about the engine." for i in range(40)]


@pytest.fixture
def settings(tokenizer_path: Path) -> AnnotatorSettings:
    """What the pool is told to run. The tests' workers do not load it, the pool itself only for its tokens."""
    return AnnotatorSettings(tokenizer_path)


def submit_all(pool: AnnotationPool, texts: list[str]) -> list[Future]:
    return [pool.submit(Document(f"doc-{number}", text)) for number, text in enumerate(texts)]


def restarts(pool: AnnotationPool) -> int:
    return pool.report.counts()["worker_restarted"]


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.005)


def hold(pool: AnnotationPool, workers: WordWorkers) -> Future:
    """Keep the only worker busy with a document, so that the queue is whole before the next batch is taken."""
    workers.waits.add("first")
    future = pool.submit(Document("first", "x"))
    wait_until(lambda: bool(workers.batches))
    return future


def release(workers: WordWorkers) -> None:
    """End the worker that ``hold`` keeps busy; the next one annotates the document."""
    workers.started[-1].kill()


def assert_same(found: LabelledTokens, expected: LabelledTokens) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.classes, expected.classes)


def test_each_future_has_its_own_labels(settings: AnnotatorSettings) -> None:
    """Each future holds the labels of its document, whichever worker and batch it was in; the workers are started
    with the settings of the pool."""
    workers = WordWorkers()
    with AnnotationPool(settings, num_workers=2, start_worker=workers) as pool:
        for future, text in zip(submit_all(pool, TEXTS), TEXTS, strict=True):
            assert_same(future.result(timeout=30), words_as_tokens(text))
        wait_until(lambda: len(workers.started) == 2)
    assert sorted(worker.name for worker in workers.started) == ["annotator-0", "annotator-1"]
    assert workers.settings == [settings] * 2 and all(worker.closed for worker in workers.started)
    assert sorted(id for batch in workers.batches for id in batch) == sorted(f"doc-{n}" for n in range(40))


def test_batches_are_bounded(settings: AnnotatorSettings) -> None:
    """A batch ends at 16 documents and before 32,000 characters, and a longer document is alone; its time limit grows
    with its length."""
    workers = WordWorkers()
    with AnnotationPool(settings, num_workers=1, timeout_s=7, start_worker=workers) as pool:
        first = hold(pool, workers)
        long = submit_all(pool, ["y" * (BATCH_CHARACTERS // 2)] * 4 + ["y" * (BATCH_CHARACTERS + 1)])
        short = submit_all(pool, ["z"] * 40)
        release(workers)
        for future in [first, *long, *short]:
            future.result(timeout=30)
    batches, timeouts_s = workers.started[1].batches, workers.started[1].timeouts_s
    assert list(map(len, batches)) == [1, 2, 2, 1, BATCH_DOCUMENTS, BATCH_DOCUMENTS, 8] and batches[0] == ["first"]
    assert timeouts_s[1] == pytest.approx(7 + BATCH_CHARACTERS / 1000) and timeouts_s[-1] < 7.1


def test_identity_is_the_workers(settings: AnnotatorSettings) -> None:
    """The pool tells by name, and as one digest, what its workers' labels come from."""
    with AnnotationPool(settings, num_workers=2, start_worker=WordWorkers()) as pool:
        assert pool.identity == WordWorkers.identity
        assert pool.fingerprint == fingerprint(WordWorkers.identity)


def test_workers_that_differ_are_refused(settings: AnnotatorSettings) -> None:
    """A worker with other rules, as on a node with another version, ends the pool with the name of what differs."""
    workers = WordWorkers()

    def start(name: str, settings: AnnotatorSettings) -> WordWorker:
        worker = workers(name, settings)
        if name == "annotator-1":
            worker.identity = WordWorkers.identity | {"rules": "vowels"}
        return worker

    with AnnotationPool(settings, num_workers=2, start_worker=start) as pool:
        with pytest.raises(AnnotationError, match="otherwise than the other workers: rules: '(vowels|capitals)' there"):
            while True:
                submit_all(pool, TEXTS)[-1].result(timeout=30)


def test_counters(settings: AnnotatorSettings) -> None:
    """Documents, tokens and working time are counted for each worker; an idle pool has nothing queued."""
    with AnnotationPool(settings, num_workers=2, start_worker=WordWorkers()) as pool:
        tokens = sum(len(future.result(timeout=30)) for future in submit_all(pool, TEXTS))
        stats = pool.stats()
    assert (stats.documents, stats.cached, stats.tokens) == (40, 0, tokens) and len(stats.workers) == 2
    assert sum(worker.cpu_s for worker in stats.workers) == 40  # a second for each document
    assert stats.tokens_per_s_per_core == pytest.approx(tokens / 40)
    assert (stats.queued, stats.in_flight) == (0, 0)


def test_hit_rates_are_the_means_of_the_workers(settings: AnnotatorSettings) -> None:
    """A hit rate is the mean over the workers that have annotated."""
    with AnnotationPool(settings, num_workers=2, start_worker=WordWorkers()) as pool:
        for future in submit_all(pool, TEXTS):
            future.result(timeout=30)
        stats = pool.stats()
    own = [worker.engine["table_hit_rate"] for worker in stats.workers if worker.engine]
    assert own and stats.hit_rates == {"table_hit_rate": pytest.approx(sum(own) / len(own))}


def test_document_that_makes_the_engine_fail_is_named(settings: AnnotatorSettings, tmp_path: Path) -> None:
    """A document that spaCy had to do is counted as a fallback, and stands in the report's file with the reason."""
    report, workers = Report(tmp_path / "rank0.jsonl"), WordWorkers(fallbacks={"doc-4": "spaCy did"})
    with AnnotationPool(settings, num_workers=1, report=report, start_worker=workers) as pool:
        for future, text in zip(submit_all(pool, TEXTS), TEXTS, strict=True):
            assert_same(future.result(timeout=30), words_as_tokens(text))
        assert not pool.quarantine
    (event,) = map(json.loads, (tmp_path / "rank0.jsonl").read_text().splitlines())
    assert (event["event"], event["what"], event["reason"]) == ("engine_fallback", "doc-4", "spaCy did")


def test_document_that_cannot_be_annotated_is_named(settings: AnnotatorSettings) -> None:
    """A document that raises an error keeps its tokens, or has none where it has no tokens; it is named, and its
    neighbours are annotated. With a limit of 0 it ends the pool."""
    texts = ["Anna was born in Rome.", "bad \ud800", "She died in Paris.", "Ada lived in London."]
    errors = {"doc-1": "ValueError: lone surrogate", "doc-3": "KeyError: 'x'"}
    with AnnotationPool(settings, num_workers=1, start_worker=WordWorkers(errors=errors)) as pool:
        labelled = [future.result(timeout=30) for future in submit_all(pool, texts)]
        assert [len(label) > 0 for label in labelled] == [True, False, True, True]
        assert [(label.classes == FactClass.FACTUAL).any() for label in labelled] == [True, False, True, False]
        assert list(pool.quarantine) == ["doc-1", "doc-3"] and "surrogate" in pool.quarantine["doc-1"]
        counts = pool.report.counts()
        assert counts["document_skipped"] == counts["document_quarantined"] == 1 and sum(counts.values()) == 2
    workers = WordWorkers(errors=errors)
    with AnnotationPool(settings, num_workers=1, quarantine_limit=0, start_worker=workers) as pool:
        with pytest.raises(AnnotationError, match="quarantine_limit is 0: 'doc-1': .*surrogate"):
            submit_all(pool, texts)[1].result(timeout=30)


def test_workers_that_cannot_start_fail_every_future(settings: AnnotatorSettings) -> None:
    """What keeps a worker from starting reaches each future and the fingerprint; no second worker is tried."""
    workers = WordWorkers(failed_starts=[WorkerCannotStart("ValueError: no such pipeline")])
    with AnnotationPool(settings, num_workers=1, start_worker=workers) as pool:
        with pytest.raises(AnnotationError, match="worker 0 could not start: ValueError: no such pipeline"):
            pool.submit(Document("x", "text")).result(timeout=30)
        with pytest.raises(AnnotationError, match="no such pipeline"):
            assert pool.fingerprint
    assert not workers.started


@pytest.mark.parametrize("deaths", [2, 3])
def test_start_is_tried_three_times(settings: AnnotatorSettings, deaths: int) -> None:
    """Two workers may die while they start; after the third the pool gives up and tells how each died."""
    workers = WordWorkers(failed_starts=[WorkerDied(f"died of {number}") for number in range(deaths)])
    with AnnotationPool(settings, num_workers=1, start_worker=workers) as pool:
        if deaths == 2:
            assert_same(pool.submit(Document("x", "Anna")).result(timeout=30), words_as_tokens("Anna"))
        else:
            with pytest.raises(AnnotationError, match="did not start: it died of 0; died of 1; died of 2"):
                pool.submit(Document("x", "Anna")).result(timeout=30)


def test_dead_worker_does_not_show(settings: AnnotatorSettings) -> None:
    """A worker that dies in the middle of a batch is replaced; what it held is tried again, each document alone, and
    every label is that of an undisturbed run."""
    workers = WordWorkers(deaths={"doc-3": 1})
    with AnnotationPool(settings, num_workers=1, start_worker=workers) as pool:
        first = hold(pool, workers)
        futures = submit_all(pool, TEXTS)
        release(workers)
        for future, text in zip([first, *futures], ["x", *TEXTS], strict=True):
            assert_same(future.result(timeout=30), words_as_tokens(text))
        assert restarts(pool) == 2 and not pool.quarantine
    ids = [f"doc-{number}" for number in range(40)]
    assert workers.started[1].batches == [["first"], ids[:16]]
    assert workers.started[2].batches == [*([id] for id in ids[:16]), ids[16:32], ids[32:]]


def test_workers_that_die_without_work_blame_no_document(settings: AnnotatorSettings) -> None:
    """Workers that end while they wait are replaced before they get a document: none is quarantined."""
    workers = WordWorkers()
    with AnnotationPool(settings, num_workers=1, start_worker=workers) as pool:
        for _ in range(3):
            assert all(len(future.result(timeout=30)) for future in submit_all(pool, TEXTS[:4]))
            wait_until(lambda: not pool.stats().in_flight)
            workers.started[-1].kill()
        assert submit_all(pool, TEXTS[:1])[0].result(timeout=30)
        assert restarts(pool) == 3 and not pool.quarantine
    assert all(worker.closed for worker in workers.started)


def test_document_that_ends_its_workers_is_quarantined(settings: AnnotatorSettings, tmp_path: Path) -> None:
    """A document whose worker dies twice is not tried a third time: it keeps its tokens, has no facts and is named,
    also in the report's file, and the pool annotates the next documents."""
    report, workers = Report(tmp_path / "report" / "rank0.jsonl"), WordWorkers(deaths={"doc-0": 9})
    with AnnotationPool(settings, num_workers=1, report=report, start_worker=workers) as pool:
        (deadly,) = submit_all(pool, ["Ada Lovelace wrote to Charles Babbage. " * 100])
        labelled = deadly.result(timeout=30)
        assert len(labelled) > 1000 and not (labelled.classes == FactClass.FACTUAL).any()
        assert "exit code -9" in pool.quarantine["doc-0"] and len(pool.quarantine) == 1
        after = pool.submit(Document("after", "Anna was born in Rome.")).result(timeout=30)
        assert (after.classes == FactClass.FACTUAL).any() and restarts(pool) == 2
    assert workers.deaths == {"doc-0": 7}
    events = [json.loads(line) for line in (tmp_path / "report" / "rank0.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["worker_restarted", "worker_restarted", "document_quarantined"]
    assert "it held doc-0" in events[1]["reason"] and events[2]["what"] == "doc-0"


def test_text_that_is_no_string_is_refused(settings: AnnotatorSettings) -> None:
    """A document whose text is not a str is an error at once, not a future that never ends."""
    with AnnotationPool(settings, num_workers=1, start_worker=WordWorkers()) as pool:
        with pytest.raises(TypeError, match="'x': its text is int, not str"):
            pool.submit(Document("x", 5))  # type: ignore[arg-type]


def test_close_ends_the_workers(settings: AnnotatorSettings) -> None:
    """After close, no worker is left, open futures fail instead of waiting, and submit says why it cannot."""
    workers = WordWorkers(waits=["slow"])
    pool = AnnotationPool(settings, num_workers=2, start_worker=workers)
    slow = pool.submit(Document("slow", "x"))
    wait_until(lambda: bool(workers.batches) and len(workers.started) == 2)
    queued = [pool.submit(Document("slow", "x")) for _ in range(5)]
    pool.close()
    pool.close()
    assert all(worker.closed for worker in workers.started)
    for future in (slow, *queued):
        with pytest.raises(AnnotationError, match="closed"):
            future.result(timeout=5)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(Document("y", "text"))


def test_pool_needs_a_worker(settings: AnnotatorSettings) -> None:
    """Zero workers is an error, not a pool that waits for ever; and so is a time limit that no clock reaches."""
    with pytest.raises(ValueError, match="num_workers is 0"):
        AnnotationPool(settings, num_workers=0)
    for timeout_s in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"timeout_s is {timeout_s}: give a number of seconds above 0"):
            AnnotationPool(settings, num_workers=1, timeout_s=timeout_s)


def test_default_is_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers default to the cores that the process may use, shared among the ranks of a node, at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert [default_num_workers(ranks) for ranks in (1, 4, 8, 100)] == [11, 2, 1, 1]


# --- workers on other machines, and those that are silent -----------------------------------------------------------


REMOTE = RemoteSettings(address="127.0.0.1:6379", num_workers=2, wait_limit_s=30.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are overdue after 0.1 s."""
    monkeypatch.setattr(jobs_module, "OVERDUE_S", 0.1)
    monkeypatch.setattr(pool_module, "WATCH_S", 0.02)
    monkeypatch.setattr(places_module, "PLACE_S", 0.0)


def test_second_worker_annotates_what_is_overdue(settings: AnnotatorSettings, impatient: None) -> None:
    """What a silent worker holds is also given to another one, whose answer counts; the silent one is not replaced for
    that, and its death blames nothing and asks nobody a third time."""
    workers = WordWorkers()
    with AnnotationPool(settings, num_workers=2, start_worker=workers) as pool:
        for future in submit_all(pool, TEXTS[:4]):
            future.result(timeout=30)  # now a speed is known
        workers.waits.add("silent")
        future = pool.submit(Document("silent", TEXTS[0]))
        wait_until(lambda: ["silent"] in workers.batches)
        (silent,) = [worker for worker in workers.started if ["silent"] in worker.batches]
        assert_same(future.result(timeout=30), words_as_tokens(TEXTS[0]))
        wait_until(lambda: pool.report.counts()["worker_overdue"] == 1)  # the report may come after the answer
        assert restarts(pool) == 0
        silent.kill()
        wait_until(lambda: restarts(pool) == 1)
        assert_same(pool.submit(Document("after", TEXTS[1])).result(timeout=30), words_as_tokens(TEXTS[1]))
        assert pool.stats().documents == 6 and not pool.quarantine
    assert [batch for batch in workers.batches if "silent" in batch] == [["silent"]] * 2


def test_lost_machines_blame_no_document(settings: AnnotatorSettings) -> None:
    """A document is tried as often as the machines of its workers are lost, and is not quarantined; those that it came
    with are not tried alone."""
    workers = WordWorkers(machine_deaths={"doc-3": 5})
    with AnnotationPool(settings, num_workers=1, start_worker=workers) as pool:
        first = hold(pool, workers)
        futures = submit_all(pool, TEXTS[:8])
        release(workers)
        for future, text in zip([first, *futures], ["x", *TEXTS], strict=False):
            assert_same(future.result(timeout=30), words_as_tokens(text))
        assert restarts(pool) == 6 and not pool.quarantine
    assert [batch for batch in workers.batches if "doc-3" in batch] == [[f"doc-{n}" for n in range(8)]] * 6


def test_local_and_remote_workers_serve_one_queue(settings: AnnotatorSettings) -> None:
    """Documents go to workers of all kinds; the statistics say what each machine has done."""
    workers = WordWorkers()
    source = WordSource(workers, ["10.0.0.1", "10.0.0.2"])
    with AnnotationPool(settings, 1, remote=REMOTE, start_worker=workers, open_source=source) as pool:
        wait_until(lambda: pool.stats().ready == 3)
        found = [future.result(timeout=30) for future in submit_all(pool, TEXTS * 20)]
        stats = pool.stats()
    for labelled, text in zip(found, TEXTS * 20, strict=True):
        assert_same(labelled, words_as_tokens(text))
    assert set(stats.places) == {"", "10.0.0.1", "10.0.0.2"} and set(stats.remote_places) == {"10.0.0.1", "10.0.0.2"}
    assert sum(rate.tokens for rate in stats.places.values()) == stats.tokens == sum(map(len, found))
    assert stats.remote == 2 and len(stats.workers) == 3 and stats.waiting == ""


def test_label_cache_is_asked_before_other_machines(settings: AnnotatorSettings, tmp_path: Path) -> None:
    """What was labelled before is not sent to another machine a second time."""
    for sent in (40, 0):
        remote = WordWorkers()
        source = WordSource(remote, ["10.0.0.1"] * 2)
        options = {"start_worker": WordWorkers(), "open_source": source, "label_cache": tmp_path}
        with AnnotationPool(settings, 0, remote=REMOTE, **options) as pool:
            for future, text in zip(submit_all(pool, TEXTS), TEXTS, strict=True):
                np.testing.assert_array_equal(future.result(timeout=30).ids, words_as_tokens(text).ids)
            assert pool.stats().cached == 40 - sent
        assert sum(map(len, remote.batches)) == sent


def test_refused_machine_does_not_end_the_pool(settings: AnnotatorSettings) -> None:
    """A machine that would label otherwise is named in the report; its worker gets another machine, and the deaths of
    workers that start are no end either."""
    refusal, death = WorkerRefused("10.0.0.9", "rules: '2' there"), WorkerDied("was lost", blames_document=False)
    source = WordSource(WordWorkers(), [refusal, death, "10.0.0.1", "10.0.0.2"])
    with AnnotationPool(settings, 0, remote=REMOTE, start_worker=WordWorkers(), open_source=source) as pool:
        wait_until(lambda: pool.stats().ready == 2)
        assert_same(submit_all(pool, TEXTS[:1])[0].result(timeout=30), words_as_tokens(TEXTS[0]))
        assert (pool.report.counts()["worker_refused"], restarts(pool)) == (1, 1)


def test_local_worker_says_what_the_labels_of_remote_ones_must_be(settings: AnnotatorSettings) -> None:
    """Without local workers, one is started to learn the identity of the run, and ended; it annotates nothing."""
    local, remote = WordWorkers(), WordWorkers()
    source = WordSource(remote, ["10.0.0.1"] * 2)
    with AnnotationPool(settings, 0, remote=REMOTE, start_worker=local, open_source=source) as pool:
        assert_same(submit_all(pool, TEXTS[:1])[0].result(timeout=30), words_as_tokens(TEXTS[0]))
        assert pool.identity == WordWorkers.identity
        wait_until(lambda: local.started[0].closed)
    assert len(local.started) == 1 and not local.batches and remote.batches


def test_remote_workers_wait_for_a_place(settings: AnnotatorSettings, impatient: None) -> None:
    """Workers without a place hold nothing up: the others annotate, the report says why they wait, and they serve as
    soon as they have one."""
    workers = WordWorkers()
    source = WordSource(workers)
    with AnnotationPool(settings, 1, remote=REMOTE, start_worker=workers, open_source=source) as pool:
        assert_same(submit_all(pool, TEXTS[:1])[0].result(timeout=30), words_as_tokens(TEXTS[0]))
        wait_until(lambda: pool.report.counts()["workers_without_place"] == 1)
        assert pool.stats().waiting == "there are no free CPUs" and pool.stats().ready == 1
        source.offer("10.0.0.1")
        wait_until(lambda: pool.stats().ready == 2)
    assert pool.report.counts()["workers_without_place"] == 1


def test_pool_without_any_worker_ends_after_its_limit(settings: AnnotatorSettings, impatient: None) -> None:
    """A pool that has only remote workers, and none of them for longer than the user allows, says why and ends."""
    remote = RemoteSettings(address="127.0.0.1:6379", num_workers=2, wait_limit_s=0.2)
    source = WordSource(WordWorkers())
    with AnnotationPool(settings, 0, remote=remote, start_worker=WordWorkers(), open_source=source) as pool:
        with pytest.raises(AnnotationError, match="no annotation worker for 0 s: there are no free CPUs. Repair the"):
            pool.submit(Document("x", "text")).result(timeout=30)


def test_source_that_can_never_start_ends_the_pool(settings: AnnotatorSettings) -> None:
    """A cluster of another version of Ray is an error, not a wait."""
    source = WordSource(WordWorkers(), [WorkerCannotStart("Version mismatch"), "10.0.0.1"])
    with AnnotationPool(settings, 0, remote=REMOTE, start_worker=WordWorkers(), open_source=source) as pool:
        with pytest.raises(AnnotationError, match="no remote worker can start: Version mismatch"):
            while True:
                pool.submit(Document("x", "text")).result(timeout=30)
