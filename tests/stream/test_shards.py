"""Samples from real MDS folders; what is missing, damaged or hostile is an error that names it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import forked, processes
from streaming import MDSWriter
from streaming.base.util import merge_index

from lacy_stream.stream import download
from lacy_stream.stream.report import Report
from lacy_stream.stream.shards import DataError, Shards

DOCUMENTS = 57
IDS = [f"doc-{number}" for number in range(DOCUMENTS)]


def write(
    folder: Path,
    count: int = DOCUMENTS,
    columns: dict[str, str] | None = None,
    size_limit: int = 2000,
    words: int = 20,
    **options: object,
) -> Path:
    columns = columns or {"id": "str", "text": "str"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=size_limit, **options) as writer:
        for number in range(count):
            row = {"id": f"doc-{number}", "text": f"Title {number}\n\n" + f"word{number} " * words, "tokens": b"1"}
            writer.write({name: row[name] for name in columns})
    return folder


def ids(shards: Shards) -> list[str]:
    return [shards.read(sample)["id"] for sample in range(len(shards))]


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply a change to the first shard's entry of an index."""
    index = json.loads((folder / "index.json").read_text())
    change(index["shards"][0])
    (folder / "index.json").write_text(json.dumps(index))


def flip(path: Path, at: float = 0.5) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.02)


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "hashes": ["sha1", "xxh64"]}])
def test_each_sample_in_the_order_of_the_index(tmp_path: Path, options: dict) -> None:
    """Sample n is the nth that was written, with all its columns; there is none before the first or past the last."""
    shards = Shards(write(tmp_path / "data", **options))
    assert ids(shards) == IDS
    assert shards.read(3) == {"id": "doc-3", "text": "Title 3\n\n" + "word3 " * 20}
    assert (shards.columns, int(shards.sizes.sum()), len(shards)) == (["id", "text"], DOCUMENTS, DOCUMENTS)
    for outside in (-1, DOCUMENTS):
        with pytest.raises(IndexError, match=str(outside)):
            shards.read(outside)


def test_digest_tells_data_sets_apart(tmp_path: Path) -> None:
    """The same data in another folder has the same digest, other data of the same size another one."""
    same = [Shards(write(tmp_path / name, hashes=["xxh64"])).digest for name in ("a", "b")]
    other = Shards(write(tmp_path / "c", hashes=["xxh64"], words=19)).digest
    assert same[0] == same[1] != other


@pytest.mark.parametrize("compression", ["zstd", "gz", None])
def test_remote_is_fetched_into_local(tmp_path: Path, compression: str | None) -> None:
    """With a remote, `local` is a cache that fills as samples are read, and holds nothing but whole raw shards."""
    remote, local = write(tmp_path / "remote", compression=compression), tmp_path / "local"
    shards = Shards(local, str(remote))
    assert not list(local.glob("*.mds"))
    assert ids(shards) == IDS
    kept = {path.name for path in local.iterdir() if not path.name.endswith(".lock")}
    assert kept == {"index.json", *(path.name.removesuffix(f".{compression}") for path in remote.glob("shard*"))}


def test_merged_index_with_sub_folders(tmp_path: Path) -> None:
    """Streaming's merge_index puts sub-folders into the file names: such a data set works, also as a remote."""
    for part in ("0", "1"):
        write(tmp_path / "remote" / part, compression="zstd")
    merge_index(str(tmp_path / "remote"))
    assert ids(Shards(tmp_path / "local", str(tmp_path / "remote"))) == IDS * 2
    assert len(list(tmp_path.glob("local/1/shard.*.mds"))) > 1


def test_compressed_copies_in_the_cache_are_used(tmp_path: Path) -> None:
    """A cache that was filled by hand with the compressed files is used, without the remote."""
    write(tmp_path / "local", compression="zstd")
    assert ids(Shards(tmp_path / "local", str(tmp_path / "gone"), download_retry=0)) == IDS


