"""A saved classifier before labelled texts: `--exam labelled.csv --report DIR`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from finetune.cli.inference_args import default_folder
from finetune.data.columns import column_names
from finetune.data.exam import SPLITS
from finetune.data.labelled import SHOWN, Labelled, LabelledDataset, read_labelled
from finetune.data.question import seeded_hash
from finetune.evaluation.classification import compute_metrics
from finetune.predict.classifier import ClassifierPredictor
from finetune.reports import report
from finetune.reports.classification import title_of, verdict
from finetune.runtime import hub
from finetune.runtime.console import as_json, log, print_result
from finetune.runtime.errors import UserError, listed
from finetune.runtime.files import atomic_open


def run_label_exam(flags, labeller: ClassifierPredictor, world) -> None:
    """The model names the labels of the texts; figures, answers and a page are written.

    Raises:
        UserError: no labelled texts, no such split, no label that the model knows.
    """
    card = labeller.card
    taught = card.flags if card else {}
    hub.prepare_for(flags.exam)
    columns = flags.text_column or _where_there(flags.exam, taught.get("text_column"))
    try:
        found = read_labelled(
            flags.exam, flags.revision if "revision" in flags.given else None, columns, flags.label_column,
            labeller.multi, "", flags.on_bad_rows, "--exam", learn=False,
        )  # fmt: skip
    except UserError as error:
        meant = f"{labeller.name} 是分類模型，只會分類：--exam 要有標籤的文字，不是選擇題"
        raise UserError([*error.problems, meant]) from error
    split, rows = _choose(found, flags.split)
    if flags.exam_limit:
        rows = sorted(rows, key=lambda row: seeded_hash(0, row.fingerprint))[: flags.exam_limit]
    places, note = _places(found.names, labeller.names)
    known = [row for row in rows if all(label in places for label in row.labels)]
    unknown = Counter(found.names[label] for row in rows for label in row.labels if label not in places)
    if not known:
        raise UserError(
            f"--exam {flags.exam}：標籤 {listed(unknown)} 模型一個也沒有，它的是 {listed(labeller.names)}"
        )
    labeller.warn_of_count(2 if found.pair_column else 1)
    shares = labeller.shares([(row.text, row.pair) for row in rows], world)
    if not world.is_main:
        return
    place_of = {id(row): place for place, row in enumerate(rows)}
    truth = [tuple(sorted(places[label] for label in row.labels)) for row in known]
    asked = [shares[place_of[id(row)]] for row in known]
    figures = compute_metrics(truth, asked, labeller.names, labeller.multi)
    notes = [note] if note else []
    if unknown:
        named = "、".join(f"{name} {count}" for name, count in unknown.most_common(SHOWN))
        left = len(rows) - len(known)
        worst = figures["right"] / len(rows)
        notes.append(f"{left} 列的標籤是模型沒有的（{named}），沒有列入；算它們答錯的話是 {worst:.3f}")
    if found.skipped:
        notes.append(f"有 {len(found.skipped)} 列讀不了，沒有列入（--on_bad_rows skip）")
    facts = {"模型": labeller.name, "資料": found.origin, "題目": f"{title_of(split)} {len(rows)} 列"}
    if card:
        facts |= {"底模": card.base_model, "訓練資料": card.dataset}
    written = report.Report(facts, {}, {}, notes=notes, labels={split: figures})
    folder = Path(flags.report or default_folder(flags.exam))
    if (folder / "results.json").exists():
        log(f"換掉 {folder} 裡先前的報告；要留著就用 --report 指定別的資料夾")
    report.write(folder, written)
    _write_predictions(folder, rows, found, labeller, shares)
    if flags.json:
        print_result(as_json({"report": str(folder), "facts": facts, "notes": notes, split: figures}))
    else:
        for line in [*verdict(written.labels), *notes]:
            print_result(line)
    log(f"報告：{folder / 'index.html'}")


def _where_there(source: str, columns: object) -> str:
    """The text columns that the model was taught from, where a file's first row has them; else "", and the
    obvious ones are found.
    """
    from finetune.data.tables import read_table

    wanted = column_names(str(columns or ""))
    if not wanted or not Path(source).is_file():
        return ""
    first = next((row for _, row in read_table(Path(source)) if isinstance(row, dict)), {})
    return ",".join(wanted) if {*wanted} <= {*first} else ""


def _choose(found: LabelledDataset, split: str) -> tuple[str, list[Labelled]]:
    """The rows of a split, and its name. A file without splits is one. Raises UserError."""
    rows = {name: some for name, some in found.rows.items() if some}
    if split == "all" or set(rows) == {""}:
        return "all", [row for some in rows.values() for row in some]
    name = SPLITS[split]
    if name not in rows:
        there = "、".join(f"{known or '不分'}（{len(some)} 列）" for known, some in rows.items())
        raise UserError(f"--split {split}：這份資料沒有這一部分，有的是 {there}；或用 all")
    return name, rows[name]


def _places(theirs: list[str], ours: list[str]) -> tuple[dict[int, int], str]:
    """The model's class of each label of the data that it knows; and what must be said of it. Labels that are
    all numbers of classes, where no name fits, are such.
    """
    found = {at: ours.index(name) for at, name in enumerate(theirs) if name in ours}
    numbers = {str(place): place for place in range(len(ours))}
    if found or not {*theirs} <= numbers.keys():
        return found, ""
    listed_as = "、".join(f"{number} = {ours[place]}" for number, place in list(numbers.items())[:SHOWN])
    return {
        at: numbers[name] for at, name in enumerate(theirs)
    }, f"資料的標籤是編號，照模型的順序：{listed_as}"


def _write_predictions(
    folder: Path,
    rows: list[Labelled],
    found: LabelledDataset,
    labeller: ClassifierPredictor,
    shares: list[list[float]],
) -> None:
    """predictions.jsonl: of each row its texts, the true label, the model's and its probabilities."""
    key = "labels" if labeller.multi else "label"
    with atomic_open(folder / "predictions.jsonl") as stream:
        for row, share in zip(rows, shares, strict=True):
            names = [found.names[label] for label in row.labels]
            record = {"id": row.id, "text": row.text, **({"pair": row.pair} if row.pair else {})}
            record[f"true_{key}"] = names if labeller.multi else names[0]
            record |= labeller.to_record(labeller.ranked(share))
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
