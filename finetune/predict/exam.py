"""An exam from the command line: which questions, which models, what is written where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.cli.inference_args import BASE_MODEL, default_folder
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
    flags, exam: Exam, examinee: Predictor, load: Callable[[str], Predictor], world: Distributed
) -> None:
    """The model sits the exam, and whatever it is compared with; report and verdict are written.

    Args:
        load: a second model by its name.

    Raises:
        UserError: no such split, or a second model that is none.
    """
    split, rows = select_split(exam, flags.split)
    rows, keyless = sample_rows(rows, flags.exam_limit, seed=0), without_key(exam, split)
    keyless = sample_rows(keyless, flags.exam_limit, seed=0)
    method, card = examinee.method(flags.scoring), examinee.card
    asked_in = "1" if method == GENERATE else flags.orders
    rival = load(flags.compare_with) if flags.compare_with else None  # before hours of work, if it is none
    if rival:
        rival.method(method)

    def seat(who: Predictor, questions: Sequence[Question], what: str) -> ExamResult:
        return run_exam(who.score, questions, method, asked_in, world, what)

    unscored = seat(examinee, keyless, "測驗（沒有答案的題目）") if len(keyless) else None
    if not len(rows):
        if world.is_main:
            facts = facts_of(examinee, exam, method, asked_in)
            tell_unscored(flags, facts | {"題目": f"{len(keyless)} 題，都沒有答案"}, unscored)
        return
    mine = seat(examinee, rows, "測驗")
    alone = other = None
    if not flags.skip_option_only:
        alone = seat(examinee, evaluator.without_stem(rows), "只看選項")
    apart = calibration_questions(exam, split, rows, examinee)
    held_out = apart if isinstance(apart, str) else seat(examinee, apart, "驗證題（校準用）")
    other_title = sections.BASE_MODEL_TITLE if flags.compare_with == BASE_MODEL else flags.compare_with or ""
    if rival:
        other = seat(rival, rows, f"測驗（{other_title}）")  # by the same method, or they are not compared
    if not world.is_main:
        return
    found = evaluator.compute_metrics(mine, other, card.taught if card else None, alone, held_out)
    facts = facts_of(examinee, exam, method, asked_in)
    facts["題目"] = f"{sections.title_of(split)} {len(rows)} 題"
    notes = [sections.NOT_COMPARABLE] if card and card.pool == "all" else []
    if unscored:
        notes.append(f"另有 {len(keyless)} 題沒有答案：作答了（predictions.jsonl），不計分")
    if exam.skipped:
        notes.append(f"題庫裡有 {len(exam.skipped)} 列讀不懂，沒有考（--on_bad_rows skip）")
    history = card.history if card else []
    written = report.Report(
        facts, {split: found}, {split: (mine, other)}, other_title, "other", history,
        card.step if card else 0, notes, unscored=unscored,
    )  # fmt: skip
    folder = Path(flags.report or default_folder(flags.exam))
    if (folder / "results.json").exists():
        log(f"換掉 {folder} 裡先前的報告；要留著就用 --report 指定別的資料夾")
    verdict = report.verdict(written)
    if flags.json:
        verdict = [as_json({"report": str(folder), "facts": facts, split: found})]
    try:
        report.write(folder, written, "成績如上；清出空間，或用 --report 指定別的資料夾，再考一次")
    finally:
        for line in verdict:  # hours of work, whether or not there is room for the rest
            print_optional(line)
    log(f"報告：{folder / 'index.html'}")


def facts_of(examinee: Predictor, exam: Exam, method: str, asked_in: str) -> dict[str, str]:
    """What is examined, by whom and how, in words.

    Args:
        asked_in: orders of the options: `1`, `cyclic`, `all`.
    """
    orders = {"1": "照原順序", "cyclic": "輪換順序取平均", "all": "全部順序取平均"}[asked_in]
    card = examinee.card
    facts = {
        "模型": examinee.name, "題庫": exam.origin, "題目": "",
        "作答方式": method + (f"，{orders}" if parse(method).by_letter else ""),
    }  # fmt: skip
    if card:
        facts |= {"底模": card.base_model, "訓練資料": card.dataset}
        facts |= {"訓練題數": str(len(card.fingerprints))} if card.fingerprints else {}
    return facts


def select_split(exam: Exam, split: str) -> tuple[str, Sequence[Question]]:
    """The questions of a split, and its official name. A file without splits is one.

    Raises:
        UserError: with the splits there are.
    """
    there = {*exam.questions, *exam.keyless}
    if split == "all" or there == {""}:
        return "all", [question for rows in exam.questions.values() for question in rows]
    name = exam.split(split)
    if not exam.questions.get(name):
        if exam.keyless.get(name):
            return name, []
        only = [known for known, rows in exam.questions.items() if rows]
        if len(only) == 1 and Path(exam.origin).is_file():  # named …_val.csv, say: what else could be meant
            log(f"這份題庫只有 {only[0]} 這一部分，就考它")
            return only[0], exam.questions[only[0]]
        there = "、".join(f"{known}（{len(rows)} 題）" for known, rows in exam.questions.items() if rows)
        raise UserError(f"--split {split}：這份題庫沒有這一部分，有的是 {there or '（無）'}；或用 all")
    return name, exam.questions[name]


def without_key(exam: Exam, split: str) -> Sequence[Question]:
    """The questions without an answer of a split that `choose` named."""
    if split == "all":
        return [question for rows in exam.keyless.values() for question in rows]
    return exam.keyless.get(split, [])


def tell_unscored(flags, facts: dict[str, str], sitting: ExamResult) -> None:
    """Writes the answers to questions that have no key: there is nothing to score, and so no page."""
    folder = Path(flags.report or default_folder(flags.exam))
    count = len(sitting.questions)
    said = f"{count} 題都沒有答案：作答了，不計分"
    report.write(folder, report.Report(facts, {}, {}, notes=[said], unscored=sitting))
    if flags.json:
        print_optional(as_json({"report": str(folder), "answered": count, "scored": 0}))
    log(f"{said}。答案在 {folder / 'predictions.jsonl'}")


def calibration_questions(
    exam: Exam, split: str, examined: Sequence[Question], examinee: Predictor
) -> Sequence[Question] | str:
    """Validation questions that the model was not fitted on and that are not among those examined; or why
    there are none.
    """
    if split == "all":
        return "考的是全部題目，沒有別的題目可用來調整溫度"
    if split == "validation":  # what is left would be training rows, which a model not taught here may know
        return "考的就是驗證題，沒有別的題目可用來調整溫度"
    known = {question.fingerprint for question in examined}
    if examinee.card:
        known |= set(examinee.card.fingerprints)
    rows = [
        question
        for name in ("validation", "train")
        if name != split
        for question in exam.questions.get(name, ())
        if question.fingerprint not in known
    ]
    if not rows:
        return "題庫裡沒有既沒考、模型也沒學過的驗證題或訓練題，無法調整溫度"
    return sample_rows(rows, evaluator.CALIBRATION_ROWS, seed=0)
