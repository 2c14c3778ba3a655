"""Training engine on plain PyTorch (one process or DDP); the base class of the one on DeepSpeed ZeRO 0–3.

`Engine.step` takes the micro batches of one global batch and takes one optimizer step. The loss is summed
over examples (or tokens) and divided once by their number in the *global* batch, so the number of ranks and
the size of micro batches change memory and speed only. The exception is dropout, which is seeded with (seed,
step, rank, micro batch): no state of it has to be saved for a run to be resumed exactly.

DeepSpeed is used through `deepspeed.initialize`: accelerate takes several CPU ranks for one process.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.cpu import use_fast_dropout
from finetune.models.heads import forward_of
from finetune.models.kinds import DTYPES
from finetune.models.layer_groups import LayerGroups
from finetune.models.layer_schedule import (
    LayerSchedule,
    build_parameter_groups,
    by_group,
    set_trainable,
    uniform_schedule,
)
from finetune.objectives.batching import Batch
from finetune.objectives.loss import loss_stats, summed_loss, token_losses
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import NonFiniteError, UserError


def learning_rate_at(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up to `peak`, then linear decay to 0.

    The same curve as transformers' `get_linear_schedule_with_warmup`, as a pure function: nothing to save
    or resume.

    Args:
        step: number of the optimizer step; 0 is the first.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


# ---- the engines -------------------------------------------------------------------------------------------


@dataclass
class EngineConfig:
    """Settings of an engine, from the flags and the hardware that was chosen."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float  # 0 = no clipping
    seed: int
    precision: str  # fp32 | bf16 | fp16
    micro_batch: int  # rows a forward pass, per rank
    accumulation: int  # forward passes per optimizer step, per rank
    packed: bool = False  # rows hold several documents each
    # Names of an adapter's parameters: only these are saved, since the others are those of the base model.
    adapter: frozenset[str] = frozenset()
    skip_bad: bool = False  # skip a step whose loss or gradient is not a finite number, instead of an error


@dataclass
class StepResult:
    """Result of one optimizer step, over all ranks."""

    loss: float  # nats, mean over the examples, or over the targets
    num_targets: int  # number of those examples or targets
    tokens: int
    grad_norm: float | None  # before clipping
    stop: bool  # some rank received a signal to stop
    skipped: tuple[str, ...] = ()  # rows of a step that was skipped, see EngineConfig.skip_bad


