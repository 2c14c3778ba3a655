"""Two revisions of an exam joined by content: what stayed, what changed, what is gone or added.

Row ids cannot be joined: a row taken out moves all that follow. Two rows are the same question where stem and
options, in their order, are the same but for widths and white space. Of what is left, rows are one question
that was changed where they share most of their 5-grams (`contamination.NEAR`), or the stem and half of the
options, or a stem that is long and occurs once in each revision (下列何者正確？ alone says nothing), or all
options, which occur once in each, and a part of their 5-grams. Each row belongs to one pair at most, the
nearest ones are joined first, and all ties go by the order of the rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from finetune.data.cells import without_spaces
from finetune.data.contamination import NEAR, TrainedQuestions, grams
from finetune.data.question import Question

UNCHANGED, KEY_CHANGED, TEXT_CHANGED = "unchanged", "key_changed", "text_changed"
GONE, ADDED = "gone", "added"
KINDS = (UNCHANGED, KEY_CHANGED, TEXT_CHANGED, GONE, ADDED)
# what changed of a text
STEM, OPTIONS, ORDER, BOTH = "stem", "options", "order", "stem_and_options"
CHANGES = (STEM, OPTIONS, ORDER, BOTH)
PARTLY = NEAR / 2  # share of 5-grams in common from which on the same options are those of one question
LONG_STEM = 15  # characters from which on a stem that occurs once in each revision is the same question


@dataclass(frozen=True)
class Pair:
    """A question in both revisions.

    Attributes:
        old, new: its place among the rows of each.
        kind: UNCHANGED, KEY_CHANGED or TEXT_CHANGED.
        change: of a changed text one of CHANGES, else "".
        overlap: share of 5-grams in common (Jaccard, estimated from sketches).
    """

    old: int
    new: int
    kind: str
    change: str = ""
    overlap: float = 1.0


@dataclass(frozen=True)
class RevisionJoin:
    """Two revisions of an exam, row by row.

    Attributes:
        old, new: the rows of each, all with an answer.
        pairs: in the order of the new rows.
        gone: places of old rows without a partner.
        added: places of new rows without one.
        names: of the revisions.
    """

    old: Sequence[Question]
    new: Sequence[Question]
    pairs: list[Pair]
    gone: list[int]
    added: list[int]
    names: tuple[str, str]

    @property
    def shared(self) -> list[Pair]:
        """The pairs whose stem and options are the same in both."""
        return [pair for pair in self.pairs if pair.kind != TEXT_CHANGED]

    @property
    def counts(self) -> dict[str, int]:
        """The number of questions of each of KINDS."""
        kinds = Counter(pair.kind for pair in self.pairs)
        return {kind: kinds[kind] for kind in KINDS[:3]} | {GONE: len(self.gone), ADDED: len(self.added)}

    def by_subject(self) -> dict[str, dict[str, int]]:
        """Return for each subject the rows of each revision, and the number of questions of each of KINDS.

        A question that moved to another subject counts under its new one.
        """
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for name, rows in (("old_rows", self.old), ("new_rows", self.new)):
            for question in rows:
                counts[question.subject][name] += 1
        for pair in self.pairs:
            counts[self.new[pair.new].subject][pair.kind] += 1
        for place in self.gone:
            counts[self.old[place].subject][GONE] += 1
        for place in self.added:
            counts[self.new[place].subject][ADDED] += 1
        columns = ("old_rows", "new_rows", *KINDS)
        return {subject: {name: counts[subject][name] for name in columns} for subject in sorted(counts)}


def join_revisions(
    old: Sequence[Question], new: Sequence[Question], names: tuple[str, str] = ("", "")
) -> RevisionJoin:
    """Join the rows of two revisions of an exam by their content.

    Of equal rows within a revision those are joined first that also agree in subject and key.
    """
    old, new = list(old), list(new)
    pairs = _same_pairs(old, new)
    pairs += _changed_pairs(old, new, {pair.old for pair in pairs}, {pair.new for pair in pairs})
    pairs.sort(key=lambda pair: pair.new)
    old_paired, new_paired = {pair.old for pair in pairs}, {pair.new for pair in pairs}
    gone = [place for place in range(len(old)) if place not in old_paired]
    added = [place for place in range(len(new)) if place not in new_paired]
    return RevisionJoin(old, new, pairs, gone, added, names)


def duplicates(rows: Sequence[Question]) -> int:
    """Return how many rows of a revision say the same as an earlier one of it."""
    return len(rows) - len({_content(question) for question in rows})


def _content(question: Question) -> tuple[str, ...]:
    """Return stem and options, in their order, without widths and white space."""
    return (without_spaces(question.stem), *map(without_spaces, question.options))


def _same_pairs(old: list[Question], new: list[Question]) -> list[Pair]:
    """Pair the rows of the same content."""
    pairs: list[Pair] = []
    agreements: tuple[Callable[[Question], Hashable], ...] = (
        lambda q: (_content(q), q.subject, q.answer),
        lambda q: (_content(q), q.subject),
        lambda q: (_content(q), q.answer),
        _content,
    )
    olds, news = list(range(len(old))), list(range(len(new)))
    for key in agreements:
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for place in reversed(olds):
            waiting[key(old[place])].append(place)
        paired: dict[int, int] = {}
        for place in news:
            if candidates := waiting.get(key(new[place])):
                paired[place] = candidates.pop()
        for mine, other in paired.items():
            kind = UNCHANGED if old[other].answer == new[mine].answer else KEY_CHANGED
            pairs.append(Pair(other, mine, kind))
        taken = {*paired.values()}
        olds = [place for place in olds if place not in taken]
        news = [place for place in news if place not in paired]
    return pairs


def _changed_pairs(
    old: list[Question], new: list[Question], old_paired: set[int], new_paired: set[int]
) -> list[Pair]:
    """Pair the rows that are left and are one question with another text, the nearest first."""
    olds = [place for place in range(len(old)) if place not in old_paired]
    news = [place for place in range(len(new)) if place not in new_paired]
    index = TrainedQuestions({str(place): grams(new[place]) for place in news})
    by_stem: dict[str, list[int]] = defaultdict(list)
    for place in news:
        by_stem[without_spaces(new[place].stem)].append(place)
    stems = [Counter(without_spaces(question.stem) for question in rows) for rows in (old, new)]
    choices = [Counter(map(_choices, rows)) for rows in (old, new)]
    candidates: list[tuple[float, bool, int, int]] = []
    for place in olds:
        row, stem, options = old[place], without_spaces(old[place].stem), _choices(old[place])
        near = {int(name): share for share, name in index.nearest(grams(row))}
        one_stem = len(stem) >= LONG_STEM and all(count[stem] == 1 for count in stems)
        one_choice = all(count[options] == 1 for count in choices)
        accepted = {other for other, share in near.items() if share >= NEAR}
        accepted |= {
            other
            for other in by_stem.get(stem, ())
            if one_stem or len({*options} & {*_choices(new[other])}) >= len(options) / 2
        }
        if one_choice:
            accepted |= {
                other for other, share in near.items() if share >= PARTLY and _choices(new[other]) == options
            }
        for other in accepted:
            candidates.append((-near.get(other, 0.0), row.subject != new[other].subject, place, other))
    pairs: list[Pair] = []
    taken_old: set[int] = set()
    taken_new: set[int] = set()
    for share, _, place, other in sorted(candidates):
        if place not in taken_old and other not in taken_new:
            taken_old.add(place)
            taken_new.add(other)
            pairs.append(Pair(place, other, TEXT_CHANGED, _change(old[place], new[other]), -share))
    return pairs


def _choices(question: Question) -> tuple[str, ...]:
    """Return the options of a question in an order of their own."""
    return tuple(sorted(map(without_spaces, question.options)))


def _change(old: Question, new: Question) -> str:
    """Return which of CHANGES makes one question of another."""
    old_stem, *old_options = _content(old)
    new_stem, *new_options = _content(new)
    if old_stem == new_stem:
        return ORDER if sorted(old_options) == sorted(new_options) else OPTIONS
    return STEM if old_options == new_options else BOTH
