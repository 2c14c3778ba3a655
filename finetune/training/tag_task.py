"""Task of a tagger: named entities, words or parts of speech."""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data.splits import Splits, describe_rows, split_rows
from finetune.data.tag_schemes import UNTYPED, TagSet
from finetune.data.tagged import TaggedDataset, TaggedOptions, read_tagged
from finetune.models.kinds import classes_of, name_tags, names_of
from finetune.objectives.objective import Objective
from finetune.objectives.tagging import TaggingObjective
from finetune.runtime.console import log
from finetune.runtime.errors import listed
from finetune.training.task import TaskContext

SHOWN = 10  # labels listed in a message


class TagTask:
    """Token classification, for a new head on any base, or one that knows all the tags."""

    by_token = False

    def kind(self, args: TrainArgs) -> str:
        """Return `tagger`."""
        return "tagger"

    def read(self, args: TrainArgs) -> TaggedDataset:
        """Read tagged texts, and note in `args` the columns they lie in."""
        options = TaggedOptions(args.text_column, args.label_column, args.dataset_config_name)
        dataset = read_tagged(args.dataset, args.revision, options, args.on_bad_rows)
        # the run card keeps the flags: whoever uses the model reads the same columns
        args.text_column = dataset.text_column or args.text_column
        args.label_column = dataset.label_column or args.label_column
        return dataset

    def split(self, source: TaggedDataset, args: TrainArgs) -> Splits:
        """Split the rows."""
        splits = split_rows(source, args.split_ratio, args.seed)
        describe_rows(source, splits, "標註資料")
        _describe_labels(source, splits)
        return splits

    def align_labels(self, config: PreTrainedConfig, source: TaggedDataset, splits: Splits) -> None:
        """Take over the tags of a base that is a tagger and can write all spans of the data."""
        known = classes_of(config)
        if not known or known == source.names:
            return
        theirs, ours = TagSet(tuple(known)), TagSet(tuple(source.names))
        if theirs.plain == ours.plain and theirs.writes(source.labels, ours.outside is not None):
            unused = len(known) - len(source.names)
            more = f"；比資料多 {unused} 個" if unused > 0 else ""
            log(f"  標記照底模的寫法與順序：{listed(known, 5)}{more}")
            source.names = known

    def configure_model(self, config: PreTrainedConfig, source: TaggedDataset) -> None:
        """Write the names of the tags into the configuration."""
        name_tags(config, source.names)

    def prompts(self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Return None: texts are read as they are."""

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return tagging."""
        args = context.args
        return TaggingObjective(
            context.tokenizer, rows, context.max_length, args.stride, names_of(context.config)
        )

    def scoring(self, args: TrainArgs) -> str:
        """Return "": a tagger has one way to answer."""
        return ""

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return the tags, and how windows overlap."""
        return {"labels": "、".join(names_of(config)), "stride": str(args.stride)}


def _describe_labels(source: TaggedDataset, splits: Splits) -> None:
    """Log how the tags were read, and how the labels of the training rows are distributed."""
    columns = f"文字欄 {source.text_column}，標記欄 {source.label_column}；" if source.text_column else ""
    log(f"  {columns}標記的寫法 {'一字一個（不分頭尾）' if source.scheme == 'plain' else source.scheme}")
    counts = Counter(span.label for row in splits.fit for span in row.spans).most_common()
    named = "、".join(
        f"{'不分類型' if label == UNTYPED else label}（{count}）" for label, count in counts[:SHOWN]
    )
    more = f"…（共 {len(counts)} 種）" if len(counts) > SHOWN else ""
    log(f"  訓練的標記：{named}{more}")
    trained = {label for label, _ in counts}
    if missing := [label for label in source.labels if label not in trained]:
        log(f"⚠️ 訓練裡沒有這些標籤：{listed(missing, 5)}（句數太少）")
