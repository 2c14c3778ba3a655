"""Task of an encoder-decoder: texts that are written from texts."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data.splits import Splits, describe_rows, split_rows
from finetune.data.text_pairs import PairOptions, TextPairDataset, read_text_pairs
from finetune.models.kinds import FINE_TUNED_AS
from finetune.objectives.objective import Objective
from finetune.objectives.seq2seq import Lengths, Seq2SeqObjective
from finetune.runtime.console import log
from finetune.training.task import NoLabels, TaskContext


class Seq2SeqTask(NoLabels):
    """Summaries, translations, rewriting: for T5, mT5, BART, mBART and their like."""

    by_token = True

    def kind(self, args: TrainArgs) -> str:
        """Return `seq2seq`."""
        return "seq2seq"

    def read(self, args: TrainArgs) -> TextPairDataset:
        """Read pairs of texts, and note in `args` the columns they lie in."""
        options = PairOptions(args.text_column, args.label_column, args.dataset_config_name)
        dataset = read_text_pairs(args.dataset, args.revision, options, args.on_bad_rows)
        # the run card keeps the flags: whoever uses the model reads the same columns
        args.text_column, args.label_column = dataset.columns.named
        return dataset

    def split(self, source: TextPairDataset, args: TrainArgs) -> Splits:
        """Split the rows, none of whose sources stands in two splits."""
        splits = split_rows(source, args.split_ratio, args.seed)
        describe_rows(source, splits, "成對的文字")
        columns = source.columns
        inside = f"（{columns.inside} 裡的語言）" if columns.inside else ""
        log(f"  輸入欄 {'＋'.join(columns.source)}，輸出欄 {columns.target}{inside}")
        return splits

    def configure_model(self, config: PreTrainedConfig, source: Any) -> None:
        """Note that the model writes texts: BART's class would not tell."""
        setattr(config, FINE_TUNED_AS, "seq2seq")

    def prompts(self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Return None: texts are read as they are."""

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return teacher forcing of the targets."""
        args = context.args
        lengths = Lengths(context.max_length, args.max_target_length, args.exam_limit)
        return Seq2SeqObjective(context.tokenizer, rows, context.config, lengths, args.prefix)

    def scoring(self, args: TrainArgs) -> str:
        """Return "": an encoder-decoder answers no questions."""
        return ""

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return how sources begin and how long targets may be."""
        return {"written": f"{args.prefix}｜輸出最長 {args.max_target_length} 個 token"}
