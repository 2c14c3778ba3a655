"""Teach a masked language model the questions of an exam, and say honestly how good it became.

    python fine_tuning_llm.py --demo                          # built-in exam, two minutes on a laptop
    python fine_tuning_llm.py                                 # bert-base-chinese on TMMLU+
    deepspeed --num_gpus=2 fine_tuning_llm.py --deepspeed_config ds_config.json
    torchrun --nproc_per_node 2 fine_tuning_llm.py

Order: 1 flags, 2 the recipe, 3 model and engine, 4 loop, 5 saving and exam, 6 names that others import.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, hub
from finetune.cli import say
from finetune.errors import Stopped
from finetune.flags import read_flags
from finetune.handouts import generate_qa_benchmark, get_dataset
from finetune.judging import JUDGE, EvalLLm

__all__ = [
    "EvalLLm",
    "chat_with_tuning_llm",
    "exe_chat",
    "general_chat",
    "generate_qa_benchmark",
    "get_dataset",
]

if TYPE_CHECKING:  # heavy imports wait until the flags are read: --help answers at once
    from finetune.checkpoints import Checkpoints, Progress
    from finetune.engine import Engine
    from finetune.exams import Pools
    from finetune.lesson import Lesson
    from finetune.machine import Machine
    from finetune.world import StopRequest, World

# ---- 1. flags (the list itself: finetune/flags.py) ---------------------------------------------------------


def main(argv=None) -> int:
    """Runs the script. Returns its exit code: 0 done, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda: train(*read_flags(argv)), debug="--debug" in argv)


# ---- 2. the recipe -----------------------------------------------------------------------------------------


def train(flags, given: set[str]) -> None:
    """The whole story, from flags to report."""
    from finetune.checks import check

    local_exam, checkpoint = check(flags, given)
    if not flags.demo and (local_exam is None or not Path(flags.model_name_or_path).expanduser().is_dir()):
        hub.go_offline_if_unreachable()  # before transformers is imported, which reads what this sets
    from finetune.lesson import prepare, read_data
    from finetune.machine import meet

    world, machine = meet(flags, given)
    exam, pools = read_data(flags, world, local_exam)
    lesson = prepare(flags, world, machine, exam, pools)
    if flags.dry_run:
        show_plan(flags, machine, lesson)
    else:
        progress = teach(flags, world, machine, lesson, pools, checkpoint)
        examine(flags, world, lesson, pools, progress)
    world.leave()


def teach(
    flags, world: World, machine: Machine, lesson: Lesson, pools: Pools, checkpoint: Path | None
) -> Progress:
    """Model, engine, loop, saving. The engine and its memory are gone when this returns."""
    from finetune.exams import write_questions
    from finetune.world import StopRequest

    engine = build_engine(flags, world, machine, lesson)
    keeper, progress = open_checkpoints(flags, world, engine, lesson, checkpoint)
    if world.is_main:  # the first thing written: all that can be wrong with the flags has been looked at
        write_questions(beside(flags, "test_qa_data.json"), pools.test or pools.held_back)
    with StopRequest() as stop:
        loop(flags, world, engine, lesson, keeper, progress, stop)
        engine.close()
        publish(flags, world)
    if world.any(stop.signum):  # it came too late for the loop to see
        raise Stopped(stop.signum or signal.SIGTERM, f"訓練已完成，模型在 {flags.output_dir}；沒有測驗")
    return progress


def show_plan(flags, machine: Machine, lesson: Lesson) -> None:
    """--dry_run: what would be done, as JSON on stdout."""
    steps = {"steps_per_epoch": lesson.steps_per_epoch, "total_steps": lesson.total_steps}
    if cli.is_main_process():
        print(json.dumps({**vars(flags), **asdict(machine), **steps}, ensure_ascii=False, indent=1))


# ---- 3. model and engine -----------------------------------------------------------------------------------


def load_base(flags, lesson: Lesson):
    """The model as it is before anything is taught."""
    from finetune import models

    name, flag = flags.model_name_or_path, "--model_name_or_path"
    return models.load_masked_lm(name, lesson.config, lesson.tokenizer, flag, flags.from_scratch, flags.seed)


