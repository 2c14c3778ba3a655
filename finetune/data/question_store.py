"""Store of questions: those of an exam in memory, millions of them in Arrow files.

Beyond `IN_MEMORY` questions, `datasets` writes them to the disk and maps them into memory; of each, memory
then holds what splitting needs, some 30 bytes, and the names of subjects and passages. Every process has
files of its own.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

from finetune.data.question import Question, seeded_hash
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

IN_MEMORY = 1 << 15  # questions kept in memory before they are written to the disk; TMMLU+ has 22,690
CHARACTERS_IN_MEMORY = 1 << 24  # and of how many characters, where questions are long
BLOCK = 1024  # questions read from the disk at a time


class QuestionStore:
    """Store of questions by their place, from 0.

    Attributes:
        fingerprints: one for each question.
        subjects, passages: for each question, as indices into `subject_names`, `passage_names`. Passage 0 is
            none.
    """

    def __init__(self) -> None:
        self._on_disk: Dataset | None = None  # the questions stored first
        self._in_memory: list[Question] = []  # those after them
        self._characters = 0  # characters of the questions in memory
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
        if len(self._in_memory) >= IN_MEMORY or self._characters >= CHARACTERS_IN_MEMORY:
            self._write()
        self._in_memory.append(question)
        self._characters += len(question.stem) + sum(map(len, question.options))
        self.fingerprints.append(int(question.fingerprint, 16))
        self.subjects.append(_number(question.subject, self._subject_numbers, self.subject_names))
        self.passages.append(_number(question.passage, self._passage_numbers, self.passage_names))
        return len(self) - 1

    def __getitem__(self, place: int) -> Question:
        return next(self.read([place]))

    def read(self, places: Sequence[int]) -> Iterator[Question]:
        """Yield the questions at these places, which are looked up together."""
        written = len(self) - len(self._in_memory)
        from_disk = iter(self._read_from_disk([place for place in places if place < written]))
        for place in places:
            yield next(from_disk) if place < written else self._in_memory[place - written]

    def _write(self) -> None:
        """Move the questions in memory to the disk."""
        import datasets

        features = {
            "stem": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("int8"),
            "id": datasets.Value("string"),
        }
        columns = {name: [getattr(q, name) for q in self._in_memory] for name in features}
        shows_bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            # A file that is mapped stays until this process ends, however it ends; its name may go at once.
            with tempfile.TemporaryDirectory(prefix="questions_", ignore_cleanup_errors=True) as folder:
                table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
                table.save_to_disk(folder)
                written = datasets.load_from_disk(folder)
        except OSError as error:
            raise _storage_error(error) from error
        finally:
            if shows_bars:
                datasets.enable_progress_bars()
        earlier = [self._on_disk] if self._on_disk else []
        self._on_disk = datasets.concatenate_datasets([*earlier, written])
        self._in_memory, self._characters = [], 0

    def _read_from_disk(self, places: Sequence[int]) -> Iterator[Question]:
        """Yield the questions at these places, all of which are on the disk."""
        if not places or self._on_disk is None:
            return
        columns = self._on_disk[list(places)]
        rows = zip(columns["stem"], columns["options"], columns["answer"], columns["id"], strict=True)
        for place, (stem, options, answer, name) in zip(places, rows, strict=True):
            subject = self.subject_names[self.subjects[place]]
            passage = self.passage_names[self.passages[place]]
            yield Question(stem, tuple(options), answer, subject, name, passage)


def _storage_error(error: OSError) -> UserError:
    """Return the error for temporary files that cannot be written."""
    where = f"（在 {tempfile.tempdir}）" if tempfile.tempdir else ""  # known once a folder was found
    return UserError(
        f"題目的暫存檔{where}不能用（{error.strerror or error}）：請清出空間，或用環境變數 TMPDIR 換一個地方"
    )


def _number(name: str, numbers: dict[str, int], names: list[str]) -> int:
    """Return the number of a name; a new name gets the next one."""
    if name not in numbers:
        numbers[name] = len(names)
        names.append(name)
    return numbers[name]


class QuestionView(Sequence[Question]):
    """Questions of a store, in an order of their own.

    Those on the disk are read anew each time: two readings are equal, not the same object.
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
        for start in range(0, len(self), BLOCK):
            yield from self.store.read(self._places[start : start + BLOCK])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(question == other_row for question, other_row in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # unhashable as a list is

    def __repr__(self) -> str:
        return f"<{len(self):,} questions>"

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
        rank = np.empty(len(names), np.uint32)  # subject number -> rank
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
