"""lacy_stream.prepare.convert on real files, with real processes and real signals."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lacy_stream.prepare.convert import PrepareError, ShardOptions, Summary, id_hash, is_validation, prepare
from lacy_stream.progress import SourceProgress
from lacy_stream.stream.corpus import open_corpus

ARTICLES = [{"id": f"doc-{n}", "title": f"Title {n}", "text": f"Body of {n}, été.\n"} for n in range(40)]
NO_VAL = ShardOptions(val_fraction=0)
TEXTS = {row["id"]: f"{row['title']}\n\n{row['text']}" for row in ARTICLES}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """One row a line; bytes and strings are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_split(folder: Path) -> list[tuple[str, str]]:
    """(id, text) of every document, by Streaming's own reader, with the hashes of the index checked."""
    import zstd
    from streaming.base.format import reader_from_json
    from streaming.base.hashing import get_hash

    documents = []
    for info in json.loads((folder / "index.json").read_text())["shards"]:
        assert info["compression"] == "zstd" and list(info["zip_data"]["hashes"]) == ["sha1", "xxh64"]
        compressed = (folder / info["zip_data"]["basename"]).read_bytes()
        raw = zstd.decompress(compressed)
        for algorithm, digest in info["zip_data"]["hashes"].items():
            assert get_hash(algorithm, compressed) == digest
        (folder / info["raw_data"]["basename"]).write_bytes(raw)
        reader = reader_from_json(str(folder), None, info)
        documents += [(reader[i]["id"], reader[i]["text"]) for i in range(len(reader))]
        (folder / info["raw_data"]["basename"]).unlink()
    return documents


def read_all(out: Path) -> dict[str, str]:
    """id -> text of both splits."""
    return dict(document for split in ("train", "val") for document in read_split(out / split))


def refused(out: Path) -> list[tuple[int, str | None, str]]:
    """(row, id, reason) of every line of refused.jsonl."""
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    return [(line["row"], line["id"], line["reason"]) for line in lines]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- shards and refusals


def test_documents_arrive_in_the_shards(tmp_path: Path):
    """Every document is in one of the splits, and the summary counts what is there."""
    summary = prepare([write_jsonl(tmp_path / "a.jsonl", ARTICLES)], tmp_path / "out")
    assert read_all(tmp_path / "out") == TEXTS
    assert (summary.documents, summary.characters) == (40, sum(map(len, TEXTS.values())))
    assert summary.refused == {} and refused(tmp_path / "out") == []


def test_a_document_larger_than_the_shard_limit_leaves_no_empty_shard(tmp_path: Path):
    """Shards follow --size-limit and none of them is empty, even where the first document is too large."""
    rows = [{"id": str(n), "text": "long " * (1000 if n == 0 else 50)} for n in range(20)]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    prepare([source], tmp_path / "out", options=ShardOptions(val_fraction=0, size_limit=2000))
    shards = json.loads((tmp_path / "out" / "train" / "index.json").read_text())["shards"]
    assert len(shards) > 2 and min(shard["samples"] for shard in shards) > 0
    assert [id for id, _ in read_split(tmp_path / "out" / "train")] == [str(n) for n in range(20)]


def test_every_refused_row_is_counted_and_named(tmp_path: Path):
    """refused.jsonl has all refused rows, the summary their reasons, and the rows around them are kept."""
    rows = [{"id": "good", "text": "t"}, {"id": "none"}, b"{", {"id": "good", "text": "again"}, {"id": "nil"}]
    source = write_jsonl(tmp_path / "a.jsonl", [*rows, {"id": "last", "text": "t"}])
    summary = prepare([source], tmp_path / "out", options=NO_VAL)
    assert refused(tmp_path / "out") == [
        (2, "none", "no text"),
        (3, None, "not valid JSON"),
        (4, "good", "duplicate id"),
        (5, "nil", "no text"),
    ]
    assert read_split(tmp_path / "out" / "train") == [("good", "t"), ("last", "t")]
    assert {reason: (r.count, r.examples) for reason, r in summary.refused.items()} == {
        "no text": (2, ["none (a.jsonl row 2)", "nil (a.jsonl row 5)"]),
        "not valid JSON": (1, ["a.jsonl row 3"]),
        "duplicate id": (1, ["good (a.jsonl row 4)"]),
    }


