"""Engine on DeepSpeed ZeRO."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.models.layer_schedule import LayerSchedule, set_trainable
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError
from finetune.training import deepspeed_config
from finetune.training.deepspeed_files import ZeroFiles
from finetune.training.engine import Engine, EngineConfig


def import_deepspeed(on_gpu: bool):
    """DeepSpeed, without its banner on stdout, and on the CPU without the shared-memory op, which compiles
    for a minute at first use and leaves 69 MB per rank in /dev/shm at every run.
    """
    import logging

    with contextlib.redirect_stdout(io.StringIO()):
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not on_gpu:
        try:
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        except AttributeError:  # not a public name; a test watches /dev/shm
            print("DeepSpeed：無法停用 shm_comm，/dev/shm 會留下暫存檔", file=sys.stderr)
    return deepspeed


class DeepSpeedEngine(Engine):
    """DeepSpeed ZeRO 0–3, driven by ds_config.json (already resolved)."""

    def __init__(
        self,
        model: nn.Module,
        world: Distributed,
        recipe: EngineConfig,
        config: dict,
        learning: LayerSchedule | None = None,
    ):
        self.config = config
        self.stage = config["zero_optimization"].get("stage", 0)
        # DeepSpeed rounds what never learns, and keeps no fp32 copy of it. Every rank knows the names: who
        # walks through the weights alone waits for the others for ever.
        self._frozen: dict[str, Tensor | None] = {}
        if recipe.precision != "fp32" and not recipe.adapter:
            frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
            self._frozen = {
                name: self._whole(value) if world.is_main else None for name, value in frozen.items()
            }
        super().__init__(model, world, recipe, learning)

    def _build(self, parameter_groups: list[dict]) -> None:
        from pydantic import ValidationError

        deepspeed = import_deepspeed(self.world.device.type == "cuda")
        optimizer = torch.optim.AdamW(parameter_groups, lr=self.recipe.learning_rate)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
                    model=self.forward_model, optimizer=optimizer, config=self.config
                )
        except ValidationError as error:  # a key below another one that DeepSpeed does not know
            raise UserError(deepspeed_config.not_accepted(error)) from error
        deepspeed_config.compare_built(self.wrapped, self.config)
        self.files = ZeroFiles(self.wrapped, self.world.rank, self.world.size)
        self.wrapped.checkpoint_engine = self.files
        self.norm: Tensor | None = None  # of the clipped gradients, where DeepSpeed does not look
        if not hasattr(self.optimizer, "overflow"):
            self._check_steps()
        if hasattr(self.optimizer, "check_grad_overflow"):  # in bf16 too no step is made of what is no number
            self.optimizer.check_grad_overflow = True
        self.wrapped._copy_recovery_script = lambda folder: None  # no programs among data

    def _open(self, step: int) -> None:
        """What waits keeps its place among DeepSpeed's partitions, with gradients of 0 and a rate of 0, so
        that it does not move. But its state counts steps: the count that Adam's bias correction needs begins
        anew where no gradient was ever seen.
        """
        opened = self.learning.trainable_at(step)
        if opened == self.trainable_groups:
            return
        self.trainable_groups = opened
        set_trainable(self.parts, opened)
        inner = self.optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        for state in inner.state.values():
            if "step" in state and not state["exp_avg_sq"].any():
                state["step"] = state["step"] * 0

    @contextlib.contextmanager
    def _all_open(self):
        """As DeepSpeed met the model: what it writes and reads goes by `requires_grad`."""
        set_trainable(self.parts, frozenset(self.parts))
        try:
            yield
        finally:
            if self.trainable_groups is not None:
                set_trainable(self.parts, self.trainable_groups)

    @property
    def kind(self) -> str:
        return f"deepspeed ZeRO-{self.stage}"

    def _autocast(self):
        return contextlib.nullcontext()  # DeepSpeed holds the weights in the precision itself

    def _accumulating(self, last: bool):
        return contextlib.nullcontext()  # it counts micro batches itself, and must see all of them

    def _backward(self, loss: Tensor) -> None:
        # Divided once already, by the mass of the global batch: not again by the accumulation steps.
        self.wrapped.backward(loss, scale_wrt_gas=False)
        self.wrapped.step()  # an update at every `gradient_accumulation_steps`-th call only

    def _drop_gradients(self, loss: Tensor) -> None:
        self.wrapped.backward(loss * math.nan, scale_wrt_gas=False)
        self.wrapped.step()  # which forgets what was gathered when its norm is no number

    def _update(self) -> float | None:
        norm = self.wrapped.get_global_grad_norm()
        if self.norm is not None and not self.norm.isfinite():
            norm = self.norm
        return None if norm is None else float(norm)

    def _check_steps(self) -> None:
        """ZeRO makes no step of gradients that are no numbers. Without it, in fp32, DeepSpeed would."""
        step = self.optimizer.step

        def checked(*args, **named):
            gradients = [value.grad for value in self.forward_model.parameters() if value.grad is not None]
            self.norm = nn.utils.get_total_norm(gradients)  # of their sum over the ranks: the same on each
            if self.norm.isfinite():
                step(*args, **named)

        self.optimizer.step = checked

    def full_weights(self) -> dict[str, Tensor]:
        # Collective under ZeRO: every rank walks through every tensor, rank 0 keeps it. Of a parameter
        # without `requires_grad` DeepSpeed would give the rounded copy.
        with self._all_open():
            return self._gathered()

    def _gathered(self) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, value in self._named_state():
            if name in self._frozen:
                if self.world.is_main:
                    weights[name] = self._frozen[name]
            elif isinstance(value, nn.Parameter):
                whole = safe_get_full_fp32_param(value)  # the fp32 master, where there is one
                with GatheredParameters([value], enabled=whole is None and hasattr(value, "ds_id")):
                    if self.world.is_main:
                        weights[name] = self._whole(value if whole is None else whole)
            elif self.world.is_main:
                weights[name] = self._whole(value)
        return weights

    def save(self, folder: Path) -> None:
        frozen = bool(self.recipe.adapter)  # weights that were never changed
        self.files.failed = None
        with contextlib.redirect_stdout(sys.stderr), self._all_open():
            self.wrapped.save_checkpoint(
                str(folder), tag="zero", save_latest=False, exclude_frozen_parameters=frozen
            )
        if self.files.failed:
            raise self.files.failed

    def load(self, folder: Path) -> None:
        with contextlib.redirect_stdout(sys.stderr), self._all_open():
            strict = not self.recipe.adapter
            path, _ = self.wrapped.load_checkpoint(str(folder), tag="zero", load_module_strict=strict)
        if path is None:
            raise UserError(f"{folder} 裡沒有 DeepSpeed 的檢查點")

    def close(self) -> None:
        self.wrapped.destroy()
