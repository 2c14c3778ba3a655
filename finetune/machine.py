"""The machine of a run: engine, device, precision and micro batch, each chosen once and said why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import ds_config
from .cli import say
from .engine import import_deepspeed
from .errors import UserError
from .world import World, launched_by, on_gpu

# Tokens a forward pass may hold when --micro_batch_size is left to us: 512 × 16 rows, or 64 on a GPU.
CPU_TOKENS, GPU_TOKENS = 8192, 32768


@dataclass
class Machine:
    engine: str  # deepspeed | torch
    precision: str  # fp32 | bf16 | fp16
    micro_batch: int  # sequences a forward pass, per rank
    accumulation: int  # forward passes per optimizer step, per rank
    ds_config: dict  # as read; {} without DeepSpeed


def meet(flags, given: set[str]) -> tuple[World, Machine]:
    """Chooses engine and precision, joins the other processes, and says what was chosen."""
    engine, why_engine = choose_engine(flags.engine, on_gpu(flags.cpu))
    world = World.join(flags.cpu, force_group=engine == "deepspeed")
    ds = ds_config.read(flags.deepspeed_config) if engine == "deepspeed" else {}
    asked = ds_config.precision_in(ds) if flags.precision == "auto" else flags.precision
    source = "--precision" if flags.precision != "auto" else flags.deepspeed_config
    precision, why_precision = choose_precision(asked, world.device, source)
    micro = flags.micro_batch_size or ds_config.micro_batch_in(ds, flags.train_batch_size, world.size)
    micro = choose_micro_batch(flags.train_batch_size, micro, flags.max_length, world)
    say(why_engine)
    say(f"{why_precision}；裝置：{world.device}；行程：{world.size}")
    if engine == "torch" and "deepspeed_config" in given:
        say("  --deepspeed_config 沒有用到：這次不由 DeepSpeed 訓練（要用請加 --engine deepspeed）")
    return world, Machine(engine, precision, micro, flags.train_batch_size // (micro * world.size), ds)


def choose_engine(wanted: str, on_gpu: bool) -> tuple[str, str]:
    """`deepspeed` or `torch`, and the sentence that says why. Imports DeepSpeed only where it is to be used.

    Raises:
        UserError: `--engine deepspeed` that cannot be had.
    """
    launcher = launched_by()
    if wanted == "torch":
        return "torch", "引擎：PyTorch（--engine torch）"
    if wanted == "auto" and launcher != "deepspeed" and not on_gpu:
        return "torch", "引擎：PyTorch（沒有用 GPU，也不是由 deepspeed 啟動）"
    try:
        import_deepspeed(on_gpu)
    except Exception as error:  # it fails in many ways where CUDA is half installed
        if wanted == "deepspeed":
            raise UserError(
                f"--engine deepspeed：DeepSpeed 無法使用（{type(error).__name__}：{error}）；"
                "可改用 --engine torch"
            ) from error
        return "torch", f"引擎：PyTorch（DeepSpeed 無法使用：{type(error).__name__}：{error}）"
    if wanted == "deepspeed":
        return "deepspeed", "引擎：DeepSpeed（--engine deepspeed）"
    return (
        "deepspeed",
        "引擎：DeepSpeed（由 deepspeed 啟動）" if launcher == "deepspeed" else "引擎：DeepSpeed（有 GPU）",
    )


def choose_precision(wanted: str, device: torch.device, source: str = "--precision") -> tuple[str, str]:
    """`fp32`, `bf16` or `fp16`, and the sentence that says why.

    Raises:
        UserError: fp16 on the CPU.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise UserError(f"{source} fp16：CPU 不支援 fp16 訓練，請用 bf16 或 fp32")
    if wanted != "auto":
        return wanted, f"精度：{wanted}（{source}）"
    if device.type != "cuda":
        return "fp32", "精度：fp32（CPU）"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "精度：bf16（這張 GPU 會算 bf16）"
    return "fp16", "精度：fp16（這張 GPU 不會算 bf16，損失會放大再縮回）"


def choose_micro_batch(train_batch: int, wanted: int, max_length: int, world: World) -> int:
    """Sequences a forward pass. When not asked for: the largest that fits and divides this rank's share.

    Raises:
        UserError: the batch cannot be cut evenly; the message names batch sizes that can.
    """
    step = (wanted or 1) * world.size
    if train_batch % step:
        below, above = train_batch // step * step, -(-train_batch // step) * step
        near = "、".join(str(size) for size in (below, above) if size)
        cut = f"--micro_batch_size {wanted} × {world.size} 個行程" if wanted else f"{world.size} 個行程"
        raise UserError(f"--train_batch_size {train_batch} 不能平分給 {cut}；請改成 {near}")
    share = train_batch // world.size
    most = max(1, (GPU_TOKENS if world.device.type == "cuda" else CPU_TOKENS) // max_length)
    return wanted or max(size for size in range(1, min(share, most) + 1) if share % size == 0)