def test_ids_are_unique_across_sources_and_only_the_first_examples_are_kept(tmp_path: Path):
    """The second file's copies are refused; all are in refused.jsonl and five in the summary."""
    first, second = (write_jsonl(tmp_path / name, ARTICLES) for name in ("a.jsonl", "b.jsonl"))
    summary = prepare([first, second], tmp_path / "out")
    assert summary.documents == 40 and summary.refused["duplicate id"].count == 40
    assert len(summary.refused["duplicate id"].examples) == 5
    assert len(refused(tmp_path / "out")) == 40
    (warning,) = summary.warnings
    assert "40 rows have the id of an earlier row" in warning and "--id-column ''" in warning


def test_ids_that_begin_anew_in_each_file_are_switched_off(tmp_path: Path):
    """With an empty --id-column no document is lost, and there is nothing to warn of."""
    first, second = (write_jsonl(tmp_path / name, ARTICLES) for name in ("a.jsonl", "b.jsonl"))
    summary = prepare([first, second], tmp_path / "out", options=ShardOptions(id_column=""))
    assert summary.documents == 80 and summary.refused == {} and summary.warnings == []


def test_a_source_that_is_cut_short_leaves_nothing(tmp_path: Path):
    """A truncated download ends the run, and no folder of any kind remains."""
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ARTICLES).encode())[:-20])
    with pytest.raises(PrepareError, match="cut short"):
        prepare([source], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.gz"]


def test_progress_tells_the_share_and_the_counts(tmp_path: Path):
    """The share grows over all sources, by their bytes, and the counts are those so far."""
    first = write_jsonl(tmp_path / "a.jsonl", [{"id": str(n), "text": "t"} for n in range(150)])
    second = write_jsonl(tmp_path / "b.jsonl", [{"id": "x", "text": ""}] * 150)
    seen: list[SourceProgress] = []
    prepare([first, second], tmp_path / "out", options=NO_VAL, on_progress=seen.append)
    assert [(p.source, p.documents, p.refused) for p in seen] == [
        ("a.jsonl", 0, 0),
        ("a.jsonl", 100, 0),
        ("b.jsonl", 150, 0),
        ("b.jsonl", 150, 100),
    ]
    shares = [p.done or 0.0 for p in seen]
    assert shares == sorted(shares) and shares[-1] <= 1


# ---------------------------------------------------------------- labels that come with the rows


def read_spans(folder: Path) -> dict[str, list[str]]:
    """id -> what the spans of each document cover, in the order of the shards."""
    corpus = open_corpus(folder, spans_column="spans")
    documents = [corpus.document(place) for place in range(len(corpus))]
    return {d.id: [d.text[start:end] for start, end in json.loads(str(d.spans))] for d in documents}


def test_a_column_of_spans_reaches_the_stream(tmp_path: Path):
    """Spans of the rows are spans of the documents of both splits, titles included; without them there is no column."""
    rows = [row | {"spans": [[5, 8]]} for row in ARTICLES] + [{"id": "bad", "text": "t", "spans": [[0, 9]]}]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    summary = prepare([source], tmp_path / "out", options=ShardOptions(val_fraction=0.3, spans_column="spans"))
    found = read_spans(tmp_path / "out" / "train") | read_spans(tmp_path / "out" / "val")
    assert found == {f"doc-{n}": [f"of {n},"[:3]] for n in range(40)} and (summary.val.documents or 0) > 0
    assert summary.spans == 40 and summary.calls == {} and refused(tmp_path / "out")[0][1] == "bad"
    prepare([source], tmp_path / "plain", options=NO_VAL)
    with pytest.raises(ValueError, match="no column 'spans'"):
        open_corpus(tmp_path / "plain", split="train", spans_column="spans")


def test_lookup_calls_are_counted(tmp_path: Path):
    """Where the values of the calls were found stands in the summary and in prepare.json, those of refused rows not;
    a second run tells the same."""
    lookup = "[dblookup('E', 'R') -> {}] {}"
    rows = [
        {"id": "a", "text": "In " + lookup.format("1815", "1815 and by ") + lookup.format("Bob, Eve", "Bob and Eve.")},
        {"id": "a", "text": "In " + lookup.format("1815", "1815.")},
        {"id": "b", "text": "At " + lookup.format("Rome", "last in Rome. ") + lookup.format("no", "So.")},
    ]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    options = ShardOptions(val_fraction=0, inline_calls="lmlm")
    summary = prepare([source], tmp_path / "out", options=options)
    expected = {
        "at once": 1,
        "at once, in other case or quotes": 0,
        "a few words later": 1,
        "part by part": 1,
        "not placed": 1,
    }
    assert (summary.calls, summary.spans) == (expected, 4)
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["summary"]["calls"] == expected
    assert read_split(tmp_path / "out" / "train") == [
        ("a", "In 1815 and by Bob and Eve."),
        ("b", "At last in Rome. So."),
    ]
    assert read_spans(tmp_path / "out" / "train") == {"a": ["1815", "Bob", "Eve"], "b": ["Rome"]}
    again = prepare([source], tmp_path / "out", options=options)
    assert again.already_prepared and (again.calls, again.spans) == (expected, 4)


def test_what_an_earlier_version_prepared_is_still_prepared(tmp_path: Path):
    """A record without the options and counts of labels is recognised: nobody has to prepare data again."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    prepare([source], tmp_path / "out")
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    for part, names in (
        (record["plan"]["options"], ("spans_column", "inline_calls")),
        (record["summary"], ("spans", "calls")),
    ):
        for name in names:
            del part[name]
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(record))
    assert prepare([source], tmp_path / "out").already_prepared


def test_calls_that_an_earlier_version_left_in_the_text_are_not_kept(tmp_path: Path):
    """Data of lookup calls were read otherwise before, so the command asks for --overwrite."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    options = ShardOptions(inline_calls="lmlm")
    prepare([source], tmp_path / "out", options=options)
    assert prepare([source], tmp_path / "out", options=options).already_prepared
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    record["plan"]["format"] = 1
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(record))
    with pytest.raises(PrepareError, match="another version of this tool; use --overwrite"):
        prepare([source], tmp_path / "out", options=options)


