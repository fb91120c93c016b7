"""Sources -> inputs -> rows, on real files: what each kind of source gives, refuses and passes over."""

from __future__ import annotations

import bz2
import codecs
import datetime
import decimal
import gzip
import json
import lzma
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lacy_stream.prepare.inputs import _split_name, find_inputs
from lacy_stream.prepare.lmlm import ValueLocation
from lacy_stream.prepare.rows import SourceRow, read_rows
from lacy_stream.prepare.settings import PrepareError, ReadOptions

ARTICLES = [{"id": f"doc-{n}", "title": f"Title {n}", "text": f"Body of {n}, été.\n"} for n in range(40)]
TEXTS = [(row["id"], f"{row['title']}\n\n{row['text']}") for row in ARTICLES]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """One row a line; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(*sources: str | Path, **options: Any) -> list[SourceRow]:
    """Every row of the sources."""
    wanted = ReadOptions(**options)
    return [row for source in find_inputs(sources, wanted)[0] for row in read_rows(source, wanted)]


def documents(rows: list[SourceRow]) -> list[tuple[str, str]]:
    """(id, text) of the rows that are documents."""
    return [(row.id, row.text) for row in rows if not row.refused]


def refused(rows: list[SourceRow]) -> list[tuple[int, str, str]]:
    """(number, id, reason) of the rows that are none."""
    return [(row.number, row.id, row.refused) for row in rows if row.refused]


def lz4(data: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


# Two frames, as `cat a.zst b.zst` makes them, cut in the middle of a line.
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "zst": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    "bz2": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]),
    "xz": lambda data: lzma.compress(data[:1000]) + lzma.compress(data[1000:]),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "lz4": lz4,
}


def make_source(kind: str, folder: Path) -> Path:
    """ARTICLES in a container of this kind."""
    plain = write_jsonl(folder / "a.jsonl", ARTICLES)
    name, _, compression = kind.lower().partition(".")
    path = folder / f"b.{kind}"
    if name in ("jsonl", "ndjson", "json"):
        path.write_bytes(COMPRESSED[compression](plain.read_bytes()))
    elif name == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ARTICLES), path, row_group_size=7)
    elif name == "array":
        path = folder / "b.json"
        path.write_text(json.dumps(ARTICLES, indent=2))
    else:
        from datasets import Dataset, DatasetDict

        saved = Dataset.from_list(ARTICLES)
        if kind == "saved-dict":
            saved = DatasetDict({"train": saved, "other": Dataset.from_list(ARTICLES[:1])})
        saved.save_to_disk(path)
    return path


# ---------------------------------------------------------------- containers


@pytest.mark.parametrize(
    "kind",
    ["jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz", "jsonl.lzma", "jsonl.lz4"]
    + ["ndjson", "JSONL.GZ", "json", "json.gz", "json.zst", "array", "parquet", "PARQUET", "saved", "saved-dict"],
)
def test_every_source_kind_gives_the_same_documents(kind: str, tmp_path: Path):
    """Title, blank line and body, rows counted from 1, and a share that grows up to 1."""
    rows = read(make_source(kind, tmp_path))
    assert documents(rows) == TEXTS
    assert [row.number for row in rows] == list(range(1, 41))
    shares = [row.done for row in rows]
    assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] == 1


def test_a_hub_data_set_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name that is no path goes to `load_dataset` with configuration and split, and its rows are read."""
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list(ARTICLES).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert documents(read("owner/name", hf_config="c", hf_split="s")) == TEXTS
    assert asked == [(("owner/name", "c"), {"split": "s", "streaming": True})]
    with pytest.raises(PrepareError, match="owner/name has no column 'body'"):
        read("owner/name", text_column="body")


