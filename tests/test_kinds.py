"""Quick tests stay quick: who starts a process or loads the parser is told which marker it needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kinds
import pytest

from annotator import Annotator, AnnotatorSettings
from annotator.pipelines import find_model
from lacy_stream.stream.workers.local import LocalWorker


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was refused to this test, which otherwise would fail for it."""
    monkeypatch.setattr(kinds, "_refused", [])
    return kinds._refused


def test_unit_tests_start_no_process(refused: list[str], tokenizer_path: Path) -> None:
    """Neither by subprocess nor as a worker."""
    with pytest.raises(kinds.NotAUnitTest, match="starts a process: mark it with @pytest.mark.process"):
        subprocess.run(["true"])
    with pytest.raises(kinds.NotAUnitTest):
        LocalWorker("a", AnnotatorSettings(tokenizer_path, model=None))
    assert len(refused) == 2, "also a test that catches the error fails"


def test_unit_tests_load_no_parser(refused: list[str], tokenizer_path: Path) -> None:
    """Its first step, which looks for the pipeline, is refused; an annotator without a parser is not."""
    with pytest.raises(kinds.NotAUnitTest, match="loads the parser: mark it with @pytest.mark.parser"):
        find_model("en_core_web_sm")
    Annotator(tokenizer_path, model=None)
    assert len(refused) == 1


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_kinds_are_markers(kind: str, pytestconfig: pytest.Config) -> None:
    """Each kind is a marker with a sentence that explains it."""
    assert any(line.startswith(f"{kind}: ") for line in pytestconfig.getini("markers"))
