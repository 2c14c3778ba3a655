"""Files of vectors, one for each row of a file: parquet, or npy with two small files beside it.

    vectors.parquet      row, id, text, embedding (a fixed-size list of float32), error
    vectors.npy          float32 (rows, dimension)
    vectors.ids.jsonl    row, id, text, error of each row of vectors.npy, in its order
    vectors.json         what the vectors are, as the metadata of the parquet file

The vector of a bad row is NaN: a null in a column of fixed-size lists is written by pyarrow, but not read
back ("Expected all lists to be of size"). Both formats say which model the vectors are of, since those of two
models cannot be compared.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy

from finetune.predict.row_handler import Record
from finetune.runtime.errors import UserError, reason
from finetune.runtime.files import atomic_open, atomic_write, read_json
from finetune.runtime.strict_json import dumps

BLOCK = 4096  # rows that are read or written together
VECTOR = "embedding"
SHOWN = ("row", "id", "text")  # columns of a row that are shown with it


@dataclass(frozen=True)
class Origin:
    """What vectors are of.

    Attributes:
        model: name of the model.
        digest: hash of its weights, its pooling and its longest text.
        pooling: name of the pooling.
        dimension: numbers of a vector.
    """

    model: str
    digest: str
    pooling: str
    dimension: int


def packed(vector: numpy.ndarray) -> str:
    """Return a vector as a text of a journal."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def unpacked(text: str | None) -> numpy.ndarray | None:
    """Return the vector in a text of a journal; None for none."""
    return None if text is None else numpy.frombuffer(base64.b64decode(text), dtype="<f4")


def companions(output: Path) -> list[Path]:
    """Return the files beside an output: of a npy its ids and its origin."""
    return [] if output.suffix.lower() != ".npy" else [_ids_file(output), output.with_suffix(".json")]


def _ids_file(output: Path) -> Path:
    return output.with_suffix(".ids.jsonl")


def write_vectors(output: Path, records: Iterable[Record], origin: Origin) -> None:
    """Write vectors, in constant memory, in the format of the output's suffix.

    Args:
        records: row, id, text, error and `embedding`, see `packed`.
    """
    (_write_npy if output.suffix.lower() == ".npy" else _write_parquet)(output, records, origin)


def _write_npy(output: Path, records: Iterable[Record], origin: Origin) -> None:
    """Write a npy file; it appears last, so that where it is the others are too."""
    missing, count = _missing(origin), 0
    with atomic_open(output, "wb") as stream:
        stream.write(_npy_header(0, origin.dimension))
        with atomic_open(_ids_file(output)) as ids:
            for record in records:
                count += 1
                vector = unpacked(record[VECTOR])
                stream.write((missing if vector is None else vector).tobytes())
                ids.write(dumps({name: record[name] for name in (*SHOWN, "error")}) + "\n")
        stream.seek(0)
        stream.write(_npy_header(count, origin.dimension))
        atomic_write(output.with_suffix(".json"), dumps({**asdict(origin), "rows": count}, indent=2) + "\n")


def _missing(origin: Origin) -> numpy.ndarray:
    """Return the vector of a bad row."""
    return numpy.full(origin.dimension, numpy.nan, dtype="<f4")


def _npy_header(count: int, dimension: int) -> bytes:
    """Return the 128 bytes before the numbers of a npy file, format 1.0 (numpy, NEP 1)."""
    shape = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{shape!s:117}\n".encode()


def _write_parquet(output: Path, records: Iterable[Record], origin: Origin) -> None:
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.list_(pyarrow.float32(), origin.dimension)
    columns = {
        "row": pyarrow.int64(), "id": pyarrow.string(), "text": pyarrow.string(), VECTOR: kind,
        "error": pyarrow.string(),
    }  # fmt: skip
    noted = {name: str(value) for name, value in asdict(origin).items()}
    schema = pyarrow.schema(list(columns.items()), metadata=noted)
    rows, missing = iter(records), _missing(origin)
    with atomic_open(output, "wb") as stream, pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        while block := list(islice(rows, BLOCK)):
            values = {name: [record[name] for record in block] for name in columns}
            vectors = [unpacked(text) for text in values[VECTOR]]
            numbers = numpy.concatenate([missing if vector is None else vector for vector in vectors])
            arrays = [pyarrow.array(values[name], type=columns[name]) for name in columns if name != VECTOR]
            embedding = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(numbers), type=kind)
            arrays.insert(list(columns).index(VECTOR), embedding)
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


# ---- reading -----------------------------------------------------------------------------------------------


