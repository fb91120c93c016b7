"""Why a bridge cannot reach its cluster, and whether that may change. Ray itself is not imported."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from lacy_stream.stream.workers import bridge
from lacy_stream.stream.workers.bridge import BridgeSettings


@pytest.fixture
def address() -> Iterator[str]:
    """Where something listens that is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def settings(address: str) -> BridgeSettings:
    return BridgeSettings(address, (), False, "test", b"", "")


def join_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def join(settings: BridgeSettings) -> str | None:
        raise error

    monkeypatch.setattr(bridge, "_join", join)
    monkeypatch.setattr(bridge, "_wants_other_token", lambda address: False)


def test_nothing_listens() -> None:
    """A refused connection is known at once, and may be another one later."""
    failure = bridge._connect(settings("127.0.0.1:1"))
    assert failure is not None and "Connection refused" in failure["reason"] and not failure["forever"]


def test_machine_that_is_no_part_of_the_cluster(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray cannot connect, the way out is named: a raylet here, or Ray Client. For Ray Client it is not."""
    join_fails(monkeypatch, ConnectionError("Failed to connect to Ray cluster"))
    failure = bridge._connect(settings(address))
    assert failure is not None and not failure["forever"]
    assert f"`ray start --address={address} --num-cpus=0` on it, or give ray://HOST:10001" in failure["reason"]
    failure = bridge._connect(settings(f"ray://{address}"))
    assert failure is not None and failure["reason"] == "Failed to connect to Ray cluster"


def test_other_versions_are_for_ever(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of Ray or Python, as Ray words it, will not change by waiting. Both sides are named; where Ray
    words it otherwise, its own text is."""
    way_out = "Give all machines the same versions, such as by one image"
    text = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.10.13\n"
        "This process on node 10.0.0.7 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    join_fails(monkeypatch, RuntimeError(text))
    reason = f"it runs Ray 2.50.0 on Python 3.10.13, and this process Ray 2.60.0 on Python 3.11.7. {way_out}"
    assert bridge._connect(settings(address)) == {"reason": reason, "forever": True}
    join_fails(monkeypatch, RuntimeError("Version mismatch:\n  2.50.0 here"))
    reason = f"Version mismatch: 2.50.0 here. {way_out}"
    assert bridge._connect(settings(address)) == {"reason": reason, "forever": True}


def test_token_that_ray_hides_is_for_ever(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says of a wrong token that it failed to connect; the cause says why."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    error = ConnectionError("Failed to connect to Ray cluster")
    error.__cause__ = RuntimeError("Last connection error: ray.exceptions.AuthenticationError: InvalidAuthToken")
    join_fails(monkeypatch, error)
    failure = bridge._connect(settings(address))
    assert failure is not None and failure["forever"] and "secret" not in failure["reason"]
    assert failure["reason"].startswith("it does not accept the token in RAY_AUTH_TOKEN. Set RAY_AUTH_MODE=token, and")
