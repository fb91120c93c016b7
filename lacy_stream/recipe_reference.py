"""The schema of recipes -> docs/recipe.md, on stdout: ``make recipe-docs``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lacy_stream.recipe import Recipe

INTRODUCTION = """\
# Recipe reference

<!-- Made from lacy_stream/recipe.py by `make recipe-docs`. A test fails when it is not current. -->

A recipe is a YAML file that describes a run: `composer recipes/lacy_334m.yaml`.

- Values after the file name override its keys: `composer recipes/lacy_334m.yaml max_duration=10ba optimizer.lr=1e-4`.
- `key=null` turns off what can be off, such as `eval_loader=null`, `loggers=null` or `callbacks.lr_monitor=null`.
- `extends: lacy_334m.yaml` takes all values from another recipe, at a path relative to the recipe's own folder. The
  recipe then holds only what differs. Mappings are merged key by key; any other value, a list or `null`, replaces that
  of the base. The base must be a complete recipe, without an `extends` of its own.
- Values are plain data: `${...}` is refused.
- The keys of a section are listed under its name. *section or `null`* says that the section can be turned off.
- Everything is checked before anything is loaded. Each mistake is named with its key, its value and the way out.
"""


def reference() -> str:
    """The text of docs/recipe.md."""
    schema = Recipe.model_json_schema()
    sections = {name: section for name, section in schema["$defs"].items() if section.get("properties")}
    places: dict[str, list[str]] = {}
    for name, place in _places(schema, "", schema["$defs"]):
        places.setdefault(name, []).append(place)
    parts = [INTRODUCTION, _part("The whole recipe", schema)]
    parts += [_part(_title(places[name], sections[name]), sections[name]) for name in places if name in sections]
    return "\n".join(parts)


def _places(section: dict[str, Any], where: str, definitions: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The names of all sections below one, each with the key where it stands."""
    for key, field in section.get("properties", {}).items():
        for name, inner in _references(field, f"{where}{key}"):
            yield name, inner
            yield from _places(definitions[name], f"{inner}.", definitions)


def _references(field: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], place
    for choice in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _references(choice, place)
    if isinstance(named := field.get("additionalProperties"), dict):
        yield from _references(named, f"{place}.NAME")


def _title(places: list[str], section: dict[str, Any]) -> str:
    """The keys where a section stands, and its name where several may stand there."""
    name = section["properties"].get("name", {}).get("const")
    return " and ".join(f"`{place}`" for place in places) + (f", `name: {name}`" if name else "")


def _part(title: str, section: dict[str, Any]) -> str:
    required = section.get("required", ())
    rows = [
        f"| `{key}` | {_kind(field)} | {'required' if key in required else _default(field)} | {_line(field)} |"
        for key, field in section["properties"].items()
    ]
    return "\n".join(
        [f"## {title}\n", _line(section), "", "| key | value | default | meaning |", "| --- " * 4 + "|", *rows, ""]
    )


def _line(part: dict[str, Any]) -> str:
    return " ".join(part["description"].split())


def _kind(field: dict[str, Any]) -> str:
    """The values that a key may hold."""
    if choices := field.get("anyOf"):
        return " or ".join(dict.fromkeys(_kind(choice) for choice in choices))
    if "$ref" in field or "oneOf" in field:
        return "section"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field["type"] == "object":
        return "sections by name" if isinstance(field.get("additionalProperties"), dict) else "mapping"
    if field["type"] == "array":
        return (
            f"list of {len(field['prefixItems'])}: {_kind(field['prefixItems'][0])}"
            if "prefixItems" in field
            else f"list of {_kind(field['items'])}s"
        )
    names = {
        "null": "`null`",
        "boolean": "`true`, `false`",
        "string": field.get("format", "string").replace("path", "string"),
    }
    limits = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {field[limit]}" for limit, sign in limits.items() if limit in field]
    return " ".join([names.get(field["type"], field["type"]), ", ".join(bounds)]).strip()


def _default(field: dict[str, Any]) -> str:
    default = field["default"]
    return "" if isinstance(default, dict) else f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    print(reference(), end="")
