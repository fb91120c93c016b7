"""Building blocks of a recipe: a strict base class, types of values, and one line of text for each mistake."""

from __future__ import annotations

import difflib
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Section(BaseModel):
    """A mapping with fixed keys. The docstring under a field explains its key."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True)


class OpenSection(Section):
    """A mapping that may have keys of its own beside the known ones: arguments of what it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def further(self) -> dict[str, Any]:
        """The keys that are not known, but for those that are null."""
        return {key: value for key, value in (self.model_extra or {}).items() if value is not None}


class Components(OpenSection):
    """A mapping of names to arguments. The names that are not known are Composer's, or ``package.module:Class``."""

    @model_validator(mode="after")
    def _check_arguments(self) -> Components:
        for key, value in self.further.items():
            if not isinstance(value, Mapping):
                raise ValueError(f"{key}: {value!r} is not a mapping of arguments to values")
        return self


# Numbers are strict: otherwise `true` would count as 1.
Positive = Annotated[int, Field(strict=True, gt=0)]
NotNegative = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
Fraction = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _at_least_one_or_all(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("must be at least 1, or -1 for all")
    return value


PositiveOrAll = Annotated[int, Field(strict=True), AfterValidator(_at_least_one_or_all)]


class _SectionOrNull(BeforeValidator):
    """A validator that shows in the JSON schema: the section or null."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core_schema), {"type": "null"}]}


def null_means(**values: Any) -> BeforeValidator:
    """Let ``key=null`` turn a section off: null stands for these values."""
    return _SectionOrNull(lambda value: values if value is None else value)


def plain_values(value: Any, where: str = "") -> Any:
    """The values of a YAML file as they are meant, with ``~`` at the beginning of a path expanded.

    Args:
        value: mappings, lists, texts and numbers, as YAML has them.
        where: the dotted key of the value.

    Raises:
        ValueError: a text would not mean what its writer thinks, or a number is NaN or infinite; names the key.
    """
    if isinstance(value, Mapping):
        return {key: plain_values(inner, f"{where}.{key}" if where else str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_values(inner, f"{where}.{number}") for number, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} must be a finite number")
    return _plain_text(value, where) if isinstance(value, str) else value


def _plain_text(text: str, where: str) -> str:
    if "${" in text:
        raise ValueError(f"{where}: {text!r} is an interpolation; recipes are plain values, write it out")
    if variable := re.search(r"\$[A-Za-z_]\w*", text):
        raise ValueError(
            f"{where}: {text!r} has {variable[0]}, and variables of the environment are not read: write its value out"
        )
    if text == "None":
        raise ValueError(f"{where}: {text!r} would be taken for a name; write null for nothing")
    if not re.match("~[\\w.-]*(/|$)", text):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text:
        raise ValueError(f"{where}: {text!r}: there is no such user, whose folder ~ would be: write the path out")
    return expanded


def mistakes(error: ValidationError, schema: type[Section]) -> list[str]:
    """Describe each mistake in one line: the key, its value and what to do. Unknown keys come first, because a misspelt
    key often causes a second mistake, the missing key."""
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    return [_mistake(detail, schema) for detail in details]


def _mistake(detail: Any, schema: type[Section]) -> str:
    # The names of kinds below are pydantic's types of errors.
    kind, context = detail["type"], detail.get("ctx", {})
    keys, known = _locate(detail["loc"], schema)
    path, value = ".".join(keys), "null" if detail["input"] is None else repr(detail["input"])
    if kind == "extra_forbidden":
        nearest = _nearest_key(keys, known, schema)
        return f"{path}: unknown key (value {value}); " + (
            f"the nearest known key is {nearest}" if nearest else f"known are {', '.join(known) or 'none'}"
        )
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        path += "." + context["discriminator"].strip("'")
    if kind in ("missing", "union_tag_not_found"):
        return f"{path}: missing, and it has no default"
    if kind == "union_tag_invalid":
        return f"{path}: {context['tag']!r} must be {context['expected_tags']}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path}: {value} is not a mapping of keys to values"
    if kind == "value_error" and isinstance(detail["input"], Mapping):  # from a section: the key is in the text
        return ".".join([*keys, str(context["error"])])
    if kind == "value_error":
        return f"{path}: {value} {context['error']}"
    return f"{path}: {value} {detail['msg'].replace('Input should', 'must')}"


def _locate(location: tuple[int | str, ...], schema: type[Section]) -> tuple[list[str], list[str]]:
    """Find the key of an error, as the parts of a dotted key, and the known keys of the same section."""
    keys: list[str] = []
    sections, known, is_tag = [schema], list(schema.model_fields), False
    for part in location:
        if is_tag:  # pydantic puts the name of the chosen class into the location
            is_tag = False
            continue
        keys.append(str(part))
        known = [key for section in sections for key in section.model_fields] or known
        fields = [section.model_fields[str(part)] for section in sections if str(part) in section.model_fields]
        if fields:
            sections = sections_in(fields[0].annotation)
            is_tag = fields[0].discriminator is not None
    return keys, known


def sections_in(annotation: Any) -> list[type[Section]]:
    """Find the sections in an annotation: ``[Source]`` in ``dict[str, Source] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in sections_in(part)]


def _nearest_key(keys: list[str], beside: list[str], schema: type[Section]) -> str | None:
    """Find the known key that was probably meant: a similar one in the same section, or one of that name elsewhere."""
    if near := difflib.get_close_matches(keys[-1], beside, n=1, cutoff=0.7):
        return ".".join([*keys[:-1], near[0]])
    # Last part of a dotted key -> the key. In reverse order, so that of several keys the first in the alphabet stays.
    elsewhere = {path.rpartition(".")[2]: path for path in sorted(_paths(schema), reverse=True)}
    near = difflib.get_close_matches(keys[-1], elsewhere, n=1, cutoff=0.75)
    return elsewhere[near[0]] if near else None


def _paths(schema: type[Section]) -> Iterator[str]:
    """Yield every dotted key of a schema."""
    fields: dict[str, FieldInfo] = schema.model_fields
    for key, field in fields.items():
        yield key
        for section in sections_in(field.annotation):
            yield from (f"{key}.{path}" for path in _paths(section))
