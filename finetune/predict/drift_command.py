"""--drift: what a server was asked, beside the validation data of its model or an earlier --watch file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy

from finetune.cli.inference_args import InferenceArgs, required
from finetune.evaluation.drift import CHANGED, compare
from finetune.evaluation.request_features import ANSWER, NUMBERS, PATHS, WAY, FeatureSample
from finetune.evaluation.watched_rows import OK, WatchedRows, read_rows
from finetune.models.run_card import RunCard, weights_of
from finetune.reports import drift as reports
from finetune.reports import report_folder
from finetune.reports.drift import DriftReport
from finetune.runtime.console import as_json, log, print_result
from finetune.runtime.errors import Problems, UserError, listed

BEYOND = 3  # exit code of a drift
SETS = {"validation": "驗證資料", "held_back": "保留資料", "test": "測試資料"}
DEPENDS_ON_WAY = ("confidence", ANSWER)
Row = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """What requests are compared with.

    Attributes:
        name: what it is called in sentences.
        fact: in full.
        paths: the requests that resemble it.
        way: how its options were scored; "" where there were none.
        weights: those of its model; "" where they are not known, or do not matter.
    """

    name: str
    fact: str
    sample: FeatureSample
    paths: Sequence[str]
    way: str = ""
    weights: str = ""


def run_drift_command(flags: InferenceArgs) -> int | None:
    """Compare the file of --drift with its reference: print the outcome, write the report of --report.

    Returns:
        the exit code: BEYOND where a feature has changed by more than --drift_bound; None is 0.

    Raises:
        UserError: a file that cannot be read or is none of --watch; no snapshot and no other reference; no
            request that can be compared.
        RunError: the report cannot be written.
    """
    folder, path = Path(flags.report) if flags.report else None, required(flags.drift)
    with (problems := Problems()):
        if folder:
            report_folder.check_folder(folder, "--report", reports.OF_DRIFT)
    with problems:
        watched = read_rows(path, "--drift")
    with problems:
        reference = _other_file(flags.drift_reference) if flags.drift_reference else _snapshot(flags)
    problems.report()
    rows, notes = _comparable(watched, reference)
    now = FeatureSample.of(rows)
    facts = {
        "請求": f"{path}（{_period(watched)}，比較 {len(rows)} 個）",
        "對照": reference.fact,
        "模型": listed([name for name, _ in watched.count("model").most_common() if name], 3),
    }  # fmt: skip
    figures = compare(reference.sample, now, flags.drift_bound)
    usage = _usage(watched, rows)
    report = DriftReport(facts, reference.sample, reference.name, now, figures, usage, notes)
    if flags.json:
        print_result(as_json({**({"report": str(folder)} if folder else {}), **report.summary}))
    else:
        for line in reports.screen_lines(report):
            print_result(line)
    if folder:
        reports.write(folder, report)
        log(f"報告：{folder / 'index.html'}")
    return BEYOND if figures["state"] == CHANGED else None


# ---- the reference -----------------------------------------------------------------------------------------


def _snapshot(flags: InferenceArgs) -> Reference:
    """Return the snapshot of the run card of --model_path. Raises UserError where there is none."""
    folder = flags.model_path
    other = "；或以 --drift_reference FILE.jsonl 與另一個 --watch 的檔案比"
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"--model_path {folder}：沒有這個資料夾，讀不到訓練時的驗證資料{other}")
    card = RunCard.read(Path(folder).expanduser())
    if card is None or not card.snapshot:
        why = "run_card.json 裡沒有驗證資料的特徵（舊版，或沒有驗證資料）" if card else "沒有 run_card.json"
        raise UserError(f"--model_path {folder}：{why}，不知道平常是什麼樣子；請重新訓練{other}")
    name = SETS.get(card.snapshot["set"], card.snapshot["set"])
    rows = card.snapshot["rows"]
    return Reference(
        name, f"{folder} 訓練時的{name}（{card.dataset}，{rows} 筆）", FeatureSample.from_dict(card.snapshot),
        PATHS[card.task], card.snapshot["way"], weights_of(card),
    )  # fmt: skip


def _other_file(path: str) -> Reference:
    """Return the requests of another file, of the path that most of them asked."""
    watched = read_rows(path, "--drift_reference")
    paths = watched.count("path")
    if not paths:
        raise UserError(f"--drift_reference {path}：{len(watched.rows)} 個請求沒有一個答成，沒有東西可比")
    commonest = paths.most_common(1)[0][0]
    rows = [row for row in watched.answered if row["path"] == commonest]
    way = Counter(row.get(WAY, "") for row in rows).most_common(1)[0][0]
    rows = [row if row.get(WAY, "") == way else _without_answer(row) for row in rows]
    fact = f"{path}（{_period(watched)}，{len(rows)} 個 {commonest}）"
    return Reference("先前的請求", fact, FeatureSample.of(rows), [commonest], way)


def _period(watched: WatchedRows) -> str:
    """Return from which day to which one a file goes; several servers may have appended to it."""
    days = {row["time"][:10] for row in watched.rows}
    first, last = min(days), max(days)
    return first if first == last else f"{first} 到 {last}"


# ---- the requests ------------------------------------------------------------------------------------------


def _comparable(watched: WatchedRows, reference: Reference) -> tuple[list[Row], list[str]]:
    """Return the answered requests that can be compared, and what must be said of the others.

    Raises:
        UserError: there is none.
    """
    notes = []
    if watched.unreadable:
        notes.append(f"{watched.unreadable} 行讀不懂，沒有算（伺服器被強制結束時，最後一行可能只寫了一半）")
    if watched.left_out:
        notes.append(f"檔案很大：只看最新的 {len(watched.rows)} 個請求，前面還有 {watched.left_out} 個")
    rows = [row for row in watched.answered if row["path"] in reference.paths]
    others = Counter(row["path"] for row in watched.answered if row["path"] not in reference.paths)
    asked = "、".join(f"{path} {count} 個" for path, count in others.most_common(3))
    if not rows:
        raise UserError(
            f"--drift {watched.path}：沒有 {'、'.join(reference.paths)} 答成的請求，無從與{reference.name}比"
            + (f"；有的是 {asked}" if asked else "")
        )
    if others:
        notes.append(f"別的路徑與{reference.name}不是同一種輸入，沒有比：{asked}")
    foreign = Counter(
        f"{row.get('model', '')}（{row['weights']}）"
        for row in rows if reference.weights and row.get("weights") and row["weights"] != reference.weights
    )  # fmt: skip
    if foreign:
        names = "、".join(f"{name} {count} 個" for name, count in foreign.most_common(3))
        rows = [row for row in rows if row.get("weights", "") in ("", reference.weights)]
        if not rows:
            raise UserError(
                f"--drift {watched.path}：都是別的模型的請求（{names}），--model_path 的權重是"
                f" {reference.weights}；請給那個模型的資料夾"
            )
        notes.append(f"別的模型的請求沒有比：{names}；--model_path 的權重是 {reference.weights}")
    elif not reference.weights and len(several := {row.get("weights", "") for row in rows}) > 1:
        notes.append(f"檔案裡有 {len(several)} 個模型的請求，一起比；信心的差異可能來自模型")
    ways = Counter(row.get(WAY, "") for row in rows if row.get(WAY, "") != reference.way)
    if ways:
        names_of_ways = "、".join(f"{way or '沒有記載'} {count} 個" for way, count in ways.most_common(3))
        notes.append(
            f"{names_of_ways}的作答方式與對照（{reference.way or '沒有記載'}）不同，只比輸入，不比信心與答案"
            "（請求的 scoring、orders；訓練時的是 --exam_orders）"
        )
        rows = [row if row.get(WAY, "") == reference.way else _without_answer(row) for row in rows]
    return rows, notes


def _without_answer(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in DEPENDS_ON_WAY}


def _usage(watched: WatchedRows, compared: Sequence[Row]) -> dict[str, Any]:
    """Return what the file says beside features: requests by status, seconds, days."""
    requests = [row for row in watched.rows if "seconds" in row]  # a further input of a request has none
    seconds = [row["seconds"] for row in requests if row["status"] == OK]
    median, p95 = numpy.quantile(seconds, [0.5, 0.95]).tolist() if seconds else (None, None)
    statuses = Counter(str(row["status"]) for row in requests)
    return {
        "file": watched.path, "requests": len(requests), "compared": len(compared),
        "unreadable": watched.unreadable, "statuses": dict(sorted(statuses.items())),
        "seconds": {"median": median, "p95": p95} if seconds else {}, "days": _days(requests, compared),
    }  # fmt: skip


def _days(requests: Sequence[Row], compared: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the requests of each day, and the means of their features."""
    days: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in requests:
        day = days.setdefault(row["time"][:10], {"day": row["time"][:10], "requests": 0, "errors": 0})
        day["requests"] += 1
        day["errors"] += row["status"] != OK
    for row in compared:
        for name in NUMBERS:
            if name in row:
                values[row["time"][:10]][name].append(row[name])
    return [
        {**day, "means": {name: fmean(some) for name, some in values[key].items()}}
        for key, day in sorted(days.items())
    ]
