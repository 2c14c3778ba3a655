"""What a run writes down as it goes: `train_log.jsonl`, a progress bar, and what a tracker is told."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path

from finetune.reports.perplexity import small
from finetune.runtime.console import log, plain
from finetune.runtime.files import atomic_write, own_file
from finetune.runtime.strict_json import dumps
from finetune.training.trackers import Tracker, flatten


class TrainLog:
    """Log of the main process; the other processes write nothing.

    Args:
        path: of train_log.jsonl.
        progress: where the run begins (`checkpoints.Progress`). Lines of what it will do again are dropped.
        total: optimizer steps of the whole run.
        tracker: outlives this log: the examination comes after it.
    """

    def __init__(self, path: Path, progress, total: int, tracker: Tracker, enabled: bool):
        self.enabled, self.total, self.path = enabled, total, path
        self._bar, self._stream, self._tracker = None, None, tracker
        self._started = time.perf_counter()
        if not enabled:
            return
        kept = []
        if progress.step and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # it may be cut anywhere
            kept = [line for line in lines if _is_done(line, progress)]
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(line + "\n" for line in kept))
        tracker.start(progress.step)
        self._stream = own_file(path, "a", encoding="utf-8", buffering=1)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=progress.step, unit="步", dynamic_ncols=True, desc="訓練")

    def step(self, step: int, report, rate: float, seconds: float) -> None:
        """One optimizer step (`engine.StepResult`), its learning rate and how long it took."""
        if not self.enabled:
            return
        if report.skipped:
            shown = "、".join(report.skipped[:8]) + "…" * (len(report.skipped) > 8)
            self.message(f"⚠ 第 {step} 步的損失不是數字，略過（--on_nan skip）；這一批：{shown}")
            self._write({"step": step, "skipped": list(report.skipped)})
            if self._bar:
                self._bar.update(1)
            return
        speed = report.tokens / max(seconds, 1e-9)
        values = {"loss": report.loss, "learning_rate": rate, "tokens_per_second": round(speed, 1)}
        if report.grad_norm is not None and math.isfinite(report.grad_norm):
            values["grad_norm"] = report.grad_norm
        self._write({"step": step, **values, "tokens": report.tokens})
        self._tracker.log({f"train/{name}": value for name, value in values.items()}, step)
        if self._bar:
            self._bar.update(1)
            self._bar.set_postfix_str(f"損失 {report.loss:.4f}，學習率 {rate:.2e}，{speed:,.0f} token/s")
        elif step % max(1, self.total // 20) == 0:
            elapsed = time.perf_counter() - self._started
            log(
                f"  第 {step}/{self.total} 步：損失 {report.loss:.4f}，學習率 {rate:.2e}，"
                f"{speed:,.0f} token/s，已 {elapsed:.0f} 秒"
            )

    def epoch(self, entry: dict) -> None:
        """The figures of one epoch, as kept in the history."""
        self._write(entry)
        figures = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
        self._tracker.log({_of_epoch(name): value for name, value in flatten(figures).items()}, entry["step"])
        self.message(
            f"第 {entry['epoch']} 輪（第 {entry['step']} 步）：訓練損失 {entry['train_loss']:.4f}，"
            f"{describe(entry)}{' ← 目前最好' if entry.get('best') and 'validation_loss' in entry else ''}"
        )

    def message(self, text: str) -> None:
        if self._bar:
            self._bar.write(plain(text), file=sys.stderr)
        else:
            log(text)

    def _write(self, entry: dict) -> None:
        if not self._stream:
            return
        try:
            self._stream.write(dumps(entry) + "\n")
        except OSError as error:  # a full disk: a line is not worth a run, the next checkpoint will say so
            self.message(f"⚠ {self.path} 寫不進去（{error.strerror}），這次不再記錄")
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def close(self) -> None:
        if self._bar:
            self._bar.close()
        if self._stream:
            self._stream.close()


def describe(found: dict) -> str:
    """What validation found, in one line."""
    parts = []
    if "validation_loss" in found:
        parts.append(f"驗證損失 {found['validation_loss']:.4f}")
    if "validation_perplexity" in found:
        shown = small({"perplexity": found["validation_perplexity"]})
        parts.append(f"困惑度 {shown}（{found['validation_tokens']:,} 個 token）")
    if "validation_restored" in found:
        parts.append(f"還原 {found['validation_restored']:.3f}")
    if "validation_macro_f1" in found:
        parts.append(f"巨觀 F1 {found['validation_macro_f1']:.3f}")
    if "validation_accuracy" in found:
        rows = found.get("validation_rows")
        count = f"{rows} 列" if rows else f"{found['validation_questions']} 題"
        parts.append(f"驗證正確率 {found['validation_accuracy']:.3f}（{count}）")
    return "，".join(parts) or "沒有驗證資料"


def _of_epoch(name: str) -> str:
    """train_loss → train/epoch_loss, the mean of the steps' train/loss; validation_loss → validation/loss."""
    group, _, rest = name.partition("_")
    return f"{group}/epoch_{rest}" if group == "train" else f"{group}/{rest}" if rest else name


def _is_done(line: str, progress) -> bool:
    try:
        entry = json.loads(line)
        return entry["step"] <= progress.step and entry.get("epoch", 0) <= progress.epoch
    except (ValueError, KeyError, TypeError):
        return False  # a line cut short by a crash
