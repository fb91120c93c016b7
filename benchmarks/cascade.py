"""Generation with caches against reading everything again at each token and call; the call rates that come out; and
texts in batches against one at a time.

    python benchmarks/cascade.py PARTNER [--model MODEL] [--tokens 256] [--only caches|rates|batches] [--out FILE]

MODEL is a checkpoint or folder; without one, a GPT-2 with random weights of the demo's size (2 layers, 192 wide). Both
ways of a pair run one after the other in this process, and must write the same text.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lacy_stream.cascade import Decoding, Delegation, Generation, TransformersPartner, generate, open_partner
from lacy_stream.cascade.texts import PARTNER
from lacy_stream.recipe import tokenizer_path
from lacy_stream.train.checkpoint import CallingModel, load_model

PROMPT = "Tell me a bio of Marie Curie. Marie Curie is"
ROUNDS = 5
RATES = (0.15, 0.22, 0.45, 0.75)


def random_model() -> CallingModel:
    """The demo's architecture; enough spread in the weights for texts that vary."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32_001, "n_positions": 512, "n_embd": 192, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=2, eos_token_id=2, initializer_range=0.3, **sizes)).eval()
    file = tokenizer_path("package:mistral_common/data/tokenizer.model.v1")
    return CallingModel(model, file, 32_000, 2, 512, "random, 2 layers, 192 wide", None)


def timed(
    model: CallingModel, partner: TransformersPartner, rate: float, tokens: int, reuse: bool
) -> tuple[Generation, float, float]:
    """The text, wall seconds, CPU seconds."""
    partner.reuse = reuse
    wall, cpu = time.perf_counter(), time.process_time()
    delegation, decoding = Delegation(call_rate=rate), Decoding(max_new_tokens=tokens)
    [text] = generate(model, [PROMPT], partner=partner, delegation=delegation, decoding=decoding, reuse=reuse)
    return text, time.perf_counter() - wall, time.process_time() - cpu


def reuse_rows(model: CallingModel, partner: TransformersPartner, tokens: int) -> list[str]:
    """A Markdown row for each rate: calls, seconds of both ways in turns, factors within a turn; medians."""
    for reuse in (True, False):
        timed(model, partner, 0.5, 8, reuse)  # warm
    rows = []
    for rate in (0.15, 0.45):
        fast, walls, cpus = None, [], []
        for _ in range(ROUNDS):
            (fast, *fast_s), (slow, *slow_s) = (timed(model, partner, rate, tokens, reuse) for reuse in (True, False))
            assert fast.text == slow.text, "both ways must write the same text"
            walls.append((fast_s[0], slow_s[0], slow_s[0] / fast_s[0]))
            cpus.append((fast_s[1], slow_s[1], slow_s[1] / fast_s[1]))
        assert fast is not None
        (wall, slow_wall, factor), (cpu, slow_cpu, cpu_factor) = (
            map(statistics.median, zip(*seconds, strict=True)) for seconds in (walls, cpus)
        )
        calls = sum(token.writer == PARTNER and token.score is not None for token in fast.tokens)
        rows.append(
            f"| {rate:.0%} | {len(fast.tokens)} | {calls} | {wall:.1f} | {slow_wall:.1f} | {factor:.1f} | "
            f"{cpu:.1f} | {slow_cpu:.1f} | {cpu_factor:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def rate_rows(model: CallingModel, tokens: int) -> list[str]:
    """A Markdown row for each target: the rate over 20 prompts by both estimators. The partner is the model itself, so
    that the texts are those of plain generation and only the thresholds differ."""
    from tempfile import TemporaryDirectory

    from lacy_stream.train.export import write_folder

    rows = []
    with TemporaryDirectory() as folder:
        write_folder(model, Path(folder) / "model")
        partner = open_partner(f"{folder}/model")
        prompts = [f"Tell me a bio of person {n}. The person is" for n in range(20)]
        for rate in RATES:
            found = []
            for estimator in ("tracking", "paper"):
                for batch_size in (1, 8):
                    texts = generate(
                        model,
                        prompts,
                        partner=partner,
                        delegation=Delegation(call_rate=rate, estimator=estimator),
                        decoding=Decoding(max_new_tokens=tokens, batch_size=batch_size),
                    )
                    written = [token.writer == PARTNER for text in texts for token in text.tokens]
                    found.append(sum(written) / len(written))
            rows.append(f"| {rate:.0%} | {len(written)} | {' | '.join(f'{share:.1%}' for share in found)} |")
            print(rows[-1], flush=True)
    return rows


def batch_rows(model: CallingModel, partner: TransformersPartner, tokens: int) -> list[str]:
    """A Markdown row for each call rate: CPU seconds of 16 texts, one at a time and in batches of 8, median of 3 in
    turns."""
    rows = []
    for rate in (0.0, 0.15):
        seconds: dict[int, list[float]] = {1: [], 8: []}
        for _ in range(3):
            for batch_size, found in seconds.items():
                start = time.process_time()
                prompts = [f"Tell me a bio of person {n}. The person is" for n in range(16)]
                delegation = Delegation(call_rate=rate)
                decoding = Decoding(max_new_tokens=tokens, batch_size=batch_size)
                texts = generate(model, prompts, partner=partner, delegation=delegation, decoding=decoding)
                written = sum(len(text.tokens) for text in texts)
                found.append((time.process_time() - start) / written)
        alone, together = (1e3 * statistics.median(found) for found in seconds.values())
        rows.append(f"| {rate:.0%} | {alone:.2f} | {together:.2f} | {alone / together:.1f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("partner", help="as `lacy-stream generate --partner`, a model of transformers")
    parser.add_argument("--model", help="checkpoint or folder")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--only", choices=("caches", "rates", "batches"), help="one of the tables")
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one core: the machine may be shared
    model = random_model() if args.model is None else load_model(args.model)
    partner = open_partner(args.partner)
    assert isinstance(partner, TransformersPartner), "an endpoint keeps its own cache"
    command = f"python benchmarks/cascade.py {Path(args.partner).name} {shlex.join(sys.argv[2:])}"
    lines = [
        "# The cascade: caches, and call rates",
        "",
        f"`{command.strip()}` on {os.cpu_count()} cores of a Xeon, torch {torch.__version__} with one thread, float32. "
        f"Small model: {model.name}. Partner: {partner.name}.",
    ]
    if args.only in (None, "caches"):
        lines += [
            "",
            "## Caches against reading everything again, one text, the same text both ways",
            "",
            "| call rate | tokens | calls | s with caches | s without | factor | CPU s with | CPU s without | factor |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *reuse_rows(model, partner, args.tokens),
        ]
    if args.only in (None, "rates"):
        lines += [
            "",
            "## Call rates over 20 prompts, all tokens",
            "",
            "| target | tokens | tracking | in batches of 8 | paper's estimator | in batches of 8 |",
            "| --- | --- | --- | --- | --- | --- |",
            *rate_rows(model, args.tokens),
        ]
    if args.only in (None, "batches"):
        lines += [
            "",
            "## 16 texts, one at a time and 8 at a time, CPU ms per token, one core",
            "",
            "| call rate | one at a time | 8 at a time | factor |",
            "| --- | --- | --- | --- |",
            *batch_rows(model, partner, args.tokens),
        ]
    if args.out is not None:
        Path(args.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
