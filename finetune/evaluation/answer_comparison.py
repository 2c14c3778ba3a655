"""Two files of answers: their questions joined by content, and the figures of the comparison.

Questions whose key is not the same in both files (another revision of the exam) are no part of the figures:
they are counted by either key, apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from finetune.data.question import LETTERS
from finetune.data.subjects import category_of
from finetune.evaluation import metrics
from finetune.evaluation.answer_files import AnswerFile, matching
from finetune.evaluation.answer_layouts import ANSWERED, OURS, Answer
from finetune.evaluation.question_interval import question_interval
from finetune.evaluation.set_names import in_order
from finetune.runtime.errors import UserError, listed

NAMED = 20  # ids of rows in one file alone that are listed
TOO_OLD = (
    "是舊版的 predictions.jsonl，沒有題目的指紋（fingerprint）；請用這一版以 --exam 再評測一次，"
    "兩份都有指紋就能依內容對應"
)


@dataclass(frozen=True)
class Pair:
    """A question that both files answer."""

    first: Answer
    second: Answer

    @property
    def subject(self) -> str:
        """Subject, by whichever file knows it; TMMLU+'s names are preferred."""
        names = (self.first.subject, self.second.subject)
        return next(filter(category_of, names), names[0] or names[1])

    @property
    def shown(self) -> Answer:
        """The answer whose file holds the question's text, or the first one."""
        return self.first if self.first.options or not self.second.options else self.second

    @property
    def same_key(self) -> bool:
        """Whether the key is the same option in both files, wherever it stands."""
        first, second = self.first, self.second
        return matching(second.gold, second.options, first.options) == first.gold


@dataclass
class Joined:
    """Questions of two files.

    Attributes:
        by: `fingerprint` or `id`.
        pairs: with the same key in both.
        key_changed: with another key.
        only_first, only_second: in one file alone.
        repeated: number of pairs whose question stands in a file more than once; they are matched by their
            ids, then in order.
        left_out: sets that are not compared -> number of their questions in both files.
    """

    by: str
    pairs: list[Pair] = field(default_factory=list)
    key_changed: list[Pair] = field(default_factory=list)
    only_first: list[Answer] = field(default_factory=list)
    only_second: list[Answer] = field(default_factory=list)
    repeated: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


# ---- joining -----------------------------------------------------------------------------------------------


def join(first: AnswerFile, second: AnswerFile, chosen_set: str | None = None) -> Joined:
    """Join the questions of two files.

    Args:
        first: a file of answers.
        second: the other one.
        chosen_set: the set of questions to compare, where files hold several; None takes the most trustworthy
            one that both hold, `all` every one.

    Raises:
        UserError: they cannot be joined, or have no question in common.
    """
    by = "fingerprint"
    if old := [file for file in (first, second) if any(not a.fingerprint for a in file.answers)]:
        if first.layout != OURS or second.layout != OURS:
            raise UserError(f"--compare {old[0].path} {TOO_OLD}")
        by = "id"
    answers, left_out = _of_one_set(first, second, chosen_set)
    joined = _matched(*answers, by)
    joined.left_out = left_out
    if by == "id" and (joined.key_changed or (joined.only_first and joined.only_second)):
        raise UserError(
            f"--compare {old[0].path} {TOO_OLD}（編號只有一部分相同，或正解不同，不能當作同一份題目來對應）"
        )
    if not joined.pairs and not joined.key_changed:
        raise UserError(
            f"--compare：{first.path} 與 {second.path} 沒有共同的題目"
            f"（{len(answers[0])} 題與 {len(answers[1])} 題，依題幹與選項的內容比對）。可能是不同的題庫、"
            f"不同的部分（{_sets(first)} 與 {_sets(second)}）或科目，或有一份的題目改寫過；"
            f"例如{_example(answers[0])}與{_example(answers[1])}"
        )
    return joined


def _sets(file: AnswerFile) -> str:
    return listed((name or "未註明" for name in file.sets), 5)


def _example(answers: Sequence[Answer]) -> str:
    return f"「{answers[0].stem[:30] or answers[0].id}」" if answers else "（這一部分沒有題目）"


