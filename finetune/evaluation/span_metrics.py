"""Metrics of extracted answers: EM and F1 by a published rule, with intervals over articles and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from finetune.data.span_rows import SpanRow
from finetune.evaluation.bootstrap import cluster_interval
from finetune.evaluation.span_baselines import baseline_answers
from finetune.evaluation.span_rules import Rule, rule_for

FLAT = ("n", "exact_match", "f1", "exact_match_interval_95", "f1_interval_95", "loss")  # for trackers
SAMPLES = 6
AROUND = 60  # characters of the passage shown before and after what is marked
QUESTION_SHOWN = 120  # characters


def rule_of(rows: Sequence[SpanRow]) -> Rule:
    """Return the rule for the language of some questions."""
    return rule_for(row.question for row in rows)


def scores(rule: Rule, rows: Sequence[SpanRow], answers: Sequence[str]) -> list[tuple[float, float]]:
    """Return (EM, F1) of each answer; "" is no answer."""
    pairs = zip(rows, answers, strict=True)
    return [(rule.exact_match(text, row.texts), rule.overlap(text, row.texts)) for row, text in pairs]


def compute_span_metrics(
    rows: Sequence[SpanRow], answers: Sequence[str], may_be_none: bool = False
) -> dict[str, Any]:
    """Compute the metrics of n questions, as values of JSON; {} without rows.

    Args:
        answers: text of each answer; "" is no answer.
        may_be_none: the model can say that a passage has no answer.

    Returns:
        `rule` and its `rule_title`; `exact_match`, `f1` (means over questions of the best of the gold
        answers), each with its `…_interval_95` (bootstrap of articles); `n`, `articles`; `right` (EM),
        `unanswered`; where some questions have no answer `has_answer` and `no_answer`, each with `n`,
        `exact_match`, `f1`; `may_be_none`.
    """
    if not rows:
        return {}
    rule = rule_of(rows)
    found = scores(rule, rows, answers)
    groups = [row.group or row.fingerprint for row in rows]
    exact_interval, f1_interval = cluster_interval(found, groups)
    metrics: dict[str, Any] = {
        "rule": rule.name, "rule_title": rule.title, **_means(found),
        "exact_match_interval_95": exact_interval, "f1_interval_95": f1_interval,
        "right": round(sum(exact for exact, _ in found)), "articles": len({*groups}),
        "unanswered": sum(not text for text in answers), "may_be_none": may_be_none,
    }  # fmt: skip
    if not all(row.answers for row in rows):
        for name, wanted in (("has_answer", True), ("no_answer", False)):
            part = [pair for row, pair in zip(rows, found, strict=True) if bool(row.answers) == wanted]
            if part:
                metrics[name] = _means(part)
    return metrics


def _means(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the means of EM and F1, and their number."""
    return {"n": len(found), "exact_match": fmean(e for e, _ in found), "f1": fmean(f for _, f in found)}


def add_span_baselines(metrics: dict[str, Any], rows: Sequence[SpanRow], answers: Sequence[str]) -> None:
    """Add to the metrics of a set those of simple rules on the same rows, and how far the model is ahead.

    `baselines` holds, by the names of `span_baselines.BASELINES`, `exact_match`, `f1`, and the model's minus
    these (`exact_match_difference`, `f1_difference`), each with its interval over articles.
    """
    rule = rule_of(rows)
    groups = [row.group or row.fingerprint for row in rows]
    ours = scores(rule, rows, answers)
    metrics["baselines"] = {}
    for name, texts in baseline_answers(rows).items():
        theirs = scores(rule, rows, texts)
        gaps = [(a - c, b - d) for (a, b), (c, d) in zip(ours, theirs, strict=True)]
        intervals = cluster_interval([(*pair, *gap) for pair, gap in zip(theirs, gaps, strict=True)], groups)
        metrics["baselines"][name] = {
            **_means(theirs), "exact_match_interval_95": intervals[0], "f1_interval_95": intervals[1],
            "exact_match_difference": fmean(gap for gap, _ in gaps),
            "exact_match_difference_interval_95": intervals[2],
            "f1_difference": fmean(gap for _, gap in gaps), "f1_difference_interval_95": intervals[3],
        }  # fmt: skip


