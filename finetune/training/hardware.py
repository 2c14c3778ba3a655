"""Hardware of a run: engine, device, precision and micro batch, each chosen once and logged with why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetune.cli.train_args import TrainArgs
from finetune.models import cpu
from finetune.models.kinds import DTYPES
from finetune.runtime.console import first_line, log
from finetune.runtime.distributed import Distributed, launched_by, on_gpu
from finetune.runtime.errors import RunError, UserError
from finetune.training import deepspeed_config
from finetune.training.deepspeed_engine import import_deepspeed

# Tokens a forward pass may hold, with padding, when --micro_batch_size is 0. On a CPU more would no longer
# fit its caches: benchmarks/NOTES.md.
CPU_TOKENS, GPU_TOKENS = 2048, 32768
FP32_SHARE = 0.7  # share of a GPU's free memory that fp32 weights may take when a model is evaluated
OPTIONS = 4
WRITING = ("cpt", "sft", "seq2seq")  # tasks of models that predict every token
CAUSAL_SHARE = 4  # a causal model gets a fourth of GPU_TOKENS, since every position has 150,000 logits


@dataclass
class Hardware:
    """Engine, precision and micro batch of a run."""

    engine: str  # deepspeed | torch
    precision: str  # fp32 | bf16 | fp16; auto until `resolve_auto_precision` knows the model
    micro_batch: int  # sequences a forward pass, per rank
    accumulation: int  # forward passes per optimizer step, per rank
    tokens: int  # a forward pass, with padding
    by_rows: bool  # passes hold equally many rows, as --micro_batch_size and DeepSpeed have it; else `tokens`
    ds_config: dict[str, Any]  # as read; {} without DeepSpeed

    @property
    def one_pass(self) -> str:
        """Size of one forward pass in words; checkpoints keep it, so its form is fixed."""
        return f"一次 {self.micro_batch} 列" if self.by_rows else f"一次最多 {self.tokens:,} 個 token"


def choose_hardware(args: TrainArgs, given: frozenset[str]) -> tuple[Distributed, Hardware]:
    """Choose engine, precision and micro batch, join the other ranks, and log what was chosen."""
    if args.load_in_4bit and args.engine == "auto" and launched_by() != "deepspeed":
        engine, why_engine = "torch", "引擎：PyTorch（--load_in_4bit：不必由 DeepSpeed 切分權重）"
    else:
        engine, why_engine = choose_engine(args.engine, on_gpu(args.cpu))
    world = Distributed.init(args.cpu, force_group=engine == "deepspeed")
    ds = deepspeed_config.read(args.deepspeed_config) if engine == "deepspeed" else {}
    wanted = deepspeed_config.precision_in(ds) if args.precision == "auto" else args.precision
    source = "--precision" if args.precision != "auto" else args.deepspeed_config
    if args.load_in_4bit and ds.get("zero_optimization", {}).get("stage") == 3:
        raise UserError(
            f"--load_in_4bit：4 位元的權重不能由 ZeRO-3 切分；請在 {args.deepspeed_config} 用 stage 2"
        )
    if world.device.type == "cpu":
        cpu.tune_malloc()
    precision, why_precision = choose_precision(wanted, world.device, source, engine)
    micro = args.micro_batch_size or deepspeed_config.micro_batch_in(ds, args.train_batch_size, world.size)
    tokens = CPU_TOKENS
    if world.device.type == "cuda":
        tokens = GPU_TOKENS // CAUSAL_SHARE if args.task in WRITING else GPU_TOKENS
    if args.task == "exam" and args.objective in ("cloze", "choice"):
        tokens //= OPTIONS  # each of which is a row
    by_rows = engine == "deepspeed" or bool(micro)
    micro = choose_micro_batch(args.train_batch_size, micro, max(1, tokens // longest_row(args)), world)
    log(why_engine)
    log(f"{why_precision}裝置：{world.device}；rank 數：{world.size}")
    if engine == "torch" and "deepspeed_config" in given:
        log("  --deepspeed_config 沒有用到：這次不由 DeepSpeed 訓練（要用請加 --engine deepspeed）")
    tokens = micro * longest_row(args) if by_rows else tokens
    passes = args.train_batch_size // (micro * world.size)
    return world, Hardware(engine, precision, micro, passes, tokens, by_rows, ds)


def longest_row(args: TrainArgs) -> int:
    """Return the most tokens of a row; those of an encoder-decoder are input and output."""
    return args.max_length + args.max_target_length * (args.task == "seq2seq")


def retry_with_smaller_micro_batch(
    hardware: Hardware, args: TrainArgs, world: Distributed, error: Exception
) -> None:
    """Halve the micro batch after the GPU ran out of memory; the batch size of a step stays the same.

    Raises:
        RunError: --auto_micro_batch was not given, or halving is not possible; the message says what is.
    """
    now, share = hardware.micro_batch, args.train_batch_size // world.size
    rows = now if hardware.by_rows else min(share, max(1, hardware.tokens // longest_row(args)))
    size_then = f"一次 {rows} 列" if hardware.by_rows else f"一次 {hardware.tokens:,} 個 token"
    message = f"GPU 記憶體不足：{size_then}放不下（{first_line(error)[:160]}）"
    if rows == 1:
        raise RunError(
            f"{message}；已經一次一列，可縮短 --max_length、加 --gradient_checkpointing 或 --lora_rank 16"
        )
    smaller = max(size for size in range(1, rows // 2 + 1) if share % size == 0)
    passes = f"每步 {share // smaller} 次 × {world.size} 個 rank，仍是 {args.train_batch_size} 列"
    instead = f"--micro_batch_size {smaller}（{passes}）"
    if not args.auto_micro_batch or world.size > 1:
        # with several ranks, only one has failed and the others wait for it
        auto = "" if world.size > 1 else "，或加 --auto_micro_batch 讓程式自己減半重試"
        raise RunError(f"{message}；改用 {instead}{auto}")
    hardware.micro_batch, hardware.accumulation, hardware.by_rows = smaller, share // smaller, True
    hardware.tokens = smaller * longest_row(args)
    log(f"⚠ {message}；自動改為 {instead}，從最近的檢查點接續")


def resolve_auto_precision(hardware: Hardware, world: Distributed, hidden_size: int) -> None:
    """Replace precision `auto` on a CPU, now that the width of the model is known."""
    if hardware.precision == "auto":
        precision, why = world.main_process_first(lambda: cpu.choose_precision(hidden_size))
        hardware.precision = world.broadcast(precision)
        log(why)


def eval_load_kwargs(
    args: TrainArgs, hardware: Hardware, parameters: int, world: Distributed
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` with which the finished model is loaded for its evaluation.

    In fp32, whose scores tie the least; where that does not fit this GPU, in the precision of training.

    Args:
        parameters: number of them in the model.
    """
    if args.load_in_4bit:
        from finetune.models.lora import quantization

        return quantization(hardware.precision, world.device)
    if world.device.type != "cuda" or 4 * parameters < FP32_SHARE * torch.cuda.mem_get_info()[0]:
        return {}
    return {"dtype": DTYPES[hardware.precision]}