def test_read_only_folder(tmp_path: Path) -> None:
    """Uncompressed shards can be read where nothing can be written, and nothing is."""
    folder = write(tmp_path / "data")
    before = sorted(folder.iterdir())
    assert ids(Shards(folder)) == IDS
    assert sorted(folder.iterdir()) == before


def test_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    """No data: the error names the folder and the command that makes it, and the folder is not made."""
    with pytest.raises(DataError, match="nowhere.*lacy-stream prepare"):
        Shards(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_unknown_kind_of_remote(tmp_path: Path) -> None:
    """A remote that Streaming has no downloader for is an error that names it, without its password."""
    with pytest.raises(DataError, match="gopher.*Unsupported"):
        Shards(tmp_path, "gopher://host/data")


@pytest.mark.parametrize("setting", [{"download_retry": -1}, {"download_timeout": 0.0}])
def test_impossible_settings(tmp_path: Path, setting: dict) -> None:
    """A negative number of attempts, or no time for them, is refused by name."""
    with pytest.raises(ValueError, match=next(iter(setting))):
        Shards(tmp_path, **setting)


NOT_AN_INDEX = [
    "", "{", "[]", "null", "7", '"index"', '{"version": 2}', '{"version": 2, "shards": []}',
    '{"version": 2, "shards": 1}',
    '{"version": 2, "shards": [1]}', '{"version": 2, "shards": [{}]}', '{"version": 3, "shards": []}', "[" * 100_000,
    '{"version": 1' + "0" * 5000 + "}", "\xff\x00",
]  # fmt: skip


@pytest.mark.parametrize("content", NOT_AN_INDEX)
@pytest.mark.parametrize("where", ["local", "remote"])
def test_corrupt_index_is_refused(tmp_path: Path, content: str, where: str) -> None:
    """What is no index of MDS shards, here or at a remote, is an error that names the folder; nothing is kept."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "index.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=f"no usable MDS index at {folder}"):
        Shards(folder) if where == "local" else Shards(tmp_path / "cache", str(folder), download_retry=1)
    assert not [path for path in tmp_path.glob("cache/*") if path.name != ".index.json.lock"]


def raw(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry["raw_data"].update(values)


def top(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry.update(values)


UNSAFE = [
    raw(basename="../../evil.mds"), raw(basename="/tmp/evil.mds"), raw(basename="a/../../evil.mds"), raw(basename=""),
    raw(basename=".hidden"), raw(basename="index.json"), raw(basename="a\x00b"), raw(basename="a\x1b[2J"),
    raw(basename=7), raw(basename="x" * 300), raw(basename="shard.00001.mds"), raw(bytes=-1), raw(bytes=2**70),
    raw(bytes=1.5), raw(bytes="9"), raw(bytes=True), raw(hashes=["xxh64"]), raw(hashes={"xxh64": 1}),
    top(raw_data=None), top(samples=-1), top(samples=2**62), top(samples=10**300), top(samples=None), top(samples=1e3),
    top(column_encodings=["str", "pkl"]), top(column_encodings=["str", "pkl:x"]), top(column_encodings=["str", "no:x"]),
    top(column_encodings=["str"]), top(column_encodings="pkl"), top(column_names=["id", "id"]), top(column_names=None),
    top(column_sizes=[None, -1]), top(column_sizes=[None]), top(compression="zip"), top(compression="zstd"),
    top(compression=["zstd"]), top(zip_data={"basename": "../x", "bytes": 1, "hashes": {}}), top(format="csv"),
    top(format=None), top(version=1), top(more=1), top(size_limit=[1]), lambda entry: entry.pop("zip_data"),
]  # fmt: skip


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with hashes, to be copied."""
    return write(tmp_path_factory.mktemp("hashed"), hashes=["xxh64"])


@pytest.mark.parametrize("change", UNSAFE)
@pytest.mark.parametrize("where", ["local", "remote"])
def test_unsafe_index_is_refused(
    tmp_path: Path, hashed: Path, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    """An index with a file name that leads out of the folder, a pickled column, an impossible number, a wrong type
    or an unknown field is refused, here or at a remote, and nothing is written for it."""
    folder = shutil.copytree(hashed, tmp_path / "data")
    change_index(folder, change)
    with pytest.raises(DataError, match=f"{folder}.*unsafe entry"):
        Shards(folder) if where == "local" else Shards(tmp_path / "cache", str(folder))
    assert {path.name for path in tmp_path.rglob("*") if path.parent != folder} <= {"data", "cache", ".index.json.lock"}


def test_shards_with_different_columns_are_refused(tmp_path: Path) -> None:
    """The columns of the first shard are those of all, or the data set is refused."""
    folder = write(tmp_path / "data")
    change_index(folder, top(column_names=["id", "content"]))
    with pytest.raises(DataError, match="different columns"):
        Shards(folder)


def test_index_that_contradicts_the_shard(tmp_path: Path) -> None:
    """A number of samples that is not the shard's own, and a table that leads out of the file, name the shard."""
    folder = write(tmp_path / "data")
    change_index(folder, lambda entry: entry.update(samples=entry["samples"] - 1))
    with pytest.raises(DataError, match=r"shard.00000.mds has \d+ samples, but the index says \d+"):
        ids(Shards(folder))
    change_index(folder, lambda entry: entry.update(samples=entry["samples"] + 1))
    data = bytearray((folder / "shard.00000.mds").read_bytes())
    data[12:16] = b"\xff\xff\xff\xff"
    (folder / "shard.00000.mds").write_bytes(data)
    with pytest.raises(DataError, match="shard.00000.mds.*its samples lie outside"):
        ids(Shards(folder))


def test_sample_that_cannot_be_decoded(tmp_path: Path) -> None:
    """A sample that is not what its column says is an error that names it, its shard and the folder."""
    folder = write(tmp_path / "data")
    data = (folder / "shard.00000.mds").read_bytes()
    (folder / "shard.00000.mds").write_bytes(data.replace(b"Title 2", b"Title \xff"))
    with pytest.raises(DataError, match=f"sample 2 of shard shard.00000.mds of {folder} .*UnicodeDecodeError"):
        ids(Shards(folder))


@pytest.mark.parametrize("compression", ["zstd", None])
@pytest.mark.parametrize(
    ("damage", "hashes"), [("missing", []), ("truncated", []), ("truncated", ["xxh64"]), ("flipped", ["xxh64"])]
)
def test_damaged_shard_is_named(tmp_path: Path, damage: str, compression: str | None, hashes: list[str]) -> None:
    """A shard that is missing, cut or changed, and cannot be fetched again, is an error that names it, never a
    shorter epoch."""
    folder = write(tmp_path / "data", compression=compression, hashes=hashes)
    path = sorted(folder.glob("shard.00001*"))[0]
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path)
    with pytest.raises(DataError, match=f"shard.00001.mds of {folder} .*({damage}|has .* bytes|damaged)"):
        ids(Shards(folder))


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
@pytest.mark.parametrize("compression", ["zstd", None])
def test_damaged_copy_is_fetched_again(tmp_path: Path, damage: str, compression: str | None) -> None:
    """A raw shard that is cut or changed in the cache comes again from the remote, or from the compressed file
    beside it, and is counted."""
    remote, local, report = (
        write(tmp_path / "remote", compression=compression, hashes=["xxh64"]),
        tmp_path / "l",
        Report(),
    )
    folders = [(local, str(remote))] + ([(remote, None)] if compression else [])
    for number, (folder, source) in enumerate(folders, 1):
        ids(Shards(folder, source))
        path = folder / "shard.00001.mds"
        path.write_bytes(path.read_bytes()[:-3]) if damage == "truncated" else flip(path)
        assert ids(Shards(folder, source, report=report)) == IDS
        assert ids(Shards(folder, source, report=report)) == IDS
        assert report.counts()["shard_fetched_again"] == number


def test_damaged_index_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    """An index that is cut in the cache comes again from the remote, and is counted."""
    remote, local, report = write(tmp_path / "remote"), tmp_path / "local", Report()
    Shards(local, str(remote))
    (local / "index.json").write_bytes((remote / "index.json").read_bytes()[:100])
    assert ids(Shards(local, str(remote), report=report)) == IDS
    assert report.counts()["shard_fetched_again"] == 1


def test_shards_that_vanish_from_the_cache(tmp_path: Path) -> None:
    """When someone empties the cache during a run, the shards are fetched again."""
    remote, local = write(tmp_path / "remote", compression="zstd"), tmp_path / "local"
    shards = Shards(local, str(remote))
    for _ in range(2):
        assert ids(shards) == IDS
        for path in local.glob("*.mds"):
            path.unlink()


def test_damaged_source_is_left_alone(tmp_path: Path) -> None:
    """A shard that is damaged at its source is fetched twice, then an error; the source is not touched, and nothing
    is left in the cache that could be taken for the shard."""
    remote = write(tmp_path / "remote", compression="zstd", hashes=["xxh64"])
    path = sorted(remote.glob("shard.00001*"))[0]
    flip(path)
    damaged, report = path.read_bytes(), Report()
    with pytest.raises(DataError, match=f"shard.00001.mds.*after 2 attempts: {path}: .* xxh64 differs"):
        ids(Shards(tmp_path / "local", str(remote), report=report))
    with pytest.raises(DataError, match="shard.00001.mds.*xxh64"):
        ids(Shards(remote))
    assert path.read_bytes() == damaged
    assert report.counts()["download_retried"] == 1
    assert not [path for path in (tmp_path / "local").glob("*shard.00001*") if path.suffix != ".lock"]


def test_without_hashes_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A data set without hashes is read with a warning at the start; one with hashes without."""
    plain, hashed = write(tmp_path / "plain"), write(tmp_path / "hashed", compression="zstd", hashes=["md5"])
    with caplog.at_level(logging.WARNING):
        Shards(hashed)
        assert not caplog.records
        Shards(plain)
        assert "no hash of 6 of 6 shards" in caplog.text and str(plain) in caplog.text


def test_unknown_hash_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A hash that this Python cannot compute is no hash: the warning comes, and the data can be read."""
    folder = write(tmp_path / "data", size_limit=100_000)
    change_index(folder, raw(hashes={"blake9": "00"}))
    assert ids(Shards(folder)) == IDS
    assert "no hash of 1 of 1 shards" in caplog.text


LEFT = "{0}.tmp {0}.6eF3aB21 {0}.zstd {0}.zstd.tmp .{0}.abcdefgh.part/{0}.zstd".format("shard.00001.mds").split()


def test_what_a_killed_process_leaves(tmp_path: Path) -> None:
    """Cut files of every name that a killed download leaves are never taken for a shard, and the folders that ours
    leave are removed."""
    remote, local, report = write(tmp_path / "remote", compression="zstd"), tmp_path / "local", Report()
    for name in LEFT:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(b"cut")
    assert ids(Shards(local, str(remote), report=report)) == IDS
    assert not list(local.glob(".*.part"))
    assert report.counts()["shard_fetched_again"] == 1  # the compressed one that was cut


def die_while_writing(local: Path, remote: Path) -> None:
    shards = Shards(local, str(remote))
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    shards.read(0)


@pytest.mark.process
def test_killed_while_writing(tmp_path: Path) -> None:
    """A process that is killed in the middle of every write to its cache leaves nothing that another believes."""
    remote, local = write(tmp_path / "remote", compression="zstd"), tmp_path / "local"
    process = forked(die_while_writing, local, remote)
    process.start()
    process.join(300)
    assert process.exitcode == -9
    assert list(local.glob(".shard.00000.mds.*.part/raw")) and not list(local.glob("*.mds"))
    assert ids(Shards(local, str(remote))) == IDS
    assert not list(local.glob(".*.part"))


def test_many_open_the_same_empty_cache(tmp_path: Path) -> None:
    """A process that opens a cache while another fetches its index waits for it, and never reads half an index."""
    remote = write(tmp_path / "remote", count=400, size_limit=100)  # a shard a document: an index of 100 kB
    for turn in range(3):
        with ThreadPoolExecutor(8) as threads:
            opened = threads.map(lambda _, local=tmp_path / f"local-{turn}": Shards(local, str(remote)), range(8))
            assert [len(shards) for shards in opened] == [400] * 8


def test_threads_share_one_object(tmp_path: Path) -> None:
    """Many threads read all samples of one object whose cache is empty, and each gets every sample."""
    shards = Shards(tmp_path / "local", str(write(tmp_path / "remote", compression="zstd")))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: ids(shards), range(8))) == [IDS] * 8


