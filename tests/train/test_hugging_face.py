"""Any causal language model of transformers: new, or continued from weights, with a row for <CALL>."""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zstandard
from composer import Trainer
from composer.loggers import InMemoryLogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from annotator import Annotator, FactClass
from annotator.tokenizers import Tokenizer, open_tokenizer
from lacy_stream.__main__ import main as train
from lacy_stream.cli.main import main
from lacy_stream.errors import UsageError
from lacy_stream.objective.call_objective import CallObjective
from lacy_stream.objective.losses import HiddenStates
from lacy_stream.objective.methods import FusedLoss
from lacy_stream.recipe import HFCausalLM, RecipeError
from lacy_stream.train.call_mask import CallMask
from lacy_stream.train.checkpoint import load_model
from lacy_stream.train.hugging_face import causal_model, check_causal
from lacy_stream.train.model import build_model, for_composer
from lacy_stream.train.reference import load_reference

pytestmark = pytest.mark.model

PIECES, LENGTH, ROWS = 40, 24, 8
SIZES = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
}
SIZES["qwen3"] = SIZES["llama"] | {"head_dim": 8, "tie_word_embeddings": True}
SIZES["olmoe"] = SIZES["llama"] | {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
SIZES["gpt2"] = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
SIZES["gpt2"] |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
SIZES["gpt_neox"] = {key: SIZES["llama"][key] for key in SIZES["llama"] if key != "num_key_value_heads"}


def wanted(kind: str, pad: int = 1, attn_implementation: str | None = None, **overrides: object) -> HFCausalLM:
    """A new small model of a kind."""
    sizes = {"model_type": kind} | SIZES.get(kind, {}) | overrides
    return HFCausalLM(
        name="hf_causal_lm",
        pretrained=False,
        config_overrides=sizes,
        pad_vocab_to_multiple_of=pad,
        attn_implementation=attn_implementation,
    )


def new(kind: str, pad: int = 1, **overrides: object) -> PreTrainedModel:
    torch.manual_seed(1)
    return causal_model(wanted(kind, pad, **overrides), pieces=PIECES, max_seq_len=LENGTH, eos_id=2)


def batches(steps: int = 1) -> DataLoader:
    """The same rows again and again; a quarter of the tokens are facts."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(ROWS):
        ids = torch.randint(0, PIECES, (LENGTH,), generator=generator)
        classes = torch.where(torch.rand(LENGTH, generator=generator) < 0.25, FactClass.FACTUAL, FactClass.OTHER)
        made.append({"input_ids": ids, "labels": ids.clone(), "token_class": classes.to(torch.uint8)})
    return DataLoader(made * steps, batch_size=ROWS)


def fit(
    model: PreTrainedModel, loader: DataLoader, rate: float = 1e-2, fused_loss: FusedLoss = "auto", **trainer: object
):
    """Train over a loader once; all that was logged, by name."""
    memory = InMemoryLogger()
    Trainer(
        model=for_composer(model),
        train_dataloader=loader,
        max_duration="1ep",
        optimizers=torch.optim.AdamW(model.parameters(), lr=rate),
        algorithms=[CallMask(PIECES, fused_loss=fused_loss)],
        loggers=[memory],
        progress_bar=False,
        device="cpu",
        **trainer,
    ).fit()
    return {name: [value for _, value in values] for name, values in memory.data.items()}


@pytest.mark.parametrize(("kind", "rows"), [("llama", 41), ("qwen3", 64), ("olmoe", 41), ("gpt_neox", 41)])
def test_model_of_any_kind_learns_to_call(kind: str, rows: int) -> None:
    """A Llama with grouped heads, a Qwen3 with a padded vocabulary, an OLMoE and a GPT-NeoX from configurations: <CALL>
    is the first id after the tokenizer's, 15% of the targets are called, and the losses fall."""
    model = new(kind, pad=64 if kind == "qwen3" else 1)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == rows
    assert (model.config.call_token_id, model.config.eos_token_id) == (PIECES, 2)
    log = fit(model, batches(steps=12), device_train_microbatch_size=4)
    targets = ROWS * (LENGTH - 1)
    assert log["call_mask/call_fraction"] == pytest.approx([int(0.15 * targets) / targets] * 12)
    for name in ("loss/train/total", "call_mask/call_loss", "call_mask/rest_loss"):
        assert log[name][-1] < log[name][0] - 0.2, name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmoe", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("compile_config", [None, {"backend": "eager"}])
def test_fused_loss_trains_the_same_model(
    kind: str, compile_config: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the loss of hidden states, the weights after some steps in microbatches are those with the loss of logits,
    though no forward in training gives logits; evaluation, and the model afterwards, do."""
    seen, weights = [], []
    original = HiddenStates.detach
    monkeypatch.setattr(HiddenStates, "detach", lambda self: (seen.append(self.states.shape[-1]), original(self))[1])
    for fused_loss in (False, True):
        model = new(kind)
        loader = batches(steps=3)
        fit(model, loader, fused_loss=fused_loss, device_train_microbatch_size=4, compile_config=compile_config)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        assert model(input_ids=torch.arange(8)[None]).logits.shape[-1] == PIECES + 1
    assert seen and set(seen) == {16}, "the width of the hidden states"
    for name, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmoe", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("compile_config", [None, {"backend": "eager"}])
def test_training_attends_without_a_mask(
    kind: str, compile_config: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dense mask reaches PyTorch's attention in training, so that it can take its causal flash kernels."""
    if kind == "olmoe" and compile_config is not None:
        pytest.skip("torch.compile gives up on its routing: the number of tokens of an expert varies")
    model, seen, original = new(kind), [], F.scaled_dot_product_attention

    def watched(*arguments: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **settings: object):
        seen.append((attn_mask is None, is_causal))
        return original(*arguments, attn_mask=attn_mask, is_causal=is_causal, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    fit(model, batches(steps=2), device_train_microbatch_size=4, compile_config=compile_config)
    assert seen and set(seen) == {(True, True)}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_is_that_of_the_model(kind: str) -> None:
    """Logits with padding, with a cache, and of whole rows are those of transformers' own attention; a window keeps
    its mask."""
    model, theirs = new(kind), new(kind, attn_implementation="eager")
    theirs.load_state_dict(model.state_dict())
    ids = torch.randint(0, PIECES, (3, 12), generator=torch.Generator().manual_seed(3))
    padding = (torch.arange(12) < torch.tensor([12, 7, 9])[:, None]).long()
    with torch.no_grad():
        for settings in ({}, {"attention_mask": padding}, {"attention_mask": padding.flip(1)}):
            one, other = (each.eval()(input_ids=ids, **settings).logits for each in (model, theirs))
            seen = settings.get("attention_mask", torch.ones_like(ids)).bool()
            torch.testing.assert_close(one[seen], other[seen], rtol=1e-4, atol=1e-5)
        begun = model(input_ids=ids[:, :5], use_cache=True)
        rest = model(input_ids=ids[:, 5:], past_key_values=begun.past_key_values, use_cache=True)
        torch.testing.assert_close(rest.logits, model(input_ids=ids).logits[:, 5:], rtol=1e-4, atol=1e-5)
    windowed, theirs = (new("mistral", **SIZES["llama"], sliding_window=4, **attn) for attn in ({}, EAGER))
    theirs.load_state_dict(windowed.state_dict())
    with torch.no_grad():
        one, other = (each.eval()(input_ids=ids).logits for each in (windowed, theirs))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


EAGER = {"attn_implementation": "eager"}


def test_logits_that_are_not_of_the_output_layer_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 2 caps its logits: the loss takes the logits where that is left open, and refuses where it is asked."""
    sizes = SIZES["llama"] | {"head_dim": 4, "final_logit_softcapping": 0.05}
    with pytest.raises(
        UsageError, match="fused_loss: Gemma2ForCausalLM changes the logits of its output layer: set it"
    ):
        fit(new("gemma2", **sizes), batches(), fused_loss=True)
    log = fit(new("gemma2", **sizes), batches(), fused_loss="auto")
    assert log["loss/train/total"][0] == pytest.approx(math.log(PIECES + 1), rel=0.1)


def test_balance_of_experts_stays_in_the_loss() -> None:
    """The load-balancing loss of a mixture of experts is added to the loss of the call mask, with its coefficient."""
    totals, expected = [], 0.0
    for coefficient in (0.0, 2.0):
        model = new("olmoe", router_aux_loss_coef=coefficient)
        ids = next(iter(batches()))["input_ids"]
        with torch.no_grad():
            expected = coefficient * model(input_ids=ids).aux_loss.item()
        totals.append(fit(model, batches())["loss/train/total"][0])
    assert expected > 1 and totals[1] - totals[0] == pytest.approx(expected, rel=1e-4)


def test_mixture_without_its_balance_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """Where transformers would leave the load-balancing loss out, one warning names the key that brings it in."""
    new("olmoe", output_router_logits=False)
    assert "model.config_overrides.output_router_logits=true" in caplog.text
    caplog.clear()
    new("llama")
    assert not caplog.text


def trained(folder: Path, kind: str, rows: int, **overrides: object) -> Path:
    """A folder of a model whose logits differ much and whose hidden states have a common part, as a trained one's."""
    model = new(kind, vocab_size=max(rows, PIECES + 1), initializer_range=0.5, **overrides)
    model.resize_token_embeddings(rows)
    with torch.no_grad():
        model.get_input_embeddings().weight += 2.0 * torch.randn(16, generator=torch.Generator().manual_seed(5))
    del model.config.call_token_id
    model.save_pretrained(folder)
    return folder


def continued(folder: Path, **settings: object) -> PreTrainedModel:
    """A trained model as a run begins with it."""
    model = HFCausalLM(name="hf_causal_lm", pretrained_model_name_or_path=str(folder))
    sample_BT = torch.randint(0, PIECES, (32, LENGTH), generator=torch.Generator().manual_seed(2))
    return causal_model(model, pieces=PIECES, max_seq_len=LENGTH, eos_id=2, sample_BT=sample_BT, **settings)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gpt_neox", {}),
        ("gptj", {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),  # its output embeddings have a bias
        ("granite", SIZES["llama"] | {"logits_scaling": 4.0}),  # which divides the logits
    ],
)
@pytest.mark.parametrize("fraction", [0.15, 0.03])
def test_new_row_calls_as_often_as_it_should(
    kind: str, overrides: dict, fraction: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trained model without a spare row gets one for <CALL>, which is said. p(<CALL>) begins near the call fraction
    on text that was not in the sample, and the logits of all other ids stay."""
    folder = trained(tmp_path / "model", kind, PIECES, **overrides)
    model = continued(folder, call_fraction=fraction).eval()
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == PIECES + 1
    assert f"grew from {PIECES} to {PIECES + 1} rows for <CALL>" in caplog.text
    ids = torch.randint(0, PIECES, (8, LENGTH), generator=torch.Generator().manual_seed(3))
    before = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.allclose(logits[..., :PIECES], before(ids).logits, atol=1e-4)
    assert logits.softmax(-1)[..., PIECES].mean().item() == pytest.approx(fraction, rel=0.35)


def test_spare_row_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the model has more rows than the tokenizer has ids, <CALL> is the first spare one: nothing grows."""
    folder = trained(tmp_path / "model", "llama", rows=48)
    model = continued(folder)
    assert (model.config.vocab_size, model.config.call_token_id) == (48, PIECES)
    assert "grew" not in caplog.text and "starts with p(<CALL>)" in caplog.text


def test_row_that_was_trained_is_kept(tmp_path: Path) -> None:
    """The row of <CALL> in a model that lacy-stream has exported is not set again."""
    model = new("llama", initializer_range=0.5)
    model.save_pretrained(tmp_path / "exported")
    again = continued(tmp_path / "exported")
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_padding_of_a_vocabulary_that_grows(tmp_path: Path) -> None:
    """`pad_vocab_to_multiple_of` rounds up the rows of a model that is continued, too."""
    folder = trained(tmp_path / "model", "llama", PIECES)
    settings = {"pretrained_model_name_or_path": str(folder), "pad_vocab_to_multiple_of": 64}
    model = causal_model(HFCausalLM(name="hf_causal_lm", **settings), pieces=PIECES, max_seq_len=LENGTH, eos_id=2)
    assert model.config.vocab_size == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (wanted("bert"), "model: a bert model is an encoder"),
        (wanted("t5"), "model: a t5 model is no causal language model"),
        (wanted("lama"), "model.config_overrides.model_type: 'lama'"),
        (wanted("llama", hiden_size=8), "model.config_overrides.hiden_size: .*nearest known key is hidden_size"),
        (wanted("llama", vocab_size=39), "model.config_overrides.vocab_size: llama has 39 rows.*give 41 or more"),
        (wanted("llama", max_position_embeddings=8), "max_seq_len: 24, but llama has 8 positions"),
        (
            HFCausalLM(name="hf_causal_lm", pretrained_model_name_or_path="/nowhere"),
            "model.pretrained_model_name_or_path: '/nowhere'",
        ),
        (
            HFCausalLM(name="hf_causal_lm", pretrained_model_name_or_path="package:no_such_package/x"),
            "model.pretrained_model_name_or_path: .*no_such_package",
        ),
    ],
)
def test_model_that_does_not_fit_is_refused(settings: HFCausalLM, message: str) -> None:
    """An encoder, an encoder-decoder, an unknown type, an unknown value, too few rows or positions, and a model that
    is not there are refused by name."""
    with pytest.raises(RecipeError, match=message):
        causal_model(settings, pieces=PIECES, max_seq_len=LENGTH, eos_id=2)


def test_model_of_a_smaller_vocabulary_is_refused(tmp_path: Path) -> None:
    """A trained model with fewer rows than the tokenizer has ids was trained with another tokenizer."""
    folder = trained(tmp_path / "model", "llama", rows=30)
    with pytest.raises(RecipeError, match="30 rows in its vocabulary, and the tokenizer has ids up to 39"):
        continued(folder)


def test_model_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    """What transformers would fill with random weights stops the run."""
    folder = trained(tmp_path / "model", "llama", PIECES)
    settings = {"pretrained_model_name_or_path": str(folder), "config_overrides": {"num_hidden_layers": 3}}
    with pytest.raises(RecipeError, match="has no weights for model.layers.2.*it is no whole LlamaForCausalLM"):
        causal_model(HFCausalLM(name="hf_causal_lm", **settings), pieces=PIECES, max_seq_len=LENGTH, eos_id=2)


def test_model_that_sees_later_tokens_is_refused() -> None:
    """The check does not believe the name of a model: it changes a token and looks at the logits before it."""
    bert = BertLMHeadModel(
        BertConfig(vocab_size=41, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    with pytest.raises(RecipeError, match="the logits of BertLMHeadModel depend on later tokens"):
        check_causal(bert)


def test_model_without_logits_is_refused() -> None:
    """A model whose forward gives no logits where it sees no labels is refused by name."""
    model = new("llama")
    with pytest.raises(RecipeError, match="LlamaModel gives no logits for each token, so its loss cannot be replaced"):
        check_causal(model.model)


def test_recipe_section_is_strict() -> None:
    """A model to be continued must be named, and a new one needs its type."""
    for settings, message in [
        ({}, "pretrained_model_name_or_path: missing"),
        ({"pretrained": False}, "config_overrides: names no model_type"),
        ({"pretraned": False}, "pretraned"),
    ]:
        with pytest.raises(ValueError, match=message):
            HFCausalLM(name="hf_causal_lm", **settings)


def test_build_model_wraps_for_composer(caplog: pytest.LogCaptureFixture) -> None:
    """The section of a recipe becomes a ComposerModel that shifts its labels and has the validation losses."""
    caplog.set_level(logging.WARNING)
    model = build_model(wanted("llama"), max_seq_len=LENGTH, call_token_id=PIECES, eos_id=2)
    assert model.shift_labels and set(model.get_metrics(is_train=False)) == {"CallLoss", "NonCallLoss", "TotalLoss"}
    assert not caplog.text


def test_arithmetic_of_a_batch() -> None:
    """6 for each weight that is multiplied, and attention, for each token: an embedding that is tied is multiplied, one
    that is not is only looked up. A mixture of experts is not counted."""
    tokens, attention = 2 * 8, 12 * 2 * 16 * 8
    untied, tied = new("llama", tie_word_embeddings=False), new("llama", tie_word_embeddings=True)
    for model in (untied, tied):
        weights = sum(weight.numel() for weight in model.parameters()) - (model is untied) * (PIECES + 1) * 16
        batch = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}
        assert for_composer(model).flops_per_batch(batch) == tokens * (6 * weights + attention)
    assert not hasattr(for_composer(new("olmoe")), "flops_per_batch")
    gpt2 = new("gpt2")
    weights = sum(weight.numel() for weight in gpt2.parameters()) - LENGTH * 16
    assert for_composer(gpt2).flops_per_batch(batch) == tokens * (6 * weights + attention)


@pytest.mark.slow
def test_smollm2_learns_to_call(
    smollm: Path,
    tokenizer_folder: Callable[[str], Path],
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real SmolLM2-135M, continued for eight steps of raw text: on other text, the loss of <CALL> begins near that
    of a random caller instead of at 19 nats, and falls; that of the other tokens does not rise. Then it is exported,
    and writes with itself as its partner."""
    texts = list(articles(shared, 80))
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[16:]))
    assert main(["prepare", str(tmp_path / "articles.jsonl"), "--out", str(tmp_path / "corpus")]) == 0
    tokenizer = tokenizer_folder("smollm2")
    recipe = tmp_path / "smollm2.yaml"
    recipe.write_text(
        json.dumps(
            {
                "run_name": "smollm2",
                "max_seq_len": 64,
                "model": {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(smollm)},
                "tokenizer": {"name": str(tokenizer)},
                "annotator": {"num_workers": 1, "engine": "numba"},
                "train_loader": {"dataset": {"local": str(tmp_path / "corpus"), "split": "train", "shuffle": True}},
                "optimizer": {"lr": 1e-4},
                "scheduler": {"t_warmup": "2ba"},
                "max_duration": "8ba",
                "global_train_batch_size": 4,
                "precision": "fp32",
                "progress_bar": False,
                "save_folder": "run",
                "save_interval": "8ba",
            }
        )
    )
    monkeypatch.chdir(tmp_path)
    assert train([str(recipe)]) == 0
    assert "grew from 49152 to 49153 rows for <CALL>" in caplog.text

    checkpoint, exported = tmp_path / "run" / "latest-rank0.pt", tmp_path / "exported"
    held_out = held_out_rows(Annotator(tokenizer), texts[:16])
    model = HFCausalLM(name="hf_causal_lm", pretrained_model_name_or_path=str(smollm))
    sizes = {"max_seq_len": 64, "eos_id": 0}
    begun = causal_model(model, pieces=49_152, sample_BT=held_out["input_ids"].roll(1, 0), **sizes)
    before, after = (call_losses(model, held_out) for model in (begun, load_model(checkpoint).model))
    assert before["call_loss"] < 4
    assert after["call_loss"] < before["call_loss"] - 0.1
    assert after["rest_loss"] < before["rest_loss"]

    assert main(["export", str(checkpoint), str(exported)]) == 0
    capsys.readouterr()
    prompt = ["--prompt", "Ada Lovelace was born in", "--max-new-tokens", "12", "--call-rate", "0.5"]
    assert main(["generate", str(exported), "--partner", str(exported), *prompt]) == 0
    assert "1 texts, 12 tokens" in capsys.readouterr().out


def held_out_rows(annotator: Annotator, texts: list[str]) -> dict[str, Tensor]:
    """The beginnings of texts as a batch of rows of 64 tokens."""
    labelled = [text for text in annotator.annotate(texts) if len(text.ids) >= 64]
    ids = torch.from_numpy(np.stack([text.ids[:64] for text in labelled])).long()
    classes = torch.from_numpy(np.stack([text.classes[:64] for text in labelled]))
    return {"input_ids": ids, "labels": ids, "token_class": classes}


@torch.no_grad()
def call_losses(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, float]:
    """What the call mask measures on a batch."""
    objective = CallObjective(49_152)
    objective.begin_step(0, [batch], model)
    objective(model.eval()(input_ids=batch["input_ids"]), batch)
    return objective.metrics()


def articles(shared: Path, count: int) -> Iterator[str]:
    """The first real articles of the development data."""
    with open(shared / "wiki_articles.jsonl.zst", "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        for line in itertools.islice(lines, count):
            yield json.loads(line)["text"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json"])
def test_run_export_and_use_of_any_model(
    kind: str,
    tokenizer_folder: Callable[[str], Path],
    corpus: Path,
    tiny_partner: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recipe's run of a small Llama on raw text, with a tokenizer of either kind, is resumed, and its checkpoint is
    exported, shown, evaluated and used in a cascade as that of any GPT-2, from the checkpoint alone: the folder that
    its configuration came from is gone."""
    name, eos_token = "package:mistral_common/data/tokenizer.model.v1", "</s>"
    if kind == "tokenizer.json":  # whose config says that a text ends with <|endoftext|>
        name, eos_token = str(tokenizer_folder("smollm2")), "<|im_end|>"
    tokenizer = open_tokenizer(name, eos_token)
    sizes = {"model_type": "llama", "max_position_embeddings": 64, "vocab_size": tokenizer.vocab_size} | SIZES["llama"]
    config = AutoConfig.for_model(**sizes)
    config.save_pretrained(tmp_path / "config")
    recipe = tmp_path / "llama.yaml"
    named = {"tokenizer": name, "eos_token": eos_token}
    recipe.write_text(RECIPE.format(corpus=corpus, config=tmp_path / "config", **named))
    monkeypatch.chdir(tmp_path)
    for duration in ("2ba", "4ba"):
        assert train([str(recipe), f"max_duration={duration}"]) == 0
    saved = torch.load(tmp_path / "run" / "latest-rank0.pt", weights_only=False)["state"]["model"]
    assert saved["model.lm_head.weight"].shape[0] % 64 == 0
    shutil.rmtree(tmp_path / "config")
    checkpoint, exported = tmp_path / "run" / "latest-rank0.pt", tmp_path / "exported"
    assert main(["export", str(checkpoint), str(exported)]) == 0
    theirs, ours = AutoModelForCausalLM.from_pretrained(exported).eval(), load_model(checkpoint)
    assert theirs.config.vocab_size == (32_001 if kind == "sentencepiece" else 49_153), "without the rows that pad it"
    assert (ours.call_token_id, ours.eos_id, ours.max_seq_len) == (tokenizer.vocab_size, tokenizer.eos_id, 32)
    assert_same_ids(AutoTokenizer.from_pretrained(exported), tokenizer, eos_token)
    ids = torch.arange(30)[None] * 900
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours.model(ids).logits, atol=1e-5)
    again = load_model(exported)
    assert (again.call_token_id, again.eos_id, again.max_seq_len) == (ours.call_token_id, ours.eos_id, 32)
    reference = load_reference(exported, ours.tokenizer, 32)
    assert reference.config.vocab_size == tokenizer.vocab_size + 1
    assert main(["show-calls", str(checkpoint)]) == 0
    assert "delegated to a larger model" in capsys.readouterr().out
    prompt = ["--prompt", "Ada Lovelace wrote", "--max-new-tokens", "8"]
    assert main(["generate", str(exported), "--partner", str(tiny_partner), *prompt]) == 0
    assert main(["evaluate", "losses", str(checkpoint), "--out", str(tmp_path / "scores"), "--limit", "2"]) == 0


def assert_same_ids(theirs: PreTrainedTokenizerFast, ours: Tokenizer, eos_token: str) -> None:
    """The tokenizer of an exported folder gives the run's ids, spells special names, and has <CALL> after them."""
    assert theirs.convert_tokens_to_ids("<CALL>") == ours.vocab_size == len(theirs) - 1
    assert theirs.eos_token == eos_token
    for text in ("Ada Lovelace wrote 12 letters.\n", "  Größe ꙮ", "<|endoftext|> </s> <|im_end|> <CALL>", "don't"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text).ids.tolist(), text
        assert theirs.decode(ids) == text


RECIPE = """
run_name: llama
max_seq_len: 32
model:
  name: hf_causal_lm
  pretrained_model_name_or_path: {config}
  pretrained: false
  config_overrides: {{num_hidden_layers: 1}}
  pad_vocab_to_multiple_of: 64
tokenizer: {{name: "{tokenizer}", eos_token: "{eos_token}"}}
annotator: {{num_workers: 1, engine: numba}}
train_loader: {{dataset: {{local: {corpus}, split: train, shuffle: true}}, lanes: 4}}
eval_loader: {{dataset: {{local: {corpus}, split: val}}, lanes: 4}}
optimizer: {{lr: 1.0e-2}}
max_duration: 2ba
global_train_batch_size: 4
device_eval_batch_size: 4
eval_interval: 2ba
eval_subset_num_batches: 2
precision: fp32
progress_bar: false
save_folder: run
save_interval: 1ba
autoresume: true
"""
