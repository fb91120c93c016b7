"""A run whose tokenizer is a tokenizer.json of byte-level BPE, as most of Foundry's runs have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

import numpy as np
from foundry_runs import CALLS, MAX_SEQ_LEN
from streaming import MDSWriter, StreamingDataset
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from annotator import AnnotatorError, FactClass
from annotator.tokenizers import open_tokenizer

pytestmark = pytest.mark.model

ROWS = 1_024


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with a tokenizer of 600 tokens that was trained on the texts, and rows of their ids in ``tokens``."""
    folder = tmp_path_factory.mktemp("bpe")
    texts = StreamingDataset(local=str(corpus), split="train", batch_size=1)
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(
        [texts[i]["text"] for i in range(len(texts))],
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    PreTrainedTokenizerFast(
        tokenizer_object=library._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    try:
        open_tokenizer(folder / "tokenizer.json")
    except AnnotatorError as error:
        pytest.skip(f"the annotator reads no tokenizer.json: {error}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [[*tokenizer(texts[i]["text"])["input_ids"], tokenizer.eos_token_id] for i in range(len(texts))]
    whole = np.concatenate(ids).astype(np.int32)
    with MDSWriter(out=str(folder / "tokens" / "train"), columns={"tokens": "ndarray:int32"}) as writer:
        for start in range(0, len(whole) - MAX_SEQ_LEN, MAX_SEQ_LEN):
            writer.write({"tokens": whole[start : start + MAX_SEQ_LEN]})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{}, {"additional_special_tokens": ["<CALL>"]}])
def test_rows_and_texts(train: Callable[..., Any], bpe: Path, corpus: Path, kwargs: dict[str, Any]) -> None:
    """Rows of ids and raw texts are labelled with the run's tokenizer alone; <CALL> is the first spare row, or the
    token that the YAML adds."""
    changes = {
        "model": {"vocab_size": ROWS},
        "tokenizer": {"name": str(bpe), "kwargs": kwargs},
        "train_loader": {"dataset": {"local": str(bpe / "tokens")}},
    }
    rows = train(changes, CALLS)
    texts = {
        "name": "annotated_text",
        "dataset": {"local": str(corpus), "split": "train", "max_seq_len": MAX_SEQ_LEN, "eos_token_id": 0},
        "annotator": {"num_workers": 1},
    }
    run = changes | {"train_loader": None, "algorithms": CALLS["algorithms"]}
    for trained in (rows, train(run, {"train_loader": texts})):
        assert trained.state.model.tokenizer.convert_tokens_to_ids("<CALL>") == 600
        classes = np.concatenate([np.asarray(batch).ravel() for batch in trained.record.classes])
        assert 0.1 < np.mean(classes == int(FactClass.FACTUAL)) < 0.9
        assert len(trained.metrics["call_mask/call_fraction"]) == 4
