"""Encodings of text files, found from their bytes or given by the user.

UTF-8 and UTF-16 are certain. Older Chinese encodings cannot be proved: GB18030 can read nearly any Big5, and
Big5 a short text in GBK. The share of common characters tells them apart; where it does not decide, the
readings are shown and the user chooses (`--encoding`).
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from finetune.data.bad_rows import log_once
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import PACKED

BLOCK = 1 << 20  # bytes
BOMS = (  # UTF-32 first: its BOM begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
NAMES = {  # codec -> what people call it
    "cp950": "Big5", "big5hkscs": "Big5-HKSCS", "gb18030": "GB18030（GBK）", "cp932": "Shift-JIS",
    "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-16": "UTF-16", "utf-32": "UTF-32",
}  # fmt: skip
LEGACY = ("cp950", "big5hkscs", "gb18030", "cp932")
LIKELY = 0.6  # share of common characters from which on an encoding is likely
FAR, ENOUGH = 0.2, 10  # one is better by this share, among this many different characters
SAMPLE = 16  # characters
NOT_DECODED = re.compile("[\udc80-\udcff]")  # `surrogateescape` writes a byte that is no UTF-8 so
HAN_IN_UTF8 = re.compile(rb"(?:[\xe2-\xef][\x80-\xbf]{2}){2}")
BROKEN_PACK = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

_forced: str | None = None


class UnknownEncodingError(ValueError):
    """The encoding of a file is ambiguous; the reason and the way out, in Chinese."""


@dataclass(frozen=True)
class Encoding:
    """Encoding of a file.

    Attributes:
        codec: its name in Python.
        whole: every byte can be decoded, and none is a NUL.
    """

    codec: str
    whole: bool = True


def choose_encoding(name: str | None) -> None:
    """Set the encoding of every file that is not UTF-8 (--encoding); None detects it from the bytes.

    Raises:
        UserError: Python knows no such encoding.
    """
    global _forced
    if name is not None:
        try:
            if not codecs.lookup(name)._is_text_encoding:
                raise LookupError
        except (LookupError, ValueError):
            known = "cp950（Big5）、gb18030（GBK）、utf-16"
            raise UserError(f"--encoding {name}：沒有這種編碼；例如 {known}") from None
    _forced = name


def open_bytes(file: Path) -> BinaryIO:
    """Open a file for its bytes, unpacked where its name ends with .gz, .bz2 or .xz."""
    opener: Any = PACKED.get(file.suffix.lower(), open)  # their types have no common signature
    return opener(file, "rb")


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """Open a text file; a byte that cannot be decoded becomes a character of NOT_DECODED.

    Raises:
        UnknownEncodingError: the encoding is ambiguous.
        OSError: the file cannot be read.
    """
    detected = encoding_of(file)
    errors = "surrogateescape" if detected.codec.startswith("utf-8") else "marked"
    return io.TextIOWrapper(open_bytes(file), encoding=detected.codec, errors=errors, newline=newline)


def _mark_undecoded(error: UnicodeError) -> tuple[str, int]:
    """Replace bytes that cannot be decoded, as an error handler of codecs."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("marked", _mark_undecoded)


def encoding_of(file: Path) -> Encoding:
    """Return the encoding of a file.

    Raises:
        UnknownEncodingError: the encoding is ambiguous.
        OSError: the file cannot be read.
    """
    stat = os.stat(file)
    return _encoding_of(file, stat.st_size, stat.st_mtime_ns, _forced)


@lru_cache(maxsize=4096)
def _encoding_of(file: Path, size: int, changed: int, forced: str | None) -> Encoding:
    """Detect the encoding; size and time of the file make the cache notice a change."""
    with open_bytes(file) as stream:
        blocks = _read_blocks(stream)
        first = next(blocks, b"")
        for bom, codec in BOMS:
            if first.startswith(bom):
                return Encoding(codec, codec != "utf-8-sig" or _is_utf8([first], blocks) == "whole")
        if codec := _utf16(first):
            if forced is None:
                log_once((file.parent, codec), f"{file}：沒有 BOM 的 UTF-16，照 {codec} 讀")
            return Encoding(forced or codec)
        if utf8 := _is_utf8([first], blocks):
            return Encoding("utf-8-sig", utf8 == "whole")
    if forced is not None:
        return Encoding(forced, whole=False)
    return _detect_legacy(file)


