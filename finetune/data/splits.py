"""Splits of each kind of dataset: training, validation, held-out and test rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar

from finetune.data.bad_rows import summarize_problems
from finetune.data.cleaning import Text
from finetune.data.exam import Exam
from finetune.data.instructions import Instruction
from finetune.data.labelled import SHOWN, Labelled, LabelledDataset
from finetune.data.question import Question, Statement, normalised, seeded_hash
from finetune.data.question_store import QuestionView, as_view, concat, pick
from finetune.data.row_dataset import RowDataset
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed


def split_texts(
    texts: Sequence[Text], ratio: tuple[float, float, float], seed: int
) -> tuple[list[Text], list[Text], list[Text]]:
    """Split texts into training, validation and held-out parts.

    The part of a document follows from the seed and its title, or its own text, whatever the others are; so
    the ratio is met on average, and a few documents may leave a part empty. The parts of one document stay
    together, unless it is the only one.
    """
    keys = [text.title or text.whole or normalised(text.text) for text in texts]
    if len(set(keys)) == 1:
        keys = [normalised(text.text) for text in texts]
    parts: tuple[list[Text], list[Text], list[Text]] = ([], [], [])
    for text, key in zip(texts, keys, strict=True):
        place = int.from_bytes(seeded_hash(seed, key)[:6], "big") / 2**48  # in [0, 1)
        parts[0 if place < ratio[0] else 1 if place < ratio[0] + ratio[1] else 2].append(text)
    return parts


Row = TypeVar("Row")


class _Printed(Protocol):
    """A row with a hash of what a model reads."""

    @property
    def fingerprint(self) -> str: ...


Printed = TypeVar("Printed", bound=_Printed)


@dataclass
class Splits(Generic[Row]):
    """Rows to train on, to choose the best model by, to hold out, and official test rows.

    The official test rows are only ever scored.

    Attributes:
        duplicates: rows left out because the same question is already there.
        statements: sentences of an exam, which are trained on beside its questions and belong to no split.
    """

    fit: Sequence[Row]
    validation: Sequence[Row]
    held_out: Sequence[Row]
    test: Sequence[Row]
    duplicates: int = 0
    statements: Sequence[Statement] = ()


def split_exam(exam: Exam, ratio: tuple[float, float, float], pool: str, seed: int) -> Splits[Question]:
    """Split the questions into training, validation and held-out parts, stratified by subject.

    `pool="fit"`: official train + validation rows; the official test rows are only ever scored. `pool="all"`:
    the test rows are split too, and no figure is comparable with a published one. All rows of a file without
    official splits are split. The same question twice counts once, and never stands in two splits; nor does a
    passage that several questions are about.

    Raises:
        UserError: no question is left to train on.
    """
    views = {split: as_view(rows) for split, rows in exam.questions.items()}
    test = QuestionView() if pool == "all" else views.pop("test", QuestionView())
    all_rows = concat(list(views.values()))
    rows = all_rows.deduplicated(other_than=test)
    if not rows:
        raise UserError(
            "可用來訓練的題目是 0 題：資料裡只有 test，或全部與 test 重複（--pool all 會連 test 一起切）"
        )
    rows = rows.stratified_shuffle(seed)
    parts = split_by_ratio(range(len(rows)), ratio, rows.passages.tolist().__getitem__)
    fit, validation, held_out = map(rows.pick, parts)
    return Splits(fit, validation, held_out, test, len(all_rows) - len(rows), exam.statements)


def split_by_ratio(
    rows: Sequence[Any], ratio: tuple[float, float, float], key: Callable[[Any], Any] = lambda row: ""
) -> tuple[list[Any], list[Any], list[Any]]:
    """Split rows, in the order given, into three parts by ratio.

    Neighbours with the same `key` stay together; those with "" or 0 are on their own.
    """
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    count = 0
    for name, group in groupby(rows, key):
        for together in [list(group)] if name else ([row] for row in group):
            count += len(together)
            # the part that lags furthest behind its share gets them
            deficits = [share * count - len(part) for share, part in zip(ratio, parts, strict=True)]
            parts[deficits.index(max(deficits))].extend(together)
    return parts


def sample_rows(questions: Sequence[Question], limit: int, seed: int) -> Sequence[Question]:
    """Return at most `limit` questions, the same ones for the same seed; all of them for 0."""
    if not limit or len(questions) <= limit:
        return questions
    chosen = nsmallest(limit, range(len(questions)), key=lambda i: seeded_hash(seed, questions[i].id))
    return pick(questions, sorted(chosen))


def describe_exam(exam: Exam, splits: Splits[Question]) -> None:
    """Log what was read and how it was split."""
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in exam.questions.items() if rows)
    subjects: set[str] = set().union(*(as_view(rows).subjects for rows in exam.questions.values()))
    subject_count = f"{len(subjects)} 科" if subjects else "未註明科目"
    log(f"題庫 {exam.origin}：{len(exam)} 題（{counts}），{subject_count}")
    if keyless := "、".join(f"{split or '不分'} {len(rows)}" for split, rows in exam.keyless.items() if rows):
        log(f"  另有無答案的題目（{keyless}）：不訓練、不計分；--exam 會作答")
    if exam.skipped:
        log(f"  略過 {len(exam.skipped)} 列：")
        for problem in summarize_problems(exam.skipped):
            log(f"    - {problem}")
    log(
        f"  訓練 {len(splits.fit)}、驗證 {len(splits.validation)}、保留 {len(splits.held_out)}、正式測驗 "
        f"{len(splits.test)} 題"
        + (f"；另有 {splits.duplicates} 題重複，未列入" if splits.duplicates else "")
        + (f"；另有 {len(exam.statements)} 句敘述供閱讀" if exam.statements else "")
    )


def split_instructions(
    rows: list[Instruction], ratio: tuple[float, float, float], seed: int
) -> tuple[list[Instruction], list[Instruction], list[Instruction]]:
    """Split instructions into training, validation and held-out parts.

    The same row twice counts once, so that none stands in two splits.
    """
    unique: dict[str, Instruction] = {}
    for row in rows:
        same = unique.get(row.fingerprint, row)
        untaught = tuple(at for at in row.untaught if at in same.untaught)
        unique[row.fingerprint] = replace(row, untaught=untaught)
    unique_rows = list(unique.values())
    unique_rows.sort(key=lambda row: seeded_hash(seed, row.fingerprint))
    return split_by_ratio(unique_rows, ratio)


def split_labelled(
    dataset: LabelledDataset, ratio: tuple[float, float, float], seed: int
) -> Splits[Labelled]:
    """Split labelled texts into training, validation, held-out and official test rows.

    The official test rows are only ever scored. An official validation split is used as such, and nothing is
    held out; without one the training rows are split by `ratio`, each class (each set of labels) in the same
    ratio. Where there is an official test split, the share that `ratio` would hold out is trained on. The
    same text never
    stands in two splits: that of the test split stays there, then that of the validation split.

    Raises:
        UserError: no row to train on.
    """
    test, validation, rows, repeated = _fresh_rows(dataset.rows, dataset.origin, "列")
    contradictions = sum(row.labels != first.labels for row, first in repeated)
    if contradictions:
        log(f"⚠️ 有 {contradictions} 列的文字與別列相同、標籤卻不同：留下先讀到的（test、validation 優先）")
    rows.sort(key=lambda row: (row.labels, seeded_hash(seed, row.fingerprint)))
    ratio = _without_held_out(ratio) if test and not validation else ratio
    no_rows: list[Labelled] = []
    parts = (rows, validation, no_rows) if validation else _stratify(rows, ratio)
    _warn_of_rare(dataset.names, parts)
    return Splits(*parts, test, len(repeated))


def _stratify(
    rows: list[Labelled], ratio: tuple[float, float, float]
) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """Split rows, ordered by their labels, into three parts, each set of labels in the same ratio.

    Each set of labels is within one row of its share. The rest of a set goes where the parts lag furthest
    behind, but to training first if that has not seen the labels.
    """
    parts: tuple[list[Labelled], list[Labelled], list[Labelled]] = ([], [], [])
    trained: set[int] = set()
    count = 0
    for labels, group in groupby(rows, lambda row: row.labels):
        together = list(group)
        count += len(together)
        whole = [math.floor(share * len(together) + 1e-9) for share in ratio]
        deficits = [share * count - len(part) - n for share, part, n in zip(ratio, parts, whole, strict=True)]
        if not whole[0] and not trained.issuperset(labels):
            deficits[0] = math.inf
        places = sorted(range(3), key=lambda i: -deficits[i])
        for place in places[: len(together) - sum(whole)]:
            whole[place] += 1
        trained |= {*labels} if whole[0] else set()
        start = 0
        for part, taken in zip(parts, whole, strict=True):
            part += together[start : start + taken]
            start += taken
    return parts


def _warn_of_rare(names: list[str], parts: Sequence[list[Labelled]]) -> None:
    """Warn of classes without a row for training or validation."""
    for part_name, rows in zip(("訓練", "驗證"), parts, strict=False):
        present = {label for row in rows for label in row.labels}
        if rows and (missing := [name for label, name in enumerate(names) if label not in present]):
            log(f"⚠️ {part_name}裡沒有這些類別：{listed(missing, 5)}（列數太少）")


def split_rows(dataset: RowDataset, ratio: tuple[float, float, float], seed: int) -> Splits:
    """Split rows into training, validation, held-out and official test rows, groups undivided.

    The official test rows are only ever scored. An official validation split is used as such, and nothing is
    held out; without one the training rows are split by `ratio`. Where there is an official test split, the
    share that `ratio` would hold out is trained on. The same row never stands in two splits: that of the test
    split stays there, then that of the validation split.

    Raises:
        UserError: no row to train on.
    """
    test, validation, rows, repeated = _fresh_rows(dataset.rows, dataset.origin, dataset.unit)
    if validation:
        return Splits(rows, validation, [], test, len(repeated))
    rows.sort(key=lambda row: (seeded_hash(seed, row.group or row.fingerprint), row.group))
    ratio = _without_held_out(ratio) if test else ratio
    return Splits(*split_by_ratio(rows, ratio, lambda row: row.group), test, len(repeated))


def _fresh_rows(
    splits: Mapping[str, list[Printed]], origin: str, unit: str
) -> tuple[list[Printed], list[Printed], list[Printed], list[tuple[Printed, Printed]]]:
    """Return the test, validation and other rows, each text once, and the rows left out beside the first.

    A text that stands in several splits stays in the test split, else in the validation split.

    Args:
        unit: what a row is called in messages.

    Raises:
        UserError: no row to train on.
    """
    test = splits.get("test", [])
    seen = {row.fingerprint: row for row in test}
    fresh: dict[str, list[Printed]] = {"validation": [], "train": [], "": []}
    repeated = []
    for split, rows in fresh.items():
        for row in splits.get(split, []):
            if first := seen.get(row.fingerprint):
                repeated.append((row, first))
            else:
                seen[row.fingerprint] = row
                rows.append(row)
    others = fresh["train"] + fresh[""]
    if not others:
        only = "只有 validation 或 test，或全部與它們重複"
        raise UserError(f"可用來訓練的{unit}是 0 {unit}：{origin} 裡{only}")
    return test, fresh["validation"], others, repeated


def _without_held_out(ratio: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return the ratio where there are official test rows: held-out rows would only be lost to training."""
    if ratio[2]:
        log(f"  有正式測驗，不再從訓練資料裡保留一份：--split_ratio 的保留 {ratio[2]:g} 併入訓練")
    return ratio[0] + ratio[2], ratio[1], 0.0


