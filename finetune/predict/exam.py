"""Evaluate models on an exam from the command line (--exam): questions, models, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.cli.inference_args import BASE_MODEL, InferenceArgs, report_folder
from finetune.data.exam import Exam
from finetune.data.question import Question
from finetune.data.splits import sample_rows
from finetune.evaluation import evaluator
from finetune.evaluation.evaluator import ExamResult, run_exam
from finetune.predict.predictor import Predictor
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.reports import report, sections
from finetune.runtime.console import as_json, log, print_optional
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError


def run_exam_command(
    flags: InferenceArgs,
    exam: Exam,
    predictor: Predictor,
    load: Callable[[str], Predictor],
    world: Distributed,
) -> None:
    """Evaluate a model on an exam, and the model it is compared with; write the report, print the verdict.

    Args:
        load: loads a second model by its name.

    Raises:
        UserError: no such split, or a second model that cannot be compared.
    """
    split, rows = select_split(exam, flags.split)
    rows, keyless = sample_rows(rows, flags.exam_limit, seed=0), without_key(exam, split)
    keyless = sample_rows(keyless, flags.exam_limit, seed=0)
    method, card = predictor.method(flags.scoring), predictor.card
    orders = "1" if method == GENERATE else flags.orders
    rival = load(flags.compare_with) if flags.compare_with else None  # before hours of work, if it is none
    if rival:
        rival.method(method)

    def evaluate(model: Predictor, questions: Sequence[Question], title: str) -> ExamResult:
        return run_exam(model.score, questions, method, orders, world, title)

    unscored = evaluate(predictor, keyless, "評測（沒有答案的題目）") if len(keyless) else None
    if not len(rows):
        if world.is_main and unscored:
            facts = facts_of(predictor, exam, method, orders)
            write_unscored(flags, facts | {"題目": f"{len(keyless)} 題，都沒有答案"}, unscored)
        return
    result = evaluate(predictor, rows, "評測")
    option_only = other = None
    if not flags.skip_option_only:
        option_only = evaluate(predictor, evaluator.without_stem(rows), "只看選項")
    calibration = calibration_questions(exam, split, rows, predictor)
    held_out: ExamResult | str = (
        calibration if isinstance(calibration, str) else evaluate(predictor, calibration, "驗證題（校準用）")
    )
    other_title = sections.BASE_MODEL_TITLE if flags.compare_with == BASE_MODEL else flags.compare_with or ""
    if rival:  # by the same method, or they are not compared
        other = evaluate(rival, rows, f"評測（{other_title}）")
    if not world.is_main:
        return
    trained = card.trained_on if card else None
    metrics = evaluator.compute_metrics(result, other, trained, option_only, held_out)
    facts = facts_of(predictor, exam, method, orders)
    facts["題目"] = f"{sections.title_of(split)} {len(rows)} 題"
    notes = [sections.NOT_COMPARABLE] if card and card.pool == "all" else []
    if unscored:
        notes.append(f"另有 {len(keyless)} 題沒有答案：作答了（predictions.jsonl），不計分")
    if exam.skipped:
        notes.append(f"題庫裡有 {len(exam.skipped)} 列無法讀取，沒有評測（--on_bad_rows skip）")
    history = card.history if card else []
    page = report.Report(
        facts, {split: metrics}, {split: (result, other)}, other_title, "other", history,
        card.step if card else 0, notes, unscored=unscored,
    )  # fmt: skip
    folder = Path(report_folder(flags))
    if (folder / "results.json").exists():
        log(f"換掉 {folder} 裡先前的報告；要留著就用 --report 指定別的資料夾")
    verdict = report.verdict(page)
    if flags.json:
        verdict = [as_json({"report": str(folder), "facts": facts, split: metrics})]
    try:
        report.write(folder, page, "成績如上；清出空間，或用 --report 指定別的資料夾，再評測一次")
    finally:
        for line in verdict:  # hours of work, whether or not there is room for the rest
            print_optional(line)
    log(f"報告：{folder / 'index.html'}")


def facts_of(predictor: Predictor, exam: Exam, method: str, orders: str) -> dict[str, str]:
    """Return the facts of a report: model, exam and scoring method, in words.

    Args:
        orders: option orders: `1`, `cyclic`, `all`.
    """
    orders_title = {"1": "照原順序", "cyclic": "輪換順序取平均", "all": "全部順序取平均"}[orders]
    card = predictor.card
    facts = {
        "模型": predictor.name, "題庫": exam.origin, "題目": "",
        "作答方式": method + (f"，{orders_title}" if parse(method).by_letter else ""),
    }  # fmt: skip
    if card:
        facts |= {"底模": card.base_model, "訓練資料": card.dataset}
        facts |= {"訓練題數": str(len(card.fingerprints))} if card.fingerprints else {}
    return facts


def select_split(exam: Exam, split: str) -> tuple[str, Sequence[Question]]:
    """Return the official name of a split, and its questions. A file without splits is one split.

    Raises:
        UserError: with the splits there are.
    """
    if split == "all" or {*exam.questions, *exam.keyless} == {""}:
        return "all", [question for rows in exam.questions.values() for question in rows]
    name = exam.split(split)
    if not exam.questions.get(name):
        if exam.keyless.get(name):
            return name, []
        only = [known for known, rows in exam.questions.items() if rows]
        if len(only) == 1 and Path(exam.origin).is_file():  # named …_val.csv, say: what else could be meant
            log(f"這份題庫只有 {only[0]} 這一部分，就評測它")
            return only[0], exam.questions[only[0]]
        known_splits = "、".join(
            f"{known}（{len(rows)} 題）" for known, rows in exam.questions.items() if rows
        )
        raise UserError(f"--split {split}：這份題庫沒有這一部分，有的是 {known_splits or '（無）'}；或用 all")
    return name, exam.questions[name]


def without_key(exam: Exam, split: str) -> Sequence[Question]:
    """Return the questions without an answer of a split that `select_split` named."""
    if split == "all":
        return [question for rows in exam.keyless.values() for question in rows]
    return exam.keyless.get(split, [])


def write_unscored(flags: InferenceArgs, facts: dict[str, str], result: ExamResult) -> None:
    """Write the predictions of questions that have no key: there is nothing to score, and so no page."""
    folder = Path(report_folder(flags))
    count = len(result.questions)
    note = f"{count} 題都沒有答案：作答了，不計分"
    report.write(folder, report.Report(facts, {}, {}, notes=[note], unscored=result))
    if flags.json:
        print_optional(as_json({"report": str(folder), "answered": count, "scored": 0}))
    log(f"{note}。答案在 {folder / 'predictions.jsonl'}")


def calibration_questions(
    exam: Exam, split: str, evaluated: Sequence[Question], predictor: Predictor
) -> Sequence[Question] | str:
    """Return validation questions that are neither evaluated nor in the training data, for calibration.

    Returns:
        at most CALIBRATION_ROWS questions; or, in words, why there are none.
    """
    if split == "all":
        return "評測的是全部題目，沒有別的題目可用來調整溫度"
    if split == "validation":  # what is left are training rows, which a model of unknown training may know
        return "評測的就是驗證題，沒有別的題目可用來調整溫度"
    known = {question.fingerprint for question in evaluated}
    if predictor.card:
        known |= set(predictor.card.fingerprints)
    rows = [
        question
        for name in ("validation", "train")
        if name != split
        for question in exam.questions.get(name, ())
        if question.fingerprint not in known
    ]
    if not rows:
        return "題庫裡沒有既未評測、模型也沒訓練過的驗證題或訓練題，無法調整溫度"
    return sample_rows(rows, evaluator.CALIBRATION_ROWS, seed=0)
