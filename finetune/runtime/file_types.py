"""File types by suffix: which can be read, and advice for the others."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SAVE = "在 Excel 按「另存新檔」，存檔類型選「CSV UTF-8」"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # both read and written
READABLE = (*SUFFIXES, ".arrow", ".xlsx")
UNPACK = "請先解壓縮，再指定裡面的檔案"
IN_A_SHEET = "把表格貼到試算表，存成 CSV UTF-8"
PICKLED = "是 pickle，打開它會執行裡面的程式；改用 to_json(orient='records', lines=True)"
CONVERSION_HINTS = {  # suffix of a file that cannot be read -> what it is, and what to do
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
    """Return the type suffix of a file name in lower case: `.csv` for x.csv and for x.csv.gz."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        return "".join(suffixes[-2:-1]) or suffixes[-1]
    return suffixes[-1] if suffixes else ""


def is_readable(file: Path, *extra: str) -> bool:
    """Return True for the name of a readable table, or of a file with one of the `extra` suffixes."""
    return suffix_of(file) in (*READABLE, *extra)


def is_named_as_file(name: str) -> bool:
    """Return True when a name can only be that of a file, readable or not."""
    suffix = Path(name).suffix.lower()
    tables = (*READABLE, ".txt")
    return suffix in (*tables, *PACKED, *CONVERSION_HINTS) or suffix_of(Path(name)) in tables
