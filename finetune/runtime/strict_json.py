"""Strict JSON: writing what every reader accepts, and reading untrusted text and JSON within limits.

A line without an end, brackets by the hundred thousand and duplicate keys are refused, in memory that does
not grow with them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TextIO

from finetune.runtime.errors import listed

LONGEST = 1 << 24  # characters of a line, of a csv field or of a row of JSON: twenty novels
LONGEST_TEXT = 1 << 20  # characters of a prompt, a question, an option: beyond every model's context
DEEPEST = 64  # nested arrays and objects
BLOCK = 1 << 16  # characters of JSON read at a time
SPACE = re.compile("[ \\t\\n\\r\ufeff]*")
TOO_DEEP = f"不是 JSON（巢狀超過 {DEEPEST} 層）"
TOO_MANY_DIGITS = "有一個幾千位的數字"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # escape in JSON that may be a lone surrogate, invalid in UTF-8


class LineTooLongError(ValueError):
    """Line of more than LONGEST characters."""

    def __init__(self):
        super().__init__(f"這一行超過 {LONGEST:,} 個字；是不是少了換行？")


def too_long(*texts: str) -> str:
    """Explain why texts are not given to a model: one exceeds LONGEST_TEXT characters; "" if none does.

    A tokenizer would take minutes and gigabytes for it, only to find that it does not fit.
    """
    longest = max(map(len, texts), default=0)
    return f"有 {longest:,} 個字，上限是 {LONGEST_TEXT:,}" if longest > LONGEST_TEXT else ""


class BoundedLines:
    """Iterator over the lines of a text file, in constant memory.

    A line that is too long raises LineTooLongError, and iteration can go on with the next one. A BOM at the
    start of a line, where files were concatenated, is dropped.

    Attributes:
        number: number of the line returned last, from 1.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.number = stream, 0
        self._ahead: deque[str] = deque()
        self._last = "\n"

    @property
    def torn(self) -> bool:
        """Return True where the line returned last has no line end: it is the last one of the file."""
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
        """Return the next lines without consuming them: at most `count`, about `characters` in all."""
        total = sum(map(len, self._ahead))
        while len(self._ahead) < count and total < characters:
            if self._ahead and len(self._ahead[-1]) > LONGEST:
                break  # the rest of that line is still in the stream, to be skipped
            if not (line := self._stream.readline(LONGEST + 1)):
                break
            self._ahead.append(line)
            total += len(line)
        return [line.lstrip("\ufeff") for line in islice(self._ahead, count) if len(line) <= LONGEST]


def dumps(value: object, **kwargs: Any) -> str:
    """Serialize a value as JSON for files and programs, without escaping Chinese.

    NaN and infinite numbers become null: `NaN` is invalid JSON, and most readers refuse a file that holds it.
    `kwargs` are those of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **{"ensure_ascii": False, **kwargs})


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class JsonError(ValueError):
    """Text that is not JSON, or JSON that is refused; the message explains why, in Chinese."""


class EndOfJsonError(JsonError):
    """JSON text that ends before its value does."""


def _no_duplicate_keys(pairs: list[tuple[str, object]]) -> dict:
    """Reject duplicate keys."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise JsonError(duplicate_keys_message(name for name, _ in pairs))
    return row


def duplicate_keys_message(names: Iterable[str]) -> str:
    """Word the message that field names occur twice."""
    return f"欄位 {listed(name for name, count in Counter(names).items() if count > 1)} 出現兩次"


# `NaN` and `Infinity`, which Python's own writer produces, are invalid JSON: they are read as null
_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicate_keys, parse_constant=lambda name: None)
_ANY = json.JSONDecoder(parse_constant=str, parse_int=str, parse_float=str)  # only to find the end of a value


def decode(text: str) -> object:
    """Parse a JSON text; NaN and Infinity become None.

    Raises:
        JsonError: invalid JSON, nested deeper than DEEPEST, duplicate keys or lone surrogates.
    """
    try:
        return _checked(_JSON.decode(text), text, 0, len(text))
    except json.JSONDecodeError as error:
        raise JsonError(f"不是 JSON（{error}）") from error
    except RecursionError:
        raise JsonError(TOO_DEEP) from None
    except JsonError:
        raise
    except ValueError:  # Python's limit on the digits of an integer
        raise JsonError(TOO_MANY_DIGITS) from None


def _checked(value: object, text: str, start: int, end: int) -> object:
    """Return the value parsed from `text[start:end]`, after the checks that the parser does not make.

    Raises:
        JsonError: nested deeper than DEEPEST, or a lone surrogate.
    """
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST and _is_deeper(value, DEEPEST):
        raise JsonError(TOO_DEEP)
    if SURROGATE.search(text, start, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JsonError("有落單的代理字元（surrogate），不是合法的 UTF-8") from None
    return value


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, (list, dict)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


class JsonStream:
    """Reader of the successive values, arrays and objects of a JSON text, in constant memory."""

    def __init__(self, stream: TextIO):
        self._stream, self._text, self._at, self._ended = stream, "", 0, False

    def _fill(self, count: int) -> None:
        rest, self._text = self._text[self._at :], ""
        block = self._stream.read(count)
        self._ended = not block
        self._text, self._at = rest + block, 0

    def peek(self) -> str:
        """Return the first character of the next value or delimiter, "" at the end."""
        while True:
            if space := SPACE.match(self._text, self._at):  # matches the empty string too
                self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill(BLOCK)

    def value(self) -> object:
        """Read the next value; return a JsonError in its place where it is complete but refused.

        Raises:
            JsonError: it is invalid JSON.
            EndOfJsonError: the text ends before the value does.
        """
        self.peek()
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
        """Return True where more text could make it valid: a string, a literal or a number was cut."""
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
        except JsonError as error:  # duplicate keys, or a lone surrogate
            return error, _ANY.raw_decode(self._text, self._at)[1]
        except ValueError:  # Python's limit on the digits of an integer
            return JsonError(TOO_MANY_DIGITS), _ANY.raw_decode(self._text, self._at)[1]

    def items(self) -> Iterator[object]:
        """Yield the items of the next array. Raises as `value`."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Yield the keys of the next object; read each value before requesting the next key.

        Raises as `value`.
        """
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            if self.peek() not in ('"', ""):
                raise JsonError("不是 JSON（欄位名稱要有引號）")
            name = self.value()
            self._take(":")
            yield str(name)
            if self._take(",}") == "}":
                return

    def _take(self, allowed: str) -> str:
        """Consume and return the next character, which must be one of `allowed`."""
        character = self.peek()
        if not character:
            raise EndOfJsonError("不是 JSON（到檔案結尾還沒有完），或檔案不完整")
        if character not in allowed:
            raise JsonError(f"不是 JSON（應該是 {' 或 '.join(allowed)}，得到 {character!r}）")
        self._at += 1
        return character
