"""Evaluate models on an exam from the command line (--exam): questions, models, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.cli.exam_checks import check_repeats, check_votes
from finetune.cli.inference_args import BASE_MODEL, InferenceArgs
from finetune.cli.inference_checks import warn_of_unused_generation_flags
from finetune.data.exam import Exam
from finetune.data.question import Question
from finetune.data.splits import sample_rows
from finetune.evaluation import evaluator, key_audit, repeats
from finetune.evaluation.evaluator import ExamResult, run_exam
from finetune.evaluation.revision_scores import compute_revisions
from finetune.models.run_card import RunCard
from finetune.predict.asking import ask_exam
from finetune.predict.evidence import evidence_of, prompt_texts
from finetune.predict.exam_output import write_exam_page, write_unscored
from finetune.predict.generative import GenerativePredictor
from finetune.predict.kept_answers import keep_answers, stop_keeping
from finetune.predict.predictor import Predictor
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.reports import report, sections
from finetune.runtime.console import log
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError


@dataclass(frozen=True)
class ModelResults:
    """Results of the models on the same questions.

    Attributes:
        model: of the model itself.
        option_only: of the model on the questions without their stems; None with --skip_option_only.
        held_out: of the model on questions for calibration; or, in words, why there are none.
        other: of the second model; None without one.
    """

    model: ExamResult
    option_only: ExamResult | None
    held_out: ExamResult | str
    other: ExamResult | None


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
    asking = ask_exam(flags, exam, predictor, rows or keyless)
    method, card = predictor.method(flags.scoring), predictor.card
    if predictor.is_causal and method != GENERATE:
        warn_of_unused_generation_flags(flags)
    check_repeats(flags.repeat, method, flags.orders if "orders" in flags.given else None)
    orders = "1" if method == GENERATE or (flags.repeat or 1) > 1 else flags.orders
    if flags.audit_keys:
        check_votes(method, orders, flags.repeat, flags.compare_with is not None)
    # before hours of work, if it is none
    comparison = load(flags.compare_with) if flags.compare_with else None
    notes = _notes(exam, card, len(keyless))
    if comparison:
        other_asking = ask_exam(flags, exam, comparison, rows)
        comparison.method(method)
        if predictor.is_causal and comparison.is_causal and other_asking.format != asking.format:
            notes.insert(
                0,
                f"兩個模型的問法不同：{_other_title(flags)} 以 {other_asking.format} 發問，"
                f"這個模型以 {asking.format}；要一樣就加 --prompt_format",
            )
    keep_answers(flags, predictor, comparison, method, world)

    def evaluate(model: Predictor, questions: Sequence[Question], title: str) -> ExamResult:
        return run_exam(model.score, questions, method, orders, world, title)

    unscored = None
    if len(keyless):
        title = "評測（沒有答案的題目）"
        unscored = evaluate_repeatedly(evaluate, predictor, keyless, title, flags.repeat)
    facts = facts_of(predictor, exam, method, orders)
    if (flags.repeat or 1) > 1:
        facts["作答方式"] = f"{method}，評測 {flags.repeat} 次，第 2 次起打亂選項"
    if unscored and flags.log_prompts:
        unscored.prompts = prompt_texts(predictor, keyless, method)
    if not len(rows):
        if flags.audit_keys:
            log("⚠️ --audit_keys 沒有作用：這些題目都沒有答案")
        stop_keeping(predictor, comparison)
        if world.is_main and unscored:
            write_unscored(flags, facts | {"題目": f"{len(keyless)} 題，都沒有答案"}, unscored)
        return
    calibration = calibration_questions(exam, split, rows, predictor) if method != GENERATE else ""
    results = evaluate_models(evaluate, flags, predictor, comparison, rows, calibration)
    stop_keeping(predictor, comparison)
    if not world.is_main:
        return
    metrics = evaluator.compute_metrics(
        results.model, results.other, card.trained_on if card else None, results.option_only, results.held_out
    )
    metrics |= repeats.repeated_figures(results.model, results.other, metrics)
    metrics["too_long"] = asking.protocol.too_long
    doubtful = audit_keys(flags, predictor, results, metrics) if flags.audit_keys else None
    facts["題目"] = f"{sections.title_of(split)} {len(rows)} 題"
    if flags.log_prompts:
        results.model.prompts = prompt_texts(predictor, rows, method)
    page = report.Report(
        facts, {split: metrics}, {split: (results.model, results.other)}, _other_title(flags), "other",
        card.history if card else [], card.step if card else 0, notes,
        unscored=unscored, evidence=evidence_of(flags, exam, predictor, rows, asking, orders),
        doubtful_keys=doubtful,
    )  # fmt: skip
    if exam.revisions:
        page.revisions = compute_revisions(exam.revisions, flags.exam_limit, results.model, results.other)
    write_exam_page(flags, page)


def evaluate_models(
    evaluate: Callable[[Predictor, Sequence[Question], str], ExamResult],
    flags: InferenceArgs,
    predictor: Predictor,
    comparison: Predictor | None,
    rows: Sequence[Question],
    calibration: Sequence[Question] | str,
) -> ModelResults:
    """Evaluate a model on questions, without their stems too and for calibration, and a second one.

    Args:
        evaluate: returns the result of a model on questions; the text is the title of the progress bar.
        flags: --skip_option_only, --compare_with and --repeat.
        predictor: the model.
        comparison: the second model; None without one.
        rows: the questions.
        calibration: see `calibration_questions`.
    """
    result = evaluate_repeatedly(evaluate, predictor, rows, "評測", flags.repeat)
    option_only = other = None
    if not flags.skip_option_only:
        option_only = evaluate(predictor, evaluator.without_stem(rows), "只看選項")
    held_out: ExamResult | str = (
        calibration if isinstance(calibration, str) else evaluate(predictor, calibration, "驗證題（校準用）")
    )
    if comparison:  # by the same method, or they are not compared
        title = f"評測（{_other_title(flags)}）"
        other = evaluate_repeatedly(evaluate, comparison, rows, title, flags.repeat)
    return ModelResults(result, option_only, held_out, other)


def evaluate_repeatedly(
    evaluate: Callable[[Predictor, Sequence[Question], str], ExamResult],
    model: Predictor,
    questions: Sequence[Question],
    title: str,
    count: int | None,
) -> ExamResult:
    """Evaluate a model on questions `count` times, see `repeats.run_repeated`; each run samples anew."""
    writer = model if isinstance(model, GenerativePredictor) else None
    decoding = writer.decoding if writer else None

    def evaluate_run(run: int, shown: Sequence[Question], run_title: str) -> ExamResult:
        if writer and decoding:
            writer.decoding = replace(decoding, seed=repeats.seed_of_run(decoding.seed, run))
        return evaluate(model, shown, run_title)

    try:
        return repeats.run_repeated(evaluate_run, questions, count, title)
    finally:
        if writer and decoding:
            writer.decoding = decoding


def audit_keys(
    flags: InferenceArgs, predictor: Predictor, results: ModelResults, metrics: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the rows of doubtful_keys.jsonl; the summary goes into the metrics."""
    voters = [key_audit.voter_of(results.model, predictor.name)]
    if results.other:
        name = _other_title(flags)
        name += "（比較的模型）" * (name == predictor.name)
        voters.append(key_audit.voter_of(results.other, name))
    audit = key_audit.audit_keys(results.model.questions, voters)
    metrics["doubtful_keys"] = audit.summary
    return audit.rows


