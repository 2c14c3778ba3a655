"""Types of flag values for argparse; invalid values are collected and reported together."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

HIGHEST = 2**31 - 1  # largest integer in a flag: every library accepts it
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes of a name, characters of a path: limits of file systems


class BadValue:
    """Invalid value of a flag, kept instead of raised so that all problems are reported together.

    Args:
        value: as written.
        wanted: description of valid values, in Chinese.
    """

    def __init__(self, value: str, wanted: str):
        self.value, self.wanted = value, wanted


def _reader(read: Callable[[str], object], wanted: str) -> Callable[[str], object]:
    """Wrap a conversion so that it returns a BadValue instead of raising an error."""

    def convert(text: str) -> object:
        try:
            return read(text)
        except (KeyError, ValueError, TypeError):
            return BadValue(text, wanted)

    return convert


def int_in(low: int = 0, high: int = HIGHEST) -> Callable[[str], object]:
    """Make an argparse type for an integer in [low, high]."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # 3.0 and 1e5, as written in YAML files
            if not float(text).is_integer():
                raise
            number = int(float(text))
        if not low <= number <= high:
            raise ValueError
        return number

    limit = f"（最多 {HIGHEST}）" if high == HIGHEST else ""
    return _reader(read, f"{low} 以上的整數{limit}" if limit else f"{low} 到 {high} 的整數")


def float_in(low: float = 0.0, high: float | None = None, above: bool = False) -> Callable[[str], object]:
    """Make an argparse type for a finite number in [low, high]; `above` excludes `low` itself."""

    def read(text: str) -> float:
        value = float(text)
        large_enough = low < value if above else low <= value  # False for NaN
        if not large_enough or value == float("inf") or (high is not None and value > high):
            raise ValueError
        return value

    if high is not None:
        bound = f"大於 {low:g}" if above else f"{low:g} 以上"
        return _reader(read, f"{bound}、最多 {high:g} 的數")
    return _reader(read, f"大於 {low:g} 的數" if above else f"{low:g} 以上的數")


def path(text: str) -> object:
    """Convert the name of a file, a folder or a hub repository: an argparse type.

    `~` is expanded to the home folder, since a shell leaves `--flag=~/x` as it is.
    """

    def read(raw: str) -> str:
        if not raw.strip():  # an unset shell variable
            raise ValueError
        expanded = os.path.expanduser(raw)
        longest_name = max(map(len, os.fsencode(expanded).split(b"/")))
        if len(expanded) > LONGEST_PATH or longest_name > LONGEST_NAME:
            raise ValueError
        if expanded.startswith("~") or "\0" in expanded:
            raise ValueError
        return expanded

    wanted = f"檔案、資料夾或 hub 上的名稱（不能是空的；一段最多 {LONGEST_NAME} 個位元組；~ 是家目錄）"
    return _reader(read, wanted)(text)


def choice(*choices: str) -> Callable[[str], object]:
    """Make an argparse type for one of the given words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return _reader(read, "、".join(choices) + " 其中之一")


def choices(*choices: str) -> Callable[[str], object]:
    """Make an argparse type for several of the given words: comma-separated, `all` or `none`.

    The result has the order given here.
    """

    def read(text: str) -> list[str]:
        chosen = {part.strip() for part in re.split(r"[,，、]", text) if part.strip()}
        if chosen in ({"all"}, {"none"}):
            return list(choices) if chosen == {"all"} else []
        if not chosen or chosen - set(choices):
            raise ValueError
        return [choice for choice in choices if choice in chosen]

    return _reader(read, f"all、none，或以逗號分開的 {'、'.join(choices)}")


def ratios(text: str) -> object:
    """Convert three ratios that add up to 1, such as 0.70,0.25,0.05: an argparse type."""

    def read(raw: str) -> tuple[float, ...]:
        parts = tuple(float(part) for part in raw.split(","))
        if len(parts) != 3 or min(parts) < 0 or parts[0] == 0 or not abs(sum(parts) - 1) < 1e-6:
            raise ValueError
        return parts

    return _reader(read, "三個相加為 1 的數（訓練、驗證、保留），例如 0.70,0.25,0.05")(text)


def comma_list(text: str) -> object:
    """Convert comma-separated words, such as 好,晴朗,下雨: an argparse type."""

    def read(raw: str) -> list[str]:
        parts = [part.strip() for part in re.split(r"[,，、]", raw)]
        if not all(parts):
            raise ValueError
        return list(dict.fromkeys(parts))

    return _reader(read, "以逗號分開的詞，例如 好,晴朗,下雨")(text)


def stop_string(text: str) -> object:
    r"""Convert a stop string, in which `\n` and `\t` stand for a line break and a tab: an argparse type."""

    def read(raw: str) -> str:
        if not raw:
            raise ValueError
        return raw.replace("\\n", "\n").replace("\\t", "\t")

    return _reader(read, "至少一個字")(text)


def true_or_false(text: str) -> object:
    """Convert true or false (yes, no, 1, 0): an argparse type."""

    def read(raw: str) -> bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[raw.lower()]

    return _reader(read, "true 或 false")(text)


def key_value(text: str) -> object:
    """Convert KEY=VALUE to (key, value): an argparse type.

    The value is read as YAML, and is such as JSON has too (false, 3, text, lists, mappings): it goes to a
    program in another process and into results.json. A date stays the text it is written as.
    """

    def read(raw: str) -> tuple[str, Any]:
        import yaml

        key, equals, value = raw.partition("=")
        if not key.isidentifier() or not equals:
            raise ValueError
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader)
            if node and node.tag == "tag:yaml.org,2002:timestamp":
                return key, node.value
            parsed = yaml.SafeLoader("").construct_document(node) if node else None
            json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()
        except (yaml.YAMLError, RecursionError):
            raise ValueError from None
        return key, parsed

    return _reader(
        read, "名稱=值，例如 enable_thinking=false（值是 true、數、文字，或它們的 [一串]、{名稱: 值}）"
    )(text)
