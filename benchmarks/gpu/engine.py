"""Compiles the loops of the annotation engine, which later processes read from the disk."""

from __future__ import annotations

import time

from report import TOKENIZER, Check

TEXT = "Marie Curie was born in Warsaw in 1867. She won two Nobel Prizes."


def run(check: Check) -> None:
    start = time.monotonic()
    from annotator import AnnotatorSettings
    from lacy_stream.recipe import tokenizer_path

    annotator = AnnotatorSettings(tokenizer_path(TOKENIZER)).build()
    tokens = sum(len(labelled.ids) for labelled in annotator.annotate([TEXT] * 3))
    check.report("compiled", tokens=tokens, seconds=round(time.monotonic() - start, 1))
