"""Where compiled functions are kept, and what the notice before the first compile promises."""

from __future__ import annotations

import logging
from pathlib import Path

import numba
import pytest
from numba.core import caching

from annotator.engine import compiled


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(autouse=True)
def no_folder_of_numbas(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder can be written but the one that the configuration names, as for a user without a home whose packages
    belong to another."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(compiled, "_KERNELS", [])


def test_folder_that_can_be_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Functions are kept in a folder of this user's among the temporary files, which only it can write; a later start
    finds them there, and says nothing."""
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path))
    kernel = compiled.kernel(double)
    assert compiled.announce_compile() and "once; later starts read it from disk" in caplog.text
    assert kernel(21) == 42
    (folder,) = tmp_path.iterdir()
    assert list(folder.rglob("*.nbc")) and not folder.stat().st_mode & 0o077
    caplog.clear()
    compiled._KERNELS.clear()
    assert compiled.kernel(double)(21) == 42
    assert not compiled.announce_compile() and not caplog.text


def test_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the cache is run: a folder that others can write is left alone."""
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path))
    compiled.kernel(double)
    (folder,) = tmp_path.iterdir()
    numba.config.CACHE_DIR = ""
    folder.chmod(0o777)
    assert compiled._temporary_folder() is None
    assert compiled.kernel(double)(21) == 42


def test_notice_promises_no_cache_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be written, the notice says that each start compiles, and how to change that."""
    monkeypatch.setattr(compiled.tempfile, "tempdir", "/proc/self")
    assert compiled.kernel(double)(21) == 42
    with caplog.at_level(logging.WARNING):
        assert compiled.announce_compile()
    assert "at each start" in caplog.text and "Set NUMBA_CACHE_DIR" in caplog.text and "once" not in caplog.text
