"""The jobs of --embed, a vector for each row of a file or the rows nearest to a text, and --hidden_states."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from finetune.cli.inference_args import POOLINGS, InferenceArgs, required
from finetune.data.bad_rows import Rows
from finetune.predict.batch_file import process_file
from finetune.predict.embedder import Embedder, body_for_vectors
from finetune.predict.file_columns import text_of
from finetune.predict.loading import FLAG, load_for_use, set_precision
from finetune.predict.row_handler import Record, Row, RowHandler, storable_text
from finetune.predict.text_rows import find_text_column, read_text_rows
from finetune.predict.vector_files import (
    VECTOR,
    Origin,
    VectorFile,
    companions,
    open_vectors,
    packed,
    unpacked,
    write_vectors,
)
from finetune.runtime import console, hub
from finetune.runtime.errors import UserError
from finetune.runtime.server_address import is_server

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed

SHOWN_CHARACTERS = 60  # of a text on the screen
Found = list[tuple[float, Record]]  # (similarity, row), nearest first


def run_embed_command(flags: InferenceArgs) -> int | None:
    """Do what --embed or --hidden_states ask for. Returns the exit code; None is 0.

    Raises:
        UserError: a model or a file that cannot be used, vectors of another model.
    """
    if is_server(flags.model_path):
        raise UserError(f"{FLAG} {flags.model_path}：伺服器上的模型拿不到向量；請給資料夾或 hub 上的名稱")
    if flags.hidden_states:
        from finetune.predict.hidden_states import show_hidden_states

        if console.is_main_process():
            show_hidden_states(flags, *load_body(flags, None)[:3])
        return None
    if flags.nearest is not None:
        if console.is_main_process():
            show_nearest(flags)
        return None
    return write_file(flags)


def load_body(
    flags: InferenceArgs, world: Distributed | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, torch.device, bool]:
    """Load the model of --model_path, whatever its head.

    Returns:
        (model, tokenizer, device, whether models/encoder.py is to compute in bf16).
    """
    from finetune.models import cpu, encoder
    from finetune.models.loading import LoadOptions

    where = world.device if world else "cpu" if flags.cpu else None
    cpu.tune_malloc()
    options = LoadOptions(allow_pickle=flags.allow_pickle, any_head=True)
    model, tokenizer, device = load_for_use(flags.model_path, where, FLAG, options)
    fast = flags.precision == "bf16" and device.type == "cpu" and not flags.hidden_states
    if fast and encoder.is_supported(body_for_vectors(model)):
        return model, tokenizer, device, True
    set_precision(model, flags.precision, device)
    return model, tokenizer, device, False


def load_embedder(flags: InferenceArgs, world: Distributed | None, origin: Origin | None = None) -> Embedder:
    """Return the model of --model_path with the pooling of --pooling.

    Args:
        origin: of vectors to be compared with; their pooling is taken where --pooling is not given.
    """
    model, tokenizer, device, bf16 = load_body(flags, world)
    embedder = Embedder(model, tokenizer, device, flags.pooling, bf16)
    asked = origin is not None and flags.pooling == "auto" and origin.pooling in POOLINGS
    if asked and origin and embedder.digest != origin.digest:
        embedder = Embedder(model, tokenizer, device, origin.pooling, bf16)
    brought = (
        "模型附的" if embedder.pooling.brought else "模型沒有附" if flags.pooling == "auto" else "--pooling"
    )
    prompt = f"，每段前面加「{embedder.pooling.prompt}」" if embedder.pooling.prompt else ""
    console.log(f"向量：{embedder.pooling.name}（{brought}），{embedder.dimension} 維{prompt}")
    return embedder


# ---- files -------------------------------------------------------------------------------------------------


class EmbeddingRows(RowHandler[Any, str]):
    """Texts that become vectors."""

    columns = {"row": "whole", "id": "text", "text": "text", VECTOR: "numbers", "error": "text"}
    flag = "--embed"
    doing, did, failed, kept = "算向量", "有向量的", "沒有向量", "算好的"
    round_size = 512

    def __init__(self, flags: InferenceArgs, embedder: Embedder):
        super().__init__(flags, embedder)
        self.embedder, source = embedder, Path(required(flags.embed))
        self.column = find_text_column(source, flags.text_column, "--embed")

    def read(self, source: Path) -> Rows:
        """Yield (line, row) of the file; the lines of a .txt are rows."""
        return read_text_rows(source, self.flags.text_column)

    def identity(self, source: Path) -> dict[str, Any]:
        """Return what must be the same for a run to continue."""
        return {
            "input": self.digest_of(source), "model": self.embedder.digest, "text_column": self.column,
            "precision": self.flags.precision, "pooling": self.embedder.pooling.name,
        }  # fmt: skip

    def new_record(self, number: int, row: Row) -> Record:
        """Return the record of a row that has no vector yet."""
        text = row.get(self.column) if isinstance(row, dict) else None
        return super().new_record(number, row) | {"text": storable_text(text)}

    def read_row(self, record: Record, row: Row) -> str:
        """Read the text."""
        return text_of(row, self.column)

    def predict(self, pending: list[tuple[Record, str]]) -> None:
        """Write the vectors into the records."""
        for record, vector in self.each(pending, lambda texts: list(self.embedder(texts))):
            record[VECTOR] = packed(vector)

    def origin(self) -> Origin:
        """Return what the vectors are of."""
        model = Path(self.flags.model_path).name or self.flags.model_path
        return Origin(model, self.embedder.digest, self.embedder.pooling.name, self.embedder.dimension)

    def write(self, output: Path, records: Iterable[Record]) -> None:
        """Write the vectors, see predict/vector_files.py."""
        write_vectors(output, records, self.origin())

    def where_errors(self, output: Path) -> str:
        """Return where the errors of all rows are found."""
        beside = companions(output)
        return f"{beside[0] if beside else output} 的 error 欄"

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return what the vectors are, for --json."""
        origin = self.origin()
        return [], {"dimension": origin.dimension, "pooling": origin.pooling}