def _of_one_set(
    first: AnswerFile, second: AnswerFile, chosen: str | None
) -> tuple[tuple[list[Answer], list[Answer]], dict[str, int]]:
    """Return the answers to compare of each file, and the number of those in sets that are left out.

    Raises:
        UserError: no file has the set that was asked for.
    """
    files, left_out = (first, second), Counter[str]()
    names = set(first.sets) | set(second.sets)
    if chosen not in (None, "all"):
        if chosen not in names:
            raise UserError(f"--split {chosen}：兩份作答裡沒有這一部分，有的是 {listed(filter(None, names))}")
        wanted = {str(chosen), ""}
    elif chosen is None and (both := set(first.sets) & set(second.sets) - {""}):
        wanted = {next(iter(in_order(dict.fromkeys(sorted(both))))), ""}
    else:
        wanted = names
    kept: list[list[Answer]] = []
    for file in files:
        kept.append([answer for answer in file.answers if answer.set in wanted])
        left_out.update(answer.set for answer in file.answers if answer.set not in wanted)
    return (kept[0], kept[1]), dict(left_out)


def _matched(first: Sequence[Answer], second: Sequence[Answer], by: str) -> Joined:
    """Pair answers to the same question; of questions that stand there twice by id, then in order."""

    def key(answer: Answer) -> str:
        return answer.fingerprint if by == "fingerprint" else f"{answer.set}\x1f{answer.id}"

    joined = Joined(by)
    waiting: dict[str, list[Answer]] = defaultdict(list)
    for answer in second:
        waiting[key(answer)].append(answer)
    counts = Counter(map(key, first))
    several = {name for name, count in counts.items() if count > 1}
    several |= {name for name, others in waiting.items() if len(others) > 1 and name in counts}
    partner: dict[int, Answer] = {}
    for same_id in (True, False):
        for place, answer in enumerate(first):
            others = waiting.get(key(answer), [])
            if place in partner or not others:
                continue
            ids = [other.id for other in others]
            if not same_id:
                partner[place] = others.pop(0)
            elif len(others) > 1 and answer.id in ids:
                partner[place] = others.pop(ids.index(answer.id))
    for place, answer in enumerate(first):
        if place not in partner:
            joined.only_first.append(answer)
            continue
        pair = Pair(answer, partner[place])
        joined.repeated += key(answer) in several
        (joined.pairs if pair.same_key else joined.key_changed).append(pair)
    joined.only_second = [answer for answer in second if any(answer is left for left in waiting[key(answer)])]
    return joined


# ---- figures -----------------------------------------------------------------------------------------------


def compare(joined: Joined) -> dict[str, Any]:
    """Return the figures of two joined files, as compare.json has them.

    Differences are first − second. `p_holm` of a subject is its p-value after Holm's correction, see `holm`.
    `paired` is {} and accuracies are empty where no question has one key.
    """
    pairs = joined.pairs
    figures: dict[str, Any] = {
        "joined_by": joined.by,
        "joined": len(pairs),
        "only_first": _named(joined.only_first),
        "only_second": _named(joined.only_second),
        "repeated_questions": joined.repeated,
        "sets_left_out": joined.left_out,
        "key_changed": key_changes(joined.key_changed),
        "first": {}, "second": {}, "paired": {}, "macro_4": {}, "categories": {}, "subjects": {},
        "outcomes": crosstab(pairs),
        "moved": dict(Counter(direction for pair in pairs if (direction := moved(pair)))),
    }  # fmt: skip
    if not pairs:
        return figures
    first, second = [p.first.credit for p in pairs], [p.second.credit for p in pairs]
    subjects = [p.subject for p in pairs]
    figures["first"] = _accuracy([pair.first for pair in pairs])
    figures["second"] = _accuracy([pair.second for pair in pairs])
    figures["paired"] = {
        **metrics.paired_test(first, second),
        **metrics.difference_of_credits(subjects, first, second),
    }
    figures["subjects"] = by_group(pairs, lambda pair: pair.subject)
    figures["categories"] = by_group(pairs, lambda pair: category_of(pair.subject) or "")
    figures["categories"].pop("", None)
    for name in ("first", "second"):
        of_subjects = {subject: row[name] for subject, row in figures["subjects"].items()}
        if macro := metrics.macro_4(of_subjects):
            figures["macro_4"][name] = macro
    return figures


