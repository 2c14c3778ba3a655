"""Fine-tune a language model on exam questions, texts, labels or replies, and report how good it became.

python fine_tuning_llm.py --demo                          # built-in exam, two minutes on a laptop
python fine_tuning_llm.py                                 # bert-base-chinese on TMMLU+
python fine_tuning_llm.py --task mlm --dataset texts.txt  # its adaptation to texts of a domain
python fine_tuning_llm.py --task classify --dataset x.csv # text classification
python fine_tuning_llm.py --task tag --dataset x.jsonl    # named entities, words, parts of speech
python fine_tuning_llm.py --task span --dataset DRCD.json # answers that are parts of a passage
python fine_tuning_llm.py --task seq2seq --dataset x.csv  # texts from texts: T5, BART
python fine_tuning_llm.py --task cpt --dataset texts.json # continued pre-training of a causal model
python fine_tuning_llm.py --task sft --dataset alpaca.csv # its instruction tuning
deepspeed --num_gpus=2 fine_tuning_llm.py --deepspeed_config ds_config.json
torchrun --nproc_per_node 2 fine_tuning_llm.py
"""

import finetune  # noqa: F401  refuses an older Python with a clear message, before it meets newer syntax

# isort: split
import signal
import sys
import time
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.train_args import TrainArgs, parse_args
from finetune.predict.judge import JUDGE, EvalLLm, JudgedRow, compare
from finetune.runtime import console
from finetune.runtime.console import command, log
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
    from finetune.runtime.signals import StopRequest
    from finetune.training.checkpoints import Checkpoints
    from finetune.training.engine import Engine
    from finetune.training.run import Run
    from finetune.training.state import TrainingState
else:  # no `from __future__ import annotations`, which Python 3.6 cannot read
    StopRequest = Checkpoints = Engine = Run = TrainingState = object

# ---- 1. flags (the list itself: finetune/cli/train_args.py) ------------------------------------------------


