"""Where the workers of other machines are, and how many: the section ``annotator.remote`` of a recipe."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from lacy_stream.errors import UsageError
from lacy_stream.schema import Positive, PositiveFloat, Section

CLIENT = "ray://"
_CLIENT_PORT = 10001  # Ray Client's, as Ray sets it


def _check_address(address: str) -> str:
    if address != "auto" and split_address(address) is None:
        raise ValueError("is neither auto, HOST:PORT nor ray://HOST:PORT")
    if address.endswith(f":{_CLIENT_PORT}") and not address.startswith(CLIENT):
        raise ValueError(f"has the port of Ray Client: write {CLIENT}{address}, or give the port of the head, 6379")
    return address


class RemoteSettings(Section):
    """Annotation workers on other machines, actors of a Ray cluster that is running."""

    address: Annotated[str, AfterValidator(_check_address)]
    """The cluster: `HOST:PORT` of its head, where this machine is part of it; `auto`, the cluster that this machine is
    part of; or `ray://HOST:PORT`, Ray Client, where it is not."""
    num_workers: Annotated[Positive, Field(le=4096)]
    """Workers of each rank, of one CPU each; beside `annotator.num_workers`, the local ones. If the cluster has fewer
    CPUs, the ranks share what there is."""
    py_modules: list[str] = []
    """Folders of Python packages that the workers get, such as that of a labeller; or URIs that Ray can download."""
    wait_limit_s: PositiveFloat = 600.0
    """Seconds that the run waits while it has no worker at all; only where `annotator.num_workers` is 0."""
    allow_unauthenticated: bool = False
    """Whether to use a cluster on a network without Ray's token authentication. Anyone who can reach such a cluster can
    run code on it."""


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None for `auto`, and for what is no address."""
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        return None
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, on an interface that no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def why_unsafe(address: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Say why a cluster must not be used without permission; None if it may."""
    place = split_address(address)
    if place is None or is_loopback(place[0]) or environment.get("RAY_AUTH_MODE") == "token":
        return None
    return (
        f"{address!r} is on a network, and RAY_AUTH_MODE is not token, so anyone who can reach the cluster can run "
        "code on it. Set RAY_AUTH_MODE=token for the cluster and the run, or allow_unauthenticated: true"
    )


def describe_token(environment: Mapping[str, str] = os.environ) -> str:
    """Say why a cluster that wants a token does not accept this process, without the token itself, and the way out."""
    path = environment.get("RAY_AUTH_TOKEN_PATH")
    if environment.get("RAY_AUTH_MODE") != "token":
        problem = f"wants a token, and RAY_AUTH_MODE is {environment.get('RAY_AUTH_MODE', 'not set')}"
    elif environment.get("RAY_AUTH_TOKEN"):
        problem = "does not accept the token in RAY_AUTH_TOKEN"
    elif Path(path or "~/.ray/auth_token").expanduser().is_file():
        problem = f"does not accept the token in the file {path or '~/.ray/auth_token'}"
    else:
        problem = f"wants a token, and there is no {'file ' + path if path else 'RAY_AUTH_TOKEN'}"
    return (
        f"it {problem}. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token of the cluster or RAY_AUTH_TOKEN_PATH "
        "to a file that has it"
    )


def check_remote(remote: RemoteSettings) -> None:
    """Check what can be checked without the cluster.

    Raises:
        UsageError: Ray is not installed, a folder of ``py_modules`` does not exist, or the address is not safe.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("remote: Ray is not installed here: pip install 'lacy-stream[ray]'")
    for folder in remote.py_modules:
        if "://" not in folder and not Path(folder).is_dir():
            raise UsageError(f"remote.py_modules: there is no folder {folder!r}")
    unsafe = None if remote.allow_unauthenticated else why_unsafe(remote.address)
    if unsafe is not None:
        raise UsageError(f"remote.address: {unsafe}")
