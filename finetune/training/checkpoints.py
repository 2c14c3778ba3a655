"""Checkpoints: `step{N}/` in --save_dir, written under another name and renamed, so none is ever partial.

A checkpoint holds the engine's state, `progress.json`, and last of all the manifest (runtime/manifest.py),
without which a folder is no checkpoint. `best/`, the best model so far, is written in the same way. A best
model that a better one has replaced stays as `.best.step{N}` while a checkpoint refers to it: from whichever
checkpoint a killed run is resumed, that has its own best model, and the run ends as if it was never stopped.
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
from finetune.runtime.console import is_peer_failure, log
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import RunError, UserError, nearest, reason
from finetune.runtime.files import atomic_write, new_folder, read_json, remove_tree, replace_folder
from finetune.runtime.strict_json import dumps
from finetune.runtime.user_files import carry_over
from finetune.training.state import TrainingState

FORMAT = 2
HASHED = ("model", "questions", "base")  # kept as hashes, which a message does not show
# Flags that a resumed run may change, so that no refusal names them. What may not: `Run.identity`.
CHANGEABLE = {
    "save_dir", "load_dir", "ckpt_id", "resume", "output_dir", "report_to", "config", "debug", "local_rank",
    "save_interval", "save_total_limit", "dry_run", "verify_checkpoint", "verify_resume", "exam_limit",
    "exam_orders", "allow_world_size_change", "show_examples", "preview_masks", "inspect", "on_nan",
    "auto_micro_batch", "early_stopping_patience", "allow_pickle",
}  # fmt: skip
LABELS = {  # names in messages of the keys of `identity` that are not flags
    "total_steps": "總步數（--num_epochs、--max_steps）", "questions": "資料",
    "base": "底模的權重", "model": "底模的設定",
    "written": "--template、--train_on_prompt、--prefix、--max_target_length", "lora": "--lora_rank 等",
    "masks": "--masking、--mask_rate 等", "engine": "引擎", "precision": "--precision",
    "layers": "--freeze、--train_only、--unfreeze_every、--layer_lr_decay", "labels": "標籤、--class_weights",
    "windows": "--stride、--max_answer_length",
}  # fmt: skip
NO_CHECKPOINT = (
    "這個資料夾裡一個完整的檢查點（step100 之類）也沒有；要從頭訓練請不加 --load_dir，"
    "要從一個模型的權重開始請用 --model_name_or_path"
)
NAME = re.compile(r"step(\d{1,12})")
UNFINISHED = re.compile(r"\.(step\d{1,12}|best)(\.(half|old|gone|step\d{1,12}))+")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: --save_dir.
        identity: what a checkpoint must have been written by to be resumed from (engine, model, data …).
        keep: how many to keep; 0 keeps all.
        pass_size: size of one forward pass, in words. A resumed run with another one gets a warning, since
            its dropout differs.
        flags: this run's flags; a resume that is refused names those that differ.
    """

    def __init__(
        self, folder: str | Path, identity: dict[str, object], keep: int, world: Distributed,
        pass_size: str = "", flags: dict[str, object] | None = None,
    ):  # fmt: skip
        self.folder, self.identity, self.keep, self.world = Path(folder), identity, keep, world
        self.pass_size = pass_size
        self.flags = {name: value for name, value in (flags or {}).items() if name not in CHANGEABLE}

    @property
    def best(self) -> Path:
        """Folder of the best model so far."""
        return self.folder / "best"

    def names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        return complete(self.folder)

    def newest_step(self) -> int:
        """Return the optimizer steps of the newest complete checkpoint; -1 without one."""
        return max(map(_step_of, self.names()), default=-1)

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, as rank 0 sees it. All ranks call it."""
        return self.world.broadcast(self.folder / self.names()[-1] if self.names() else None)

    # ---- writing -------------------------------------------------------------------------------------------

    def save(self, progress: TrainingState, write: Callable[[Path], None]) -> Path:
        """Write one checkpoint. All ranks call it.

        When it cannot be written, the oldest checkpoints, which it would replace, are deleted, and it is
        written once more.

        Args:
            write: writes the engine's state to a folder.

        Raises:
            RunError: it cannot be written; the former checkpoints are as they were.
        """
        try:
            try:
                return self._save(progress, write)
            except Exception as error:
                if is_peer_failure(error) or not self.world.on_main(self.prune_for_space):
                    raise
                return self._save(progress, write)
        except Exception as error:
            if is_peer_failure(error):  # the disk is fine, and the other ranks no longer answer
                raise
            if self.world.is_main:
                shutil.rmtree(self._staging(progress), ignore_errors=True)
            raise RunError(
                f"檢查點 step{progress.step} 寫不進 --save_dir {self.folder}（{reason(error, where=True)}）；"
                f"{self.resume_hint()}"
            ) from error

    def _staging(self, progress: TrainingState) -> Path:
        return self.folder / f".step{progress.step}.half"

    def _save(self, progress: TrainingState, write: Callable[[Path], None]) -> Path:
        final, staging = self.folder / f"step{progress.step}", self._staging(progress)

        def finish() -> None:
            card = {
                "format": FORMAT, "identity": self.identity, "ranks": self.world.size,
                "passes": self.pass_size, "progress": asdict(progress), "flags": self.flags,
            }  # fmt: skip
            atomic_write(staging / "progress.json", dumps(card, indent=1))
            manifest.write_manifest(staging)
            replace_folder(staging, final)
            if self.keep:
                self._remove(self.names()[: -self.keep])
            self.clean_up()

        self.world.on_main(lambda: new_folder(staging) and None)
        self.world.on_all_ranks(lambda: write(staging))
        self.world.on_main(finish)
        return final

    def prune_for_space(self) -> bool:
        """Delete the checkpoints that the next one would replace, provided that a valid one remains.

        Returns:
            True when any were deleted.
        """
        names = self.names()
        replaceable = names[: 1 - self.keep] if self.keep > 1 else []
        others = names[len(replaceable) :]
        if not replaceable or all(manifest.verify(self.folder / name) for name in others):
            return False
        self._remove(replaceable)
        self.clean_up()
        return True

    def _remove(self, names: list[str]) -> None:
        for name in names:
            remove_tree(self.folder / name)

    def clean_up(self) -> None:
        """Delete unfinished folders of killed runs, and best models that no checkpoint refers to any more."""
        needed = {f".best.step{_best_of(self.folder / name)}" for name in self.names()}
        for path in self.folder.glob(".*"):
            if UNFINISHED.fullmatch(path.name) and path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)

    def save_best(self, write: Callable[[Path], None]) -> None:
        """Write a model to `best/` in place of the former one. Only rank 0 calls it.

        Args:
            write: writes the model to a folder.

        Raises:
            RunError: it cannot be written; the former one is as it was.
        """
        failed = f"最好的模型寫不進 --save_dir {self.folder}"
        with staged_folder(self.folder / ".best.half", failed, self.resume_hint) as staging:
            write(staging)
            manifest.write_manifest(staging)
            carry_over(self.best, staging)
            former = _step_of_model(self.best)
            needed = former in [_best_of(self.folder / name) for name in self.names()]
            replace_folder(staging, self.best, self.folder / f".best.step{former}" if needed else None)

    def resume_hint(self) -> str:
        """Describe the newest valid checkpoint and how to resume it, for messages."""
        for name in reversed(self.names()):
            if not manifest.verify(self.folder / name):
                return f"最後一個完好的檢查點是 {self.folder / name}，加 --resume 接續"
        return "還沒有完好的檢查點"

    # ---- reading -------------------------------------------------------------------------------------------

    def begin(
        self, checkpoint: Path | None, read: Callable[[Path], None], other_ranks: bool, again: bool = False
    ) -> TrainingState:
        """Return the state that training starts from, and make --save_dir ready for it. All ranks call it.

        Args:
            checkpoint: the checkpoint to load; None starts anew.
            read: restores the engine's state from a folder.
            other_ranks: as `load` takes it.
            again: this run has begun before, so that files in --save_dir are its own.
        """
        progress = self.load(checkpoint, read, other_ranks) if checkpoint else TrainingState()
        elsewhere = checkpoint is None or checkpoint.parent.resolve() != self.folder.resolve()

        def prepare_folder() -> TrainingState:
            if not again:
                self.archive_other_run(after=-1 if elsewhere else progress.step, best=elsewhere)
            if checkpoint:
                self.restore_best(checkpoint.parent, progress)
                self.clean_up()
                log(f"從 {checkpoint} 接續：已完成 {progress.step}/{self.identity['total_steps']} 步")
            return progress

        return self.world.on_main(prepare_folder)

    def load(self, folder: Path, read: Callable[[Path], None], other_ranks: bool = False) -> TrainingState:
        """Load a checkpoint: return its training state and restore the engine's. All ranks call it.

        Args:
            read: restores the engine's state from a folder.
            other_ranks: it may have been written by another number of ranks.

        Raises:
            UserError: another engine, model or data wrote it.
        """
        card = read_json(folder / "progress.json")
        saved = card.get("identity")
        if card.get("format") != FORMAT or not isinstance(saved, dict):
            raise UserError(f"{folder}：不是這個版本寫的檢查點")
        saved = {key: _in_current_form(key, value) for key, value in saved.items()}
        differences = [
            f"{LABELS.get(key, '--' + key)}：{_describe_difference(key, saved.get(key), current)}"
            for key, current in self.identity.items()
            if (saved.get(key) or "") != (current or "")
        ]
        then, now = card.get("ranks"), self.world.size
        if then != now and not other_ranks:
            differences.append(
                f"rank 數：檢查點 {then!r}，這次 {now}；加 --allow_world_size_change 可換 rank 數接續"
                "（dropout 的隨機結果不同，不再逐位元相同）"
            )
        if differences:
            refused = [f"{folder} 不能接續，因為與這次的設定不同；" + line for line in differences]
            raise UserError([*refused, self._resume_advice(folder, card.get("flags"))])
        progress = TrainingState.from_dict(card.get("progress"), str(folder))
        read(folder)
        if card.get("passes") != self.pass_size:
            log(
                f"  ⚠ 檢查點是{card.get('passes')}寫的，這次是{self.pass_size}："
                "dropout 的隨機結果不同，不再逐位元相同"
            )
        if then != now:
            log(f"  檢查點由 {then} 個 rank 寫出，這次是 {now} 個：已重新分配")
        return progress

    def _resume_advice(self, folder: Path, saved_flags: object) -> str:
        """Describe what to do about a checkpoint of another run, and which flags differ."""
        current = json.loads(json.dumps(self.flags))  # tuples become lists, as in the file
        saved = saved_flags if isinstance(saved_flags, dict) else {}
        differing = [name for name in current if name in saved and saved[name] != current[name]]
        named = "、".join(f"--{name} {saved[name]}（這次 {current[name]}）" for name in differing)
        way = f"要接續，請改回那次的旗標{'：' + named if named else '、資料與模型'}"
        way += "；要照這次的設定從頭訓練，請不加 --resume、--load_dir，並換一個 --save_dir、--output_dir"
        best = folder.parent / "best"
        return way + (
            f"；要從那次最好的模型再微調，請用 --model_name_or_path {best}" if best.is_dir() else ""
        )

    def restore_best(self, source: Path, progress: TrainingState) -> None:
        """Put the best model that a checkpoint refers to at `best/`; if it is lost, reset the choice.

        Args:
            source: folder that holds the checkpoint.
        """
        step = progress.best_step
        if not step:
            return
        candidates = [source / "best", *sorted(source.glob(".best*"))]
        fitting = (path for path in candidates if _step_of_model(path) == step)
        model = next((path for path in fitting if not manifest.verify(path)), None)
        if model is None:
            log(f"  {source / 'best'} 不是第 {step} 步的模型，或已損壞；最好的模型從這裡起重新挑選")
            progress.reset_best()
        elif model.resolve() != self.best.resolve():
            staging = self.folder / ".best.half"
            if model != staging:
                shutil.copytree(model, new_folder(staging), dirs_exist_ok=True)
            carry_over(self.best, staging)
            replace_folder(staging, self.best)

    def archive_other_run(self, after: int = -1, best: bool = True) -> None:
        """Move what another run left to `earlier_{N}/`: checkpoints past step `after`, and `best/`."""
        beyond = [name for name in self.names() if _step_of(name) > after]
        leftover = [self.folder / name for name in beyond]
        leftover += [self.best, *self.folder.glob(".best.step*")] if best else []
        leftover = [path for path in leftover if path.exists()]
        if not leftover:
            return
        number = 1
        while os.path.lexists(self.folder / f"earlier_{number}"):
            number += 1
        archive = self.folder / f"earlier_{number}"
        archive.mkdir()
        for path in leftover:
            path.rename(archive / path.name)
        self.share_best(beyond, archive)
        what = "另一次訓練留下的檢查點" if after < 0 else f"第 {after} 步之後的檢查點"
        hint = "（要接續最新的請用 --resume）" if after < 0 else ""
        log(f"{self.folder} 裡有{what}，已移到 {archive}{hint}")

    def share_best(self, names: list[str], archive: Path) -> None:
        """Copy the best models that archived checkpoints refer to, so that these can be resumed.

        Args:
            names: names of the checkpoints.
            archive: folder that they were moved to.
        """
        models = {_step_of_model(path): path for path in (*self.folder.glob(".best.step*"), self.best)}
        for step in {_best_of(archive / name) for name in names} & models.keys():
            if step > 0 and not (archive / f".best.step{step}").exists():
                shutil.copytree(models[step], archive / f".best.step{step}")


@contextlib.contextmanager
def staged_folder(staging: Path, failed: str, hint: Callable[[], str]) -> Iterator[Path]:
    """Make a folder to write a model to, and delete it when the block fails.

    Args:
        staging: the folder.
        failed: the message of an error, before its reason.
        hint: returns the message after the reason.

    Raises:
        RunError: with that message; a RunError of the block is raised as it is.
    """
    try:
        yield new_folder(staging)
    except RunError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    except Exception as error:  # each library has errors of its own for a full disk
        shutil.rmtree(staging, ignore_errors=True)
        raise RunError(f"{failed}（{reason(error, where=True)}）；{hint()}") from error


def complete(folder: str | Path) -> list[str]:
    """Return the names of the complete checkpoints of a folder, oldest first."""
    names = [path.parent.name for path in Path(folder).glob(f"step*/{manifest.FILE}")]
    return sorted(filter(NAME.fullmatch, names), key=_step_of)


def _in_current_form(key: str, value: object) -> object:
    """Return a value of a checkpoint's identity as this version writes it."""
    if key == "masks":  # the name of the class that held it stood before it once
        return re.sub(r"^\w+\((.*)\)$", r"\1", str(value))
    if key == "written":
        return str(value).replace("提示也教", "提示也算損失")
    return value


