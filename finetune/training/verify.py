"""Proofs that a run can be relied on: what was saved is as it was written, and a run that was stopped ends
where the one that was left alone does.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from finetune.models.run_card import RunCard, weights_hash
from finetune.runtime import manifest
from finetune.runtime.console import is_main_process, log, print_result
from finetune.runtime.errors import RunError, UserError
from finetune.runtime.files import new_folder, read_json
from finetune.training.checkpoints import Checkpoints, complete
from finetune.training.engine import Engine, learning_rate_at
from finetune.training.state import TrainingState


def verify_checkpoint(path: str) -> int:
    """--verify_checkpoint: reads every byte of a checkpoint, of all below a --save_dir, or of a model folder
    that was written here, and says on stdout which are whole. Returns 0, or 1 when one of them is not.

    Raises:
        UserError: nothing there that could be verified.
    """
    folder, flag = Path(path).expanduser(), "--verify_checkpoint"
    if not folder.is_dir():
        raise UserError(f"{flag} {path}：沒有這個資料夾")
    inside = [*complete(folder), *(["best"] if (folder / "best").is_dir() else [])]
    found = {folder / name: manifest.verify(folder / name) for name in inside}
    if (folder / manifest.FILE).exists() or (folder / "progress.json").exists():
        found = {folder: manifest.verify(folder)}
    elif not found:
        found = {folder: _model_problems(folder, flag)}
    if is_main_process():
        for place, wrong in found.items():
            print_result(f"✗ {place}：{'；'.join(wrong)}" if wrong else f"✓ {place}：完好{_measure(place)}")
    return 1 if any(found.values()) else 0


def _measure(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    step = ""
    if (folder / "progress.json").is_file():
        progress = read_json(folder / "progress.json").get("progress")
        step = f"，第 {progress.get('step')} 步" if isinstance(progress, dict) else ""
    return f"（{len(files)} 個檔案，{size:,} 個位元組{step}）"


def _model_problems(folder: Path, flag: str) -> list[str]:
    """A published model has no manifest, since people write into its README.md; its run card knows its
    weights.
    """
    card = RunCard.read(folder)
    known = card.lineage[-1].get("sha256") if card and card.lineage else ""
    if not known:
        raise UserError(f"{flag} {folder}：不是檢查點（沒有 {manifest.FILE}），也不是這支程式存的模型")
    return [] if weights_hash(folder) == known else ["權重與 run_card.json 記載的不同（SHA-256 不符）"]


def verify_resume(flags, world, machine, lesson, build: Callable[[], Engine]) -> None:
    """--verify_resume N: N steps in one go; N steps with a stop, a checkpoint and a new engine in the middle;
    and whether losses and weights are the same, bit for bit. Nothing stays on the disk.

    Raises:
        RunError: they are not.
    """
    steps = flags.verify_resume
    middle = steps // 2
    log(
        f"--verify_resume {steps}：先一次跑 {steps} 步，再跑 {middle} 步、存檔、重新開始、接著跑到 {steps} 步"
    )
    parent = Path(flags.save_dir)
    made = not parent.exists()
    keeper = Checkpoints(parent / ".verify_resume", {}, 1, world)

    def run(first: int, last: int, load: Path | None = None, save: bool = False):
        engine = build()
        torch.manual_seed(first)  # whatever was drawn before must not matter
        if load:
            keeper.load(load, engine.load)
        losses = list(_losses(flags, world, machine, lesson, engine, first, last))
        saved = keeper.save(TrainingState(step=last), engine.save) if save else None
        weights = engine.full_weights()
        engine.close()
        del engine
        lesson.adapter = None
        world.free_memory()
        return losses, weights, saved

    try:
        world.on_main(lambda: new_folder(keeper.folder) and None)
        straight, whole, _ = run(0, steps)
        before, _, saved = run(0, middle, save=True)
        after, resumed, _ = run(middle, steps, load=saved)
    finally:
        if world.is_main:
            shutil.rmtree(keeper.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is not empty
                if made:
                    parent.rmdir()
    world.on_main(lambda: _compare(straight, [*before, *after], whole, resumed))


def _losses(flags, world, machine, lesson, engine: Engine, first: int, last: int):
    """The losses of optimizer steps `first` to `last` - 1, taken by an engine that stands at `first`."""
    step, epoch = 0, 0
    while step < last:
        for batch in lesson.plan(epoch, flags.train_batch_size, flags.seed):
            if first <= step < last:
                rate = learning_rate_at(step, flags.learning_rate, lesson.warmup_steps, lesson.total_steps)
                yield engine.step(lesson.micro_batches(batch, epoch, world, machine), step, rate).loss
            step += 1
        epoch += 1


def _compare(straight: list[float], stopped: list[float], whole: dict, resumed: dict) -> None:
    apart = [
        number + 1 for number, pair in enumerate(zip(straight, stopped, strict=True)) if pair[0] != pair[1]
    ]
    furthest = {
        name: float((whole[name] - resumed[name]).abs().max()) for name in whole if whole[name].numel()
    }
    differ = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    if apart or differ:
        name = max(differ, key=furthest.get, default="")
        weights = (
            f"；{len(differ)}/{len(whole)} 個張量不同，最多差 {furthest[name]:.3g}（{name}）"
            if differ
            else ""
        )
        steps = f"第 {'、'.join(map(str, apart[:8]))} 步的損失不同" if apart else "損失相同"
        raise RunError(
            f"接續的結果與一次跑完的不同：{steps}{weights}。"
            "GPU 上的運算不保證每次相同；CPU 上以 fp32 應完全相同"
        )
    print_result(f"✓ 接續與一次跑完逐位元相同：{len(straight)} 步的損失、{len(whole)} 個張量")
