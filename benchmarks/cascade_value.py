"""What are a model's calls worth? Held-out text, each call answered by a partner, at call rates from 0 to 60%.

    python benchmarks/cascade_value.py MODEL --baseline BASELINE --partner PARTNER --texts val.jsonl --out OUT

The models read the true text (teacher-forced). At every token, MODEL proposes its best token, and so does the partner,
through the same session and the same bridge of tokenizers that ``lacy-stream generate`` uses. A way of delegating ranks
the tokens; at a call rate r the first r of them are answered by the partner. The pair is right where the one who
answers proposes the true token, and its loss is that of the one who answers. The ways:

- ``call``: by the score of <CALL>, ranked by probability and by logit;
- ``random``: the mean of the two, weighed by the rate;
- ``i-LaCy``: a proposed token that would be a fact comes first, the uncertain ones above all (log-probability, and
  entropy of the 20 best), of the model itself with <CALL> left out; with --baseline, of that model, which then also
  answers what is not delegated;
- ``wanted`` (oracle): the facts with the highest true loss first, which is what training asks for;
- ``loss`` (oracle): the highest true loss of the model first.

The partner's loss at a token is -log of the probability of those of its own tokens that begin with the true one. Where
it would spell the true token in several of its own, that probability is left out: its loss is an upper bound.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATES = np.linspace(0.0, 0.6, 25)
SHOWN = (0.05, 0.15, 0.30, 0.60)
WORST = 20.0
"""Nats: the most that a token costs the partner. The bound is infinite where no token of its own begins with it."""


@dataclass(frozen=True)
class Answers:
    """What a small model does at each token, [n]: whether its proposal is right, its loss in nats, and the scores by
    which a way of delegating ranks the tokens."""

    correct: np.ndarray
    loss: np.ndarray
    scores: dict[str, np.ndarray]


def texts(path: Path, count: int) -> list[str]:
    """The first texts of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in _first(file, count)]


def _first(lines: Any, count: int) -> Iterator[str]:
    for _, line in zip(range(count), lines):
        yield line


def read(model: Any, rows: Sequence[list[int]], calls: bool) -> Answers:
    """What a model makes of the tokens of the rows, each read after the end-of-text token."""
    import torch

    from lacy_stream.objective.losses import token_losses, true_losses
    from lacy_stream.objective.scores import call_scores

    columns: dict[str, list[np.ndarray]] = {}
    call = call_entry(model)
    for row in rows:
        targets, logits = torch.tensor(row), logits_of(model, row)
        values = {"correct": logits[:, :call].argmax(-1) == targets, "loss": true_losses(logits, targets, call)}
        if calls:
            losses = token_losses(logits, targets, call)
            for rank in ("probability", "logit"):
                values[rank] = call_scores(logits, call, rank, losses).score  # type: ignore[arg-type]
        for name, value in values.items():
            columns.setdefault(name, []).append(value.numpy())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Answers(joined.pop("correct"), joined.pop("loss"), joined)


def logits_of(model: Any, row: list[int]) -> Any:
    """The logits at each token of a row, float32 [T, V], read after the end-of-text token."""
    import torch

    with torch.no_grad():
        return model.model(input_ids=torch.tensor([[model.eos_id, *row[:-1]]])).logits[0].float()


def call_entry(model: Any) -> int:
    """The id of <CALL>; of a model without, the number of its pieces, where <CALL> would be."""
    from lacy_stream.cascade.vocabulary import open_vocabulary

    return len(open_vocabulary(model).spellings) if model.call_token_id is None else model.call_token_id


