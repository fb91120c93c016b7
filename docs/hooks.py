"""What `make docs` does beyond MkDocs: the measurements of benchmarks/results become pages of the site.

In the Markdown files, links to them are relative to the repository (`../benchmarks/results/NAME.md`), so that they also
work where the files are read without the site.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KINDS = (".md", ".png", ".svg", ".json")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the measurements in the navigation."""
    pages = [f"results/{path.name}" for path in sorted(RESULTS.glob("*.md"))]
    for section in config.nav or []:
        if "Measurements" in section:
            section["Measurements"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the measurements, with their pictures and figures."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in KINDS:
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Point links to the measurements at their pages."""
    return markdown.replace("](../benchmarks/results/", "](results/")