def eval_precision_note(load_kwargs: dict[str, Any]) -> str:
    """Return the remark on metrics of a model that was not evaluated in fp32; "" of one that was.

    Args:
        load_kwargs: what `eval_load_kwargs` returned.
    """
    if not load_kwargs:
        return ""
    dtype = str(load_kwargs.get("dtype")).removeprefix("torch.")
    precision = " 4 位元" if "quantization_config" in load_kwargs else f" {dtype} "
    return f"評測時模型以{precision}載入；存下的是 fp32 的權重，數字可能略有不同"


def choose_engine(wanted: str, on_gpu: bool) -> tuple[str, str]:
    """Return `deepspeed` or `torch`, and a sentence that says why.

    Imports DeepSpeed only where it is to be used.

    Raises:
        UserError: --engine deepspeed was given, but DeepSpeed cannot be used.
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


def choose_precision(
    wanted: str, device: torch.device, source: str = "--precision", engine: str = "torch"
) -> tuple[str, str]:
    """Return `fp32`, `bf16` or `fp16`, and the words that say why.

    Or `auto`, where it depends on the model: see `resolve_auto_precision`.

    Args:
        wanted: one of them, or `auto`.
        source: the flag or file that says `wanted`, for messages.

    Raises:
        UserError: fp16 on the CPU.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise UserError(f"{source} fp16：CPU 不支援 fp16 訓練，請用 bf16 或 fp32")
    if wanted != "auto":
        return wanted, f"精度：{wanted}（{source}）；"
    if device.type != "cuda":
        return ("auto", "") if engine == "torch" else ("fp32", "精度：fp32（CPU）；")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "精度：bf16（這張 GPU 支援 bf16）；"
    return "fp16", "精度：fp16（這張 GPU 不支援 bf16，使用損失縮放（loss scaling））；"


def choose_micro_batch(train_batch: int, wanted: int, most: int, world: Distributed) -> int:
    """Return the sequences of one forward pass.

    Args:
        train_batch: sequences of an optimizer step, all ranks together.
        wanted: the number that was given; 0 takes the largest that divides this rank's share.
        most: upper limit of that choice.

    Raises:
        UserError: the batch cannot be cut evenly; the message names batch sizes that can.
    """
    step = (wanted or 1) * world.size
    if train_batch % step:
        below, above = train_batch // step * step, -(-train_batch // step) * step
        near = "、".join(str(size) for size in (below, above) if size)
        cut = f"--micro_batch_size {wanted} × {world.size} 個 rank" if wanted else f"{world.size} 個 rank"
        raise UserError(f"--train_batch_size {train_batch} 不能平分給 {cut}；請改成 {near}")
    share = train_batch // world.size
    return wanted or max(size for size in range(1, min(share, most) + 1) if share % size == 0)
