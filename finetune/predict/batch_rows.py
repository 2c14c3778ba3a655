"""Row handlers of batch prediction for questions, sentences with blanks, and prompts or conversations.

Classifiers: predict/classification_rows.py. How a file goes through a handler: predict/batch_file.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.cli.inference_checks import warn_of_unused_generation_flags
from finetune.data.bad_rows import Unreadable
from finetune.data.instructions import Message, parse_instruction
from finetune.data.question import LETTERS, Question
from finetune.data.question_rows import Reading, draft, survey
from finetune.data.tables import read_table
from finetune.data.turns import is_answered, is_chat
from finetune.evaluation.outcomes import no_answer_reason
from finetune.evaluation.scores import tied
from finetune.models.generation import Decoding
from finetune.predict.fill_mask import Blanks
from finetune.predict.generative import Encoded, GenerativePredictor
from finetune.predict.predictor import MaskedLMPredictor, Predictor, needs_word_search
from finetune.predict.row_handler import Record, Row, RowHandler, is_text, storable_text
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

PRIOR_ROWS = 2000  # rows from whose questions the prior of letters is estimated
LEAST = 1e-45  # a probability that rounded to nothing
QUESTION_COLUMNS = {
    "row": "whole", "id": "text", "question": "text", "answer": "text", "answer_text": "text",
    "scores": "scores", "tied": "list", "error": "text",
}  # fmt: skip
PROMPT_COLUMNS = {
    "row": "whole", "id": "text", "prompt": "text", "word": "text", "words": "list", "scores": "numbers",
    "error": "text",
}  # fmt: skip
REPLY_COLUMNS = {
    "row": "whole", "id": "text", "prompt": "text", "response": "text", "truncated": "truth", "error": "text",
}  # fmt: skip
SUBMISSION = {"ID": "text", "Answer": "text"}  # csv of what a causal model chose, as competitions take it
PROMPT_FIELDS = {"prompt", "instruction", "messages", "conversations"}  # columns for a generating model


class McqRows(RowHandler[Predictor, Question]):
    """Questions with options."""

    text = "question"

    def __init__(self, flags: InferenceArgs, predictor: Predictor):
        super().__init__(flags, predictor)
        self.method = predictor.method(flags.scoring)
        if predictor.is_causal and self.method != GENERATE:
            warn_of_unused_generation_flags(flags)
        self.columns = dict(QUESTION_COLUMNS)
        self.reading, self.first_number = self._survey_file()
        if self.method == GENERATE:
            self.columns["response"] = "text"
        self.prior = self._prior() if parse(self.method).correction == "prior" else None

    def columns_in(self, suffix: str) -> dict[str, str]:
        """Return the columns of an output of this format; those of a submission for a causal model's csv."""
        return SUBMISSION if self._submits(suffix) else self.columns

    def formatter(self, suffix: str) -> Callable[[Record], Record]:
        """Return how a record is written into an output of this format."""
        if not self._submits(suffix):
            return super().formatter(suffix)
        return lambda record: {"ID": record["id"] or record["row"], "Answer": record["answer"]}

    def for_excel(self, suffix: str) -> bool:
        """Return False for a submission, which a program reads."""
        return not self._submits(suffix)

    def _submits(self, suffix: str) -> bool:
        return self.predictor.is_causal and suffix == ".csv"

    def _survey_file(self) -> tuple[Reading, int]:
        """Return how the rows are meant, and the number of the first option where answers are numbers.

        Both are as in the file's own answers, where it has any.
        """
        given = None if self.flags.answers_from == "auto" else int(self.flags.answers_from)
        seen, reading = survey(row for _, row in read_table(Path(required(self.flags.input))))
        notes = [note for note in seen.notes(reading) if "選項" in note and "答案" not in note]
        if notes:
            log(f"--input {self.flags.input} 的讀法：{'；'.join(notes)}")
        try:
            first = seen.reading("", given).convention.first
        except UserError:  # the file's own answers do not decide it
            first = None
        return reading, (first if first is not None else seen.first) or 0

    def _prior(self) -> dict[int, list[float]]:
        questions = []
        for _, row in islice(read_table(Path(required(self.flags.input))), PRIOR_ROWS):
            with suppress(ValueError):  # reported when the row is answered
                questions.append(self._as_question(row))
        return self.predictor.prior(questions)

    def _as_question(self, row: Row) -> Question:
        """Return a row as a question, without its key. Raises ValueError with the reason why it is none."""
        if isinstance(row, Unreadable):
            raise ValueError(row)
        question = draft(row).without_answer(self.reading)
        if not all(map(is_text, (question.stem, *question.options, question.subject))):
            raise ValueError("有落單的代理字元（surrogate），不是合法的 UTF-8")
        return question

    def read_row(self, record: Record, row: Row) -> Question:
        """Read a question."""
        question = self._as_question(row)
        record["question"] = storable_text(question.stem)
        return question

    def predict(self, pending: list[tuple[Record, Question]]) -> None:
        """Score the options, and write the chosen one and the scores into the records."""
        questions = [question for _, question in pending]
        scores = self.predictor.score(questions, self.method, self.flags.orders, prior=self.prior)
        for index, (record, question) in enumerate(pending):
            if self.method == GENERATE:
                record["response"] = scores.replies.get(index)
            if index in scores.skipped or index in scores.outcomes:
                record["error"] = scores.skipped.get(index) or no_answer_reason(
                    scores.outcomes[index], scores.replies[index]
                )
                continue
            chosen, *others = tied(scores[index])
            as_letter = self.flags.answer_format == "letter"
            record |= {
                "answer": LETTERS[chosen] if as_letter else chosen + self.first_number,
                "answer_text": storable_text(question.options[chosen]),
            }
            if self.method != GENERATE:
                rounded = (round(score, 6) for score in scores[index])
                record["scores"] = dict(zip(LETTERS, rounded, strict=False))
            if others:  # the first of them is the answer
                record["tied"] = [LETTERS[option] for option in (chosen, *others)]


