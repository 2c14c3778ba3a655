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
from finetune.data.instructions import Course, read_course
from finetune.data.labelled import Catalogue
from finetune.data.splits import (
    Pools,
    describe_exam,
    describe_labels,
    renumber,
    split_course,
    split_labelled,
    split_pool,
    split_texts,
)
from finetune.models.forward import can_pack, is_multi
from finetune.models.kinds import classes_of, name_classes, names_of
from finetune.objectives.causal_lm import Continuation, Responses
from finetune.objectives.classification import Classification
from finetune.objectives.exam import Objective
from finetune.objectives.masked_lm import Hiding, Restoration
from finetune.objectives.multiple_choice import Contests
from finetune.prompts.causal_exam import AskingPrompts
from finetune.prompts.chat import Chat
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.scoring_methods import CHOICE, OF_OBJECTIVE
from finetune.runtime.console import say
from finetune.runtime.errors import UserError


@dataclass
class Desk:
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

    def split(self, exam: Exam, flags) -> Pools:
        exam.need_answers(f"--dataset {flags.dataset}")
        pools = split_pool(exam, flags.split_ratio, flags.pool, flags.seed)
        describe_exam(exam, pools)
        return pools

    def agree(self, config, source, pools: Pools) -> None:
        """Numbers what the data name as a model does that names it already."""

    def shape(self, config, source) -> None:
        """Writes into the model's configuration what the data decide."""

    def prompts(self, flags, tokenizer, max_length: int):
        return ExamPrompts(tokenizer, max_length)

    def objective(self, desk: Desk, rows, checking: bool = False):
        """The examples of some rows.

        Args:
            checking: they are not taught: losses on them are compared from one time to the next.
        """
        flags = desk.flags
        if flags.objective in ("cloze", CHOICE):
            return Contests(flags.objective, desk.prompts, rows)
        return Objective(flags.objective, desk.prompts, rows, flags.seed, hiding(flags, checking))

    def scoring(self, flags) -> str:
        """How a model that was taught this is asked."""
        return OF_OBJECTIVE[flags.objective]

    def identity(self, flags, config) -> dict[str, str]:
        """What else a checkpoint of this task is bound to, by its key in `checkpoints.LABELS`."""
        return {"masks": str(hiding(flags, False)) if flags.objective in ("mlm", "answer+mlm") else ""}


class TextTask(ExamTask):
    """Continued pre-training: texts, for a causal language model."""

    by_token = True

    def kind(self, flags) -> str:
        return "causal"

    def read(self, flags) -> Corpus:
        cleaning = Cleaning(tuple(flags.clean), flags.min_chars, flags.max_chars)
        return read_corpus(
            flags.dataset, cleaning, flags.revision, flags.on_bad_rows, text_column=flags.text_column
        )

    def split(self, corpus: Corpus, flags) -> Pools:
        describe_corpus(corpus)
        return Pools(*split_texts(corpus.texts, flags.split_ratio, flags.seed), test=[])

    def prompts(self, flags, tokenizer, max_length: int) -> None:
        return None

    def identity(self, flags, config) -> dict[str, str]:
        return {}

    def objective(self, desk: Desk, rows, checking: bool = False) -> Continuation:
        packed = can_pack(desk.config, desk.max_length)
        return Continuation(desk.tokenizer, rows, desk.max_length, packed)

    def scoring(self, flags) -> str:
        return "letter"


class HiddenWordTask(TextTask):
    """Domain adaptation: texts, for a masked language model."""

    def kind(self, flags) -> str:
        return "masked"

    def objective(self, desk: Desk, rows, checking: bool = False) -> Restoration:
        flags = desk.flags
        return Restoration(desk.tokenizer, rows, desk.max_length, flags.seed, hiding(flags, checking))

    def scoring(self, flags) -> str:
        return "pll"

    def identity(self, flags, config) -> dict[str, str]:
        return {"masks": str(hiding(flags, False))}


