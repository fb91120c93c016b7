"""lm-eval on our models: <CALL> is banned, tasks run from local files, and a stopped run is resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file

from lacy_stream.cli.main import main
from lacy_stream.evaluate import harness
from lacy_stream.evaluate.harness import LacyLM, hf_tokenizer
from lacy_stream.evaluate.tasks.answers import completion, contains_answer
from lacy_stream.train.checkpoint import CallingModel, load_model

pytestmark = pytest.mark.model

QUESTIONS = [
    ("What is Ada Byron's occupation?", "Ada Byron's occupation is"),
    ("In what city was Ada born?", "Ada was born in the city of"),
    ("What is Ufa the capital of?", "Ufa is the capital of"),
    ("What is the capital of Peru?", "The capital of Peru is"),
    ("Who was the screenwriter for The Fake?", "The screenwriter for The Fake was"),
    ("What sport does What Is play?", "What Is plays the sport of"),
]


@pytest.fixture
def calling(tiny_model: Path) -> CallingModel:
    """A model whose <CALL> logit leads after every token."""
    model = load_model(tiny_model)
    with torch.no_grad():
        # The last layer norm gives every hidden state a share of its bias, along which only <CALL> has a weight.
        model.model.transformer.ln_f.bias[0] = 10.0
        model.model.transformer.wte.weight[:, 0] = 0.0
        model.model.transformer.wte.weight[model.call_token_id, 0] = 10.0
    return model


def request(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_calls_are_banned(calling: CallingModel):
    """Log-likelihoods are those of the other tokens, renormalised; <CALL>, though it leads everywhere, never comes."""
    context, answer = "Ada was born in", " London"
    model, tokenizer = LacyLM(calling), hf_tokenizer(calling)
    ids = torch.tensor([tokenizer(context + answer).input_ids])
    start = len(tokenizer(context).input_ids)
    with torch.no_grad():
        logits = calling.model(ids).logits[0]
    assert (logits.argmax(-1) == calling.call_token_id).all()
    expected = torch.log_softmax(logits[:, : calling.call_token_id], -1)[start - 1 : -1].gather(1, ids[0, start:, None])
    ((found, _),) = model.loglikelihood([request("loglikelihood", context, answer)])
    assert found == pytest.approx(expected.sum().item(), abs=1e-3)
    (text,) = model.generate_until([request("generate_until", context, {"until": ["\n"], "max_gen_toks": 8})])
    assert text and "<CALL>" not in text and calling.call_token_id not in tokenizer(text).input_ids


def test_a_model_without_calls_is_not_changed(calling: CallingModel):
    """Where a model knows no <CALL>, nothing is banned."""
    context, answer = "Ada was born in", " London"
    tokenizer = hf_tokenizer(calling)
    ids = torch.tensor([tokenizer(context + answer).input_ids])
    start = len(tokenizer(context).input_ids)
    with torch.no_grad():
        whole = torch.log_softmax(calling.model(ids).logits[0], -1)[start - 1 : -1].gather(1, ids[0, start:, None])
    model = LacyLM(replace(calling, call_token_id=None))
    ((found, _),) = model.loglikelihood([request("loglikelihood", context, answer)])
    assert found == pytest.approx(whole.sum().item(), abs=1e-3)


def test_tokenizer_is_sentencepieces(calling: CallingModel, tokenizer_path: Path):
    """Hugging Face's view of the tokenizer file encodes as SentencePiece does, white space included."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    tokenizer = hf_tokenizer(calling)
    for text in ("Ada was born", " two  spaces ", "line\nbreak\n", "1987, Zoë 東京 🙂", "<s> </s> <CALL>", ""):
        assert tokenizer(text).input_ids == pieces.encode(text), text


def test_a_model_of_others(tiny_partner: Path):
    """A folder with a tokenizer of its own is scored with that; lm-eval's answer is the one by hand."""
    model = LacyLM(load_model(tiny_partner))
    ids = torch.tensor([list(b"Ada wrote")])
    with torch.no_grad():
        by_hand = torch.log_softmax(model.model(ids).logits[0], -1)[2:-1].gather(1, ids[0, 3:, None]).sum()
    ((found, _),) = model.loglikelihood([request("loglikelihood", "Ada", " wrote")])
    assert found == pytest.approx(by_hand.item(), abs=1e-3)


@pytest.mark.parametrize(("question", "start"), QUESTIONS)
def test_completion_of_a_question(question: str, start: str):
    """PopQA's templates become the start of a sentence that the answer ends."""
    assert completion(question) == start


def test_every_question_of_popqa_has_a_completion(shared: Path):
    """All 1,399 questions follow a template; what follows none is an error that names it."""
    with open(shared / "popqa_longtail.jsonl", encoding="utf-8") as file:
        starts = [completion(json.loads(line)["question"]) for line in file]
    assert len(starts) == 1399 and not any(start.endswith("?") for start in starts)
    with pytest.raises(ValueError, match="'Why\\?' follows none"):
        completion("Why?")