def describe_rows(dataset: RowDataset, splits: Splits, what: str) -> None:
    """Log what was read and how it was split.

    Args:
        what: name of the data, for the message: 標註資料.
    """
    unit = dataset.unit
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in dataset.rows.items() if rows)
    log(f"{what} {dataset.origin}：{len(dataset)} {unit}（{counts}）")
    for remark, count in dataset.remarks.items():
        log(f"  {remark}（{count} {unit}）")
    if dataset.skipped:
        log(f"  略過 {len(dataset.skipped)} 列：")
        for problem in summarize_problems(dataset.skipped):
            log(f"    - {problem}")
    log(
        f"  訓練 {len(splits.fit)}、驗證 {len(splits.validation)}、保留 {len(splits.held_out)}、正式測驗 "
        f"{len(splits.test)} {unit}"
        + (f"；另有 {splits.duplicates} {unit}重複，未列入" if splits.duplicates else "")
    )


def describe_labels(dataset: LabelledDataset, splits: Splits[Labelled]) -> None:
    """Log what was read, how it was split, and how the classes are distributed."""
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in dataset.rows.items())
    log(f"分類資料 {dataset.origin}：{len(dataset)} 列（{counts}），{len(dataset.names)} 類")
    text = " 與 ".join(filter(None, (dataset.text_column, dataset.pair_column)))
    several = "（一列可有零到多個）" if dataset.multi else ""
    log(f"  文字欄 {text}，標籤欄 {'、'.join(dataset.label_columns)}{several}")
    if dataset.skipped:
        log(f"  略過 {len(dataset.skipped)} 列：")
        for problem in summarize_problems(dataset.skipped):
            log(f"    - {problem}")
    log(
        f"  訓練 {len(splits.fit)}、驗證 {len(splits.validation)}、保留 {len(splits.held_out)}、正式測驗 "
        f"{len(splits.test)} 列" + (f"；另有 {splits.duplicates} 列重複，未列入" if splits.duplicates else "")
    )
    spread = Counter(label for row in splits.fit for label in row.labels).most_common()
    classes = "、".join(f"{dataset.names[label]} {count}" for label, count in spread[:SHOWN])
    more = f"…（共 {len(spread)} 類）" if len(spread) > SHOWN else ""
    unevenness = f"，最多是最少的 {spread[0][1] / spread[-1][1]:.1f} 倍" if spread else ""
    log(f"  訓練的類別：{classes}{more}{unevenness}")


def renumber(dataset: LabelledDataset, splits: Splits[Labelled], names: Sequence[str]) -> None:
    """Renumber the classes in the order of `names`, those of a model, which may have more of them."""
    unused = len(names) - len(dataset.names)
    more = f"；資料沒有用到其中 {unused} 個" if unused else ""
    log(f"  標籤照底模的順序：{listed(names, 5)}{more}")
    new_index = [names.index(name) for name in dataset.names]

    def renumbered(rows: Sequence[Labelled]) -> list[Labelled]:
        return [replace(row, labels=tuple(sorted(new_index[label] for label in row.labels))) for row in rows]

    splits.fit, splits.validation = renumbered(splits.fit), renumbered(splits.validation)
    splits.held_out, splits.test = renumbered(splits.held_out), renumbered(splits.test)
    dataset.names = list(names)
