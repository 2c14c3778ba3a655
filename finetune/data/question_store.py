"""Store of millions of questions in a temporary file.

Memory holds only what splitting needs, some 30 bytes of each question, and the names of subjects and
passages. Every process has a file of its own.
"""

from __future__ import annotations

import marshal
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

from finetune.data.question import Question, seeded_hash
from finetune.runtime.errors import UserError

IN_MEMORY = 1 << 25  # bytes up to which nothing is written to the disk


class QuestionStore:
    """Store of questions by their place, from 0.

    Attributes:
        fingerprints: of each question.
        subjects, passages: of each question, as indices into `subject_names`, `passage_names`. Passage 0 is
            none.
    """

    def __init__(self) -> None:
        # open as long as the store
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._ends = array("Q", [0])
        self.fingerprints, self.subjects, self.passages = array("Q"), array("I"), array("I")
        self.subject_names: list[str] = []
        self.passage_names: list[str] = [""]
        self._subject_numbers: dict[str, int] = {}
        self._passage_numbers: dict[str, int] = {"": 0}

    def __len__(self) -> int:
        return len(self.fingerprints)

    def append(self, question: Question) -> int:
        """Store a question and return its place.

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
            raise _storage_error(error) from error
        self._ends.append(self._ends[-1] + len(record))
        self.fingerprints.append(int(question.fingerprint, 16))
        self.subjects.append(subject)
        self.passages.append(passage)
        return len(self) - 1

    def __getitem__(self, place: int) -> Question:
        """Read a question.

        Raises:
            UserError: the disk is full, and the question stored last had not reached it.
        """
        start, end = self._ends[place], self._ends[place + 1]
        try:
            self._file.seek(start)
            record = self._file.read(end - start)
        except OSError as error:
            raise _storage_error(error) from error
        stem, options, answer, name = marshal.loads(record)
        subject, passage = self.subject_names[self.subjects[place]], self.passage_names[self.passages[place]]
        return Question(stem, options, answer, subject, name, passage)


def _storage_error(error: OSError) -> UserError:
    # the folder is known only once one was found
    """Return the error for a temporary file that cannot be used."""
    where = f"（在 {tempfile.tempdir}）" if tempfile.tempdir else ""
    return UserError(
        f"題目的暫存檔{where}不能用（{error.strerror}）：請清出空間，或用環境變數 TMPDIR 換一個地方"
    )


def _number(name: str, numbers: dict[str, int], names: list[str]) -> int:
    """Return the number of a name; a new name gets the next one."""
    if name not in numbers:
        numbers[name] = len(names)
        names.append(name)
    return numbers[name]


class QuestionView(Sequence[Question]):
    """Questions of a store, in an order of their own.

    They are read anew each time: two readings are equal, not the same object.
    """

    def __init__(self, questions: Iterable[Question] = (), store: QuestionStore | None = None):
        self.store = QuestionStore() if store is None else store
        self._places = array("I")
        for question in questions:
            self.append(question)

    def append(self, question: Question) -> None:
        """Store a question and add it to the view."""
        self._places.append(self.store.append(question))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> QuestionView: ...

    def __getitem__(self, index: int | slice) -> Question | QuestionView:
        if isinstance(index, slice):
            return self._view_of(self._places[index])
        return self.store[self._places[index]]

    def __iter__(self) -> Iterator[Question]:
        return map(self.store.__getitem__, self._places)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(question == other_row for question, other_row in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # unhashable as a list is

    def __repr__(self) -> str:
        return f"<Rows of {len(self):,} questions>"

    def pick(self, indices: Iterable[int]) -> QuestionView:
        """Return the questions at these indices, in this order."""
        return self._view_of(array("I", map(self._places.__getitem__, indices)))

    def _view_of(self, places: array[int]) -> QuestionView:
        """Return a view of the questions at these places of the store."""
        rows = QuestionView(store=self.store)
        rows._places = places
        return rows

    @property
    def fingerprints(self) -> array[int]:
        """(n,) numbers: the 16 hexadecimal digits of `Question.fingerprint`."""
        return self._column(self.store.fingerprints)

    @property
    def passages(self) -> array[int]:
        """(n,) numbers, 0 where a question is about no passage."""
        return self._column(self.store.passages)

    def _column(self, column: array[int]) -> array[int]:
        """Return a column of the store for the questions of this view."""
        return array(column.typecode, map(column.__getitem__, self._places))

    @property
    def subjects(self) -> set[str]:
        """Names of the subjects, without the "" of questions that have none."""
        return {self.store.subject_names[number] for number in {*self._column(self.store.subjects)}} - {""}

    def of_subjects(self, wanted: set[str]) -> QuestionView:
        """Return the questions of these subjects."""
        names, numbers = self.store.subject_names, self._column(self.store.subjects)
        return self.pick(index for index, number in enumerate(numbers) if names[number] in wanted)

    # numpy is imported late, so that --help needs no numpy

    def deduplicated(self, other_than: QuestionView) -> QuestionView:
        """Return each question once, at its first place, unless `other_than` has it; by fingerprint."""
        import numpy as np

        unique, first = np.unique(np.array(self.fingerprints), return_index=True)
        return self.pick(np.sort(first[~np.isin(unique, np.array(other_than.fingerprints))]))

    def stratified_shuffle(self, seed: int) -> QuestionView:
        """Return the questions by subject, shuffled within each; those about one passage stay together.

        The order within a subject is that of `seeded_hash`.
        """
        import numpy as np

        names, passages = self.store.subject_names, self.store.passage_names
        rank = np.empty(len(names), np.uint32)  # of each subject by number
        rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        keys = (
            passages[passage] or f"{fingerprint:016x}"
            for passage, fingerprint in zip(self.passages, self.fingerprints, strict=True)
        )
        drawn = (int.from_bytes(seeded_hash(seed, key)[:8], "big") for key in keys)
        order = (np.fromiter(drawn, np.uint64, len(self)), rank[np.array(self._column(self.store.subjects))])
        return self.pick(np.lexsort(order))


def as_view(questions: Sequence[Question]) -> QuestionView:
    """Return the same questions as a QuestionView."""
    return questions if isinstance(questions, QuestionView) else QuestionView(questions)


def concat(parts: Sequence[QuestionView]) -> QuestionView:
    """Concatenate views."""
    if parts and all(part.store is parts[0].store for part in parts):
        return parts[0]._view_of(array("I", chain.from_iterable(part._places for part in parts)))
    return QuestionView(question for part in parts for question in part)


def questions_of(rows: Sequence[Any]) -> Sequence[Question]:
    """Return the questions among rows of any kind."""
    return rows if isinstance(rows, QuestionView) else [row for row in rows if isinstance(row, Question)]


def pick(rows: Sequence[Any], indices: Sequence[int]) -> Sequence[Any]:
    """Return rows of any kind by their indices, which must be ascending."""
    if len(indices) == len(rows):
        return rows
    return rows.pick(indices) if isinstance(rows, QuestionView) else [rows[index] for index in indices]
