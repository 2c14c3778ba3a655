"""The encoding of a text file: told by its bytes, or by the person.

UTF-8 and UTF-16 are certain. Between the encodings of Chinese before them there is no proof: GB18030 can read
nearly any Big5, and Big5 a short text in GBK. What tells them apart is that a text consists of common
characters; where that does not decide, both readings are shown and the person chooses (`--encoding`).
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
from typing import BinaryIO, TextIO

from finetune.data.bad_rows import say_once
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import PACKED

BLOCK = 1 << 20  # bytes
BOMS = (  # that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
NAMES = {  # codec -> what people call it
    "cp950": "Big5", "big5hkscs": "Big5-HKSCS", "gb18030": "GB18030（GBK）", "cp932": "Shift-JIS",
    "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-16": "UTF-16", "utf-32": "UTF-32",
}  # fmt: skip
LEGACY = ("cp950", "big5hkscs", "gb18030", "cp932")
LIKELY, FAR, ENOUGH = 0.6, 0.2, 10  # share of common characters; between two of them; different characters
SAMPLE = 16  # characters
NOT_DECODED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is no UTF-8
HAN_IN_UTF8 = re.compile(rb"(?:[\xe2-\xef][\x80-\xbf]{2}){2}")
BROKEN_PACK = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

_chosen: str | None = None


class UnknownEncodingError(ValueError):
    """Which encoding a file has cannot be told; the reason and the way out, in Chinese."""


@dataclass(frozen=True)
class Encoding:
    """codec: of Python. whole: every byte can be decoded, and none is a NUL."""

    codec: str
    whole: bool = True


def choose_encoding(name: str | None) -> None:
    """What --encoding says, for every file that is no UTF-8; None: told by the bytes.

    Raises:
        UserError: Python knows no such encoding.
    """
    global _chosen
    if name is not None:
        try:
            if not codecs.lookup(name)._is_text_encoding:
                raise LookupError
        except (LookupError, ValueError):
            known = "cp950（Big5）、gb18030（GBK）、utf-16"
            raise UserError(f"--encoding {name}：沒有這種編碼；例如 {known}") from None
    _chosen = name


def open_bytes(file: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends with .gz, .bz2 or .xz."""
    return PACKED.get(file.suffix.lower(), open)(file, "rb")


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """The text of a file. A byte that cannot be decoded becomes one of NOT_DECODED.

    Raises:
        UnknownEncoding: it cannot be told.
        OSError: it cannot be read.
    """
    found = encoding_of(file)
    errors = "surrogateescape" if found.codec.startswith("utf-8") else "marked"
    return io.TextIOWrapper(open_bytes(file), encoding=found.codec, errors=errors, newline=newline)


codecs.register_error("marked", lambda error: ("\udcff", error.end))


def encoding_of(file: Path) -> Encoding:
    """Raises UnknownEncoding, OSError."""
    facts = os.stat(file)
    return _encoding_of(file, facts.st_size, facts.st_mtime_ns, _chosen)