def open_vectors(file: Path, flag: str) -> VectorFile | None:
    """Return a file of vectors that was written here; None for any other parquet file, or a table.

    Args:
        flag: the flag that named it, for messages.

    Raises:
        UserError: a npy file that was not written here, or that is damaged.
    """
    if file.suffix.lower() == ".npy":
        return NpyVectors(file, flag)
    if file.suffix.lower() != ".parquet":
        return None
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError):
        return None  # whoever reads its rows reports it
    noted = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in
             (schema.metadata or {}).items()}  # fmt: skip
    if VECTOR not in schema.names or any(field.name not in noted for field in fields(Origin)):
        return None
    return ParquetVectors(file, flag, noted, schema.field(VECTOR).type)


class VectorFile(ABC):
    """A file of vectors.

    Attributes:
        origin: what they are of.
    """

    origin: Origin

    def __init__(self, file: Path, flag: str):
        self.file, self.named = file, f"{flag} {file}"

    def damaged(self, why: object) -> UserError:
        """Return the error for a file that cannot be read."""
        return UserError(f"{self.named}：向量檔讀不懂（{str(why)[:200]}）；請以 --embed 原來的檔案重做")

    @abstractmethod
    def blocks(self) -> Iterator[numpy.ndarray]:
        """Yield the vectors in order, (n, dimension) at a time; NaN for a row without one."""

    @abstractmethod
    def rows(self, numbers: Iterable[int]) -> dict[int, Record]:
        """Return `row`, `id`, `text` of the rows of these numbers, from 0."""

    def _origin(self, noted: dict[str, Any]) -> Origin:
        try:
            model, digest, pooling = (str(noted[name]) for name in ("model", "digest", "pooling"))
            return Origin(model, digest, pooling, int(noted["dimension"]))
        except (KeyError, ValueError, TypeError) as error:
            raise self.damaged(error) from error


class NpyVectors(VectorFile):
    """Vectors in a npy file, see the head of this module."""

    def __init__(self, file: Path, flag: str):
        super().__init__(file, flag)
        about = file.with_suffix(".json")
        if missing := [path.name for path in companions(file) if not path.is_file()]:
            raise UserError(
                f"{self.named}：旁邊沒有 {'、'.join(missing)}（--embed 一起寫下的），"
                "不知道是哪個模型的向量、各是哪一列；請放回來，或以 --embed 重做"
            )
        self.origin = self._origin(read_json(about))
        try:
            self.array = numpy.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self.damaged(reason(error)) from error
        shape, dtype = tuple(self.array.shape), self.array.dtype
        if shape[1:] != (self.origin.dimension,) or dtype != numpy.float32:
            raise self.damaged(f"應是 float32 的（列, {self.origin.dimension}），得到 {dtype} {shape}")

    def blocks(self) -> Iterator[numpy.ndarray]:
        """Yield the vectors, see `VectorFile.blocks`."""
        for start in range(0, len(self.array), BLOCK):
            yield numpy.asarray(self.array[start : start + BLOCK])

    def rows(self, numbers: Iterable[int]) -> dict[int, Record]:
        """Return rows, see `VectorFile.rows`."""
        wanted, found = set(numbers), {}
        try:
            with _ids_file(self.file).open(encoding="utf-8") as stream:
                for number, line in enumerate(stream):
                    if number in wanted:
                        record = json.loads(line)
                        found[number] = {name: record[name] for name in SHOWN}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(f"{_ids_file(self.file).name}：{error}") from error
        if len(found) < len(wanted):
            raise self.damaged(f"{_ids_file(self.file).name} 的列數與向量不同")
        return found


class ParquetVectors(VectorFile):
    """Vectors in a parquet file, see the head of this module."""

    def __init__(self, file: Path, flag: str, noted: dict[str, str], kind: Any):
        super().__init__(file, flag)
        self.origin = self._origin(noted)
        if getattr(kind, "list_size", None) != self.origin.dimension or str(kind.value_type) != "float":
            raise self.damaged(f"embedding 欄是 {kind}，應是 {self.origin.dimension} 個 float32")

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.file) as source:
                yield from source.iter_batches(batch_size=BLOCK, columns=columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise self.damaged(reason(error)) from error

    def blocks(self) -> Iterator[numpy.ndarray]:
        """Yield the vectors, see `VectorFile.blocks`."""
        for batch in self._batches([VECTOR]):
            numbers = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            if len(numbers) != len(batch) * self.origin.dimension:
                raise self.damaged("有空的向量")
            yield numbers.reshape(len(batch), self.origin.dimension)

    def rows(self, numbers: Iterable[int]) -> dict[int, Record]:
        """Return rows, see `VectorFile.rows`."""
        wanted, found, start = sorted(numbers), {}, 0
        for batch in self._batches(list(SHOWN)):
            for number in wanted:
                if start <= number < start + len(batch):
                    found[number] = batch.slice(number - start, 1).to_pylist()[0]
            start += len(batch)
        return found