def main(argv=None) -> int:
    """Run the script. Returns its exit code: 0 done, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return console.run(lambda: run_training(*parse_args(argv)), debug="--debug" in argv)


# ---- 2. the recipe -----------------------------------------------------------------------------------------


def run_training(args: TrainArgs, given: frozenset) -> int | None:
    """Do what the flags ask for: check files, show data, or train, publish and evaluate."""
    if args.verify_checkpoint:
        from finetune.training.verify import verify_checkpoint

        return verify_checkpoint(args.verify_checkpoint)
    from finetune.runtime import locks
    from finetune.runtime.signals import StopRequest
    from finetune.training.preflight import check, lock_targets

    with StopRequest() as stop, locks.hold_locks(lock_targets(args)):
        source, checkpoint = check(args, given)  # all that is wrong is reported before anything is loaded
        if not args.demo and (source is None or not Path(args.model_name_or_path).expanduser().is_dir()):
            from finetune.runtime import hub

            hub.go_offline_if_unreachable()  # before anything is looked up
        if args.inspect:
            show_texts(args, source)
            return None
        run = prepare(args, given, source, checkpoint, stop)
        if args.preview_masks:
            show_masks(run)
        elif args.dry_run:
            show_plan(run)
        elif args.verify_resume:
            from finetune.training.verify import verify_resume

            verify_resume(run, build_engine)
        else:
            with run.tracker:
                evaluate(run, train(run))
        run.world.shutdown()
    return None


def prepare(args: TrainArgs, given: frozenset, source, checkpoint: Path | None, stop: StopRequest) -> Run:
    """Join the other ranks, choose the hardware, and read and split the data."""
    from finetune.training import learning_rate
    from finetune.training.checkpoints import newest_valid
    from finetune.training.datamodule import load_data, setup_data
    from finetune.training.hardware import choose_hardware
    from finetune.training.run import Run, output_path
    from finetune.training.trackers import Tracker

    world, hardware = choose_hardware(args, given)
    checkpoint = world.broadcast(checkpoint)
    if checkpoint:
        exact = bool(args.ckpt_id) and checkpoint.name == args.ckpt_id
        checkpoint = world.on_main(partial(newest_valid, checkpoint, exact))
        if "learning_rate" not in given:  # a run that was begun under another default keeps its rate
            args.learning_rate = learning_rate.read_from_checkpoint(checkpoint) or args.learning_rate
    source, splits = load_data(args, world, source)
    data = setup_data(args, world, hardware, source, splits)
    tracker = Tracker(args.report_to, output_path(args), vars(args))
    return Run(args, world, hardware, data, splits, stop, tracker, checkpoint)


def train(run: Run) -> TrainingState:
    """Train and publish the model. The engine and its memory are gone when this returns."""
    from torch import OutOfMemoryError

    from finetune.data.exam import write_questions
    from finetune.data.question_store import questions_of
    from finetune.training.hardware import retry_with_smaller_micro_batch

    args, world, stop = run.args, run.world, run.stop
    questions = questions_of(run.splits.test or run.splits.held_out)
    state, checkpoint, retrying = None, run.checkpoint, False
    while state is None or not state.finished:
        engine = build_engine(run)
        checkpoints = make_checkpoints(run, engine)
        state = checkpoints.begin(checkpoint, engine.load, args.allow_world_size_change, retrying)
        state.resume(args.early_stopping_patience)
        if world.is_main and (questions or args.task == "exam"):
            # the first thing written: all that can be wrong with the flags has been looked at
            write_questions(run.output_path("test_qa_data.json"), questions)
        try:
            with stop.deferring():
                fit(run, engine, checkpoints, state)
        except OutOfMemoryError as error:
            retry_with_smaller_micro_batch(run.hardware, args, world, error)
            checkpoint, retrying = checkpoints.newest() or checkpoint, True
        except NonFiniteError as error:
            raise RunError(f"{error}；{checkpoints.resume_hint()}") from error
        engine.close()
        del engine
        run.loaded.adapter = None  # which holds the model too
        world.free_memory()
    with stop.deferring():
        publish(run)
    if world.any(stop.signum):  # it came too late for the loop to see
        world.detach()
        raise Stopped(stop.signum or signal.SIGTERM, f"訓練已完成，模型在 {args.output_dir}；沒有評測")
    return state


def show_texts(args: TrainArgs, source) -> None:
    """Print texts before and after they were cleaned (--inspect)."""
    from finetune.data.corpus_report import show
    from finetune.training.tasks import TASKS

    corpus = TASKS["cpt"].read(args) if source is None else source
    if console.is_main_process():
        show(corpus)


def show_masks(run: Run) -> None:
    """Print rows with what is masked in them (--preview_masks)."""
    from finetune.objectives.preview import preview_masks

    if console.is_main_process():
        for line in preview_masks(run.data.train, run.data.tokenizer, run.args.preview_masks):
            console.print_result(line)


def show_plan(run: Run) -> None:
    """Print what would be done, as JSON (--dry_run)."""
    run.deepspeed_config()  # what is wrong with the file ends this run too
    steps = {"steps_per_epoch": run.data.steps_per_epoch, "total_steps": run.data.total_steps}
    if console.is_main_process():
        plan = {**vars(run.args), **asdict(run.hardware), **steps}
        console.print_result(console.as_json(plan, indent=1))


# ---- 3. model and engine -----------------------------------------------------------------------------------


def load_base_model(run: Run, **from_pretrained):
    """Load the model as it is before training, in fp32 unless `from_pretrained` says otherwise."""
    from finetune.models.loading import LoadOptions, load_config, load_model

    args, data = run.args, run.data
    name, flag = args.model_name_or_path, "--model_name_or_path"
    config = load_config(name, flag, data.kind)
    data.task.configure_model(config, data.source)
    options = LoadOptions(
        args.from_scratch, args.seed, data.kind, args.allow_pickle, from_pretrained=from_pretrained
    )
    return load_model(name, config, data.tokenizer, flag, options)


def build_engine(run: Run) -> Engine:
    """Put the model on its device, with adapters if any, and with optimizer and engine around it."""
    from finetune.models.kinds import DTYPES
    from finetune.models.loading import announce
    from finetune.models.lora import attach, quantization
    from finetune.training.deepspeed_engine import DeepSpeedEngine
    from finetune.training.engine import Engine, EngineConfig

    args, hardware, world = run.args, run.hardware, run.world
    deepspeed_config = run.deepspeed_config()
    from_pretrained = {}
    if args.load_in_4bit:
        from_pretrained = quantization(hardware.precision, world.device)
    elif run.lora:  # frozen weights need no more digits than are computed
        from_pretrained = {"dtype": DTYPES[hardware.precision]}
    model = world.main_process_first(lambda: load_base_model(run, **from_pretrained))
    announce(args.model_name_or_path, model, args.from_scratch)
    run.attach_model(model)
    if run.lora:
        run.loaded.adapter = attach(model, run.lora, str(args.model_name_or_path), args.seed)
    trainable = frozenset(name for name, value in model.named_parameters() if value.requires_grad)
    schedule = run.freeze_layers(model)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    config = EngineConfig(
        run.learning_rate, args.weight_decay, args.max_grad_norm, args.seed,
        hardware.precision, hardware.micro_batch, hardware.accumulation, run.data.packed,
        trainable if run.lora else frozenset(), args.on_nan == "skip",
    )  # fmt: skip
    if hardware.engine == "torch":
        return Engine(model, world, config, schedule)
    log(f"  DeepSpeed 設定：{console.as_json(deepspeed_config)}")
    return DeepSpeedEngine(model, world, config, deepspeed_config, schedule)


def make_checkpoints(run: Run, engine: Engine) -> Checkpoints:
    """Make the object that saves and restores this run's checkpoints."""
    from finetune.training.checkpoints import Checkpoints

    args, identity = run.args, run.identity(engine.kind, engine.config.precision)
    return Checkpoints(
        args.save_dir, identity, args.save_total_limit, run.world, run.hardware.one_pass, vars(args)
    )


