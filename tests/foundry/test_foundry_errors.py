"""What a Foundry YAML says wrongly, and the sentence that answers it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

import numpy as np
import torch
from composer import Event
from foundry_runs import MAX_SEQ_LEN
from llmfoundry import registry
from llmfoundry.callbacks import HuggingFaceCheckpointer
from llmfoundry.utils.builders import build_algorithm, build_composer_model, build_metric, build_tokenizer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from annotator import AnnotatorSettings, FactClass
from lacy_stream.errors import UsageError
from lacy_stream.foundry.config import check_config
from lacy_stream.foundry.labelled import Borders, LabelledLoader
from lacy_stream.foundry.loaders import annotated_text
from lacy_stream.foundry.pools import file_of_ids, file_of_texts
from lacy_stream.foundry.settings import Annotation
from lacy_stream.stream.pool import AnnotationPool

pytestmark = pytest.mark.model


@pytest.fixture
def tokenizer(hf_tokenizer: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer, as Foundry builds it."""
    return build_tokenizer(str(hf_tokenizer), {"model_max_length": MAX_SEQ_LEN})


def started(tokenizer: PreTrainedTokenizerBase, run: dict[str, Any], rows: int, **call_mask: Any) -> Any:
    """The model of a run after its call mask was told of it."""
    keys = {key: value for key, value in run["model"].items() if key != "name"} | {"vocab_size": rows}
    model = build_composer_model("mpt_causal_lm", keys, tokenizer)
    tell(model, **call_mask)
    return model


def tell(model: Any, callbacks: Any = (), **call_mask: Any) -> None:
    state: Any = SimpleNamespace(model=model, callbacks=callbacks, rank_zero_seed=17)
    build_algorithm("call_mask", call_mask).apply(Event.INIT, state, SimpleNamespace())  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_loader": {"name": "text"}}, "train_loader.name is 'text'.*set train_loader.name: text_with_calls"),
        ({"train_loader": {"name": "finetuning"}}, "train_loader.name is 'finetuning'.*separate texts"),
        (
            {"train_loader": {"name": "annotated_text"}, "max_duration": "1ep"},
            "max_duration: '1ep'.*endless stream.*use batches",
        ),
    ],
)
def test_yaml_as_a_whole(change: dict[str, Any], message: str) -> None:
    """A call mask without labels and a duration in epochs of an endless stream are refused before anything is built,
    by the transform that Foundry finds; a YAML that knows nothing of us passes unchanged."""
    check = registry.config_transforms.get("lacy_stream")
    with pytest.raises(UsageError, match=message):
        check({"algorithms": {"call_mask": {}}} | change)
    config = {"train_loader": {"name": "text"}, "max_duration": "1ep", "algorithms": None}
    assert check(dict(config)) == config


def test_evaluation_is_one_pass() -> None:
    """An evaluation loader of annotated_text, alone or in a list, becomes a pass that ends."""
    for loaders in ({"name": "annotated_text"}, [{"name": "text"}, {"name": "annotated_text"}]):
        config = check_config({"eval_loader": loaders})["eval_loader"]
        assert (config if isinstance(config, dict) else config[1])["repeat"] is False


@pytest.mark.parametrize(
    ("call_mask", "message"),
    [
        ({"call_token": "<CALL>", "call_fractoin": 0.1}, "call_mask.call_fractoin: unknown key.*call_fraction"),
        ({"call_token": "<CALL>", "method": "lazy"}, "algorithms.call_mask.method"),
        ({}, "give either call_token"),
        ({"call_token": "<CALL>", "call_token_id": 3}, "give either call_token"),
    ],
)
def test_keys_of_call_mask(call_mask: dict[str, Any], message: str) -> None:
    """An unknown key, a wrong value and an unclear <CALL> are refused when the algorithm is built."""
    with pytest.raises(UsageError, match=message):
        build_algorithm("call_mask", call_mask)


@pytest.mark.parametrize(
    ("call_mask", "message"),
    [
        ({"call_token": "<CALL>"}, "needs row 32000.*has 32000 rows.*allow_embedding_resizing.*model.vocab_size"),
        ({"call_token_id": 32_000}, "call_token_id: 32000 needs row 32000"),
        ({"call_token_id": 31_999}, "call_token_id: 31999 is .*, a piece of the tokenizer"),
        ({"call_token": "</s>"}, "call_token: '</s>' is '</s>', the eos_token of the tokenizer"),
    ],
)
def test_rows_of_call(
    tokenizer: PreTrainedTokenizerBase, run: dict[str, Any], call_mask: dict[str, Any], message: str
) -> None:
    """A <CALL> that the model has no row for, and one that occurs in texts, are refused when the model is there."""
    with pytest.raises(UsageError, match=message):
        started(tokenizer, run, 32_000, **call_mask)


def test_added_token_is_call(hf_tokenizer: Path, run: dict[str, Any]) -> None:
    """A token that tokenizer.kwargs adds is <CALL>, by its name and by its id; MPT grows for it by itself."""
    kwargs = {"model_max_length": MAX_SEQ_LEN, "additional_special_tokens": ["<CALL>"]}
    tokenizer = build_tokenizer(str(hf_tokenizer), kwargs)
    for call_mask in ({"call_token": "<CALL>"}, {"call_token_id": 32_000}):
        assert started(tokenizer, run, 32_000, **call_mask).config.vocab_size == 32_001


