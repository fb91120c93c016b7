"""``python -m lacy_stream RECIPE [key=value …]``, and what ``composer RECIPE`` runs."""

from __future__ import annotations

import sys

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
    try:
        recipe = load_recipe(argv[0], argv[1:])
        from lacy_stream.train import train

        train(recipe)
    except (ValueError, RuntimeError) as error:
        if type(error).__module__.split(".")[0] != "lacy_stream":
            raise  # not one of our messages, which say what to do: keep the traceback
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