def read_ids(local: Path, remote: Path) -> list[str]:
    return ids(Shards(local, str(remote)))


@pytest.mark.process
def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    """Two processes that fill the same cache at the same time both read every document."""
    remote = write(tmp_path / "remote", compression="zstd", size_limit=400)
    (tmp_path / "local").mkdir()
    with processes(2) as readers:
        found = [readers.submit(read_ids, tmp_path / "local", remote) for _ in range(2)]
        assert [one.result(300) for one in found] == [IDS] * 2


@pytest.mark.process
def test_a_stopped_process_does_not_stop_others(tmp_path: Path) -> None:
    """A lock whose holder does not get on is waited for as long as fetching can take, and then ignored."""
    remote, local = write(tmp_path / "remote"), tmp_path / "local"
    code = f"""
import fcntl, sys
lock = open({str(local / ".shard.00000.mds.lock")!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    shards = Shards(local, str(remote), download_retry=1, download_timeout=1.0)
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert shards.read(0)["id"] == "doc-0"
    assert holder.poll() is None
    holder.communicate(timeout=60)


FULL = """
import sys
from pathlib import Path
from lacy_stream.stream.shards import DataError, Shards
for name in ("raw", "zstd"):
    shards = Shards(Path(sys.argv[1]) / name, str(Path(sys.argv[2]) / name))
    shards.read(0)
    try:
        for sample in range(len(shards)):
            shards.read(sample)
    except DataError as error:
        print(error)
    print(*sorted(path.name for path in Path(sys.argv[1], name).rglob("*") if path.suffix != ".lock"))
    for path in Path(sys.argv[1], name).glob("*.mds"):
        path.unlink()
