"""Tasks: for each the dataset it reads, its prompts, its objective and its kind of model.

exam      questions to a masked model or a multiple-choice head
mlm       texts to a masked model                classify  labelled texts to a classifier
cpt       texts to a causal model                sft       replies to a causal model
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data import labelled
from finetune.data.cleaning import Cleaning
from finetune.data.corpus import Corpus, read_corpus
from finetune.data.corpus_report import describe as describe_corpus
from finetune.data.exam import Exam, read_exam
from finetune.data.instructions import InstructionDataset, read_instructions
from finetune.data.labelled import LabelledDataset
from finetune.data.splits import (
    Splits,
    describe_exam,
    describe_labels,
    renumber,
    split_exam,
    split_instructions,
    split_labelled,
    split_texts,
)
from finetune.models.forward import can_pack, is_multi
from finetune.models.kinds import classes_of, name_classes, names_of
from finetune.objectives.causal_lm import CausalLMObjective, InstructionObjective
from finetune.objectives.classification import ClassificationObjective
from finetune.objectives.exam import ExamObjective
from finetune.objectives.masked_lm import MaskedLMObjective, MaskingConfig
from finetune.objectives.multiple_choice import MultipleChoiceObjective
from finetune.objectives.objective import Objective
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.scoring_methods import CHOICE, METHOD_OF_OBJECTIVE
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

Source = Exam | Corpus | InstructionDataset | LabelledDataset  # what a task reads its rows from


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
    """One of TASKS. `source` is what its `read` returns."""

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


class _NoLabels:
    """Methods of tasks whose data name nothing that the model must know."""

    def align_labels(self, config: PreTrainedConfig, source: Any, splits: Splits) -> None:
        """Leave the rows as they are."""

    def configure_model(self, config: PreTrainedConfig, source: Any) -> None:
        """Leave the configuration as it is."""


class ExamTask(_NoLabels):
    """Questions, for a masked language model or a multiple-choice head."""

    by_token = False

    def kind(self, args: TrainArgs) -> str:
        """Return `choice` for a multiple-choice head, else `masked`."""
        return CHOICE if args.objective == CHOICE else "masked"

    def read(self, args: TrainArgs) -> Exam:
        """Read the exam of --dataset."""
        return read_exam(
            args.dataset, args.revision, args.subjects, args.on_bad_rows, "--dataset", args.answers_from
        )

    def split(self, source: Exam, args: TrainArgs) -> Splits:
        """Split the questions, stratified by subject."""
        return split_questions(source, args)

    def prompts(self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> ExamPrompts:
        """Return the default prompts."""
        return ExamPrompts(tokenizer, max_length)

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return the objective of --objective."""
        args = context.args
        assert isinstance(context.prompts, ExamPrompts)
        if args.objective in ("cloze", CHOICE):
            return MultipleChoiceObjective(args.objective, context.prompts, rows)
        masking = masking_config(args, validating)
        return ExamObjective(args.objective, context.prompts, rows, args.seed, masking)

    def scoring(self, args: TrainArgs) -> str:
        """Return the method that belongs to --objective."""
        return METHOD_OF_OBJECTIVE[args.objective]

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return how tokens are masked, where the objective masks any."""
        masks = args.objective in ("mlm", "answer+mlm")
        return {"masks": str(masking_config(args, False)) if masks else ""}


class _TextTask(_NoLabels):
    """Base of the tasks on texts: corpus and splits, no prompts."""

    by_token = True

    def read(self, args: TrainArgs) -> Corpus:
        """Read the texts of --dataset, cleaned as the flags say."""
        cleaning = Cleaning(tuple(args.clean), args.min_chars, args.max_chars)
        return read_corpus(
            args.dataset, cleaning, args.revision, args.on_bad_rows, text_column=args.text_column
        )

    def split(self, source: Corpus, args: TrainArgs) -> Splits:
        """Split the texts, and log what cleaning did."""
        describe_corpus(source)
        return Splits(*split_texts(source.texts, args.split_ratio, args.seed), test=[])

    def prompts(self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Return None: texts are read as they are."""