@lru_cache(maxsize=4096)
def _encoding_of(file: Path, size: int, changed: int, chosen: str | None) -> Encoding:
    with open_bytes(file) as stream:
        blocks = _blocks(stream)
        first = next(blocks, b"")
        for bom, codec in BOMS:
            if first.startswith(bom):
                return Encoding(codec, codec != "utf-8-sig" or _is_utf8([first], blocks) == "whole")
        if codec := _utf16(first):
            if chosen is None:
                say_once((file.parent, codec), f"{file}：沒有 BOM 的 UTF-16，照 {codec} 讀")
            return Encoding(chosen or codec)
        if found := _is_utf8([first], blocks):
            return Encoding("utf-8-sig", found == "whole")
    if chosen is not None:
        return Encoding(chosen, whole=False)
    return _legacy(file)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Until the end, or to where a packed file breaks off."""
    try:
        while block := stream.read(BLOCK):
            yield block
    except BROKEN_PACK:
        return


def _is_utf8(*parts: Iterable[bytes]) -> str:
    """ "" where the blocks are no UTF-8; "whole", "nul" where there are NULs, or "cut" where they break off
    within a character that is not the only one.
    """
    decoder, found, plain = codecs.getincrementaldecoder("utf-8")(), "whole", True
    try:
        for block in chain(*parts):
            plain = decoder.decode(block).isascii() and plain
            found = "nul" if b"\0" in block else found
    except UnicodeDecodeError:
        return ""
    if not decoder.getstate()[0]:
        return found
    return "" if plain else "cut"


def _utf16(first: bytes) -> str:
    """UTF-16 without a BOM: a NUL is the other half of each ASCII character, always on the same side."""
    if b"\0" not in first:
        return ""
    even = first[: len(first) & ~1]
    halves = {"utf-16-le": even[1::2].count(0), "utf-16-be": even[::2].count(0)}
    codec = max(halves, key=halves.get)
    if halves[codec] < 4 * (sum(halves.values()) - halves[codec]) or halves[codec] * 20 < len(even):
        return ""
    text = even.decode(codec, "replace")
    odd = sum(
        character < "\t" or "\ue000" <= character <= "\uf8ff" or character == "\ufffd" for character in text
    )
    return codec if odd * 50 <= len(text) else ""


# ---- encodings before UTF-8 --------------------------------------------------------------------------------


@dataclass
class _Reading:
    """A file as one encoding has it. characters: all that are no ASCII; sample: the first line with any."""

    codec: str
    characters: set[str] = field(default_factory=set)
    sample: str = ""
    fits: bool = True

    def __post_init__(self):
        self.decoder = codecs.getincrementaldecoder(self.codec)()

    def take(self, line: bytes, final: bool = False) -> None:
        if not self.fits:
            return
        try:
            text = self.decoder.decode(line, final)
        except UnicodeDecodeError:
            self.fits = False
            return
        found = {character for character in text if character > "\x7f"}
        self.characters |= found
        if found and not self.sample:
            self.sample = sample_of(text)

    @property
    def likelihood(self) -> float:
        """The share of characters that are in common use."""
        kana = sum("\u3041" <= character <= "\u30fe" for character in self.characters)
        common = sum(map(_is_common, self.characters))
        if self.codec == "cp932":  # without its own letters it is no Japanese
            common = common + kana if kana * 8 > len(self.characters) else 0
        return common / max(1, len(self.characters))


def sample_of(text: str) -> str:
    """A piece of a text from about its first character that is no ASCII."""
    text = " ".join(text.split())
    start = next((at for at, character in enumerate(text) if character > "\x7f"), 0)
    return text[max(0, start - 4) : start + SAMPLE]


def _is_common(character: str) -> bool:
    """In the first plane of Big5 or of GB 2312, or a sign of punctuation."""
    if "\u3000" <= character <= "\u3017" or "\uff01" <= character <= "\uff5e" or character in "–—‘’“”…·℃":
        return True
    big5, gb = character.encode("cp950", "ignore"), character.encode("gb2312", "ignore")
    return (
        len(big5) == 2
        and b"\xa4\x40" <= big5 <= b"\xc6\x7e"
        or len(gb) == 2
        and b"\xb0\xa1" <= gb <= b"\xd7\xf9"
    )


def _legacy(file: Path) -> Encoding:
    """Of a file that is no UTF-8. A file that is, but for some of its lines, stays so."""
    readings = [_Reading(codec) for codec in LEGACY]
    with open_bytes(file) as stream:
        for line in _lines(stream):
            if not line.isascii() and HAN_IN_UTF8.search(line) and _is_utf8([line]):
                return Encoding("utf-8-sig", whole=False)
            for reading in readings:
                reading.take(line)
    for reading in readings:
        reading.take(b"", final=True)
    fitting = {reading.codec: reading for reading in readings if reading.fits}
    if "cp950" in fitting:  # which the other one extends
        fitting.pop("big5hkscs", None)
    likely = sorted(
        (reading for reading in fitting.values() if reading.likelihood >= LIKELY),
        key=lambda reading: -reading.likelihood,
    )
    if likely and (len(likely) == 1 or _is_far(*likely[:2])):
        best = likely[0]
        read = f"{file}：不是 UTF-8，照 {NAMES[best.codec]} 讀，例如「{best.sample}」"
        say_once((file.parent, best.codec), f"{read}；不對就加 --encoding {_other(best.codec)} 之類的指定")
        return Encoding(best.codec)
    raise UnknownEncodingError(_choices(likely or list(fitting.values()), bool(likely)))


def _is_far(best: _Reading, second: _Reading) -> bool:
    many = min(len(best.characters), len(second.characters)) >= ENOUGH
    return many and best.likelihood - second.likelihood >= FAR


def _other(codec: str) -> str:
    return "gb18030" if codec != "gb18030" else "cp950"


def _choices(readings: list[_Reading], likely: bool) -> str:
    """What a file could say, and how to choose."""
    seen = "、".join(f"{NAMES[one.codec]} 讀成「{one.sample}」" for one in readings)
    flags = " 或 ".join(f"--encoding {one.codec}" for one in readings)
    if likely:
        return f"不是 UTF-8，而有幾種讀法：{seen}。看哪一種對，就加 {flags}"
    tried = f"勉強可讀的是：{seen}；" if seen else ""
    return (
        f"不是 UTF-8，也不像 Big5、GB18030 或 UTF-16（{tried}檔案可能損壞，或是別的編碼）。"
        "知道是哪一種就加 --encoding，例如 --encoding latin-1；不知道就用原來的程式另存成 UTF-8"
    )


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    try:
        while line := stream.readline(BLOCK):
            yield line
    except BROKEN_PACK:
        return


def undecoded(text: str) -> str:
    """Why a row with NOT_DECODED cannot be read, in Chinese."""
    if _chosen is not None:
        return f"不是 {_chosen}（--encoding），看看是不是別的編碼"
    raw = text.encode("utf-8", "surrogateescape") if "\udcff" not in text else b""
    seen = []
    for codec in ("cp950", "gb18030", "cp932"):
        reading = _Reading(codec)
        reading.take(raw, final=True)
        if reading.fits and reading.likelihood >= LIKELY:
            seen.append(f"{NAMES[codec]} 讀成「{reading.sample}」")
    shown = f"；{'、'.join(seen[:2])}" if seen else ""
    return f"這一行不是 UTF-8，檔案裡別的行是（接過不同編碼的檔案？）{shown}；用原來的程式另存成 UTF-8"