def ilacy(model: Any, rows: Sequence[list[int]]) -> dict[str, np.ndarray]:
    """The scores of i-LaCy at each token: the uncertainty of the model, and whether its proposal would be a fact."""

    from lacy_stream.cascade.delegation import NOT_A_FACT, default_annotator, open_score
    from lacy_stream.cascade.settings import Delegation
    from lacy_stream.cascade.vocabulary import open_vocabulary
    from lacy_stream.objective.scores import uncertainty

    vocabulary, annotator = open_vocabulary(model), default_annotator(model)
    by_logprob = open_score(Delegation("ilacy-logprob"), model, vocabulary, annotator)
    found: dict[str, list[float]] = {"i-LaCy (log-probability)": [], "i-LaCy (entropy)": []}
    call = call_entry(model)
    start = time.monotonic()
    for number, row in enumerate(rows):
        for logits_V, prefix in zip(logits_of(model, row), prefixes(vocabulary, row), strict=True):
            score = by_logprob(logits_V, int(logits_V[:call].argmax()), prefix)
            found["i-LaCy (log-probability)"].append(score)
            fact = score > NOT_A_FACT / 2  # uncertainty is never below 0, and the penalty far below
            entropy = uncertainty(logits_V[:call], entropy=True)
            found["i-LaCy (entropy)"].append(entropy if fact else entropy + NOT_A_FACT)
        tell("i-LaCy", number + 1, len(rows), start)
    return {name: np.array(values) for name, values in found.items()}


def prefixes(vocabulary: Any, row: Sequence[int]) -> list[str]:
    """The text before each token of a row."""
    spelled, found = b"", []
    for id in row:
        text = spelled.decode(errors="replace")
        found.append(text[1:] if vocabulary.adds_space and text.startswith(" ") else text)
        spelled += vocabulary.spellings[id] or b""
    return found