class CausalLMTask(_TextTask):
    """Continued pre-training: texts, for a causal language model."""

    def kind(self, args: TrainArgs) -> str:
        """Return `causal`."""
        return "causal"

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return next-token prediction; several documents to a row where the model can keep them apart."""
        packed = can_pack(context.config, context.max_length)
        return CausalLMObjective(context.tokenizer, rows, context.max_length, packed)

    def scoring(self, args: TrainArgs) -> str:
        """Return `letter`."""
        return "letter"

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return nothing more."""
        return {}


class MaskedLMTask(_TextTask):
    """Domain adaptation: texts, for a masked language model."""

    def kind(self, args: TrainArgs) -> str:
        """Return `masked`."""
        return "masked"

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return masked language modelling."""
        masking = masking_config(context.args, validating)
        return MaskedLMObjective(context.tokenizer, rows, context.max_length, context.args.seed, masking)

    def scoring(self, args: TrainArgs) -> str:
        """Return `pll`."""
        return "pll"

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return how tokens are masked."""
        return {"masks": str(masking_config(args, False))}


class InstructionTask(_NoLabels):
    """Instruction tuning: replies, and questions answered with a letter, for a causal language model."""

    by_token = True

    def kind(self, args: TrainArgs) -> str:
        """Return `causal`."""
        return "causal"

    def read(self, args: TrainArgs) -> InstructionDataset | Exam:
        """Read conversations, or an exam."""
        return read_instructions(
            args.dataset, args.revision, args.subjects, args.on_bad_rows, "--dataset", args.answers_from
        )

    def split(self, source: InstructionDataset | Exam, args: TrainArgs) -> Splits:
        """Split the conversations; those of an exam as `exam` does."""
        if isinstance(source, Exam):
            return split_questions(source, args)
        fit, validation, held_out = split_instructions(source.rows, args.split_ratio, args.seed)
        duplicates = len(source.rows) - len(fit) - len(validation) - len(held_out)
        skipped = f"，略過 {len(source.skipped)} 列" if source.skipped else ""
        log(f"資料 {source.origin}：{len(source.rows)} 列{skipped}")
        for remark, count in source.remarks.items():
            log(f"  {remark}（{count} 列）")
        log(
            f"  訓練 {len(fit)}、驗證 {len(validation)}、保留 {len(held_out)} 列"
            + (f"；另有 {duplicates} 列重複，未列入" if duplicates else "")
        )
        return Splits(fit, validation, held_out, test=[], duplicates=duplicates)

    def prompts(
        self, args: TrainArgs, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> CausalExamPrompts:
        """Return prompts in the tokenizer's chat template, or in that of --template."""
        chat = Chat(tokenizer, args.template)
        for note in chat.notes():
            log(f"  {note}")
        return CausalExamPrompts(chat, max_length)

    def objective(self, context: TaskContext, rows: Any, validating: bool = False) -> Objective:
        """Return next-token prediction of the replies."""
        args = context.args
        assert isinstance(context.prompts, CausalExamPrompts)
        objective = InstructionObjective(context.prompts, rows, args.seed, args.train_on_prompt)
        if objective.rejected_by_template and args.on_bad_rows == "fail":
            raise UserError([*objective.rejected_by_template, "加上 --on_bad_rows skip 可略過它們"])
        return objective

    def scoring(self, args: TrainArgs) -> str:
        """Return `letter`."""
        return "letter"

    def identity(self, args: TrainArgs, config: PreTrainedConfig) -> dict[str, str]:
        """Return how conversations are written out, and whether prompts count."""
        return {"written": f"{args.template}{' 提示也算損失' * args.train_on_prompt}"}


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


def split_questions(exam: Exam, args: TrainArgs) -> Splits:
    """Split an exam's questions as --pool and --split_ratio say, and log how many each split has.

    Raises:
        UserError: questions without an answer.
    """
    exam.need_answers(f"--dataset {args.dataset}")
    splits = split_exam(exam, args.split_ratio, args.pool, args.seed)
    describe_exam(exam, splits)
    return splits


def masking_config(args: TrainArgs, validating: bool) -> MaskingConfig:
    """Return how tokens are masked: as the flags say or, for validation, as in every run."""
    masking = MaskingConfig(args.masking, args.mask_rate, args.all_masked)
    return masking.for_checking() if validating else masking


TASKS: dict[str, Task] = {
    "exam": ExamTask(), "mlm": MaskedLMTask(), "classify": ClassificationTask(), "cpt": CausalLMTask(),
    "sft": InstructionTask(),
}  # fmt: skip
