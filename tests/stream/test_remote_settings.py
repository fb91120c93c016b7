"""Which clusters may be used, and what is wrong with a section ``remote``: nothing here needs Ray's processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from pydantic import ValidationError

from lacy_stream.errors import UsageError
from lacy_stream.stream.workers.remote_settings import (
    RemoteSettings,
    check_remote,
    describe_token,
    split_address,
    why_unsafe,
)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("head", "neither auto, HOST:PORT nor ray://HOST:PORT"),
        ("head:0", "neither auto"),
        ("http://head:6379", "neither auto"),
        ("ray://head", "neither auto"),
        ("head:10001", "write ray://head:10001"),
        ("", "neither auto"),
    ],
)
def test_address_that_is_none(address: str, problem: str) -> None:
    """An address without its port, or with the port of Ray Client and without its scheme, is named."""
    with pytest.raises(ValidationError, match=problem):
        RemoteSettings(address=address, num_workers=1)


def test_addresses() -> None:
    """Host and port of all forms; `auto` has none yet."""
    assert split_address("head:6379") == split_address("ray://head:6379") == ("head", 6379)
    assert split_address("[fd00::5]:6379") == ("fd00::5", 6379) and split_address("auto") is None


@pytest.mark.parametrize("address", ["10.0.0.5:6379", "ray://head.cluster:10001", "[fd00::5]:6379", "0.0.0.0:6379"])
def test_open_cluster_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that others can reach needs token authentication, or a user who says that it does not."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    remote = RemoteSettings(address=address, num_workers=1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="remote.address: .* is on a network, and RAY_AUTH_MODE is not token"):
        check_remote(remote)
    check_remote(remote.model_copy(update={"allow_unauthenticated": True}))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_remote(remote)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "ray://127.0.0.2:10001", "[::1]:6379", "auto"])
def test_own_cluster_needs_no_token(address: str) -> None:
    """On loopback nobody else reaches it; `auto` is judged when it is connected."""
    assert why_unsafe(address, {}) is None


def test_token_is_described_and_not_shown(tmp_path: Path) -> None:
    """What a cluster does not accept is named by the variable or the file that it comes from."""
    file = tmp_path / "token"
    file.write_text("secret")
    mode = {"RAY_AUTH_MODE": "token"}
    for environment, problem in (
        ({}, "it wants a token, and RAY_AUTH_MODE is not set"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}, "it wants a token, and RAY_AUTH_MODE is disabled"),
        (mode | {"RAY_AUTH_TOKEN": "secret"}, "it does not accept the token in RAY_AUTH_TOKEN"),
        (mode | {"RAY_AUTH_TOKEN_PATH": str(file)}, f"it does not accept the token in the file {file}"),
        (mode | {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "it wants a token, and there is no file /nowhere"),
    ):
        text = describe_token(environment)
        assert text.startswith(f"{problem}. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN") and "secret" not in text


def test_missing_ray_and_modules_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra, the message says how to install it; a folder that does not exist is named."""
    remote = RemoteSettings(address="auto", num_workers=1, py_modules=[str(tmp_path), "s3://bucket/x.zip", "nowhere"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="remote.py_modules: there is no folder 'nowhere'"):
        check_remote(remote)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Ray is not installed here: pip install 'lacy-stream\[ray\]'"):
        check_remote(remote)


def test_run_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe with an open cluster ends with its key and the way out."""
    from lacy_stream.recipe import Annotation, RecipeError
    from lacy_stream.train.trainer import _check_annotator

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    remote = RemoteSettings(address="10.0.0.5:6379", num_workers=1)
    with pytest.raises(RecipeError, match="annotator.remote.address: '10.0.0.5:6379' is on a network, .*allow_unauth"):
        _check_annotator(Annotation(remote=remote))
