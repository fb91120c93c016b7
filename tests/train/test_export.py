"""Exported folders: what others load is the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from real_tokenizers import REAL, SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from annotator.tokenizers import open_tokenizer
from lacy_stream.cli.main import main
from lacy_stream.evaluate.harness import LacyLM
from lacy_stream.recipe import check_recipe, dump_recipe
from lacy_stream.train.checkpoint import CallingModel, CheckpointError, load_checkpoint, load_model
from lacy_stream.train.export import transformers_tokenizer, write_folder
from lacy_stream.train.hugging_face import note_special_ids
from lacy_stream.train.model import build_model

pytestmark = pytest.mark.model

RECIPE = {
    "run_name": "small",
    "max_seq_len": 64,
    "model": {"name": "gpt2", "d_model": 16, "n_heads": 2, "n_layers": 1},
    "tokenizer": {"name": "package:mistral_common/data/tokenizer.model.v1"},
    "annotator": {"model": "en_core_web_sm"},
    "train_loader": {"dataset": {"local": "data", "split": "train"}},
    "optimizer": {"lr": 1e-3},
    "max_duration": "1ba",
    "global_train_batch_size": 64,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file as a run's save_folder holds it, of a model with random weights."""
    torch.manual_seed(0)
    recipe = check_recipe(RECIPE)
    model = build_model(recipe.model, max_seq_len=64, call_token_id=32_000, eos_id=2)
    record = {"recipe": dump_recipe(recipe), "annotation": "none"}
    path = tmp_path_factory.mktemp("run") / "latest-rank0.pt"
    torch.save({"state": {"model": model.state_dict(), "callbacks": {"RunRecord": record}}}, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    out = checkpoint.parent / "exported"
    assert main(["export", str(checkpoint), str(out)]) == 0
    return out


def test_logits_are_those_of_the_checkpoint(checkpoint: Path, exported: Path) -> None:
    """AutoModelForCausalLM gives the logits of the checkpoint, from safetensors, without our code."""
    ids = torch.arange(40)[None] * 700
    theirs = AutoModelForCausalLM.from_pretrained(exported).eval()
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, load_model(checkpoint).model(ids).logits)
    assert (exported / "model.safetensors").is_file()
    assert not {"auto_map", "custom_code"} & set(json.loads((exported / "config.json").read_text()))


def test_the_tokenizer_is_sentencepiece(exported: Path, tokenizer_path: Path, shared: Path) -> None:
    """AutoTokenizer gives SentencePiece's ids on all 830 documents, and has <CALL> as id 32000."""
    theirs, ours = AutoTokenizer.from_pretrained(exported), open_tokenizer(tokenizer_path)
    assert theirs.convert_tokens_to_ids("<CALL>") == 32_000 and len(theirs) == 32_001
    texts = [json.loads(line)["text"] for line in (shared / "lmlm_spans.jsonl").open(encoding="utf-8")]
    assert len(texts) == 830
    assert [text for text in texts if theirs(text)["input_ids"] != ours.encode(text).ids.tolist()] == []


@pytest.mark.parametrize("kind", [*REAL, *SMALL])
def test_any_tokenizer_json_keeps_its_ids(kind: str, tmp_path: Path, tokenizer_folder: Callable[[str], Path]) -> None:
    """The exported folder carries a tokenizer.json of each kind with <CALL> after its pieces: AutoTokenizer gives the
    ids of the run, whatever the text, and opens it as ours does."""
    ours = open_tokenizer(tokenizer_folder(kind))
    sizes = {"vocab_size": ours.vocab_size + 1, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))
    note_special_ids(model, call_token_id=ours.vocab_size, eos_id=ours.eos_id)
    calling = CallingModel(model, ours.files[0], ours.vocab_size, ours.eos_id, 64, kind, None)
    (tmp_path / "out").mkdir()
    write_folder(calling, tmp_path / "out")
    theirs, again = AutoTokenizer.from_pretrained(tmp_path / "out"), open_tokenizer(tmp_path / "out")
    assert theirs.convert_tokens_to_ids("<CALL>") == ours.vocab_size
    assert (again.vocab_size, again.eos_id) == (ours.vocab_size, ours.eos_id)
    # A run puts the end-of-document token before a text, whatever the tokenizer begins with.
    assert again.bos_id == (ours.bos_id if ours.bos_id >= 0 else ours.eos_id)
    for text in (
        "Ada Lovelace wrote 12 letters.\n",
        "  Größe  ꙮ",
        "<|endoftext|> </s> <|im_end|> [SEP] <CALL>",
        "don't",
    ):
        ids = ours.encode(text).ids.tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids == again.encode(text).ids.tolist(), text


@pytest.mark.parametrize("text", ["", " ", "  a  b ", "a\n\nb", "\n a", "1987", "é ꙮ \x00", "<CALL> </s> <s>", "▁a"])
def test_the_tokenizer_at_its_edges(exported: Path, tokenizer_path: Path, text: str) -> None:
    """White space, bytes and names of special tokens are what SentencePiece makes of them."""
    theirs = AutoTokenizer.from_pretrained(exported)
    ids = theirs(text)["input_ids"]
    assert ids == open_tokenizer(tokenizer_path).encode(text).ids.tolist() and 32_000 not in ids


