"""What is shown of a model's calls: spans, ignored tokens, the page."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from annotator import Annotator, Document
from annotator.page import PageToken, token_page
from lacy_stream.evaluate.show_calls import MarkedDocument, documents_to_html, mark_documents, to_plain
from lacy_stream.recipe import load_recipe
from lacy_stream.train.checkpoint import Checkpoint
from lacy_stream.train.model import build_model

DEMO = Path(__file__).parents[2] / "recipes" / "lacy_demo.yaml"
TEXT = (
    "Marie Curie was born in Warsaw in 1867. <b>She</b> moved to Paris and married Pierre Curie in 1895. Ada Lovelace "
    "wrote to Charles Babbage from London. The bridge over the Danube in Budapest was opened by Francis Joseph in 1849."
)


def checkpoint(tokenizer_path: Path, method: str) -> Checkpoint:
    """An untrained small model, as a run of a method would have left it."""
    recipe = load_recipe(DEMO, ["model.d_model=16", "max_seq_len=32", f"algorithms.call_mask.method={method}"])
    torch.manual_seed(0)
    model = build_model(recipe.model, max_seq_len=32, call_token_id=32_000, eos_id=2)
    return Checkpoint(model.model.eval(), tokenizer_path, 32_000, 2, 32, method, recipe, "")


def test_calls_and_ignored_tokens_have_their_shares(tokenizer_path: Path, annotator: Annotator) -> None:
    """15% of a text longer than the context is delegated; what lacy+ignorefacts ignores are facts that are not
    delegated; lacy ignores nothing."""
    (marked,) = mark_documents(checkpoint(tokenizer_path, "lacy+ignorefacts"), annotator, [Document("curie", TEXT)])
    tokens = len(marked.loss)
    assert tokens > 64 and marked.call.sum() == int(0.15 * tokens)
    assert marked.ignored.any() and not (marked.ignored & ~marked.factual).any()
    assert not (marked.ignored & marked.call).any()
    assert (marked.loss > 0).all() and ((0 < marked.call_probability) & (marked.call_probability < 1)).all()
    assert not mark_documents(checkpoint(tokenizer_path, "lacy"), annotator, [Document("curie", TEXT)])[0].ignored.any()


def test_loss_stands_at_its_token(tokenizer_path: Path, annotator: Annotator) -> None:
    """The loss of each token is that of the model's prediction from what stands before it."""
    one = checkpoint(tokenizer_path, "lacy")
    (marked,) = mark_documents(one, annotator, [Document("x", "Marie Curie was born.")])
    ids = torch.from_numpy(annotator.annotate(["Marie Curie was born."])[0].ids).long()
    with torch.no_grad():
        logits = one.model(input_ids=torch.cat([torch.tensor([2]), ids[:-1]])[None]).logits[0, :, :32_000]
    expected = torch.nn.functional.cross_entropy(logits, ids, reduction="none").numpy()
    np.testing.assert_allclose(marked.loss, expected, rtol=1e-4)


def test_the_threshold_is_one_for_all_documents(tokenizer_path: Path, annotator: Annotator) -> None:
    """15% of the tokens of all documents are called, not 15% of each; an empty one has none; what the mask of training
    wants are the facts with the highest losses, known for lacy and not for a method that draws at random."""
    documents = [Document("curie", TEXT), Document("empty", ""), Document("dull", "it is as it is and so on " * 20)]
    marked = mark_documents(checkpoint(tokenizer_path, "lacy"), annotator, documents)
    calls, tokens = ([getattr(one, name) for one in marked] for name in ("call", "loss"))
    assert sum(map(sum, calls)) == int(0.15 * sum(map(len, tokens))) and not len(calls[1])
    assert calls[0].sum() != int(0.15 * len(calls[0]))
    wanted, factual, loss = (np.concatenate([getattr(one, n) for one in marked]) for n in ("wanted", "factual", "loss"))
    assert wanted.sum() == min(int(0.15 * len(loss)), factual.sum()) and not (wanted & ~factual).any()
    assert wanted.all() if wanted.sum() == len(wanted) else loss[wanted].min() >= loss[factual & ~wanted].max(initial=0)
    assert mark_documents(checkpoint(tokenizer_path, "spacy"), annotator, documents[:1])[0].wanted is None


def test_two_models_side_by_side() -> None:
    """The page has each document once for each model, under its caption."""
    page = documents_to_html([hand_made()], [hand_made()], ["objective defer", "objective paper"])
    assert page.count('<p class="text">') == 2 and page.index("objective defer") < page.index("objective paper")
    assert page.count("<h2>") == 1


def hand_made() -> MarkedDocument:
    """A document of four tokens: the first two are called, the last is ignored."""
    flags = {"call": [1, 1, 0, 0], "ignored": [0, 0, 0, 1], "factual": [1, 1, 0, 1]}
    return MarkedDocument(
        Document("<i>x</i>", "Ada Lo<v> and 12"),
        np.array([[0, 3], [3, 9], [9, 13], [13, 16]], np.int32),
        np.array([1.5, 2.25, 0.5, 4.0], np.float32),
        np.array([0.9, 0.8, 0.1, 0.2], np.float32),
        **{name: np.array(values, bool) for name, values in flags.items()},
    )


def test_plain_text_has_brackets() -> None:
    """Neighbouring tokens share one pair of brackets, and the space before a token stays outside."""
    assert to_plain(hand_made()) == "⟦Ada Lo<v>⟧ and ⟨12⟩"


class Reader(HTMLParser):
    """The text of a page's paragraph, and the hover texts in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.hovers, self._inside = "", [], False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self._inside |= tag == "p" and values.get("class") == "text"
        if self._inside and "title" in values:
            self.hovers.append(values["title"])

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "p"

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""


def test_page_shows_the_loss_on_hover() -> None:
    """The page holds the text as it is, escaped, and each token's loss and <CALL> probability on hover."""
    page = documents_to_html([hand_made()])
    read = Reader(page)
    assert read.text == "Ada Lo<v> and 12"
    assert read.hovers == [f"loss {loss} nats, <CALL> {p}%" for loss, p in
                           [("1.50", 90), ("2.25", 80), ("0.50", 10), ("4.00", 20)]]  # fmt: skip
    assert "<i>x" not in page and "<v>" not in page
    called, ignored = (re.search(rf'class="(k\d)">{name}', page) for name in ("delegated", "ignored"))
    assert called and ignored and page.count(f'class="{called[1]}" title') == 2
    assert page.count(f'class="{ignored[1]}" title') == 1


@pytest.mark.parametrize("hostile", ['"><script>alert(1)</script>', "\x1b[31m", "\ud800", "a&b"])
def test_page_is_safe(hostile: str) -> None:
    """Markup and control characters in titles, texts and hovers reach the page as text."""
    page = token_page(
        hostile,
        [(hostile, [(hostile, [PageToken(hostile, "kind", hostile), PageToken(hostile)])])],
        {"kind": "color: red"},
    )
    assert "<script>" not in page and "\x1b" not in page
    title, heading = (re.search(rf"<{tag}>(.*?)</{tag}>", page) for tag in ("title", "h2"))
    assert title and heading and title[1] == heading[1] == html.escape(re.sub("[\x1b\ud800]", "\ufffd", hostile))
    assert "a&amp;b" in page or hostile != "a&b"
