"""How long does a trainer on this node wait for its data, with 1 to 15 annotation workers?"""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from composer import Callback, Trainer
from learner import make_model, make_optimizer, random_loader
from report import PIECES, TOKENIZER, Check

from annotator import AnnotatorSettings
from lacy_stream import AnnotationPool, CallMask, annotated_dataloader
from lacy_stream.recipe import tokenizer_path

ENDLESS = "1000000ba"
"""A duration that is never reached: the meter ends the training."""
LEAST_S = 12
"""Seconds, beside those of a measurement, that one takes to set up."""


class Setting(NamedTuple):
    """A model, the rows and tokens of its batch, the numbers of workers, and seconds of each measurement."""

    size: str
    rows: int
    length: int
    workers: tuple[int, ...]
    seconds: float


SETTINGS = [Setting("334M", 16, 1024, (1, 2, 4, 8), 7), Setting("42M", 32, 1024, (4, 8, 15), 7)]
TOY_SETTINGS = [Setting("toy", 4, 32, (1, 2), 2)]


def run(check: Check) -> None:
    data = check.data()
    cores = len(os.sched_getaffinity(0))
    for setting in TOY_SETTINGS if check.toy else SETTINGS:
        size, rows, length, workers, seconds = setting
        full_speed = train(check, setting, random_loader(rows, length, PIECES), None).tokens_per_s
        check.report("full speed", size=size, tokens_per_s=round(full_speed))
        for count in workers:
            if count > cores and not check.toy:
                check.report("skipped", size=size, workers=count, cores=cores)
                continue
            if check.seconds_left() < seconds + LEAST_S:
                check.report("stopped", before=[size, count])
                return
            with AnnotationPool(AnnotatorSettings(tokenizer_path(TOKENIZER)), num_workers=count) as pool:
                loader = annotated_dataloader(
                    data, pool, split="train", shuffle=True, batch_size=rows, max_seq_len=length, lanes=rows
                )
                meter, stats = train(check, setting, loader, pool), pool.stats()
            check.report(
                "stall",
                size=size,
                workers=count,
                tokens_per_s=round(meter.tokens_per_s),
                share_of_full_speed=round(meter.tokens_per_s / full_speed, 3),
                waited=round(meter.waited, 4),
                waited_late=round(meter.waited_late, 4),
                annotated_per_s_per_core=round(stats.tokens_per_s_per_core),
                hit_rates={name: round(rate, 3) for name, rate in stats.hit_rates.items()},
            )


def train(check: Check, setting: Setting, loader: Any, pool: AnnotationPool | None) -> Meter:
    """Train for the seconds of the setting, and measure."""
    model, meter = make_model(setting.size, PIECES, setting.length, 128), Meter(check, setting, pool)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=ENDLESS,
        optimizers=make_optimizer(model),
        algorithms=[CallMask(PIECES, fused_loss=True)],
        callbacks=[meter],
        device_train_microbatch_size=setting.rows,
        progress_bar=False,
        seed=5,
        **check.trainer_settings(),
    )
    trainer.fit()
    trainer.close()
    return meter


class Meter(Callback):
    """Tokens/s, and the share of the time that the trainer waits for batches, also that of the later half: the rows
    that were annotated before the beginning are then used up. It ends the training.

    Args:
        pool: has annotated all rows ahead before the clock starts; None where nothing is annotated.
    """

    WARM_BATCHES = 3

    def __init__(self, check: Check, setting: Setting, pool: AnnotationPool | None) -> None:
        self._check, self._setting, self._pool = check, setting, pool
        self._batches, self._asked = 0, 0.0
        self._waits: list[tuple[float, float]] = []  # when each wait ended, and its seconds
        self._start = self._end = 0.0

    def before_dataloader(self, state: Any, logger: Any) -> None:
        self._asked = time.perf_counter()

    def after_dataloader(self, state: Any, logger: Any) -> None:
        now = time.perf_counter()
        self._waits.append((now, now - self._asked))

    def batch_end(self, state: Any, logger: Any) -> None:
        self._check.synchronize()
        self._batches += 1
        if self._batches == self.WARM_BATCHES:
            while self._pool is not None and (self._pool.stats().queued or self._pool.stats().in_flight):
                time.sleep(0.02)
            self._start, self._waits = time.perf_counter(), []
        elif self._batches > self.WARM_BATCHES and time.perf_counter() - self._start > self._setting.seconds:
            self._end = time.perf_counter()
            state.stop_training()

    @property
    def tokens_per_s(self) -> float:
        batches = self._batches - self.WARM_BATCHES
        return batches * self._setting.rows * self._setting.length / (self._end - self._start)

    @property
    def waited(self) -> float:
        return self._share_since(self._start)

    @property
    def waited_late(self) -> float:
        return self._share_since((self._start + self._end) / 2)

    def _share_since(self, start: float) -> float:
        waited = sum(seconds for end, seconds in self._waits if start < end <= self._end)
        return waited / (self._end - start)