def _other_title(flags: InferenceArgs) -> str:
    """Return what the model of --compare_with is called; "" without one."""
    return sections.BASE_MODEL_TITLE if flags.compare_with == BASE_MODEL else flags.compare_with or ""


def _notes(exam: Exam, card: RunCard | None, keyless: int) -> list[str]:
    """Return what must stand beside every figure.

    Args:
        card: of the model.
        keyless: number of questions that were answered and have no key.
    """
    notes = [sections.NOT_COMPARABLE] if card and card.pool == "all" else []
    if exam.test != "test":
        notes.append(f"這份題庫只有 {exam.test} 這一部分，它就是測驗題")
    if keyless:
        notes.append(f"另有 {keyless} 題沒有答案：作答了（predictions.jsonl），不計分")
    if exam.skipped:
        notes.append(f"題庫裡有 {len(exam.skipped)} 列無法讀取，沒有評測（--on_bad_rows skip）")
    return notes


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


def calibration_questions(
    exam: Exam, split: str, evaluated: Sequence[Question], predictor: Predictor
) -> Sequence[Question] | str:
    """Return validation questions that are neither evaluated nor in the training data, for calibration.

    Returns:
        the questions; or, in words, why there are none.
    """
    if split == "all":
        return evaluator.ALL_EVALUATED
    if split == "validation":  # what is left are training rows, which a model of unknown training may know
        return evaluator.VALIDATION_EVALUATED
    known = {question.fingerprint for question in evaluated}
    if predictor.card:
        known |= set(predictor.card.fingerprints)
    candidates = (
        question
        for name in ("validation", "train")
        if name != split
        for question in exam.questions.get(name, ())
    )
    return evaluator.choose_calibration(candidates, known, evaluator.NONE_UNSEEN)