# ---- 4. loop -----------------------------------------------------------------------------------------------


def fit(run: Run, engine: Engine, checkpoints: Checkpoints, state: TrainingState) -> None:
    """Take optimizer steps, validate and save, until the steps are done or validation stops improving.

    Raises:
        Stopped: a signal came; a checkpoint was written.
    """
    from finetune.training.engine import learning_rate_at
    from finetune.training.evaluate import validate
    from finetune.training.train_log import TrainLog, describe

    args, data, world, stop = run.args, run.data, run.world, run.stop
    total = data.total_steps
    train_log = TrainLog(run.output_path("train_log.jsonl"), state, total, run.tracker, world.is_main)
    began = time.perf_counter() - state.seconds
    try:
        if data.by_token and not state.step:
            state.before = validate(run, engine.eval().forward)
            train_log.message(f"微調前：{describe(state.before)}")
        while not state.finished:
            for batch in data.plan(state.epoch)[state.batch :]:
                if state.step >= total:
                    break
                started = time.perf_counter()
                micro_batches = data.micro_batches(batch, state.epoch, world, run.hardware)
                rate = learning_rate_at(state.step, run.learning_rate, data.warmup_steps, total)
                result = engine.step(micro_batches, state.step, rate, stop=bool(stop.signum))
                state.after_step(result, seconds=time.perf_counter() - began)
                train_log.step(state.step, result, rate, seconds=time.perf_counter() - started)
                if result.stop:
                    saved = checkpoints.save(state, engine.save)
                    world.detach()
                    message = f"已停在第 {state.step} 步，檢查點存於 {saved}；加 --resume 接續"
                    raise Stopped(stop.signum or signal.SIGTERM, message + best_so_far(args))
                if args.save_interval and state.step % args.save_interval == 0:
                    checkpoints.save(state, engine.save)
            metrics = validate(run, engine.eval().forward)
            if state.after_epoch(metrics, args.early_stopping_patience, total):
                save_best(run, engine, checkpoints, state.step)
            state.seconds = time.perf_counter() - began
            train_log.epoch(state.history[-1])
        if state.stopped_early:
            train_log.message(f"驗證成績 {args.early_stopping_patience} 輪沒有進步，提早結束")
        if not world.broadcast(state.best_step and checkpoints.best.is_dir()):  # lost, and not measured since
            train_log.message(f"⚠ 最好的模型不在 {checkpoints.best}；改以第 {state.step} 步的模型為準")
            state.best_step = state.step
            save_best(run, engine, checkpoints, state.step)
        if world.broadcast(checkpoints.newest_step()) != state.step:
            checkpoints.save(state, engine.save)
    finally:
        train_log.close()


# ---- 5. saving and evaluation ------------------------------------------------------------------------------


def best_so_far(args: TrainArgs) -> str:
    """Return where the best model lies, for the message of a run that stopped; "" where there is none."""
    best = Path(args.save_dir) / "best"
    use = f"{command('inference.py')} --model_path {best}"
    return f"。目前最好的模型在 {best}，可直接用 {use}" if best.is_dir() else ""


def save_best(run: Run, engine: Engine, checkpoints: Checkpoints, step: int) -> None:
    """Write the model as it is now, or its adapter, to `best/` under --save_dir."""
    from finetune.training.publish import write_model

    weights = engine.full_weights()  # collective
    run.world.on_main(lambda: checkpoints.save_best(lambda folder: write_model(folder, run, weights, step)))