# ---------------------------------------------------------------- the hold-out


def test_the_hash_is_the_documented_one():
    """The hold-out is BLAKE2b of the id; the value is fixed, so a data set prepared today stays put."""
    assert id_hash("doc-0") == 0xE5942BA897667320  # printf doc-0 | b2sum -l 64
    assert not is_validation("doc-0", 0.0)
    held = sum(is_validation(f"doc-{n}", 0.1) for n in range(20_000))
    assert 1850 < held < 2150


def test_adding_rows_does_not_move_the_others(tmp_path: Path):
    """Whether a document is held out depends on its id alone, not on order or neighbours."""
    few = write_jsonl(tmp_path / "few.jsonl", ARTICLES)
    more = [{"id": f"new-{n}", "text": "new"} for n in range(100)] + ARTICLES[::-1]
    prepare([few], tmp_path / "few", options=ShardOptions(val_fraction=0.3))
    prepare([write_jsonl(tmp_path / "m.jsonl", more)], tmp_path / "more", options=ShardOptions(val_fraction=0.3))
    before = {id for id, _ in read_split(tmp_path / "few" / "val")}
    after = {id for id, _ in read_split(tmp_path / "more" / "val") if id.startswith("doc-")}
    assert before == after and 0 < len(before) < 40
    assert before.isdisjoint(id for id, _ in read_split(tmp_path / "few" / "train"))


def test_a_split_without_documents_is_said_and_not_written(tmp_path: Path):
    """An empty validation split is a warning and no folder; with --val-fraction 0 it is as wished."""
    source = write_jsonl(tmp_path / "a.jsonl", [{"id": "doc-0", "text": "one"}])
    summary = prepare([source], tmp_path / "out", options=ShardOptions(val_fraction=1e-9))
    assert any("no folder val" in warning for warning in summary.warnings)
    assert not (tmp_path / "out" / "val").exists()
    assert prepare([source], tmp_path / "none", options=NO_VAL).warnings == []


