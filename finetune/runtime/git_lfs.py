"""git-lfs pointers: a few lines of text in place of a large file that git-lfs has not fetched."""

from __future__ import annotations

from pathlib import Path

LONGEST = 1024  # bytes of a pointer, by the specification of git-lfs
PREFIX = b"version https://git-lfs.github.com/spec"


def is_pointer(file: Path) -> bool:
    """Return True for a pointer; False for any other file, and for a missing one."""
    try:
        if not file.is_file() or file.stat().st_size > LONGEST:
            return False
        with file.open("rb") as stream:
            return stream.read(len(PREFIX)) == PREFIX
    except OSError:
        return False


def pointer_problem(file: Path) -> str:
    """Word the message that a file is only a pointer, with the way out."""
    return (
        f"{file.name} 是 git-lfs 的指標（{file.stat().st_size} 個位元組的文字），不是檔案本身；"
        "請在那個資料夾執行 git lfs pull，或用 hf download 重新下載"
    )
