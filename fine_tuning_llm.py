"""Teach a language model exam questions, texts or replies, and say honestly how good it became.

python fine_tuning_llm.py --demo                          # built-in exam, two minutes on a laptop
python fine_tuning_llm.py                                 # bert-base-chinese on TMMLU+
python fine_tuning_llm.py --task mlm --dataset texts.txt  # its adaptation to texts of a domain
python fine_tuning_llm.py --task classify --dataset x.csv # text classification
python fine_tuning_llm.py --task cpt --dataset texts.json # continued pre-training of a causal model
python fine_tuning_llm.py --task sft --dataset alpaca.csv # its instruction tuning
deepspeed --num_gpus=2 fine_tuning_llm.py --deepspeed_config ds_config.json
torchrun --nproc_per_node 2 fine_tuning_llm.py

"""

import finetune  # noqa: F401  an older Python is told here which one is needed, before it meets newer words

# isort: split
import signal
import sys
import time
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.train_args import read_flags
from finetune.predict.judge import JUDGE, EvalLLm, JudgedRow, compare
from finetune.runtime import console
from finetune.runtime.console import log
from finetune.runtime.errors import NonFiniteError, RunError, Stopped
from finetune.training.dataset_api import generate_qa_benchmark, get_dataset

__all__ = [
    "EvalLLm",
    "chat_with_tuning_llm",
    "exe_chat",
    "general_chat",
    "generate_qa_benchmark",
    "get_dataset",
]

if TYPE_CHECKING:  # heavy imports wait until the flags are read: --help answers at once
    from finetune.data.splits import Splits
    from finetune.runtime.distributed import Distributed
    from finetune.runtime.signals import StopRequest
    from finetune.training.checkpoints import Checkpoints
    from finetune.training.datamodule import DataModule
    from finetune.training.engine import Engine
    from finetune.training.hardware import Hardware
    from finetune.training.state import TrainingState
    from finetune.training.trackers import Tracker
else:  # no `from __future__ import annotations`, which Python 3.6 cannot read
    Checkpoints = TrainingState = Engine = Splits = DataModule = Hardware = object
    StopRequest = Tracker = Distributed = object

# ---- 1. flags (the list itself: finetune/cli/train_args.py) ------------------------------------------------


