"""Shards in canonical order, from real MDS folders; what is missing or damaged is an error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from streaming import MDSWriter

from lacy_stream.shards import DataError, Shards

DOCUMENTS = 57


def write(
    folder: Path,
    count: int = DOCUMENTS,
    columns: dict[str, str] | None = None,
    size_limit: int = 2000,
    **options: object,
) -> Path:
    columns = columns or {"id": "str", "text": "str"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=size_limit, **options) as writer:
        for number in range(count):
            row = {"id": f"doc-{number}", "text": f"Title {number}\n\n" + f"word{number} " * 20, "tokens": b"1"}
            writer.write({name: row[name] for name in columns})
    return folder


def ids(shards: Shards, epoch: int = 0) -> list[str]:
    return [shards.document(epoch * len(shards) + place).id for place in range(len(shards))]


@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "hashes": ["sha1", "xxh64"]}])
def test_each_document_once_an_epoch(tmp_path: Path, options: dict) -> None:
    """Unshuffled, the order is the index's; shuffled, every epoch holds each document once, in its own order."""
    folder = write(tmp_path / "data", **options)
    expected = [f"doc-{number}" for number in range(DOCUMENTS)]
    assert ids(Shards(folder)) == expected
    shuffled = Shards(folder, shuffle=True, shuffle_seed=1)
    first, second = ids(shuffled, 0), ids(shuffled, 1)
    assert sorted(first) == sorted(second) == sorted(expected)
    assert len({tuple(first), tuple(second), tuple(expected)}) == 3
    assert shuffled.document(3).text.startswith(f"Title {first[3].removeprefix('doc-')}\n\n")


def test_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """The same seed gives the same order in another object, and another seed another order."""
    folder = write(tmp_path / "data")
    assert ids(Shards(folder, shuffle=True, shuffle_seed=1)) == ids(Shards(folder, shuffle=True, shuffle_seed=1))
    assert ids(Shards(folder, shuffle=True, shuffle_seed=1)) != ids(Shards(folder, shuffle=True, shuffle_seed=2))


def test_remote_is_fetched_into_local(tmp_path: Path) -> None:
    """With a remote, `local` is a cache that fills as documents are read."""
    remote, local = write(tmp_path / "remote", compression="zstd"), tmp_path / "local"
    assert ids(Shards(local, str(remote))) == [f"doc-{number}" for number in range(DOCUMENTS)]
    assert list(local.glob("*.mds"))


def test_data_without_ids_and_with_another_text_column(tmp_path: Path) -> None:
    """A text-only data set made by others works: ids are sample numbers, the column name is a setting."""
    with MDSWriter(out=str(tmp_path / "data"), columns={"content": "str"}) as writer:
        writer.write({"content": "hello"})
    document = Shards(tmp_path / "data", text_column="content").document(0)
    assert (document.id, document.text) == ("0", "hello")
    with pytest.raises(DataError, match=r"no column 'text'; it has \['content'\]"):
        Shards(tmp_path / "data")


def test_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    """No data: the error names the folder and the command that makes it."""
    with pytest.raises(DataError, match="nowhere.*lacy-stream prepare"):
        Shards(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2, "shards": []}', '{"version": 3, "shards": []}'])
def test_corrupt_index_is_refused(tmp_path: Path, content: str) -> None:
    """An index that is empty, not JSON, of another version or without shards is an error that names the folder."""
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        Shards(tmp_path)


@pytest.mark.parametrize("change", [{"basename": "../../evil.mds"}, {"bytes": -1}, {"samples": -1}])
def test_unsafe_index_is_refused(tmp_path: Path, change: dict) -> None:
    """A file name that leads out of the folder, or a negative size or count, is refused."""
    folder = write(tmp_path / "data")
    index = json.loads((folder / "index.json").read_text())
    (index["shards"][0] if "samples" in change else index["shards"][0]["raw_data"]).update(change)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="unsafe entry"):
        Shards(folder)


def test_pickled_column_is_refused(tmp_path: Path) -> None:
    """A column that would be unpickled runs code: refused before anything is read."""
    write(tmp_path / "data", columns={"id": "str", "text": "str"})
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    index["shards"][0]["column_encodings"][1] = "pkl"
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="unsafe"):
        Shards(tmp_path / "data")


@pytest.mark.parametrize(
    ("damage", "compression"),
    [("missing", "zstd"), ("missing", None), ("truncated", "zstd"), ("truncated", None), ("flipped", "zstd")],
)
def test_damaged_shard_is_named(tmp_path: Path, damage: str, compression: str | None) -> None:
    """A shard that is missing, cut or changed is an error that names it, never a shorter epoch. A flipped bit
    in a local, uncompressed shard is the one case that nobody checks."""
    folder = write(tmp_path / "data", compression=compression, hashes=["xxh64"])
    path = sorted(folder.glob("shard.00001*"))[0]
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match="shard.00001.mds"):
        ids(Shards(folder))


@pytest.mark.parametrize("compression", ["zstd", None])
def test_damaged_copy_is_fetched_again(tmp_path: Path, compression: str | None) -> None:
    """A shard that is cut in the cache, as a killed download leaves it, comes again from the remote."""
    remote = write(tmp_path / "remote", compression=compression, hashes=["xxh64"])
    local = tmp_path / "local"
    ids(Shards(local, str(remote)))
    path = sorted(local.glob("shard.00001.mds"))[0]
    path.write_bytes(path.read_bytes()[:100])
    assert ids(Shards(local, str(remote))) == [f"doc-{number}" for number in range(DOCUMENTS)]


def test_damaged_source_is_left_alone(tmp_path: Path) -> None:
    """A shard that is damaged at its source is fetched twice, then an error; the source is not touched."""
    remote = write(tmp_path / "remote", compression="zstd", hashes=["xxh64"])
    path = sorted(remote.glob("shard.00001*"))[0]
    damaged = path.read_bytes()[:-1] + b"x"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="shard.00001.mds.*Checksum"):
        ids(Shards(tmp_path / "local", str(remote)))
    with pytest.raises(DataError, match="shard.00001.mds.*Checksum"):
        ids(Shards(remote))
    assert path.read_bytes() == damaged


def test_many_open_the_same_empty_cache(tmp_path: Path) -> None:
    """Whoever opens a cache while another fetches its index waits for it, and never reads half an index."""
    remote = write(tmp_path / "remote", count=400, size_limit=100)  # a shard a document: an index of 100 kB
    for turn in range(5):
        with ThreadPoolExecutor(8) as threads:
            opened = threads.map(lambda _, local=tmp_path / f"local-{turn}": Shards(local, str(remote)), range(8))
            assert [len(shards) for shards in opened] == [400] * 8


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    """Two processes that fill the same cache at the same time both read every document."""
    remote = write(tmp_path / "remote", compression="zstd", size_limit=400)
    code = f"""
from lacy_stream.shards import Shards
shards = Shards({str(tmp_path / "local")!r}, {str(remote)!r})
print(*[shards.document(place).id for place in range(len(shards))])
"""
    (tmp_path / "local").mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert output.split() == [f"doc-{number}" for number in range(DOCUMENTS)]
