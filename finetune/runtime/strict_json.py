"""JSON as every reader takes it; text and JSON from outside, read strictly and within bounds: a line without
an end, brackets by the hundred thousand, a name that stands twice in one object are refused, in memory that
does not grow with them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

from finetune.runtime.errors import listed

LONGEST = 1 << 24  # characters of a line, of a csv field or of a row of json: twenty novels
LONGEST_TEXT = 1 << 20  # characters of a prompt, a question, an option: beyond every model's context
DEEPEST = 64  # nested arrays and objects
BLOCK = 1 << 16  # characters of json at a time
SPACE = re.compile("[ \\t\\n\\r\ufeff]*")
TOO_DEEP = f"不是 JSON（巢狀超過 {DEEPEST} 層）"
TOO_MANY_DIGITS = "有一個幾千位的數字"
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON: maybe half a character, which no file of text can hold


class LineTooLongError(ValueError):
    """A line that is longer than LONGEST."""

    def __init__(self):
        super().__init__(f"這一行超過 {LONGEST:,} 個字；是不是少了換行？")


def too_long(*texts: str) -> str:
    """Why texts are not given to a model: one has more than LONGEST_TEXT characters; "" where none has.
    A tokenizer would take minutes and gigabytes for it, only to find that it does not fit.
    """
    longest = max(map(len, texts), default=0)
    return f"有 {longest:,} 個字，上限是 {LONGEST_TEXT:,}" if longest > LONGEST_TEXT else ""


class BoundedLines:
    """The lines of a text file, in constant memory. One that is too long is passed over: it raises TooLong,
    and the next one can be asked for. A BOM where files were joined is no part of a line.

    Attributes:
        number: of the line that came last, from 1.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.number = stream, 0
        self._ahead: deque[str] = deque()
        self._last = "\n"

    @property
    def torn(self) -> bool:
        """True where the line that came last has no end: it is the file's last one."""
        return not self._last.endswith(("\n", "\r"))

    def __iter__(self) -> BoundedLines:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self._stream.readline(LONGEST + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._last = line
        if len(line) <= LONGEST:
            return line if line[0] != "\ufeff" else line.lstrip("\ufeff")
        while line and not line.endswith(("\n", "\r")):
            line = self._stream.readline(1 << 20)
        self._last = line
        raise LineTooLongError

    def peek(self, count: int, characters: int) -> list[str]:
        """The next lines, at most so many and about so long together; they are still to come."""
        total = sum(map(len, self._ahead))
        while len(self._ahead) < count and total < characters:
            if self._ahead and len(self._ahead[-1]) > LONGEST:
                break  # the rest of that line is still in the stream, to be passed over
            if not (line := self._stream.readline(LONGEST + 1)):
                break
            self._ahead.append(line)
            total += len(line)
        return [line.lstrip("\ufeff") for line in islice(self._ahead, count) if len(line) <= LONGEST]


def dumps(value: object, **more) -> str:
    """JSON for files and programs, Chinese as it is. What is no number (NaN, infinite) is null: `NaN` is no
    JSON, and most readers refuse a file that holds it. Takes what `json.dumps` takes.
    """
    return json.dumps(_finite(value), allow_nan=False, **{"ensure_ascii": False, **more})


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


class JsonError(ValueError):
    """Why a text is no JSON that is read here, in Chinese."""


class EndOfJsonError(JsonError):
    """It breaks off."""


def _no_duplicate_keys(pairs: list[tuple[str, object]]) -> dict:
    """Of a name that stands twice, which value is meant?"""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise JsonError(twice_named(name for name, _ in pairs))
    return row


def twice_named(names: Iterable[str]) -> str:
    return f"欄位 {listed(name for name, count in Counter(names).items() if count > 1)} 出現兩次"


# `NaN` and `Infinity`, which Python's own writer puts in, are no JSON: there is no value
_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicate_keys, parse_constant=lambda name: None)
_ANY = json.JSONDecoder(parse_constant=str, parse_int=str, parse_float=str)  # only finds where a value ends