@pytest.mark.parametrize(
    ("output", "contained"),
    [("politician", True), (" a French politician.", True), ("Politician", False), ("polit", False), ("", False)],
)
def test_containment(output: str, contained: bool):
    """Any gold answer within the output counts, letter by letter."""
    assert contains_answer(output, ["politician", "lawyer"]) is contained
    assert not contains_answer(output, [])


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_leakage_has_three_shots_and_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Prompts hold three other questions with their answers; an interrupted run asks only what is missing."""
    popqa = [{"question": f"Who is the author of Book {i}?", "answers": [f"Writer {i}", f"W{i}"]} for i in range(6)]
    write_rows(tmp_path / "popqa_longtail.jsonl", popqa)
    facts = [{"context": f"The country of Town {i} is", "continuation": f"Land {i}"} for i in range(6)]
    write_rows(tmp_path / "bigbench_qa_wikidata.jsonl", facts)
    prompts, die_at = [], 7

    class Model(LacyLM):
        def _model_generate(self, context: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            if len(prompts) == die_at:
                raise KeyboardInterrupt
            prompts.append(self.tok_decode(context[0].tolist()))
            # Book 2 is answered by heart; everything else with a stop.
            answer = self.tokenizer("Writer 2\n" if prompts[-1].endswith("author of Book 2 is") else "no\n").input_ids
            return torch.cat([context, torch.tensor([answer])], dim=1)

    monkeypatch.setattr(harness, "LacyLM", Model)
    command = ["evaluate", "leakage", str(tiny_model), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    command += ["--batch-size", "1"]
    assert main(command) == 130 and len(prompts) == 7
    die_at = 100
    assert main(command) == 0
    assert len(prompts) == len(set(prompts)) == 12
    for prompt in prompts:
        *shots, asked = prompt.split("\n\n")
        assert len(shots) == 3 and asked not in "".join(shots)
        assert all(shot.split()[-1].isdecimal() and ("Writer" in shot or "Land" in shot) for shot in shots)
    assert any(prompt.endswith("Who is the author of Book 4? The author of Book 4 is") for prompt in prompts)
    (model,) = json.loads((tmp_path / "out" / "leakage.json").read_text())["models"]
    assert model["tasks"]["popqa_longtail"]["metrics"]["contains"] == pytest.approx(1 / 6)
    leaked = [item for item in model["tasks"]["popqa_longtail"]["items"] if item["contains"]]
    assert [item["output"] for item in leaked] == ["Writer 2"] and leaked[0]["answers"] == ["Writer 2", "W2"]
    assert "| 0.0 | 16.7 | 8.3 |" in (tmp_path / "out" / "leakage.md").read_text()
    assert (tmp_path / "out" / "leakage.png").exists() and "8.3" in capsys.readouterr().out


def test_nlu_offline(
    tiny_model: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """All four benchmarks run from local files without network, every item written, beside the paper's table."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    command = [
        "evaluate",
        "nlu",
        str(tiny_model),
        "--data",
        str(shared),
        "--out",
        str(tmp_path / "out"),
        "--limit",
        "4",
    ]
    assert main(command) == 0
    (model,) = json.loads((tmp_path / "out" / "nlu.json").read_text())["models"]
    choices = {"arc_easy": 4, "hellaswag": 4, "piqa": 2, "social_iqa": 3}
    for task, count in choices.items():
        items = model["tasks"][task]["items"]
        assert len(items) == 4
        for item in items:
            likelihoods = item["log_likelihoods"]
            assert len(likelihoods) == count and max(likelihoods) < 0
            assert item["acc"] == float(max(range(count), key=likelihoods.__getitem__) == int(item["gold"]))
        assert model["tasks"][task]["metrics"]["acc"] == pytest.approx(sum(item["acc"] for item in items) / 4)
    assert "| *LaCy* (paper) | 35.6 | 28.5 | 59.3 | 36.2 | 39.9 |" in (tmp_path / "out" / "nlu.md").read_text()
    assert "first 4 items" in capsys.readouterr().out


def test_answers_beyond_the_context_are_counted(
    tiny_model: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A model with few positions scores long answers by their end, and says how many, also when it is resumed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tmp_path / "short"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text()) | {"n_positions": 20}
    (model / "config.json").write_text(json.dumps(config))
    weights = load_file(model / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:20].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    command = ["evaluate", "nlu", str(model), "--data", str(shared), "--out", str(tmp_path / "out"), "--limit", "3"]
    for _ in range(2):
        assert main(command) == 0
        assert "answers of PIQA are longer than the model's context" in (tmp_path / "out" / "nlu.md").read_text()


def test_a_hub_that_cannot_be_reached_is_a_message(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Without --data and without network, the message says what to give."""

    def fail(**_: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("lacy_stream.evaluate.harness.simple_evaluate", fail)
    assert main(["evaluate", "nlu", str(tiny_model), "--out", str(tmp_path / "out")]) == 2
    assert "did not deliver the tasks' data: offline. Give --data DIR" in capfd.readouterr().err


@pytest.mark.parametrize(("evaluation", "name"), [("nlu", "arc_easy_test.jsonl"), ("leakage", "jsonl")])
def test_missing_data_is_named(
    evaluation: str, name: str, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """A folder without the data is one message that names a file and the option."""
    command = [
        "evaluate",
        evaluation,
        str(tiny_model),
        "--data",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 2
    message = capfd.readouterr().err
    assert name in message and "--data" in message and "Traceback" not in message
