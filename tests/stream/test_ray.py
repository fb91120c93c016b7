"""Workers on a real Ray cluster: several raylets in a network namespace of their own. They come, go and die."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import RayHost, why_no_namespace

pytestmark = pytest.mark.cluster

HEAD, CLIENT = "127.0.0.1:6379", "ray://127.0.0.1:10001"


@pytest.fixture(scope="module")
def host() -> Iterator[RayHost]:
    pytest.importorskip("ray")
    if why := why_no_namespace():
        pytest.skip(why)
    # The name of a socket has at most 107 bytes, of which Ray needs 70: pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        host = RayHost(Path(folder))
        try:
            host.call("ray_scenarios:start_cluster")
            yield host
        finally:
            host.close()


@pytest.fixture(scope="module")
def expected(host: RayHost) -> str:
    """The digest of all labels."""
    return host.call("ray_scenarios:undisturbed")


@pytest.fixture(scope="module")
def expected_rows(host: RayHost) -> list[str]:
    """The digests of the rows of a run of one rank, and of both ranks of another."""
    return host.call("ray_scenarios:undisturbed_rows")


def annotated(host: RayHost, scenario: str, *arguments: Any) -> dict[str, Any]:
    return host.call(f"ray_scenarios:{scenario}", *arguments)


def reasons(found: dict[str, Any], event: str) -> list[str]:
    """What the report says of an event."""
    lines = [json.loads(line) for line in found["report"].splitlines()]
    return [f"{line['what']}: {line['reason']}" for line in lines if line["event"] == event]


def test_remote_workers_give_the_same_labels(host: RayHost, expected: str) -> None:
    """Two workers of a cluster, and none here, label as the annotator does; nothing is restarted. Ray's dashboard shows
    which worker of which rank an actor is."""
    found = annotated(host, "remote_alone")
    assert found["digest"] == expected and found["counts"].get("worker_restarted", 0) == 0
    assert set(found["places"]) == {"127.0.0.1"}
    for number in (0, 1):
        assert any(f"remote worker {number} of rank 0 on " in name for name in found["names"])


def test_too_few_cpus_are_used_and_named(host: RayHost, expected: str) -> None:
    """Local and remote workers serve one queue; those without a CPU are said to wait."""
    found = annotated(host, "local_and_remote")
    assert found["digest"] == expected and all(found["places"][place] for place in ("", "127.0.0.1"))
    assert "2 of 3 remote workers have a place: the cluster has 2 CPUs on 1 machine(s)" in found["waiting"]


def test_ray_client_gives_the_same_labels(host: RayHost, expected: str) -> None:
    """A trainer that is no part of the cluster reaches it through Ray Client."""
    found = annotated(host, "ray_client")
    assert found["digest"] == expected and found["places"]["127.0.0.1"]


def test_two_ranks_share_the_cluster(host: RayHost, expected_rows: list[str]) -> None:
    """Two ranks ask for four workers each, and there are two CPUs: each gets one, also the second to come, and says
    that they share. The rows of each are those with a local worker."""
    found = host.call("ray_scenarios:two_ranks")
    assert found["actors"] == 2 and [rank["digest"] for rank in found["ranks"]] == expected_rows[1:]
    assert len(set(expected_rows)) == 3
    for rank in found["ranks"]:
        assert rank["ready"] == 1
        assert "1 of 4 remote workers have a place: the cluster has 2 CPUs on 1 machine(s)" in rank["waiting"]
        assert "2 ranks share them" in rank["waiting"]


def test_labeller_comes_with_py_modules(host: RayHost) -> None:
    """A labeller that the machines do not have is sent to them; without that, they are refused by name."""
    found = annotated(host, "modules", True)
    assert found["digest"] == found["expected"] and "worker_refused" not in found["counts"]
    found = annotated(host, "modules", False)
    assert found["digest"] == found["expected"]
    assert "there is no module 'own_labeller'" in reasons(found, "worker_refused")[0]


@pytest.mark.parametrize(
    ("address", "variables", "problem"),
    [
        (HEAD, {"RAY_AUTH_TOKEN": "a wrong one"}, "does not accept the token in RAY_AUTH_TOKEN"),
        (CLIENT, {"RAY_AUTH_TOKEN": "a wrong one"}, "does not accept the token in RAY_AUTH_TOKEN"),
        (HEAD, {"RAY_AUTH_TOKEN": None, "HOME": "/nowhere"}, "wants a token, and there is no RAY_AUTH_TOKEN"),
        (HEAD, {"RAY_AUTH_MODE": None}, "wants a token, and RAY_AUTH_MODE is not set"),
    ],
    ids=["wrong", "wrong-client", "missing", "not-set"],
)
def test_run_without_the_token_ends(host: RayHost, address: str, variables: dict[str, str], problem: str) -> None:
    """The cluster of all these tests wants a token. A run that does not have it ends at once and says so; it is not
    tried again and again."""
    found = host.call("ray_access:refused", address, variables)
    assert f"no remote worker can start: the Ray cluster {address!r}: it {problem}" in found["error"]
    assert "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in found["error"]
    assert "a wrong one" not in found["error"] and found["seconds"] < 20


def test_other_versions_end_the_run(host: RayHost) -> None:
    """A cluster that was started with other versions of Ray and Python: the run ends, and names both."""
    found = host.call("ray_access:refused_with_other_versions", "2.50.0", "3.9.1")
    assert "'127.0.0.1:6379': it runs Ray 2.50.0 on Python 3.9.1, and this process Ray 2." in found["error"]
    assert "Give all machines the same versions" in found["error"] and found["seconds"] < 20


def test_odd_machines_are_refused_alone(host: RayHost) -> None:
    """Machines without the package, without the parser, or with another version of the labeller are refused, with their
    address and what is wrong, and counted. The others serve."""
    labelled, parsed = host.call("ray_scenarios:odd_machines")
    for found in (labelled, parsed):
        refused = reasons(found, "worker_refused")
        assert found["counts"]["worker_refused"] >= 2 and all(" on 127.0.0.1: " in line for line in refused)
        assert any("No module named 'lacy_stream'" in line for line in refused)
    assert "labeller_version: '2' there, '1' in the others" in labelled["report"]
    assert "Refused: 127.0.0.1" in labelled["waiting"]
    assert "no spaCy pipeline 'en_core_web_sm' is installed. Install it with" in parsed["report"]


def test_killed_actor_does_not_show(host: RayHost, expected: str) -> None:
    """SIGKILL of an actor: it is replaced, and the labels are those of an undisturbed run."""
    found = annotated(host, "actor_killed")
    assert found["digest"] == expected and not found["quarantine"] and found["counts"]["worker_restarted"] >= 1


def test_rows_do_not_show_who_annotated(host: RayHost, expected_rows: list[str]) -> None:
    """The rows of some epochs are those of a local worker alone, though remote workers die and come again at random
    moments."""
    disturbed = annotated(host, "disturbed_rows")
    assert disturbed["digest"] == expected_rows[0] and disturbed["kills"] >= 1 and not disturbed["quarantine"]


def test_killed_bridge_does_not_show(host: RayHost, expected: str) -> None:
    """SIGKILL of the bridge: the local worker continues, a new bridge is started, and no document is blamed."""
    found = annotated(host, "bridge_killed")
    assert found["digest"] == expected and not any(found["blames"]) and found["counts"]["cluster_unreachable"] == 1
    assert "ended with exit code -9" in reasons(found, "cluster_unreachable")[0]


def test_machine_that_comes_stands_still_and_dies_does_not_show(host: RayHost, expected: str) -> None:
    """A machine that joins in the middle serves. When it is stopped (SIGSTOP), what it holds is given to others long
    before Ray takes it for dead. When it is killed, what it held is done by others, and not blamed."""
    come, stopped, killed = host.call("ray_scenarios:machine_comes_stands_still_and_dies")
    for found in (come, stopped, killed):
        assert found["digest"] == expected and not found["quarantine"] and not any(found["blames"])
    assert stopped["counts"]["worker_overdue"] >= 1 and stopped["seconds"] < 55
    assert killed["counts"]["worker_restarted"] >= 1


def test_nothing_at_the_address(host: RayHost, expected: str) -> None:
    """Without a cluster the local worker does all, and the report says why."""
    found = annotated(host, "nothing_at_the_address")
    assert found["digest"] == expected
    assert "Connection refused" in reasons(found, "cluster_unreachable")[0]


def test_actors_die_with_their_rank(host: RayHost) -> None:
    """SIGKILL of a rank: its bridge, its local worker and its actors are gone."""
    assert annotated(host, "rank_killed")


def test_killed_head_does_not_show(host: RayHost, expected: str) -> None:
    """The head is killed: the local worker does the rest, and a new cluster at the same address serves."""
    found = annotated(host, "head_killed")
    assert found["digest"] == expected and not any(found["blames"]) and found["counts"]["cluster_unreachable"] >= 1