def decode(text: str) -> object:
    """A value written in JSON; null for NaN and Infinity.

    Raises:
        NoJson: it is none, deeper than DEEPEST, has a name twice or half a character.
    """
    try:
        return _checked(_JSON.decode(text), text, 0, len(text))
    except json.JSONDecodeError as error:
        raise JsonError(f"不是 JSON（{error}）") from error
    except RecursionError:
        raise JsonError(TOO_DEEP) from None
    except JsonError:
        raise
    except ValueError:  # Python's limit of digits
        raise JsonError(TOO_MANY_DIGITS) from None


def _checked(value: object, text: str, start: int, end: int) -> object:
    """The value that stands there in the text. Raises NoJson."""
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST and _is_deeper(value, DEEPEST):
        raise JsonError(TOO_DEEP)
    if HALF.search(text, start, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JsonError("有不成字的字元（半個 surrogate），不是合法的 UTF-8") from None
    return value


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, (list, dict)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inside)


class Values:
    """The values of a JSON text one after the other, and of its arrays and objects, in constant memory."""

    def __init__(self, stream: TextIO):
        self._stream, self._text, self._at, self._ended = stream, "", 0, False

    def _fill(self, count: int) -> None:
        rest, self._text = self._text[self._at :], ""
        more = self._stream.read(count)
        self._ended = not more
        self._text, self._at = rest + more, 0

    def next_sign(self) -> str:
        """The first character of what comes next, "" at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill(BLOCK)

    def value(self) -> object:
        """What comes next, NoJson in its place where it is whole but not to be read.

        Raises:
            NoJson: it is no JSON.
            EndOfJsonError: the text ends before it does.
        """
        self.next_sign()
        count = BLOCK
        while True:
            try:
                value, end = self._decoded()
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    raise JsonError(f"不是 JSON（{error.msg}）") from None
                if self._ended:
                    self._at = len(self._text)  # nothing more is to come
                    raise EndOfJsonError(f"不是 JSON（{error.msg}），或檔案不完整") from None
            else:
                if end < len(self._text) or self._ended or self._text[end - 1] in '"}]':
                    self._at = end
                    return value
            if (room := LONGEST - len(self._text) + self._at) < 0:
                raise JsonError(f"一筆資料超過 {LONGEST:,} 個字")
            self._fill(min(count, room + 1))
            count *= 2

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """True where more text could mend it: a text, a word or a number was cut."""
        near = error.pos > len(self._text) - 16 and self._text[error.pos : error.pos + 1] not in (*"]},:",)
        return near or error.msg.startswith("Unterminated")

    def _decoded(self) -> tuple[object, int]:
        try:
            value, end = _JSON.raw_decode(self._text, self._at)
            return _checked(value, self._text, self._at, end), end
        except RecursionError:
            raise JsonError(TOO_DEEP) from None
        except json.JSONDecodeError:
            raise
        except JsonError as error:  # a name twice, half a character
            return error, _ANY.raw_decode(self._text, self._at)[1]
        except ValueError:  # Python's limit of digits
            return JsonError(TOO_MANY_DIGITS), _ANY.raw_decode(self._text, self._at)[1]

    def items(self) -> Iterator[object]:
        """Of the array that comes next. Raises as `value`."""
        self._sign("[")
        if self.next_sign() == "]":
            self._sign("]")
            return
        while True:
            yield self.value()
            if self._sign(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Of the object that comes next; the value of each is to be taken before the next one is asked for.
        Raises as `value`.
        """
        self._sign("{")
        if self.next_sign() == "}":
            self._sign("}")
            return
        while True:
            if self.next_sign() not in ('"', ""):
                raise JsonError("不是 JSON（欄位名稱要有引號）")
            name = self.value()
            self._sign(":")
            yield str(name)
            if self._sign(",}") == "}":
                return

    def _sign(self, allowed: str) -> str:
        sign = self.next_sign()
        if not sign:
            raise EndOfJsonError("不是 JSON（到檔案結尾還沒有完），或檔案不完整")
        if sign not in allowed:
            raise JsonError(f"不是 JSON（應該是 {' 或 '.join(allowed)}，得到 {sign!r}）")
        self._at += 1
        return sign
