"""How far a run is: all that the loop changes, saved and restored as one thing."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from finetune.runtime.errors import NonFiniteError, UserError

PATIENCE = 20  # steps in a row that may be skipped


def _hopeless(what: str) -> NonFiniteError:
    return NonFiniteError(f"{what}的損失都不是數字，略過也沒有用；請用較小的 --learning_rate")


@dataclass
class TrainingState:
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
    skipped: int = 0  # steps left out, since their loss was no number (--on_nan skip)
    skipped_in_a_row: int = 0
    finished: bool = False
    stopped_early: bool = False

    def after_step(self, report, seconds: float) -> None:
        """Counts one optimizer step (`engine.StepResult`)."""
        self.step += 1
        self.batch += 1
        self.seconds = seconds
        if report.skipped:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= PATIENCE:
                raise _hopeless(f"連續 {PATIENCE} 步")
            return
        self.skipped_in_a_row = 0
        self.epoch_loss = [
            self.epoch_loss[0] + report.loss * report.num_targets,
            self.epoch_loss[1] + report.num_targets,
        ]

    @classmethod
    def from_dict(cls, saved: object, where: str) -> TrainingState:
        """What `asdict` made of one. Raises UserError when it is something else."""
        if isinstance(saved, dict) and saved.get("best_loss", 0) is None:  # JSON knows no infinity
            saved = {**saved, "best_loss": float("inf")}
        kinds = {kind.name: type(getattr(cls(), kind.name)) for kind in fields(cls)}
        fine = isinstance(saved, dict) and all(
            type(value) is kinds.get(name) or (kinds.get(name) is float and type(value) is int)
            for name, value in saved.items()
        )
        if not fine or saved.keys() != kinds.keys():
            raise UserError(f"{where}：進度讀不懂，不是這個版本寫的檢查點")
        return cls(**saved)

    def resume(self, patience: int) -> None:
        """A run that stopped early goes on when it is now to wait longer."""
        if self.stopped_early and not 0 < patience <= self.epochs_without_gain:
            self.finished = self.stopped_early = False

    @property
    def course(self) -> list[dict]:
        """The history, and before it what was measured before the first step."""
        return [*([{"step": 0, **self.before}] if self.before else []), *self.history]

    def reset_best(self) -> None:
        """The best model is lost: the next one measured is the best again."""
        self.best_accuracy, self.best_loss, self.best_step = -1.0, float("inf"), 0

    def after_epoch(self, validation: dict, patience: int, total_steps: int) -> bool:
        """Closes an epoch with what validation found ({} when there are no validation rows). One rule says
        which model is the best so far and whether to stop: `patience` epochs without a better one.

        Returns:
            True when the model is the best so far: higher accuracy or, at the same accuracy, a lower loss.
            Without validation rows the newest is the best.
        """
        self.epoch, self.batch = self.epoch + 1, 0
        loss, num_targets = self.epoch_loss
        if self.skipped_in_a_row and not num_targets:
            raise _hopeless(f"第 {self.epoch} 輪每一步")
        self.epoch_loss = [0.0, 0.0]
        accuracy = validation.get("validation_macro_f1", validation.get("validation_accuracy", -1.0))
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
