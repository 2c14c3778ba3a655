"""Checkpoints: `step{N}/` below --save_dir, written beside and renamed: a reader sees a whole one or none.

A checkpoint holds the engine's state, `progress.json`, and last of all the manifest (runtime/manifest.py),
without which a folder is no checkpoint. `best/`, the best model so far, is kept in the same way. While a
checkpoint counts on a best model that a better one has replaced, that one stays as `.best.step{N}`:
whichever checkpoint a killed run goes on from, it has its own best model and
ends as the run that was left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from finetune.models.run_card import RunCard
from finetune.runtime import manifest
from finetune.runtime.console import log, of_another
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import RunError, UserError, nearest, reason
from finetune.runtime.files import atomic_write, new_folder, read_json, remove_tree, replace_folder
from finetune.runtime.own_files import carry_over
from finetune.runtime.strict_json import dumps
from finetune.training.state import TrainingState

FORMAT = 2
HASHED = ("model", "questions", "base")  # kept as hashes, which tell a person nothing
FREE = {  # flags that may change from run to run
    "save_dir", "load_dir", "ckpt_id", "resume", "output_dir", "report_to", "config", "debug", "local_rank",
    "save_interval", "save_total_limit", "dry_run", "verify_checkpoint", "verify_resume", "exam_limit",
    "exam_orders", "allow_world_size_change", "show_examples", "preview_masks", "inspect", "on_nan",
    "auto_micro_batch", "early_stopping_patience", "allow_pickle",
}  # fmt: skip
LABELS = {  # of what a checkpoint is bound to, where its key is no flag
    "total_steps": "總步數（--num_epochs、--max_steps）", "questions": "資料",
    "base": "底模的權重", "model": "底模的設定",
    "written": "--template、--train_on_prompt", "lora": "--lora_rank 等",
    "masks": "--masking、--mask_rate 等", "engine": "引擎", "precision": "--precision",
    "layers": "--freeze、--train_only、--unfreeze_every、--layer_lr_decay", "labels": "標籤、--class_weights",
}  # fmt: skip
NONE_THERE = (
    "這個資料夾裡一個完整的檢查點（step100 之類）也沒有；要從頭訓練請不加 --load_dir，"
    "要從一個模型的權重開始請用 --model_name_or_path"
)
NAME = re.compile(r"step(\d{1,12})")
HALF_DONE = re.compile(r"\.(step\d{1,12}|best)(\.(half|old|gone|step\d{1,12}))+")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: --save_dir.
        identity: what a checkpoint must have been written by to be resumed from (engine, model, data …).
        keep: how many to keep; 0 keeps all.
        passes: what one forward pass holds. Another one changes what dropout draws, and is said.
        flags: of this run; a resume that is refused names those that differ.
    """

    def __init__(
        self, folder: str | Path, identity: dict[str, object], keep: int, world: Distributed,
        passes: str = "", flags: dict[str, object] | None = None,
    ):  # fmt: skip
        self.folder, self.identity, self.keep, self.world = Path(folder), identity, keep, world
        self.passes = passes
        self.flags = {name: value for name, value in (flags or {}).items() if name not in FREE}

    @property
    def best(self) -> Path:
        return self.folder / "best"

    def names(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return complete(self.folder)

    def newest_step(self) -> int:
        """Optimizer steps of the newest complete checkpoint; -1 without one."""
        return max(map(_step_of, self.names()), default=-1)

    def newest(self) -> Path | None:
        """The newest complete checkpoint; rank 0 says which."""
        return self.world.broadcast(self.folder / self.names()[-1] if self.names() else None)

    # ---- writing -------------------------------------------------------------------------------------------

    def save(self, progress: TrainingState, write: Callable[[Path], None]) -> Path:
        """Writes one checkpoint; `write(folder)` puts the engine's state there. All ranks call it.

        Where it cannot be written, the oldest ones, which it would have replaced, make room for a second try.

        Raises:
            RunError: it cannot be written; the former checkpoints are as they were.
        """
        try:
            try:
                return self._save(progress, write)
            except Exception as error:
                if of_another(error) or not self.world.on_main(self.prune_for_space):
                    raise
                return self._save(progress, write)
        except Exception as error:
            if of_another(error):  # no disk is full, and nobody is left to agree with
                raise
            if self.world.is_main:
                shutil.rmtree(self._half(progress), ignore_errors=True)
            raise RunError(
                f"檢查點 step{progress.step} 寫不進 --save_dir {self.folder}（{reason(error, where=True)}）；"
                f"{self.way_back()}"
            ) from error

    def _half(self, progress: TrainingState) -> Path:
        return self.folder / f".step{progress.step}.half"

    def _save(self, progress: TrainingState, write: Callable[[Path], None]) -> Path:
        final, half = self.folder / f"step{progress.step}", self._half(progress)

        def finish():
            card = {
                "format": FORMAT, "identity": self.identity, "ranks": self.world.size,
                "passes": self.passes, "progress": asdict(progress), "flags": self.flags,
            }  # fmt: skip
            atomic_write(half / "progress.json", dumps(card, indent=1))
            manifest.write_manifest(half)
            replace_folder(half, final)
            if self.keep:
                self._remove(self.names()[: -self.keep])
            self.clean_up()

        self.world.on_main(lambda: new_folder(half) and None)
        self.world.on_all_ranks(lambda: write(half))
        self.world.on_main(finish)
        return final

    def prune_for_space(self) -> bool:
        """Deletes those checkpoints that the one to be written would have replaced. True when there were any;
        one that is whole is left in any case.
        """
        names = self.names()
        old = names[: 1 - self.keep] if self.keep > 1 else []
        if not old or not any(not manifest.verify(self.folder / name) for name in names[len(old) :]):
            return False
        self._remove(old)
        self.clean_up()
        return True

    def _remove(self, names: list[str]) -> None:
        for name in names:
            remove_tree(self.folder / name)

    def clean_up(self) -> None:
        """Deletes what killed runs left half done, and best models that no checkpoint counts on any more."""
        wanted = {f".best.step{_best_of(self.folder / name)}" for name in self.names()}
        for path in self.folder.glob(".*"):
            if HALF_DONE.fullmatch(path.name) and path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def save_best(self, write: Callable[[Path], None]) -> None:
        """Writes a model to `best/` in the place of the former one; `write(folder)` puts it there. For the
        main process alone.

        Raises:
            RunError: it cannot be written; the former one is as it was.
        """
        failed = f"最好的模型寫不進 --save_dir {self.folder}"
        with writing(self.folder / ".best.half", failed, self.way_back) as half:
            write(half)
            manifest.write_manifest(half)
            carry_over(self.best, half)
            former = _step_of_model(self.best)
            wanted = former in [_best_of(self.folder / name) for name in self.names()]
            replace_folder(half, self.best, self.folder / f".best.step{former}" if wanted else None)

    def way_back(self) -> str:
        """What a person can go on from: the newest checkpoint that is whole."""
        for name in reversed(self.names()):
            if not manifest.verify(self.folder / name):
                return f"最後一個完好的檢查點是 {self.folder / name}，加 --resume 接續"
        return "還沒有完好的檢查點"

    # ---- reading -------------------------------------------------------------------------------------------

    def begin(
        self, checkpoint: Path | None, read: Callable[[Path], None], other_ranks: bool, again: bool = False
    ) -> TrainingState:
        """The progress to go on from. All ranks call it.

        Args:
            checkpoint: to load; None begins anew.
            read, other_ranks: as `load` takes them.
            again: once more in the same run, whose own files are not in the way.
        """
        progress = self.load(checkpoint, read, other_ranks) if checkpoint else TrainingState()
        elsewhere = checkpoint is None or checkpoint.parent.resolve() != self.folder.resolve()

        def settle() -> TrainingState:
            if not again:
                self.archive_other_run(after=-1 if elsewhere else progress.step, best=elsewhere)
            if checkpoint:
                self.restore_best(checkpoint.parent, progress)
                self.clean_up()
                log(f"從 {checkpoint} 接續：已完成 {progress.step}/{self.identity['total_steps']} 步")
            return progress

        return self.world.on_main(settle)

    def load(self, folder: Path, read: Callable[[Path], None], other_ranks: bool = False) -> TrainingState:
        """The progress of a checkpoint; `read(folder)` restores the engine's state. All ranks call it.

        Args:
            other_ranks: it may have been written by another number of ranks.

        Raises:
            UserError: another engine, model or data wrote it.
        """
        card = read_json(folder / "progress.json")
        theirs = card.get("identity")
        if card.get("format") != FORMAT or not isinstance(theirs, dict):
            raise UserError(f"{folder}：不是這個版本寫的檢查點")
        theirs = {key: _in_current_form(key, value) for key, value in theirs.items()}
        differ = [
            f"{LABELS.get(key, '--' + key)}：{_apart(key, theirs.get(key), mine)}"
            for key, mine in self.identity.items()
            if (theirs.get(key) or "") != (mine or "")
        ]
        then, now = card.get("ranks"), self.world.size
        if then != now and not other_ranks:
            differ.append(
                f"行程數：檢查點 {then!r}，這次 {now}；加 --allow_world_size_change 可換行程數接續"
                "（dropout 抽的不同，不再逐位元相同）"
            )
        if differ:
            refused = [f"{folder} 不能接續，因為與這次的設定不同；" + line for line in differ]
            raise UserError([*refused, self._ways_out(folder, card.get("flags"))])
        progress = TrainingState.from_dict(card.get("progress"), str(folder))
        read(folder)
        if card.get("passes") != self.passes:
            log(
                f"  ⚠ 檢查點是{card.get('passes')}寫的，這次是{self.passes}：dropout 抽的不同，不再逐位元相同"
            )
        if then != now:
            log(f"  檢查點由 {then} 個行程寫出，這次是 {now} 個：已重新分配")
        return progress

    def _ways_out(self, folder: Path, theirs: object) -> str:
        """What to do about a checkpoint of another run, and which flags make it another one."""
        mine = json.loads(json.dumps(self.flags))  # tuples are lists there
        theirs = theirs if isinstance(theirs, dict) else {}
        other = [name for name in mine if name in theirs and theirs[name] != mine[name]]
        named = "、".join(f"--{name} {theirs[name]}（這次 {mine[name]}）" for name in other)
        way = f"要接續，請改回那次的旗標{'：' + named if named else '、資料與模型'}"
        way += "；要照這次的設定從頭訓練，請不加 --resume、--load_dir，並換一個 --save_dir、--output_dir"
        best = folder.parent / "best"
        return way + (
            f"；要從那次最好的模型再微調，請用 --model_name_or_path {best}" if best.is_dir() else ""
        )

    def restore_best(self, source: Path, progress: TrainingState) -> None:
        """Finds the best model that a checkpoint counts on and makes it `best/`, or has it chosen anew.

        Args:
            source: the folder of the checkpoint that is gone on from.
        """
        wanted = progress.best_step
        if not wanted:
            return
        there = [source / "best", *sorted(source.glob(".best*"))]
        fitting = (path for path in there if _step_of_model(path) == wanted)
        found = next((path for path in fitting if not manifest.verify(path)), None)
        if found is None:
            log(f"  {source / 'best'} 不是第 {wanted} 步的模型，或已損壞；最好的模型從這裡起重新挑選")
            progress.reset_best()
        elif found.resolve() != self.best.resolve():
            half = self.folder / ".best.half"
            if found != half:
                shutil.copytree(found, new_folder(half), dirs_exist_ok=True)
            carry_over(self.best, half)
            replace_folder(half, self.best)

    def archive_other_run(self, after: int = -1, best: bool = True) -> None:
        """Moves what another run left aside: checkpoints past step `after`, and `best/`. None is deleted."""
        beyond = [name for name in self.names() if _step_of(name) > after]
        leftover = [self.folder / name for name in beyond]
        leftover += [self.best, *self.folder.glob(".best.step*")] if best else []
        leftover = [path for path in leftover if path.exists()]
        if not leftover:
            return
        number = 1
        while os.path.lexists(self.folder / f"earlier_{number}"):
            number += 1
        shelf = self.folder / f"earlier_{number}"
        shelf.mkdir()
        for path in leftover:
            path.rename(shelf / path.name)
        self.share_best(beyond, shelf)
        what = "另一次訓練留下的檢查點" if after < 0 else f"第 {after} 步之後的檢查點"
        way_back = "（要接續最新的請用 --resume）" if after < 0 else ""
        log(f"{self.folder} 裡有{what}，已移到 {shelf}{way_back}")

    def share_best(self, names: list[str], shelf: Path) -> None:
        """Copies the best models that checkpoints on a shelf count on, so that they can be gone on from."""
        there = {_step_of_model(path): path for path in (*self.folder.glob(".best.step*"), self.best)}
        for step in {_best_of(shelf / name) for name in names} & there.keys():
            if step > 0 and not (shelf / f".best.step{step}").exists():
                shutil.copytree(there[step], shelf / f".best.step{step}")


@contextlib.contextmanager
def writing(half: Path, failed: str, way_out: Callable[[], str]) -> Iterator[Path]:
    """A new folder to write a model to. Where that fails, nothing of it is left.

    Args:
        failed, way_out: the message, before and after the reason.

    Raises:
        RunError: with that message; one that was raised within passes as it is.
    """
    try:
        yield new_folder(half)
    except RunError:
        shutil.rmtree(half, ignore_errors=True)
        raise
    except Exception as error:  # of the disk, in the words of whichever library wrote
        shutil.rmtree(half, ignore_errors=True)
        raise RunError(f"{failed}（{reason(error, where=True)}）；{way_out()}") from error


def complete(folder: str | Path) -> list[str]:
    """Names of the complete checkpoints of a folder, oldest first."""
    there = [path.parent.name for path in Path(folder).glob(f"step*/{manifest.FILE}")]
    return sorted(filter(NAME.fullmatch, there), key=_step_of)


def _in_current_form(key: str, value: object) -> object:
    """Return a value of a checkpoint's identity as this version writes it."""
    if key == "masks":  # the name of the class that held it stood before it once
        return re.sub(r"^\w+\((.*)\)$", r"\1", str(value))
    return value


def _apart(key: str, theirs: object, mine: object) -> str:
    if key in HASHED:
        return "與檢查點的不同"
    return f"檢查點 {theirs or '（沒有）'!r}，這次 {mine or '（沒有）'!r}"


def _step_of(name: str) -> int:
    return int(NAME.fullmatch(name)[1])


def _best_of(folder: Path) -> int:
    """Of which step the best model of a checkpoint is; 0 when it has none yet."""
    try:
        return int(read_json(folder / "progress.json")["progress"]["best_step"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0


def _step_of_model(folder: Path) -> int:
    """Optimizer steps of a saved model; -1 where there is none that can be read."""
    try:
        card = RunCard.read(folder)
    except UserError:
        return -1
    return card.step if card is not None else -1


def find(load_dir: str | Path, ckpt_id: str) -> Path:
    """The folder of one checkpoint: `ckpt_id`, or the newest when it is empty. Whether it is whole, `sound`
    says.

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
        + (f"有的是：{'、'.join(there)}" if there else NONE_THERE)
        + (f"；是不是 {guess[0]}？" if guess else "")
    )


def newest_valid(found: Path, exact: bool) -> Path:
    """A checkpoint whose every byte is as it was written: the one `find` found or, unless `exact`, the newest
    such one before it. Says which were passed over, and why.

    Raises:
        UserError: there is none.
    """
    passed = []
    names = [found.name] if exact else complete(found.parent)[::-1]
    for name in names:
        wrong = manifest.verify(found.parent / name)
        if not wrong:
            for line in passed:
                log(f"  略過{line}")
            return found.parent / name
        passed.append(f"檢查點 {found.parent / name}：{'；'.join(wrong[:3])}{'…' * (len(wrong) > 3)}")
    others = [name for name in complete(found.parent) if name not in names]
    way_out = f"可改用 --ckpt_id {others[-1]}" if others else "沒有別的檢查點；要重新開始請不要加 --resume"
    raise UserError([*(f"損壞的{line}" for line in passed), way_out])
