"""``python -m lacy_stream RECIPE [key=value …]``, and what ``composer RECIPE`` runs."""

from __future__ import annotations

import sys

from lacy_stream.errors import run_command
from lacy_stream.recipe import load_recipe

USAGE = """usage: composer [-n RANKS] RECIPE.yaml [key.sub=value ...]
       composer [-n RANKS] -m lacy_stream RECIPE.yaml [key.sub=value ...]

Trains what the recipe describes. Values after the recipe override its keys, for example
    composer recipes/lacy_334m.yaml max_duration=10ba global_train_batch_size=8"""


def main(argv: list[str] | None = None) -> int:
    """Run a recipe. Returns the exit code: 0, or 2 where the recipe or the data cannot be used."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0 if argv else 2
    return run_command(lambda: _train(argv[0], argv[1:]))


def _train(path: str, overrides: list[str]) -> int:
    recipe = load_recipe(path, overrides)
    from lacy_stream.train.trainer import train

    train(recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
