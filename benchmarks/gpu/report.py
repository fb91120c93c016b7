"""What every part of the check is given: its settings, its device, its data, and where it reports."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZER = "package:mistral_common/data/tokenizer.model.v1"
PIECES, EOS = 32_000, 2
"""Ids of the tokenizer, and its end-of-document token. <CALL> is the id after the last piece."""

NAMES = ("Ada Lovelace", "Charles Babbage", "Grace Hopper", "Alan Turing", "Emmy Noether")
CITIES = ("London", "Turin", "Vassar", "Princeton", "Erlangen", "Manchester")


def append_line(path: Path, **values: Any) -> None:
    """Print a finding, and append it to a file."""
    line = json.dumps(values)
    print(line, flush=True)
    with open(path, "a") as file:
        file.write(line + "\n")


@dataclass(frozen=True)
class Check:
    """The settings of a part.

    part: its name.
    toy: tiny models on whatever device there is.
    out, work: folders for the results, and for data and checkpoints.
    articles: JSONL; None where no part reads text, and at toy size.
    end: of its time, by ``time.monotonic``.
    peak_tflops: dense bf16 products of the card, by which MFU is computed.
    root: of the repository.
    """

    part: str
    toy: bool
    out: Path
    work: Path
    articles: Path | None
    end: float
    peak_tflops: float
    root: Path

    def report(self, name: str, **values: Any) -> None:
        append_line(self.out / "results.jsonl", part=self.part, name=name, **values)

    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    @functools.cached_property
    def device(self) -> str:
        """``cuda``, or ``cpu`` at toy size.

        Raises:
            SystemExit: there is no GPU, and the sizes are not those of toys.
        """
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if not self.toy:
            raise SystemExit("there is no GPU: use --toy")
        return "cpu"

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def autocast(self) -> Any:
        """bf16 on a GPU, as Composer's ``amp_bf16``; float32 on a CPU."""
        import torch

        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.on_gpu)

    def trainer_settings(self, precision: str | None = None) -> dict[str, Any]:
        """Arguments of Composer's Trainer that belong to the device. By default, the precision is that of recipes."""
        device, default = ("gpu", "amp_bf16") if self.on_gpu else ("cpu", "fp32")
        return {"device": device, "precision": precision or default}

    def data(self) -> Path:
        """A folder of MDS shards of the articles, prepared once."""
        from lacy_stream.prepare.convert import prepare

        articles, folder = self.articles, self.work / "data"
        if self.toy:
            articles = self.work / "toy.jsonl"
            if not articles.exists():
                articles.write_text("".join(json.dumps(toy_article(number)) + "\n" for number in range(200)))
        assert articles is not None, "check.py asks for them"
        start = time.monotonic()
        summary = prepare([articles], folder)
        if not summary.already_prepared:
            self.report("prepared", documents=summary.train.documents, seconds=round(time.monotonic() - start, 1))
        return folder


def toy_article(number: int) -> dict[str, str]:
    """Some sentences with facts in them."""
    sentences = [
        f"{NAMES[(number + place) % len(NAMES)]} wrote {7 * number + place} letters from "
        f"{CITIES[(3 * number + place) % len(CITIES)]} in {1800 + (number + 11 * place) % 150}."
        for place in range(3 + number % 5)
    ]
    return {"id": str(number), "title": f"Letters {number}", "text": " ".join(sentences)}