def _accuracy(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return accuracy, right, n and interval; of several runs the interval of the questions' means."""
    credits = [answer.credit for answer in answers]
    share = metrics.share(sum(credits), len(credits))
    several = any(len(answer.chosen) > 1 for answer in answers)
    return share | (question_interval(credits) if several else {})


def by_group(pairs: Iterable[Pair], group_of: Callable[[Pair], str]) -> dict[str, dict[str, Any]]:
    """Return accuracies, difference and test of each group of questions, with Holm's correction."""
    rows: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        rows[group_of(pair)].append(pair)
    groups: dict[str, dict[str, Any]] = {}
    for name, members in sorted(rows.items()):
        first, second = [p.first.credit for p in members], [p.second.credit for p in members]
        groups[name] = {
            "n": len(members),
            "first": _accuracy([pair.first for pair in members]),
            "second": _accuracy([pair.second for pair in members]),
            **metrics.mean_difference([a - b for a, b in zip(first, second, strict=True)]),
            **metrics.paired_test(first, second),
        }
    for name, p in holm({name: row["p_value"] for name, row in groups.items()}).items():
        groups[name]["p_holm"] = p
    return groups


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values after Holm's correction (Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of m is multiplied by m − i + 1; none becomes smaller than one before it.
    """
    adjusted, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def key_changes(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the questions whose key differs, and both accuracies by either key."""
    if not pairs:
        return {"n": 0}
    by_key: dict[str, dict[str, float]] = {"first": {}, "second": {}}
    for key, owner in (("first", 0), ("second", 1)):
        for name, answerer in (("first", 0), ("second", 1)):
            by_key[key][name] = fmean(
                _credit_by(*((pair.first, pair.second)[place] for place in (owner, answerer)))
                for pair in pairs
            )
    return {
        "n": len(pairs),
        "accuracy_by_key_of_first": by_key["first"],
        "accuracy_by_key_of_second": by_key["second"],
        "questions": [question_record(pair) for pair in pairs],
    }


def _credit_by(owner: Answer, answerer: Answer) -> float:
    """Return the credit of an answer by the key of another file."""
    if owner is answerer:
        return answerer.credit
    gold = matching(owner.gold, owner.options, answerer.options)
    return fmean(metrics.credit(gold, chosen) if gold != -1 else 0.0 for chosen in answerer.chosen)


def _named(answers: Sequence[Answer]) -> dict[str, Any]:
    return {"n": len(answers), "ids": [answer.id for answer in answers[:NAMED]]}


# ---- what moved --------------------------------------------------------------------------------------------


def moved(pair: Pair) -> str:
    """Return which answer of a pair earned more: `only_first`, `only_second`; "" where both earned the same.

    Ties and runs that earned in part count as `more_first` and `more_second`.
    """
    first, second = pair.first.credit, pair.second.credit
    if abs(first - second) < 1e-9:
        return ""
    whole = {round(first, 9), round(second, 9)} == {0.0, 1.0}
    return f"{'only' if whole else 'more'}_{'first' if first > second else 'second'}"


def standing(answer: Answer) -> str:
    """Return how an answer fared: right, wrong or partly; or the outcome where it names no option."""
    if answer.outcome != ANSWERED:
        return answer.outcome
    return "right" if answer.credit >= 1 - 1e-9 else "wrong" if answer.credit <= 1e-9 else "partly"


def crosstab(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """Return how many questions fared so in the first file and so in the second: first -> second -> n."""
    counts = Counter((standing(pair.first), standing(pair.second)) for pair in pairs)
    present = {name for both in counts for name in both}
    usual = ("right", "partly", "wrong")
    names = [name for name in usual if name in present] + sorted(present - {*usual})
    return {first: {second: counts[first, second] for second in names} for first in names}


def question_record(pair: Pair) -> dict[str, Any]:
    """Return one question with both answers, as moved.jsonl has it: letters are those of `options`."""
    shown = pair.shown

    def side(answer: Answer) -> dict[str, Any]:
        chosen = [matching(one, answer.options, shown.options) for one in answer.chosen]
        gold = matching(answer.gold, answer.options, shown.options)
        return {
            "id": answer.id, "gold": letters(gold), "prediction": [letters(one) for one in chosen],
            "credit": answer.credit, "outcome": answer.outcome,
        }  # fmt: skip

    return {
        "moved": moved(pair), "fingerprint": shown.fingerprint, "subject": pair.subject,
        "question": shown.stem,
        "options": dict(zip(LETTERS, shown.options, strict=False)),
        "first": side(pair.first), "second": side(pair.second),
    }  # fmt: skip


def letters(prediction: Any) -> str | None:
    """Return a prediction in letters: A, or A=C where both share the highest score; None for none."""
    if isinstance(prediction, tuple):
        return "=".join(filter(None, map(letters, prediction))) or None
    return None if prediction is None or prediction < 0 else LETTERS[prediction]


def moved_records(joined: Joined) -> list[dict[str, Any]]:
    """Return the questions whose credit differs: those that one file alone has right come first."""
    order = ("only_first", "only_second", "more_first", "more_second")
    rows = [question_record(pair) for pair in joined.pairs if moved(pair)]
    return sorted(rows, key=lambda row: order.index(row["moved"]))
