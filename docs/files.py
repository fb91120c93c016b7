"""Rewrites the table of files in architecture.md. Run `python docs/files.py` after adding, moving or removing a file.

A file keeps its description when it moves, as long as its name is unique. A new file is described by the first
paragraph of its docstring; edit the table to say it better.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files: begin -->", "<!-- files: end -->"
ROW = re.compile(r"^\| `([a-z_/]+\.py)` \| (.*) \|$", re.MULTILINE)


def source_files() -> list[str]:
    """Every module of both packages, relative to the root; packages' `__init__.py` are left out."""
    paths = [path for package in ("annotator", "lacy_stream") for path in (ROOT / package).rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix() for path in paths if path.name != "__init__.py"]
    return sorted(names, key=lambda name: name.rpartition("/"))


def first_paragraph(name: str) -> str:
    """The first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).replace("|", "\\|").replace("<CALL>", "`<CALL>`")


def table(described: dict[str, str], names: list[str]) -> str:
    """One table for each folder."""
    moved = defaultdict(list)
    for name in described.keys() - set(names):
        moved[name.rpartition("/")[2]].append(described[name])
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        candidates = moved[file]
        description = described.get(name) or (candidates[0] if len(candidates) == 1 else first_paragraph(name))
        folders[folder].append(f"| `{name}` | {description} |")
    head = "| file | what it does |\n| --- | --- |\n"
    return "\n\n".join(f"### {folder}/\n\n{head}" + "\n".join(rows) for folder, rows in folders.items())


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    assert begin and end, f"{PAGE} has lost its markers"
    new = f"\n\n{table(dict(ROW.findall(old)), source_files())}\n\n"
    PAGE.write_text(before + begin + new + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