class FillMaskRows(RowHandler[MaskedLMPredictor, Blanks | None]):
    """Sentences with blanks."""

    columns = PROMPT_COLUMNS
    appended_logged = False  # that a blank was added where there was none

    def read_row(self, record: Record, row: Row) -> Blanks | None:
        """Read the blanks, each to be filled with a token; None where words were searched for already."""
        prompt = _as_prompt(row)
        blanks = self.predictor.read(prompt)
        if blanks.lookalike:
            raise ValueError(f"{blanks.lookalike} 不是空格；空格要寫成 [MASK]（半形方括號、大寫）")
        if blanks.appended and not self.appended_logged:
            self.appended_logged = True
            log(f"第 {record['row']} 列的句子沒有 [MASK]：這樣的列都加在句尾")
        word_length, candidates = self.flags.word_length, self.flags.candidates
        if not needs_word_search(blanks, word_length, candidates):
            return blanks
        fillings = self.predictor.words(prompt, self.flags.top_k, word_length, candidates)
        _write_words(record, [(filling.word, filling.score) for filling in fillings])
        return None

    def predict(self, pending: list[tuple[Record, Blanks | None]]) -> None:
        """Fill the single blanks, and write words with log-probabilities into the records."""
        single = [(record, blanks) for record, blanks in pending if blanks is not None]
        for record, words in self.each(single, lambda blanks: self.predictor.fill(blanks, self.flags.top_k)):
            _write_words(record, [(word, math.log(max(share, LEAST))) for word, share in words])


class GenerationRows(RowHandler[GenerativePredictor, Encoded]):
    """Prompts, instructions and conversations, for a model that generates."""

    columns = REPLY_COLUMNS

    def __init__(self, flags: InferenceArgs, predictor: GenerativePredictor):
        super().__init__(flags, predictor)
        predictor.check_generates()  # one that cannot generate at all is refused before the first row
        predictor.with_system("", flags.system_prompt)  # and so is one without a place for it
        self.truncated = 0
        self.remarks: Counter[str] = Counter()

    def read_row(self, record: Record, row: Row) -> Encoded:
        """Return the prompt as the model takes it."""
        message, remarks = _as_message(row)
        record["prompt"] = storable_text(message if isinstance(message, str) else message[-1]["content"])
        message = self.predictor.with_system(message, self.flags.system_prompt)
        self.remarks.update(remarks | self.predictor.remarks(message))
        ids = self.predictor.encode(message)
        longest = self.predictor.longest
        if len(ids) >= longest:
            raise ValueError(f"提示有 {len(ids)} 個 token，這個模型連同回答最多 {longest} 個")
        return ids

    def predict(self, pending: list[tuple[Record, Encoded]]) -> None:
        """Generate the replies."""
        decoding: Decoding = required(self.flags.decoding)
        if decoding.samples and decoding.seed is not None and pending:  # other draws for other rounds
            decoding = replace(decoding, seed=decoding.seed * 1_000_003 + pending[0][0]["row"])
        for record, reply in self.each(pending, lambda ids: self.predictor.generate_rows(ids, decoding)):
            record["response"], record["truncated"] = storable_text(reply), reply.truncated

    def count(self, record: Record) -> None:
        """Count the replies that were cut short."""
        self.truncated += record["truncated"] is True

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return how many replies were cut short, if any."""
        limit = required(self.flags.decoding).max_new_tokens
        line = f"{self.truncated} 列的回答沒寫完（truncated）：到了 --max_new_tokens {limit} 或模型的上限"
        return [line] * bool(self.truncated), {"truncated": self.truncated}


def _as_prompt(row: Row) -> str:
    """Return the prompt of a row. Raises ValueError with the reason why there is none."""
    if isinstance(row, Unreadable):
        raise ValueError(row)
    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError("沒有 prompt 欄")
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt 是空的" if isinstance(prompt, (str, type(None))) else "prompt 應該是文字")
    return prompt


def _as_message(row: Row) -> tuple[str | list[Message], set[str]]:
    """Return a prompt, or a conversation whose last message is the user's; and how the row was read.

    Raises:
        ValueError: with the reason why it is none.
    """
    if isinstance(row, dict) and not (row.keys() & PROMPT_FIELDS or is_chat(row) or is_answered(row)):
        return _as_prompt(row), set()
    if isinstance(row, Unreadable):
        raise ValueError(row)
    remarks: set[str] = set()
    messages = parse_instruction(row, need_answer=False, remarks=remarks).messages
    alone = len(messages) == 1 and isinstance(row, dict) and messages[0]["content"] == row.get("prompt")
    return str(messages[0]["content"]) if alone else messages, remarks


def _write_words(record: Record, words: list[tuple[str, float]]) -> None:
    """Write words and their scores, in nats per token, into a record."""
    record["words"] = [word for word, _ in words]
    record["scores"] = [round(score, 6) for _, score in words]
    record["word"] = words[0][0] if words else None
