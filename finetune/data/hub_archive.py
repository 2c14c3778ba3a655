"""Datasets that the hub holds as one zip: unpacked for the time of the process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_readable
from finetune.runtime.files import write_errors

LARGEST = 1 << 28  # bytes of all files together; exams have a few million


def unpack(archive: Path, named: str) -> Path:
    """Unpack the tables of a zip into a folder that is removed when the process ends.

    Files are written below that folder whatever their names say (`ZipFile.extract`).

    Args:
        archive: the zip.
        named: flag and source, for messages.

    Raises:
        UserError: no zip, a broken one, or one that is too large.
        RunError: it cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="exam-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            tables = [entry for entry in packed.infolist() if is_readable(Path(entry.filename))]
            size = sum(entry.file_size for entry in tables)
            if size > LARGEST:
                raise UserError(f"{named}：{archive.name} 解開後有 {size:,} 位元組，上限是 {LARGEST:,}")
            with write_errors(f"{archive.name} 解不開到 {folder}", "請清出空間，或用 TMPDIR 換一個資料夾"):
                for entry in tables:
                    if "__MACOSX" not in PurePosixPath(entry.filename).parts:
                        packed.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{named}：{archive.name} 不是 zip，或檔案不完整（{error}）") from error
    return folder
