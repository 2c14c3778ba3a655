"""Kinds of files by their names: which can be read, and what to do with the others."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SAVE = "在 Excel 按「另存新檔」，存檔類型選「CSV UTF-8」"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # that are written too
READABLE = (*SUFFIXES, ".arrow", ".xlsx")
UNPACK = "請先解壓縮，再指定裡面的檔案"
IN_A_SHEET = "把表格貼到試算表，存成 CSV UTF-8"
PICKLED = "是 pickle，打開它會執行裡面的程式；改用 to_json(orient='records', lines=True)"
WAYS_OUT = {  # kinds of files that are not read, and what to do
    ".xls": f"是舊的 Excel 格式；{SAVE}",
    ".xlsm": f"是有巨集的 Excel；{SAVE}",
    ".xlsb": f"是二進位的 Excel；{SAVE}",
    ".ods": "是 LibreOffice 試算表；按「另存新檔」，存成 CSV，字元集選 UTF-8",
    ".numbers": "是 Numbers 試算表；按「輸出至」選 CSV，文字編碼選 UTF-8",
    ".doc": f"是 Word 文件；{IN_A_SHEET}",
    ".docx": f"是 Word 文件；{IN_A_SHEET}",
    ".pdf": f"是 PDF；{IN_A_SHEET}",
    **dict.fromkeys((".zip", ".rar", ".7z", ".tar", ".tgz", ".zst"), f"是壓縮檔；{UNPACK}"),
    **dict.fromkeys((".pkl", ".pickle"), PICKLED),
    **dict.fromkeys((".yaml", ".yml", ".xml"), "不是表格；改存成 JSON 或 CSV UTF-8"),
    ".html": "是網頁；下載的時候要用「原始檔案」（raw）的連結",
    ".gzip": "是 gzip 壓縮檔；副檔名要有 .gz，例如 x.csv.gz",
    ".png": "是圖片，沒有可讀的文字",
    ".feather": "是 Feather；把副檔名改成 .arrow",
}


def suffix_of(file: Path) -> str:
    """What a file's name says it is: `.csv` of x.csv and of x.csv.gz, in small letters."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        return "".join(suffixes[-2:-1]) or suffixes[-1]
    return suffixes[-1] if suffixes else ""


def is_readable(file: Path, *more: str) -> bool:
    """True for a file that its name says can be read: a table, or one of the suffixes named."""
    return suffix_of(file) in (*READABLE, *more)


def is_named_as_file(name: str) -> bool:
    """True where a name can only be that of a file, of whatever kind."""
    suffix = Path(name).suffix.lower()
    return suffix in (*READABLE, ".txt", *PACKED, *WAYS_OUT) or suffix_of(Path(name)) in (*READABLE, ".txt")