def main(argv=None) -> int:
    """Runs the script. Returns its exit code: 0 done, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return console.run(lambda: train(*read_flags(argv)), debug="--debug" in argv)


# ---- 2. the recipe -----------------------------------------------------------------------------------------


def train(flags, given: set[str]) -> int | None:
    """The whole story, from flags to report."""
    if flags.verify_checkpoint:
        from finetune.training.verify import verify_checkpoint

        return verify_checkpoint(flags.verify_checkpoint)
    from finetune.runtime import locks
    from finetune.runtime.signals import StopRequest
    from finetune.training.preflight import check, written_by

    with StopRequest() as stop, locks.held(written_by(flags)):
        return carry_out(flags, *check(flags, given), given, stop)


def carry_out(flags, source, checkpoint: Path | None, given: set[str], stop: StopRequest) -> None:
    """What the flags ask for, now that nothing is wrong with them."""
    if flags.inspect and source is not None:
        return show_texts(source)
    if not flags.demo and (source is None or not Path(flags.model_name_or_path).expanduser().is_dir()):
        from finetune.runtime import hub

        hub.go_offline_if_unreachable()  # before transformers is imported, which reads what this sets
    if flags.inspect:
        from finetune.training.tasks import TASKS

        return show_texts(TASKS["cpt"].read(flags))
    from finetune.training import learning_rate
    from finetune.training.checkpoints import newest_valid
    from finetune.training.datamodule import load_data, setup_data
    from finetune.training.hardware import choose_hardware
    from finetune.training.trackers import Tracker

    world, machine = choose_hardware(flags, given)
    checkpoint = world.broadcast(checkpoint)
    if checkpoint:
        exact = bool(flags.ckpt_id) and checkpoint.name == flags.ckpt_id
        checkpoint = world.on_main(lambda: newest_valid(checkpoint, exact))
        if "learning_rate" not in given:  # a run that was begun under another default keeps its rate
            flags.learning_rate = learning_rate.of_checkpoint(checkpoint) or flags.learning_rate
    source, pools = load_data(flags, world, source)
    lesson = setup_data(flags, world, machine, source, pools)
    if flags.preview_masks:
        show_masks(flags, lesson)
    elif flags.dry_run:
        show_plan(flags, world, machine, lesson)
    elif flags.verify_resume:
        from finetune.training.verify import verify_resume

        verify_resume(flags, world, machine, lesson, partial(build_engine, flags, world, machine, lesson))
    else:
        with Tracker(flags.report_to, beside(flags), vars(flags)) as tracker:
            progress = teach(flags, world, machine, lesson, pools, checkpoint, stop, tracker)
            examine(flags, world, machine, lesson, pools, progress, tracker)
    world.shutdown()


def teach(
    flags,
    world: Distributed,
    machine: Hardware,
    lesson: DataModule,
    pools: Splits,
    checkpoint: Path | None,
    stop: StopRequest,
    tracker: Tracker,
) -> TrainingState:
    """Model, engine, loop, saving. The engine and its memory are gone when this returns."""
    from torch import OutOfMemoryError

    from finetune.data.exam import write_questions
    from finetune.data.question_store import questions_of
    from finetune.training.hardware import retry_with_smaller_micro_batch

    asked, progress, again = questions_of(pools.test or pools.held_out), None, False
    while progress is None or not progress.finished:
        engine = build_engine(flags, world, machine, lesson)
        keeper = keeper_of(flags, world, machine, engine, lesson)
        progress = keeper.begin(checkpoint, engine.load, flags.allow_world_size_change, again)
        progress.resume(flags.early_stopping_patience)
        if world.is_main and (asked or flags.task == "exam"):
            # the first thing written: all that can be wrong with the flags has been looked at
            write_questions(beside(flags, "test_qa_data.json"), asked)
        try:
            with stop.patient():
                loop(flags, world, machine, engine, lesson, keeper, progress, stop, tracker)
        except OutOfMemoryError as error:
            retry_with_smaller_micro_batch(machine, flags, world, error)
            checkpoint, again = keeper.newest() or checkpoint, True
        except NonFiniteError as error:
            raise RunError(f"{error}；{keeper.way_back()}") from error
        engine.close()
        del engine
        lesson.adapter = None  # which holds the model too
        world.free_memory()
    with stop.patient():
        publish(flags, world, lesson)
    if world.any(stop.signum):  # it came too late for the loop to see
        world.detach()
        raise Stopped(stop.signum or signal.SIGTERM, f"訓練已完成，模型在 {flags.output_dir}；沒有測驗")
    return progress


def show_texts(corpus) -> None:
    """--inspect: texts before and after they were cleaned, on stdout."""
    from finetune.data.corpus_report import show

    if console.is_main_process():
        show(corpus)


def show_masks(flags, lesson: DataModule) -> None:
    """--preview_masks: rows with what is hidden from the model, on stdout."""
    from finetune.objectives.preview import masks

    if console.is_main_process():
        for line in masks(lesson.train, lesson.tokenizer, flags.preview_masks):
            console.print_result(line)


def show_plan(flags, world: Distributed, machine: Hardware, lesson: DataModule) -> None:
    """--dry_run: what would be done, as JSON on stdout."""
    from finetune.training import deepspeed_config

    deepspeed_config.of_run(flags, world, machine, lesson)  # what is wrong with the file ends this run too
    steps = {"steps_per_epoch": lesson.steps_per_epoch, "total_steps": lesson.total_steps}
    if console.is_main_process():
        console.print_result(console.as_json({**vars(flags), **asdict(machine), **steps}, indent=1))


# ---- 3. model and engine -----------------------------------------------------------------------------------


def load_base(flags, lesson: DataModule, **more):
    """The model as it is before anything is taught, in fp32 unless `more` says otherwise."""
    from finetune.models.loading import load_config, load_model

    name, flag = flags.model_name_or_path, "--model_name_or_path"
    config = load_config(name, flag, lesson.kind)
    lesson.task.configure_model(config, lesson.source)
    how = flags.from_scratch, flags.seed, lesson.kind, flags.allow_pickle
    return load_model(name, config, lesson.tokenizer, flag, *how, **more)


def build_engine(flags, world: Distributed, machine: Hardware, lesson: DataModule) -> Engine:
    """The model on its device, with adapters if any, and with optimizer and engine around it."""
    from finetune.models.kinds import DTYPES
    from finetune.models.loading import announce
    from finetune.models.lora import attach, quantization
    from finetune.training import deepspeed_config
    from finetune.training.deepspeed_engine import DeepSpeedEngine
    from finetune.training.engine import Engine, EngineConfig

    resolved = deepspeed_config.of_run(flags, world, machine, lesson)
    more = {}
    if flags.load_in_4bit:
        more = quantization(machine.precision, world.device)
    elif lesson.lora:  # frozen weights need no more digits than are computed
        more = {"dtype": DTYPES[machine.precision]}
    model = world.main_process_first(lambda: load_base(flags, lesson, **more))
    announce(flags.model_name_or_path, model, flags.from_scratch)
    lesson.attach_model(model)
    if lesson.lora:
        lesson.adapter = attach(model, lesson.lora, str(flags.model_name_or_path), flags.seed)
    trained = frozenset(name for name, value in model.named_parameters() if value.requires_grad)
    learning = lesson.freeze_layers(model)
    if flags.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    recipe = EngineConfig(
        flags.learning_rate, flags.weight_decay, flags.max_grad_norm, flags.seed,
        machine.precision, machine.micro_batch, machine.accumulation, lesson.packed,
        trained if lesson.lora else frozenset(), flags.on_nan == "skip",
    )  # fmt: skip
    if machine.engine == "torch":
        return Engine(model, world, recipe, learning)
    log(f"  DeepSpeed 設定：{console.as_json(resolved)}")
    return DeepSpeedEngine(model, world, recipe, resolved, learning)


def keeper_of(
    flags, world: Distributed, machine: Hardware, engine: Engine, lesson: DataModule
) -> Checkpoints:
    """The keeper of this run's checkpoints."""
    from finetune.training.checkpoints import Checkpoints

    identity = lesson.run_identity(engine.kind, engine.recipe.precision, world)
    more = machine.one_pass, vars(flags)
    return Checkpoints(flags.save_dir, identity, flags.save_total_limit, world, *more)


