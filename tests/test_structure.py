"""The structure that docs/architecture.md promises: import contracts, light imports, one row per file."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_each_test_file_has_a_name_of_its_own() -> None:
    """pytest imports test files by their names alone: of two files with one name it loads the first only."""
    counts = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.process
def test_import_contracts() -> None:
    """Who may import whom (.importlinter): the annotator stands alone, the stages do not know one another."""
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    "module",
    [
        "lacy_stream",
        "lacy_stream.cascade.settings",
        "lacy_stream.objective.methods",
        "lacy_stream.stream.pool",
        "lacy_stream.stream.labels.cache",
        "lacy_stream.recipe",
        "lacy_stream.stream.packing",
        "lacy_stream.foundry.config",
    ],
)
def test_imports_stay_light(module: str) -> None:
    """What workers and the command line import brings in neither torch nor composer nor spaCy."""
    loaded = modules_after(f"import {module}")
    assert module.split(".")[0] in loaded
    assert not loaded & {"torch", "composer", "streaming", "transformers", "spacy"}


@pytest.mark.process
def test_pool_does_not_load_numpy() -> None:
    """numpy reads its thread settings when it is loaded: a worker must be able to set them before."""
    assert "numpy" not in modules_after("import lacy_stream.stream.pool")


@pytest.mark.model
def test_public_names_exist() -> None:
    """Every name that `lacy_stream` lists can be imported from it, and an unknown one is an AttributeError."""
    import lacy_stream

    for name in lacy_stream.__all__:
        assert getattr(getattr(lacy_stream, name), "__name__", name) == name
    with pytest.raises(AttributeError, match="no attribute 'Lacy'"):
        _ = lacy_stream.Lacy


def test_table_has_one_row_per_file() -> None:
    """The table of files in docs/architecture.md (`python docs/files.py`) names every module once, no other."""
    table = re.findall(r"^\| `([a-z_/]+\.py)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    files = [path.relative_to(ROOT).as_posix() for package in ("annotator", "lacy_stream")
             for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]  # fmt: skip
    assert sorted(table) == sorted(files)


def test_every_test_says_what_it_shows() -> None:
    """Every test has a sentence of its own."""
    missing = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        missing += re.findall(
            r"^ *def (test_\w+)\([^\"]*?\)[^\"]*?:\n(?! *(?:r?\"\"\"))", path.read_text(), re.MULTILINE
        )
    assert not missing


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-foundry.txt"])
def test_pinned_set_names_no_index(name: str) -> None:
    """A pinned set holds versions and no addresses: it installs from wherever pip is pointed."""
    text = (ROOT / name).read_text()
    assert "://" not in text
