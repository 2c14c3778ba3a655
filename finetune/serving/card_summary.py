"""The run card in short, for GET /v1/model: figures with their intervals, in the words of the reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune.evaluation.classification import BASELINE
from finetune.evaluation.set_names import in_order
from finetune.models.run_card import TASK_TITLES, RunCard, as_line
from finetune.reports import classification, perplexity, row_report, sections
from finetune.reports.model_card import FIRST, training_flags
from finetune.reports.number_format import percent

METRICS = {"tag": "f1", "span": "f1", "seq2seq": "rougeL"}  # what the bars of a task show
MOST_ROWS = 60  # of a table
MOST_TEXT = 2000  # characters: a card may come from anybody
Summary = dict[str, Any]


class _BesideBase:
    """What the sentences of `sections` need beside the metrics: the other model is the one before."""

    other = sections.BASE_MODEL_TITLE
    notes: list[str] = []
    evidence: dict[str, Any] = {}


def card_summary(card: RunCard) -> Summary:
    """Return what `schemas.CardSummary` holds.

    The figures of a card are not checked when it is read, and it may come from anybody: where they are not in
    the form in which training writes them, `sets` is empty and `unreadable` is true.
    """
    summary: Summary = {
        "task": card.task, "title": TASK_TITLES[card.task], "base_model": card.base_model,
        "dataset": card.dataset[:MOST_TEXT], "step": card.step, "parameters": card.parameters,
        "objective": card.objective, "scoring": card.scoring, "max_length": card.max_length,
        "questions": len(card.fingerprints), "versions": card.versions, "unreadable": False,
        "not_comparable": sections.NOT_COMPARABLE if card.pool == "all" else "",
    }  # fmt: skip
    try:
        # as one text, so that what cannot be written as one is noticed here
        summary |= {"flags": training_flags(card)[:MOST_TEXT], "lineage": as_line(card.lineage)[:MOST_TEXT]}
        return summary | {"sets": list(_sets(card))}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        known = {"flags": "", "lineage": ""} | summary
        return known | {"sets": [], "unreadable": True}


def _sets(card: RunCard) -> Iterable[Summary]:
    """Yield what `schemas.SetSummary` holds of each set, the most trustworthy first."""
    for name, metrics in in_order(card.labels).items():
        yield _labels(name, metrics)
    for section in row_report.sections(card.task, card.metrics) if card.task in row_report.MODULES else ():
        # of a reader, the stronger of the two rules has the look of another model
        roles = {"other": "trivial"} if card.task == "span" else {}
        bars = [
            _bar(roles.get(bar.look, bar.look), bar.label, bar.value, (bar.low, bar.high))
            for bar in section.bars
        ]
        tables = [_table(*table) for table in section.tables(percent)]
        texts = section.sentence(percent), section.notes
        yield _set(
            (section.name, section.title), METRICS[card.task], section.metrics["n"], texts, bars, tables
        )
    for name, title in FIRST.items():
        if metrics := card.results.get(name):
            yield _exam(name, title, metrics)
    if card.growth.get("sets"):
        title = perplexity.TITLE
        rows, head = perplexity.rows(card.growth), perplexity.columns(card.growth)
        texts = (
            "".join(f"{line}。" for line in perplexity.verdict(card.growth)),
            [perplexity.meaning(card.growth)],
        )
        yield _set(("", title), "", 0, texts, [], [_table(title, head, rows)])


def _labels(name: str, metrics: dict[str, Any]) -> Summary:
    bars = [_bar("model", "這個模型", metrics["accuracy"], metrics["interval_95"])]
    if baseline := metrics.get("baseline"):
        bars.append(_bar("trivial", BASELINE, baseline["accuracy"], baseline.get("interval_95")))
    bars.append(_bar("trivial", classification.overview(metrics)[1][0], metrics["majority"]))
    table = _table("各類別", classification.columns(metrics), classification.rows(metrics, percent))
    texts = classification.label_verdict(metrics, percent), classification.notes(name, metrics)
    return _set((name, classification.title_of(name)), "accuracy", metrics["n"], texts, bars, [table])


def _exam(name: str, title: str, metrics: dict[str, Any]) -> Summary:
    rows = sections.score_rows(_BesideBase(), metrics)
    bars = [_bar(row.role, row.label, row.accuracy, row.interval or None) for row in rows]
    by_subject = [
        [one.label, str(one.n), percent(one.accuracy)] for one in sections.ranked(metrics["subjects"])
    ]
    tables = [_table("各科", ["科目", "題數", "正確率"], by_subject)] if len(by_subject) > 1 else []
    texts = sections.verdict_sentence(_BesideBase(), metrics), sections.caveats(metrics, percent)
    return _set((name, title), "accuracy", metrics["model"]["n"], texts, bars, tables)


def _set(
    named: tuple[str, str], metric: str, n: int, texts: tuple[str, list[str]], bars: list, tables: list
) -> Summary:
    name, title = named
    sentence, notes = texts
    return {
        "set": name, "title": title, "metric": metric, "n": n, "sentence": sentence, "notes": notes,
        "bars": bars, "tables": tables,
    }  # fmt: skip


def _bar(role: str, label: str, value: float, interval: Any = None) -> Summary:
    ends = None if interval is None else tuple(map(float, interval))
    return {"role": role, "label": label, "value": float(value), "interval_95": ends}


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Summary:
    shown = [[str(cell)[:MOST_TEXT] for cell in row] for row in rows]
    return {"title": title, "head": list(head), "rows": shown[:MOST_ROWS]}