def test_zstd_frames_and_read_blocks_may_end_anywhere(tmp_path: Path):
    """Thousands of small frames, and a line longer than a read of the file, give the lines of the file."""
    rows = [{"id": str(n), "text": "t"} for n in range(3000)]
    long = {"id": "long", "text": random.Random(0).randbytes(500_000).hex()}
    data = write_jsonl(tmp_path / "a.jsonl", [*rows, long, *ARTICLES]).read_bytes()
    small, big = data[:20_000], data[20_000:]
    frames = [zstandard.compress(small[start : start + 7]) for start in range(0, len(small), 7)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames) + zstandard.compress(big))
    assert (tmp_path / "a.jsonl.zst").stat().st_size > 3 << 17
    assert documents(read(tmp_path / "a.jsonl.zst")) == documents(read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz", "jsonl.lz4", "parquet"])
def test_a_file_that_is_cut_short_is_an_error(kind: str, tmp_path: Path):
    """A truncated download never passes for a shorter data set, and the message says that it is cut short."""
    source = make_source(kind, tmp_path)
    source.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(PrepareError, match="cannot be read after line .* cut short|cannot be read as Parquet"):
        read(source)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz", "jsonl.lz4"])
def test_a_file_with_wrong_bytes_is_damaged(kind: str, tmp_path: Path):
    """Bytes that changed in the middle of compressed data are an error that names the file."""
    source = make_source(kind, tmp_path)
    data = bytearray(source.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    source.write_bytes(data)
    with pytest.raises(PrepareError, match=f"{source} cannot be read after line .*(damaged|cut short)"):
        read(source)


# ---------------------------------------------------------------- unusual files


@pytest.mark.parametrize(
    ("name", "compression"),
    [("a.jsonl.gz", ""), ("a.jsonl.zst", "gz"), ("a.json.gz", "zst"), ("a.jsonl", "bz2"), ("a.jsonl", "xz")],
)
def test_the_content_says_how_a_file_is_compressed(name: str, compression: str, tmp_path: Path):
    """A browser may unpack a file and keep its name, or the other way round: the rows are the same."""
    data = write_jsonl(tmp_path / "plain", ARTICLES).read_bytes()
    (tmp_path / name).write_bytes(COMPRESSED[compression](data))
    assert documents(read(tmp_path / name)) == TEXTS


def zstd_frame(data: bytes, window_exponent: int) -> bytes:
    """A zstd frame of one raw block, whose header asks for a window of 2 ** window_exponent bytes."""
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_exponent - 10) << 3]) + block + data


def test_zstd_windows_up_to_2_gb_are_read(tmp_path: Path):
    """Files of --ultra --long=31, whose windows zstd does not read by default. Larger ones are no damage."""
    data = write_jsonl(tmp_path / "plain", ARTICLES).read_bytes()
    for exponent in (28, 31):
        (tmp_path / "a.jsonl.zst").write_bytes(zstd_frame(data, exponent))
        assert documents(read(tmp_path / "a.jsonl.zst")) == TEXTS
    (tmp_path / "a.jsonl.zst").write_bytes(zstd_frame(data, 32))
    with pytest.raises(PrepareError, match="its zstd window is larger than 2 GB; compress it again without"):
        read(tmp_path / "a.jsonl.zst")


def test_zstd_dictionaries_and_frames_to_skip_are_no_damage(tmp_path: Path):
    """Parallel zstd begins with a frame of its own; a dictionary that is not at hand is named."""
    data = write_jsonl(tmp_path / "plain", ARTICLES).read_bytes()
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
    (tmp_path / "a.jsonl.zst").write_bytes(skipped + zstandard.compress(data) + skipped)
    assert documents(read(tmp_path / "a.jsonl.zst")) == TEXTS
    samples: list[Any] = [
        json.dumps({"id": n, "text": random.Random(n).randbytes(200).hex()}).encode() for n in range(500)
    ]
    dictionary = zstandard.train_dictionary(8192, samples)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(data))
    with pytest.raises(PrepareError, match="compressed with a zstd dictionary"):
        read(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("compression", ["", "gz"])
def test_files_joined_with_byte_order_marks(compression: str, tmp_path: Path):
    """`cat a.jsonl b.jsonl`, each with a byte-order mark, gives the rows of both; so do their compressed forms."""
    parts = [codecs.BOM_UTF8 + json.dumps(row).encode() + b"\r\n" for row in ARTICLES]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(COMPRESSED[compression], parts)))
    assert documents(read(tmp_path / "a.jsonl.gz")) == TEXTS


