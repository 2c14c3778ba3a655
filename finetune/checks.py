"""All that is wrong with a training run before it begins: flags, local data, local models, checkpoints."""

from __future__ import annotations

from pathlib import Path

from . import ds_config, hub, models
from .checkpoints import complete, find
from .cli import say
from .errors import Problems, UserError
from .exams import Exam, read_exam
from .run_card import FILE as RUN_CARD
from .tracking import check_tracker


def check(flags, given: set[str]) -> tuple[Exam | None, Path | None]:
    """Looks at the flags, local data and local models. Returns the local exam (None if it is on the hub)
    and the checkpoint to continue from (None to start anew).

    Raises:
        UserError: with every problem found; nothing was downloaded or written.
    """
    problems, exam, checkpoint = Problems(), None, None
    with problems:
        if flags.demo and (clash := given & {"model_name_or_path", "dataset", "from_scratch", "subjects"}):
            named = "、".join("--" + name for name in sorted(clash))
            raise UserError(f"--demo 用自己的模型與考卷，不能與 {named} 同時使用")
    with problems:
        models.check_source(flags.model_name_or_path, "--model_name_or_path", flags.from_scratch)
    with problems:
        if not flags.demo and hub.is_local(flags.dataset):
            exam = read_exam(flags.dataset, flags.revision, flags.subjects, flags.on_bad_rows)
    with problems:
        if flags.engine != "torch":
            ds_config.read(flags.deepspeed_config)
    with problems:
        check_tracker(flags.report_to)
    with problems:
        if flags.ckpt_id and not flags.load_dir:
            raise UserError(
                f"--ckpt_id {flags.ckpt_id} 要與 --load_dir 一起給，例如 --load_dir {flags.save_dir}"
            )
        if flags.load_dir:
            checkpoint = find(flags.load_dir, flags.ckpt_id)
        elif flags.resume:
            if complete(flags.save_dir):
                checkpoint = find(flags.save_dir, "")
            else:
                say(f"--resume：{flags.save_dir} 裡沒有檢查點，從頭開始")
    with problems:
        check_folders(flags)
    problems.report()
    return exam, checkpoint


def check_folders(flags) -> None:
    """Refuses folders that this run would overwrite together with something else.

    Raises:
        UserError: with each problem.
    """
    problems = []
    output, save = Path(flags.output_dir).resolve(), Path(flags.save_dir).resolve()
    base = Path(flags.model_name_or_path).expanduser().resolve()
    for flag, path in (("--output_dir", output), ("--save_dir", save)):
        if path.is_file():
            problems.append(f"{flag} {path} 是一個檔案，應為資料夾")
    kept = [("目前的資料夾", Path.cwd()), ("--save_dir", save)]
    kept += [("--dataset", Path(flags.dataset).expanduser().resolve())]
    kept += [("--load_dir", Path(flags.load_dir).resolve())] if flags.load_dir else []
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