def test_exported_tokenizer_without_call(
    tokenizer: PreTrainedTokenizerBase, run: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With call_token_id the folders of hf_checkpointer have a row more than tokens, which the log says; with
    call_token they have the token."""
    exporter = HuggingFaceCheckpointer(str(tmp_path), "1ba")
    model = started(tokenizer, run, 32_064, call_token_id=32_000)
    tell(model, [exporter], call_token_id=32_000)
    assert "a row for <CALL>, 32000, and a tokenizer without a token for it" in caplog.text
    caplog.clear()
    tell(model, [exporter], call_token="<CALL>")
    assert not caplog.text and model.tokenizer.convert_tokens_to_ids("<CALL>") == 32_000


def test_loss_that_is_a_mapping(tokenizer: PreTrainedTokenizerBase, run: dict[str, Any]) -> None:
    """A mixture of experts by MegaBlocks is refused by name."""
    model = started(tokenizer, run, 32_064, call_token="<CALL>")
    model.config.ffn_config = {"ffn_type": "mb_dmoe"}
    with pytest.raises(UsageError, match="'mb_dmoe' adds a load-balancing loss"):
        tell(model, call_token="<CALL>")


def test_metric_without_call_mask() -> None:
    """One of our metrics in a run without a call mask says what it lacks."""
    with pytest.raises(UsageError, match="CallLoss takes the id of <CALL> from algorithms.call_mask"):
        build_metric("call_loss", {}).update(torch.zeros(1, 2, 8), torch.zeros(1, 2, dtype=torch.long))


def test_tokenizers_that_differ(
    tokenizer: PreTrainedTokenizerBase, tokenizer_path: Path, tmp_path: Path, corpus: Path
) -> None:
    """The conversion of a SentencePiece file has its ids, and gives texts other ones: its rows are read, and raw text
    is refused with the first difference unless the file is named. A file with other tokens is refused."""
    import sentencepiece

    assert file_of_ids(tokenizer, Annotation()).name == "tokenizer.model"
    named, difference = file_of_texts(tokenizer, Annotation(tokenizer=str(tokenizer_path)))
    assert named == tokenizer_path and difference is not None and "'Hello' has the ids [22557]" in difference
    other = tmp_path / "other"
    texts = [f"Ada wrote letter number {number}." for number in range(200)]
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(texts), model_prefix=str(other), vocab_size=60, model_type="bpe", minloglevel=9
    )
    with pytest.raises(UsageError, match="id 3 is .* there and .* in the run's tokenizer.*annotator.tokenizer"):
        file_of_ids(tokenizer, Annotation(tokenizer=f"{other}.model"))
    with pytest.raises(UsageError, match="num_workers: 8, but annotated_text .*annotator.num_workers"):
        dataset = {"local": str(corpus), "split": "train", "max_seq_len": MAX_SEQ_LEN}
        annotated_text(tokenizer, 4, dataset=dataset, num_workers=8)
    with pytest.raises(UsageError, match="train_loader.dataset.num_canonical_nodes: unknown key"):
        annotated_text(tokenizer, 4, dataset=dataset | {"num_canonical_nodes": 1})


class Rows(torch.utils.data.Dataset):
    """Two rows of 6 ids, the second one padded on the left."""

    max_seq_len = 6

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = torch.tensor(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": (self.ids[index] != 0).long()}


def test_padding_and_ids_of_another_tokenizer(tokenizer_path: Path) -> None:
    """Padding is OTHER, wherever it stands, and does not reach the annotator; an id that the tokenizer lacks ends the
    run with the way out."""
    ids = [[12963, 412, 6119, 412, 2, 22557], [0, 0, 12963, 412, 6119, 412]]
    with AnnotationPool(AnnotatorSettings(tokenizer_path), 1) as pool:
        (batch,) = LabelledLoader(DataLoader(Rows(ids), batch_size=2), pool, 4, Borders(eos_id=2))
        assert batch["token_class"].shape == (2, 6) and batch["token_class"].dtype == torch.uint8
        assert (batch["token_class"][1, :2] == int(FactClass.OTHER)).all()
        assert (batch["token_class"][1, 2:] == batch["token_class"][0, :4]).all()
        with pytest.raises(UsageError, match="cannot read the token ids"):
            next(iter(LabelledLoader(DataLoader(Rows([[32_500] * 6]), batch_size=1), pool, 4, Borders())))


def test_borders() -> None:
    """A row is cut after end ids and before begin ids; no document is empty, and together they are the row."""
    row = np.array([1, 5, 6, 2, 2, 1, 7])
    for borders, cut in [
        (Borders(), [[1, 5, 6, 2, 2, 1, 7]]),
        (Borders(eos_id=2), [[1, 5, 6, 2], [2], [1, 7]]),
        (Borders(bos_id=1), [[1, 5, 6, 2, 2], [1, 7]]),
    ]:
        assert [part.tolist() for part in borders.cut(row)] == cut
