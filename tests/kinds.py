"""Kinds of tests, as a plugin of pytest: who has which marker, what quick tests may not do, who runs beside whom.

A test without a marker is of the kind `unit`, and `make quick` runs these. The others take what costs seconds:

    process  starts processes, servers or ranks
    parser   loads spaCy and its pipeline
    model    makes, loads or trains a model
    cluster  starts a Ray cluster
    slow     takes more than 20 seconds

A test that uses one of the fixtures below has its kind without a marker. A file of one kind says `pytestmark`, and is
not even imported by `make quick`. A unit test that takes what it may not take fails and is told which marker it
needs.
"""

from __future__ import annotations

import _posixsubprocess
import functools
import gc
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import annotator.pipelines

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker of pytest-xdist for each core: with more threads they would wait for one another, spinning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

gc.disable()  # until all tests are imported: what they import stays, and looking for garbage in it takes seconds

KINDS = ("process", "parser", "model", "cluster", "slow")
FIXTURES = {
    "annotator": "parser",
    "hf": "model",
    "smollm": "model",
    "tiny_model": "model",
    "tiny_partner": "model",
    "wordy_model": "model",
}
LOADED_ONCE = ("smollm", "hf", "gpu_check")
"""Fixtures that take long to make: the tests of each, and of each of its parameters, run in one process."""
_pytestmark = re.compile(rf"^pytestmark = .*\bmark\.({'|'.join(KINDS)})\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m unit` does not import files of another kind, since their imports alone take most of its time."""
    if config.option.markexpr == "unit" and collection_path.name.startswith("test_"):
        return bool(_pytestmark.search(collection_path.read_text(encoding="utf-8"))) or None
    return None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto` is a process for each core, and one more unless only unit tests run: the tests of a cluster wait for
    most of their time."""
    return (os.cpu_count() or 1) + (config.option.markexpr != "unit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its kinds. For pytest-xdist's loadgroup, the tests of a file stay together, since they share
    fixtures, and those of what takes long to load; other slow tests are free. There, what takes longest comes first, so
    that it does not end last."""
    files: dict[Path, list[bool]] = {}
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in FIXTURES:
                item.add_marker(FIXTURES[fixture])
        if not kinds(item):
            item.add_marker("unit")
        shared = next((name for name in LOADED_ONCE if name in getattr(item, "fixturenames", ())), None)
        if shared is not None:
            parameters = getattr(item, "callspec", None)
            item.add_marker(
                pytest.mark.xdist_group(f"{shared} {parameters.params.get(shared, '') if parameters else ''}")
            )
        elif item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(item.config.rootpath).as_posix()))
            files[item.path] = min(files.get(item.path, weight(item)), weight(item))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: weight(item) if "slow" in kinds(item) else files.get(item.path, weight(item)))


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not in what was imported."""
    gc.freeze()
    gc.enable()


def weight(item: pytest.Item) -> list[bool]:
    """Sorts heavier tests first. The tests of a cluster are one group, which takes longest of all."""
    return [kind not in kinds(item) for kind in ("cluster", "slow", *KINDS)]


def kinds(item: pytest.Item) -> list[str]:
    """The kinds of a test, `unit` aside."""
    return [kind for kind in KINDS if item.get_closest_marker(kind) is not None]


# --- what a unit test may not do ----------------------------------------------------------------------------------

_unit_test_runs = False
_refused: list[str] = []


class NotAUnitTest(Exception):
    """A unit test does what it may not do."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Refuse processes and the parser during a unit test and its fixtures."""
    global _unit_test_runs
    _unit_test_runs = item.get_closest_marker("unit") is not None
    try:
        return (yield)
    finally:
        _unit_test_runs = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[object]:
    """Fail also the test that caught the error, or in which another thread had it."""
    try:
        return (yield)
    finally:
        refused = _refused.copy()
        _refused.clear()
        if refused:
            pytest.fail(refused[0], pytrace=False)


def refuse_to_unit_tests(holder: object, name: str, deed: str, kind: str) -> None:
    """Replace a function by one that fails if a unit test calls it."""
    function = getattr(holder, name)

    @functools.wraps(function)
    def watched(*args: object, **options: object) -> object:
        if _unit_test_runs:
            _refused.append(f"this unit test {deed}: mark it with @pytest.mark.{kind} (see tests/kinds.py)")
            raise NotAUnitTest(_refused[-1])
        return function(*args, **options)

    setattr(holder, name, watched)


refuse_to_unit_tests(subprocess.Popen, "__init__", "starts a process", "process")
refuse_to_unit_tests(_posixsubprocess, "fork_exec", "starts a process", "process")
refuse_to_unit_tests(os, "fork", "starts a process", "process")
refuse_to_unit_tests(annotator.pipelines, "find_model", "loads the parser", "parser")
