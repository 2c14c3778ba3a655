"""The interface of a task: what it reads, how rows are split and become examples, and its kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data.splits import Splits
from finetune.objectives.objective import Objective
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts


@dataclass
class TaskContext:
    """Inputs for making examples of rows.

    Args:
        config: the model's configuration.
        prompts: how the task's prompts are written; None for texts and labels.
        max_length: longest row, in tokens.
    """

    args: TrainArgs
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: ExamPrompts | CausalExamPrompts | None
    max_length: int


class Task(Protocol):
    """One of `tasks.TASKS`. `source` is what its `read` returns."""

    by_token: bool  # losses are means over tokens, so that they have a perplexity; else over examples

    def kind(self, args: TrainArgs) -> str:
        """Return the kind of model that it trains, one of `kinds.CLASSES`."""

    def read(self, args: TrainArgs) -> Any:
        """Read the dataset of --dataset."""

    def split(self, source: Any, args: TrainArgs) -> Splits:
        """Split the rows, and log how many each split has."""

    def align_labels(self, config: PreTrainedConfig, source: Any, splits: Splits) -> None:
        """Renumber the labels of the rows as a model numbers them that knows them already."""

    def configure_model(self, config: PreTrainedConfig, source: Any) -> None:
        """Write into the model's configuration what the data decide."""

    def prompts(
        self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> ExamPrompts | CausalExamPrompts | None:
        """Return what writes the rows as token ids; None for texts and labels."""

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return the examples of some rows.

        Args:
            validating: losses on them are compared from one time to the next, so they do not depend on flags
                of training.
        """

    def scoring(self, args: TrainArgs) -> str:
        """Return the method by which a model is scored that was trained on this."""

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return what else a checkpoint is bound to, by its key in `checkpoints.LABELS`.

        The texts are part of the checkpoint's format.
        """


class NoLabels:
    """Methods of tasks whose data name nothing that the model must know."""

    def align_labels(self, config: PreTrainedConfig, source: Any, splits: Splits) -> None:
        """Leave the rows as they are."""

    def configure_model(self, config: PreTrainedConfig, source: Any) -> None:
        """Leave the configuration as it is."""