def build_engine(flags, world: World, machine: Machine, lesson: Lesson) -> Engine:
    """The model on its device, with optimizer and engine around it."""
    from finetune import ds_config, models
    from finetune.engine import DeepSpeedEngine, Engine, Recipe

    model = world.main_first(lambda: load_base(flags, lesson))
    models.announce(flags.model_name_or_path, model, flags.from_scratch)
    if flags.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    recipe = Recipe(
        flags.learning_rate, flags.weight_decay, flags.max_grad_norm, flags.seed,
        machine.precision, machine.micro_batch, machine.accumulation,
    )  # fmt: skip
    if machine.engine == "torch":
        return Engine(model, world, recipe)
    settings = ds_config.Settings(
        flags.train_batch_size, machine.micro_batch, world.size, flags.max_grad_norm, machine.precision,
        flags.learning_rate, flags.weight_decay, lesson.warmup_steps, lesson.total_steps,
    )  # fmt: skip
    resolved = ds_config.resolve(
        machine.ds_config, settings, lesson.config.hidden_size, Path(flags.deepspeed_config).name
    )
    say(f"  DeepSpeed 設定：{json.dumps(resolved, ensure_ascii=False)}")
    return DeepSpeedEngine(model, world, recipe, resolved)


def open_checkpoints(flags, world: World, engine: Engine, lesson: Lesson, checkpoint: Path | None):
    """The keeper of checkpoints, and the progress to go on from."""
    from finetune.checkpoints import Checkpoints, Progress
    from finetune.run_card import digest

    same = ("train_batch_size", "learning_rate", "weight_decay", "max_grad_norm", "warmup_ratio", "seed")
    identity = {
        "engine": engine.kind,
        "precision": engine.recipe.precision,
        "model": digest([lesson.config.to_json_string(), str(len(lesson.tokenizer))]),
        "objective": flags.objective,
        "questions": digest(f"{row}" for row in lesson.teach.rows),
        "max_length": lesson.prompts.max_length,
        "total_steps": lesson.total_steps,
        **{name: getattr(flags, name) for name in same},
    }
    keeper = Checkpoints(flags.save_dir, identity, flags.save_total_limit, world)
    progress = keeper.load(checkpoint, engine.load) if checkpoint else Progress()
    elsewhere = checkpoint is None or checkpoint.parent.resolve() != keeper.folder.resolve()
    if world.is_main:
        keeper.make_room(after=-1 if elsewhere else progress.step, best=elsewhere)
        if checkpoint:
            bring_best(checkpoint.parent / "best", keeper.folder / "best", progress)
            say(f"從 {checkpoint} 接續：已完成 {progress.step}/{lesson.total_steps} 步")
    return keeper, world.agree(progress)


def bring_best(source: Path, target: Path, progress: Progress) -> None:
    """The best model so far belongs to a run, not to a checkpoint: takes it along, or has it chosen anew."""
    from finetune.run_card import RunCard

    card = RunCard.read(source)
    if progress.best_step and (card is None or card.step != progress.best_step):
        say(f"  {source} 不是第 {progress.best_step} 步的模型；最好的模型從這裡起重新挑選")
        progress.forget_best()
    elif card is not None and source.resolve() != target.resolve():
        shutil.copytree(source, target)


# ---- 4. loop -----------------------------------------------------------------------------------------------