def test_what_the_choice_of_files_left_out_stands_in_the_summary(tmp_path: Path):
    """The files of other splits are a warning of this run and of the one that finds its data set."""
    (tmp_path / "in").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        write_jsonl(tmp_path / "in" / name, [{"id": name, "text": "t"}])
    for _ in range(2):
        summary = prepare([tmp_path / "in"], tmp_path / "out", options=NO_VAL)
        assert summary.documents == 1 and ["not test; " in warning for warning in summary.warnings] == [True]
    assert read_split(tmp_path / "out" / "train") == [("train.jsonl", "t")]


# ---------------------------------------------------------------- running again


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    """Two runs over the same file agree in every byte of every shard, index and refusal."""
    source = write_jsonl(tmp_path / "a.jsonl", [*ARTICLES, {"id": "x"}])
    for out in ("one", "two"):
        prepare([source], tmp_path / out, options=ShardOptions(size_limit=500))
    one = tree(tmp_path / "one")
    assert one == tree(tmp_path / "two") and len(one) > 6


def test_a_second_run_does_nothing(tmp_path: Path):
    """The same sources and options are recognised: the counts come back and no file is touched."""
    source = write_jsonl(tmp_path / "a.jsonl", [*ARTICLES, {"id": "x"}])
    first = prepare([source], tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = prepare([source], tmp_path / "out")
    assert second.already_prepared and not first.already_prepared
    assert (second.train, second.val, second.refused) == (first.train, first.val, first.refused)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_other_options_or_sources_are_refused_without_overwrite(tmp_path: Path):
    """What differs is named, the data set stays as it is, and --overwrite replaces it."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    out = tmp_path / "out"
    prepare([source], out)
    before = tree(out)
    with pytest.raises(PrepareError, match=r"val_fraction was 0\.1 and is 0.*--overwrite"):
        prepare([source], out, options=NO_VAL)
    with pytest.raises(PrepareError, match="other sources"):
        prepare([write_jsonl(tmp_path / "b.jsonl", ARTICLES)], out)
    write_jsonl(source, ARTICLES[:20])
    with pytest.raises(PrepareError, match="changed since: .*a.jsonl"):
        prepare([source], out)
    assert tree(out) == before
    prepare([source], out, options=NO_VAL, overwrite=True)
    assert [id for id, _ in read_split(out / "train")] == [row["id"] for row in ARTICLES[:20]]
    assert not (out / "val").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "out"]


def test_a_folder_that_is_not_ours_is_never_deleted(tmp_path: Path):
    """Neither somebody's folder, nor a file added to ours, nor a folder in the temporary's place goes."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("cat")
    with pytest.raises(PrepareError, match="not written by"):
        prepare([source], photos, overwrite=True)
    out = tmp_path / "out"
    prepare([source], out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(PrepareError, match=r"notes\.txt"):
        prepare([source], out, overwrite=True)
    hidden = tmp_path / ".new.prepare" / "data"
    hidden.mkdir(parents=True)
    with pytest.raises(PrepareError, match="was not made by"):
        prepare([source], tmp_path / "new")
    assert (photos / "cat.jpg").exists() and (out / "notes.txt").exists() and hidden.exists()


def test_a_damaged_data_set_is_not_called_prepared(tmp_path: Path):
    """A missing index is an error, not `already prepared`."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    prepare([source], tmp_path / "out")
    (tmp_path / "out" / "val" / "index.json").unlink()
    with pytest.raises(PrepareError, match=r"val/index\.json is missing"):
        prepare([source], tmp_path / "out")


# ---------------------------------------------------------------- killed, or not alone


BIG = ShardOptions(size_limit=64 << 10)
BIG_ROWS = 2500


def start_run(tmp_path: Path) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """A real run that is in the middle of its shards. Returns process, source and out."""
    rows = [{"id": str(n), "text": f"{n} " * 300} for n in range(BIG_ROWS)]
    source, out = write_jsonl(tmp_path / "big.jsonl", rows), tmp_path / "out"
    command = [sys.executable, "-m", "lacy_stream.cli.main", "prepare", source, "--out", out, "--size-limit", "64kb"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".out.prepare/data/train/shard.00002*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # so that it cannot finish before the test acts
    return process, source, out


@pytest.mark.process
def test_sigkill_leaves_nothing_behind_that_counts(tmp_path: Path):
    """A run killed between two shards leaves OUT absent; the next run clears up, says so and completes."""
    process, source, out = start_run(tmp_path)
    process.kill()
    process.wait()
    assert not out.exists() and (tmp_path / ".out.prepare" / "data").exists()
    summary = prepare([source], out, options=BIG)
    assert any("interrupted run" in warning for warning in summary.warnings)
    assert summary.documents == BIG_ROWS == len(read_all(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.jsonl", "out"]
    assert prepare([source], out, options=BIG).warnings == []


@pytest.mark.process
def test_a_second_run_at_the_same_time_is_turned_away(tmp_path: Path):
    """While one process writes, another is told so, and the first one's data set is whole."""
    process, source, out = start_run(tmp_path)
    try:
        with pytest.raises(PrepareError, match="another run is writing"):
            prepare([source], out, options=BIG)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=300) == 0
    assert len(read_all(out)) == BIG_ROWS
    assert prepare([source], out, options=BIG).already_prepared


def test_a_race_has_one_winner(tmp_path: Path):
    """Of many runs started together one writes; the others are turned away or find it prepared."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    outcomes: list[Summary | Exception] = []
    barrier = threading.Barrier(8)

    def run() -> None:
        barrier.wait()
        try:
            outcomes.append(prepare([source], tmp_path / "out"))
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [o for o in outcomes if isinstance(o, Summary) and not o.already_prepared]
    errors = [o for o in outcomes if isinstance(o, Exception)]
    assert len(written) == 1
    assert all(isinstance(e, PrepareError) and "another run" in str(e) for e in errors), errors
    assert read_all(tmp_path / "out") == TEXTS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_a_lock_that_its_owner_has_just_removed_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that locks the file another run is just deleting starts over, or two would write at once."""
    source, lock = write_jsonl(tmp_path / "a.jsonl", ARTICLES), tmp_path / ".out.prepare" / "lacy-stream.lock"
    held: list[int] = []

    def flock_as_the_owner_leaves(descriptor: int, how: int) -> None:
        if not held:
            lock.unlink()
        held.append(descriptor)
        if len(held) == 2:
            assert os.path.samestat(os.fstat(descriptor), lock.stat())

    monkeypatch.setattr("lacy_stream.prepare.convert.fcntl.flock", flock_as_the_owner_leaves)
    prepare([source], tmp_path / "out")
    assert len(held) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_a_full_disk_leaves_nothing(tmp_path: Path):
    """When a shard cannot be written in full the error names the folder and OUT stays absent."""
    rows = [{"id": str(n), "text": os.urandom(2000).hex()} for n in range(50)]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(PrepareError, match=r"cannot write to .*\.out\.prepare: File too large; make room"):
            prepare([source], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    """The run ends with the folder's name, even where the file system says `no such file` as /proc does."""
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    with pytest.raises(PrepareError, match=r"cannot make /proc/\.lacy\.prepare: .*; choose another --out"):
        prepare([source], "/proc/lacy")
    with pytest.raises(PrepareError, match="cannot make /proc/lacy: "):
        prepare([source], "/proc/lacy/data")
    with pytest.raises(PrepareError, match=r"cannot make .*a\.jsonl: File exists"):
        prepare([source], source / "data")
    (tmp_path / ".out.prepare").touch()
    with pytest.raises(PrepareError, match=r"cannot make .*\.out\.prepare: File exists"):
        prepare([source], tmp_path / "out")


def test_overwrite_stopped_between_its_two_renames_gets_the_old_data_back(tmp_path: Path):
    """The one moment at which --overwrite leaves OUT absent is repaired by the next run."""
    source, out = write_jsonl(tmp_path / "a.jsonl", ARTICLES), tmp_path / "out"
    prepare([source], out)
    before = tree(out)
    work = tmp_path / ".out.prepare"
    work.mkdir()
    (work / "lacy-stream.lock").touch()
    os.replace(out, work / "old")
    summary = prepare([source], out)
    assert summary.already_prepared and tree(out) == before
    assert not work.exists()