# ---- 4. loop -----------------------------------------------------------------------------------------------


def loop(
    flags,
    world: Distributed,
    machine: Hardware,
    engine: Engine,
    lesson: DataModule,
    keeper: Checkpoints,
    progress: TrainingState,
    stop: StopRequest,
    tracker: Tracker,
) -> None:
    """Steps, validation, checkpoints; until the steps are done or validation stops improving.

    Raises:
        Stopped: a signal came; a checkpoint was written.
    """
    from finetune.training.engine import learning_rate_at
    from finetune.training.evaluate import validate
    from finetune.training.train_log import TrainLog, describe

    path, total = beside(flags, "train_log.jsonl"), lesson.total_steps
    train_log = TrainLog(path, progress, total, tracker, world.is_main)
    began = time.perf_counter() - progress.seconds
    try:
        if lesson.by_token and not progress.step:
            progress.before = validate(lesson, engine.eval().forward, world, machine.tokens)
            train_log.message(f"微調前：{describe(progress.before)}")
        while not progress.finished:
            plan = lesson.plan(progress.epoch, flags.train_batch_size, flags.seed)
            for batch in plan[progress.batch :]:
                if progress.step >= total:
                    break
                started = time.perf_counter()
                micro_batches = lesson.micro_batches(batch, progress.epoch, world, machine)
                rate = learning_rate_at(progress.step, flags.learning_rate, lesson.warmup_steps, total)
                report = engine.step(micro_batches, progress.step, rate, stop=bool(stop.signum))
                progress.after_step(report, seconds=time.perf_counter() - began)
                train_log.step(progress.step, report, rate, seconds=time.perf_counter() - started)
                if report.stop:
                    where = keeper.save(progress, engine.save)
                    said = f"已停在第 {progress.step} 步，檢查點存於 {where}；加 --resume 接續"
                    world.detach()
                    raise Stopped(stop.signum or signal.SIGTERM, said + best_so_far(flags))
                if flags.save_interval and progress.step % flags.save_interval == 0:
                    keeper.save(progress, engine.save)
            found = validate(lesson, engine.eval().forward, world, machine.tokens)
            if progress.after_epoch(found, flags.early_stopping_patience, total):
                save_best(world, engine, lesson, keeper, progress.step)
            progress.seconds = time.perf_counter() - began
            train_log.epoch(progress.history[-1])
        if progress.stopped_early:
            train_log.message(f"驗證成績 {flags.early_stopping_patience} 輪沒有進步，提早結束")
        if not world.broadcast(progress.best_step and keeper.best.is_dir()):  # lost, and not measured since
            train_log.message(f"⚠ 最好的模型不在 {keeper.best}；改以第 {progress.step} 步的模型為準")
            progress.best_step = progress.step
            save_best(world, engine, lesson, keeper, progress.step)
        if world.broadcast(keeper.newest_step()) != progress.step:
            keeper.save(progress, engine.save)
    finally:
        train_log.close()


# ---- 5. saving and exam ------------------------------------------------------------------------------------


def beside(flags, name: str = "") -> Path:
    """Where curves, logs and reports go: beside the model folder."""
    return Path(flags.output_dir).resolve().parent / name


def best_so_far(flags) -> str:
    best = Path(flags.save_dir) / "best"
    return f"。目前最好的模型在 {best}，可直接用 inference.py --model_path {best}" if best.is_dir() else ""