def loop(
    flags,
    world: World,
    engine: Engine,
    lesson: Lesson,
    keeper: Checkpoints,
    progress: Progress,
    stop: StopRequest,
) -> None:
    """Steps, validation, checkpoints; until the steps are done or validation stops improving.

    Raises:
        Stopped: a signal came; a checkpoint was written.
    """
    from finetune.engine import learning_rate_at
    from finetune.tracking import TrainLog

    path, total = beside(flags, "train_log.jsonl"), lesson.total_steps
    log = TrainLog(path, progress, total, flags.report_to, vars(flags), world.is_main)
    began = time.perf_counter() - progress.seconds
    try:
        while not progress.finished:
            plan = lesson.plan(progress.epoch, flags.train_batch_size, flags.seed)
            for batch in plan[progress.batch :]:
                if progress.step >= total:
                    break
                started = time.perf_counter()
                micro_batches = lesson.micro_batches(batch, progress.epoch, world, engine.recipe.accumulation)
                rate = learning_rate_at(progress.step, flags.learning_rate, lesson.warmup_steps, total)
                report = engine.step(micro_batches, progress.step, rate, stop=bool(stop.signum))
                progress.after_step(report, seconds=time.perf_counter() - began)
                log.step(progress.step, report, rate, seconds=time.perf_counter() - started)
                if report.stop:
                    where = keeper.save(progress, engine.save)
                    said = f"已停在第 {progress.step} 步，檢查點存於 {where}；加 --resume 接續"
                    raise Stopped(stop.signum or signal.SIGTERM, said + best_so_far(flags))
                if flags.save_interval and progress.step % flags.save_interval == 0:
                    keeper.save(progress, engine.save)
            found = validate(world, engine, lesson)
            if progress.after_epoch(found, flags.early_stopping_patience, total):
                save_best(flags, world, engine, lesson, progress.step)
            progress.seconds = time.perf_counter() - began
            log.epoch(progress.history[-1])
        if progress.stopped_early:
            log.say(f"驗證正確率 {flags.early_stopping_patience} 輪沒有進步，提早結束")
        if not progress.best_step:  # the best was lost, and nothing was measured since
            progress.best_step = progress.step
            save_best(flags, world, engine, lesson, progress.step)
        if keeper.newest_step() != progress.step:
            keeper.save(progress, engine.save)
    finally:
        log.close()


def validate(world: World, engine: Engine, lesson: Lesson) -> dict:
    """Loss and accuracy on the validation rows, with the same masks every time. {} without rows."""
    import torch

    from finetune.examining import sit
    from finetune.methods import OF_OBJECTIVE
    from finetune.objectives import tally

    questions = lesson.check.rows
    if not questions:
        return {}
    engine.eval()
    batches = lesson.check_batches(engine.recipe.micro_batch)
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for number, counts in world.shares(len(batches)):
            batch = lesson.collate(lesson.check, batches[number], epoch=0).to(world.device)
            sums += tally(engine.losses(batch), batch) * counts
    examples, loss, _ = world.sum(sums).tolist()
    method = OF_OBJECTIVE[lesson.check.name]
    sitting = sit(engine.forward, lesson.prompts, questions, method, "1", world.device, world)
    return {
        "validation_loss": loss / examples,
        "validation_accuracy": sitting.right / len(questions),
        "validation_questions": len(questions),
    }


# ---- 5. saving and exam ------------------------------------------------------------------------------------


def beside(flags, name: str = "") -> Path:
    """Where curves, logs and reports go: beside the model folder."""
    return Path(flags.output_dir).resolve().parent / name


def best_so_far(flags) -> str:
    best = Path(flags.save_dir) / "best"
    return f"。目前最好的模型在 {best}，可直接用 inference.py --model_path {best}" if best.is_dir() else ""


def save_best(flags, world: World, engine: Engine, lesson: Lesson, step: int) -> None:
    """Writes the model as it is now to `best/` under --save_dir, in the place of the former best."""
    from finetune.models import replace_folder, save_model

    weights = engine.full_weights()  # collective
    if world.is_main:
        half, best = Path(flags.save_dir) / ".best.half", Path(flags.save_dir) / "best"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        save_model(half, lesson.config, lesson.tokenizer, weights)
        lesson.card(flags, step).write(half)
        replace_folder(half, best)
    world.barrier()


