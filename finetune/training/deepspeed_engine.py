"""Engine on DeepSpeed ZeRO."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.layer_schedule import LayerSchedule, set_trainable
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError
from finetune.training import deepspeed_config
from finetune.training.deepspeed_files import ZeroFiles
from finetune.training.engine import Engine, EngineConfig


def import_deepspeed(on_gpu: bool) -> Any:
    """Import DeepSpeed without its banner on stdout, and on the CPU without its shared-memory op.

    That op compiles for a minute at first use and leaves 69 MB per rank in /dev/shm at every run.
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
    """Engine on DeepSpeed ZeRO 0–3.

    Args:
        ds_config: ds_config.json as `deepspeed_config.resolve` returned it.
    """

    def __init__(
        self,
        model: nn.Module,
        world: Distributed,
        config: EngineConfig,
        ds_config: dict[str, Any],
        schedule: LayerSchedule | None = None,
    ):
        self.ds_config = ds_config
        self.stage = ds_config["zero_optimization"].get("stage", 0)
        # DeepSpeed rounds parameters that are never trained and keeps no fp32 copy of them. Every rank has
        # the names, since gathering a weight is collective: a rank that gathers one alone waits for ever.
        self._frozen: dict[str, Tensor | None] = {}
        if config.precision != "fp32" and not config.adapter:
            frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
            self._frozen = {
                name: self._fp32_on_cpu(value) if world.is_main else None for name, value in frozen.items()
            }
        super().__init__(model, world, config, schedule)

    def _build(self, parameter_groups: list[dict[str, Any]]) -> None:
        from pydantic import ValidationError

        deepspeed = import_deepspeed(self.world.device.type == "cuda")
        optimizer = torch.optim.AdamW(parameter_groups, lr=self.config.learning_rate)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
                    model=self.forward_model, optimizer=optimizer, config=self.ds_config
                )
        except ValidationError as error:  # an unknown key inside a block
            raise UserError(deepspeed_config.not_accepted(error)) from error
        deepspeed_config.compare_built(self.wrapped, self.ds_config)
        self.files = ZeroFiles(self.wrapped, self.world.rank, self.world.size)
        self.wrapped.checkpoint_engine = self.files
        self.norm: Tensor | None = None  # gradient norm, where DeepSpeed does not check that it is finite
        if not hasattr(self.optimizer, "overflow"):
            self._check_steps()
        if hasattr(self.optimizer, "check_grad_overflow"):  # skip steps with bad gradients in bf16 too
            self.optimizer.check_grad_overflow = True
        self.wrapped._copy_recovery_script = lambda folder: None  # no programs among data

    def _set_trainable(self, step: int) -> frozenset[str]:
        """Make exactly those layer groups trainable that are trained in optimizer step `step`; return them.

        The others keep their place among DeepSpeed's partitions, with gradients of 0 and a rate of 0, so that
        they do not move. But their optimizer state counts steps, so the count that Adam's bias correction
        needs is reset where no gradient was ever seen.
        """
        trainable = self.schedule.trainable_at(step)
        if trainable == self.trainable_groups:
            return trainable
        self.trainable_groups = trainable
        set_trainable(self.parts, trainable)
        inner = self.optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        for state in inner.state.values():
            if "step" in state and not state["exp_avg_sq"].any():
                state["step"] = state["step"] * 0
        return trainable

    @contextlib.contextmanager
    def _all_trainable(self) -> Iterator[None]:
        """Make all groups trainable within the block, since DeepSpeed saves and loads by `requires_grad`."""
        set_trainable(self.parts, frozenset(self.parts))
        try:
            yield
        finally:
            if self.trainable_groups is not None:
                set_trainable(self.parts, self.trainable_groups)

    @property
    def kind(self) -> str:
        """Name of the engine; checkpoints are bound to it."""
        return f"deepspeed ZeRO-{self.stage}"

    def _autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # DeepSpeed holds the weights in the precision itself

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # DeepSpeed counts micro batches itself, and must see all of them

    def _backward(self, loss: Tensor) -> None:
        # The loss is divided by the size of the global batch already: not again by the accumulation steps.
        self.wrapped.backward(loss, scale_wrt_gas=False)
        self.wrapped.step()  # an update at every `gradient_accumulation_steps`-th call only

    def _drop_gradients(self, loss: Tensor) -> None:
        self.wrapped.backward(loss * math.nan, scale_wrt_gas=False)
        self.wrapped.step()  # discards the accumulated gradients, since their norm is not finite

    def _update(self) -> float | None:
        norm = self.wrapped.get_global_grad_norm()
        if self.norm is not None and not self.norm.isfinite():
            norm = self.norm
        return None if norm is None else float(norm)

    def _check_steps(self) -> None:
        """Skip steps with gradients that are not finite, which DeepSpeed without ZeRO, in fp32, does not."""
        step = self.optimizer.step

        def checked(*args: Any, **kwargs: Any) -> None:
            gradients = [value.grad for value in self.forward_model.parameters() if value.grad is not None]
            norm = nn.utils.get_total_norm(gradients)  # gradients are summed over the ranks: one norm on all
            self.norm = norm
            if norm.isfinite():
                step(*args, **kwargs)

        self.optimizer.step = checked

    def full_weights(self) -> dict[str, Tensor]:
        """Return the complete state of the model, or of its adapter, in fp32 on the CPU.

        All ranks call it: every rank gathers every tensor, and rank 0 keeps it.
        """
        # For a parameter without `requires_grad` DeepSpeed would give the rounded copy.
        with self._all_trainable():
            return self._gather_weights()

    def _gather_weights(self) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, value in self._named_state():
            if name in self._frozen:
                frozen = self._frozen[name]
                if frozen is not None:  # on rank 0
                    weights[name] = frozen
            elif isinstance(value, nn.Parameter):
                full = safe_get_full_fp32_param(value)  # the fp32 master copy, where there is one
                with GatheredParameters([value], enabled=full is None and hasattr(value, "ds_id")):
                    if self.world.is_main:
                        weights[name] = self._fp32_on_cpu(value if full is None else full)
            elif self.world.is_main:
                weights[name] = self._fp32_on_cpu(value)
        return weights

    def save(self, folder: Path) -> None:
        """Write the state of model and optimizer that a resumed run needs. All ranks call it."""
        exclude_frozen = bool(self.config.adapter)  # the weights of the base model, which never change
        self.files.failed = None
        with contextlib.redirect_stdout(sys.stderr), self._all_trainable():
            self.wrapped.save_checkpoint(
                str(folder), tag="zero", save_latest=False, exclude_frozen_parameters=exclude_frozen
            )
        if self.files.failed:
            raise self.files.failed

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. All ranks call it.

        Raises:
            UserError: there is no checkpoint of DeepSpeed.
        """
        with contextlib.redirect_stdout(sys.stderr), self._all_trainable():
            strict = not self.config.adapter
            path, _ = self.wrapped.load_checkpoint(str(folder), tag="zero", load_module_strict=strict)
        if path is None:
            raise UserError(f"{folder} 裡沒有 DeepSpeed 的檢查點")

    def close(self) -> None:
        """Free what DeepSpeed holds outside Python."""
        self.wrapped.destroy()