def _read_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield blocks until the end, or to where a packed file breaks off."""
    try:
        while block := stream.read(BLOCK):
            yield block
    except BROKEN_PACK:
        return


def _is_utf8(*parts: Iterable[bytes]) -> str:
    """Return "" where the blocks are no UTF-8, else "whole", "nul" or "cut".

    "nul": there are NULs. "cut": they break off within a character, and hold others that are not ASCII.
    """
    decoder, result, is_ascii = codecs.getincrementaldecoder("utf-8")(), "whole", True
    try:
        for block in chain(*parts):
            is_ascii = decoder.decode(block).isascii() and is_ascii
            result = "nul" if b"\0" in block else result
    except UnicodeDecodeError:
        return ""
    if not decoder.getstate()[0]:
        return result
    return "" if is_ascii else "cut"


def _utf16(first: bytes) -> str:
    """Return the codec of UTF-16 without a BOM, else "".

    There a NUL is the other half of each ASCII character, always on the same side.
    """
    if b"\0" not in first:
        return ""
    even = first[: len(first) & ~1]
    halves = {"utf-16-le": even[1::2].count(0), "utf-16-be": even[::2].count(0)}
    codec = max(halves, key=lambda name: halves[name])
    if halves[codec] < 4 * (sum(halves.values()) - halves[codec]) or halves[codec] * 20 < len(even):
        return ""
    text = even.decode(codec, "replace")
    unlikely = sum(
        character < "\t" or "\ue000" <= character <= "\uf8ff" or character == "\ufffd" for character in text
    )
    return codec if unlikely * 50 <= len(text) else ""


# ---- encodings before UTF-8 --------------------------------------------------------------------------------


@dataclass
class _Candidate:
    """A file decoded in one encoding.

    Attributes:
        characters: all that are not ASCII.
        sample: the first line with any of them.
        fits: every byte could be decoded so far.
    """

    codec: str
    characters: set[str] = field(default_factory=set)
    sample: str = ""
    fits: bool = True

    def __post_init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder(self.codec)()

    def take(self, line: bytes, final: bool = False) -> None:
        """Decode one more line."""
        if not self.fits:
            return
        try:
            text = self.decoder.decode(line, final)
        except UnicodeDecodeError:
            self.fits = False
            return
        letters = {character for character in text if character > "\x7f"}
        self.characters |= letters
        if letters and not self.sample:
            self.sample = sample_of(text)

    @property
    def likelihood(self) -> float:
        """Share of characters in common use."""
        kana = sum("\u3041" <= character <= "\u30fe" for character in self.characters)
        common = sum(map(_is_common, self.characters))
        if self.codec == "cp932":  # a text without kana is not Japanese
            common = common + kana if kana * 8 > len(self.characters) else 0
        return common / max(1, len(self.characters))


def sample_of(text: str) -> str:
    """Return a piece of a text from about its first character that is not ASCII."""
    text = " ".join(text.split())
    start = next((at for at, character in enumerate(text) if character > "\x7f"), 0)
    return text[max(0, start - 4) : start + SAMPLE]


def _is_common(character: str) -> bool:
    """Return whether a character is in the first plane of Big5 or GB 2312, or is punctuation."""
    if "\u3000" <= character <= "\u3017" or "\uff01" <= character <= "\uff5e" or character in "–—‘’“”…·℃":
        return True
    big5, gb = character.encode("cp950", "ignore"), character.encode("gb2312", "ignore")
    return (
        len(big5) == 2
        and b"\xa4\x40" <= big5 <= b"\xc6\x7e"
        or len(gb) == 2
        and b"\xb0\xa1" <= gb <= b"\xd7\xf9"
    )


def _detect_legacy(file: Path) -> Encoding:
    """Detect the encoding of a file that is not UTF-8; UTF-8 with a few broken lines stays UTF-8.

    Raises:
        UnknownEncodingError: the encoding is ambiguous.
    """
    candidates = [_Candidate(codec) for codec in LEGACY]
    with open_bytes(file) as stream:
        for line in _read_lines(stream):
            if not line.isascii() and HAN_IN_UTF8.search(line) and _is_utf8([line]):
                return Encoding("utf-8-sig", whole=False)
            for candidate in candidates:
                candidate.take(line)
    for candidate in candidates:
        candidate.take(b"", final=True)
    fitting = {candidate.codec: candidate for candidate in candidates if candidate.fits}
    if "cp950" in fitting:  # Big5-HKSCS extends it
        fitting.pop("big5hkscs", None)
    likely = sorted(
        (candidate for candidate in fitting.values() if candidate.likelihood >= LIKELY),
        key=lambda candidate: -candidate.likelihood,
    )
    if likely and (len(likely) == 1 or _is_far(*likely[:2])):
        best = likely[0]
        note = f"{file}：不是 UTF-8，照 {NAMES[best.codec]} 讀，例如「{best.sample}」"
        log_once(
            (file.parent, best.codec), f"{note}；不對就加 --encoding {_alternative(best.codec)} 之類的指定"
        )
        return Encoding(best.codec)
    raise UnknownEncodingError(_choices_message(likely or list(fitting.values()), bool(likely)))


def _is_far(best: _Candidate, second: _Candidate) -> bool:
    """Return whether the best candidate is clearly better than the second."""
    many = min(len(best.characters), len(second.characters)) >= ENOUGH
    return many and best.likelihood - second.likelihood >= FAR


def _alternative(codec: str) -> str:
    """Return another encoding to suggest."""
    return "gb18030" if codec != "gb18030" else "cp950"


def _choices_message(fitting: list[_Candidate], likely: bool) -> str:
    """Return the possible readings of a file, and how to choose one."""
    candidates = "、".join(f"{NAMES[candidate.codec]} 讀成「{candidate.sample}」" for candidate in fitting)
    flags = " 或 ".join(f"--encoding {candidate.codec}" for candidate in fitting)
    if likely:
        return f"不是 UTF-8，而有幾種讀法：{candidates}。看哪一種對，就加 {flags}"
    readable = f"勉強可讀的是：{candidates}；" if candidates else ""
    return (
        f"不是 UTF-8，也不像 Big5、GB18030 或 UTF-16（{readable}檔案可能損壞，或是別的編碼）。"
        "知道是哪一種就加 --encoding，例如 --encoding latin-1；不知道就用原來的程式另存成 UTF-8"
    )


def _read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines until the end, or to where a packed file breaks off."""
    try:
        while line := stream.readline(BLOCK):
            yield line
    except BROKEN_PACK:
        return


def undecoded(text: str) -> str:
    """Return why a row with NOT_DECODED cannot be read, in Chinese."""
    if _forced is not None:
        return f"不是 {_forced}（--encoding），看看是不是別的編碼"
    data = text.encode("utf-8", "surrogateescape") if "\udcff" not in text else b""
    candidates = []
    for codec in ("cp950", "gb18030", "cp932"):
        candidate = _Candidate(codec)
        candidate.take(data, final=True)
        if candidate.fits and candidate.likelihood >= LIKELY:
            candidates.append(f"{NAMES[codec]} 讀成「{candidate.sample}」")
    hint = f"；{'、'.join(candidates[:2])}" if candidates else ""
    return f"這一行不是 UTF-8，檔案裡別的行是（接過不同編碼的檔案？）{hint}；用原來的程式另存成 UTF-8"
