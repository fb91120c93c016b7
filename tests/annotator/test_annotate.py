"""The whole annotator on real and awkward texts, with the real parser and tokenizer."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator import Annotator, Document, FactClass, LabelledTokens
from annotator.facts import Rule

pytestmark = pytest.mark.parser

CURIE = (
    "Marie Curie\n\nMarie Curie (born 7 November 1867) was a Polish physicist and a chemist by training. "
    "She studied physics at the University of Paris.\nIn 1867, Curie was born in Warsaw."
)


def by_word(annotator: Annotator, text: str) -> list[tuple[str, str]]:
    """(word, rule name) of each word."""
    found = annotator.explain(text)
    spans = zip(found.words.start.tolist(), found.words.end.tolist(), found.rules.tolist(), strict=True)
    return [(text[start:end], Rule(rule).name) for start, end, rule in spans]


def same(a: LabelledTokens, b: LabelledTokens) -> bool:
    """Whether ids, classes and offsets are all equal."""
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("ids", "classes", "offsets"))


def python(code: str, *args: str) -> str:
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What the labels are


def test_a_biography(annotator: Annotator):
    """The example of the appendix, end to end: title, repetition, roles, dates and years."""
    rules = dict(reversed(by_word(annotator, CURIE)))
    assert rules["Marie"] == rules["Curie"] == "PERSON_ENTITY"
    assert rules["1867"] == rules["Warsaw"] == "NAMED_ENTITY"
    assert rules["physicist"] == rules["physics"] == "COMMON_NOUN"
    assert rules["training"] == rules["born"] == "NO_RULE"
    assert rules["of"] == "PREPOSITION"
    last = dict(by_word(annotator, CURIE)[-11:])
    assert last["1867"] == "REPEATED_WORD" and last["Curie"] == "REPEATED_PERSON"


def test_tokens_carry_the_class_of_the_words(annotator: Annotator):
    """annotate and explain agree, and a fact's pieces are all factual."""
    (tokens,) = annotator.annotate([CURIE])
    found = annotator.explain(CURIE)
    assert same(tokens, found.tokens)
    factual = {CURIE[start:end].strip() for start, end in tokens.offsets[tokens.classes == FactClass.FACTUAL]}
    assert {"Mar", "ie", "W", "ars", "aw"} & factual and "Par" not in factual - {"Paris"}
    assert "training" not in factual and "was" not in factual


def test_without_a_model_every_token_is_other(tokenizer_path: Path, annotator: Annotator):
    """model=None gives the same tokens without labels, and nothing to explain."""
    plain = Annotator(tokenizer_path, model=None)
    (tokens,) = plain.annotate([CURIE])
    (labelled,) = annotator.annotate([CURIE])
    assert np.array_equal(tokens.ids, labelled.ids) and np.array_equal(tokens.offsets, labelled.offsets)
    assert set(tokens.classes.tolist()) == {FactClass.OTHER}
    with pytest.raises(ValueError, match="model: None"):
        plain.explain(CURIE)


_SENTENCES = ["Marie Curie was born in Warsaw in 1867. ", "She was a chemist.\n", "\n\n", "\U0001f600 7 ", "x" * 40, ""]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(_SENTENCES), max_size=6).map("".join), min_size=1, max_size=6))
def test_labels_in_a_batch_equal_labels_alone(annotator: Annotator, texts: list[str]):
    """A text's labels do not depend on its neighbours, their number or their order."""
    together = annotator.annotate(texts)
    assert len(together) == len(texts)
    for text, tokens in zip(texts, together, strict=True):
        assert same(tokens, annotator.annotate([text])[0])


def test_first_mention_memory_spans_the_segments_of_a_long_text(annotator: Annotator):
    """A year of the first line is no fact on the last line, though another segment was parsed between."""
    filler = "It was so, and then it was not so, as they would say.\n" * 1200
    text = "Curie was born in 1867.\n" + filler + "Curie died after 1867 and before 1934.\n"
    (tokens,) = annotator.annotate([text])
    classes = dict(zip(tokens.offsets[:, 1].tolist(), tokens.classes.tolist(), strict=True))
    assert classes[text.index("1867") + 4] == FactClass.FACTUAL
    assert classes[text.rindex("1867") + 4] == FactClass.OTHER
    assert classes[text.rindex("1934") + 4] == FactClass.FACTUAL


