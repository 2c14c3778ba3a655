"""Questions by the million: they lie in a temporary file, and in memory only what splitting them needs, some
30 bytes of each, and the names of subjects and passages. Every process has a file of its own.
"""

from __future__ import annotations

import marshal
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from finetune.data.question import Question, seeded_hash
from finetune.runtime.errors import UserError

IN_MEMORY = 1 << 25  # bytes, up to which nothing is written to the disk


class QuestionStore:
    """Where questions lie, by place: 0, 1, …

    Attributes:
        fingerprints, subjects, passages: of each; the latter as numbers of `subject_names`, `passage_names`.
            Passage 0 is none.
    """

    def __init__(self):
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)
        self._ends = array("Q", [0])
        self.fingerprints, self.subjects, self.passages = array("Q"), array("I"), array("I")
        self.subject_names: list[str] = []
        self.passage_names: list[str] = [""]
        self._subject_numbers: dict[str, int] = {}
        self._passage_numbers: dict[str, int] = {"": 0}

    def __len__(self) -> int:
        return len(self.fingerprints)

    def append(self, question: Question) -> int:
        """Puts a question on the shelf: its place.

        Raises:
            UserError: the disk is full.
        """
        subject = _number(question.subject, self._subject_numbers, self.subject_names)
        passage = _number(question.passage, self._passage_numbers, self.passage_names)
        record = marshal.dumps((question.stem, question.options, question.answer, question.id))
        try:
            self._file.seek(self._ends[-1])
            self._file.write(record)
        except OSError as error:
            raise _full(error) from error
        self._ends.append(self._ends[-1] + len(record))
        self.fingerprints.append(int(question.fingerprint, 16))
        self.subjects.append(subject)
        self.passages.append(passage)
        return len(self) - 1

    def __getitem__(self, place: int) -> Question:
        """Raises UserError: the disk is full, and what was put there last had not reached it."""
        start, end = self._ends[place], self._ends[place + 1]
        try:
            self._file.seek(start)
            record = self._file.read(end - start)
        except OSError as error:
            raise _full(error) from error
        stem, options, answer, name = marshal.loads(record)
        subject, passage = self.subject_names[self.subjects[place]], self.passage_names[self.passages[place]]
        return Question(stem, options, answer, subject, name, passage)


def _full(error: OSError) -> UserError:
    # where it lies can only be said once a place was found
    where = f"（在 {tempfile.tempdir}）" if tempfile.tempdir else ""
    return UserError(
        f"題目的暫存檔{where}不能用（{error.strerror}）：請清出空間，或用環境變數 TMPDIR 換一個地方"
    )


def _number(name: str, numbers: dict[str, int], names: list[str]) -> int:
    if name not in numbers:
        numbers[name] = len(names)
        names.append(name)
    return numbers[name]


class QuestionView(Sequence):
    """Questions of a shelf, in an order of their own. Read anew each time: two readings are equal, not the
    same object.
    """

    def __init__(self, questions: Iterable[Question] = (), shelf: QuestionStore | None = None):
        self.shelf = QuestionStore() if shelf is None else shelf
        self._places = array("I")
        for question in questions:
            self.append(question)

    def append(self, question: Question) -> None:
        self._places.append(self.shelf.append(question))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index):
        at = self._places[index]
        return self._at(at) if isinstance(index, slice) else self.shelf[at]

    def __iter__(self) -> Iterator[Question]:
        return map(self.shelf.__getitem__, self._places)

    def __eq__(self, other: object) -> bool:
        alike = isinstance(other, Sequence) and len(self) == len(other)
        return alike and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"<Rows of {len(self):,} questions>"

    def pick(self, indices: Iterable[int]) -> QuestionView:
        """Those of these indices, in this order."""
        return self._at(array("I", map(self._places.__getitem__, indices)))

    def _at(self, places: array) -> QuestionView:
        rows = QuestionView(shelf=self.shelf)
        rows._places = places
        return rows

    @property
    def fingerprints(self) -> array:
        """(n,) numbers: of 16 hexadecimal digits, as `Question.fingerprint` has them."""
        return self._of(self.shelf.fingerprints)

    @property
    def passages(self) -> array:
        """(n,) numbers, 0 where a question is about no passage."""
        return self._of(self.shelf.passages)

    def _of(self, column: array) -> array:
        return array(column.typecode, map(column.__getitem__, self._places))

    @property
    def subjects(self) -> set[str]:
        """Their names, without "" of the questions that have none."""
        return {self.shelf.subject_names[number] for number in {*self._of(self.shelf.subjects)}} - {""}

    def of_subjects(self, wanted: set[str]) -> QuestionView:
        names, numbers = self.shelf.subject_names, self._of(self.shelf.subjects)
        return self.pick(index for index, number in enumerate(numbers) if names[number] in wanted)

    # numpy is imported late: --help answers without it

    def deduplicated(self, other_than: QuestionView) -> QuestionView:
        """Each question the first time it stands here, unless it is among the others: by fingerprint."""
        import numpy as np

        found, first = np.unique(np.array(self.fingerprints), return_index=True)
        return self.pick(np.sort(first[~np.isin(found, np.array(other_than.fingerprints))]))

    def stratified_shuffle(self, seed: int) -> QuestionView:
        """By subject, and within one in the order of `draw`; questions about one passage side by side."""
        import numpy as np

        names, passages = self.shelf.subject_names, self.shelf.passage_names
        rank = np.empty(len(names), np.uint32)  # of each subject by number
        rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        keys = (
            passages[passage] or f"{fingerprint:016x}"
            for passage, fingerprint in zip(self.passages, self.fingerprints, strict=True)
        )
        drawn = (int.from_bytes(seeded_hash(seed, key)[:8], "big") for key in keys)
        order = (np.fromiter(drawn, np.uint64, len(self)), rank[np.array(self._of(self.shelf.subjects))])
        return self.pick(np.lexsort(order))


def as_view(questions: Sequence[Question]) -> QuestionView:
    """The same questions as Rows."""
    return questions if isinstance(questions, QuestionView) else QuestionView(questions)


def concat(parts: Sequence[QuestionView]) -> QuestionView:
    """One after the other."""
    if parts and all(part.shelf is parts[0].shelf for part in parts):
        return parts[0]._at(array("I", chain.from_iterable(part._places for part in parts)))
    return QuestionView(question for part in parts for question in part)


def questions_of(rows: Sequence) -> Sequence[Question]:
    """The questions among rows of any kind."""
    return rows if isinstance(rows, QuestionView) else [row for row in rows if isinstance(row, Question)]


def pick(rows: Sequence, indices: Sequence[int]) -> Sequence:
    """Rows of any kind by their indices, which grow from one to the next."""
    if len(indices) == len(rows):
        return rows
    return rows.pick(indices) if isinstance(rows, QuestionView) else [rows[index] for index in indices]
