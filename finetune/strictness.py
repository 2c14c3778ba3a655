"""Text and JSON from outside, read strictly and within bounds: a line without an end, brackets by the hundred
thousand, a name that stands twice in one object are refused, in memory that does not grow with them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TextIO

from .errors import listed

LONGEST = 1 << 24  # characters of a line or of a csv field, bytes of a row of json: twenty novels
DEEPEST = 64  # nested arrays and objects
BLOCK = 1 << 18  # bytes of json at a time: a text longer than that is looked through anew with every block
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON: maybe half a character, which no file of text can hold


class TooLong(ValueError):
    """A line that is longer than LONGEST."""

    def __init__(self):
        super().__init__(f"這一行超過 {LONGEST:,} 個字；是不是少了換行？")


class Lines:
    """The lines of a text file, in constant memory. One that is too long is passed over: it raises TooLong,
    and the next one can be asked for.

    Attributes:
        number: of the line that came last, from 1.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.number = stream, 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(LONGEST + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) <= LONGEST:
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._stream.readline(1 << 20)
        raise TooLong


class NoJson(ValueError):
    """Why a text is no JSON that is read here, in Chinese."""


def _once(pairs: list[tuple[str, object]]) -> dict:
    """Of a name that stands twice, which value is meant?"""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise NoJson(twice_named(name for name, _ in pairs))
    return row


def twice_named(names: Iterable[str]) -> str:
    return f"欄位 {listed(name for name, count in Counter(names).items() if count > 1)} 出現兩次"


_JSON = json.JSONDecoder(object_pairs_hook=_once)


def decode(text: str) -> object:
    """A value written in JSON.

    Raises:
        NoJson: it is none, deeper than DEEPEST, has a name twice or half a character.
    """
    try:
        value = _JSON.decode(text)
        deep = text.count("[") + text.count("{") > DEEPEST and _is_deeper(value, DEEPEST)
    except json.JSONDecodeError as error:
        raise NoJson(f"不是 JSON（{error}）") from error
    except RecursionError:
        deep = True
    except NoJson:
        raise
    except ValueError:  # Python's limit of digits
        raise NoJson("有一個幾千位的數字") from None
    if deep:
        raise NoJson(f"不是 JSON（巢狀超過 {DEEPEST} 層）")
    if HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NoJson("有不成字的字元（半個 surrogate），不是合法的 UTF-8") from None
    return value


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, (list, dict)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inside)


class Metered:
    """A stream that refuses to be read for too long between two rows.

    Attributes:
        since: bytes since the last row.
    """

    def __init__(self, stream):
        self._stream, self.since = stream, 0

    def read(self, count: int = -1) -> bytes:
        found = self._stream.read(count)
        self.since += len(found)
        if self.since > LONGEST:
            raise NoJson(f"一筆資料超過 {LONGEST:,} 個位元組")
        return found


def items(stream: Metered) -> Iterator[object]:
    """The items of a JSON array, or of the array `data` of a JSON object, one at a time; NoJson in the place
    of one that has a name twice.

    ijson's own `items` writes the whole path of every value: 100,000 brackets would take 25 GB.

    Raises:
        ijson.JSONError, NoJson: what is there is no JSON, nested deeper than DEEPEST, or too long.
    """
    import ijson

    depth, wanted, key, builder = 0, None, None, None  # wanted: the depth inside the array, None outside
    names: list[list[str]] = []  # of each object that is open
    twice = ""
    for event, value in _events(stream):
        opens, closes = event.startswith("start_"), event.startswith("end_")
        depth -= closes
        if wanted is not None and depth < wanted:
            wanted = None
        elif wanted is not None:
            builder = builder or ijson.ObjectBuilder()
            builder.event(event, value)
            if event == "start_map":
                names.append([])
            elif event == "map_key":
                names[-1].append(value)
            elif event == "end_map" and len(there := names.pop()) > len({*there}):
                twice = twice_named(there)
            if depth == wanted and not opens:
                yield NoJson(twice) if twice else builder.value
                builder, twice, stream.since = None, "", 0
        elif event == "map_key" and depth == 1:
            key, stream.since = value, 0
        elif event == "start_array" and (depth == 0 or (depth == 1 and key == "data")):
            wanted = depth + 1
        depth += opens
        if depth > DEEPEST:
            raise NoJson(f"不是 JSON（巢狀超過 {DEEPEST} 層）")


def _events(stream: Metered) -> Iterator[tuple[str, object]]:
    import ijson

    try:
        yield from ijson.basic_parse(stream, use_float=True, buf_size=BLOCK)
    except (ijson.JSONError, NoJson, UnicodeDecodeError):
        raise
    except ValueError:  # Python's limit of digits
        raise NoJson("有一個幾千位的數字") from None
