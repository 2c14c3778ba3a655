"""What can be taught, each task with its data, its way of writing it out and its examples.

exam      questions to a masked model or a multiple-choice head
mlm       texts to a masked model                classify  labelled texts to a classifier
cpt       texts to a causal model                sft       replies to a causal model
"""

from __future__ import annotations

from dataclasses import dataclass

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
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.scoring_methods import CHOICE, METHOD_OF_OBJECTIVE
from finetune.runtime.console import log
from finetune.runtime.errors import UserError


@dataclass
class TaskContext:
    """What rows are written out with."""

    flags: object
    config: object  # of the model
    tokenizer: object
    prompts: object  # of the task
    max_length: int  # of a row, in tokens


class ExamTask:
    """Questions, for a masked language model or a multiple-choice head."""

    by_token = False  # losses are means over tokens, so that they have a perplexity; else over examples

    def kind(self, flags) -> str:
        """Of the model, see `kinds.CLASSES`."""
        return CHOICE if flags.objective == CHOICE else "masked"

    def read(self, flags) -> Exam:
        more = flags.subjects, flags.on_bad_rows, "--dataset", flags.answers_from
        return read_exam(flags.dataset, flags.revision, *more)

    def split(self, exam: Exam, flags) -> Splits:
        exam.need_answers(f"--dataset {flags.dataset}")
        pools = split_exam(exam, flags.split_ratio, flags.pool, flags.seed)
        describe_exam(exam, pools)
        return pools

    def align_labels(self, config, source, pools: Splits) -> None:
        """Numbers what the data name as a model does that names it already."""

    def configure_model(self, config, source) -> None:
        """Writes into the model's configuration what the data decide."""

    def prompts(self, flags, tokenizer, max_length: int):
        return ExamPrompts(tokenizer, max_length)

    def objective(self, desk: TaskContext, rows, checking: bool = False):
        """The examples of some rows.

        Args:
            checking: they are not taught: losses on them are compared from one time to the next.
        """
        flags = desk.flags
        if flags.objective in ("cloze", CHOICE):
            return MultipleChoiceObjective(flags.objective, desk.prompts, rows)
        return ExamObjective(flags.objective, desk.prompts, rows, flags.seed, masking_config(flags, checking))

    def scoring(self, flags) -> str:
        """How a model that was taught this is asked."""
        return METHOD_OF_OBJECTIVE[flags.objective]

    def identity(self, flags, config) -> dict[str, str]:
        """What else a checkpoint of this task is bound to, by its key in `checkpoints.LABELS`."""
        return {
            "masks": str(masking_config(flags, False)) if flags.objective in ("mlm", "answer+mlm") else ""
        }


class CausalLMTask(ExamTask):
    """Continued pre-training: texts, for a causal language model."""

    by_token = True

    def kind(self, flags) -> str:
        return "causal"

    def read(self, flags) -> Corpus:
        cleaning = Cleaning(tuple(flags.clean), flags.min_chars, flags.max_chars)
        return read_corpus(
            flags.dataset, cleaning, flags.revision, flags.on_bad_rows, text_column=flags.text_column
        )

    def split(self, corpus: Corpus, flags) -> Splits:
        describe_corpus(corpus)
        return Splits(*split_texts(corpus.texts, flags.split_ratio, flags.seed), test=[])

    def prompts(self, flags, tokenizer, max_length: int) -> None:
        return None

    def identity(self, flags, config) -> dict[str, str]:
        return {}

    def objective(self, desk: TaskContext, rows, checking: bool = False) -> CausalLMObjective:
        packed = can_pack(desk.config, desk.max_length)
        return CausalLMObjective(desk.tokenizer, rows, desk.max_length, packed)

    def scoring(self, flags) -> str:
        return "letter"


class MaskedLMTask(CausalLMTask):
    """Domain adaptation: texts, for a masked language model."""

    def kind(self, flags) -> str:
        return "masked"

    def objective(self, desk: TaskContext, rows, checking: bool = False) -> MaskedLMObjective:
        flags = desk.flags
        return MaskedLMObjective(
            desk.tokenizer, rows, desk.max_length, flags.seed, masking_config(flags, checking)
        )

    def scoring(self, flags) -> str:
        return "pll"

    def identity(self, flags, config) -> dict[str, str]:
        return {"masks": str(masking_config(flags, False))}


