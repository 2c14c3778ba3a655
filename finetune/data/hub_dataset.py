"""Files of a dataset: a local file or folder, or one snapshot of a dataset on the hub."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune.data import hub_archive
from finetune.data.data_files import DataFile, data_file, data_files
from finetune.data.dataset_card import README
from finetune.data.known_exams import known_exam
from finetune.runtime.errors import UserError, nearest
from finetune.runtime.file_types import READABLE
from finetune.runtime.hub import cannot_fetch, looks_local

# patterns of fnmatch: *.csv also matches data/x.csv
DATA_FILES = [f"*{suffix}{packed}" for suffix in (*READABLE, ".txt") for packed in ("", ".gz")]
DATA_FILES += [README]  # which may name the classes


def find_files(
    source: str, revision: str, flag: str, with_texts: bool = False, extra: tuple[str, ...] = ()
) -> tuple[Path, list[DataFile], str]:
    """Return the files of a dataset that is a file, a folder, or a name on the hub.

    A short name of `known_exams` stands for its repository.

    Args:
        with_texts: a .txt counts as well.
        extra: suffixes of files of the task's own, which count as well.

    Returns:
        the folder, the files, and the origin in words: a path, or name, revision and commit.

    Raises:
        UserError: not there, or cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path, data_files(path, with_texts, extra), str(path)
    if path.exists():
        return path.parent, data_file(path), str(path)
    if looks_local(source):
        raise UserError(_missing_message(path, f"{flag} {source}"))
    folder, commit = fetch_dataset(source, revision, flag, extra)
    known = known_exam(source)
    name = known.repository if known else source
    where = f"({commit[:12]})" if revision == commit else f"{revision} ({commit[:12]})"
    if known and known.archive and (folder / known.archive).is_file():  # another revision may have none
        folder = hub_archive.unpack(folder / known.archive, f"{flag} {source}")
    return folder, data_files(folder, with_texts, extra), f"{name} {where}"


def _missing_message(path: Path, named: str) -> str:
    """Return the message for a path that is not there, with the nearest name in its folder."""
    folder = path.parent
    if not folder.is_dir():
        return f"{named}：沒有這個檔案或資料夾（也沒有 {folder} 這個資料夾）"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        names = []
    guess = nearest(path.name, names)
    hint = f"；是不是 {folder / guess[0]}？" if guess else ""
    return f"{named}：沒有這個檔案或資料夾{hint}"


def fetch_dataset(
    name: str, revision: str, flag: str = "--dataset", extra: tuple[str, ...] = ()
) -> tuple[Path, str]:
    """Fetch a dataset on the hub as a folder: one snapshot of its data files, not one request a subject.

    Of an exam of `known_exams` only the files with its questions are fetched.

    Args:
        extra: suffixes of files that are fetched beside the usual ones.

    Returns:
        the folder, and the commit it holds.

    Raises:
        UserError: it could not be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    known = known_exam(name)
    patterns, left_out = [*DATA_FILES, *(f"*{suffix}" for suffix in extra)], None
    if known:
        name, left_out = known.repository, list(known.leave_out) or None
        patterns = [*(known.only or DATA_FILES), README, *filter(None, [known.archive])]
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=patterns, ignore_patterns=left_out,
            max_workers=16,
        )  # fmt: skip
    except Exception as error:  # the hub's, its HTTP client's or the disk's: each says why
        why = f"{known.unavailable}。{error}" if known and known.unavailable else error
        raise cannot_fetch("資料集", f"{name}（--revision {revision}）", flag, why) from error
    return Path(folder), Path(folder).name