def test_lm_eval_loads_the_folder(exported: Path, checkpoint: Path) -> None:
    """lm-eval's own model class gives the log-likelihood that the checkpoint's logits give."""
    pytest.importorskip("accelerate", reason="lm-eval's model class imports it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(exported), device="cpu", dtype="float32")  # type: ignore[abstract, call-arg]
    request = Instance("loglikelihood", {}, ("Ada Lovelace was born", " in London"), 0)
    [(found, _)] = model.loglikelihood([request])
    ours = load_model(checkpoint)
    ours_of_lm_eval: Any = LacyLM(ours)  # type: ignore[call-arg]
    prefixes = ours_of_lm_eval.prefix_token_id, model.prefix_token_id  # type: ignore[attr-defined]
    assert prefixes == (2, 2), "what stands before an empty context"
    pieces = open_tokenizer(ours.tokenizer)
    ids = torch.from_numpy(pieces.encode("Ada Lovelace was born in London").ids).long()
    start = len(pieces.encode("Ada Lovelace was born").ids)
    with torch.no_grad():
        logprobs = torch.log_softmax(ours.model(ids[None]).logits[0, :-1].double(), -1)
    expected = logprobs.gather(1, ids[1:, None])[start - 1 :].sum().item()
    assert found == pytest.approx(expected, abs=1e-3)


def test_other_tools_never_write_call(checkpoint: Path, tmp_path: Path) -> None:
    """Where <CALL> leads after every token, generate of transformers and lm-eval's hf still write other tokens. Unused
    rows after <CALL> are suppressed, too."""
    pytest.importorskip("accelerate", reason="lm-eval's model class imports it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    calling = load_model(checkpoint)
    calling.model.resize_token_embeddings(32_064)
    network: Any = calling.model.transformer
    with torch.no_grad():
        network.ln_f.bias[0] = 10.0
        network.wte.weight[:, 0] = 0.0
        network.wte.weight[32_000:, 0] = 10.0
    (tmp_path / "out").mkdir()
    write_folder(calling, tmp_path / "out")
    theirs, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("Ada was", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (theirs(ids).logits.argmax(-1) >= 32_000).all()
    assert max(theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()) < 32_000
    model = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32")  # type: ignore[abstract, call-arg]
    request = Instance("generate_until", {}, ("Ada was", {"until": ["\n"], "max_gen_toks": 8}), 0)
    (text,) = model.generate_until([request])
    assert text and "<CALL>" not in text


def test_without_call(checkpoint: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without <CALL> has the other rows, and so the log-likelihoods with <CALL> banned."""
    out = tmp_path / "plain"
    assert main(["export", str(checkpoint), str(out), "--without-call"]) == 0
    assert "no <CALL>" in capsys.readouterr().out
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    assert plain.config.vocab_size == len(tokenizer) == 32_000 and not hasattr(plain.config, "call_token_id")
    assert plain.generation_config is not None and plain.generation_config.suppress_tokens is None
    ids = torch.arange(40)[None] * 700
    with torch.no_grad():
        expected = load_model(exported).model(ids).logits[..., :32_000]
        torch.testing.assert_close(plain(ids).logits, expected)
    text = "Ada <CALL> was born in 1815."
    assert tokenizer(text)["input_ids"] == open_tokenizer(load_model(checkpoint).tokenizer).encode(text).ids.tolist()
    ours = load_model(out)
    assert ours.call_token_id is None and ours.start_ids == (2,) and ours.max_seq_len == 64


def test_a_tokenizer_json_without_call(tmp_path: Path, tokenizer_folder: Callable[[str], Path]) -> None:
    """A tokenizer.json of Hugging Face is copied as it is, and <CALL> is added only to a folder with its row."""
    file = tokenizer_folder("unigram") / "tokenizer.json"
    ours = open_tokenizer(file)
    for rows, call in ((ours.vocab_size, None), (ours.vocab_size + 1, ours.vocab_size)):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=32, n_embd=8, n_layer=1, n_head=1))
        out = tmp_path / str(rows)
        out.mkdir()
        write_folder(CallingModel(model, file, call, ours.eos_id, 32, "m", None), out)
        theirs = AutoTokenizer.from_pretrained(out)
        assert len(theirs) == rows and ("<CALL>" in theirs.get_vocab()) == (call is not None)
        assert theirs("Ada", add_special_tokens=False)["input_ids"] == ours.encode("Ada").ids.tolist()


def test_load_model_takes_both(checkpoint: Path, exported: Path) -> None:
    """A checkpoint and its folder are the same model to the other commands."""
    one, other = load_model(checkpoint), load_model(exported)
    assert (one.call_token_id, one.eos_id, one.max_seq_len) == (32_000, 2, 64)
    assert (other.call_token_id, other.eos_id, other.max_seq_len) == (32_000, 2, 64)
    assert one.recipe == other.recipe and one.name == "small"
    assert other.tokenizer == exported / "tokenizer.model"


def test_the_record_of_earlier_runs_is_read(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint in which StreamMonitor holds the recipe is the same model."""
    state = torch.load(checkpoint, weights_only=False)
    callbacks = state["state"]["callbacks"]
    callbacks["StreamMonitor"] = callbacks.pop("RunRecord")
    torch.save(state, tmp_path / "old.pt")
    old, new = load_checkpoint(tmp_path / "old.pt"), load_checkpoint(checkpoint)
    assert (old.recipe, old.annotation, old.call_token_id) == (new.recipe, "none", 32_000)


def test_what_cannot_be_exported(checkpoint: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing folder, a file that is no checkpoint, and another <CALL> id are refused, and nothing is written."""
    assert main(["export", str(checkpoint), str(exported)]) == 2
    assert "exists" in capsys.readouterr().err
    out = exported.parent / "other"
    assert main(["export", str(exported / "config.json"), str(out)]) == 2
    assert "no checkpoint" in capsys.readouterr().err and not out.exists()
    with pytest.raises(ValueError, match="would be id 32000 instead of 5"):
        transformers_tokenizer(replace(load_model(exported), call_token_id=5))


def test_folders_that_are_no_model(tmp_path: Path, exported: Path) -> None:
    """A missing folder, one without a model, and one without a tokenizer are named."""
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_model(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no causal language model"):
        load_model(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_model(tmp_path)