class InstructionTask(CausalLMTask):
    """Instruction tuning: replies, and questions answered with a letter, for a causal language model."""

    def read(self, flags) -> InstructionDataset | Exam:
        more = flags.subjects, flags.on_bad_rows, "--dataset", flags.answers_from
        return read_instructions(flags.dataset, flags.revision, *more)

    def split(self, course: InstructionDataset | Exam, flags) -> Splits:
        if isinstance(course, Exam):
            return ExamTask().split(course, flags)
        fit, validation, held_back = split_instructions(course.rows, flags.split_ratio, flags.seed)
        twice = len(course.rows) - len(fit) - len(validation) - len(held_back)
        skipped = f"，略過 {len(course.skipped)} 列" if course.skipped else ""
        log(f"資料 {course.origin}：{len(course.rows)} 列{skipped}")
        for remark, count in course.remarks.items():
            log(f"  {remark}（{count} 列）")
        log(
            f"  訓練 {len(fit)}、驗證 {len(validation)}、保留 {len(held_back)} 列"
            + (f"；另有 {twice} 列重複，未列入" if twice else "")
        )
        return Splits(fit, validation, held_back, test=[], duplicates=twice)

    def prompts(self, flags, tokenizer, max_length: int) -> CausalExamPrompts:
        chat = Chat(tokenizer, flags.template)
        for note in chat.notes():
            log(f"  {note}")
        return CausalExamPrompts(chat, max_length)

    def objective(self, desk: TaskContext, rows, checking: bool = False) -> InstructionObjective:
        flags = desk.flags
        found = InstructionObjective(desk.prompts, rows, flags.seed, flags.train_on_prompt)
        if found.refused and flags.on_bad_rows == "fail":
            raise UserError([*found.refused, "加上 --on_bad_rows skip 可略過它們"])
        return found

    def identity(self, flags, config) -> dict[str, str]:
        return {"written": f"{flags.template}{' 提示也教' * flags.train_on_prompt}"}


class ClassificationTask(ExamTask):
    """Text classification, for a classification head on any base."""

    def kind(self, flags) -> str:
        return "classifier"

    def read(self, flags) -> LabelledDataset:
        found = labelled.read_labelled(
            flags.dataset, flags.revision, flags.text_column, flags.label_column, flags.multi_label,
            flags.dataset_config_name, flags.on_bad_rows,
        )  # fmt: skip
        # the run card keeps the flags: whoever uses the model reads the same columns
        flags.text_column = ",".join(filter(None, (found.text_column, found.pair_column)))
        return found

    def split(self, source: LabelledDataset, flags) -> Splits:
        pools = split_labelled(source, flags.split_ratio, flags.seed)
        describe_labels(source, pools)
        return pools

    def align_labels(self, config, source: LabelledDataset, pools: Splits) -> None:
        known = classes_of(config)
        if known != source.names and {*known} >= {*source.names}:
            renumber(source, pools, known)

    def configure_model(self, config, source: LabelledDataset) -> None:
        name_classes(config, source.names, source.multi)

    def prompts(self, flags, tokenizer, max_length: int) -> None:
        return None

    def objective(self, desk: TaskContext, rows, checking: bool = False) -> ClassificationObjective:
        config, multi = desk.config, is_multi(desk.config)
        weighted = desk.flags.class_weights and not checking
        weights = None
        if weighted:
            found = {label for row in rows for label in row.labels}
            if absent := [name for at, name in enumerate(names_of(config)) if at not in found]:
                raise UserError(
                    f"--class_weights：{'、'.join(absent)} 在訓練資料裡一列也沒有，算不出比重；"
                    "請補上這些類別的列，或去掉這個旗標"
                )
            weights = labelled.class_weights(rows, config.num_labels, multi)
        return ClassificationObjective(
            desk.tokenizer, rows, desk.max_length, config.num_labels, multi, weights
        )

    def scoring(self, flags) -> str:
        return ""

    def identity(self, flags, config) -> dict[str, str]:
        return {"labels": f"{'、'.join(names_of(config))}{' 加權' * flags.class_weights}"}


def masking_config(flags, checking: bool) -> MaskingConfig:
    """How words are hidden: as the flags say or, for checking, as in every run."""
    found = MaskingConfig(flags.masking, flags.mask_rate, flags.all_masked)
    return found.for_checking() if checking else found


TASKS = {
    "exam": ExamTask(), "mlm": MaskedLMTask(), "classify": ClassificationTask(), "cpt": CausalLMTask(),
    "sft": InstructionTask(),
}  # fmt: skip
