"""Output of --exam: a report in its folder; on stdout the verdict or, with --json, one object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, report_folder
from finetune.evaluation.evaluator import ExamResult
from finetune.reports import report
from finetune.runtime.console import as_json, log, print_optional


def target_folder(flags: InferenceArgs) -> Path:
    """Return the folder that the report goes to; log that a former report in it is replaced."""
    folder = Path(report_folder(flags))
    if (folder / "results.json").exists():
        log(f"換掉 {folder} 裡先前的報告；要留著就用 --report 指定別的資料夾")
    return folder


def summary_lines(
    flags: InferenceArgs, folder: Path, verdict: list[str], record: dict[str, Any]
) -> list[str]:
    """Return what goes to stdout: the verdict or, with --json, one object.

    Args:
        record: of the object, beside the folder.
    """
    return [as_json({"report": str(folder), **record})] if flags.json else verdict


def _record(page: report.Report) -> dict[str, Any]:
    """Return what --json prints of a report."""
    record = {"facts": page.facts, **page.results}
    return record | ({"revisions": page.revisions} if page.revisions else {})


def log_page(folder: Path) -> None:
    """Log where the page of a report is."""
    log(f"報告：{folder / 'index.html'}")


def write_exam_page(flags: InferenceArgs, page: report.Report) -> None:
    """Write the report of a scored exam, and print its summary even if there is no room for the report.

    Raises:
        RunError: it cannot be written.
    """
    folder = target_folder(flags)
    lines = summary_lines(flags, folder, report.verdict(page), _record(page))
    try:
        report.write(folder, page, "成績如上；清出空間，或用 --report 指定別的資料夾，再評測一次")
    finally:
        for line in lines:  # hours of work, whether or not there is room for the rest
            print_optional(line)
    log_page(folder)


def write_unscored(flags: InferenceArgs, facts: dict[str, str], result: ExamResult) -> None:
    """Write the predictions of questions that have no key: there is nothing to score, and so no page."""
    folder = Path(report_folder(flags))
    count = len(result.questions)
    note = f"{count} 題都沒有答案：作答了，不計分"
    report.write(folder, report.Report(facts, {}, {}, notes=[note], unscored=result))
    if flags.json:
        print_optional(as_json({"report": str(folder), "answered": count, "scored": 0}))
    log(f"{note}。答案在 {folder / 'predictions.jsonl'}")