class Engine:
    """Engine on plain PyTorch: one process, or DDP over several.

    Args:
        schedule: which layers are trained, from which step, at which rate; None trains all parameters that
            have `requires_grad`.
    """

    def __init__(
        self,
        model: nn.Module,
        world: Distributed,
        config: EngineConfig,
        schedule: LayerSchedule | None = None,
    ):
        self.world, self.config = world, config
        self.forward_model = forward_of(use_fast_dropout(model), config.packed)
        layers = LayerGroups(model)
        self.schedule = schedule or uniform_schedule(layers)
        # Every parameter that is trained in any step has `requires_grad` while optimizer and wrapper are
        # made; `_set_trainable` takes it from those whose step has not come.
        self.parts = by_group(model, layers)
        self.trainable_groups: frozenset[str] | None = None
        self._build(build_parameter_groups(model, layers, self.schedule, config.weight_decay))

    def _build(self, parameter_groups: list[dict[str, Any]]) -> None:
        """Make the optimizer and what wraps the model."""
        self.forward_model.to(self.world.device)
        # Any, since DeepSpeed puts objects of its own in the place of both.
        self.optimizer: Any = torch.optim.AdamW(parameter_groups, lr=self.config.learning_rate, fused=True)
        self.wrapped: Any = self.forward_model
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.config.precision == "fp16")

    def _set_trainable(self, step: int) -> frozenset[str]:
        """Make exactly those layer groups trainable that are trained in optimizer step `step`; return them.

        A group that becomes trainable has no momentum from before: an optimizer keeps none for parameters
        that never had a gradient.
        """
        trainable = self.schedule.trainable_at(step)
        if trainable == self.trainable_groups:
            return trainable
        self.trainable_groups = trainable
        set_trainable(self.parts, trainable)
        if self.world.size > 1:  # DDP only reduces gradients of what was trainable when it was made
            self.wrapped = nn.parallel.DistributedDataParallel(self.forward_model)
        return trainable

    @property
    def kind(self) -> str:
        """Name of the engine; checkpoints are bound to it."""
        return "torch"

    @property
    def _bare_model(self) -> Any:
        """The Hugging Face model itself, whose parameter names checkpoints keep."""
        return self.forward_model.model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run a forward pass of models/forward.py through the engine.

        Returns:
            logits (M, V) at the M positions that `inputs` name.
        """
        with self._autocast():
            return self.wrapped(*inputs)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, DTYPES[self.config.precision])

    def step(self, micro_batches: Sequence[Batch], step: int, rate: float, stop: bool = False) -> StepResult:
        """Take one optimizer step over the micro batches of this rank.

        Args:
            step: number of this step; with seed, rank and micro batch it fixes the dropout.
            rate: learning rate of this step.
            stop: this rank received a signal to stop; the result tells all ranks.

        Raises:
            NonFiniteError: the loss or the gradient is not a finite number, and such steps are not skipped.
        """
        trainable = self._set_trainable(step)
        self.wrapped.train()
        for group in self.optimizer.param_groups:
            waits = group["part"] and group["part"] not in trainable
            group["lr"] = 0.0 if waits else rate * group["scale"]
        local = sum(batch.num_targets for batch in micro_batches)
        total, stops = self.world.sum(torch.tensor([float(local), float(stop)])).tolist()
        sums = torch.zeros(3, dtype=torch.float64)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            torch.manual_seed(self._dropout_seed(step, number))
            batch = batch.to(self.world.device)
            with self._accumulating(last):
                losses = token_losses(self.forward(*batch.inputs), batch)
                sums += loss_stats(losses, batch)
                # ranks average their gradients, so each is scaled up by their number: the sum stays a sum
                scaled = summed_loss(losses, batch) * (self.world.size / total)
                if last:  # before the backward pass, so that nothing is changed by a bad loss
                    num_targets, loss, tokens = self.world.sum(sums).tolist()
                    if not math.isfinite(loss):
                        rows = self._nonfinite_rows(step, f"損失是 {loss}", micro_batches)
                        self._drop_gradients(scaled)
                        return StepResult(math.nan, 0, int(tokens), None, stops > 0, rows)
                self._backward(scaled)
        norm = self._update()
        if norm is not None and not math.isfinite(norm) and self.config.precision != "fp16":
            rows = self._nonfinite_rows(step, f"梯度範數是 {norm}", micro_batches)
            return StepResult(math.nan, 0, int(tokens), None, stops > 0, rows)
        return StepResult(loss / num_targets, int(num_targets), int(tokens), norm, stops > 0)

    def _nonfinite_rows(self, step: int, what: str, micro_batches: Sequence[Batch]) -> tuple[str, ...]:
        """Return the rows of a step with a bad loss or gradient, each once.

        Raises:
            NonFiniteError: such steps are not skipped.
        """
        names = self.world.all_gather([name for batch in micro_batches for name in batch.names])
        rows = tuple(dict.fromkeys(names))
        if not self.config.skip_bad:
            shown = "、".join(rows[:8]) + "…" * (len(rows) > 8)
            raise NonFiniteError(
                f"第 {step + 1} 步的{what}，停止訓練。這一批的題目：{shown}；"
                "可試較小的 --learning_rate，或加 --on_nan skip 略過這樣的步"
            )
        return rows

    def _drop_gradients(self, loss: Tensor) -> None:
        """Discard the gradients that this step has accumulated."""
        self.optimizer.zero_grad(set_to_none=True)

    def _dropout_seed(self, step: int, micro: int) -> int:
        key = f"{self.config.seed}:{step}:{self.world.rank}:{micro}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro batch: gradients are reduced over the ranks in the last one only."""
        return contextlib.nullcontext() if last or self.world.size == 1 else self.wrapped.no_sync()

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _update(self) -> float | None:
        """Update the weights and return the norm of the gradient before clipping, where it is known."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.forward_model.parameters(), limit)
        if self.scaler.is_enabled() or norm.isfinite():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def eval(self) -> Engine:
        """Switch dropout off, for validation and scoring; `step` switches it on again."""
        self.wrapped.eval()
        return self

    def full_weights(self) -> dict[str, Tensor]:
        """Return the complete state of the model, or of its adapter, in fp32 on the CPU.

        Under the names that the bare model has. All ranks call it; ranks other than 0 get an empty dict.
        """
        return {name: self._fp32_on_cpu(value) for name, value in self._named_state() if self.world.is_main}

    def _named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters and persistent buffers, or the parameters of the adapter, with their names."""
        model = self._bare_model
        if self.config.adapter:
            parameters = model.named_parameters()
            yield from ((name, value) for name, value in parameters if name in self.config.adapter)
            return
        yield from model.named_parameters()
        persistent = model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)

    @staticmethod
    def _fp32_on_cpu(value: Tensor) -> Tensor:
        """Return a copy on the CPU, in fp32 when it holds floating-point numbers."""
        value = value.detach().to("cpu", copy=True)
        return value.float().contiguous() if value.is_floating_point() else value

    def save(self, folder: Path) -> None:
        """Write the state of model and optimizer that a resumed run needs. All ranks call it."""
        if self.world.is_main:
            from safetensors.torch import save_file

            save_file(self.full_weights(), folder / "model.safetensors", metadata={"format": "pt"})
            torch.save(
                {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()},
                folder / "optimizer.pt",
            )

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. All ranks call it.

        Raises:
            UserError: the weights are those of another model.
        """
        from safetensors.torch import load_file

        model = self._bare_model
        missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        model.tie_weights()
        tied = set(missing) - {name for name, _ in self._named_state()}
        if unexpected or set(missing) != tied:
            raise UserError(
                f"{folder} 的權重與這個模型不合（{[*unexpected, *missing][:3]}）；"
                "--model_name_or_path 是同一個嗎？"
            )
        saved = torch.load(folder / "optimizer.pt", map_location=self.world.device, weights_only=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])

    def close(self) -> None:
        """Free what the engine holds outside Python."""
