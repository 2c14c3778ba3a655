"""What can be taught, each task with its data, its way of writing it out and its examples.

exam  questions to a masked model      cpt  texts to a causal model      sft  replies to a causal model
"""

from __future__ import annotations

from .causal import Continuation, Responses
from .chats import AskingPrompts, Chat
from .cli import say
from .errors import UserError
from .exams import Exam, Pools, describe, read_exam, split_pool
from .instructions import Course, read_course, split_course
from .logits import can_pack
from .methods import OF_OBJECTIVE
from .objectives import Objective
from .prompts import ExamPrompts
from .texts import Cleaning, Corpus, read_corpus, split_texts
from .texts import describe as describe_corpus


class ExamTask:
    """Questions, for a masked language model."""

    kind = "masked"

    def read(self, flags) -> Exam:
        return read_exam(flags.dataset, flags.revision, flags.subjects, flags.on_bad_rows)

    def split(self, exam: Exam, flags) -> Pools:
        pools = split_pool(exam, flags.split_ratio, flags.pool, flags.seed)
        describe(exam, pools)
        return pools

    def prompts(self, flags, tokenizer, max_length: int) -> ExamPrompts:
        return ExamPrompts(tokenizer, max_length)

    def objective(self, flags, config, prompts, tokenizer, rows, max_length: int) -> Objective:
        return Objective(flags.objective, prompts, rows, flags.seed)

    def scoring(self, flags) -> str:
        """How a model that was taught this is asked."""
        return OF_OBJECTIVE[flags.objective]


class TextTask:
    """Continued pre-training: texts, for a causal language model."""

    kind = "causal"

    def read(self, flags) -> Corpus:
        cleaning = Cleaning(tuple(flags.clean), flags.min_chars, flags.max_chars)
        return read_corpus(flags.dataset, cleaning, flags.revision, flags.on_bad_rows)

    def split(self, corpus: Corpus, flags) -> Pools:
        describe_corpus(corpus)
        return Pools(*split_texts(corpus.texts, flags.split_ratio, flags.seed), test=[])

    def prompts(self, flags, tokenizer, max_length: int) -> None:
        return None

    def objective(self, flags, config, prompts, tokenizer, rows, max_length: int) -> Continuation:
        return Continuation(tokenizer, rows, max_length, can_pack(config, max_length))

    def scoring(self, flags) -> str:
        return "letter"


class ReplyTask(TextTask):
    """Instruction tuning: replies, and questions answered with a letter, for a causal language model."""

    def read(self, flags) -> Course | Exam:
        return read_course(flags.dataset, flags.revision, flags.subjects, flags.on_bad_rows)

    def split(self, course: Course | Exam, flags) -> Pools:
        if isinstance(course, Exam):
            return ExamTask().split(course, flags)
        fit, validation, held_back = split_course(course.rows, flags.split_ratio, flags.seed)
        twice = len(course.rows) - len(fit) - len(validation) - len(held_back)
        skipped = f"，略過 {len(course.skipped)} 列" if course.skipped else ""
        say(f"資料 {course.origin}：{len(course.rows)} 列{skipped}")
        say(
            f"  訓練 {len(fit)}、驗證 {len(validation)}、保留 {len(held_back)} 列"
            + (f"；另有 {twice} 列重複，未列入" if twice else "")
        )
        return Pools(fit, validation, held_back, test=[], duplicates=twice)

    def prompts(self, flags, tokenizer, max_length: int) -> AskingPrompts:
        return AskingPrompts(Chat(tokenizer, flags.template), max_length)

    def objective(self, flags, config, prompts, tokenizer, rows, max_length: int) -> Responses:
        found = Responses(prompts, rows, flags.seed, flags.train_on_prompt)
        if found.refused and flags.on_bad_rows == "fail":
            raise UserError([*found.refused, "加上 --on_bad_rows skip 可略過它們"])
        return found


TASKS = {"exam": ExamTask(), "cpt": TextTask(), "sft": ReplyTask()}