# Awkward texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " \n\t \r\n ",
        "a\0b \0 in 1987\0",
        "\U0001f600" * 5000,
        "(" * 20_000,
        "\u0645\u0631\u062d\u0628\u0627 " * 50,
        "\u4e2d\u6587\u7ef4\u57fa\u767e\u79d1" * 50,
        "e\u0301\ufb01\u1100\u1161" * 50,
        "line\r\nline\r\n" * 20,
        "a" * 200_000,
        "<CALL> <CALL></s>",
    ],
    ids=lambda text: repr(text[:6]),
)
def test_awkward_texts_are_aligned(annotator: Annotator, tokenizer_path: Path, text: str):
    """Whatever the text, tokens are SentencePiece's and the offsets reach from 0 to its end, in good time."""
    started = time.monotonic()
    (tokens,) = annotator.annotate([text])
    assert time.monotonic() - started < 60
    (plain,) = Annotator(tokenizer_path, model=None).annotate([text])
    assert np.array_equal(tokens.ids, plain.ids)
    assert tokens.classes.max(initial=0) <= FactClass.OTHER
    if text:
        assert tokens.offsets[0, 0] == 0 and tokens.offsets[-1, 1] == len(text)


def test_lone_surrogate_names_the_text_and_place(annotator: Annotator):
    """A lone surrogate is not a character: the error says which text, where, and what to do."""
    with pytest.raises(ValueError, match=r"text 1: lone surrogate U\+D800 at code point 2.*errors='replace'"):
        annotator.annotate(["fine", "ab\ud800c"])


def test_one_string_is_no_list_of_texts(annotator: Annotator):
    """A string in place of the list would be annotated letter by letter."""
    with pytest.raises(ValueError, match="got one string"):
        annotator.annotate("Marie Curie")


# Ids that another tool has made

BOS, EOS = 1, 2


def row_of(*tokens: LabelledTokens) -> np.ndarray:
    """A row as LLM Foundry writes it: the ids of documents, </s> after each; int64."""
    return np.concatenate([np.append(t.ids, EOS) for t in tokens]).astype(np.int64)


@pytest.mark.slow
def test_ids_of_a_text_have_its_labels(annotator: Annotator, shared: Path):
    """Ids in place of the text give the same labels, on 150 documents of dwiki."""
    with open(shared / "lmlm_spans.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in itertools.islice(file, 150)]
    labelled = annotator.annotate(texts)
    for tokens, again in zip(labelled, annotator.annotate_ids(t.ids for t in labelled), strict=True):
        assert same(tokens, again)


def test_documents_of_a_row_have_labels_of_their_own(annotator: Annotator):
    """The second document of a row is labelled as if alone, whatever the first one mentions; </s> is grammatical."""
    texts = [CURIE, "Warsaw\n\nWarsaw is where Marie Curie was born in 1867. \U0001f9ff"]
    first, second = annotator.annotate(texts)
    row = row_of(first, second)
    (tokens,) = annotator.annotate_ids([row])
    assert tokens.ids.tolist() == row.tolist() and tokens.ids.dtype == np.int32
    assert tokens.classes.tolist() == [*first.classes, FactClass.GRAMMATICAL, *second.classes, FactClass.GRAMMATICAL]
    ends = [*first.offsets[:, 1], len(CURIE), *(second.offsets[:, 1] + len(CURIE)), len("".join(texts))]
    assert tokens.offsets[:, 1].tolist() == ends and tokens.offsets[:, 0].tolist() == [0, *ends[:-1]]
    assert FactClass.FACTUAL in second.classes


def test_row_that_begins_in_the_middle_of_a_document(annotator: Annotator):
    """Such a row is labelled as the text that it holds: what the row before has mentioned is new again."""
    text = "Marie Curie was born in 1867. After 1867 Marie Curie lived in Warsaw."
    cut = text.index(" After")
    (whole,) = annotator.annotate([text])
    at = whole.offsets[:, 0].tolist().index(cut)
    head, tail = annotator.annotate_ids([whole.ids[:at], whole.ids[at:]])
    assert same(tail, annotator.annotate([text[cut + 1 :]])[0])
    assert head.classes.tolist() == whole.classes[:at].tolist()
    year = slice(2, 6)  # After, space, 1, 8, 6, 7
    assert set(whole.classes[at:][year].tolist()) == {FactClass.OTHER}
    assert set(tail.classes[year].tolist()) == {FactClass.FACTUAL}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 31_999) | st.integers(0, 258) | st.sampled_from([0, BOS, EOS]), max_size=40))
