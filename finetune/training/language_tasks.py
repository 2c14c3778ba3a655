"""Tasks of language models: exam questions, texts, replies."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data.cleaning import Cleaning
from finetune.data.corpus import Corpus, read_corpus
from finetune.data.corpus_report import describe as describe_corpus
from finetune.data.exam import Exam, read_exam
from finetune.data.instructions import InstructionDataset, read_instructions
from finetune.data.splits import Splits, describe_exam, split_exam, split_instructions, split_texts
from finetune.models.forward import can_pack
from finetune.objectives.causal_lm import CausalLMObjective, InstructionObjective
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
from finetune.training.task import NoLabels, TaskContext


class ExamTask(NoLabels):
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


class _TextTask(NoLabels):
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


class InstructionTask(NoLabels):
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
