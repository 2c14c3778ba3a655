"""All that is wrong with a training run before it begins: flags, local data, local models, checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

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
from finetune.training.tasks import TASKS
from finetune.training.trackers import check_tracker

TASK_FLAGS = {  # flags that only these tasks look at
    "cpt、mlm": ("clean", "min_chars", "max_chars", "inspect"),
    "sft": ("template", "train_on_prompt"),
    "exam": ("objective",),
    "exam、mlm": ("demo", "masking", "mask_rate", "all_masked", "preview_masks"),
    "exam、sft": ("subjects", "pool", "exam_limit", "exam_orders"),
    "classify、cpt、mlm": ("text_column",),
    "classify": (
        "label_column", "multi_label", "class_weights", "dataset_config_name",
    ),
}  # fmt: skip
HINTS = {
    (
        "demo",
        "classify",
    ): "；finetune.demo.builtin.write_labels('things.csv') 寫出可練習的標籤檔，再用 --dataset",
}
DEMO_FLAGS = {  # flags of what the demo brings along
    "model_name_or_path", "dataset", "from_scratch", "subjects", "clean", "min_chars", "max_chars",
}  # fmt: skip
LORA_FLAGS = ("lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit", "no_merge")


def check(flags, given: set[str]) -> tuple[object, Path | None]:
    """Looks at the flags, local data and local models. Returns the local data (None if it is on the hub)
    and the checkpoint to continue from (None to start anew).

    Raises:
        UserError: with every problem found; nothing was downloaded or written.
    """
    problems, source, checkpoint = Problems(), None, None
    flags.model_name_or_path = hub.located(flags.model_name_or_path)
    if written_by(flags):  # who only looks must not rename what another run is replacing
        for folder in (flags.output_dir, Path(flags.save_dir) / "best"):
            recover_replace(folder)
    with problems:
        check_given(flags, given)
    with problems:
        if flags.demo and (clash := given & DEMO_FLAGS):
            named = "、".join("--" + name for name in sorted(clash))
            raise UserError(f"--demo 用自己的模型與考卷，不能與 {named} 同時使用")
    with problems:
        how = flags.from_scratch, flags.allow_pickle
        check_source(flags.model_name_or_path, "--model_name_or_path", *how)
    with problems:
        if flags.dataset and not flags.demo and hub.is_local(flags.dataset):
            source = TASKS[flags.task].read(flags)
    with problems:
        check_kind(flags)
    with problems:
        if flags.engine == "deepspeed" or (flags.engine == "auto" and "deepspeed_config" in given):
            deepspeed_config.read(flags.deepspeed_config)
    with problems:
        check_tracker(flags.report_to)
    with problems:
        one = Path(flags.load_dir)
        if not flags.ckpt_id and one.name in complete(one.parent):  # the checkpoint itself was named
            flags.load_dir, flags.ckpt_id = str(one.parent), one.name
        if flags.ckpt_id and not flags.load_dir:
            raise UserError(
                f"--ckpt_id {flags.ckpt_id} 要與 --load_dir 一起給，例如 --load_dir {flags.save_dir}"
            )
        if flags.load_dir and not (flags.resume and complete(flags.save_dir)):  # a run that was begun goes on
            checkpoint = find(flags.load_dir, flags.ckpt_id)
        elif flags.resume:
            if complete(flags.save_dir):
                checkpoint = find(flags.save_dir, "")
            else:
                log(f"--resume：{flags.save_dir} 裡沒有檢查點，從頭開始")
    with problems:
        check_folders(flags)
    with problems:
        check_report(
            _resolved(flags.output_dir).parent / "report", f"--output_dir {flags.output_dir}：旁邊的"
        )
    problems.report()
    return source, checkpoint


def written_by(flags) -> list[tuple[str, Path]]:
    """The places that this run alone may write to, each with what a message calls it and its lock file; none
    of a run that only looks.
    """
    save = f"--save_dir {flags.save_dir}", _resolved(flags.save_dir) / ".lock"
    if flags.inspect or flags.dry_run or flags.preview_masks:
        return []
    if flags.verify_resume:
        return [save]
    output = _resolved(flags.output_dir)
    around = f"--output_dir {flags.output_dir}（模型，和旁邊的 train_log.jsonl、report/）"
    report = f"--output_dir {flags.output_dir} 旁的 report/"
    return [
        save, (around, output.with_name(".training.lock")), (report, locks.beside(output.parent / "report"))
    ]  # fmt: skip


def check_given(flags, given: set[str]) -> None:
    """Refuses flags that would have no effect, or that contradict one another.

    Raises:
        UserError: with each problem.
    """
    problems = [
        f"--{name} 只用於 --task {tasks}，這次是 --task {flags.task}{HINTS.get((name, flags.task), '')}"
        for tasks, names in TASK_FLAGS.items()
        for name in names
        if name in given and flags.task not in tasks.split("、")
    ]
    if not flags.lora_rank and (idle := [name for name in LORA_FLAGS if name in given]):
        named = "、".join("--" + name for name in idle)
        problems.append(f"{named} 要與 --lora_rank 一起給，例如 --lora_rank 16")
    if not flags.dataset and not flags.demo:
        what = "有標籤的文字" if flags.task == "classify" else "文字"
        kinds = "csv、jsonl…" if flags.task == "classify" else "json、txt、csv…"
        problems.append(f"--task {flags.task} 要用 --dataset 指定{what}：資料夾、檔案（{kinds}）或 hub 名稱")
    if flags.freeze and flags.train_only:
        problems.append("--freeze 與 --train_only 不能同時使用：一個說哪些不學，一個說只學哪些")
    problems += _idle_masks(flags, given)
    asked = METHOD_OF_OBJECTIVE[flags.objective]
    if flags.task == "exam" and "exam_orders" in given and asked != "letter":
        problems.append(
            f"--exam_orders {flags.exam_orders} 沒有作用：--objective {flags.objective} 不用字母作答"
            f"（{asked}），與選項的順序無關"
        )
    if flags.load_in_4bit and flags.from_scratch:
        problems.append("--load_in_4bit 不能與 --from_scratch 同時使用：沒有權重可載入")
    if problems:
        raise UserError(problems)
    if flags.load_in_4bit:
        check_4bit()


def _idle_masks(flags, given: set[str]) -> list[str]:
    """Flags of hiding words that the objective does not look at."""
    names = [name for name in ("masking", "mask_rate", "all_masked", "preview_masks") if name in given]
    if flags.task == "exam" and names and flags.objective not in ("mlm", "answer+mlm"):
        named = "、".join("--" + name for name in names)
        return [f"{named} 沒有作用：--objective {flags.objective} 不遮字；遮字的是 mlm 與 answer+mlm"]
    if flags.masking == "answer" and (flags.task == "mlm" or "masking" in given and flags.objective != "mlm"):
        what = f"--objective {flags.objective}" if flags.task == "exam" else f"--task {flags.task}"
        return [
            f"--masking answer 遮住整個答案，只用於 --objective mlm，這次是 {what}；可用 word、token、span"
        ]
    return []


def check_kind(flags) -> None:
    """Looks at a local model: is it one that this task teaches, and can it be taught in this form?

    Raises:
        UserError: a masked model for sft, say; a tokenizer without a chat template; layers it does not have.
    """
    name, flag, kind = flags.model_name_or_path, "--model_name_or_path", TASKS[flags.task].kind(flags)
    if flags.demo or not (Path(name).expanduser() / "config.json").is_file():
        return
    config = load_config(name, flag, kind)
    check_layers(config, kind, flags)
    if flags.task == "sft" and flags.template == "chat":
        Chat(load_tokenizer(name, flag, kind), flags.template)


def _resolved(name: str) -> Path:
    """Where a name leads; a link that leads to itself stays what it is."""
    return Path(os.path.realpath(os.path.expanduser(name)))


def check_folders(flags) -> None:
    """Refuses folders that this run would overwrite together with something else.

    Raises:
        UserError: with each problem.
    """
    problems = []
    output, save, base, data, load = map(
        _resolved,
        (flags.output_dir, flags.save_dir, flags.model_name_or_path, flags.dataset, flags.load_dir),
    )
    for flag, path in (("--output_dir", output), ("--save_dir", save)):
        if path.is_file():
            problems.append(f"{flag} {path} 是一個檔案，應為資料夾")
        elif not writable(path):
            problems.append(f"{flag} {path} 不能寫入（唯讀，或沒有權限）；請換一個資料夾")
    if os.path.ismount(output) or (output.is_dir() and not writable(output.parent)):
        problems.append(
            f"--output_dir {flags.output_dir} 不能整個換成新的模型（它是掛載點，或上一層不能寫入）；"
            f"請改用 {Path(flags.output_dir) / 'model'}"
        )
    kept = [("目前的資料夾", Path.cwd()), ("--save_dir", save)]
    kept += [("--dataset", data)]
    kept += [("--load_dir", load)] if flags.load_dir else []
    for what, path in kept:
        if output == path or output in path.parents:
            problems.append(f"--output_dir {flags.output_dir} 會整個換掉，但{what}在裡面；請換一個資料夾")
    if output.is_dir() and any(output.iterdir()) and not (output / RUN_CARD).is_file():
        problems.append(
            f"--output_dir {flags.output_dir} 裡已有別的檔案，而且不是這支程式存的模型（沒有 {RUN_CARD}）；"
            "請換一個資料夾或先移開"
        )
    if base.is_dir() and (base == output or output in base.parents or base == save / "best"):
        problems.append(
            f"--model_name_or_path {flags.model_name_or_path} 會被這次訓練換掉，微調前後就無從比較；"
            "請先複製到別處，或換一個 --output_dir、--save_dir"
        )
    if problems:
        raise UserError(problems)