def test_another_encoding_is_named(tmp_path: Path):
    """UTF-16, as PowerShell writes it, is not called damaged, and the message says how to convert it."""
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "a.jsonl").write_text('{"text": "t"}\n', encoding=encoding)
        with pytest.raises(PrepareError, match="is UTF-16 or UTF-32; convert it with `iconv"):
            read(tmp_path / "a.jsonl")


def test_a_json_file_is_lines_or_one_value(tmp_path: Path):
    """A .json file may hold lines, an array, or one document over many lines; its first line decides."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"id": 1, "text": "one"}, indent=2))
    assert documents(read(path)) == [("1", "one")]
    path.write_text('\n[{"id": 1, "text": "one"}, 5, {"text": "three"}]')
    rows = read(path)
    assert documents(rows) == [("1", "one"), ("a.json:3", "three")] and refused(rows) == [(2, "", "not a JSON object")]
    path.write_text('broken\n{"id": 1, "text": "one"}\n')
    rows = read(path)
    assert documents(rows) == [("1", "one")] and refused(rows) == [(1, "", "not valid JSON")]


def test_a_folder_is_read_in_sorted_order(tmp_path: Path):
    """All files of a folder are read by name, and files of other kinds are left alone."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", [{"id": "2", "text": "two"}])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "text": "one"}'))
    (folder / "README.md").write_text("not data")
    rows = read(folder, write_jsonl(tmp_path / "0.jsonl", [{"text": "three"}]))
    assert documents(rows) == [("1", "one"), ("2", "two"), ("0.jsonl:1", "three")]


# ---------------------------------------------------------------- folders and splits


def make_tree(folder: Path, *names: str) -> Path:
    """A folder of one-row files, each with its own path as the text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(json.dumps({"text": name}) + "\n")
    return folder


def found_texts(source: Path, split: str = "train") -> list[str]:
    """The paths whose rows are read."""
    return [row.text for row in read(source, hf_split=split)]


def notes(*sources: Path, **options: Any) -> list[str]:
    """What the user is told about the choice of files."""
    return find_inputs(sources, ReadOptions(**options))[1]


def test_a_folder_is_read_with_its_sub_folders(tmp_path: Path):
    """Files are found at any depth, sorted by path, with ids of their own; hidden files and folders are no data."""
    files = ["a/z.jsonl", "b.jsonl", "en/part.jsonl", "simple/deep/part.jsonl"]
    folder = make_tree(tmp_path / "in", *files, ".cache/x.jsonl", "a/.git/y.jsonl", "a/.w.jsonl", "README.md")
    rows = read(folder)
    assert documents(rows) == [(f"{name}:1", name) for name in files]
    assert notes(folder) == []


def test_a_downloaded_repository_gives_the_split_that_is_asked_for(tmp_path: Path):
    """Files named for a split are chosen by --hf-split, at first train, and the others are reported."""
    names = [f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "unsupervised", "validation")]
    folder = make_tree(tmp_path / "repo", *names, "README.md", ".gitattributes")
    assert found_texts(folder) == ["data/train-00000-of-00001.parquet"]
    for split in ("test", "unsupervised", "validation"):
        assert found_texts(folder, split) == [f"data/{split}-00000-of-00001.parquet"]
    (note,) = notes(folder)
    assert "read only split 'train' (--hf-split; files: 1), not test, unsupervised-00000-of-00001.parquet" in note
    with pytest.raises(PrepareError, match=r"repo has no files of split 'dev' \(--hf-split\); it has test, train, "):
        find_inputs([folder], ReadOptions(hf_split="dev"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("test.jsonl.zst", "test"),
        ("en/validation.parquet", "validation"),
        ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "train"),
        ("train_01.jsonl", "train"),
        ("test/0000.parquet", "test"),
        ("test/deep/0000.parquet", "test"),
        ("train/test.jsonl", "test"),
        ("dev[1].jsonl", "dev[1]"),
        ("TRAIN-0001.JSONL.GZ", "train"),
        ("Validation/a.json.zst", "validation"),
        ("training.jsonl", ""),
        ("train-articles.jsonl", ""),
        ("part-00000-of-00009.jsonl", ""),
        ("latest/a.jsonl", ""),
    ],
)
def test_which_names_say_their_split(name: str, split: str):
    """The split is the file name, alone or with a number, or else a folder's; other names say nothing."""
    assert _split_name(Path(name), "dev[1]") == split