class ReplyTask(TextTask):
    """Instruction tuning: replies, and questions answered with a letter, for a causal language model."""

    def read(self, flags) -> Course | Exam:
        more = flags.subjects, flags.on_bad_rows, "--dataset", flags.answers_from
        return read_course(flags.dataset, flags.revision, *more)

    def split(self, course: Course | Exam, flags) -> Pools:
        if isinstance(course, Exam):
            return ExamTask().split(course, flags)
        fit, validation, held_back = split_course(course.rows, flags.split_ratio, flags.seed)
        twice = len(course.rows) - len(fit) - len(validation) - len(held_back)
        skipped = f"，略過 {len(course.skipped)} 列" if course.skipped else ""
        say(f"資料 {course.origin}：{len(course.rows)} 列{skipped}")
        for remark, count in course.remarks.items():
            say(f"  {remark}（{count} 列）")
        say(
            f"  訓練 {len(fit)}、驗證 {len(validation)}、保留 {len(held_back)} 列"
            + (f"；另有 {twice} 列重複，未列入" if twice else "")
        )
        return Pools(fit, validation, held_back, test=[], duplicates=twice)

    def prompts(self, flags, tokenizer, max_length: int) -> AskingPrompts:
        chat = Chat(tokenizer, flags.template)
        for note in chat.notes():
            say(f"  {note}")
        return AskingPrompts(chat, max_length)

    def objective(self, desk: Desk, rows, checking: bool = False) -> Responses:
        flags = desk.flags
        found = Responses(desk.prompts, rows, flags.seed, flags.train_on_prompt)
        if found.refused and flags.on_bad_rows == "fail":
            raise UserError([*found.refused, "加上 --on_bad_rows skip 可略過它們"])
        return found

    def identity(self, flags, config) -> dict[str, str]:
        return {"written": f"{flags.template}{' 提示也教' * flags.train_on_prompt}"}


class LabelTask(ExamTask):
    """Text classification, for a classification head on any base."""

    def kind(self, flags) -> str:
        return "classifier"

    def read(self, flags) -> Catalogue:
        found = labelled.read_labelled(
            flags.dataset, flags.revision, flags.text_column, flags.label_column, flags.multi_label,
            flags.dataset_config_name, flags.on_bad_rows,
        )  # fmt: skip
        # the run card keeps the flags: whoever uses the model reads the same columns
        flags.text_column = ",".join(filter(None, (found.text_column, found.pair_column)))
        return found

    def split(self, source: Catalogue, flags) -> Pools:
        pools = split_labelled(source, flags.split_ratio, flags.seed)
        describe_labels(source, pools)
        return pools

    def agree(self, config, source: Catalogue, pools: Pools) -> None:
        known = classes_of(config)
        if known != source.names and {*known} >= {*source.names}:
            renumber(source, pools, known)

    def shape(self, config, source: Catalogue) -> None:
        name_classes(config, source.names, source.multi)

    def prompts(self, flags, tokenizer, max_length: int) -> None:
        return None

    def objective(self, desk: Desk, rows, checking: bool = False) -> Classification:
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
        return Classification(desk.tokenizer, rows, desk.max_length, config.num_labels, multi, weights)

    def scoring(self, flags) -> str:
        return ""

    def identity(self, flags, config) -> dict[str, str]:
        return {"labels": f"{'、'.join(names_of(config))}{' 加權' * flags.class_weights}"}


def hiding(flags, checking: bool) -> Hiding:
    """How words are hidden: as the flags say or, for checking, as in every run."""
    found = Hiding(flags.masking, flags.mask_rate, flags.all_masked)
    return found.for_checking() if checking else found


TASKS = {
    "exam": ExamTask(), "mlm": HiddenWordTask(), "classify": LabelTask(), "cpt": TextTask(),
    "sft": ReplyTask(),
}  # fmt: skip
