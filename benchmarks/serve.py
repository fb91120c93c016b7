"""The pair as a service: CPU time per token against an earlier checkout and against the partner alone; tokens per
second and latency by the number of clients; a minute of load in which the partner dies.

    python benchmarks/serve.py PARTNER [--model MODEL] [--before CHECKOUT] [--only engine|clients|load] [--out FILE]

PARTNER is a folder of transformers, such as SmolLM2. MODEL is a checkpoint or folder; without one, a GPT-2 with random
weights of the demo's size (2 layers, 192 wide). CHECKOUT is a folder with another commit of this repository, whose
`generate` is measured in turns with this one's. In the part `load`, PARTNER is the small model, calls are drawn at
random, and the partner is an endpoint that answers at once, dies after 20 s and comes back after 40 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
TEXTS, TOKENS, RATE = 8, 64, 0.15
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

WRITER = """
import json, sys, time
from lacy_stream.cascade import Decoding, Delegation, generate, open_partner
from lacy_stream.train.checkpoint import load_model
model, partner, texts, tokens, rate = json.loads(sys.argv[1])
model, partner = load_model(model), partner and open_partner(partner)
prompts = [f"Tell me a bio of person {n}. The person is" for n in range(texts)]
decoding = Decoding(max_new_tokens=tokens, batch_size=texts)
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    found = list(generate(model, prompts, partner=partner, delegation=Delegation(call_rate=rate), decoding=decoding))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    tokens = [token.writer for text in found for token in text.tokens]
    print(json.dumps([cpu, wall, len(tokens), tokens.count("partner") / len(tokens)]), flush=True)
"""


@contextlib.contextmanager
def writer(checkout: Path, model: str, partner: str | None) -> Iterator[subprocess.Popen[str]]:
    """A process that writes all texts once for each line that it reads."""
    settings = json.dumps([model, partner, TEXTS, TOKENS, RATE])
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", WRITER, settings]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=checkout, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def turn(process: subprocess.Popen[str]) -> list[float]:
    """CPU seconds, wall seconds, tokens, call rate."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measure_engine(model: str, partner: str, before: str | None, rounds: int) -> dict[str, Any]:
    """CPU ms per token of the pair by `generate` now and in the earlier checkout, and of the partner alone. In turns;
    the ratios are those of one round."""
    ways: dict[str, Any] = {"now": (ROOT, model, partner), "partner alone": (ROOT, partner, None)}
    if before is not None:
        ways["before"] = (Path(before), model, partner)
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(writer(*way)) for name, way in ways.items()}
        for process in processes.values():
            turn(process)  # warm
        found: dict[str, list[list[float]]] = {name: [] for name in processes}
        for _ in range(rounds):
            for name, process in processes.items():
                found[name].append(turn(process))
                print(name, found[name][-1], flush=True)
    per_token = {name: [1e3 * cpu / tokens for cpu, _, tokens, _ in rows] for name, rows in found.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, per_token["now"], strict=True))
        for name, values in per_token.items()
    }
    return {
        name: {"cpu_ms_per_token": statistics.median(per_token[name]), "ratio_to_now": ratios[name], "rounds": rows}
        for name, rows in found.items()
    }


# ---------------------------------------------------------------- the server


