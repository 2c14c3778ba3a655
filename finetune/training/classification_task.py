"""Task of a classifier: texts, or pairs of them, and their labels."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data import labelled
from finetune.data.labelled import LabelledDataset
from finetune.data.splits import Splits, describe_labels, renumber, split_labelled
from finetune.models.forward import is_multi
from finetune.models.kinds import classes_of, name_classes, names_of
from finetune.objectives.classification import ClassificationObjective
from finetune.objectives.objective import Objective
from finetune.runtime.errors import UserError
from finetune.training.task import TaskContext


class ClassificationTask:
    """Text classification, for a classification head on any base."""

    by_token = False

    def kind(self, args: TrainArgs) -> str:
        """Return `classifier`."""
        return "classifier"

    def read(self, args: TrainArgs) -> LabelledDataset:
        """Read labelled texts, and note in `args` the columns they lie in."""
        options = labelled.LabelledOptions(
            args.text_column, args.label_column, args.multi_label, args.dataset_config_name
        )
        dataset = labelled.read_labelled(args.dataset, args.revision, options, args.on_bad_rows)
        # the run card keeps the flags: whoever uses the model reads the same columns
        args.text_column = ",".join(filter(None, (dataset.text_column, dataset.pair_column)))
        return dataset

    def split(self, source: LabelledDataset, args: TrainArgs) -> Splits:
        """Split the rows, stratified by label."""
        splits = split_labelled(source, args.split_ratio, args.seed)
        describe_labels(source, splits)
        return splits

    def align_labels(self, config: PreTrainedConfig, source: LabelledDataset, splits: Splits) -> None:
        """Take over the order of the labels of a base that is a classifier and knows them all."""
        known = classes_of(config)
        if known != source.names and {*known} >= {*source.names}:
            renumber(source, splits, known)

    def configure_model(self, config: PreTrainedConfig, source: LabelledDataset) -> None:
        """Write the names of the classes into the configuration."""
        name_classes(config, source.names, source.multi)

    def prompts(self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Return None: texts are read as they are."""

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return classification, weighted by class in training where --class_weights says so.

        Raises:
            UserError: --class_weights, and a class without any row.
        """
        config, multi = context.config, is_multi(context.config)
        assert config.num_labels is not None
        weights = None
        if context.args.class_weights and not validating:
            labels = {label for row in rows for label in row.labels}
            if absent := [name for index, name in enumerate(names_of(config)) if index not in labels]:
                raise UserError(
                    f"--class_weights：{'、'.join(absent)} 在訓練資料裡一列也沒有，算不出比重；"
                    "請補上這些類別的列，或去掉這個旗標"
                )
            weights = labelled.class_weights(rows, config.num_labels, multi)
        return ClassificationObjective(
            context.tokenizer, rows, context.max_length, config.num_labels, multi, weights
        )

    def scoring(self, args: TrainArgs) -> str:
        """Return "": a classifier has one way to answer."""
        return ""

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return the classes, and whether they are weighted."""
        return {"labels": f"{'、'.join(names_of(config))}{' 加權' * args.class_weights}"}
