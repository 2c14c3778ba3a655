"""Train, validation, held-out and test rows: how each kind of data set is divided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import groupby

from finetune.data.bad_rows import abridged
from finetune.data.cleaning import Text
from finetune.data.data_files import ORDER
from finetune.data.exam import Exam
from finetune.data.instructions import Instruction
from finetune.data.labelled import SHOWN, Labelled, LabelledDataset, _some
from finetune.data.question import Question, normalised, seeded_hash
from finetune.data.question_store import QuestionView, as_view, concat, pick
from finetune.runtime.console import log
from finetune.runtime.errors import UserError


def split_texts(
    texts: Sequence[Text], ratio: tuple[float, float, float], seed: int
) -> tuple[list[Text], list[Text], list[Text]]:
    """Fit, validation and held back. A document's place is drawn from the seed and its title, or its own
    text, whatever the others are; so the shares are met on average, and a few documents may leave a part
    empty. The parts of one document stay together, unless it is the only one.
    """
    keys = [text.title or text.whole or normalised(text.text) for text in texts]
    if len(set(keys)) == 1:
        keys = [normalised(text.text) for text in texts]
    parts: tuple[list[Text], ...] = ([], [], [])
    for text, key in zip(texts, keys, strict=True):
        place = int.from_bytes(seeded_hash(seed, key)[:6], "big") / 2**48  # in [0, 1)
        parts[0 if place < ratio[0] else 1 if place < ratio[0] + ratio[1] else 2].append(text)
    return parts


@dataclass
class Splits:
    """What one fits on, chooses by, keeps back, and the official test rows that are only ever scored."""

    fit: Sequence[Question]
    validation: Sequence[Question]
    held_out: Sequence[Question]
    test: Sequence[Question]
    duplicates: int = 0  # rows left out of the pool because the same question stands elsewhere


def split_exam(exam: Exam, ratio: tuple[float, float, float], pool: str, seed: int) -> Splits:
    """Splits the rows one may fit on into fit / validation / held-back, stratified by subject.

    `pool="fit"`: official train + validation rows; the official test rows are only ever scored.
    `pool="all"`: the test rows are split too, and no figure is comparable with a published one. A file
    without official splits is all pool. The same question twice counts once, and never stands on both sides
    of a split; nor does a passage that several questions are about.
    """
    found = {split: as_view(rows) for split, rows in exam.questions.items()}
    test = QuestionView() if pool == "all" else found.pop("test", QuestionView())
    all_rows = concat(list(found.values()))
    rows = all_rows.deduplicated(other_than=test)
    if not rows:
        raise UserError(
            "可用來訓練的題目是 0 題：資料裡只有 test，或全部與 test 重複（--pool all 會連 test 一起切）"
        )
    rows = rows.stratified_shuffle(seed)
    parts = split_by_ratio(range(len(rows)), ratio, rows.passages.tolist().__getitem__)
    return Splits(*map(rows.pick, parts), test=test, duplicates=len(all_rows) - len(rows))


def split_by_ratio(
    rows: Sequence, ratio: tuple[float, float, float], key=lambda row: ""
) -> tuple[list, list, list]:
    """Rows, in the order given, into three parts of these shares. Neighbours with the same `key` stay
    together; those with "" or 0 are on their own.
    """
    parts: tuple[list, list, list] = ([], [], [])
    count = 0
    for name, group in groupby(rows, key):
        for together in [list(group)] if name else ([row] for row in group):
            count += len(together)  # the part that lags furthest behind its share gets them
            owed = [share * count - len(part) for share, part in zip(ratio, parts, strict=True)]
            parts[owed.index(max(owed))].extend(together)
    return parts


def sample_rows(questions: Sequence[Question], limit: int, seed: int) -> Sequence[Question]:
    """At most `limit` questions, the same ones for the same seed; all of them for 0."""
    if not limit or len(questions) <= limit:
        return questions
    chosen = nsmallest(limit, range(len(questions)), key=lambda i: seeded_hash(seed, questions[i].id))
    return pick(questions, sorted(chosen))


def describe_exam(exam: Exam, pools: Splits) -> None:
    """Prints what was read and how it was split."""
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in exam.questions.items() if rows)
    subjects = set().union(*(as_view(rows).subjects for rows in exam.questions.values()))
    named = f"{len(subjects)} 科" if subjects else "未註明科目"
    log(f"題庫 {exam.origin}：{len(exam)} 題（{counts}），{named}")
    if keyless := "、".join(f"{split or '不分'} {len(rows)}" for split, rows in exam.keyless.items() if rows):
        log(f"  另有沒有答案的題目（{keyless}）：不訓練、不計分；--exam 會作答")
    if exam.skipped:
        log(f"  略過 {len(exam.skipped)} 列：")
        for problem in abridged(exam.skipped):
            log(f"    - {problem}")
    log(
        f"  訓練 {len(pools.fit)}、驗證 {len(pools.validation)}、保留 {len(pools.held_out)}、正式測驗 "
        f"{len(pools.test)} 題"
        + (f"；另有 {pools.duplicates} 題重複，未列入" if pools.duplicates else "")
        + (f"；另有 {len(exam.statements)} 句敘述供閱讀" if exam.statements else "")
    )


def split_instructions(
    rows: list[Instruction], ratio: tuple[float, float, float], seed: int
) -> tuple[list[Instruction], list[Instruction], list[Instruction]]:
    """Rows to fit on, to choose by and to keep back. The same row twice counts once, so that none stands on
    both sides.
    """
    pass
    from finetune.data.question import seeded_hash

    known: dict[str, Instruction] = {}
    for row in rows:
        same = known.get(row.fingerprint, row)
        untaught = tuple(at for at in row.untaught if at in same.untaught)
        known[row.fingerprint] = replace(row, untaught=untaught)
    once = list(known.values())
    once.sort(key=lambda row: seeded_hash(seed, row.fingerprint))
    return split_by_ratio(once, ratio)


def split_labelled(catalogue: LabelledDataset, ratio: tuple[float, float, float], seed: int) -> Splits:
    """Rows to fit on, to choose by, to keep back, and the official test rows, which are only ever scored.

    An official validation split is the one to choose by, and nothing is kept back; without one the rows to
    train on are dealt out by `ratio`, each class (each set of labels) in the same shares. Where there is an
    official test, what `ratio` would keep back is trained on. The same text never stands on both sides: that
    of the test split stays there, then that of the validation split.

    Raises:
        UserError: no row to train on.
    """
    test = catalogue.rows.get("test", [])
    seen = {row.fingerprint: row.labels for row in test}
    fresh: dict[str, list[Labelled]] = {split: [] for split in ORDER if split != "dev"}
    duplicates = contradictions = 0
    for split in ("validation", "train", ""):
        for row in catalogue.rows.get(split, []):
            if row.fingerprint in seen:
                duplicates += 1
                contradictions += seen[row.fingerprint] != row.labels
                continue
            seen[row.fingerprint] = row.labels
            fresh[split].append(row)
    rows = fresh["train"] + fresh[""]
    if not rows:
        only = "只有 validation 或 test，或全部與它們重複"
        raise UserError(f"可用來訓練的列是 0 列：{catalogue.origin} 裡{only}")
    if contradictions:
        log(f"⚠️ 有 {contradictions} 列的文字與別列相同、標籤卻不同：留下先讀到的（test、validation 優先）")
    rows.sort(key=lambda row: (row.labels, seeded_hash(seed, row.fingerprint)))
    if test and ratio[2] and not fresh["validation"]:  # rows kept back would only be lost to training
        log(f"  有正式測驗，不再從訓練資料裡保留一份：--split_ratio 的保留 {ratio[2]:g} 併入訓練")
        ratio = (ratio[0] + ratio[2], ratio[1], 0.0)
    parts = (rows, fresh["validation"], []) if fresh["validation"] else _dealt(rows, ratio)
    _warn_of_rare(catalogue.names, parts)
    return Splits(*parts, test=test, duplicates=duplicates)


def _dealt(rows: list[Labelled], ratio: tuple[float, float, float]) -> tuple[list, list, list]:
    """Rows, ordered by their labels, into three parts, each set of labels within one row of its shares. What
    is left of a set goes where the parts lag furthest behind; but to be learned from, where a label was not
    yet.
    """
    parts: tuple[list, list, list] = ([], [], [])
    taught: set[int] = set()
    count = 0
    for labels, group in groupby(rows, lambda row: row.labels):
        together = list(group)
        count += len(together)
        whole = [math.floor(share * len(together) + 1e-9) for share in ratio]
        lag = [share * count - len(part) - n for share, part, n in zip(ratio, parts, whole, strict=True)]
        if not whole[0] and not taught.issuperset(labels):
            lag[0] = math.inf
        places = sorted(range(3), key=lambda i: -lag[i])
        for place in places[: len(together) - sum(whole)]:
            whole[place] += 1
        taught |= {*labels} if whole[0] else set()
        start = 0
        for part, taken in zip(parts, whole, strict=True):
            part += together[start : start + taken]
            start += taken
    return parts


def _warn_of_rare(names: list[str], parts: Sequence[list[Labelled]]) -> None:
    for what, rows in zip(("訓練", "驗證"), parts, strict=False):
        there = {label for row in rows for label in row.labels}
        if rows and (lacking := [name for label, name in enumerate(names) if label not in there]):
            log(f"⚠️ {what}裡沒有這些類別：{_some(lacking)}（列數太少）")


def describe_labels(catalogue: LabelledDataset, pools: Splits) -> None:
    """Prints what was read, how it was split, and how the classes are spread."""
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in catalogue.rows.items())
    log(f"分類資料 {catalogue.origin}：{len(catalogue)} 列（{counts}），{len(catalogue.names)} 類")
    text = " 與 ".join(filter(None, (catalogue.text_column, catalogue.pair_column)))
    several = "（一列可有零到多個）" if catalogue.multi else ""
    log(f"  文字欄 {text}，標籤欄 {'、'.join(catalogue.label_columns)}{several}")
    if catalogue.skipped:
        log(f"  略過 {len(catalogue.skipped)} 列：")
        for problem in abridged(catalogue.skipped):
            log(f"    - {problem}")
    log(
        f"  訓練 {len(pools.fit)}、驗證 {len(pools.validation)}、保留 {len(pools.held_out)}、正式測驗 "
        f"{len(pools.test)} 列" + (f"；另有 {pools.duplicates} 列重複，未列入" if pools.duplicates else "")
    )
    spread = Counter(label for row in pools.fit for label in row.labels).most_common()
    listed = "、".join(f"{catalogue.names[label]} {count}" for label, count in spread[:SHOWN])
    more = f"…（共 {len(spread)} 類）" if len(spread) > SHOWN else ""
    unevenness = f"，最多是最少的 {spread[0][1] / spread[-1][1]:.1f} 倍" if spread else ""
    log(f"  訓練的類別：{listed}{more}{unevenness}")


def renumber(catalogue: LabelledDataset, pools: Splits, names: Sequence[str]) -> None:
    """The same classes in the order of `names`, a model's, which may hold more of them."""
    unused = len(names) - len(catalogue.names)
    more = f"；資料沒有用到其中 {unused} 個" if unused else ""
    log(f"  標籤照底模的順序：{_some(names)}{more}")
    place = [names.index(name) for name in catalogue.names]

    def followed(rows: list[Labelled]) -> list[Labelled]:
        return [replace(row, labels=tuple(sorted(place[label] for label in row.labels))) for row in rows]

    pools.fit, pools.validation = followed(pools.fit), followed(pools.validation)
    pools.held_out, pools.test = followed(pools.held_out), followed(pools.test)
    catalogue.names = list(names)
