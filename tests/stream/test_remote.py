"""Shards from real servers: S3 (moto) behind a proxy that makes faults, and SFTP (OpenSSH).

Every bound on time is several times what is needed, for two busy cores.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from processes import processes
from servers import Fault, FaultyProxy, free_port, s3_server, sftp_server
from streaming import MDSWriter

from lacy_stream.stream import download
from lacy_stream.stream.report import Report
from lacy_stream.stream.shards import DataError, Shards

pytestmark = pytest.mark.process

DOCUMENTS = 60
SHARD_1 = "shard.00001.mds.zstd"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same documents twice, in 15 shards: `hashed` is compressed and has hashes, `plain` neither. And `evil`, an
    index that names a file outside."""
    folder = tmp_path_factory.mktemp("data")
    for name, options in (("hashed", {"compression": "zstd", "hashes": ["xxh64"]}), ("plain", {})):
        with MDSWriter(
            out=str(folder / name / "train"), columns={"id": "str", "text": "str"}, size_limit=4000, **options
        ) as writer:
            for number in range(DOCUMENTS):
                writer.write({"id": f"doc-{number}", "text": f"word{number} " * 100})
    index = json.loads((folder / "plain" / "train" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../../../evil.mds"
    (folder / "evil" / "train").mkdir(parents=True)
    (folder / "evil" / "train" / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def s3(data: Path) -> Iterator[FaultyProxy]:
    """The proxy before an S3 server whose bucket `data` has both data sets."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        proxy = FaultyProxy(port)
        for name, value in {**ENVIRONMENT, "S3_ENDPOINT_URL": proxy.url}.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket="data")
        for path in data.rglob("*.*"):
            client.put_object(Bucket="data", Key=str(path.relative_to(data)), Body=path.read_bytes())
        yield proxy
        proxy.close()


@pytest.fixture
def proxy(s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The same without faults, and with short pauses between attempts."""
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.02)
    s3.reset()
    yield s3
    s3.reset()


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an SFTP server."""
    with sftp_server(tmp_path_factory.mktemp("sshd")) as (url, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield url


def rows(shards: Shards) -> list[dict[str, Any]]:
    return [shards.read(sample) for sample in range(len(shards))]


def hashed(local: Path, **options: Any) -> Shards:
    return Shards(local, "s3://data/hashed", "train", **options)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def read_all(environment: dict[str, str], local: Path, remote: str, options: dict[str, Any]) -> str:
    """In a process of its own: read everything, in the order of this process's number; the error, if any."""
    os.environ.update(environment)
    shards = Shards(local, remote, "train", **options)
    try:
        ids = [shards.read(sample)["id"] for sample in range(len(shards))]
    except DataError as error:
        return str(error)
    assert ids == [f"doc-{number}" for number in range(DOCUMENTS)]
    return ""


def in_two_processes(proxy: FaultyProxy, locals: list[Path], remote: str, **options: Any) -> list[str]:
    """What ``read_all`` returns in two processes at once."""
    environment = {**ENVIRONMENT, "S3_ENDPOINT_URL": proxy.url}
    with processes(2) as ranks:
        results = [ranks.submit(read_all, environment, local, remote, options) for local in locals]
        return [result.result(240) for result in results]


@pytest.mark.parametrize("name", ["hashed", "plain"])
def test_whole_data_set_over_s3_equals_local(tmp_path: Path, proxy: FaultyProxy, data: Path, name: str) -> None:
    """Over S3 come the rows and the digest of the local folder, with one GET a file and nothing to report."""
    report = Report()
    remote, local = Shards(tmp_path, f"s3://data/{name}", "train", report=report), Shards(data / name / "train")
    assert rows(remote) == rows(local)
    assert remote.digest == local.digest
    assert len(proxy.gets("shard")) > 10 and set(proxy.gets("").values()) == {1}
    assert not any(report.counts().values())


def test_a_third_of_the_requests_fails(tmp_path: Path, proxy: FaultyProxy) -> None:
    """503 on every third request: everything is delivered, and the report counts each of them."""
    asked = iter(range(10_000))
    proxy.rule = lambda *_: Fault(status=503) if next(asked) % 3 == 2 else None
    report = Report()
    assert len(rows(hashed(tmp_path, report=report))) == DOCUMENTS
    assert report.counts()["download_retried"] == proxy.faults > 10


def test_every_kind_of_fault_on_a_third(tmp_path: Path, proxy: FaultyProxy) -> None:
    """503, silence, slow bytes and cut bodies in turn on every third request: everything is delivered."""
    kinds = [Fault(status=503), Fault(hang=True, keep=0), Fault(drip_s=0.01), Fault(keep=0.5)]
    asked = iter(range(10_000))

    def rule(*_: object) -> Fault | None:
        number = next(asked)
        return kinds[number // 3 % 4] if number % 3 == 2 else None

    proxy.rule, report = rule, Report()
    assert len(rows(hashed(tmp_path, report=report, download_retry=6, download_timeout=1.5))) == DOCUMENTS
    assert proxy.faults > 8 and report.counts()["download_retried"] > 3


def test_missing_shard_fails_on_every_rank(tmp_path: Path, proxy: FaultyProxy) -> None:
    """404 of a shard, two ranks with one cache: both end soon with an error that names the shard and its URL, after
    two attempts each and not five."""
    proxy.rule = lambda method, path, _: Fault(status=404) if SHARD_1 in path else None
    with within(150):
        errors = in_two_processes(proxy, [tmp_path] * 2, "s3://data/hashed", download_retry=4)
    for error in errors:
        assert "shard shard.00001.mds of s3://data/hashed/train" in error
        assert f"s3://data/hashed/train/{SHARD_1}" in error and "not found" in error
    assert proxy.asked["HEAD", f"/data/hashed/train/{SHARD_1}"] == 4


def test_two_processes_fetch_each_file_once(tmp_path: Path, proxy: FaultyProxy) -> None:
    """Two ranks that fill one cache at the same time fetch each file once over the network."""
    proxy.rule = lambda *_: Fault(delay_s=0.05)
    assert in_two_processes(proxy, [tmp_path] * 2, "s3://data/hashed") == ["", ""]
    assert len(proxy.gets("shard")) > 10 and set(proxy.gets("").values()) == {1}


@pytest.mark.parametrize("remote", ["s3://data/nothing", "s3://nowhere/data"])
def test_missing_data_set(tmp_path: Path, proxy: FaultyProxy, remote: str) -> None:
    """A prefix or a bucket that does not exist is an error that names the URL of the index, after two attempts."""
    with pytest.raises(DataError, match=f"{remote}/train: given up after 2 attempts: {remote}/train/index.json"):
        Shards(tmp_path, remote, "train")


def test_forbidden(tmp_path: Path, proxy: FaultyProxy) -> None:
    """403 is as final as 404: two attempts."""
    proxy.rule = lambda *_: Fault(status=403)
    with pytest.raises(DataError, match="given up after 2 attempts.*permission"):
        hashed(tmp_path)


def test_bad_request_ends(tmp_path: Path, proxy: FaultyProxy) -> None:
    """400, which Streaming answers by asking again without credentials, for ever: a few requests an attempt."""
    proxy.rule = lambda *_: Fault(status=400)
    with pytest.raises(DataError, match="after 2 attempts.*answers 400, with credentials and without"):
        hashed(tmp_path)
    assert sum(proxy.asked.values()) <= 8  # botocore asks for the bucket's region as well


def test_no_server(tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not listen is an error after all attempts, and each is counted."""
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    report = Report()
    with pytest.raises(DataError, match="given up after 4 attempts: s3://data/hashed/train/index.json"):
        hashed(tmp_path, report=report)
    assert report.counts()["download_retried"] == 3


def test_slow_bytes_arrive(tmp_path: Path, proxy: FaultyProxy) -> None:
    """Bytes that come slowly, but in time, are waited for: nothing is tried again."""
    proxy.rule = lambda method, path, _: Fault(drip_s=0.05) if SHARD_1 in path else None
    report = Report()
    assert len(rows(hashed(tmp_path, report=report, download_timeout=30))) == DOCUMENTS
    assert proxy.faults and report.counts()["download_retried"] == 0


@pytest.mark.parametrize(
    "fault", [Fault(hang=True, keep=0), Fault(hang=True, keep=0.5), Fault(drip_s=0.2)], ids=["silent", "stops", "drips"]
)
def test_server_that_does_not_get_on(tmp_path: Path, proxy: FaultyProxy, fault: Fault) -> None:
    """A server that is silent, stops amid a file or sends too slowly to be in time (but never pauses for long): an
    error that names the URL within a bounded time, and the file comes when the server has recovered."""
    patient, files = hashed(tmp_path), len(os.listdir("/proc/self/fd"))  # has fetched the index
    shards = hashed(tmp_path, download_retry=1, download_timeout=0.5)
    proxy.rule = lambda method, path, _: fault if SHARD_1 in path and method == "GET" else None
    sample = int(shards.sizes[0])
    with within(40), pytest.raises(DataError, match=f"2 attempts: s3://data/hashed/train/{SHARD_1}.*(took|time)"):
        shards.read(sample)
    assert not list(tmp_path.glob("train/.*.part"))
    proxy.reset()
    assert patient.read(sample)["id"] == f"doc-{sample}"
    assert not list(tmp_path.glob("train/.*.part"))
    assert len(os.listdir("/proc/self/fd")) < files + 20


def test_cut_body_is_fetched_again(tmp_path: Path, proxy: FaultyProxy) -> None:
    """A body that is cut is fetched again: by boto3 five times, then by us, counted; it never is taken for whole."""
    proxy.rule = lambda method, path, asked: Fault(keep=0.5) if method == "GET" and asked < 6 else None
    report = Report()
    shards = hashed(tmp_path, report=report)
    assert report.counts()["download_retried"] == 1
    proxy.rule = lambda method, path, _: Fault(keep=0.5) if method == "GET" and SHARD_1 in path else None
    with pytest.raises(DataError, match=f"4 attempts: s3://data/hashed/train/{SHARD_1}"):
        rows(shards)
    proxy.reset()
    assert len(rows(shards)) == DOCUMENTS


def test_flipped_bit_with_hashes(tmp_path: Path, proxy: FaultyProxy) -> None:
    """A bit that is flipped on the way is noticed: fetched again once, then an error."""
    proxy.rule = lambda method, path, asked: Fault(flip=True) if "shard" in path and not asked else None
    report = Report()
    assert len(rows(hashed(tmp_path / "once", report=report))) == DOCUMENTS
    assert report.counts()["download_retried"] == len(proxy.gets("shard"))
    proxy.rule = lambda method, path, asked: Fault(flip=True) if SHARD_1 in path else None
    with pytest.raises(DataError, match=f"2 attempts: s3://data/hashed/train/{SHARD_1}.*xxh64 differs"):
        rows(hashed(tmp_path / "always"))


def test_flipped_bit_without_hashes(tmp_path: Path, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture) -> None:
    """Without hashes a flipped bit goes through, and a warning at the start says that it would."""
    with caplog.at_level(logging.WARNING):
        shards = Shards(tmp_path, "s3://data/plain", "train")
    assert "s3://data/plain/train: the index has no hash of" in caplog.text
    proxy.rule = lambda *_: Fault(flip=True)
    rows(shards)


def test_hostile_index_on_s3(tmp_path: Path, proxy: FaultyProxy) -> None:
    """An index on S3 that names a file outside the cache is refused before anything else is fetched or written."""
    with pytest.raises(DataError, match="s3://data/evil/train.*unsafe entry"):
        Shards(tmp_path / "a" / "b", "s3://data/evil", "train")
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "train", ".index.json.lock"}
    assert set(proxy.gets("")) == {"/data/evil/train/index.json"}


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_shards(folder: Path, count: int) -> None:
    wait_until(lambda: len(list(folder.glob("shard.*.mds"))) >= count)


def test_prefetched_shards_need_no_wait(tmp_path: Path, proxy: FaultyProxy) -> None:
    """Prefetch returns at once and fetches each shard once, in the order of the samples; reading them then asks the
    slow server nothing."""
    shards = hashed(tmp_path)
    proxy.rule = lambda method, *_: Fault(delay_s=0.2) if method == "GET" else None
    samples = list(reversed(range(DOCUMENTS)))
    with within(2.5):
        for _ in range(3):
            shards.prefetch(samples)
    with within(60):
        shards.read(DOCUMENTS - 1)
    assert not (tmp_path / "train" / "shard.00000.mds").exists()
    wait_for_shards(tmp_path / "train", len(shards.sizes))
    asked = proxy.asked.copy()
    assert len(rows(shards)) == DOCUMENTS
    assert proxy.asked == asked and set(proxy.gets("shard").values()) == {1}


def test_failed_prefetch_is_an_error_of_read(
    tmp_path: Path, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A shard that could not be fetched ahead is logged, is tried again by `read`, which raises; the shards after it
    are still fetched."""
    shards = hashed(tmp_path)
    proxy.rule = lambda method, path, _: Fault(status=404) if SHARD_1 in path else None
    shards.prefetch(range(DOCUMENTS))
    wait_for_shards(tmp_path / "train", len(shards.sizes) - 1)
    wait_until(lambda: "shard shard.00001.mds could not be fetched ahead" in caplog.text)
    sample = int(shards.sizes[0])
    with pytest.raises(DataError, match=f"s3://data/hashed/train/{SHARD_1}"):
        shards.read(sample)
    proxy.reset()
    assert shards.read(sample)["id"] == f"doc-{sample}"


def test_prefetch_keeps_no_process_alive(tmp_path: Path, proxy: FaultyProxy) -> None:
    """A process whose prefetch waits for a silent server ends when its work is done, without a word."""
    proxy.rule = lambda method, path, _: Fault(hang=True, keep=0) if "shard" in path else None
    code = f"""
from lacy_stream.stream.shards import Shards
shards = Shards({str(tmp_path)!r}, "s3://data/hashed", "train")
shards.prefetch(range(len(shards)))
input()
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        wait_until(lambda: proxy.faults > 0)
        with within(40):
            output = process.communicate("\n", timeout=60)
        assert (process.returncode, output) == (0, ("", ""))


def test_whole_data_set_over_sftp_equals_local(tmp_path: Path, sftp: str, data: Path) -> None:
    """Over SFTP come the rows of the local folder, more shards than a connection may have sessions, nothing tried
    again."""
    report = Report()
    remote = Shards(tmp_path, f"{sftp}{data}/hashed", "train", report=report)
    assert rows(remote) == rows(Shards(data / "hashed" / "train"))
    assert len(remote.sizes) > 10 and not any(report.counts().values())


def test_missing_shard_on_sftp(tmp_path: Path, sftp: str, data: Path) -> None:
    """A shard that the SFTP server does not have is an error that names it and its URL, after two attempts."""
    remote = tmp_path / "remote" / "train"
    remote.mkdir(parents=True)
    for path in (data / "hashed" / "train").iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    (remote / SHARD_1).unlink()
    with within(60), pytest.raises(DataError, match=f"2 attempts: {sftp}{remote}/{SHARD_1}: FileNotFoundError"):
        rows(Shards(tmp_path / "local", f"{sftp}{remote.parent}", "train"))


def test_silent_sftp_server(tmp_path: Path) -> None:
    """An SFTP server that accepts and says nothing is an error within a bounded time; the password is not shown."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"sftp://me:secret@127.0.0.1:{silent.getsockname()[1]}/data"
        with within(40), pytest.raises(DataError, match=r"me:\*\*\*@.*after 2 attempts.*TimeoutError") as raised:
            Shards(tmp_path, url, download_retry=1, download_timeout=0.5)
    assert "secret" not in str(raised.value)
