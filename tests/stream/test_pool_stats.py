"""What a pool says about its workers."""

from __future__ import annotations

import pytest

from lacy_stream.stream.pool_stats import PoolStats, WorkerRate, describe_places, remote_metrics

HERE = WorkerRate(tokens=1000, cpu_s=10.0)
FIRST, SECOND = WorkerRate(5000, 50.0, place="10.0.0.1"), WorkerRate(9000, 30.0, place="10.0.0.2")
STATS = PoolStats(
    workers=(HERE, FIRST, SECOND),
    seconds=10.0,
    ready=2,
    remote=2,
    places={"": HERE, "10.0.0.1": FIRST, "10.0.0.2": SECOND},
    waiting="1 of 2 remote workers has a place",
)


def test_pool_without_remote_workers_says_nothing_of_machines() -> None:
    """Without remote workers, there is no metric and no line about them."""
    stats = PoolStats(workers=(HERE,), seconds=10.0, ready=1, places={"": HERE})
    assert remote_metrics(stats) == {} and describe_places(stats) == ""


def test_machines_are_metrics() -> None:
    """Each other machine has its speed; cores are CPU seconds per second since the start."""
    assert remote_metrics(STATS) == {
        "workers_ready": 2,
        "workers_wanted": 3,
        "remote_machines": 2,
        "remote_cores": pytest.approx(8.0),
        "machine/10.0.0.1/tokens_per_s_per_core": pytest.approx(100.0),
        "machine/10.0.0.2/tokens_per_s_per_core": pytest.approx(300.0),
    }


def test_summary_names_cores_and_machines() -> None:
    """The line for people says how many cores annotated where, the busiest machine first, and who waits."""
    assert describe_places(STATS) == (
        "annotation used 1.0 cores here and 8.0 on 2 other machine(s) (10.0.0.1: 5.0, 100 tokens/s; 10.0.0.2: 3.0, "
        "300 tokens/s); 1 of 2 remote workers has a place"
    )


def test_many_machines_are_not_all_named() -> None:
    """Eight machines are named, the others are counted."""
    places = {f"10.0.0.{number}": WorkerRate(10, 1.0) for number in range(20)}
    text = describe_places(PoolStats(remote=20, seconds=1.0, places=places))
    assert "20.0 on 20 other machine(s)" in text and text.count("tokens/s") == 8 and text.endswith("; …)")