def test_names_that_say_no_split_are_all_read(tmp_path: Path):
    """Without a single split name a folder is read whole, and an explicit --hf-split is said to do nothing."""
    folder = make_tree(tmp_path / "in", "part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl")
    assert len(found_texts(folder)) == len(found_texts(folder, "test")) == 2
    assert notes(folder) == []
    (note,) = notes(folder, hf_split="test")
    assert "--hf-split 'test' chose nothing in" in note and str(folder) in note
    (note,) = notes(folder, hf_config="en")
    assert "--hf-config 'en' chose nothing" in note


def test_a_folder_of_many_formats_is_read_whole(tmp_path: Path):
    """No format is passed over because there is a file of another one, and case does not matter."""
    names = ["a.json.gz", "b.jsonl", "c.json.zst", "d.NDJSON", "e.JSONL.XZ", "f.json", "g.jsonl.bz2", "h.parquet"]
    folder = make_tree(tmp_path / "in", *[name for name in names if name.lower().count(".") == 1])
    for name in names:
        if name.count(".") == 2:
            data = json.dumps({"text": name}).encode()
            (folder / name).write_bytes(COMPRESSED[name.lower().rpartition(".")[2]](data))
    assert found_texts(folder) == names and notes(folder) == []


def test_what_looks_like_data_and_is_not_read_is_named(tmp_path: Path):
    """Other formats, archives, settings and links are named with their numbers; documentation is not."""
    others = ["b.csv", "c/d.csv", "e.txt", "f.tar.gz", "g", "h.parquet.gz", "i.jsonl.br", "j.mds"]
    folder = make_tree(
        tmp_path / "in", "a.jsonl", *others, "README.md", "LICENSE", "readme.txt", "load.py", ".hidden.csv"
    )
    (folder / "config.json").write_text('{"name": "x"}')
    (folder / "link").symlink_to(tmp_path)
    (folder / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    assert found_texts(folder) == ["a.jsonl"]
    (note,) = notes(folder)
    for part in (
        *("2 x .csv (b.csv, c/d.csv)", "1 x .txt (e.txt)", "1 x .tar.gz (f.tar.gz)", "1 x no suffix (g)"),
        *("1 x .parquet.gz (h.parquet.gz)", "1 x .jsonl.br (i.jsonl.br)", "1 x .mds (j.mds)"),
        *("1 x .json (config.json)", "1 x links to folders (link)", "1 x broken links (lost.jsonl)"),
    ):
        assert part in note
    assert not any(name in note for name in ("README", "LICENSE", "readme", "load.py", "hidden"))
    (folder / "a.jsonl").unlink()
    with pytest.raises(PrepareError, match=r"hold neither .* \(not read: .*2 x \.csv"):
        find_inputs([folder], ReadOptions())


def test_a_list_of_data_sets_is_no_saved_data_set(tmp_path: Path):
    """LLaMA-Factory keeps a dataset_info.json beside its files: they are read."""
    folder = make_tree(tmp_path / "in", "a.jsonl")
    (folder / "dataset_info.json").write_text('{"a": {"file_name": "a.jsonl"}}')
    assert found_texts(folder) == ["a.jsonl"]
    assert "1 x .json (dataset_info.json)" in notes(folder)[0]


def test_the_other_splits_of_a_saved_dictionary_are_named(tmp_path: Path):
    """A saved DatasetDict says which splits were not read."""
    (note,) = notes(make_source("saved-dict", tmp_path))
    assert "read only split 'train'" in note and "not other;" in note


def test_what_prepare_wrote_is_no_source(tmp_path: Path):
    """The list of refused rows of a data set inside the folder is not read as documents."""
    folder = make_tree(tmp_path / "in", "a.jsonl", "shards/refused.jsonl", "other/refused.jsonl")
    (folder / "shards" / "prepare.json").write_text("{}")
    assert found_texts(folder) == ["a.jsonl", "other/refused.jsonl"]


def test_a_saved_data_set_without_splits_says_that_hf_split_does_nothing(tmp_path: Path):
    """--hf-split is reported where one Dataset was saved, unless it is the split that the Dataset says it is."""
    from datasets import Dataset, NamedSplit

    Dataset.from_list(ARTICLES).save_to_disk(tmp_path / "saved")
    Dataset.from_list(ARTICLES, split=NamedSplit("test")).save_to_disk(tmp_path / "named")
    assert notes(tmp_path / "saved") == notes(tmp_path / "named") == notes(tmp_path / "named", hf_split="test") == []
    (note,) = notes(tmp_path / "saved", hf_split="test")
    assert f"--hf-split 'test' chose nothing in {tmp_path / 'saved'}" in note


# ---------------------------------------------------------------- columns and ids


def test_columns_can_be_named_and_missing_ids_are_made(tmp_path: Path):
    """Named columns are used; an id is made from file name and row, and a title may be absent."""
    rows = [{"url": "u1", "head": "H", "body": "one"}, {"url": None, "body": "two"}, {"url": 7, "body": "3"}]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    found = documents(read(source, id_column="url", title_column="head", text_column="body"))
    assert found == [("u1", "H\n\none"), ("a.jsonl:2", "two"), ("7", "3")]


def test_ids_can_be_switched_off(tmp_path: Path):
    """Where ids restart in each file, an empty --id-column makes them of file name and row."""
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, [{"id": n, "text": f"{name} {n}"} for n in range(2)])
    found = documents(read(tmp_path / "a.jsonl", tmp_path / "b.jsonl", id_column=""))
    assert [id for id, _ in found] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:2"]


