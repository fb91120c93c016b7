"""What does annotation on other machines cost? Local and remote workers on one machine, in turns.

    python benchmarks/remote.py wiki_articles.jsonl.zst --tokenizer tokenizer.model --out remote.json

Starts a Ray cluster of two raylets in a network namespace of its own (tests/ray_cluster.py), and measures

- CPU microseconds per token, in the workers, in this process and in the bridge, for one local and one remote worker in
  turns, and whether both give the same labels;
- bytes per token in both directions;
- calls a second through one bridge, with 8, 64 and 512 workers that have nothing to do. There are as many actors as
  the memory allows (--actors), and the others share them: what is measured is this side;
- seconds from a new pool to its first labels.

Figures of a machine that is busy with other work are good for ratios only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ray_cluster import ADDRESS, CLUSTER, RayHost, why_no_namespace  # noqa: E402

from annotator import AnnotatorSettings, Document  # noqa: E402
from lacy_stream.stream.pool import AnnotationPool  # noqa: E402
from lacy_stream.stream.workers.bridge import BridgeSettings, run_bridge  # noqa: E402
from lacy_stream.stream.workers.frames import pack, unpack  # noqa: E402
from lacy_stream.stream.workers.process import start_process  # noqa: E402
from lacy_stream.stream.workers.remote import RemoteWorkers  # noqa: E402
from lacy_stream.stream.workers.remote_settings import RemoteSettings  # noqa: E402
from lacy_stream.stream.workers.remote_worker import RemoteWorker  # noqa: E402
from lacy_stream.stream.workers.wire import encode_settings  # noqa: E402

CALLS_S = 5.0


def read(path: str, count: int) -> list[Document]:
    import zstandard

    with open(path, "rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode()
    return [Document(str(number), json.loads(line)["text"]) for number, line in enumerate(text.splitlines()[:count])]


# --- in the namespace -----------------------------------------------------------------------------------------------


def start(cpus: int) -> None:
    CLUSTER.start_head()
    CLUSTER.machine("first", cpus)


def annotate(path: str, tokenizer: str, count: int, remote: bool) -> dict[str, Any]:
    """Annotate documents by one worker: the first part so that its tables are full, and the rest with a clock."""
    documents = read(path, count)
    keys = {"remote": RemoteSettings(address=ADDRESS, num_workers=1)} if remote else {}
    began = time.monotonic()
    with AnnotationPool(AnnotatorSettings(tokenizer), 0 if remote else 1, **keys) as pool:
        pool.submit(documents[0]).result()
        first_s = time.monotonic() - began
        first, rest = documents[1 : count // 4], documents[count // 4 :]
        for future in [pool.submit(document) for document in first]:
            future.result()
        worker_before, tokens_before = _cpu_of_workers(pool)
        this, bridge = psutil.Process(), _bridge(pool)
        before = _seconds(this), _seconds(bridge)
        bytes_out, bytes_back = _count_bytes(pool)
        found = hashlib.sha256()
        for future in [pool.submit(document) for document in rest]:
            label = future.result()
            found.update(label.ids.astype(np.int64).tobytes() + label.classes.tobytes())
        worker_s, tokens = _cpu_of_workers(pool)
        tokens -= tokens_before
        return {
            "digest": found.hexdigest()[:16],
            "tokens": tokens,
            "first_s": first_s,
            "worker_us": 1e6 * (worker_s - worker_before) / tokens,
            "driver_us": 1e6 * (_seconds(this) - before[0]) / tokens,
            "bridge_us": 1e6 * (_seconds(bridge) - before[1]) / tokens,
            "bytes_out": sum(bytes_out) / tokens,
            "bytes_back": sum(bytes_back) / tokens,
            "largest_message": max([*bytes_out, *bytes_back], default=0),
        }


def _cpu_of_workers(pool: AnnotationPool) -> tuple[float, int]:
    stats = pool.stats()
    return sum(worker.cpu_s for worker in stats.workers), stats.tokens


def _bridge(pool: AnnotationPool) -> psutil.Process | None:
    source = pool._source
    if not isinstance(source, RemoteWorkers) or source._process is None:
        return None
    return psutil.Process(source._process.pid)


def _seconds(process: psutil.Process | None) -> float:
    times = None if process is None else process.cpu_times()
    return 0.0 if times is None else times.user + times.system


def _count_bytes(pool: AnnotationPool) -> tuple[list[int], list[int]]:
    """Count what goes to remote workers and comes back, from now on."""
    out: list[int] = []
    back: list[int] = []
    for worker in pool._workers.values():
        if isinstance(worker, RemoteWorker):
            call = worker._call

            def counted(method: str, body: bytes, *rest: Any, call: Any = call) -> memoryview:
                answer = call(method, body, *rest)
                if method == "annotate":
                    out.append(len(body))
                    back.append(len(answer))
                return answer

            worker._call = lambda method, body, *rest, blames_document=True, counted=counted: counted(  # type: ignore
                method, body, *rest, blames_document
            )
    return out, back


class Switchboard:
    """Many handles of workers that share a few actors, as memory allows. An actor answers in the order of its calls."""

    def __init__(self, tokenizer: str, actors: int, log: str) -> None:
        settings = encode_settings(AnnotatorSettings(tokenizer, None))
        told = BridgeSettings(ADDRESS, (), False, f"benchmark {os.getpid()}", settings, log)
        self.process, self._pipe = start_process("bridge", run_bridge, told)
        self._handles: dict[int, RemoteWorker] = {}
        self._waiting = [deque[int]() for _ in range(actors)]
        self._sending = threading.Lock()
        self._hear("connected", 1)
        for actor in range(actors):
            self._pipe.send_bytes(pack({"do": "start", "worker": actor, "name": f"benchmark {actor}", "avoid": []}))
        self._hear("ready", actors)
        threading.Thread(target=self._listen, daemon=True).start()

    def _hear(self, event: str, times: int) -> None:
        while times:
            header, _ = unpack(self._pipe.recv_bytes())
            assert header["event"] not in ("failed", "died"), header
            times -= header["event"] == event

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                header, body = unpack(self._pipe.recv_bytes())
                if header["event"] == "answer":
                    self._handles[self._waiting[header["worker"]].popleft()].set_reply((header, body))

    def handle(self, number: int) -> RemoteWorker:
        self._handles[number] = RemoteWorker(self, number)
        return self._handles[number]

    def send(self, number: int, body: bytes = b"", **header: Any) -> None:
        actor = number % len(self._waiting)
        with self._sending:
            self._waiting[actor].append(number)
            self._pipe.send_bytes(pack({"worker": actor, **header}, body))

    def remove(self, number: int) -> None:
        raise AssertionError("no worker ends here")


def calls(tokenizer: str, actors: int, slots: list[int], body_bytes: int) -> list[dict[str, float]]:
    """Calls a second of threads, each of which always waits for the answer of an actor that only answers."""
    with tempfile.TemporaryDirectory() as folder:
        board = Switchboard(tokenizer, actors, f"{folder}/log")
        found = [_measure_calls(board, count, b"x" * body_bytes) for count in slots]
        board.process.kill()
        return found


def _measure_calls(board: Switchboard, slots: int, body: bytes) -> dict[str, float]:
    counts, ends = [0] * slots, time.monotonic() + CALLS_S

    def call_all(slot: int) -> None:
        handle = board.handle(slot)
        while time.monotonic() < ends:
            handle._call("ping", body, 60.0, blames_document=False)
            counts[slot] += 1

    threads = [threading.Thread(target=call_all, args=(slot,)) for slot in range(slots)]
    this, bridge, began = psutil.Process(), psutil.Process(board.process.pid), time.monotonic()
    before = _seconds(this), _seconds(bridge)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(counts)
    return {
        "slots": slots,
        "bytes": len(body),
        "calls_per_s": total / (time.monotonic() - began),
        "driver_us_per_call": 1e6 * (_seconds(this) - before[0]) / total,
        "bridge_us_per_call": 1e6 * (_seconds(bridge) - before[1]) / total,
        "bridge_mb": bridge.memory_info().rss / 1e6,
    }


# --- outside --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="zstd-compressed JSON lines with the key text")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--out", required=True, help="JSON file")
    args = parser.parse_args()
    if why := why_no_namespace():
        raise SystemExit(why)
    texts, tokenizer = os.path.abspath(args.texts), os.path.abspath(args.tokenizer)
    found: dict[str, Any] = {"load": os.getloadavg()[0], "annotation": [], "calls": []}
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        host = RayHost(Path(folder), ROOT / "benchmarks")
        try:
            host.call("remote:start", args.actors)
            for body in (0, 32_000):
                found["calls"] += host.call("remote:calls", tokenizer, args.actors, args.slots, body)
                print(*found["calls"][-len(args.slots) :], sep="\n", flush=True)
            for _ in range(args.rounds):
                for remote in (False, True):
                    row = host.call("remote:annotate", texts, tokenizer, args.documents, remote)
                    found["annotation"].append({"remote": remote} | row)
                    print(found["annotation"][-1], flush=True)
        finally:
            host.close()
    assert len({row["digest"] for row in found["annotation"]}) <= 1, "the labels differ"
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