def publish(flags, world: World) -> None:
    """Puts the best model at --output_dir, in the place of an earlier one."""
    from finetune.models import replace_folder

    if world.is_main:
        target = Path(flags.output_dir)
        half = target.with_name(f".{target.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(Path(flags.save_dir) / "best", half)
        replace_folder(half, target)
        say(f"模型存於 {target}")
    world.barrier()


def examine(flags, world: World, lesson: Lesson, pools: Pools, progress: Progress) -> None:
    """The saved model and the untuned one answer the held-back and test rows; figures are written."""
    from finetune import examining, model_card, models, report
    from finetune.exams import sample
    from finetune.methods import OF_OBJECTIVE
    from finetune.plots import plot_curve

    method = OF_OBJECTIVE[flags.objective]
    sets = {"held_back": pools.held_back, "test": pools.test}
    sets = {name: sample(rows, flags.exam_limit, flags.seed) for name, rows in sets.items()}
    sittings: dict[str, list[examining.Sitting]] = {name: [] for name in sets}
    for who in ("微調後", "微調前"):
        if who == "微調後":  # as anyone would load it: what is examined is what was saved
            model = models.load_masked_lm(
                flags.output_dir,
                models.load_config(flags.output_dir, "--output_dir"),
                lesson.tokenizer,
                "--output_dir",
            )
        else:
            model = load_base(flags, lesson)
        model = model.to(world.device)
        for name, rows in sets.items():
            title = f"測驗（{who}，{name}）"
            sittings[name].append(
                examining.sit(
                    model, lesson.prompts, rows, method, flags.exam_orders, world.device, world, title
                )
            )
    if not world.is_main:
        return
    card = lesson.card(flags, progress.best_step)
    card.history, taught = progress.history, card.taught
    card.results = {name: examining.figures(*pair, taught) for name, pair in sittings.items()}
    model_card.write(Path(flags.output_dir), card, progress)
    written = report.of_training(card, sittings, progress)
    report.write(beside(flags, "report"), written)
    plot_curve(beside(flags, "validation_loss_curve.png"), progress.history, progress.best_step)
    for line in report.verdict(written):
        print(line)


# ---- 6. names that others import ---------------------------------------------------------------------------


def chat_with_tuning_llm(prompt: str, top_k: int = 200, model_path: str = cli.MODEL_FOLDER) -> list[str]:
    """The tuned model's likeliest words for the first [MASK] of `prompt`."""
    from inference import predict_mask

    model, tokenizer, device = _loaded(model_path)
    return predict_mask(model, tokenizer, prompt, device, top_k)


def general_chat(prompt: str, top_k: int = 200, model_path: str = "bert-base-chinese") -> list[str]:
    """The same of a model that was not tuned."""
    return chat_with_tuning_llm(prompt, top_k, model_path)


def exe_chat(
    test_qa,
    max_length: int = 512,
    tuned: str = cli.MODEL_FOLDER,
    untuned: str = "bert-base-chinese",
    judge: str = JUDGE,
) -> dict:
    """The whole comparison over a test set: both models answer, the key counts, the judge scores.

    Args:
        test_qa: rows as `judging.as_question` takes them, test_qa_data.json for one.
        max_length: of a judge's reply, in tokens.

    Returns:
        n, accuracy of each model, the judge's summary (A is the untuned model, B the tuned one), and how
        many of its replies could not be read.
    """
    from finetune.exams import LETTERS
    from finetune.judging import as_question
    from inference import qa_inference

    right, scores, unreadable, verdict = [0, 0], [], 0, None
    questions = [as_question(item) for item in test_qa]
    for question in questions:
        options = dict(zip(LETTERS, question.options, strict=False))
        key = None if question.answer is None else question.options[question.answer]
        answers = []
        for who, path in enumerate((untuned, tuned)):
            model, tokenizer, device = _loaded(path)
            label, text, _ = qa_inference(model, tokenizer, question.stem, options, device, top_k=1)[0]
            right[who] += LETTERS.index(label) == question.answer
            answers.append(text)
        verdict = EvalLLm(*answers, key, question.stem, judge)
        pair = verdict.evaluation(max_new_tokens=max_length)
        scores, unreadable = scores + [pair] * bool(pair), unreadable + (not pair)
    n = len(questions)
    return {
        "n": n,
        "untuned_accuracy": right[0] / n if n else None,
        "tuned_accuracy": right[1] / n if n else None,
        "judge": verdict.judgement(scores) if verdict else None,
        "unreadable": unreadable,
    }


@lru_cache(maxsize=2)
def _loaded(path: str):
    from inference import load_model

    return load_model(path)


if __name__ == "__main__":
    cli.leave(main())
