"""Task of an extractor: questions about passages, whose answers are parts of them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data.answer_spans import SpanOptions, read_spans
from finetune.data.row_dataset import RowDataset
from finetune.data.span_rows import SpanRow
from finetune.data.splits import Splits, describe_rows, split_rows
from finetune.evaluation.extraction import SpanSettings
from finetune.models.kinds import FINDS_NO_ANSWER
from finetune.objectives.objective import Objective
from finetune.objectives.span import SpanObjective
from finetune.runtime.errors import UserError
from finetune.training.task import NoLabels, TaskContext


class SpanTask(NoLabels):
    """Extractive question answering, for a question-answering head on any base."""

    by_token = False

    def kind(self, args: TrainArgs) -> str:
        """Return `extractor`."""
        return "extractor"

    def read(self, args: TrainArgs) -> RowDataset[SpanRow]:
        """Read passages, questions and answers.

        Raises:
            UserError: no question has an answer.
        """
        options = SpanOptions(args.text_column, args.label_column, args.dataset_config_name)
        dataset = read_spans(args.dataset, args.revision, options, args.on_bad_rows)
        if not any(row.answers for rows in dataset.rows.values() for row in rows):
            raise UserError(
                f"--dataset {args.dataset}：{len(dataset)} 題都沒有答案，沒有東西可學；"
                "答案在別的欄位的話，用 --label_column 指出來"
            )
        return dataset

    def split(self, source: RowDataset[SpanRow], args: TrainArgs) -> Splits:
        """Split the questions; an article is never divided."""
        splits = split_rows(source, args.split_ratio, args.seed)
        describe_rows(source, splits, "文章問答")
        return splits

    def configure_model(self, config: PreTrainedConfig, source: RowDataset[SpanRow]) -> None:
        """Note in the configuration whether a passage may have no answer: the model then may say so."""
        trained = [row for split in ("train", "") for row in source.rows.get(split, [])]
        setattr(config, FINDS_NO_ANSWER, any(not row.answers for row in trained))

    def prompts(self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Return None: texts are read as they are."""

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return the windows of the questions."""
        args = context.args
        settings = SpanSettings(context.max_length, args.stride, args.max_answer_length)
        return SpanObjective(context.tokenizer, rows, settings)

    def scoring(self, args: TrainArgs) -> str:
        """Return "": an extractor has one way to answer."""
        return ""

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return how passages are cut into windows, and what the best model is chosen by."""
        return {"windows": f"{args.stride} {args.max_answer_length}"}
