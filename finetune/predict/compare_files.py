"""--compare: two files of per-question answers, without a model."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.data_files import SPLITS
from finetune.evaluation.answer_comparison import compare, join
from finetune.evaluation.answer_files import read_answers
from finetune.reports import comparison, report_folder
from finetune.runtime.console import as_json, log, print_result
from finetune.runtime.errors import Problems, UserError


def compare_files(flags: InferenceArgs) -> None:
    """Compare the two files of --compare: print the verdict or one object, write the report of --report.

    Raises:
        UserError: a file that is not there or holds no answers, files without a question in common.
        RunError: the report cannot be written.
    """
    one, other = required(flags.compare)
    folder = Path(flags.report) if flags.report else None
    with (problems := Problems()):
        if folder:
            report_folder.check_folder(folder, "--report", comparison.OF_COMPARISON)
    answers = []
    for path in (one, other):
        with problems:
            answers.append(read_answers(path))
    problems.report()
    first, second = answers
    if {*map(os.path.realpath, first.files)} == {*map(os.path.realpath, second.files)}:
        raise UserError(f"--compare：{one} 與 {other} 是同一份作答；請給兩個模型（或兩次評測）的作答")
    chosen = SPLITS.get(flags.split, flags.split) if "split" in flags.given else None
    joined = join(first, second, chosen)
    report = comparison.ComparisonReport(first, second, joined, compare(joined))
    if flags.json:
        print_result(as_json({**({"report": str(folder)} if folder else {}), **report.summary}))
    else:
        for line in comparison.screen_lines(report):
            print_result(line)
    if folder:
        comparison.write(folder, report)
        log(f"報告：{folder / 'index.html'}")
    elif report.moved:
        log(f"對錯不同的 {len(report.moved)} 題：加 --report 資料夾，寫下每一題與網頁")