def test_any_ids_come_back_unchanged(annotator: Annotator, ids: list[int]):
    """Rows that no tokenizer would make are labelled too: ids as they were, places in order, control ids no facts."""
    (tokens,) = annotator.annotate_ids([np.array(ids, dtype=np.uint16)])
    assert tokens.ids.tolist() == ids
    assert (tokens.ids.dtype, tokens.classes.dtype, tokens.offsets.dtype) == (np.int32, np.uint8, np.int32)
    assert tokens.offsets[:, 0].tolist() == [0, *tokens.offsets[:-1, 1].tolist()][: len(ids)]
    assert (np.diff(tokens.offsets) >= 0).all()
    control = np.isin(tokens.ids, (BOS, EOS))
    assert (np.diff(tokens.offsets)[control] == 0).all() and (tokens.classes[control] == FactClass.GRAMMATICAL).all()


def test_padding_by_the_unknown_piece_changes_no_label(annotator: Annotator):
    """A row that is filled up with <unk> has the labels of its text, and no padding is a fact."""
    ids = annotator.annotate(["Ada was born in London in 1815"])[0].ids
    plain, filled = annotator.annotate_ids([ids, np.append(ids, np.zeros(9, np.int32))])
    assert FactClass.FACTUAL in plain.classes[-4:]
    assert filled.classes.tolist() == plain.classes.tolist() + [FactClass.GRAMMATICAL] * 9


def test_rows_without_tokens(annotator: Annotator):
    """An empty row has no tokens, and a row of </s> alone has no text."""
    empty, ends = annotator.annotate_ids([np.zeros(0, dtype=np.int64), np.full(3, EOS)])
    assert same(empty, annotator.annotate([""])[0])
    assert (ends.classes.tolist(), ends.offsets.tolist()) == ([FactClass.GRAMMATICAL] * 3, [[0, 0]] * 3)


def test_id_outside_the_vocabulary_names_the_row(annotator: Annotator):
    """The tokenizer does not belong to the data: the error says where, and what to do."""
    with pytest.raises(ValueError, match=r"^row 1: token id 32000 at position 2, .*give the tokenizer of the data"):
        annotator.annotate_ids([np.array([5]), np.array([5, EOS, 32_000])])
    with pytest.raises(ValueError, match="^document 'x': token id -1 at position 0"):
        annotator.label([Document("x", "", np.array([-1], dtype=np.int32))])


