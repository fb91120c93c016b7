"""A partner behind an endpoint: real server processes on loopback, in the layouts and with the faults that occur."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import completions_server, free_port

from lacy_stream.cascade import Decoding, Delegation, generate, open_partner
from lacy_stream.cascade.endpoint import EndpointPartner
from lacy_stream.cascade.partner import PartnerError, PromptError
from lacy_stream.train.checkpoint import load_model

pytestmark = pytest.mark.process


@pytest.mark.parametrize("mode", ["vllm", "llama.cpp"])
def test_candidates_in_both_layouts(mode: str) -> None:
    """Best first; special tokens and what is left of fragments cannot be expressed."""
    with completions_server(mode) as (url, _):
        partner = open_partner(url)
        assert partner.name == "stub"
        session = partner.session()
        found = [proposal.spelling for proposal in session.propose("one two three four")]
        assert found == [b" Paris", b" London", None, "é".encode()]
        assert [proposal.spelling for proposal in session.propose("one two")][:2] == [None, b" London"]
        fragment = next(iter(session.propose("one two three"))).spelling
        assert fragment == (None if mode == "vllm" else "\ufffd".encode())


def test_a_text_with_an_endpoint(wordy_model: Path) -> None:
    """The endpoint's best expressible tokens are appended; numbers as several pieces."""
    with completions_server("vllm") as (url, _):
        [text] = generate(
            load_model(wordy_model),
            ["one two three four"],
            partner=open_partner(url),
            delegation=Delegation(call_rate=1),
            decoding=Decoding(max_new_tokens=8),
        )
    assert text.text == " Paris1987 London London"[: len(text.text)] or text.text.startswith(" Paris1987")
    assert text.call_rate == 1 and text.tokens[0].writer == "partner"


def test_no_log_probabilities() -> None:
    """An endpoint that gives none is named, with the way out."""
    with completions_server("bare") as (url, _), pytest.raises(PartnerError, match="without top log-probabilities"):
        next(iter(open_partner(url).session().propose("one")))


def test_slow_and_dead_endpoints() -> None:
    """Silence ends in an error that says what to do, not in a hang."""
    with completions_server("slow") as (url, process):
        partner = EndpointPartner(f"{url}#stub", timeout_s=0.2, retries=0)
        with pytest.raises(PartnerError, match="does not answer.*same command again"):
            partner.candidates("one")
        process.kill()
        process.wait()
        with pytest.raises(PartnerError, match="does not answer"):
            partner.candidates("one")
    with pytest.raises(PartnerError, match="does not answer"):
        EndpointPartner(f"http://127.0.0.1:{free_port()}/v1", retries=0)


def test_a_text_that_is_too_long_for_the_endpoint(wordy_model: Path) -> None:
    """It is this prompt that is skipped, with the endpoint's words."""
    with completions_server("long") as (url, _):
        partner = open_partner(f"{url}#stub")
        with pytest.raises(PromptError, match="maximum context length"):
            next(iter(partner.session().propose("one")))
        [text] = generate(
            load_model(wordy_model),
            ["one two"],
            partner=partner,
            delegation=Delegation(call_rate=1),
            decoding=Decoding(max_new_tokens=4),
        )
    assert text.finish == "skipped" and "maximum context length" in text.skipped


@pytest.mark.slow
def test_a_model_behind_an_endpoint(smollm: Path) -> None:
    """SmolLM2 behind an endpoint proposes what the same model proposes here."""
    with completions_server("model", str(smollm)) as (url, _):
        there = next(iter(open_partner(url).session().propose("The capital of France is"))).spelling
    here = open_partner(str(smollm), repetition_penalty=1.0)
    here.start = []  # type: ignore[attr-defined]
    assert there == next(iter(here.session().propose("The capital of France is"))).spelling == b" Paris"