"""


@pytest.mark.process
def test_full_disk(tmp_path: Path) -> None:
    """When the disk of the cache is full, while downloading or while decompressing, the error says so and names the
    folder and the shard, at once; nothing is left that could be taken for the shard."""
    for name, compression in (("raw", None), ("zstd", "zstd")):
        write(tmp_path / "remote" / name, 60, size_limit=400_000, words=4000, compression=compression)
    cache = tmp_path / "cache"
    cache.mkdir()
    mounted = f'mount -t tmpfs -o size=1m none "{cache}" && exec "$@"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted, "sh", "true"], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    command = [sys.executable, "-c", FULL, str(cache), str(tmp_path / "remote")]
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "sh", *command], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    for name, error, left in (("raw", *lines[:2]), ("zstd", *lines[2:])):
        assert f"shard shard.00002.mds of {tmp_path / 'remote' / name}" in error
        assert f"the disk is full, there is no room in {cache / name}" in error
        assert left == "index.json shard.00000.mds shard.00001.mds"
    assert "download retried" not in run.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A cache without permission to write is an error that names it."""
    remote, local = write(tmp_path / "remote"), tmp_path / "local"
    local.mkdir(mode=0o500)
    with pytest.raises(DataError, match="PermissionError.*local"):
        Shards(local, str(remote))
