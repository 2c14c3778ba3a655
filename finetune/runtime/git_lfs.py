"""Pointers that git leaves in the place of large files where git-lfs has not fetched them: a few lines of
text under the name of a model or a table.
"""

from __future__ import annotations

from pathlib import Path

LONGEST = 1024  # bytes of a pointer, by the specification of git-lfs
BEGINS = b"version https://git-lfs.github.com/spec"


def is_pointer(file: Path) -> bool:
    """True for a pointer; False for any other file, and where there is none."""
    try:
        if not file.is_file() or file.stat().st_size > LONGEST:
            return False
        with file.open("rb") as stream:
            return stream.read(len(BEGINS)) == BEGINS
    except OSError:
        return False


def told(file: Path) -> str:
    """What is wrong with such a file, and the way out."""
    return (
        f"{file.name} 是 git-lfs 的指標（{file.stat().st_size} 個位元組的文字），不是檔案本身；"
        "請在那個資料夾執行 git lfs pull，或用 hf download 重新下載"
    )