def _describe_difference(key: str, saved: object, current: object) -> str:
    if key in HASHED:
        return "與檢查點的不同"
    return f"檢查點 {saved or '（沒有）'!r}，這次 {current or '（沒有）'!r}"


def _step_of(name: str) -> int:
    """Return the number of steps in the name of a checkpoint."""
    match = NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def _best_of(folder: Path) -> int:
    """Return the step of the best model that a checkpoint refers to; 0 when it has none yet."""
    try:
        return int(read_json(folder / "progress.json")["progress"]["best_step"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0


def _step_of_model(folder: Path) -> int:
    """Return the optimizer steps of a saved model; -1 where there is none that can be read."""
    try:
        card = RunCard.read(folder)
    except UserError:
        return -1
    return card.step if card is not None else -1


def find(load_dir: str | Path, ckpt_id: str) -> Path:
    """Return the folder of one checkpoint: `ckpt_id`, or the newest when it is empty.

    It may be damaged: see `newest_valid`.

    Raises:
        UserError: there is none; the message names those that there are.
    """
    folder = Path(load_dir)
    names = complete(folder)
    if not ckpt_id and names:
        return folder / names[-1]
    if ckpt_id in names:
        return folder / ckpt_id
    flag = f"--load_dir {load_dir}" + (f" --ckpt_id {ckpt_id}" if ckpt_id else "")
    if not folder.is_dir():
        raise UserError(f"{flag}：沒有這個資料夾")
    guess = nearest(ckpt_id, names)
    raise UserError(
        f"{flag}：沒有這個檢查點。"
        + (f"有的是：{'、'.join(names)}" if names else NO_CHECKPOINT)
        + (f"；是不是 {guess[0]}？" if guess else "")
    )


def newest_valid(checkpoint: Path, exact: bool) -> Path:
    """Return a checkpoint whose every byte is as it was written, and log which ones were skipped, and why.

    Args:
        checkpoint: what `find` returned.
        exact: only this one will do; else the newest valid one of its folder is taken.

    Raises:
        UserError: there is none.
    """
    skipped: list[str] = []
    parent = checkpoint.parent
    names = [checkpoint.name] if exact else complete(parent)[::-1]
    for name in names:
        damage = manifest.verify(parent / name)
        if not damage:
            for line in skipped:
                log(f"  略過{line}")
            return parent / name
        skipped.append(f"檢查點 {parent / name}：{'；'.join(damage[:3])}{'…' * (len(damage) > 3)}")
    others = [name for name in complete(parent) if name not in names]
    hint = f"可改用 --ckpt_id {others[-1]}" if others else "沒有別的檢查點；要重新開始請不要加 --resume"
    raise UserError([*(f"損壞的{line}" for line in skipped), hint])