def summary_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return those metrics of a set that are one number for the whole, or its interval."""
    flat = {name: metrics[name] for name in FLAT if metrics.get(name) is not None}
    for name, baseline in metrics.get("baselines", {}).items():
        flat |= {f"{name}_{key}": baseline[key] for key in ("exact_match", "f1")}
    for part in ("has_answer", "no_answer"):
        flat |= {f"{part}_{key}": value for key, value in metrics.get(part, {}).items() if key != "n"}
    return flat


# ---- samples -----------------------------------------------------------------------------------------------


def span_samples(
    rows: Sequence[SpanRow], answers: Sequence[str], places: Sequence[tuple[int, int] | None]
) -> list[dict[str, Any]]:
    """Return questions for the page, spread over the rows, with answer and gold marked in the passage.

    Args:
        answers: text of each answer.
        places: its characters; None where none was given.
    """
    step = max(1, len(rows) // SAMPLES)
    rule = rule_of(rows)
    shown: list[dict[str, Any]] = []
    for at in range(0, len(rows), step)[:SAMPLES]:
        row = rows[at]
        f1 = rule.overlap(answers[at], row.texts)
        title = f"{row.question[:QUESTION_SHOWN]}（F1 {f1:.2f}）"
        shown.append({"title": title, "lines": [{"label": "文章", "pieces": _pieces(row, places[at])}]})
        if not row.answers or not answers[at]:
            gold = "、".join(row.texts) or "沒有答案"
            said = answers[at] or "沒有答案"
            shown[-1]["lines"].append({"label": "答", "pieces": [[f"{said}（正解：{gold}）", "", ""]]})
    return shown


def _pieces(row: SpanRow, place: tuple[int, int] | None) -> list[list[str]]:
    """Return the passage around gold and answer in pieces (text, mark, look)."""
    gold = best_gold(row, place)
    marked = [span for span in (gold, place) if span]
    if not marked:
        return [[_cut(row.context, 0, 2 * AROUND), "", ""]]
    pieces: list[list[str]] = []
    borders = sorted({border for span in marked for border in span})
    looks = {
        (True, True): ("答對", "right"),
        (True, False): ("正解", "missed"),
        (False, True): ("答", "extra"),
    }

    def add(start: int, end: int, mark: str = "", look: str = "") -> None:
        if start < end:
            pieces.append([row.context[start:end], mark, look])

    begin = max(0, borders[0] - AROUND)
    pieces += [["…", "", ""]] if begin else []
    add(begin, borders[0])
    for start, end in zip(borders, borders[1:], strict=False):
        inside = _holds(gold, start), _holds(place, start)
        if any(inside):
            add(start, end, *looks[inside])
        elif end - start > 2 * AROUND:
            add(start, start + AROUND)
            pieces.append(["…", "", ""])
            add(end - AROUND, end)
        else:
            add(start, end)
    last = min(len(row.context), borders[-1] + AROUND)
    add(borders[-1], last)
    return pieces + ([["…", "", ""]] if last < len(row.context) else [])


def best_gold(row: SpanRow, place: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the gold answer that overlaps most with an answer, else the first; None without any."""
    golds = [(answer.start, answer.end) for answer in row.answers]
    if not golds or place is None:
        return golds[0] if golds else None
    return max(golds, key=lambda gold: min(gold[1], place[1]) - max(gold[0], place[0]))


def _holds(span: tuple[int, int] | None, place: int) -> bool:
    return span is not None and span[0] <= place < span[1]


def _cut(text: str, start: int, end: int) -> str:
    return text[start:end] + "…" * (len(text) > end)
