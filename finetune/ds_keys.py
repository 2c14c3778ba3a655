"""What ds_config.json may say: its keys, what stands at each, and where "auto" is filled in.

DeepSpeed ignores a misspelt key at the top without a word, and finds a wrong value only once the model is
loaded. Source: deepspeed.ai/docs/config-json, deepspeed/runtime/config.py and zero/config.py (0.19).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import nearest, shown

SWITCH, SIZE, COUNT, SCALE, TEXT, BLOCK, STAGE = (
    "true 或 false", "0 以上的數", "1 以上的整數", "0 以上的數", "文字", "一個物件", "0、1、2 或 3",
)  # fmt: skip
TOP = {
    "train_batch_size": COUNT, "train_micro_batch_size_per_gpu": COUNT, "gradient_accumulation_steps": COUNT,
    "gradient_clipping": SCALE, "gradient_predivide_factor": SCALE, "steps_per_print": COUNT,
    "communication_data_type": TEXT, "seq_parallel_communication_data_type": TEXT, "log_level": TEXT,
    **dict.fromkeys((
        "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "prescale_gradients",
        "sparse_gradients", "wall_clock_breakdown", "memory_breakdown", "dump_state", "graph_harvesting",
        "dataloader_drop_last",
    ), SWITCH),
    **dict.fromkeys((
        "optimizer", "scheduler", "fp16", "bf16", "amp", "zero_optimization", "flops_profiler",
        "activation_checkpointing", "checkpoint", "data_types", "comms_logger", "tensorboard", "csv_monitor",
        "wandb", "comet", "aio", "torch_autocast", "compile", "elasticity", "autotuning",
    ), BLOCK),
}  # fmt: skip
ZERO = {
    "stage": STAGE,
    **dict.fromkeys((
        "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "zero_hpz_partition_size",
        *(f"{stage}{name}" for stage in ("stage3_", "") for name in (
            "prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold",
            "max_live_parameters", "max_reuse_distance", "module_granularity_threshold",
        )),
    ), SIZE),
    **dict.fromkeys((
        "contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce", "allgather_partitions",
        "overlap_comm", "compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint",
        "cpu_offload_param", "cpu_offload_use_pin_memory", "cpu_offload",
        *(f"{stage}{name}" for stage in ("stage3_", "") for name in (
            "gather_16bit_weights_on_model_save", "use_all_reduce_for_fetch_params", "allgather_sequential",
        )),
        "stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "legacy_stage1",
        "round_robin_gradients", "parameter_alignment", "zero_quantized_weights",
        "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "memory_efficient_linear",
        "pipeline_loading_checkpoint", "override_module_apply", "log_trace_cache_warnings",
        "enable_sanity_checks", "save_muon_momentum_buffer_in_memory",
    ), SWITCH),
    **dict.fromkeys(("offload_param", "offload_optimizer", "zenflow", "leaf_module"), BLOCK),
}  # fmt: skip
HALVES = {"enabled": SWITCH}  # of bf16 and fp16; the others are DeepSpeed's to look at
OPTIMIZERS = {"type": TEXT, "params": BLOCK}  # of optimizer and scheduler
INSIDE = {
    "zero_optimization": ZERO, "bf16": HALVES, "fp16": HALVES, "optimizer": OPTIMIZERS,
    "scheduler": OPTIMIZERS,
}  # fmt: skip
FITS: dict[str, Callable[[object], bool]] = {
    SWITCH: lambda value: isinstance(value, bool),
    SIZE: lambda value: _is_number(value) and value >= 0,
    COUNT: lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31,
    TEXT: lambda value: isinstance(value, str),
    BLOCK: lambda value: isinstance(value, dict),
    STAGE: lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3,
}
FROM_FLAGS = {  # where "auto" stands for what a flag says; and anywhere in the optimizer's, the scheduler's
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16.enabled", "fp16.enabled", "zero_optimization.stage", "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}  # fmt: skip


def problems(config: dict, named: str) -> list[str]:
    """All that is wrong with a configuration by itself, whatever the flags say."""
    found = _wrong(config, TOP, named, "", strict=True)
    for block, known in INSIDE.items():
        inside = config.get(block)
        if isinstance(inside, dict):
            found += _wrong(inside, known, named, f"{block}.", strict=known is ZERO)
    found += undecided(config, named)
    if not found and all(config.get(name, {}).get("enabled") is True for name in ("bf16", "fp16")):
        found.append(f"{named}：bf16 與 fp16 只能開一個")
    return found


def _wrong(values: dict, known: dict[str, str], named: str, before: str, strict: bool) -> list[str]:
    found = []
    for key, value in values.items():
        wanted = known.get(key)
        if wanted is None and strict:
            guess = nearest(key, known)
            hint = f"，是不是 {guess[0]}？" if guess else ""
            found.append(f"{named}：不認得 {shown(before + key)}{hint}")
        elif wanted and not FITS[wanted](value) and not (value == "auto" and wanted != BLOCK):
            gap = " " if wanted[0].isascii() else ""
            found.append(f"{named}：{before}{key} 應該是{gap}{wanted}，得到 {shown(value)}")
    return found


def undecided(config: dict, named: str) -> list[str]:
    """The "auto" that no flag decides."""
    looked = config.keys() - {"optimizer", "scheduler"}
    places = {place for name in looked for place in _autos(config[name], name)}
    return [
        f'{named} 的 {place} 寫 "auto"，但沒有旗標決定它；請填一個值或刪掉'
        for place in sorted(places - FROM_FLAGS)
    ]


def _autos(value: object, path: str) -> list[str]:
    if value == "auto":
        return [path]
    inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    return [found for key, item in inside.items() for found in _autos(item, f"{path}.{key}")]


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -(2**63) <= value < 2**63 and math.isfinite(value)
