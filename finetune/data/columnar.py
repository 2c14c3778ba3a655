"""Rows of columnar files: parquet, and the Arrow files that `datasets` saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.headers import known_names
from finetune.runtime.errors import UserError, listed
from finetune.runtime.strict_json import decode, duplicate_keys_message

if TYPE_CHECKING:
    import pyarrow

BLOCK = 1024  # rows at a time


def read_parquet(file: Path) -> Rows:
    """Read the rows of a parquet file."""
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(file) as source:
            yield source.schema_arrow
            yield from source.iter_batches(batch_size=BLOCK)

    yield from _read_batches(batches(), file, "parquet")


def read_arrow(file: Path) -> Rows:
    """Read the rows of an Arrow stream, as `save_to_disk` writes it, or of an Arrow file (Feather)."""
    yield from _read_batches(_arrow_batches(file), file, "Arrow")


def _arrow_batches(file: Path) -> Iterator[Any]:
    """Yield the schema of an Arrow file, then its record batches."""
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            with pyarrow.ipc.open_file(file) as reader:
                yield reader.schema
                for index in range(reader.num_record_batches):
                    yield reader.get_batch(index)
            return
        source.seek(0)
        with pyarrow.ipc.open_stream(source) as reader:
            yield reader.schema
            yield from reader


def _read_batches(batches: Iterator[Any], file: Path, kind: str) -> Rows:
    """Yield (number, row) of the batches of a file, which begin with its schema.

    Raises:
        UserError: the file breaks off.
    """
    import pyarrow

    number = 0
    try:
        names = next(batches).names
        if len(names) > len({*names}):
            yield 0, Unreadable(duplicate_keys_message(names))
            return
        for batch in batches:
            if kind == "Arrow":  # reading does not check its offsets
                batch.validate(full=True)
            for start in range(0, len(batch), BLOCK):
                for row in _batch_rows(batch.slice(start, BLOCK)):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # pyarrow decodes names of columns itself
        reason = _one_line(error)
        if number:
            raise UserError(
                f"{file}：{kind} 檔在第 {number + 1} 列中斷，不完整或損壞（{reason}）；前面讀到 {number} 列"
            ) from None
        yield 0, Unreadable(f"不是 {kind}，或檔案不完整（{reason}）")
        return
    if not number:
        yield 0, Unreadable("空的檔案")


def _batch_rows(batch: pyarrow.RecordBatch) -> Iterator[dict | Unreadable]:
    """Yield the rows of a batch, one by one where some cannot be converted.

    Python has no date after 9999, and text may be no UTF-8.
    """
    try:
        rows = batch.to_pylist()
    except (OverflowError, ValueError) as error:
        if len(batch) == 1:
            yield Unreadable(f"有讀不出的值（{_one_line(error)}）")
            return
        for number in range(len(batch)):
            yield from _batch_rows(batch.slice(number, 1))
        return
    binary = [field.name for field in batch.schema if "binary" in str(field.type)]
    for row in rows:
        for name in binary:
            row[name] = _as_text(row[name])
        not_text = [name for name in binary if isinstance(row[name], bytes) and known_names([name])]
        yield Unreadable(f"{listed(not_text)} 是二進位資料，不是 UTF-8 的文字") if not_text else row


def _as_text(value: object) -> object:
    """Return text that was saved as bytes."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _one_line(error: Exception) -> str:
    """Return the first line of an error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def features_of(file: Path) -> dict:
    """Return the features that `datasets` noted in the file's metadata, {} without any."""
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix.lower() == ".parquet":
            schema = pyarrow.parquet.read_schema(file)
        else:
            schema = next(_arrow_batches(file))
        info: Any = decode((schema.metadata or {})[b"huggingface"].decode())
        return info["info"]["features"]
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError):
        return {}
