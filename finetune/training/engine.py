"""One small interface over plain PyTorch (one process or DDP) and over DeepSpeed ZeRO 0–3.

`Engine.step` takes the micro batches of one global batch and makes one optimizer step. The loss is summed
over examples (or tokens) and divided once by how many the *global* batch has, so ranks and micro batches
are a matter of memory and speed only, but for what dropout draws: that is re-seeded from (seed, step, rank,
micro batch), so nothing of it has to be saved for a run to be resumed exactly.

DeepSpeed stands on `deepspeed.initialize` directly: accelerate sees one process among several on CPU ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.models.cpu import use_fast_dropout
from finetune.models.forward import forward_of
from finetune.models.kinds import DTYPES
from finetune.models.layer_schedule import (
    LayerGroups,
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
    """The rate of optimizer step `step` (0 is the first): linear warm-up to `peak`, then linear decay to 0.

    The same curve as transformers' `get_linear_schedule_with_warmup`, as a pure function: nothing to save
    or resume.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


# ---- the engines -------------------------------------------------------------------------------------------


@dataclass
class EngineConfig:
    """What an engine needs to know of the flags."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float  # 0 = no clipping
    seed: int
    precision: str  # fp32 | bf16 | fp16
    micro_batch: int  # rows a forward pass, per rank
    accumulation: int  # forward passes per optimizer step, per rank
    packed: bool = False  # rows hold several documents each
    # Names of an adapter's parameters: they alone are kept, since the rest is the base, which others have.
    adapter: frozenset[str] = frozenset()
    skip_bad: bool = False  # a step whose loss or gradient is no finite number is left out, not an error


@dataclass
class StepResult:
    """Of one optimizer step, all ranks together."""

    loss: float  # nats, mean over the examples, or over the targets
    num_targets: int  # how many those are
    tokens: int
    grad_norm: float | None  # before clipping
    stop: bool  # some rank was asked to stop
    skipped: tuple[str, ...] = ()  # the rows of a step that was left out, see Recipe.skip_bad


class Engine:
    """Plain PyTorch: one process, or DDP over several. Also what every engine does alike.

    Args:
        learning: which layers learn, from which step, how fast; None teaches all that has `requires_grad`.
    """

    def __init__(
        self,
        model: nn.Module,
        world: Distributed,
        recipe: EngineConfig,
        learning: LayerSchedule | None = None,
    ):
        self.world, self.recipe = world, recipe
        self.forward_model = forward_of(use_fast_dropout(model), recipe.packed)
        layers = LayerGroups(model)
        self.learning = learning or uniform_schedule(layers)
        # All that will ever learn has `requires_grad` while optimizer and wrapper are made; `_open` closes
        # what waits.
        self.parts = by_group(model, layers)
        self.trainable_groups: frozenset[str] | None = None
        self._build(build_parameter_groups(model, layers, self.learning, recipe.weight_decay))

    def _build(self, parameter_groups: list[dict]) -> None:
        self.forward_model.to(self.world.device)
        self.optimizer = torch.optim.AdamW(parameter_groups, lr=self.recipe.learning_rate, fused=True)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.recipe.precision == "fp16")
        self.wrapped: nn.Module = self.forward_model

    def _open(self, step: int) -> None:
        """Lets those parts learn that do so in optimizer step `step`, and no others. A part that opens has
        no momentum from before: an optimizer keeps none for what never had a gradient.
        """
        opened = self.learning.trainable_at(step)
        if opened == self.trainable_groups:
            return
        self.trainable_groups = opened
        set_trainable(self.parts, opened)
        if self.world.size > 1:  # it exchanges the gradients of what it found able to learn when it was made
            self.wrapped = nn.parallel.DistributedDataParallel(self.forward_model)

    @property
    def kind(self) -> str:
        """What a checkpoint of this engine can be loaded by."""
        return "torch"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (M, V) at the M positions asked for; as the forward passes of models/forward.py, through the
        engine.
        """
        with self._autocast():
            return self.wrapped(*inputs)

    def _autocast(self):
        if self.recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, DTYPES[self.recipe.precision])

    def step(self, micro_batches: Sequence[Batch], step: int, rate: float, stop: bool = False) -> StepResult:
        """One optimizer step over the micro batches of this rank.

        Args:
            step: number of this step; with seed, rank and micro batch it fixes the dropout.
            rate: learning rate of this step.
            stop: this rank was asked to stop; all ranks learn it together.

        Raises:
            NonFiniteError: the loss or the gradient is not a finite number, and such steps are not to be skipped.
        """
        self._open(step)
        self.wrapped.train()
        for group in self.optimizer.param_groups:
            waits = group["part"] and group["part"] not in self.trainable_groups
            group["lr"] = 0.0 if waits else rate * group["scale"]
        local = sum(batch.num_targets for batch in micro_batches)
        total, stops = self.world.sum(torch.tensor([float(local), float(stop)])).tolist()
        sums = torch.zeros(3, dtype=torch.float64)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            torch.manual_seed(self._draw(step, number))
            batch = batch.to(self.world.device)
            with self._accumulating(last):
                losses = token_losses(self.forward(*batch.inputs), batch)
                sums += loss_stats(losses, batch)
                # ranks average their gradients, so each is scaled up by their number: the sum stays a sum
                scaled = summed_loss(losses, batch) * (self.world.size / total)
                if last:  # before anything is changed by it
                    num_targets, loss, tokens = self.world.sum(sums).tolist()
                    if not math.isfinite(loss):
                        rows = self._nonfinite_rows(step, f"損失是 {loss}", micro_batches)
                        self._drop_gradients(scaled)
                        return StepResult(math.nan, 0, int(tokens), None, stops > 0, rows)
                self._backward(scaled)
        norm = self._update()
        if norm is not None and not math.isfinite(norm) and self.recipe.precision != "fp16":
            rows = self._nonfinite_rows(step, f"梯度的長度是 {norm}", micro_batches)
            return StepResult(math.nan, 0, int(tokens), None, stops > 0, rows)
        return StepResult(loss / num_targets, int(num_targets), int(tokens), norm, stops > 0)

    def _nonfinite_rows(self, step: int, what: str, micro_batches: Sequence[Batch]) -> tuple[str, ...]:
        """The rows of a step that is no good. Raises NonFiniteError unless such steps are skipped."""
        rows = self.world.all_gather([name for batch in micro_batches for name in batch.names])
        rows = tuple(dict.fromkeys(rows))
        if not self.recipe.skip_bad:
            shown = "、".join(rows[:8]) + "…" * (len(rows) > 8)
            raise NonFiniteError(
                f"第 {step + 1} 步的{what}，停止訓練。這一批的題目：{shown}；"
                "可試較小的 --learning_rate，或加 --on_nan skip 略過這樣的步"
            )
        return rows

    def _drop_gradients(self, loss: Tensor) -> None:
        """Forgets what this step has gathered so far."""
        self.optimizer.zero_grad(set_to_none=True)

    def _draw(self, step: int, micro: int) -> int:
        key = f"{self.recipe.seed}:{step}:{self.world.rank}:{micro}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")

    def _accumulating(self, last: bool):
        return contextlib.nullcontext() if last or self.world.size == 1 else self.wrapped.no_sync()

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _update(self) -> float:
        self.scaler.unscale_(self.optimizer)
        limit = self.recipe.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.forward_model.parameters(), limit)
        if self.scaler.is_enabled() or norm.isfinite():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def eval(self) -> Engine:
        """Switches dropout off, for validation and scoring; `step` switches it on again."""
        self.wrapped.eval()
        return self

    def full_weights(self) -> dict[str, Tensor]:
        """The model's complete state, or its adapter's, in fp32 on the CPU, under the names of the bare
        model. All ranks call it; ranks other than 0 get an empty dict.
        """
        return {name: self._whole(value) for name, value in self._named_state() if self.world.is_main}

    def _named_state(self):
        model = self.forward_model.model
        if self.recipe.adapter:
            parameters = model.named_parameters()
            yield from ((name, value) for name, value in parameters if name in self.recipe.adapter)
            return
        yield from model.named_parameters()
        persistent = model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)

    def _whole(self, value: Tensor) -> Tensor:
        value = value.detach().to("cpu", copy=True)
        return value.float().contiguous() if value.is_floating_point() else value

    def save(self, folder: Path) -> None:
        """Writes what a resumed run needs of the model and the optimizer. All ranks call it."""
        if self.world.is_main:
            from safetensors.torch import save_file

            save_file(self.full_weights(), folder / "model.safetensors", metadata={"format": "pt"})
            torch.save(
                {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()},
                folder / "optimizer.pt",
            )

    def load(self, folder: Path) -> None:
        """The counterpart of `save`. All ranks call it."""
        from safetensors.torch import load_file

        model = self.forward_model.model
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
        """Frees what the engine holds outside Python."""