def publish(run: Run) -> None:
    """Put the best model at --output_dir in place of an earlier one; an adapter is merged first."""
    from finetune.training import publish as publishing

    def put():
        merge_into = None if run.args.no_merge or not run.lora else load_base_model(run)
        publishing.publish(Path(run.args.save_dir) / "best", Path(run.args.output_dir), run, merge_into)

    run.world.on_main(put)


def evaluate(run: Run, state: TrainingState) -> None:
    """Evaluate the saved and the untuned model on rows that were not trained on, and write the results."""
    from finetune.evaluation.classification import summary_metrics
    from finetune.models.loading import LoadOptions, load
    from finetune.reports import row_report
    from finetune.training import publish as publishing
    from finetune.training.evaluate import FinalEvaluation
    from finetune.training.hardware import eval_load_kwargs, eval_precision_note

    args = run.args
    evaluation = FinalEvaluation.of(run)
    kwargs = eval_load_kwargs(args, run.hardware, run.loaded.num_parameters, run.world)
    # as anyone would load it: what is evaluated is what was saved
    options = LoadOptions(allow_pickle=args.allow_pickle, from_pretrained=kwargs)
    evaluation.evaluate(load(args.output_dir, "--output_dir", options)[0], "tuned")
    if evaluation.compares:
        evaluation.evaluate(load_base_model(run, **kwargs), "untuned")
    if run.world.is_main:
        note = eval_precision_note(kwargs)
        card, verdict = publishing.write_results(run, evaluation, state, note)
        labels = {name: summary_metrics(metrics) for name, metrics in card.labels.items()}
        rows = {name: row_report.summary(args.task, metrics) for name, metrics in card.metrics.items()}
        figures = {**card.results, **card.growth.get("sets", {}), **labels, **rows}
        run.tracker.finish(Path(args.output_dir) / "run_card.json", figures)
        for line in verdict:
            console.print_optional(line)


# ---- 6. names that others import ---------------------------------------------------------------------------


def chat_with_tuning_llm(prompt: str, top_k: int = 200, model_path: str = console.MODEL_FOLDER) -> list[str]:
    """Return the tuned model's likeliest words for the first [MASK], or a causal model's one reply."""
    from finetune.models.generation import Decoding
    from finetune.predict.loading import predictor_of_kind

    predictor = _predictor(model_path)
    if predictor.kind == "causal":
        return predictor.generate([predictor.encode(prompt)], Decoding())
    masked = predictor_of_kind("masked", predictor.model, predictor.tokenizer, predictor.device)
    return masked.fill_first(prompt, top_k)


def general_chat(prompt: str, top_k: int = 200, model_path: str = "bert-base-chinese") -> list[str]:
    """Return the same of a model that was not tuned."""
    return chat_with_tuning_llm(prompt, top_k, model_path)


def exe_chat(
    test_qa,
    max_length: int = 512,
    tuned: str = console.MODEL_FOLDER,
    untuned: str = "bert-base-chinese",
    judge: str = JUDGE,
) -> dict:
    """Compare two models over a test set: accuracy where there is a key, and the judge's scores.

    Args:
        test_qa: rows as `judge.JudgedRow.of` takes them: test_qa_data.json for one, or instructions and
            prompts, which causal models answer in words.
        max_length: longest reply, in tokens.

    Returns:
        n, accuracy of each model on the questions with a key (None without any), the judge's summary (A is
        the untuned model, B the tuned one), and how many of its replies could not be read.
    """
    answer = [partial(_answered, path, max_length) for path in (untuned, tuned)]
    return compare(test_qa, answer, judge, max_length)


def _answered(path: str, max_length: int, row: JudgedRow) -> str:
    """Return the text of the option that a model chooses, or its reply."""
    from finetune.data.question import LETTERS
    from finetune.models.generation import Decoding

    predictor = _predictor(path)
    if row.question is None:
        decoding = Decoding(max_new_tokens=max_length)
        return predictor.generate([predictor.encode(list(row.messages))], decoding)[0]
    options = dict(zip(LETTERS, row.question.options, strict=False))
    return predictor.rank(row.question.stem, options, top_k=1)[0][1]


@lru_cache(maxsize=2)
def _predictor(path: str):
    """Load a model once, ready for prediction."""
    from finetune.predict.loading import load_for_use, predictor_for

    return predictor_for(*load_for_use(path, None, "--model_path"))


def run_script() -> None:
    """Run `main` and end the process with its exit code: the entry point of the installed command."""
    console.exit_process(main())


if __name__ == "__main__":
    run_script()
