"""The kinds of files that can be answered, by what a row is: a question, a sentence with blanks, something to
go on from, a text to classify. How a file goes through them: predict/batch_file.py.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from finetune.cli.inference_args import tell_of_idle_writing
from finetune.data.bad_rows import Unreadable
from finetune.data.columns import LOOKED, column_names, find_texts
from finetune.data.instructions import Message, parse_instruction
from finetune.data.question import LETTERS, Question
from finetune.data.question_rows import Reading, draft, survey
from finetune.data.tables import read_table
from finetune.data.turns import is_answered, is_told
from finetune.evaluation.scoring import tied
from finetune.models.generation import Decoding
from finetune.models.kv_cache import manner_of
from finetune.predict.classifier import ClassifierPredictor
from finetune.predict.label_truth import Truth, tell_of_numbers
from finetune.predict.predictor import Predictor, asks_for_words
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import dumps, too_long

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
REPLY_COLUMNS = {"row": "whole", "id": "text", "prompt": "text", "response": "text", "error": "text"}
SUBMISSION = {"ID": "text", "Answer": "text"}  # csv of what a causal model chose, as competitions take it
TELLS = {"prompt", "instruction", "messages", "conversations"}  # by which it is something to go on from


class RowHandler(ABC):
    """Answers rows of one kind."""

    columns: dict[str, str]
    text = "prompt"  # the column that is asked
    method = ""
    remarks: Mapping[str, int] = {}  # how rows were read, where a person may not expect it, and how many

    def __init__(self, flags, examinee: Predictor):
        self.flags, self.examinee = flags, examinee

    def columns_in(self, suffix: str) -> dict[str, str]:
        """Of an output of this format."""
        return self.columns

    def written(self, suffix: str):
        """How a record goes into an output of this format."""
        return lambda record: record

    def identity(self, source: Path) -> dict:
        """What must be the same for a run to go on: the rows, the model, and how it is asked."""
        rows = hashlib.sha256()
        with source.open("rb") as stream:
            while block := stream.read(1 << 20):
                rows.update(block)
        same = ("top_k", "word_length", "candidates", "orders", "precision", "answer_format")
        if self.flags.encoding:
            rows.update(self.flags.encoding.encode())
        return {
            "input": rows.hexdigest()[:16], "model": self.examinee.digest(), "scoring": self.method,
            "decoding": str(self.flags.decoding) if self.examinee.is_causal else "",
            **{name: getattr(self.flags, name) for name in same},
        }  # fmt: skip

    def answer(self, block: list[tuple[int, tuple[int, dict | Unreadable]]]) -> list[dict]:
        """One record for each (number, (line, row))."""
        records, asked = [], []
        for number, (_, row) in block:
            records.append(record := self.blank(number, row))
            try:
                asked.append((record, self.ask(record, row)))
            except (ValueError, UserError) as error:
                record["error"] = str(error)
        self.reply(asked)
        return records

    @abstractmethod
    def ask(self, record: dict, row: dict | Unreadable):
        """What the model is asked, from a row; its record may be told more of it.

        Raises:
            ValueError, UserError: the reason why it cannot be asked.
        """

    @abstractmethod
    def reply(self, asked: list[tuple[dict, object]]) -> None:
        """Writes the answers into the records; they come with what `ask` found."""

    def each(self, asked: list[tuple[dict, object]], answer: Callable[[list], Sequence]) -> Iterator[tuple]:
        """(record, result) of what is answered together; where that fails, one by one, so that a row whose
        answer is no number has its `error` and costs no other its own.
        """
        try:
            found = answer([one for _, one in asked])
        except UserError as error:
            if len(asked) > 1:
                for one in asked:
                    yield from self.each([one], answer)
            elif asked:
                asked[0][0]["error"] = str(error)
            return
        yield from ((record, result) for (record, _), result in zip(asked, found, strict=True))

    def tally(self, record: dict) -> None:  # noqa: B027  most kinds count nothing
        """Counts a record that is about to be written."""

    def summary(self) -> tuple[list[str], dict]:
        """What was counted: for the screen, and for --json."""
        return [], {}

    def blank(self, number: int, row: dict | Unreadable) -> dict:
        """The record of a row that is not answered yet."""
        given = row if isinstance(row, dict) else {}
        record = dict.fromkeys(self.columns)
        name = given.get("id", given.get("ID"))
        asked = _plain(given.get(self.text))
        record |= {"row": number, "id": None if name is None else _plain(name), self.text: asked}
        return record


class McqRows(RowHandler):
    """Questions with options."""

    text = "question"

    def __init__(self, flags, examinee: Predictor):
        super().__init__(flags, examinee)
        self.method = examinee.method(flags.scoring)
        if examinee.is_causal:
            tell_of_idle_writing(flags)
        self.columns = dict(QUESTION_COLUMNS)
        self.reading, self.first = self._reading()
        if self.method == GENERATE:
            self.columns["response"] = "text"
        self.prior = self._prior() if parse(self.method).correction == "prior" else None

    def columns_in(self, suffix: str) -> dict[str, str]:
        return SUBMISSION if self._submits(suffix) else self.columns

    def written(self, suffix: str):
        if not self._submits(suffix):
            return super().written(suffix)
        return lambda record: {"ID": record["id"] or record["row"], "Answer": record["answer"]}

    def _submits(self, suffix: str) -> bool:
        return self.examinee.is_causal and suffix == ".csv"

    def _reading(self) -> tuple[Reading, int]:
        """How the rows are meant, and the number of the first option where answers are written as numbers: as
        in the file's own answers, where it has such.
        """
        told = None if self.flags.answers_from == "auto" else int(self.flags.answers_from)
        seen, reading = survey(row for _, row in read_table(Path(self.flags.input)))
        notes = [note for note in seen.notes(reading) if "選項" in note and "答案" not in note]
        if notes:
            log(f"--input {self.flags.input} 的讀法：{'；'.join(notes)}")
        try:
            first = seen.reading("", told).manner.first
        except UserError:  # the file's own answers do not tell
            first = None
        return reading, (first if first is not None else seen.first) or 0

    def _prior(self):
        questions = []
        for _, row in islice(read_table(Path(self.flags.input)), PRIOR_ROWS):
            try:
                questions.append(self._as_question(row))
            except ValueError:
                pass  # told when its turn comes
        return self.examinee.prior(questions)

    def _as_question(self, row: dict | Unreadable) -> Question:
        """Raises ValueError with the reason why it is none. The key, if any, is not looked at."""
        if isinstance(row, Unreadable):
            raise ValueError(row)
        question = draft(row).asked(self.reading)
        if not all(map(_is_text, (question.stem, *question.options, question.subject))):
            raise ValueError("有不成字的字元（半個 surrogate），不是合法的 UTF-8")
        return question

    def ask(self, record: dict, row: dict | Unreadable) -> Question:
        question = self._as_question(row)
        record["question"] = _plain(question.stem)
        return question

    def reply(self, asked: list[tuple[dict, Question]]) -> None:
        questions = [question for _, question in asked]
        scores = self.examinee.score(questions, self.method, self.flags.orders, prior=self.prior)
        for index, (record, question) in enumerate(asked):
            if self.method == GENERATE:
                record["response"] = scores.replies.get(index)
            if index in scores.skipped or index in scores.unparsable:
                record["error"] = scores.skipped.get(index) or f"回答看不出選了哪一個：{record['response']!r}"
                continue
            chosen, *others = tied(scores[index])
            record |= {
                "answer": LETTERS[chosen] if self.flags.answer_format == "letter" else chosen + self.first,
                "answer_text": _plain(question.options[chosen]),
            }
            if self.method != GENERATE:
                rounded = (round(score, 6) for score in scores[index])
                record["scores"] = dict(zip(LETTERS, rounded, strict=False))
            if others:  # the first of them is the answer
                record["tied"] = [LETTERS[option] for option in (chosen, *others)]


class FillMaskRows(RowHandler):
    """Sentences with blanks."""

    columns = PROMPT_COLUMNS
    told_of_end = False  # that a blank was put where there was none

    def ask(self, record: dict, row: dict | Unreadable):
        """The blanks, each to be filled with a token; None where words were found already."""
        prompt = _as_prompt(row)
        blanks = self.examinee.read(prompt)
        if blanks.meant:
            raise ValueError(f"{blanks.meant} 不是空格；空格要寫成 [MASK]（半形方括號、大寫）")
        if blanks.appended and not self.told_of_end:
            self.told_of_end = True
            log(f"第 {record['row']} 列的句子沒有 [MASK]：這樣的列都加在句尾")
        how = self.flags.word_length, self.flags.candidates
        if not asks_for_words(blanks, *how):
            return blanks
        found = self.examinee.words(prompt, self.flags.top_k, *how)
        _fill_in(record, [(filling.word, filling.score) for filling in found])
        return None

    def reply(self, asked: list[tuple[dict, object]]) -> None:
        single = [(record, blanks) for record, blanks in asked if blanks is not None]
        for record, found in self.each(single, lambda all: self.examinee.fill(all, self.flags.top_k)):
            _fill_in(record, [(word, math.log(max(share, LEAST))) for word, share in found])


class GenerationRows(RowHandler):
    """Prompts, instructions and conversations, for a model that writes."""

    columns = REPLY_COLUMNS

    def __init__(self, flags, examinee: Predictor):
        super().__init__(flags, examinee)
        manner_of(examinee.model)  # one that cannot write at all is refused before the first row
        self.remarks: Counter[str] = Counter()

    def ask(self, record: dict, row: dict | Unreadable) -> list[int]:
        said, remarks = _as_message(row)
        if not isinstance(said, str):
            remarks |= self.examinee.chat.remarks(said)
        self.remarks.update(remarks)
        record["prompt"] = _plain(said if isinstance(said, str) else said[-1]["content"])
        ids = self.examinee.encode(said)
        if len(ids) >= self.examinee.longest:
            raise ValueError(f"提示有 {len(ids)} 個 token，這個模型連同回答最多 {self.examinee.longest} 個")
        return ids

    def reply(self, asked: list[tuple[dict, list[int]]]) -> None:
        decoding: Decoding = self.flags.decoding
        if decoding.samples and decoding.seed is not None and asked:  # other draws for other rounds
            decoding = replace(decoding, seed=decoding.seed * 1_000_003 + asked[0][0]["row"])
        for record, reply in self.each(asked, lambda all: self.examinee.generate(all, decoding)):
            record["response"] = _plain(reply)


class ClassificationRows(RowHandler):
    """Texts, or pairs of them, for a classifier. Every label has its probability or, where --top_k is given,
    so many of them.
    """

    text = "text"

    def __init__(self, flags, examinee: ClassifierPredictor):
        super().__init__(flags, examinee)
        self.top_k = flags.top_k if "top_k" in flags.given else None
        self.named = _text_columns(Path(flags.input), flags.text_column, examinee.taught_columns)
        examinee.warn_of_count(len(self.named))
        self.key, kind = ("labels", "list") if examinee.multi else ("label", "text")
        texts = dict.fromkeys(("text", "pair")[: len(self.named)], "text")
        first, there = _columns_of(Path(flags.input))
        taught = str(examinee.card.flags.get("label_column") or "") if examinee.card else ""
        wanted = flags.label_column or (taught if {*column_names(taught)} <= {*there} else "")
        how = wanted, examinee.names, examinee.multi, f"--input {flags.input}"
        self.truth = Truth(there, self.named, *how)
        tell_of_numbers(self.truth, first)
        own = {
            "row": "whole",
            "id": "text",
            **texts,
            self.key: kind,
            "probabilities": "scores",
            "error": "text",
        }
        true = {f"true_{self.key}": kind} if self.truth else {}
        # what else the file says of a row, by its own name, or where that is taken as input_…
        self.kept = {name if name not in {*own, *true} else f"input_{name}": name for name in there}
        for name in ("id", "ID", *(name for name in self.named if name in ("text", "pair"))):
            self.kept.pop(f"input_{name}" if name in own else name, None)  # it stands there already
        if len(self.truth.columns.labels) == 1:
            self.kept.pop(f"input_{self.truth.columns.labels[0]}", None)
        self.columns = own | true | dict.fromkeys(self.kept, "text")

    def identity(self, source: Path) -> dict:
        columns = {"text_column": ",".join(self.named), "label_column": ",".join(self.truth.columns.labels)}
        return super().identity(source) | columns | {"top_k": self.top_k}

    def blank(self, number: int, row: dict | Unreadable) -> dict:
        given = row if isinstance(row, dict) else {}
        shown = {name: _plain(given.get(column)) for name, column in self._places()}
        kept = {name: _plain(given[column]) for name, column in self.kept.items() if column in given}
        if self.truth:
            true = self.truth.of(row)
            kept[f"true_{self.key}"] = true if self.examinee.multi else true and true[0]
        return super().blank(number, row) | shown | kept

    def tally(self, record: dict) -> None:
        self.truth.count(record.get(f"true_{self.key}"), None if record["error"] else record[self.key])

    def summary(self) -> tuple[list[str], dict]:
        return (self.truth.lines(), self.truth.told()) if self.truth else ([], {})

    def _places(self):
        """(name in a record, column in the file) of each text."""
        return zip(("text", "pair"), self.named, strict=False)

    def ask(self, record: dict, row: dict | Unreadable) -> str | tuple[str, ...]:
        texts = tuple(_as_text(row, column) for column in self.named)
        return texts if len(texts) > 1 else texts[0]

    def reply(self, asked: list[tuple[dict, str | tuple[str, ...]]]) -> None:
        for record, ranked in self.each(asked, self.examinee.classify):
            record |= self.examinee.to_record(ranked, self.top_k)


def _text_columns(source: Path, wanted: str, taught: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of the texts: those that --text_column names, else those the model was taught from where
    they are there too, else the obvious ones.

    Raises:
        UserError: no row that can be read, columns that are not there or cannot be told.
    """
    rows = list(islice((row for _, row in read_table(source) if isinstance(row, dict)), LOOKED))
    if not rows:
        problems = [f"{source}:{line}：{row}" for line, row in islice(read_table(source), 1)]
        raise UserError(problems or f"--input {source}：空的檔案")
    there = list(dict.fromkeys(str(name) for row in rows for name in row))
    if not wanted and taught and {*taught} <= {*there}:
        return taught
    return find_texts(there, wanted, f"--input {source}")