def write_file(flags: InferenceArgs) -> int:
    """Write the vectors of --embed to --output, on all ranks; a run that was killed goes on.

    Returns:
        the exit code: 2 when --strict and a row has no vector.
    """
    from finetune.runtime.distributed import Distributed

    output, source = Path(required(flags.output)), Path(required(flags.embed))
    begun = output.with_name(output.name + ".part").exists()
    if not begun and not flags.overwrite:
        for path in (output, *companions(output)):
            if path.exists():
                raise UserError(f"--output {output}：{path} 已經存在；換一個名字，或加 --overwrite 重算")
    if open_vectors_of(source):
        raise UserError(f"--embed {source} 已經是向量檔；要查最接近的列請加 --nearest TEXT")
    find_text_column(source, flags.text_column, "--embed")  # before a model is loaded
    hub.prepare_for(flags.model_path)
    world = Distributed.init(flags.cpu, doing="算向量")
    embedder = load_embedder(flags, world)
    code = process_file(flags, source, lambda: EmbeddingRows(flags, embedder), world)
    world.shutdown()
    return code


def open_vectors_of(source: Path) -> VectorFile | None:
    """Return --embed as a file of vectors; None for a file of texts."""
    return open_vectors(source, "--embed")


# ---- the nearest rows --------------------------------------------------------------------------------------


