"""Evaluate a saved encoder-decoder on pairs of texts: `--exam pairs.jsonl --report DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.text_pairs import PairOptions, TextPair, TextPairDataset, read_text_pairs
from finetune.evaluation.text_overlap import compute_metrics, overlap_records
from finetune.predict.loading import load_comparison_model
from finetune.predict.row_exam import Measured, run_row_exam
from finetune.predict.seq2seq import Seq2SeqPredictor
from finetune.runtime import hub
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed

MANY = 1000  # rows whose writing takes a while


def run_seq2seq_exam(flags: InferenceArgs, predictor: Seq2SeqPredictor, world: Distributed) -> None:
    """Write the outputs of all rows, beside another model where --compare_with names one; report them.

    Raises:
        UserError: no pairs of texts, no such split, a model to compare with that writes no texts.
    """
    dataset = _read_pairs(flags, predictor)
    other = _other_model(flags, predictor)
    decoding = predictor.decoding_of(flags)

    def measure(rows: Sequence[TextPair]) -> Measured:
        if len(rows) > MANY and not flags.exam_limit:
            log(f"  要寫 {len(rows):,} 列，一字一字寫會花一些時間；--exam_limit 200 只抽 200 列")
        sources, targets = [row.source for row in rows], [row.target for row in rows]
        outputs = predictor.write(sources, decoding, world)
        before = other.write(sources, decoding, world) if other else None
        if not world.is_main:
            return Measured({}, [])
        metrics = compute_metrics(sources, targets, outputs, before)
        metrics |= {"rows": len(rows), "truncated": sum(reply.truncated for reply in outputs)}
        notes = [f"寫法：{_described(decoding)}"]
        if other:
            notes.append(f"「微調前」是 --compare_with {flags.compare_with}{_shown(other, predictor)}")
        return Measured(metrics, overlap_records(rows, outputs, before), notes)

    run_row_exam(flags, predictor, world, "seq2seq", measure, dataset)


def _shown(other: Seq2SeqPredictor, predictor: Seq2SeqPredictor) -> str:
    """Return what stands behind --compare_with base: the name of the base, "" for another model."""
    if other.card is not predictor.card or predictor.card is None:
        return ""
    scratch = "，隨機初始化的權重" if predictor.card.flags.get("from_scratch") else ""
    return f"（{predictor.card.base_model}{scratch}）"


def _described(decoding: Any) -> str:
    """Return how outputs are written, in words."""
    ways = f"束搜尋（{decoding.num_beams} 束）" if decoding.num_beams > 1 else "greedy"
    return f"{'抽樣' if decoding.samples else ways}，最長 {decoding.max_new_tokens} 個 token"


def _read_pairs(flags: InferenceArgs, predictor: Seq2SeqPredictor) -> TextPairDataset:
    """Read the pairs of --exam, from the columns that the flags or the run card name."""
    source, trained = required(flags.exam), predictor.trained_columns
    hub.prepare_for(source)
    revision = flags.revision if "revision" in flags.given else None
    given = PairOptions(flags.text_column, flags.label_column)
    from_training = PairOptions(flags.text_column or trained[0], flags.label_column or trained[1])
    try:
        return read_text_pairs(source, revision, from_training, flags.on_bad_rows, "--exam")
    except UserError as error:
        if given != from_training:  # a file of another origin may have other columns
            with_flags = _again(source, revision, given, flags.on_bad_rows)
            if with_flags is not None:
                return with_flags
        needed = f"{predictor.name} 是文字轉換模型：--exam 要有輸入與正解的成對文字，不是選擇題"
        raise UserError([*error.problems, needed]) from error


def _again(source: str, revision: str | None, options: PairOptions, on_bad: str) -> TextPairDataset | None:
    """Return the pairs as they are found without the run card; None where they are not."""
    try:
        return read_text_pairs(source, revision, options, on_bad, "--exam")
    except UserError:
        return None


def _other_model(flags: InferenceArgs, predictor: Seq2SeqPredictor) -> Seq2SeqPredictor | None:
    """Load the model of --compare_with. Raises UserError: it writes no texts."""
    if not flags.compare_with:
        return None
    other = load_comparison_model(flags.compare_with, predictor, flags)
    if not isinstance(other, Seq2SeqPredictor):
        raise UserError(
            f"--compare_with {flags.compare_with}：不是文字轉換模型，無從比較；請給 T5、BART 這類模型"
        )
    return other