def save_best(world: Distributed, engine: Engine, lesson: DataModule, keeper: Checkpoints, step: int) -> None:
    """Writes the model as it is now, or its adapter, to `best/` under --save_dir in the place of the former
    best.
    """
    from finetune.training.publish import write_model

    weights = engine.full_weights()  # collective
    world.on_main(lambda: keeper.save_best(lambda folder: write_model(folder, lesson, weights, step)))


def publish(flags, world: Distributed, lesson: DataModule) -> None:
    """Puts the best model at --output_dir in the place of an earlier one; an adapter is merged first."""
    from finetune.training import publish as publishing

    def put():
        merge_into = None if flags.no_merge or not lesson.lora else load_base(flags, lesson)
        publishing.publish(Path(flags.save_dir) / "best", Path(flags.output_dir), lesson, merge_into)

    world.on_main(put)


def examine(
    flags,
    world: Distributed,
    machine: Hardware,
    lesson: DataModule,
    pools: Splits,
    progress: TrainingState,
    tracker: Tracker,
) -> None:
    """The saved model and the untuned one answer the held-back and test questions, go on from texts they have
    not seen, name the labels of others; figures are written.
    """
    from finetune.evaluation.classification import headlines
    from finetune.models.loading import load
    from finetune.training import publish as publishing
    from finetune.training.evaluate import FinalEvaluation
    from finetune.training.hardware import eval_load_kwargs, eval_precision_note

    finals = FinalEvaluation.of(lesson, pools)
    more = eval_load_kwargs(flags, machine, lesson.parameters, world)
    # as anyone would load it: what is examined is what was saved
    how = {"allow_pickle": flags.allow_pickle, **more}  # of the base beside which an adapter was saved
    finals.evaluate(load(flags.output_dir, "--output_dir", **how)[0], "tuned", world, machine)
    if finals.compares:
        finals.evaluate(load_base(flags, lesson, **more), "untuned", world, machine)
    if world.is_main:
        card, verdict = publishing.write_results(
            lesson, finals.answers, finals.growth, progress, eval_precision_note(more), finals.labels
        )
        labels = {name: headlines(found) for name, found in card.labels.items()}
        figures = {**card.results, **card.growth.get("sets", {}), **labels}
        tracker.finish(Path(flags.output_dir) / "run_card.json", figures)
        for line in verdict:
            console.print_optional(line)


# ---- 6. names that others import ---------------------------------------------------------------------------


def chat_with_tuning_llm(prompt: str, top_k: int = 200, model_path: str = console.MODEL_FOLDER) -> list[str]:
    """The tuned model's likeliest words for the first [MASK] of `prompt`; a causal model's one reply."""
    from finetune.models.generation import Decoding

    predictor = _predictor(model_path)
    if predictor.kind == "causal":
        return predictor.generate([predictor.encode(prompt)], Decoding())
    return predictor.fill_first(prompt, top_k)


def general_chat(prompt: str, top_k: int = 200, model_path: str = "bert-base-chinese") -> list[str]:
    """The same of a model that was not tuned."""
    return chat_with_tuning_llm(prompt, top_k, model_path)


def exe_chat(
    test_qa,
    max_length: int = 512,
    tuned: str = console.MODEL_FOLDER,
    untuned: str = "bert-base-chinese",
    judge: str = JUDGE,
) -> dict:
    """The whole comparison over a test set: both models answer, the key counts, the judge scores.

    Args:
        test_qa: rows as `judging.Asked.of` takes them: test_qa_data.json for one, or instructions and
            prompts, which causal models answer in words.
        max_length: of a reply, in tokens.

    Returns:
        n, accuracy of each model on the questions with a key (None without any), the judge's summary (A is
        the untuned model, B the tuned one), and how many of its replies could not be read.
    """
    answer = [partial(_answered, path, max_length) for path in (untuned, tuned)]
    return compare(test_qa, answer, judge, max_length)


def _answered(path: str, max_length: int, asked: JudgedRow) -> str:
    """The text of the option a model chooses, or what it says."""
    from finetune.data.question import LETTERS
    from finetune.models.generation import Decoding

    predictor = _predictor(path)
    if asked.question is None:
        decoding = Decoding(max_new_tokens=max_length)
        return predictor.generate([predictor.encode(list(asked.messages))], decoding)[0]
    options = dict(zip(LETTERS, asked.question.options, strict=False))
    return predictor.rank(asked.question.stem, options, top_k=1)[0][1]


@lru_cache(maxsize=2)
def _predictor(path: str):
    from finetune.predict.loading import load_for_use, predictor_for

    return predictor_for(*load_for_use(path, None, "--model_path"))


if __name__ == "__main__":
    console.exit_process(main())