def ask(partner: Any, model: Any, rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the partner's proposal is right at each token, bool [n], and its loss there (an upper bound), [n]."""
    import torch

    from lacy_stream.cascade.bridge import Candidate, first_expressible
    from lacy_stream.cascade.local import CANDIDATES
    from lacy_stream.cascade.partner import PromptError
    from lacy_stream.cascade.vocabulary import open_vocabulary

    vocabulary = open_vocabulary(model)
    spellings = partner.vocabulary.spellings
    by_spelling = sorted((s, id) for id, s in enumerate(spellings) if s)
    sorted_spellings = [spelling for spelling, _ in by_spelling]
    ids = torch.tensor([id for _, id in by_spelling])
    correct, loss, start = [], [], time.monotonic()
    for number, row in enumerate(rows):
        session = partner.session()
        for id, text in zip(row, prefixes(vocabulary, row), strict=True):
            spelling = vocabulary.spellings[id] or b""
            try:
                logits_V, took_back_space = session.next_logits(text)
            except PromptError:  # nothing stands yet: the partner has no token to begin with
                correct.append(False)
                loss.append(WORST)
                continue
            best = [
                Candidate(spellings[i], i) for i in logits_V.topk(CANDIDATES).indices.tolist() if i < len(spellings)
            ]
            found = first_expressible(best, text, vocabulary)
            correct.append(found is not None and found[1][0] == id)
            # A partner whose tokens hold the space before a word reads the text without it.
            wanted = b" " + spelling if took_back_space else spelling
            low, high = (bisect.bisect_left(sorted_spellings, end) for end in (wanted, wanted + b"\xff" * 8))
            whole = torch.logsumexp(logits_V, 0)
            part = torch.logsumexp(logits_V[ids[low:high]], 0) if high > low else torch.tensor(-math.inf)
            loss.append(min(float(whole - part), WORST))
        session.close()
        tell("partner", number + 1, len(rows), start)
    return np.array(correct), np.array(loss)


def tell(what: str, done: int, total: int, start: float) -> None:
    if done % 10 == 0 or done == total:
        left = (time.monotonic() - start) / done * (total - done)
        print(f"{what}: {done} of {total} texts, {left:.0f} s left", file=sys.stderr, flush=True)


# --- curves -----------------------------------------------------------------------------------------------------------


def curve(score: np.ndarray, model: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """The pair's mean at each of RATES, if the tokens with the highest scores are the partner's."""
    gain = np.concatenate([[0.0], np.cumsum((partner - model)[np.argsort(-score, kind="stable")])])
    return (model.sum() + gain[np.round(RATES * len(score)).astype(int)]) / len(score)


def curves(model: Answers, other: Answers, partner: tuple, factual: np.ndarray) -> dict[str, dict[str, list]]:
    """Way -> accuracy and loss of the pair at each of RATES."""
    found = {}
    right, cost = (np.asarray(values, float) for values in partner)
    hardest = model.loss + 1000.0 * factual
    ways = {"call, by probability": model.scores["probability"], "call, by logit": model.scores["logit"]}
    ways |= {"oracle: wanted": hardest, "oracle: loss": model.loss}
    for way, score in ways.items():
        found[way] = (curve(score, model.correct.astype(float), right), curve(score, model.loss, cost))
    found["random"] = tuple(
        RATES * theirs.mean() + (1 - RATES) * ours.mean()
        for ours, theirs in ((model.correct.astype(float), right), (model.loss, cost))
    )
    for way, score in other.scores.items():
        found[way] = (curve(score, other.correct.astype(float), right), curve(score, other.loss, cost))
    return {way: {"accuracy": both[0].tolist(), "loss": both[1].tolist()} for way, both in found.items()}


def share_of_gain(found: dict[str, dict[str, list]], way: str, measure: str, rate: float) -> float:
    """Of what the loss oracle gains over random calls at a rate, the share that a way gains."""
    at = int(np.argmin(abs(RATES - rate)))
    value, chance, best = (found[name][measure][at] for name in (way, "random", "oracle: loss"))
    return (value - chance) / (best - chance)


def markdown(found: dict[str, dict[str, list]]) -> str:
    lines = [
        "| way | " + " | ".join(f"accuracy at {rate:.0%}" for rate in SHOWN) + " | "
        + " | ".join(f"loss at {rate:.0%}" for rate in SHOWN) + " | of the oracle's gain in loss at 15% |",
        "| --- " * (2 + 2 * len(SHOWN)) + "|",
    ]  # fmt: skip
    for way in found:
        at = [int(np.argmin(abs(RATES - rate))) for rate in SHOWN]
        cells = [f"{100 * found[way]['accuracy'][i]:.1f}%" for i in at] + [f"{found[way]['loss'][i]:.3f}" for i in at]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {share_of_gain(found, way, 'loss', 0.15):.0%} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, dict[str, list]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, measure, label in zip(figure.subplots(1, 2), ("accuracy", "loss"), ("right tokens", "nats a token")):
        for way, both in found.items():
            style = "--" if way.startswith("oracle") else ":" if way == "random" else "-"
            axes.plot(100 * RATES, both[measure], style, label=way)
        axes.set(title=f"The pair's {measure}", xlabel="call rate (%)", ylabel=label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint or exported folder of a model with <CALL>")
    parser.add_argument("--baseline", help="for i-LaCy, with the same tokenizer (default: MODEL itself)")
    parser.add_argument("--partner", required=True, help="as `lacy-stream generate` takes it")
    parser.add_argument("--texts", type=Path, required=True, help="held-out JSONL with text")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True, help="OUT.json, OUT.md and OUT.png are written")
    args = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    from annotator import Document, FactClass
    from lacy_stream.cascade import open_partner
    from lacy_stream.cascade.delegation import default_annotator
    from lacy_stream.train.checkpoint import load_model

    model = load_model(args.model)
    other = load_model(args.baseline) if args.baseline else model
    partner: Any = open_partner(args.partner, repetition_penalty=1.0)
    chosen = texts(args.texts, args.documents)
    annotator = default_annotator(model)
    labelled = [annotator.label([Document(str(n), text)])[0] for n, text in enumerate(chosen)]
    rows = [one.ids[: model.max_seq_len].tolist() for one in labelled]
    factual = np.concatenate([one.classes[: model.max_seq_len] == FactClass.FACTUAL for one in labelled])
    ours = read(model, rows, calls=True)
    theirs = read(other, rows, calls=False)
    theirs = Answers(theirs.correct, theirs.loss, ilacy(other, rows))
    found = curves(ours, theirs, ask(partner, model, rows), factual)
    content = {"tokens": len(factual), "facts": float(factual.mean()), "rates": RATES.tolist(), "curves": found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(f"{len(factual):,} tokens of {len(rows)} texts.\n\n" + markdown(found))
    draw(found, args.out.with_suffix(".png"))
    print(markdown(found))


if __name__ == "__main__":
    main()
