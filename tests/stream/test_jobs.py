"""The queue of a pool by itself: how batches follow the speed of the workers, and who holds a document."""

from __future__ import annotations

import pytest

from annotator import Document
from lacy_stream.stream import jobs as jobs_module
from lacy_stream.stream.jobs import BATCH_DOCUMENTS, Batch, JobQueue


@pytest.fixture
def overdue_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "OVERDUE_S", 0.0)
    monkeypatch.setattr(jobs_module, "OVERDUE_FACTOR", 0.0)


def queue_of(count: int, characters: int = 1000) -> JobQueue:
    queue = JobQueue()
    for number in range(count):
        queue.put(Document(str(number), "x" * characters))
    return queue


def taken(queue: JobQueue, workers: int = 1) -> Batch:
    batch = queue.take(workers)
    assert batch is not None
    return batch


def answer(queue: JobQueue, batch: Batch, elapsed_s: float) -> list[str]:
    """Answer a batch; returns the ids of the documents whose labels that decides."""
    decided = queue.answered(batch, elapsed_s)
    return [job.document.id for job in queue.finish(decided)]


@pytest.mark.parametrize(("seconds", "documents"), [(0.01, BATCH_DOCUMENTS), (0.4, 5), (30.0, 1)])
def test_batches_take_two_seconds(seconds: float, documents: int) -> None:
    """As long as no speed is known, a batch is one document. Then it has as many as a worker annotates in two seconds,
    at least one and at most 16."""
    queue = queue_of(100)
    for _ in range(3):
        batch = taken(queue)
        answer(queue, batch, seconds * len(batch.jobs))
    assert len(taken(queue).jobs) == documents


def test_speed_follows_the_workers() -> None:
    """Where workers become slower, batches shrink, and one answer after a long silence is not taken for their speed."""
    queue = queue_of(1000)
    answer(queue, taken(queue), 0.01)
    sizes = []
    for _ in range(12):
        batch = taken(queue)
        sizes.append(len(batch.jobs))
        answer(queue, batch, len(batch.jobs))
    assert sizes[0] == BATCH_DOCUMENTS and sizes[-1] <= 3
    for _ in range(30):
        batch = taken(queue)
        answer(queue, batch, 0.01 * len(batch.jobs))
    before = queue.expected_s(taken(queue))
    answer(queue, taken(queue), 10_000.0)
    assert queue.expected_s(taken(queue)) < 10 * before + 1


def test_queue_is_shared_by_the_workers_that_are_there() -> None:
    """With fewer documents than workers could take, each gets a part."""
    queue = queue_of(9)
    answer(queue, taken(queue), 0.001)
    assert len(taken(queue, workers=4).jobs) == 2


def test_overdue_batch_has_two_holders(overdue_at_once: None) -> None:
    """An overdue batch comes once more, before all others; the first answer decides, and the second is ignored."""
    queue = queue_of(6)
    answer(queue, taken(queue), 1e-6)
    batch = taken(queue, workers=3)
    assert queue.copy_overdue() == [batch] and queue.copy_overdue() == []
    second = taken(queue, workers=3)
    assert second.jobs == batch.jobs and queue.counts() == (3, 2)
    decided = queue.answered(second, 0.001)
    assert queue.answered(batch, 0.001) == []  # before the labels of the first answer are set
    assert queue.finish(decided) == second.jobs


def test_answered_while_its_copy_waits(overdue_at_once: None) -> None:
    """A copy that nobody has taken yet is dropped when the answer comes after all."""
    queue = queue_of(3)
    answer(queue, taken(queue), 1e-6)
    batch = taken(queue, workers=2)
    queue.copy_overdue()
    assert answer(queue, batch, 0.001) == ["1"]
    assert [job.document.id for job in taken(queue).jobs] == ["2"]
    assert queue.close(RuntimeError()) is not None


def test_two_deaths_of_one_batch_queue_it_once(overdue_at_once: None) -> None:
    """If both holders of a batch die, its documents come again, each once and alone."""
    queue = queue_of(3)
    answer(queue, taken(queue), 1e-6)
    batch = taken(queue)
    queue.copy_overdue()
    second = taken(queue)
    assert len(second.jobs) == 2
    assert queue.lost(batch, blame=True) is None and queue.counts() == (0, 2)
    assert queue.lost(second, blame=True) is None and queue.counts() == (2, 0)
    assert [[job.document.id for job in taken(queue).jobs] for _ in range(2)] == [["1"], ["2"]]


def test_closed_queue_lets_go_of_each_job_once() -> None:
    """What waits and what workers hold is returned; a cancelled future is left out; later puts fail."""
    queue = queue_of(3)
    cancelled = queue.put(Document("cancelled", "x"))
    held = taken(queue)
    cancelled.cancel()
    error = RuntimeError("closed")
    jobs = queue.close(error)
    assert jobs is not None and sorted(job.document.id for job in jobs) == ["0", "1", "2"]
    assert queue.close(error) is None and queue.take(1) is None and queue.lost(held, blame=True) is None
    with pytest.raises(RuntimeError, match="closed"):
        queue.put(Document("x", "x"))