def test_label_takes_texts_and_ids_annotated_or_not(
    annotator: Annotator, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each document gets the labels of its own kind, in order; the parser sees no text that is not to be annotated."""
    plain = Annotator(tokenizer_path, model=None)
    other = "Code\n\nAda wrote 7 letters."
    row = row_of(*plain.annotate([other, CURIE])).astype(np.int32)
    documents = [
        Document("a", CURIE),
        Document("b", other, annotate=False),
        Document("c", "", row, annotate=False),
        Document("d", ""),
        Document("e", "", row),
        Document("f", other),
    ]
    expected = [
        *annotator.annotate([CURIE]),
        *plain.annotate([other]),
        *plain.annotate_ids([row]),
        *annotator.annotate([""]),
        *annotator.annotate_ids([row]),
        *annotator.annotate([other]),
    ]
    seen: list[str] = []
    parse = annotator._parser.parse
    monkeypatch.setattr(annotator._parser, "parse", lambda texts: seen.extend(texts) or parse(texts))
    labelled = annotator.label(iter(documents))
    assert [same(a, b) for a, b in zip(labelled, expected, strict=True)] == [True] * 6
    assert seen == [CURIE, "", other, CURIE, other]


def test_ids_that_are_not_annotated(annotator: Annotator, tokenizer_path: Path):
    """Without a parser, or where it is not wanted, all is OTHER but </s>."""
    row = row_of(*annotator.annotate([CURIE, "Ada lived."]))
    (tokens,) = Annotator(tokenizer_path, model=None).annotate_ids([row])
    assert tokens.classes.tolist() == [FactClass.GRAMMATICAL if id == EOS else FactClass.OTHER for id in row]
    (unmarked,) = annotator.label([Document("x", "", row.astype(np.int32), annotate=False)])
    assert same(tokens, unmarked)


def test_label_names_the_document_that_is_no_text(annotator: Annotator):
    """The error of a text names the document that holds it."""
    with pytest.raises(ValueError, match=r"^document 'x': lone surrogate U\+D800 at code point 2"):
        annotator.label([Document("w", "fine"), Document("x", "ab\ud800c")])


# What the annotator says about itself


def test_fingerprint_names_everything_the_labels_depend_on(
    annotator: Annotator, tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Equal for equal set-ups; another tokenizer file, no model, or other rules change it."""
    again = Annotator(tokenizer_path)
    assert again.fingerprint == annotator.fingerprint and len(annotator.fingerprint) == 64
    changed = tmp_path / "changed.model"
    changed.write_bytes(tokenizer_path.read_bytes() + b"\x1a\x00")  # one more, empty, field: same pieces
    plain = Annotator(tokenizer_path, model=None).fingerprint
    monkeypatch.setattr("annotator.annotate.RULES_VERSION", 10**6)
    prints = {annotator.fingerprint, plain, Annotator(changed, model=None).fingerprint}
    assert len(prints | {Annotator(tokenizer_path).fingerprint}) == 4


def test_sizes_of_the_tokenizer(annotator: Annotator):
    """32,000 pieces, </s> is 2."""
    assert (annotator.vocab_size, annotator.eos_id) == (32_000, 2)


def test_import_is_light():
    """Importing the package loads neither spaCy nor torch."""
    out = python("import sys, annotator; print([m for m in ('torch', 'spacy', 'sentencepiece') if m in sys.modules])")
    assert out.strip() == "[]"


def test_labels_without_torch(annotator: Annotator, tokenizer_path: Path):
    """Where torch cannot be imported, the labels are the same."""
    code = """
        import sys
        sys.modules["torch"] = None
        from annotator import Annotator
        (tokens,) = Annotator(sys.argv[1]).annotate([sys.argv[2]])
        assert not any(name.startswith("torch.") for name in sys.modules)
        print(tokens.ids.tolist(), tokens.classes.tolist())
    """
    (tokens,) = annotator.annotate([CURIE])
    out = python(code, str(tokenizer_path), CURIE)
    assert out.strip() == f"{tokens.ids.tolist()} {tokens.classes.tolist()}"


# The share of facts


def share(annotator: Annotator, texts: Iterator[str]) -> float:
    """Factual tokens / tokens."""
    factual = total = 0
    while batch := list(itertools.islice(texts, 64)):
        for tokens in annotator.annotate(batch):
            factual += np.count_nonzero(tokens.classes == FactClass.FACTUAL)
            total += len(tokens)
    return factual / total


@pytest.mark.slow
def test_share_of_facts_on_dwiki(annotator: Annotator, shared: Path):
    """Near the 25% that the paper flags on the same corpus (830 documents, about 250,000 tokens)."""
    with open(shared / "lmlm_spans.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    assert len(texts) == 830
    assert 0.22 < share(annotator, iter(texts)) < 0.31


@pytest.mark.slow
def test_share_of_facts_on_biographies(annotator: Annotator, shared: Path):
    """Longer documents repeat more: the first 200 biographies lie lower."""
    with open(shared / "wiki_bios.jsonl.zst", "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        records = [json.loads(line) for line in itertools.islice(lines, 200)]
    assert 0.18 < share(annotator, (f"{r['title']}\n\n{r['text']}" for r in records)) < 0.28


def test_any_iterable_of_texts(annotator):
    """A generator gives what its list gives; what is no text is named."""
    assert len(annotator.annotate(text for text in ["Anna lived.", "Bob left."])) == 2
    with pytest.raises(ValueError, match="text 1: bytes instead of str"):
        annotator.annotate(["a", b"b"])
