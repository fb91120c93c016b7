"""Where compiled functions are kept, and what the notice before the first compile promises."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
from filelock import FileLock

from annotator.engine import compiled


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(autouse=True)
def only_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No folder can be written but those of temporary files, as for a user without a home whose packages belong to
    another."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(compiled, "__file__", "/proc/self/compiled.py")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/cache")
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path))
    forget(monkeypatch)
    yield
    compiled._cache_folder.cache_clear()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(compiled, "_KERNELS", [])
    compiled._cache_folder.cache_clear()


def test_folder_that_can_be_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Functions are kept in a folder of this user's among the temporary files, which only it can write; a later start
    finds them there, and says nothing."""
    kernel = compiled.kernel(double)
    with compiled.compile_once():
        assert "once; later starts read it from disk" in caplog.text
        assert kernel(21) == 42
    (folder,) = tmp_path.iterdir()
    assert list(folder.rglob("*.nbc")) and not folder.stat().st_mode & 0o077
    caplog.clear()
    forget(monkeypatch)
    kernel = compiled.kernel(double)
    with compiled.compile_once():
        assert kernel(21) == 42
    assert not caplog.text
    assert numba.config.CACHE_DIR == "", "the functions of others stay where they are"


def test_folder_that_was_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NUMBA_CACHE_DIR holds the functions; where it cannot be written, the next folder does."""
    for named, found in [(str(tmp_path / "named"), "named"), ("/proc/self/named", f"lacy-stream-{os.getuid()}")]:
        monkeypatch.setattr(numba.config, "CACHE_DIR", named)
        forget(monkeypatch)
        assert compiled.kernel(double)(21) == 42
        assert list((tmp_path / found).rglob("*.nbc"))


def test_other_sources_have_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled from another version of any source of the engine is not looked at: it may hold types that this
    version has not."""
    sources = tmp_path / "engine"
    sources.mkdir()
    monkeypatch.setattr(compiled, "__file__", str(sources / "compiled.py"))
    folders = []
    for text in ("A = 1", "A = 2", "A = 1"):
        (sources / "layers.py").write_text(text)
        forget(monkeypatch)
        folders.append(compiled._cache_folder(""))
    assert folders[0] == folders[2] != folders[1]


def test_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the cache is run: a folder that others can write is left alone."""
    compiled.kernel(double)
    (folder,) = tmp_path.iterdir()
    folder.chmod(0o777)
    forget(monkeypatch)
    assert compiled._cache_folder("") is None
    assert compiled.kernel(double)(21) == 42


def test_one_process_compiles_for_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """While another process compiles, this one waits. If that takes too long, it compiles, too; if the functions are
    there by then, it reads them, and lets a third process have its turn at once."""
    monkeypatch.setattr(compiled, "_PATIENCE_S", 0.1)
    kernel = compiled.kernel(double)
    other = FileLock(os.path.join(str(compiled._cache_folder("")), "compiling.lock"))
    with other, compiled.compile_once():
        assert [record.getMessage()[:31] for record in caplog.records] == [
            "another process is compiling th", "compiling the annotation engine"
        ]  # fmt: skip
        assert kernel(21) == 42
    caplog.clear()
    answers = [True, False]
    monkeypatch.setattr(compiled, "_is_cold", lambda: answers.pop(0))
    with compiled.compile_once():
        other.acquire(timeout=0)
    other.release()
    assert not answers and not caplog.records


def test_notice_promises_no_cache_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be written, the notice says that each start compiles, and how to change that."""
    monkeypatch.setattr(compiled.tempfile, "tempdir", "/proc/self")
    assert compiled.kernel(double)(21) == 42
    with caplog.at_level(logging.WARNING), compiled.compile_once():
        pass
    assert "at each start" in caplog.text and "Set NUMBA_CACHE_DIR" in caplog.text and "once" not in caplog.text