def show_nearest(flags: InferenceArgs) -> None:
    """Print the rows of --embed that are nearest to --nearest, by the cosine of their vectors.

    Raises:
        UserError: vectors of another model; no row has a vector.
    """
    source, text = Path(required(flags.embed)), required(flags.nearest)
    vectors = open_vectors_of(source)
    if vectors is None:
        find_text_column(source, flags.text_column, "--embed")
    elif flags.text_column:
        console.log(f"⚠️ --text_column {flags.text_column} 沒有作用：--embed {source} 是向量檔")
    embedder = load_embedder(flags, None, vectors.origin if vectors else None)
    query = embedder([text])[0]
    if vectors is None:
        found = _nearest_texts(flags, embedder, query)
    else:
        _check_origin(flags, vectors, embedder)
        best = _top(_similarities(vectors.blocks(), query), flags.top_k)
        rows = vectors.rows(number for _, number in best)
        found = [(similarity, rows[number]) for similarity, number in best]
    if not found:
        raise UserError(f"--embed {source}：一列也沒有向量")
    _print_nearest(flags, found)


def _check_origin(flags: InferenceArgs, vectors: VectorFile, embedder: Embedder) -> None:
    """Refuse vectors that another model or another pooling made.

    Raises:
        UserError: with what differs.
    """
    origin = vectors.origin
    if origin.digest == embedder.digest:
        return
    same = f"{origin.model}、{origin.pooling}、{origin.dimension} 維"
    ours = f"{Path(flags.model_path).name}、{embedder.pooling.name}、{embedder.dimension} 維"
    raise UserError(
        f"{vectors.named} 是另一個模型或另一種 pooling 的向量（{same}），{FLAG} 這個是（{ours}），"
        "兩者不能相比；請用同一個模型與 --pooling，或以 --embed 原來的檔案重做"
    )


def _similarities(blocks: Iterable[numpy.ndarray], query: numpy.ndarray) -> Iterator[tuple[float, int]]:
    """Yield (cosine, number) of the vectors; a vector of NaN is left out."""
    query = query / max(float(numpy.linalg.norm(query)), 1e-12)
    number = 0
    for block in blocks:
        lengths = numpy.linalg.norm(block, axis=1).clip(1e-12)
        for cosine in (block @ query / lengths).tolist():
            if cosine == cosine:
                yield cosine, number
            number += 1


def _top(similarities: Iterable[tuple[float, Any]], count: int) -> list[tuple[float, Any]]:
    """Return the largest, best first; of equals the first."""
    return heapq.nsmallest(count, similarities, key=lambda pair: -pair[0])


def _nearest_texts(flags: InferenceArgs, embedder: Embedder, query: numpy.ndarray) -> Found:
    """Return the nearest of a file of texts, whose vectors are not kept."""
    from tqdm import tqdm

    source = Path(required(flags.embed))
    handler = EmbeddingRows(flags, embedder)
    bad: list[str] = []

    def records() -> Iterator[tuple[float, Record]]:
        rows = enumerate(handler.read(source), 1)
        bar = tqdm(desc=handler.doing, unit="列", dynamic_ncols=True, disable=not sys.stderr.isatty())
        with bar:
            while block := list(islice(rows, flags.batch_size or handler.round_size)):
                bar.update(len(block))
                for record in handler.answer(block):
                    vector = unpacked(record[VECTOR])
                    if vector is None:
                        bad.append(f"  第 {record['row']} 列：{record['error']}")
                        continue
                    ((cosine, _),) = _similarities([vector[None]], query)
                    yield cosine, {name: record[name] for name in ("row", "id", "text")}

    found = _top(records(), flags.top_k)
    if bad:
        console.log(f"{source}：{len(bad)} 列{handler.failed}：")
        for line in bad[:3]:
            console.log(line)
    return found


def _print_nearest(flags: InferenceArgs, found: Found) -> None:
    if flags.json:
        for similarity, row in found:
            console.print_result(console.as_json({**row, "similarity": round(similarity, 6)}))
        return
    console.print_result(f"文字: {flags.nearest}\n\n最接近的 {len(found)} 列（餘弦相似度）:")
    for place, (similarity, row) in enumerate(found, 1):
        text = console.plain(row["text"] or "", lines=False)
        text = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
        name = "" if row["id"] in (None, str(row["row"])) else f"，id {console.plain(row['id'], lines=False)}"
        console.print_result(f"  {place}. {similarity:.4f}  {text}（第 {row['row']} 列{name}）")
