"""Acceptability: what is proposed, what the judge is asked, how verdicts are binned, and a whole evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from judges import Reply, scripted_judge

from annotator import Annotator, Document, FactClass
from lacy_stream.cli.main import main
from lacy_stream.evaluate.acceptability import Proposal, bins, parse_acceptability, propose, question
from lacy_stream.evaluate.token_table import LOSS_BINS
from lacy_stream.train.checkpoint import load_model

TEXT = "Ada Lovelace was born in London in 1815. She wrote to Charles Babbage."


def test_proposals_are_the_models(tiny_model: Path, annotator: Annotator):
    """Losses, greedy proposals and classes agree with a forward pass by hand; <CALL>, though it leads, is not one."""
    model = load_model(tiny_model)
    assert model.call_token_id is not None
    with torch.no_grad():  # <CALL> gets the highest logit everywhere
        model.model.get_output_embeddings().weight[model.call_token_id] = 0
        hidden = model.model.transformer(torch.tensor([[2]]))[0]
        model.model.get_output_embeddings().weight[model.call_token_id] = 100 * hidden[0, 0]
    proposals = propose(model, annotator, Document("d", TEXT))
    labelled = annotator.annotate([TEXT])[0]
    ids = torch.from_numpy(labelled.ids).long()
    with torch.no_grad():
        every = model.model(torch.cat([torch.tensor([2]), ids[:-1]])[None]).logits[0]
    assert (every.argmax(-1) == model.call_token_id).any()
    logits = every[:, : model.call_token_id]
    losses = torch.nn.functional.cross_entropy(logits, ids, reduction="none")[1:]
    assert [p.loss for p in proposals] == pytest.approx(losses.tolist(), abs=1e-4)
    assert [p.factual for p in proposals] == (labelled.classes[1:] == FactClass.FACTUAL).tolist()
    assert [TEXT[p.start :].startswith(p.reference) for p in proposals] == [True] * len(proposals)
    assert "".join(p.reference for p in proposals) == TEXT[labelled.offsets[0, 1] :]
    for proposal, before, best in zip(proposals, labelled.ids, logits.argmax(-1)[1:].numpy(), strict=False):
        pair = annotator.tokenizer.decode(np.array([before, best], np.int32)).text
        assert pair.endswith(proposal.proposal)


def test_question_holds_context_proposal_and_reference():
    """The judge sees the text up to the token, both continuations, and no more of the text; braces are just text."""
    proposal = Proposal(start=22, reference=" London", proposal=" {Paris}", loss=1.0, factual=True, correct=False)
    asked = question("Ada {0} was born in    London and lived there.", proposal)
    assert asked.endswith('Text so far: "Ada {0} was born in   "\nProposal: " {Paris}"    Original: " London"\n')
    assert "lived" not in asked


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Another date.\nVerdict: 0", False),
        ("**Verdict:** 1", True),
        ("Verdict: 1? No, verdict: 0", False),
        (" 1.", True),
        ("Verdict: 17", None),
        ("in 1 of 2 cases", None),
        ("", None),
    ],
)
def test_verdict_of_an_answer(answer: str, verdict: bool | None):
    """The last verdict counts, a bare digit is one, prose with digits is none."""
    assert parse_acceptability(answer) is verdict


def proposal(loss: float, factual: bool, correct: bool, acceptable: bool | None) -> Proposal:
    return Proposal(0, "a", "b", loss, factual, correct, acceptable)


def test_bins_of_hand_built_proposals():
    """Accuracy is over all tokens of a bin, acceptability over those with a verdict; edges belong to the higher bin."""
    made = bins(
        [
            proposal(0.1, True, True, True),
            proposal(0.4, True, False, False),
            proposal(0.49, True, False, None),
            proposal(0.5, True, False, True),
            proposal(99.0, False, False, True),
        ]
    )
    assert len(made) == 2 * (len(LOSS_BINS) - 1)
    first, second = made[0], made[1]
    assert (first.tokens, first.judged, first.acceptability) == (3, 2, 50.0)
    assert first.accuracy == pytest.approx(100 / 3)
    assert (second.low, second.tokens, second.accuracy, second.acceptability) == (0.5, 1, 0.0, 100.0)
    assert (made[-1].factual, made[-1].tokens, made[-2].accuracy) == (False, 1, None)


def test_an_evaluation(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every token of the documents gets a verdict or a reason; right proposals are not asked about; nothing twice."""
    rows = [{"id": "one", "text": TEXT}, {"id": "two", "text": "x"}, {"id": "three", "text": "never read"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def script(asked: str, _: int) -> Reply:
        return Reply("hm") if asked.endswith('Original: " London"\n') else Reply("Fine.\nVerdict: 1")

    command = ["evaluate", "acceptability", str(tiny_model), "--texts", str(tmp_path / "texts.jsonl")]
    command += [
        "--documents",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--judge-model",
        "m",
        "--judge-concurrency",
        "2",
        "--judge",
    ]
    with scripted_judge(script) as server:
        assert main([*command, server.url]) == 0
        asked = len(server.questions)
        assert main([*command, server.url]) == 0 and len(server.questions) == asked
    model = json.loads((tmp_path / "out" / "acceptability.json").read_text())["models"][0]
    assert [document["id"] for document in model["documents"]] == ["one", "two"]
    tokens = model["documents"][0]["tokens"]
    assert asked == sum(not token["correct"] for token in tokens)
    unclear = [token for token in tokens if token["acceptable"] is None]
    assert [token["why"] for token in unclear] == ["unclear: 'hm'"] and unclear[0]["reference"] == " London"
    assert "| factual |" in (tmp_path / "out" / "acceptability.md").read_text()
    assert (tmp_path / "out" / "acceptability.png").read_bytes()[:4] == b"\x89PNG"
    assert "1 proposals without a verdict" in capsys.readouterr().out


def test_a_folder_without_a_recipe_needs_texts(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Where no recipe names held-out data the message says what to give instead."""
    command = ["evaluate", "acceptability", str(tiny_model), "--out", str(tmp_path), "--judge-model", "m"]
    assert main([*command, "--judge", "http://127.0.0.1:9/v1"]) == 2
    assert "name documents with --texts" in capfd.readouterr().err