@contextlib.contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Base URL and process of a server with one torch thread."""
    command = [sys.executable, "-m", "lacy_stream.cli.main", "serve", model, "--port", "0", "--name", "pair", *options]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            while httpx.get(url.replace("/v1", "/health"), timeout=300).status_code != 200:
                time.sleep(0.1)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(300)


def drive(url: str, clients: int, seconds: float, tokens: int) -> list[dict[str, Any]]:
    """What clients get that ask again as soon as they are answered: each answer, with its latency."""
    answers: list[dict[str, Any]] = []
    ends_at = time.monotonic() + seconds

    def client(number: int) -> None:
        with httpx.Client(timeout=600) as http:
            asked = 0
            while time.monotonic() < ends_at:
                prompt = f"Tell me a bio of person {number * 1000 + asked}. The person is"
                start = time.monotonic()
                answer = http.post(f"{url}/completions", json={"model": "pair", "prompt": prompt, "max_tokens": tokens})
                asked += 1
                answers.append({"status": answer.status_code, "s": time.monotonic() - start, **answer.json()})

    with ThreadPoolExecutor(clients) as pool:
        for one in [pool.submit(client, number) for number in range(clients)]:
            one.result()
    return answers


def measure_clients(model: str, partner: str, seconds: float) -> list[dict[str, Any]]:
    """Tokens per second, latency and CPU time per token by the number of clients."""
    rows = []
    with server(model, "--partner", partner, "--call-rate", str(RATE)) as (url, process):
        drive(url, 8, 5, 16)  # warm
        for clients in (1, 8, 32):
            start, cpu = time.monotonic(), sum(process.cpu_times()[:2])
            answers = drive(url, clients, seconds, TOKENS)
            wall, cpu = time.monotonic() - start, sum(process.cpu_times()[:2]) - cpu
            written = sum(answer["usage"]["completion_tokens"] for answer in answers)
            called = sum(a["usage"]["completion_tokens"] * a["lacy"]["call_rate"] for a in answers)
            latencies = sorted(answer["s"] for answer in answers)
            rows.append(
                {
                    "clients": clients,
                    "answers": len(answers),
                    "tokens_per_s": written / wall,
                    "cpu_ms_per_token": 1e3 * cpu / written,
                    "p50_s": statistics.median(latencies),
                    "p95_s": latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
                    "call_rate": called / written,
                }
            )
            print(rows[-1], flush=True)
    return rows


# ---------------------------------------------------------------- a minute of load


def measure_load(model: str, seconds: float) -> dict[str, Any]:
    """32 clients; the partner's endpoint dies after a third of the time and comes back after two thirds."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers import completions_server, free_port

    port = free_port()
    partner = f"http://127.0.0.1:{port}/v1#stub"
    memory: list[tuple[float, int]] = []
    ended = threading.Event()
    with server(model, "--partner", partner, "--delegate", "random", "--call-rate", str(RATE)) as (url, process):

        def watch() -> None:
            start = time.monotonic()
            while not ended.wait(1):
                memory.append((time.monotonic() - start, process.memory_info().rss))

        def partner_life() -> None:
            for wait_s in (0.0, seconds / 3):
                if ended.wait(wait_s):
                    return
                with completions_server("vllm", "", f"port={port}"):
                    ended.wait(seconds / 3)

        threads = [threading.Thread(target=one) for one in (watch, partner_life)]
        for thread in threads:
            thread.start()
        answers = drive(url, 32, seconds, 32)
        ended.set()
        for thread in threads:
            thread.join()
        health = httpx.get(url.replace("/v1", "/health")).json()
    choices = [answer["choices"][0] for answer in answers if answer["status"] == 200]
    third = max(1, len(memory) // 3)
    found = {
        "seconds": seconds,
        "answers": len(answers),
        "by_status": dict(Counter(str(answer["status"]) for answer in answers)),
        "texts_of_32_tokens_or_ended": sum(
            len(c["lacy"]["tokens"]) >= 32 or c["finish_reason"] == "stop" for c in choices
        ),
        "marked_partner_failed": sum(c["lacy"]["partner_failed"] for c in choices),
        "with_calls": sum(c["lacy"]["call_rate"] > 0 for c in choices),
        "memory_mb_first_third": max(rss for _, rss in memory[:third]) / 2**20,
        "memory_mb_last_third": max(rss for _, rss in memory[-third:]) / 2**20,
        "left": {"running": health["running"], "queued": health["queued"]},
    }
    print(found, flush=True)
    return found


# ---------------------------------------------------------------- the page


def engine_lines(found: dict[str, Any]) -> list[str]:
    labels = {"now": "the pair, now", "before": "the pair, before", "partner alone": "the partner alone"}
    return [
        "",
        f"## CPU time per token, {TEXTS} texts of {TOKENS} tokens at a time, call rate {RATE:.0%}",
        "",
        "| | CPU ms per token | of the pair now | call rate |",
        "| --- | --- | --- | --- |",
        *(
            f"| {labels[name]} | {row['cpu_ms_per_token']:.1f} | {row['ratio_to_now']:.2f} | "
            f"{'' if name == 'partner alone' else format(row['rounds'][-1][3], '.1%')} |"
            for name, row in found.items()
        ),
    ]


def client_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "",
        f"## Clients of one server, answers of {TOKENS} tokens, call rate {RATE:.0%}",
        "",
        "| clients | answers | tokens/s | CPU ms per token | p50 s | p95 s | call rate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['clients']} | {row['answers']} | {row['tokens_per_s']:.1f} | {row['cpu_ms_per_token']:.1f} | "
            f"{row['p50_s']:.1f} | {row['p95_s']:.1f} | {row['call_rate']:.1%} |"
            for row in rows
        ),
    ]


def load_lines(found: dict[str, Any]) -> list[str]:
    return [
        "",
        f"## {found['seconds']:.0f} s of 32 clients, with a partner that dies for a third of the time",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name.replace('_', ' ')} | {json.dumps(value)} |" for name, value in found.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("partner", help="folder of a model of transformers")
    parser.add_argument("--model", help="checkpoint or folder")
    parser.add_argument("--before", help="folder with another commit of this repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, and for each number of clients")
    parser.add_argument("--only", choices=("engine", "clients", "load"), help="one of the parts")
    parser.add_argument("--out", help="Markdown file to write, with a JSON file beside it")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or random_model(Path(folder) / "model")
        if args.only in (None, "engine"):
            results["engine"] = measure_engine(model, args.partner, args.before, args.rounds)
        if args.only in (None, "clients"):
            results["clients"] = measure_clients(model, args.partner, args.seconds)
        if args.only in (None, "load"):
            results["load"] = measure_load(args.partner, args.seconds)
    if args.out is not None:
        write = {"engine": engine_lines, "clients": client_lines, "load": load_lines}
        lines = ["# The pair as a service", *(line for name in results for line in write[name](results[name]))]
        Path(args.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
        text = re.sub(r"\d+\.\d{5,}", lambda match: f"{float(match[0]):.4f}", json.dumps(results, indent=1))
        Path(args.out).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def random_model(folder: Path) -> str:
    """The random model of benchmarks/cascade.py, as a folder."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.cascade import random_model as make
    from lacy_stream.train.export import write_folder

    write_folder(make(), folder)
    return str(folder)


if __name__ == "__main__":
    main()
