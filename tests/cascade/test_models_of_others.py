"""Causal language models of others: what stands before a text, what ends it, how long it may be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from lacy_stream.cascade import Decoding, Delegation, TransformersPartner, generate, open_partner
from lacy_stream.evaluate.acceptability import propose
from lacy_stream.evaluate.harness import LacyLM
from lacy_stream.train.checkpoint import UNKNOWN_CONTEXT, CallingModel, load_model

pytestmark = pytest.mark.model

BOS, END, TURN = 256, 257, 258
PROMPT = "Ada wrote"
SIZES: dict[str, Any] = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2}
LLAMA: dict[str, Any] = SIZES | {"intermediate_size": 48, "num_attention_heads": 2, "max_position_embeddings": 128}


def folder_of(folder: Path, config: Any, bos: bool) -> Path:
    """A model with random weights, and a tokenizer of bytes that may put <bos> before each text."""
    torch.manual_seed(3)
    config.bos_token_id, config.eos_token_id, config.initializer_range = BOS, [END, TURN], 0.5
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    letters = bytes_to_unicode()
    pieces = {letters[byte]: byte for byte in range(256)} | {"<bos>": BOS, "<end>": END, "<turn>": TURN}
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("llama"), LlamaConfig(**LLAMA), bos=True)


def plain(folder: Path, tokens: int) -> str:
    """What transformers writes by itself."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    settings = {"do_sample": False, "repetition_penalty": 1.2, "pad_token_id": 0}
    out = model.generate(ids, max_new_tokens=tokens, **settings)[0, ids.shape[1] :]
    data = bytes(id for id in out.tolist() if id < 256)
    return data.decode(errors="replace")


def written(model: CallingModel, partner: TransformersPartner | None = None, tokens: int = 24) -> Any:
    delegation = Delegation("random", call_rate=0.5 if partner else 0.0)
    [text] = generate(model, [PROMPT], partner=partner, delegation=delegation, decoding=Decoding(tokens))
    return text


@pytest.mark.parametrize("bos", [True, False])
def test_texts_are_those_of_transformers(bos: bool, tmp_path: Path) -> None:
    """A beginning-of-text token stands before a text where the tokenizer puts one, and nothing else does, on both
    sides."""
    folder = folder_of(tmp_path / "m", LlamaConfig(**LLAMA), bos)
    model, partner = load_model(folder), open_partner(str(folder))
    assert isinstance(partner, TransformersPartner)
    assert model.start_ids == ((BOS,) if bos else ()) and partner.start == list(model.start_ids)
    expected = plain(folder, 24)
    assert written(model).text == expected
    assert written(model, partner).text == expected
    partner.speaks = lambda vocabulary: False  # type: ignore[method-assign]
    assert partner.session("x").start == [*model.start_ids, ord("x")]
    assert partner.session("<bos>x").start == [BOS, ord("x")]


@pytest.mark.parametrize("end", [END, TURN])
def test_each_end_of_text_ends_a_text(end: int, llama: Path) -> None:
    """A model with several eos_token_ids may end by any of them, written by either model."""
    model, partner = load_model(llama), open_partner(str(llama))
    assert isinstance(partner, TransformersPartner) and model.end_ids == {END, TURN}
    for network in (model.model, partner.model):
        network.forward = _always(network.forward, end)  # type: ignore[method-assign]
    for writer in (None, partner):
        text = written(model, writer)
        assert (text.finish, text.text) == ("end", "")


def _always(forward: Any, id: int) -> Any:
    def forced(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits[..., id] = 1e4
        return out

    return forced


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(**LLAMA), 128),
        (BloomConfig(vocab_size=259, hidden_size=32, n_layer=1, n_head=2), None),
        (BloomConfig(vocab_size=259, hidden_size=32, n_layer=1, n_head=2, seq_length=64), 64),
        (MambaConfig(**SIZES, state_size=4), None),
    ],
    ids=["max_position_embeddings", "none", "seq_length", "recurrent"],
)
def test_contexts_by_other_names(config: Any, positions: int | None, tmp_path: Path) -> None:
    """Models without max_position_embeddings are loaded, write and answer calls."""
    folder = folder_of(tmp_path / "m", config, bos=True)
    model, partner = load_model(folder), open_partner(str(folder))
    assert isinstance(partner, TransformersPartner)
    assert (model.max_seq_len, partner.context) == (positions or UNKNOWN_CONTEXT, positions)
    expected = plain(folder, 12)
    assert written(model, tokens=12).text == written(model, partner, 12).text == expected


def test_names_of_added_tokens_are_no_text(llama: Path, tmp_path: Path) -> None:
    """A token that is added like a word, such as Qwen's <think>, is not proposed by its name; spaces are."""
    shutil.copytree(llama, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("   ", special=False)])
    tokenizer.save_pretrained(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "m")
    partner = open_partner(str(tmp_path / "m"))
    assert isinstance(partner, TransformersPartner)
    for id, spelling in ((259, None), (260, b"   "), (TURN, None), (ord("x"), b"x")):
        partner.model.forward = _always(model.forward, id)  # type: ignore[method-assign]
        assert next(iter(partner.session().propose("Ada"))).spelling == spelling


def test_scores_of_lm_eval_begin_as_the_tokenizer_says(llama: Path) -> None:
    """lm-eval reads a model of others as its tokenizer does, with the beginning-of-text token."""
    model: Any = LacyLM(load_model(llama))  # type: ignore[call-arg]
    assert model.tok_encode("ab") == [BOS, ord("a"), ord("b")] and model.prefix_token_id == BOS


def test_proposals_begin_as_the_tokenizer_says(llama: Path) -> None:
    """The losses of a document's tokens are those of a row that begins with what the tokenizer puts before it."""
    from annotator import Document

    model = load_model(llama)
    for start in ((BOS,), (), (END, BOS)):
        object.__setattr__(model, "other_start", start)
        found = propose(model, model.annotator_settings.build(), Document("1", "Ada wrote."))
        row = torch.tensor([[*start, *b"Ada wrote."]])
        with torch.no_grad():
            losses = -torch.log_softmax(model.model(row).logits[0].float(), -1)
        expected = [losses[len(start) + i - 1, row[0, len(start) + i]].item() for i in range(1, 10)]
        assert [one.loss for one in found] == pytest.approx(expected, abs=1e-3)
        assert "".join(one.reference for one in found) == "da wrote."
