"""Verification of a run: saved files are as they were written, a resumed run ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from finetune.models.run_card import RunCard, weights_hash
from finetune.runtime import manifest
from finetune.runtime.console import is_main_process, log, print_result
from finetune.runtime.errors import RunError, UserError
from finetune.runtime.files import new_folder, read_json
from finetune.training.checkpoints import Checkpoints, complete
from finetune.training.engine import Engine, learning_rate_at
from finetune.training.run import Run
from finetune.training.state import TrainingState


def verify_checkpoint(path: str) -> int:
    """Read every byte of saved folders and print which are whole (--verify_checkpoint).

    Args:
        path: a checkpoint, a --save_dir, or a model folder that was written here.

    Returns:
        exit code: 0, or 1 when one of them is not whole.

    Raises:
        UserError: nothing there that could be verified.
    """
    folder, flag = Path(path).expanduser(), "--verify_checkpoint"
    if not folder.is_dir():
        raise UserError(f"{flag} {path}：沒有這個資料夾")
    inside = [*complete(folder), *(["best"] if (folder / "best").is_dir() else [])]
    damage = {folder / name: manifest.verify(folder / name) for name in inside}
    if (folder / manifest.FILE).exists() or (folder / "progress.json").exists():
        damage = {folder: manifest.verify(folder)}
    elif not damage:
        damage = {folder: _model_problems(folder, flag)}
    if is_main_process():
        for place, problems in damage.items():
            print_result(
                f"✗ {place}：{'；'.join(problems)}" if problems else f"✓ {place}：完好{_size_note(place)}"
            )
    return 1 if any(damage.values()) else 0


def _size_note(folder: Path) -> str:
    """Return how many files and bytes a folder has and, of a checkpoint, its step."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    step = ""
    if (folder / "progress.json").is_file():
        progress = read_json(folder / "progress.json").get("progress")
        step = f"，第 {progress.get('step')} 步" if isinstance(progress, dict) else ""
    return f"（{len(files)} 個檔案，{size:,} 個位元組{step}）"


def _model_problems(folder: Path, flag: str) -> list[str]:
    """List what is damaged in a published model, by the hash of its weights in the run card.

    It has no manifest, since users write into its README.md.

    Raises:
        UserError: the folder is neither a checkpoint nor a model that was saved here.
    """
    card = RunCard.read(folder)
    recorded = card.lineage[-1].get("sha256") if card and card.lineage else ""
    if not recorded:
        raise UserError(f"{flag} {folder}：不是檢查點（沒有 {manifest.FILE}），也不是這支程式存的模型")
    return [] if weights_hash(folder) == recorded else ["權重與 run_card.json 記載的不同（SHA-256 不符）"]


def verify_resume(run: Run, build_engine: Callable[[Run], Engine]) -> None:
    """Compare N steps in one go with N steps that stop, save and resume in the middle (--verify_resume N).

    Losses and weights must be the same, bit for bit. Nothing stays on the disk.

    Raises:
        RunError: they are not.
    """
    steps, world = run.args.verify_resume, run.world
    middle = steps // 2
    log(
        f"--verify_resume {steps}：先一次跑 {steps} 步，再跑 {middle} 步、存檔、重新開始、接著跑到 {steps} 步"
    )
    parent = Path(run.args.save_dir)
    is_new = not parent.exists()
    checkpoints = Checkpoints(parent / ".verify_resume", {}, 1, world)

    def run_steps(
        first: int, last: int, load: Path | None = None, save: bool = False
    ) -> tuple[list[float], dict[str, Tensor], Path | None]:
        engine = build_engine(run)
        torch.manual_seed(first)  # the state of the generator before must not matter
        if load:
            checkpoints.load(load, engine.load)
        losses = list(_losses(run, engine, first, last))
        saved = checkpoints.save(TrainingState(step=last), engine.save) if save else None
        weights = engine.full_weights()
        engine.close()
        del engine
        run.model = None  # its adapter refers to the model too
        world.free_memory()
        return losses, weights, saved

    try:
        world.on_main(lambda: new_folder(checkpoints.folder) and None)
        losses, weights, _ = run_steps(0, steps)
        losses_before, _, saved = run_steps(0, middle, save=True)
        losses_after, resumed_weights, _ = run_steps(middle, steps, load=saved)
    finally:
        if world.is_main:
            shutil.rmtree(checkpoints.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty
                if is_new:
                    parent.rmdir()
    world.on_main(lambda: _compare(losses, [*losses_before, *losses_after], weights, resumed_weights))


def _losses(run: Run, engine: Engine, first: int, last: int) -> Iterator[float]:
    """Take optimizer steps `first` to `last` - 1 by an engine that stands at `first`; yield their losses."""
    data = run.data
    step, epoch = 0, 0
    while step < last:
        for batch in data.plan(epoch):
            if first <= step < last:
                rate = learning_rate_at(step, run.learning_rate, data.warmup_steps, data.total_steps)
                yield engine.step(data.micro_batches(batch, epoch, run.world, run.hardware), step, rate).loss
            step += 1
        epoch += 1


def _compare(
    losses: list[float],
    resumed_losses: list[float],
    weights: dict[str, Tensor],
    resumed_weights: dict[str, Tensor],
) -> None:
    """Print that losses and weights of an uninterrupted and a resumed run are the same.

    Raises:
        RunError: they are not.
    """
    pairs = zip(losses, resumed_losses, strict=True)
    differing_steps = [number for number, (one, other) in enumerate(pairs, 1) if one != other]
    gaps = {
        name: float((tensor - resumed_weights[name]).abs().max())
        for name, tensor in weights.items()
        if tensor.numel()
    }
    differing = [name for name, tensor in weights.items() if not torch.equal(tensor, resumed_weights[name])]
    if differing_steps or differing:
        about_weights = ""
        if differing:
            name = max(differing, key=lambda name: gaps[name])
            count = f"{len(differing)}/{len(weights)}"
            about_weights = f"；{count} 個張量不同，最多差 {gaps[name]:.3g}（{name}）"
        steps = "、".join(map(str, differing_steps[:8]))
        about_losses = f"第 {steps} 步的損失不同" if differing_steps else "損失相同"
        raise RunError(
            f"接續的結果與一次跑完的不同：{about_losses}{about_weights}。"
            "GPU 上的運算不保證每次相同；CPU 上以 fp32 應完全相同"
        )
    print_result(f"✓ 接續與一次跑完逐位元相同：{len(losses)} 步的損失、{len(weights)} 個張量")