def test_float_ids_are_numbers(tmp_path: Path):
    """pandas makes floats of integers where one is missing: 7.0 is 7, and NaN is no id."""
    lines: list[Any] = [b'{"id": 7.0, "text": "a"}', b'{"id": NaN, "text": "b"}', b'{"id": 1.5, "text": "c"}']
    found = documents(read(write_jsonl(tmp_path / "a.jsonl", [*lines, {"id": 1e15, "text": "d"}])))
    assert [id for id, _ in found] == ["7", "a.jsonl:2", "1.5", "1000000000000000"]


def test_ids_of_every_type_of_parquet(tmp_path: Path):
    """Floats, decimals, dates, bytes and UUIDs are ids as well, and none of them costs a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = uuid.UUID("12345678-1234-5678-1234-567812345678")
    columns = [
        (pa.array([7.0, None], pa.float64()), "7"),
        (pa.array([decimal.Decimal(12), None], pa.decimal128(5, 0)), "12"),
        (pa.array([datetime.date(1867, 11, 7), None]), "1867-11-07"),
        (pa.array([b"caf\xc3\xa9", None], pa.binary()), "caf\xe9"),
        (pa.array([b"\xff\x00", None], pa.binary()), "ff00"),
        (pa.array([one.bytes, None], pa.binary(16)), str(one)),
        (pa.array([b"\x01\x02\x03", None], pa.binary(3)), "010203"),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes, None], pa.binary(16))), str(one)),
    ]
    for ids, expected in columns:
        pq.write_table(pa.table({"id": ids, "text": ["one", "two"]}), tmp_path / "a.parquet")
        assert documents(read(tmp_path / "a.parquet")) == [(expected, "one"), ("a.parquet:2", "two")]


def test_binary_texts_of_parquet_are_read(tmp_path: Path):
    """Texts and titles of a column of bytes are UTF-8, as Spark writes strings; bytes that are none cost their row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [b"\xc3\xa9t\xc3\xa9", b"caf\xe9", None]
    for type in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())):
        column = pa.array(texts, pa.binary())
        column = column.dictionary_encode() if pa.types.is_dictionary(type) else column.cast(type)
        table = pa.table({"id": ["1", "2", "3"], "title": pa.array([b"T", None, None], pa.binary()), "text": column})
        pq.write_table(table, tmp_path / "a.parquet")
        rows = read(tmp_path / "a.parquet")
        assert documents(rows) == [("1", "T\n\n\xe9t\xe9")]
        assert refused(rows) == [(2, "2", "invalid UTF-8"), (3, "3", "no text")]


