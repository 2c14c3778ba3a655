"""The machine of a run: engine, device, precision and micro batch, each chosen once and said why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finetune.models import cpu
from finetune.models.kinds import DTYPES
from finetune.runtime.console import first_line, log
from finetune.runtime.distributed import Distributed, launched_by, on_gpu
from finetune.runtime.errors import RunError, UserError
from finetune.training import deepspeed_config
from finetune.training.deepspeed_engine import import_deepspeed

# Tokens a forward pass may hold, with padding, when --micro_batch_size is left to us. On a CPU no more than
# keeps its caches of use: benchmarks/NOTES.md.
CPU_TOKENS, GPU_TOKENS = 2048, 32768
FP32_SHARE = 0.7  # of the free memory of a GPU, that a model's weights may take when it is examined
OPTIONS = 4
CAUSAL_SHARE = 4  # there, of a causal model, a fourth: logits of up to 150,000 words are wanted everywhere


@dataclass
class Hardware:
    engine: str  # deepspeed | torch
    precision: str  # fp32 | bf16 | fp16; auto until `settle` knows the model
    micro_batch: int  # sequences a forward pass, per rank
    accumulation: int  # forward passes per optimizer step, per rank
    tokens: int  # a forward pass, with padding
    by_rows: bool  # passes hold equally many rows, as --micro_batch_size and DeepSpeed have it; else `tokens`
    ds_config: dict  # as read; {} without DeepSpeed

    @property
    def one_pass(self) -> str:
        """What a forward pass holds, in words."""
        return f"一次 {self.micro_batch} 列" if self.by_rows else f"一次最多 {self.tokens:,} 個 token"


def choose_hardware(flags, given: set[str]) -> tuple[Distributed, Hardware]:
    """Chooses engine and precision, joins the other processes, and says what was chosen."""
    if flags.load_in_4bit and flags.engine == "auto" and launched_by() != "deepspeed":
        engine, why_engine = "torch", "引擎：PyTorch（--load_in_4bit：不必由 DeepSpeed 切分權重）"
    else:
        engine, why_engine = choose_engine(flags.engine, on_gpu(flags.cpu))
    world = Distributed.init(flags.cpu, force_group=engine == "deepspeed")
    ds = deepspeed_config.read(flags.deepspeed_config) if engine == "deepspeed" else {}
    asked = deepspeed_config.precision_in(ds) if flags.precision == "auto" else flags.precision
    source = "--precision" if flags.precision != "auto" else flags.deepspeed_config
    if flags.load_in_4bit and ds.get("zero_optimization", {}).get("stage") == 3:
        raise UserError(
            f"--load_in_4bit：4 位元的權重不能由 ZeRO-3 切分；請在 {flags.deepspeed_config} 用 stage 2"
        )
    if world.device.type == "cpu":
        cpu.tune_malloc()
    precision, why_precision = choose_precision(asked, world.device, source, engine)
    micro = flags.micro_batch_size or deepspeed_config.micro_batch_in(ds, flags.train_batch_size, world.size)
    tokens = CPU_TOKENS
    if world.device.type == "cuda":
        tokens = GPU_TOKENS // CAUSAL_SHARE if flags.task in ("cpt", "sft") else GPU_TOKENS
    if flags.task == "exam" and flags.objective in ("cloze", "choice"):
        tokens //= OPTIONS  # each of which is a row
    by_rows = engine == "deepspeed" or bool(micro)
    micro = choose_micro_batch(flags.train_batch_size, micro, max(1, tokens // flags.max_length), world)
    log(why_engine)
    log(f"{why_precision}裝置：{world.device}；行程：{world.size}")
    if engine == "torch" and "deepspeed_config" in given:
        log("  --deepspeed_config 沒有用到：這次不由 DeepSpeed 訓練（要用請加 --engine deepspeed）")
    tokens = micro * flags.max_length if by_rows else tokens
    passes = flags.train_batch_size // (micro * world.size)
    return world, Hardware(engine, precision, micro, passes, tokens, by_rows, ds)


def retry_with_smaller_micro_batch(machine: Hardware, flags, world: Distributed, error: Exception) -> None:
    """Halves what one forward pass holds, since the memory of the GPU did not suffice; a step stays as large.

    Raises:
        RunError: that was not asked for, or cannot be done; the message says what can.
    """
    now, share = machine.micro_batch, flags.train_batch_size // world.size
    rows = now if machine.by_rows else min(share, max(1, machine.tokens // flags.max_length))
    held = f"一次 {rows} 列" if machine.by_rows else f"一次 {machine.tokens:,} 個 token"
    said = f"GPU 記憶體不足：{held}放不下（{first_line(error)[:160]}）"
    if rows == 1:
        raise RunError(
            f"{said}；已經一次一列，可縮短 --max_length、加 --gradient_checkpointing 或 --lora_rank 16"
        )
    less = max(size for size in range(1, rows // 2 + 1) if share % size == 0)
    passes = f"每步 {share // less} 次 × {world.size} 個行程，仍是 {flags.train_batch_size} 列"
    instead = f"--micro_batch_size {less}（{passes}）"
    if not flags.auto_micro_batch or world.size > 1:
        # of several processes one alone has failed, and the others wait for it
        auto = "" if world.size > 1 else "，或加 --auto_micro_batch 讓程式自己減半重試"
        raise RunError(f"{said}；改用 {instead}{auto}")
    machine.micro_batch, machine.accumulation, machine.by_rows = less, share // less, True
    machine.tokens = less * flags.max_length
    log(f"⚠ {said}；自動改為 {instead}，從最近的檢查點接續")


def resolve_auto_precision(machine: Hardware, world: Distributed, hidden_size: int) -> None:
    """Precision `auto` on a CPU, now that the width of the model is known."""
    if machine.precision == "auto":
        machine.precision, why = world.main_process_first(lambda: cpu.choose_precision(hidden_size))
        machine.precision = world.broadcast(machine.precision)
        log(why)


def eval_load_kwargs(flags, machine: Hardware, parameters: int, world: Distributed) -> dict:
    """How the finished model is loaded to be examined, as `models.load_model` takes it: in fp32, whose scores
    tie the least; where that does not fit this GPU, as it was trained.
    """
    if flags.load_in_4bit:
        from finetune.models.lora import quantization

        return quantization(machine.precision, world.device)
    if world.device.type != "cuda" or 4 * parameters < FP32_SHARE * torch.cuda.mem_get_info()[0]:
        return {}
    return {"dtype": DTYPES[machine.precision]}


def eval_precision_note(more: dict) -> str:
    """What must be said of figures that were measured on a model loaded in this way; "" of one in fp32."""
    if not more:
        return ""
    how = " 4 位元" if "quantization_config" in more else f" {str(more['dtype']).removeprefix('torch.')} "
    return f"測驗時模型以{how}載入；存下的是 fp32 的權重，數字可能略有不同"


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


def choose_precision(
    wanted: str, device: torch.device, source: str = "--precision", engine: str = "torch"
) -> tuple[str, str]:
    """`fp32`, `bf16` or `fp16`, and the words that say why; `auto` where it depends on the model, see
    `settle`.

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
        return "bf16", "精度：bf16（這張 GPU 會算 bf16）；"
    return "fp16", "精度：fp16（這張 GPU 不會算 bf16，損失會放大再縮回）；"


def choose_micro_batch(train_batch: int, wanted: int, most: int, world: Distributed) -> int:
    """Sequences a forward pass. When not asked for: at most `most`, as many as divide this rank's share.

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
    return wanted or max(size for size in range(1, min(share, most) + 1) if share % size == 0)
