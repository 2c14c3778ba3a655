"""State of the training loop: progress, best model and history, saved and restored as one object."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from finetune.runtime.errors import NonFiniteError, UserError

if TYPE_CHECKING:
    from finetune.training.engine import StepResult

PATIENCE = 20  # steps in a row that may be skipped
# metrics that the best model is chosen by, the first that is measured
CHOSEN_BY = ("validation_macro_f1", "validation_f1", "validation_accuracy")


def _all_nonfinite(what: str) -> NonFiniteError:
    return NonFiniteError(f"{what}的損失都是 NaN 或無限大，略過也無法繼續；請用較小的 --learning_rate")


@dataclass
class TrainingState:
    """Everything that the training loop changes; `progress` of a checkpoint's progress.json."""

    step: int = 0  # optimizer steps finished
    epoch: int = 0  # epochs finished
    batch: int = 0  # global batches of the running epoch finished
    # The metric that the best model is chosen by (CHOSEN_BY), 0..1, on the validation rows; -1: not measured.
    best_accuracy: float = -1.0
    best_loss: float = float("inf")  # validation loss at the best accuracy, nats
    best_step: int = 0
    epochs_without_gain: int = 0
    seconds: float = 0.0  # spent training, over all runs
    before: dict = field(default_factory=dict)  # validation before the first step (of texts and replies)
    # The running epoch: summed loss, and the number of targets that it is divided by.
    epoch_loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    # One entry an epoch: step, train_loss, validation_loss, …
    history: list[dict] = field(default_factory=list)
    skipped: int = 0  # steps skipped because their loss was not a finite number (--on_nan skip)
    skipped_in_a_row: int = 0
    finished: bool = False
    stopped_early: bool = False

    def after_step(self, result: StepResult, seconds: float) -> None:
        """Count one optimizer step.

        Args:
            seconds: training time so far, over all runs.

        Raises:
            NonFiniteError: PATIENCE steps in a row were skipped.
        """
        self.step += 1
        self.batch += 1
        self.seconds = seconds
        if result.skipped:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= PATIENCE:
                raise _all_nonfinite(f"連續 {PATIENCE} 步")
            return
        self.skipped_in_a_row = 0
        self.epoch_loss = [
            self.epoch_loss[0] + result.loss * result.num_targets,
            self.epoch_loss[1] + result.num_targets,
        ]

    @classmethod
    def from_dict(cls, saved: object, where: str) -> TrainingState:
        """Restore a state from what `asdict` returned.

        Args:
            where: the checkpoint, for the message.

        Raises:
            UserError: fields are missing, unknown or of a wrong type.
        """
        values: dict[str, Any] | None = saved if isinstance(saved, dict) else None
        if values is not None and values.get("best_loss", 0) is None:  # JSON has no infinity
            values = {**values, "best_loss": float("inf")}
        types = {entry.name: type(getattr(cls(), entry.name)) for entry in fields(cls)}
        if (
            values is None
            or values.keys() != types.keys()
            or not all(
                type(value) is types[name] or (types[name] is float and type(value) is int)
                for name, value in values.items()
            )
        ):
            raise UserError(f"{where}：進度讀不懂，不是這個版本寫的檢查點")
        return cls(**values)

    def resume(self, patience: int) -> None:
        """Let a run that stopped early continue, when --early_stopping_patience is longer now."""
        if self.stopped_early and not 0 < patience <= self.epochs_without_gain:
            self.finished = self.stopped_early = False

    @property
    def history_from_start(self) -> list[dict]:
        """The history, after the metrics from before the first step, where there are any."""
        return [*([{"step": 0, **self.before}] if self.before else []), *self.history]

    def reset_best(self) -> None:
        """Forget the best model, since its weights are lost: the next one measured becomes the best."""
        self.best_accuracy, self.best_loss, self.best_step = -1.0, float("inf"), 0

    def after_epoch(self, validation: dict, patience: int, total_steps: int) -> bool:
        """Close an epoch: add it to the history and decide whether to stop.

        Args:
            validation: metrics on the validation rows; {} when there are none.
            patience: epochs without a better model after which training stops; 0 never stops.

        Returns:
            True when the model is the best so far: higher accuracy or, at the same accuracy, a lower loss.
            Without validation rows the newest is the best.

        Raises:
            NonFiniteError: every step of the epoch was skipped.
        """
        self.epoch, self.batch = self.epoch + 1, 0
        loss, num_targets = self.epoch_loss
        if self.skipped_in_a_row and not num_targets:
            raise _all_nonfinite(f"第 {self.epoch} 輪每一步")
        self.epoch_loss = [0.0, 0.0]
        known = (name for name in CHOSEN_BY if name in validation)
        accuracy = validation.get(next(known, ""), -1.0)
        validation_loss = validation.get("validation_loss", 0.0)
        lower = accuracy == self.best_accuracy and validation_loss < self.best_loss
        better = accuracy > self.best_accuracy or lower or not validation
        if better:
            self.best_accuracy, self.best_loss, self.best_step = accuracy, validation_loss, self.step
        self.epochs_without_gain = 0 if better else self.epochs_without_gain + 1
        self.stopped_early = (
            bool(patience) and self.epochs_without_gain >= patience and self.step < total_steps
        )
        self.finished = self.stopped_early or self.step >= total_steps
        mean = loss / max(1, num_targets)
        entry = {"epoch": self.epoch, "step": self.step, "train_loss": mean, **validation}
        self.history.append(entry | {"best": better})
        return better