def test_one_column_can_be_id_and_title(tmp_path: Path):
    """`--id-column title` reads the column once and uses it twice, in Parquet too."""
    for kind in ("jsonl", "parquet"):
        found = documents(read(make_source(kind, tmp_path), id_column="title"))
        assert found[0] == ("Title 0", "Title 0\n\nBody of 0, été.\n")


def test_titles_can_be_left_out(tmp_path: Path):
    """An empty --title-column means that the text is the body alone, even where a column has no name."""
    source = write_jsonl(tmp_path / "a.jsonl", [{"": 5, **ARTICLES[0]}])
    assert documents(read(source, title_column="")) == [("doc-0", ARTICLES[0]["text"])]


def test_two_files_of_one_name_cannot_make_ids(tmp_path: Path):
    """Ids made from equal file names would clash, so reading stops instead of refusing half the rows."""
    for folder in ("en", "de"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "part.jsonl", [{"text": folder}])
    with pytest.raises(PrepareError, match=r"en/part.jsonl has no id.*would clash.*--id-column"):
        read(tmp_path / "en", tmp_path / "de")


# ---------------------------------------------------------------- labels that come with the rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_spans_count_from_the_beginning_of_the_whole_text(kind: str, tmp_path: Path):
    """Spans of the text column are shifted by the title before it, in every container."""
    rows = [
        {"id": "titled", "title": "Ada", "text": "Ada wrote.", "facts": [[0, 3], [4, 9]]},
        {"id": "plain", "title": None, "text": "Ada wrote.", "facts": [[0, 3]]},
        {"id": "none", "title": "Ada", "text": "So it was.", "facts": []},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    if kind != "jsonl":
        from datasets import Dataset

        data, path = Dataset.from_list(rows), tmp_path / f"b.{kind}"
        data.to_parquet(path) if kind == "parquet" else data.save_to_disk(path)
    found = read(path, spans_column="facts")
    assert [row.spans for row in found] == [[(5, 8), (9, 14)], [(0, 3)], []]
    assert [found[0].text[start:end] for start, end in found[0].spans or []] == ["Ada", "wrote"]
    assert [row.spans for row in read(path)] == [None] * 3


def test_rows_whose_labels_are_wrong_are_refused(tmp_path: Path):
    """No spans, spans outside the text and things that are no spans each have a reason, and cost their row only."""
    values = [None, [[0, 4]], "[[0, 1]]", [[0, 1, 2]], "x", {"start": 0}, [[1, 0]]]
    rows = [{"id": str(n), "text": "Ada", "spans": value} for n, value in enumerate(values)] + [
        {"id": "7", "text": "t"}
    ]
    found = read(write_jsonl(tmp_path / "a.jsonl", rows), spans_column="spans")
    wrong = "spans are not pairs [start, end) of code points of the text"
    assert [(row.id, row.refused) for row in found if row.refused] == [
        ("0", "no spans"),
        *[(str(n), wrong) for n in (1, 3, 4, 5, 6)],
        ("7", "no spans"),
    ]
    assert [(row.id, row.spans) for row in found if not row.refused] == [("2", [(0, 1)])]
    with pytest.raises(PrepareError, match=r"no column 'judge' \(--spans-column\); it has"):
        read(tmp_path / "a.jsonl", spans_column="judge")


def test_lookup_calls_become_spans(tmp_path: Path):
    """Calls are taken out of the text, their values are spans after the title; a broken call costs its row only."""
    rows = [
        {
            "title": "Ada",
            "text": "Born in [dblookup('Ada', 'Born') -> 1815] 1815, [dblookup('A', 'B') -> yes] she wrote.",
        },
        {"text": "Cut off [dblookup('Ada'"},
        {"text": "[dblookup('Ada', 'Born') -> 1815]"},
        {"text": "Without calls."},
    ]
    first, *others = read(write_jsonl(tmp_path / "a.jsonl", rows), inline_calls="lmlm")
    assert (first.text, first.spans) == ("Ada\n\nBorn in 1815, she wrote.", [(13, 17)])
    assert first.value_locations == {ValueLocation.AT_ONCE: 1, ValueLocation.NOWHERE: 1}
    assert [row.refused for row in others] == ["a lookup call without a value", "nothing but lookup calls", ""]
    assert (others[-1].spans, others[-1].value_locations) == ([], {})
    for options, message in [
        ({"inline_calls": "x"}, "known is 'lmlm'"),
        ({"inline_calls": "lmlm"}, "give one of them"),
    ]:
        with pytest.raises(PrepareError, match=message):
            ReadOptions(spans_column="spans", **options)


# ---------------------------------------------------------------- refusals

BAD_LINES: list[tuple[Any, str, str]] = [
    ({"id": "none", "text": None}, "none", "no text"),
    ({"id": "absent"}, "absent", "no text"),
    ({"id": "empty", "title": "T", "text": ""}, "empty", "empty text"),
    ({"id": "white", "text": " \n\t\u3000"}, "white", "empty text"),
    ({"id": "number", "text": 5}, "number", "text is not a string"),
    ({"id": "title", "title": ["x"], "text": "t"}, "title", "title is not a string"),
    ({"id": [1], "text": "t"}, "", "id is neither a string nor a number"),
    ({"id": True, "text": "t"}, "", "id is neither a string nor a number"),
    (b'{"id": "broken", "text": "caf\xe9"}', "", "invalid UTF-8"),
    (b'{"id": "lone", "text": "\\ud800"}', "lone", "invalid UTF-8"),
    (b'{"id": "\\udc00", "text": "t"}', "", "invalid UTF-8"),
    (b'{"id": "cut", "text": "t"', "", "not valid JSON"),
    (b"[" * 100_000, "", "not valid JSON"),
    ([1], "", "not a JSON object"),
    ({}, "a.jsonl:17", "no text"),
]


def test_every_broken_row_is_refused_for_its_own_reason(tmp_path: Path):
    """Each kind of broken row has a reason and its line number, and the rows around it are kept."""
    good = b'\xef\xbb\xbf{"id": "good", "text": "\\ud83d\\ude00\\u0000"}\r'
    lines = [good, b"", *[bad for bad, _, _ in BAD_LINES], {"text": "last"}]
    rows = read(write_jsonl(tmp_path / "a.jsonl", lines))
    assert refused(rows) == [(row, id, reason) for row, (_, id, reason) in enumerate(BAD_LINES, start=3)]
    assert documents(rows) == [("good", "\U0001f600\0"), (f"a.jsonl:{len(lines)}", "last")]


def test_broken_bytes_in_parquet_refuse_one_row(tmp_path: Path):
    """A Parquet string that is not UTF-8 costs its own row only, in a plain or a dictionary column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"fine", b"caf\xe9", b"also"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"id": pa.array([1, 2, 3]), "text": texts}), tmp_path / "a.parquet")
    encoded = pa.table({"id": pa.array([4, 5, 6]), "text": texts.dictionary_encode()})
    pq.write_table(encoded, tmp_path / "b.parquet")
    rows = read(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert documents(rows) == [("1", "fine"), ("3", "also"), ("4", "fine"), ("6", "also")]
    assert refused(rows) == [(2, "2", "invalid UTF-8"), (2, "5", "invalid UTF-8")]