def _columns_of(source: Path) -> tuple[list[dict], list[str]]:
    """The first rows, and every column that a row of the file has, in the order they come."""
    first, there = [], {}
    for _, row in read_table(source):
        if isinstance(row, dict):
            there |= dict.fromkeys(map(str, row))
            first += [row] if len(first) < LOOKED else []
    return first, list(there)


def _as_text(row: dict | Unreadable, column: str) -> str:
    """Raises ValueError with the reason why there is none."""
    if isinstance(row, Unreadable):
        raise ValueError(row)
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    value = row.get(column)
    if value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(f"{column} 應該是文字，得到 {type(value).__name__}")
    if value is None or value != value or not str(value).strip():  # NaN is not itself
        raise ValueError(f"{column} 是空的" if column in row else f"沒有 {column} 欄")
    if not _is_text(str(value)):
        raise ValueError("有不成字的字元（半個 surrogate），不是合法的 UTF-8")
    if reason := too_long(str(value)):
        raise ValueError(f"{column} {reason}")
    return str(value)


def _as_prompt(row: dict | Unreadable) -> str:
    if isinstance(row, Unreadable):
        raise ValueError(row)
    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError("沒有 prompt 欄")
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt 是空的" if isinstance(prompt, (str, type(None))) else "prompt 應該是文字")
    return prompt


def _as_message(row: dict | Unreadable) -> tuple[str | list[Message], set[str]]:
    """A prompt, or a conversation that the user spoke last in; and how the row was read.

    Raises:
        ValueError: with the reason why it is none.
    """
    if isinstance(row, dict) and not (row.keys() & TELLS or is_told(row) or is_answered(row)):
        return _as_prompt(row), set()
    if isinstance(row, Unreadable):
        raise ValueError(row)
    remarks: set[str] = set()
    messages = parse_instruction(row, need_answer=False, remarks=remarks).messages
    alone = len(messages) == 1 and isinstance(row, dict) and messages[0]["content"] == row.get("prompt")
    return messages[0]["content"] if alone else messages, remarks


def _fill_in(record: dict, found: list[tuple[str, float]]) -> None:
    """Words and their scores, nats per token."""
    record["words"] = [word for word, _ in found]
    record["scores"] = [round(score, 6) for _, score in found]
    record["word"] = found[0][0] if found else None


def _plain(value: object) -> str:
    """A value as text that any file can hold."""
    if not isinstance(value, str):  # a date, a number, bytes of parquet
        value = "" if value is None else dumps(value, default=str)
    return value.encode("utf-8", "replace").decode()


def _is_text(value: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no tokenizer or file can."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
