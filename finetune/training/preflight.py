"""Checks before a training run, in one report: flags, local data, local models, folders and checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.cli.train_args import TrainArgs
from finetune.models.loading import check_layers, load_config
from finetune.models.lora import check_4bit
from finetune.models.run_card import FILE as RUN_CARD
from finetune.models.source_checks import check_source
from finetune.models.tokenizer import load_tokenizer
from finetune.prompts.chat import Chat
from finetune.prompts.scoring_methods import METHOD_OF_OBJECTIVE
from finetune.reports.report import check_folder as check_report
from finetune.runtime import hub, locks
from finetune.runtime.console import log
from finetune.runtime.errors import Problems, UserError
from finetune.runtime.files import recover_replace, writable
from finetune.training import deepspeed_config
from finetune.training.checkpoints import complete, find
from finetune.training.tasks import TASKS, Source
from finetune.training.trackers import check_tracker

TASK_FLAGS = {  # flags that only these tasks use
    "cpt、mlm": ("clean", "min_chars", "max_chars", "inspect"),
    "sft": ("template", "train_on_prompt"),
    "exam": ("objective",),
    "exam、mlm": ("demo", "masking", "mask_rate", "all_masked", "preview_masks"),
    "exam、sft": ("subjects", "pool", "exam_orders"),
    "exam、sft、seq2seq": ("exam_limit",),
    "classify、cpt、mlm、tag、span、seq2seq": ("text_column",),
    "classify、tag、span、seq2seq": ("label_column", "dataset_config_name"),
    "classify": ("multi_label", "class_weights"),
    "tag、span": ("stride",),
    "span": ("max_answer_length",),
    "seq2seq": ("prefix", "max_target_length"),
}  # fmt: skip
PRACTICE = {  # what of the demo writes data to practise a task with
    "classify": "write_labels('things.csv')", "tag": "write_entities('entities.jsonl')",
    "span": "write_passages('passages.csv')", "seq2seq": "write_rewrites('rewrites.csv')",
}  # fmt: skip
HINTS = {  # by flag and task, of a flag of another task
    ("demo", task): f"；finetune.demo.builtin.{call} 寫出可練習的資料，再用 --dataset"
    for task, call in PRACTICE.items()
}
DATA_NAMES = {
    "classify": "有標籤的文字", "tag": "有標註的文字", "span": "文章與問答", "seq2seq": "成對的文字",
}  # fmt: skip
DEMO_FLAGS = {  # flags of what the demo brings along
    "model_name_or_path", "dataset", "from_scratch", "subjects", "clean", "min_chars", "max_chars",
}  # fmt: skip
LORA_FLAGS = ("lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit", "no_merge")


def check(args: TrainArgs, given: frozenset[str]) -> tuple[Source | None, Path | None]:
    """Check the flags, local data, local models, folders and checkpoints of a run.

    Returns:
        the local data (None if they are on the hub), and the checkpoint to resume from (None to start anew).

    Raises:
        UserError: with every problem found; nothing was downloaded or written.
    """
    problems = Problems()
    source: Source | None = None
    checkpoint: Path | None = None
    args.model_name_or_path = hub.resolve_cache_folder(args.model_name_or_path)
    if lock_targets(args):  # a run that writes nothing must not rename what another run is replacing
        for folder in (args.output_dir, Path(args.save_dir) / "best"):
            recover_replace(folder)
    with problems:
        check_given(args, given)
    with problems:
        if args.demo and (clash := given & DEMO_FLAGS):
            named = "、".join("--" + name for name in sorted(clash))
            raise UserError(f"--demo 用自己的模型與考卷，不能與 {named} 同時使用")
    with problems:
        check_source(args.model_name_or_path, "--model_name_or_path", args.from_scratch, args.allow_pickle)
    with problems:
        if args.dataset and not args.demo and hub.is_local(args.dataset):
            source = TASKS[args.task].read(args)
    with problems:
        check_kind(args)
    with problems:
        if args.engine == "deepspeed" or (args.engine == "auto" and "deepspeed_config" in given):
            deepspeed_config.read(args.deepspeed_config)
    with problems:
        check_tracker(args.report_to)
    with problems:
        path = Path(args.load_dir)
        if not args.ckpt_id and path.name in complete(path.parent):  # --load_dir is the checkpoint itself
            args.load_dir, args.ckpt_id = str(path.parent), path.name
        if args.ckpt_id and not args.load_dir:
            raise UserError(
                f"--ckpt_id {args.ckpt_id} 要與 --load_dir 一起給，例如 --load_dir {args.save_dir}"
            )
        if args.load_dir and not (args.resume and complete(args.save_dir)):  # a run that was begun goes on
            checkpoint = find(args.load_dir, args.ckpt_id)
        elif args.resume:
            if complete(args.save_dir):
                checkpoint = find(args.save_dir, "")
            else:
                log(f"--resume：{args.save_dir} 裡沒有檢查點，從頭開始")
    with problems:
        check_folders(args)
    with problems:
        check_report(_resolved(args.output_dir).parent / "report", f"--output_dir {args.output_dir}：旁邊的")
    problems.report()
    return source, checkpoint


def lock_targets(args: TrainArgs) -> list[tuple[str, Path]]:
    """List the places that only this run may write to; none for a run that writes nothing.

    Returns:
        of each place its name in messages, and its lock file.
    """
    save = f"--save_dir {args.save_dir}", _resolved(args.save_dir) / ".lock"
    if args.inspect or args.dry_run or args.preview_masks:
        return []
    if args.verify_resume:
        return [save]
    output = _resolved(args.output_dir)
    around = f"--output_dir {args.output_dir}（模型，和旁邊的 train_log.jsonl、report/）"
    report = f"--output_dir {args.output_dir} 旁的 report/"
    return [
        save,
        (around, output.with_name(".training.lock")),
        (report, locks.lock_path(output.parent / "report")),
    ]


def check_given(args: TrainArgs, given: frozenset[str]) -> None:
    """Refuse flags that would have no effect, or that contradict one another.

    Raises:
        UserError: with each problem.
    """
    problems = [
        f"--{name} 只用於 --task {tasks}，這次是 --task {args.task}{HINTS.get((name, args.task), '')}"
        for tasks, names in TASK_FLAGS.items()
        for name in names
        if name in given and args.task not in tasks.split("、")
    ]
    if not args.lora_rank and (idle := [name for name in LORA_FLAGS if name in given]):
        named = "、".join("--" + name for name in idle)
        problems.append(f"{named} 要與 --lora_rank 一起給，例如 --lora_rank 16")
    if not args.dataset and not args.demo:
        what = DATA_NAMES.get(args.task, "文字")
        formats = "csv、jsonl…" if args.task in DATA_NAMES else "json、txt、csv…"
        problems.append(f"--task {args.task} 要用 --dataset 指定{what}：資料夾、檔案（{formats}）或 hub 名稱")
    if args.freeze and args.train_only:
        problems.append("--freeze 與 --train_only 不能同時使用：前者指定凍結哪些，後者指定只訓練哪些")
    problems += _idle_masks(args, given)
    method = METHOD_OF_OBJECTIVE[args.objective]
    if args.task == "exam" and "exam_orders" in given and method != "letter":
        problems.append(
            f"--exam_orders {args.exam_orders} 沒有作用：--objective {args.objective} 不用字母作答"
            f"（{method}），與選項的順序無關"
        )
    if args.load_in_4bit and args.from_scratch:
        problems.append("--load_in_4bit 不能與 --from_scratch 同時使用：沒有權重可載入")
    if problems:
        raise UserError(problems)
    if args.load_in_4bit:
        check_4bit()


def _idle_masks(args: TrainArgs, given: frozenset[str]) -> list[str]:
    """Describe the masking flags that were given and that the objective does not use."""
    names = [name for name in ("masking", "mask_rate", "all_masked", "preview_masks") if name in given]
    if args.task == "exam" and names and args.objective not in ("mlm", "answer+mlm"):
        named = "、".join("--" + name for name in names)
        return [f"{named} 沒有作用：--objective {args.objective} 不遮字；遮字的是 mlm 與 answer+mlm"]
    if args.masking == "answer" and (args.task == "mlm" or "masking" in given and args.objective != "mlm"):
        what = f"--objective {args.objective}" if args.task == "exam" else f"--task {args.task}"
        return [
            f"--masking answer 遮住整個答案，只用於 --objective mlm，這次是 {what}；可用 word、token、span"
        ]
    return []


def check_kind(args: TrainArgs) -> None:
    """Check that a local model is of the kind that this task trains, and that the flags fit it.

    Raises:
        UserError: a masked model for sft, for example; a tokenizer without a chat template; layers that the
            model does not have.
    """
    name, flag, kind = args.model_name_or_path, "--model_name_or_path", TASKS[args.task].kind(args)
    if args.demo or not (Path(name).expanduser() / "config.json").is_file():
        return
    config = load_config(name, flag, kind)
    check_layers(config, kind, args)
    if args.task == "sft" and args.template == "chat":
        Chat(load_tokenizer(name, flag, kind), args.template)


def _resolved(name: str) -> Path:
    """Return the absolute path behind `~` and links; a link that leads to itself stays as it is."""
    return Path(os.path.realpath(os.path.expanduser(name)))


def check_folders(args: TrainArgs) -> None:
    """Refuse folders that this run would overwrite together with something else.

    Raises:
        UserError: with each problem.
    """
    problems = []
    output, save, base, data, load = map(
        _resolved,
        (args.output_dir, args.save_dir, args.model_name_or_path, args.dataset, args.load_dir),
    )
    for flag, path in (("--output_dir", output), ("--save_dir", save)):
        if path.is_file():
            problems.append(f"{flag} {path} 是一個檔案，應為資料夾")
        elif not writable(path):
            problems.append(f"{flag} {path} 不能寫入（唯讀、沒有權限，或連結繞成一圈）；請換一個資料夾")
    if os.path.ismount(output) or (output.is_dir() and not writable(output.parent)):
        problems.append(
            f"--output_dir {args.output_dir} 不能整個換成新的模型（它是掛載點，或上一層不能寫入）；"
            f"請改用 {Path(args.output_dir) / 'model'}"
        )
    inputs = [("目前的資料夾", Path.cwd()), ("--save_dir", save), ("--dataset", data)]
    inputs += [("--load_dir", load)] if args.load_dir else []
    for what, path in inputs:
        if output == path or output in path.parents:
            problems.append(f"--output_dir {args.output_dir} 會整個換掉，但{what}在裡面；請換一個資料夾")
    if output.is_dir() and any(output.iterdir()) and not (output / RUN_CARD).is_file():
        problems.append(
            f"--output_dir {args.output_dir} 裡已有別的檔案，而且不是這支程式存的模型（沒有 {RUN_CARD}）；"
            "請換一個資料夾或先移開"
        )
    if base.is_dir() and (base == output or output in base.parents or base == save / "best"):
        problems.append(
            f"--model_name_or_path {args.model_name_or_path} 會被這次訓練換掉，微調前後就無從比較；"
            "請先複製到別處，或換一個 --output_dir、--save_dir"
        )
    if problems:
        raise UserError(problems)
