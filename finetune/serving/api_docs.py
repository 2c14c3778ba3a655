"""openapi.json as the page at /docs lists it: paths with their fields, examples and errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from finetune.runtime.strict_json import dumps
from finetune.serving.openapi import ZH_SUMMARY
from finetune.serving.schemas import ZH

Schema = dict[str, Any]
BOUNDS = {  # keyword of JSON Schema -> how it is written
    "minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMinimum": "> {}", "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}", "maxLength": "length ≤ {}",
    "minItems": "items ≥ {}", "maxItems": "items ≤ {}",
    "minProperties": "entries ≥ {}", "maxProperties": "entries ≤ {}",
}  # fmt: skip
DEEPEST = 4  # levels of objects within objects that are listed


class Text(NamedTuple):
    """A text in both languages; the English one where there is no Chinese."""

    en: str
    zh: str


class Field(NamedTuple):
    """A field of a request or an answer."""

    name: str
    type: str
    needed: bool
    default: str
    limits: str
    text: Text


class Operation(NamedTuple):
    """A method of a path."""

    path: str
    method: str
    summary: Text
    text: Text
    fields: list[Field]
    answers: list[Field]
    curl: str
    answer: str
    errors: list[tuple[str, Text]]

    @property
    def anchor(self) -> str:
        """Name of its place in the page."""
        return re.sub(r"\W+", "-", self.method + self.path).strip("-").lower()


def described_paths(schema: Schema) -> list[Operation]:
    """Return every operation of an OpenAPI schema, in its order."""
    return [
        _operation(schema, path, method.upper(), operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _operation(schema: Schema, path: str, method: str, operation: Schema) -> Operation:
    body = (operation.get("requestBody") or {}).get("content", {}).get("application/json", {})
    responses = operation.get("responses", {})
    good = responses.get("200", {}).get("content", {}).get("application/json", {})
    return Operation(
        path=path,
        method=method,
        summary=_text(operation, "summary", ZH_SUMMARY),
        text=_text(operation),
        fields=list(_fields(schema, body.get("schema", {}))),
        answers=list(_fields(schema, good.get("schema", {}))),
        curl=_curl(path, method, body),
        answer=dumps(good["example"], indent=2) if "example" in good else "",
        errors=[(status, _text(one)) for status, one in sorted(responses.items()) if status[0] in "45"],
    )


def _curl(path: str, method: str, body: Schema) -> str:
    words = [f"curl http://127.0.0.1:8000{path}"]
    if method == "POST":
        words.append("-H 'Content-Type: application/json'")
        words.append(f"-d {shlex.quote(dumps(body.get('example', {})))}")
    return " \\\n  ".join(words)


def _text(described: Schema, key: str = "description", zh: str = ZH) -> Text:
    text = str(described.get(key, "")).strip()
    return Text(text, str(described.get(zh, text)))


def _resolved(schema: Schema, part: Schema) -> Schema:
    """Return what a reference points to; the part itself where it is none."""
    if "$ref" not in part:
        return part
    name = part["$ref"].rsplit("/", 1)[-1]
    return {**schema["components"]["schemas"].get(name, {}), **{k: v for k, v in part.items() if k != "$ref"}}


def _fields(schema: Schema, part: Schema, prefix: str = "", depth: int = 0) -> Iterator[Field]:
    """Yield the fields of an object, and of the objects in it, their names joined by dots."""
    part = _resolved(schema, part)
    for name, field in part.get("properties", {}).items():
        field = _resolved(schema, field)
        needed = name in part.get("required", ())
        default = dumps(field["default"]) if field.get("default") is not None else ""
        limits = ", ".join(dict.fromkeys(_limits(schema, field)))
        yield Field(prefix + name, _type(schema, field), needed, default, limits, _text(field))
        if depth < DEEPEST:
            for inner, mark in _inner(schema, field):
                yield from _fields(schema, inner, f"{prefix}{name}{mark}.", depth + 1)


def _inner(schema: Schema, field: Schema) -> Iterator[tuple[Schema, str]]:
    """Yield the objects within a field, and what stands behind its name for them."""
    for one in _choices(schema, field):
        if "properties" in one:
            yield one, ""
        items = _resolved(schema, one.get("items", {}))
        if "properties" in items:
            yield items, "[]"


def _choices(schema: Schema, field: Schema) -> list[Schema]:
    """Return the schemas that a value may follow: one, or several of anyOf."""
    choices: list[Schema] = field.get("anyOf") or field.get("oneOf") or [field]
    return [_resolved(schema, one) for one in choices]


def _type(schema: Schema, field: Schema) -> str:
    """Return the type of a field in words: `integer`, `array of string`, `string or null`."""
    words = []
    for one in _choices(schema, field):
        word = str(one.get("type", "any"))
        if "enum" in one or "const" in one:
            values: list[Any] = one["enum"] if "enum" in one else [one["const"]]
            word = " | ".join(map(dumps, values))
        elif word == "array" and "items" in one:
            word = f"array of {_type(schema, _resolved(schema, one['items']))}"
        words.append(word)
    return " or ".join(dict.fromkeys(words))


def _limits(schema: Schema, field: Schema) -> Iterator[str]:
    for one in _choices(schema, field):
        yield from (words.format(f"{one[key]:g}") for key, words in BOUNDS.items() if key in one)
