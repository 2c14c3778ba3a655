"""What is wrong with the fields of a body, in the sentences of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from finetune.runtime.errors import LONGEST_SHOWN, listed, nearest, shown
from finetune.serving.schemas import AnswerBody, ClassifyBody, FillBody, SpanBody, TagBody

Schema = Mapping[str, Any]
MOST = 5  # problems that are listed
NAMES = {"integer": "整數", "number": "數字", "boolean": "true 或 false", "null": "null"}
SIZES = {  # type -> (bound, bound, unit, name)
    "string": ("minLength", "maxLength", "個字", "文字"),
    "array": ("minItems", "maxItems", "項", "清單"),
    "object": ("minProperties", "maxProperties", "個欄位", "物件"),
}

BODIES = (FillBody, AnswerBody, ClassifyBody, TagBody, SpanBody)
FLAG = re.compile(rf"--({'|'.join(sorted({name for body in BODIES for name in body.model_fields}))})\b")


def in_fields(sentence: str) -> str:
    """Return a sentence of the command line with the fields of a body where it names the flags for them."""
    return FLAG.sub(r"\1", sentence)


def problems(errors: Sequence[Mapping[str, Any]], body: object, model: object) -> list[tuple[str, str]]:
    """Return what is wrong with a body: (field, sentence) of each field, at most MOST.

    Args:
        errors: those of pydantic.
        body: the body.
        model: the class of the body, for the values that are allowed; None where it is not known.
    """
    schema: Schema = {}
    if isinstance(model, type) and issubclass(model, BaseModel):
        schema = _schema_of(model)
    found: dict[str, str] = {}
    for error in errors:
        path, value = _walk(error, body)
        found.setdefault(_name(path), _sentence(error, path, value, schema))
    return list(found.items())[:MOST]


def _walk(error: Mapping[str, Any], body: object) -> tuple[list[str | int], object]:
    """Return where an error is, and the value there.

    pydantic's place also names the branches of a union, which are no parts of the body.
    """
    path: list[str | int] = []
    value: Any = body
    parts = list(error["loc"][1:])
    absent = parts[-1:] if error["type"] == "missing" else []
    for part in parts[: len(parts) - len(absent)]:
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            path.append(part)
            value = value[part]
    return path + absent, value


def _sentence(error: Mapping[str, Any], path: list[str | int], value: object, schema: Schema) -> str:
    field = _name(path) or "請求的內容"
    if error["type"] == "missing":
        return f"{field}：沒有給，一定要有"
    if error["type"] == "extra_forbidden":
        known = sorted({*_properties(_find(schema, path[:-1], schema), schema)})
        near = nearest(str(path[-1]), known)
        hint = f"是不是 {near[0]}？" if near else f"可以給的是 {listed(known)}" if known else "請拿掉"
        return f"{field}：沒有這個欄位；{hint}"
    own = error.get("ctx", {}).get("error")
    if isinstance(own, ValueError) and str(own):  # a validator of ours, in its own words
        return f"{field}：{own}"
    allowed = describe(_find(schema, path, schema), schema)
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return f"{field}：應為{allowed}，得到 {len(value):,} 個字"
    if isinstance(value, (list, dict)):
        *_, unit, name = SIZES["array" if isinstance(value, list) else "object"]
        return f"{field}：應為{allowed}，得到有 {len(value):,} {unit}的{name}"
    return f"{field}：應為{allowed}，得到 {_as_json(value)}"


def describe(node: Schema, root: Schema) -> str:
    """Return the values that a JSON schema allows, in words."""
    node = _resolved(node, root)
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return _either(list(map(str, choices)))
    if variants := _variants(node):
        return _either([describe(one, root) for one in variants])
    kind = node.get("type")
    if isinstance(kind, str) and kind in SIZES:
        least, most, unit, name = SIZES[kind]
        return _sized(node.get(least, 0), node.get(most), unit, name)
    if kind in ("integer", "number"):
        return _bounded(node) + NAMES[kind]
    return NAMES.get(str(kind), "別的值")


def _sized(least: int, most: int | None, unit: str, name: str) -> str:
    if most is not None:
        return f" {least:,} 到 {most:,} {unit}的{name}"
    return f"不空的{name}" if least == 1 else f" {least:,} {unit}以上的{name}" if least else name


def _bounded(node: Schema) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" {_number(low)} 到 {_number(high)} 的"
    bounds = [
        f"{words} {_number(bound)} " if words[-1] not in "上下" else f" {_number(bound)} {words}"
        for bound, words in ((low, "以上"), (above, "大於"), (high, "以下"), (below, "小於"))
        if bound is not None
    ]
    return "、".join(bounds).rstrip() + "的" if bounds else ""


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) and bound > 9999 else f"{bound:g}"


def _find(node: Schema, path: Sequence[str | int], root: Schema) -> Schema:
    """Return the part of a schema that a place in the body must follow; {} where there is none."""
    node = _resolved(node, root)
    for at, part in enumerate(path):
        for one in (node, *_variants(node)):
            one = _resolved(one, root)
            below = one.get("properties", {}).get(part) if isinstance(part, str) else one.get("items")
            if below is None and isinstance(part, str):
                below = one.get("additionalProperties")
            if isinstance(below, Mapping) and (found := _find(below, path[at + 1 :], root)):
                return found
        return {}
    return node


def _properties(node: Schema, root: Schema) -> Iterable[str]:
    for one in (node, *_variants(node)):
        yield from _resolved(one, root).get("properties", {})


def _variants(node: Schema) -> list[Schema]:
    return [*node.get("anyOf", []), *node.get("oneOf", [])]


def _resolved(node: Schema, root: Schema) -> Schema:
    name = node.get("$ref", "").rpartition("/")[2]
    return root.get("$defs", {}).get(name, {}) if name else node


@lru_cache(maxsize=64)
def _schema_of(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _either(texts: list[str]) -> str:
    texts = [text.strip() for text in dict.fromkeys(texts)]
    if len(texts) == 1:
        return " " * texts[0][0].isascii() + texts[0]
    before, after = (" " if character.isascii() else "" for character in (texts[-2][-1], texts[-1][0]))
    return f"{' ' * texts[0][0].isascii()}{'、'.join(texts[:-1])}{before}或{after}{texts[-1]}"


def _as_json(value: object) -> str:
    """Return a value as a body has it, cut where it is long."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else shown(value)


def _name(path: list[str | int]) -> str:
    """Return what a place is called: `messages[0].role`."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return field if len(field) <= LONGEST_SHOWN else field[:LONGEST_SHOWN] + "…"
