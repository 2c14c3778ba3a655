"""What a run writes down as it goes: `train_log.jsonl`, a progress bar, and a tracker of one's choice."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

from .cli import say
from .errors import UserError

TRACKERS = {
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandBTracker",
    "mlflow": "MLflowTracker",
    "trackio": "TrackioTracker",
}


def check_tracker(name: str) -> None:
    """Raises UserError when --report_to names a service whose package is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report_to {name}：沒有安裝 {name}；pip install {name}")


class TrainLog:
    """Log of the main process; the other processes write nothing.

    Args:
        path: of train_log.jsonl.
        progress: where the run begins (`checkpoints.Progress`). Lines of what it will do again are dropped.
        total: optimizer steps of the whole run.
        tracker: one of TRACKERS or `none`.
    """

    def __init__(self, path: Path, progress, total: int, tracker: str, flags: dict, enabled: bool):
        self.enabled, self.total = enabled, total
        self._tracker, self._bar, self._stream = None, None, None
        self._started = time.perf_counter()
        if not enabled:
            return
        kept = []
        if progress.step and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_done(line, progress)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._stream = path.open("a", encoding="utf-8", buffering=1)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=progress.step, unit="步", dynamic_ncols=True, desc="訓練")
        if tracker != "none":
            import accelerate.tracking

            make = getattr(accelerate.tracking, TRACKERS[tracker])
            needs_folder = tracker == "tensorboard"
            self._tracker = make("tmmluplus", path.parent / "runs") if needs_folder else make("tmmluplus")
            self._tracker.start()
            self._tracker.store_init_configuration(
                {k: v for k, v in flags.items() if isinstance(v, (int, float, str, bool))}
            )

    def step(self, step: int, report, rate: float, seconds: float) -> None:
        """One optimizer step (`engine.StepReport`), its learning rate and how long it took."""
        if not self.enabled:
            return
        speed = report.tokens / max(seconds, 1e-9)
        values = {"loss": report.loss, "learning_rate": rate, "tokens_per_second": round(speed, 1)}
        if report.grad_norm is not None:
            values["grad_norm"] = report.grad_norm
        self._write({"step": step, **values})
        if self._bar:
            self._bar.update(1)
            self._bar.set_postfix_str(f"損失 {report.loss:.4f}，學習率 {rate:.2e}，{speed:,.0f} token/s")
        elif step % max(1, self.total // 20) == 0:
            elapsed = time.perf_counter() - self._started
            say(
                f"  第 {step}/{self.total} 步：損失 {report.loss:.4f}，學習率 {rate:.2e}，"
                f"{speed:,.0f} token/s，已 {elapsed:.0f} 秒"
            )

    def epoch(self, entry: dict) -> None:
        """The figures of one epoch, as kept in the history."""
        self._write(entry)
        self.say(
            f"第 {entry['epoch']} 輪（第 {entry['step']} 步）：訓練損失 {entry['train_loss']:.4f}"
            + (
                f"，驗證損失 {entry['validation_loss']:.4f}，驗證正確率 {entry['validation_accuracy']:.3f}"
                f"（{entry['validation_questions']} 題）"
                if "validation_loss" in entry
                else ""
            )
            + (" ← 目前最好" if entry.get("best") else "")
        )

    def say(self, text: str) -> None:
        if self._bar:
            self._bar.write(text, file=sys.stderr)
        else:
            say(text)

    def _write(self, entry: dict) -> None:
        if self.enabled:
            self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
            if self._tracker:
                values = {name: value for name, value in entry.items() if isinstance(value, float)}
                self._tracker.log(values, step=entry["step"])

    def close(self) -> None:
        if self._bar:
            self._bar.close()
        if self._tracker:
            self._tracker.finish()
        if self._stream:
            self._stream.close()


def _is_done(line: str, progress) -> bool:
    try:
        entry = json.loads(line)
        return entry["step"] <= progress.step and entry.get("epoch", 0) <= progress.epoch
    except (ValueError, KeyError, TypeError):
        return False  # a line cut short by a crash
