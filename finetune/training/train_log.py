"""Log of a training run: `train_log.jsonl`, the progress bar, and what goes to the tracker."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from finetune.reports.perplexity import small
from finetune.runtime.console import log, plain
from finetune.runtime.files import atomic_write, open_no_follow
from finetune.runtime.strict_json import dumps
from finetune.training.trackers import Tracker, flatten

if TYPE_CHECKING:
    from finetune.training.engine import StepResult
    from finetune.training.state import TrainingState


class TrainLog:
    """Log of the main process; other ranks write nothing.

    Args:
        path: where train_log.jsonl is written.
        state: where the run starts. Lines of steps that it takes again are dropped.
        total: optimizer steps of the whole run.
        tracker: is used after this log is closed too, by the evaluation.
        enabled: False on other ranks than the first.
    """

    def __init__(self, path: Path, state: TrainingState, total: int, tracker: Tracker, enabled: bool):
        self.enabled, self.total, self.path = enabled, total, path
        self._tracker = tracker
        self._bar: Any = None  # tqdm's progress bar, on a terminal
        self._stream: IO[str] | None = None
        self._started = time.perf_counter()
        if not enabled:
            return
        kept: list[str] = []
        if state.step and path.is_file():
            # a killed run may have cut the file anywhere, within a character too
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            kept = [line for line in lines if _is_done(line, state)]
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(line + "\n" for line in kept))
        tracker.start(state.step)
        self._stream = open_no_follow(path, "a", encoding="utf-8", buffering=1)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=state.step, unit="步", dynamic_ncols=True, desc="訓練")

    def step(self, step: int, result: StepResult, rate: float, seconds: float) -> None:
        """Log one optimizer step.

        Args:
            step: its number, from 1.
            rate: its learning rate.
            seconds: how long it took.
        """
        if not self.enabled:
            return
        if result.skipped:
            shown = "、".join(result.skipped[:8]) + "…" * (len(result.skipped) > 8)
            self.message(f"⚠ 第 {step} 步的損失是 NaN 或無限大，略過（--on_nan skip）；這一批：{shown}")
            self._write({"step": step, "skipped": list(result.skipped)})
            if self._bar:
                self._bar.update(1)
            return
        speed = result.tokens / max(seconds, 1e-9)
        values = {"loss": result.loss, "learning_rate": rate, "tokens_per_second": round(speed, 1)}
        if result.grad_norm is not None and math.isfinite(result.grad_norm):
            values["grad_norm"] = result.grad_norm
        self._write({"step": step, **values, "tokens": result.tokens})
        self._tracker.log({f"train/{name}": value for name, value in values.items()}, step)
        if self._bar:
            self._bar.update(1)
            self._bar.set_postfix_str(f"損失 {result.loss:.4f}，學習率 {rate:.2e}，{speed:,.0f} token/s")
        elif step % max(1, self.total // 20) == 0:
            elapsed = time.perf_counter() - self._started
            log(
                f"  第 {step}/{self.total} 步：損失 {result.loss:.4f}，學習率 {rate:.2e}，"
                f"{speed:,.0f} token/s，已 {elapsed:.0f} 秒"
            )

    def epoch(self, entry: dict[str, Any]) -> None:
        """Log the metrics of one epoch.

        Args:
            entry: an entry of the history, see `TrainingState.after_epoch`.
        """
        self._write(entry)
        metrics = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
        values = {_tracker_name(name): value for name, value in flatten(metrics).items()}
        self._tracker.log(values, entry["step"])
        self.message(
            f"第 {entry['epoch']} 輪（第 {entry['step']} 步）：訓練損失 {entry['train_loss']:.4f}，"
            f"{describe(entry)}{' ← 目前最好' if entry.get('best') and 'validation_loss' in entry else ''}"
        )

    def message(self, text: str) -> None:
        """Print a message, above the progress bar if there is one."""
        if self._bar:
            self._bar.write(plain(text), file=sys.stderr)
        else:
            log(text)

    def _write(self, entry: dict[str, Any]) -> None:
        if not self._stream:
            return
        try:
            self._stream.write(dumps(entry) + "\n")
        except OSError as error:  # a full disk does not end the run here, but at the next checkpoint
            self.message(f"⚠ {self.path} 寫不進去（{error.strerror}），這次不再記錄")
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def close(self) -> None:
        """Close the file and the progress bar."""
        if self._bar:
            self._bar.close()
        if self._stream:
            self._stream.close()


def describe(metrics: dict[str, Any]) -> str:
    """Return the metrics of a validation in one line."""
    parts = []
    if "validation_loss" in metrics:
        parts.append(f"驗證損失 {metrics['validation_loss']:.4f}")
    if "validation_perplexity" in metrics:
        shown = small({"perplexity": metrics["validation_perplexity"]})
        parts.append(f"困惑度 {shown}（{metrics['validation_tokens']:,} 個 token）")
    if "validation_restored" in metrics:
        parts.append(f"還原 {metrics['validation_restored']:.3f}")
    if "validation_macro_f1" in metrics:
        parts.append(f"巨觀 F1 {metrics['validation_macro_f1']:.3f}")
    if "validation_f1" in metrics:
        parts.append(f"F1 {metrics['validation_f1']:.3f}（{metrics['validation_rows']} 列）")
    if "validation_exact_match" in metrics:
        parts.append(f"完全相同 {metrics['validation_exact_match']:.3f}")
    if "validation_accuracy" in metrics:
        rows = metrics.get("validation_rows")
        count = f"{rows} 列" if rows else f"{metrics['validation_questions']} 題"
        parts.append(f"驗證正確率 {metrics['validation_accuracy']:.3f}（{count}）")
    return "，".join(parts) or "沒有驗證資料"


def _tracker_name(name: str) -> str:
    """Return the name that a tracker shows for a metric of an epoch.

    train_loss becomes train/epoch_loss, since it is the mean of the steps' train/loss; validation_loss
    becomes validation/loss.
    """
    group, _, rest = name.partition("_")
    return f"{group}/epoch_{rest}" if group == "train" else f"{group}/{rest}" if rest else name


def _is_done(line: str, state: TrainingState) -> bool:
    """Return whether a line is about a step or epoch that the state includes."""
    try:
        entry = json.loads(line)
        return entry["step"] <= state.step and entry.get("epoch", 0) <= state.epoch
    except (ValueError, KeyError, TypeError):
        return False  # a line cut short by a crash
