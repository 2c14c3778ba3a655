"""Checkpoints: `step{N}/` below --save_dir, written beside and renamed: a reader sees a whole one or none.

A checkpoint holds the engine's state and `progress.json`, written last: a folder without it is no checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .cli import nearest, say
from .errors import UserError
from .models import read_json
from .run_card import RunCard
from .world import World

FORMAT = 1
LABELS = {  # of what a checkpoint is bound to, where its key is no flag
    "total_steps": "總步數（--num_epochs、--max_steps）", "questions": "資料", "base": "底模的權重",
    "written": "--template、--train_on_prompt", "lora": "--lora_rank 等",
    "masks": "--masking、--mask_rate 等",
    "layers": "--freeze、--train_only、--unfreeze_every、--layer_lr_decay", "labels": "標籤、--class_weights",
}  # fmt: skip
NAME = re.compile(r"step(\d+)")


@dataclass
class Progress:
    """All that the loop changes, saved and restored as one thing."""

    step: int = 0  # optimizer steps finished
    epoch: int = 0  # epochs finished
    batch: int = 0  # global batches of the running epoch finished
    # On the validation rows, 0..1, what the best model is chosen by: accuracy or, of a classifier, macro F1.
    # -1 = never measured.
    best_accuracy: float = -1.0
    best_loss: float = float("inf")  # validation loss at the best accuracy, nats
    best_step: int = 0
    epochs_without_gain: int = 0
    seconds: float = 0.0  # spent training, over all runs
    before: dict = field(default_factory=dict)  # validation of the model as it was (of texts and replies)
    # Of the running epoch: summed loss, and the mass it is divided by.
    epoch_loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    # One entry an epoch: step, train_loss, validation_loss, …
    history: list[dict] = field(default_factory=list)
    finished: bool = False
    stopped_early: bool = False

    def after_step(self, report, seconds: float) -> None:
        """Counts one optimizer step (`engine.StepReport`)."""
        self.step += 1
        self.batch += 1
        self.seconds = seconds
        self.epoch_loss = [
            self.epoch_loss[0] + report.loss * report.mass,
            self.epoch_loss[1] + report.mass,
        ]

    @property
    def course(self) -> list[dict]:
        """The history, and before it what was measured before the first step."""
        return [*([{"step": 0, **self.before}] if self.before else []), *self.history]

    def forget_best(self) -> None:
        """The best model is lost: the next one measured is the best again."""
        self.best_accuracy, self.best_loss, self.best_step = -1.0, float("inf"), 0

    def after_epoch(self, validation: dict, patience: int, total_steps: int) -> bool:
        """Closes an epoch with what validation found ({} when there are no validation rows).

        Returns:
            True when the model is the best so far: higher accuracy or, at the same accuracy, a lower loss.
            Without validation rows the newest is the best.
        """
        self.epoch, self.batch = self.epoch + 1, 0
        loss, mass = self.epoch_loss
        self.epoch_loss = [0.0, 0.0]
        accuracy = validation.get("validation_macro_f1", validation.get("validation_accuracy", -1.0))
        validation_loss = validation.get("validation_loss", 0.0)
        gained = accuracy > self.best_accuracy
        lower = accuracy == self.best_accuracy and validation_loss < self.best_loss
        better = gained or lower or not validation
        if "validation_accuracy" not in validation:  # texts have a loss alone
            gained = lower
        if better:
            self.best_accuracy, self.best_loss, self.best_step = accuracy, validation_loss, self.step
        self.epochs_without_gain = 0 if gained or not validation else self.epochs_without_gain + 1
        self.stopped_early = (
            bool(patience) and self.epochs_without_gain >= patience and self.step < total_steps
        )
        self.finished = self.stopped_early or self.step >= total_steps
        entry = {"epoch": self.epoch, "step": self.step, "train_loss": loss / max(1, mass), **validation}
        self.history.append(entry | {"best": better})
        return better


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: --save_dir.
        identity: what a checkpoint must have been written by to be resumed from (engine, model, data …).
        keep: how many to keep; 0 keeps all.
    """

    def __init__(self, folder: str | Path, identity: dict[str, object], keep: int, world: World):
        self.folder, self.identity, self.keep, self.world = Path(folder), identity, keep, world

    def names(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return complete(self.folder)

    def newest_step(self) -> int:
        """Optimizer steps of the newest complete checkpoint; -1 without one."""
        return max(map(_step_of, self.names()), default=-1)

    def save(self, progress: Progress, write: Callable[[Path], None]) -> Path:
        """Writes one checkpoint; `write(folder)` puts the engine's state there. All ranks call it."""
        final = self.folder / f"step{progress.step}"
        half = self.folder / f".step{progress.step}.half"
        if self.world.is_main:
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
        self.world.barrier()
        write(half)
        self.world.barrier()
        if self.world.is_main:
            card = {"format": FORMAT, "identity": self.identity, "progress": asdict(progress)}
            with (half / "progress.json").open("w", encoding="utf-8") as stream:
                json.dump(card, stream, ensure_ascii=False, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            if final.exists():
                shutil.rmtree(final)
            half.rename(final)
            self._prune()
        self.world.barrier()
        return final

    def _prune(self) -> None:
        for name in self.names()[: -self.keep] if self.keep else []:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for half in self.folder.glob(".step*.half"):
            shutil.rmtree(half, ignore_errors=True)

    def load(self, folder: Path, read: Callable[[Path], None]) -> Progress:
        """The progress of a checkpoint; `read(folder)` restores the engine's state. All ranks call it.

        Raises:
            UserError: another engine, model or data wrote it.
        """
        card = read_json(folder / "progress.json")
        theirs = card.get("identity", {})
        differ = [
            f"{LABELS.get(key, key)}：檢查點 {theirs.get(key) or '（沒有）'!r}，這次 {mine or '（沒有）'!r}"
            for key, mine in self.identity.items()
            if (theirs.get(key) or "") != (mine or "")
        ]
        if differ:
            raise UserError([f"{folder} 不能接續，因為與這次的設定不同；" + line for line in differ])
        read(folder)
        return Progress(**card["progress"])

    def bring_best(self, source: Path, progress: Progress) -> None:
        """The best model so far belongs to a run, not to a checkpoint: takes it along, or has it chosen anew.

        Args:
            source: the `best/` beside the checkpoint that is gone on from.
        """
        card, target = RunCard.read(source), self.folder / "best"
        if progress.best_step and (card is None or card.step != progress.best_step):
            say(f"  {source} 不是第 {progress.best_step} 步的模型；最好的模型從這裡起重新挑選")
            progress.forget_best()
        elif card is not None and source.resolve() != target.resolve():
            shutil.copytree(source, target)

    def make_room(self, after: int = -1, best: bool = True) -> None:
        """Moves what another run left aside: checkpoints past step `after`, and `best/`. None is deleted."""
        beyond = [name for name in self.names() if _step_of(name) > after]
        leftover = [*(self.folder / name for name in beyond), *([self.folder / "best"] if best else [])]
        leftover = [path for path in leftover if path.exists()]
        if not leftover:
            return
        number = 1
        while (self.folder / f"earlier_{number}").exists():
            number += 1
        shelf = self.folder / f"earlier_{number}"
        shelf.mkdir()
        for path in leftover:
            path.rename(shelf / path.name)
        say(f"{self.folder} 裡有另一次訓練留下的檢查點，已移到 {shelf}（要接續最新的請用 --resume）")


def complete(folder: str | Path) -> list[str]:
    """Names of the complete checkpoints of a folder, oldest first."""
    there = [path.parent.name for path in Path(folder).glob("step*/progress.json")]
    return sorted(filter(NAME.fullmatch, there), key=_step_of)


def _step_of(name: str) -> int:
    return int(NAME.fullmatch(name)[1])


def find(load_dir: str | Path, ckpt_id: str) -> Path:
    """The folder of one checkpoint: `ckpt_id`, or the newest when it is empty.

    Raises:
        UserError: not there; the message names those that are.
    """
    folder = Path(load_dir)
    there = complete(folder)
    if not ckpt_id and there:
        return folder / there[-1]
    if ckpt_id in there:
        return folder / ckpt_id
    flag = f"--load_dir {load_dir}" + (f" --ckpt_id {ckpt_id}" if ckpt_id else "")
    if not folder.is_dir():
        raise UserError(f"{flag}：沒有這個資料夾")
    guess = nearest(ckpt_id, there)
    raise UserError(
        f"{flag}：沒有這個檢查點。"
        + (f"有的是：{'、'.join(there)}" if there else "這個資料夾裡一個完整的檢查點也沒有")
        + (f"；是不是 {guess[0]}？" if guess else "")
    )
