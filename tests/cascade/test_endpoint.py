"""A partner behind an endpoint: real server processes on loopback, in the layouts and with the faults that occur."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from servers import completions_server, free_port

from lacy_stream.cascade import Decoding, Delegation, generate, open_partner
from lacy_stream.cascade.endpoint import EndpointPartner
from lacy_stream.cascade.partner import Call, PartnerError, PromptError
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
            partner.session().propose("one")
        process.kill()
        process.wait()
        with pytest.raises(PartnerError, match="does not answer"):
            partner.session().propose("one")
    with pytest.raises(PartnerError, match="does not answer"):
        EndpointPartner(f"http://127.0.0.1:{free_port()}/v1", retries=0)


def test_an_endpoint_that_hangs() -> None:
    """All calls together end at the deadline, however many attempts are left. The endpoint answers when it is well."""
    with completions_server("vllm") as (url, process):
        partner = EndpointPartner(f"{url}#stub", deadline_s=2, concurrency=2)
        calls = [Call(partner.session(), "one")] * 3
        process.send_signal(signal.SIGSTOP)
        answers = partner.propose_all(calls)
        assert [type(answer) for answer in answers] == [PartnerError] * 3
        assert f"{url} does not answer within 2 s. What was generated is kept" in str(answers[0])
        with pytest.raises(PartnerError, match="within 0.5 s"):
            EndpointPartner(url, deadline_s=0.5)
        process.send_signal(signal.SIGCONT)
        for answer in partner.propose_all(calls):
            assert not isinstance(answer, Exception) and [candidate.spelling for candidate in answer][1] == b" London"


def test_answers_that_come_before_the_deadline_are_kept() -> None:
    """Of two calls, one after the other and a second each, the second one is late."""
    with completions_server("slow") as (url, _):
        partner = EndpointPartner(f"{url}#stub", deadline_s=1.8, concurrency=1)
        first, second = partner.propose_all([Call(partner.session(), "one")] * 2)
    assert not isinstance(first, Exception) and next(first).spelling == b"1987"
    assert isinstance(second, PartnerError)


def test_ids_of_an_endpoint_that_hangs() -> None:
    """An endpoint that hangs when it is asked what ids spell does not answer."""
    with completions_server("ids") as (url, process):
        partner = EndpointPartner(f"{url}#stub", timeout_s=1)
        answer = partner.session().propose("one")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(PartnerError, match="does not answer"):
            next(answer)


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


def test_ids_are_asked_for_or_resolved_by_the_tokenizer(tiny_partner: Path) -> None:
    """vLLM may name tokens by their ids: /detokenize or the partner's tokenizer says what they spell. Without either,
    the message says what to give."""
    with completions_server("ids") as (url, _):
        found = [candidate.spelling for candidate in open_partner(url).session().propose("one")]
        assert found == [None, b" Paris", None, b"x"]
    with completions_server("lone-ids") as (url, _):
        found = [c.spelling for c in open_partner(url, tokenizer=str(tiny_partner)).session().propose("one")]
        assert found == [b"\x03", b"\x00", b"\x01", b"\x02"]
        with pytest.raises(PartnerError, match="token_id:3.*--partner-tokenizer"):
            list(open_partner(url).session().propose("one"))


def test_pieces_as_in_a_tokenizers_file(tmp_path: Path, tokenizer_path: Path) -> None:
    """A space may be written as in the tokenizer's file: that is no text, unless the tokenizer is known."""
    with completions_server("raw") as (url, _):
        found = [candidate.spelling for candidate in open_partner(url).session().propose("one")]
        assert found == [None, None, None]
        found = [c.spelling for c in open_partner(url, tokenizer=str(tokenizer_path)).session().propose("one")]
        assert found == [None, b" London", None]


def test_special_tokens_of_other_families() -> None:
    """Whatever looks like a special token is no text."""
    with completions_server("foreign") as (url, _):
        found = [candidate.spelling for candidate in open_partner(url).session().propose("one")]
    assert found == [None] * 5 + [b" Paris"]


def test_tokenizers_that_are_none(tiny_partner: Path, tmp_path: Path) -> None:
    """A tokenizer that cannot be loaded, or belongs to a partner with one of its own, is named."""
    with pytest.raises(PartnerError, match="cannot be loaded as a tokenizer"):
        open_partner("http://127.0.0.1:9/v1#m", tokenizer=str(tmp_path))
    with pytest.raises(PartnerError, match="is no endpoint"):
        open_partner(str(tiny_partner), tokenizer=str(tiny_partner))


def test_a_completion_without_tokens_ends_nothing(wordy_model: Path) -> None:
    """Where the partner has nothing to say, the small model writes, and that is counted."""
    with completions_server("empty") as (url, _):
        [text] = generate(
            load_model(wordy_model),
            ["one two"],
            partner=open_partner(url),
            delegation=Delegation(call_rate=1),
            decoding=Decoding(max_new_tokens=4),
        )
    assert (text.finish, text.fallbacks, text.call_rate) == ("length", 4, 0)


def test_a_refused_request_is_no_full_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that holds "exceeds" ends the run with the endpoint's words; and an empty key is none."""
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with completions_server("refusing") as (url, _), pytest.raises(PartnerError, match="logprobs: 20 exceeds"):
        open_partner(url).session().propose("one").__next__()


def test_base_urls_of_partners() -> None:
    """A URL without a scheme is one, and a URL without a version gets a hint."""
    with completions_server("vllm") as (url, _):
        assert open_partner(f"{url.removeprefix('http://')}#stub").name == "stub"
        with pytest.raises(PartnerError, match=f"try {url}"):
            list(open_partner(f"{url.removesuffix('/v1')}#stub").session().propose("one"))


@pytest.mark.slow
def test_a_model_behind_an_endpoint(smollm: Path) -> None:
    """SmolLM2 behind an endpoint proposes what the same model proposes here."""
    with completions_server("model", str(smollm)) as (url, _):
        there = next(iter(open_partner(url).session().propose("The capital of France is"))).spelling
    here = open_partner(str(smollm), repetition_penalty=1.0)
    here.start = []  # type: ignore[attr-defined]
    assert there == next(iter(here.session().propose("The capital of France is"))).spelling == b" Paris"
