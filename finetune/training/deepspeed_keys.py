"""Keys of ds_config.json: the type of each value, and where "auto" is filled in from the flags.

DeepSpeed ignores a misspelt key at the top without a warning, and finds a wrong value only once the model is
loaded. Source: deepspeed.ai/docs/config-json, deepspeed/runtime/config.py and zero/config.py (0.19).
A test holds the copy against DeepSpeed: its import would double the 4 s until a misspelt key is named, and
add 138 MiB to a run that PyTorch trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from finetune.runtime.errors import nearest, shown

SWITCH, SIZE, COUNT, SCALE, TEXT, BLOCK, STAGE = (
    "true 或 false", "0 以上的數", "1 以上的整數", "0 以上的數", "文字", "一個物件", "0、1、2 或 3",
)  # fmt: skip
TOP = {
    "train_batch_size": COUNT, "train_micro_batch_size_per_gpu": COUNT, "gradient_accumulation_steps": COUNT,
    "gradient_clipping": SCALE, "gradient_predivide_factor": SCALE, "steps_per_print": COUNT,
    "communication_data_type": TEXT, "seq_parallel_communication_data_type": TEXT, "log_level": TEXT,
    "gradient_allreduce_op": TEXT,
    **dict.fromkeys((
        "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "prescale_gradients",
        "sparse_gradients", "wall_clock_breakdown", "memory_breakdown", "dump_state", "graph_harvesting",
        "dataloader_drop_last", "disable_allgather", "disable_python_gc", "managed_gradient_accumulation",
        "use_data_before_expert_parallelism", "check_overflow", "load_universal_checkpoint",
    ), SWITCH),
    **dict.fromkeys((
        "optimizer", "scheduler", "fp16", "bf16", "amp", "zero_optimization", "flops_profiler",
        "activation_checkpointing", "checkpoint", "data_types", "comms_logger", "tensorboard", "csv_monitor",
        "wandb", "comet", "aio", "torch_autocast", "compile", "elasticity", "autotuning", "hybrid_engine",
        "data_efficiency", "compression_training", "pipeline", "timers", "tensor_parallel", "datastates",
        "comms_config", "monitor_config",
    ), BLOCK),
}  # fmt: skip
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")  # each a block at the top
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}  # that monitors need
WRAPPED = {  # blocks named after DeepSpeed's own classes, whose contents it reads at the top
    "monitor_config": {**dict.fromkeys(MONITORS, BLOCK), "enabled": SWITCH, "tag": TEXT},
    "comms_config": {
        "verbose": SWITCH, "enabled": SWITCH, "debug": SWITCH, "prof_all": SWITCH, "comms_logger": BLOCK,
        "comms_logger_enabled": SWITCH,
    },
}  # fmt: skip
FLAG_FOR = {  # keys of other tools that are flags here, with the flag; "" where there is none
    "gradient_checkpointing": "--gradient_checkpointing",
    "use_gradient_checkpointing": "--gradient_checkpointing",
    "learning_rate": "--learning_rate", "lr": "--learning_rate", "num_train_epochs": "--num_epochs",
    "weight_decay": "--weight_decay", "warmup_ratio": "--warmup_ratio", "max_grad_norm": "--max_grad_norm",
    "mixed_precision": "--precision", "precision": "--precision", "seed": "--seed",
    "per_device_train_batch_size": "--micro_batch_size", "max_steps": "--max_steps",
    "torch_compile": "", "use_cache": "",
}  # fmt: skip
# Blocks that this project refuses where they are enabled, since it does not call that part of DeepSpeed.
UNSUPPORTED = {
    "amp": "請用 --precision bf16 或 fp16", "torch_autocast": "請用 --precision bf16 或 fp16",
    "hybrid_engine": "那是 RLHF 用的", "data_efficiency": "資料的順序由這支腳本決定",
    "compression_training": "這裡不壓縮模型", "autotuning": "請用 --micro_batch_size",
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
MIXED_PRECISION = {"enabled": SWITCH}  # keys of bf16 and fp16 checked here; DeepSpeed checks the others
OPTIMIZERS = {"type": TEXT, "params": BLOCK}  # keys of optimizer and scheduler
INSIDE = {
    "zero_optimization": ZERO, "bf16": MIXED_PRECISION, "fp16": MIXED_PRECISION, "optimizer": OPTIMIZERS,
    "scheduler": OPTIMIZERS, **WRAPPED,
}  # fmt: skip
IS_VALID: dict[str, Callable[[Any], bool]] = {
    SWITCH: lambda value: isinstance(value, bool),
    SIZE: lambda value: _is_number(value) and value >= 0,
    COUNT: lambda value: _is_number(value) and value == int(value) and 1 <= value < 2**31,
    TEXT: lambda value: isinstance(value, str),
    BLOCK: lambda value: isinstance(value, dict),
    STAGE: lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3,
}
FROM_FLAGS = {  # where "auto" stands for a flag's value; so it does anywhere in optimizer and scheduler
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16.enabled", "fp16.enabled", "zero_optimization.stage", "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}  # fmt: skip


def find_problems(config: dict[str, Any], named: str) -> list[str]:
    """Return the problems of a configuration that do not depend on the flags.

    Args:
        named: the file, as a message calls it.
    """
    messages = _check_values(config, TOP, named, "", strict=True)
    for name, known in INSIDE.items():
        block = config.get(name)
        if isinstance(block, dict):
            strict = known is ZERO or name in WRAPPED
            messages += _check_values(block, known, named, f"{name}.", strict)
    messages += unresolved_autos(config, named)
    if not messages and all(config.get(name, {}).get("enabled") is True for name in ("bf16", "fp16")):
        messages.append(f"{named}：bf16 與 fp16 只能開一個")
    return messages


def _check_values(
    values: dict[str, Any], known: dict[str, str], named: str, prefix: str, strict: bool
) -> list[str]:
    """Return a message for each unknown key, unless not `strict`, and for each value of a wrong type."""
    messages = []
    for key, value in values.items():
        wanted = known.get(key)
        if wanted is None and strict and key.startswith(("_", "//", "#", "$")):
            continue  # how people write comments into JSON
        if wanted is None and key in FLAG_FOR:
            flag = FLAG_FOR[key]
            hint = f"請刪掉，改用旗標 {flag}" if flag else "請刪掉"
            messages.append(f"{named}：{shown(prefix + key)} 不是 DeepSpeed 的鍵；{hint}")
        elif wanted is None and strict:
            guess = nearest(key, known)
            hint = f"，是不是 {guess[0]}？" if guess else ""
            messages.append(f"{named}：不認得 {shown(prefix + key)}{hint}")
        elif wanted and not IS_VALID[wanted](value) and not (value == "auto" and wanted != BLOCK):
            gap = " " if wanted[0].isascii() else ""
            messages.append(f"{named}：{prefix}{key} 應該是{gap}{wanted}，得到 {shown(value)}")
    return messages


def normalize(config: dict[str, Any]) -> dict[str, Any]:
    """Return a valid configuration in the form that DeepSpeed reads.

    Whole numbers become int (1e5 is a float in JSON), comments are dropped, and the blocks of
    `monitor_config` and `comms_config` move to the top, where DeepSpeed looks for them.
    """
    tidy = {key: value for key, value in config.items() if key in TOP}
    for key, wanted in TOP.items():
        if wanted == COUNT and isinstance(tidy.get(key), float):
            tidy[key] = int(tidy[key])
    for name in MONITORS:
        block = tidy.get("monitor_config", {}).get(name)
        if block is not None:
            tidy.setdefault(name, block)
    comms = dict(tidy.get("comms_config", {}))
    logger = {**comms, **comms.pop("comms_logger", {})}
    enabled = logger.pop("comms_logger_enabled", logger.get("enabled", False))
    logger.pop("comms_logger", None)
    if enabled:
        tidy.setdefault("comms_logger", {**logger, "enabled": True})
    return {key: value for key, value in tidy.items() if key not in WRAPPED}


def unsupported_settings(config: dict[str, Any], world_size: int, on_gpu: bool, where: str) -> list[str]:
    """Return a message for each setting that this machine or this project cannot do.

    Args:
        where: the file, as a message calls it.
    """
    zero = config.get("zero_optimization", {})
    messages = [
        f"{where} 的 {name}.enabled 是 true，這支腳本沒有這項功能；{instead}，並刪掉 {name}"
        for name, instead in UNSUPPORTED.items()
        if config.get(name, {}).get("enabled") is True
    ]
    messages += [
        f"{where} 的 {name}.enabled 是 true，但沒有安裝 {package}；請 pip install {package}，或改成 false"
        for name, package in PACKAGES.items()
        if config.get(name, {}).get("enabled") is True and find_spec(package) is None
    ]
    compiled = config.get("compile", {})
    if compiled and compiled.get("disable") is not True:
        messages.append(f"{where} 的 compile：這支腳本不用 torch.compile 訓練；請刪掉 compile")
    if config.get("tensor_parallel", {}).get("autotp_size", 0) > 1:
        messages.append(f"{where} 的 tensor_parallel.autotp_size：這支腳本不切分張量；請刪掉 tensor_parallel")
    quantized = [name for name, value in zero.items() if name.startswith("zero_quantized") and value is True]
    if not on_gpu:
        needs_gpu = "要有 NVIDIA GPU，這裡用 CPU；請改成 false"
        messages += [f"{where} 的 zero_optimization.{name} {needs_gpu}" for name in quantized]
    parts = zero.get("zero_hpz_partition_size", 1)
    if parts > 1 and world_size % parts:
        indivisible = f"是 {parts:g}，不能整除 rank 數 {world_size}；請改成 1 或整除它的數"
        messages.append(f"{where} 的 zero_optimization.zero_hpz_partition_size {indivisible}")
    for name in ("offload_optimizer", "offload_param"):
        block = zero.get(name, {})
        if block.get("device") == "nvme":
            messages += _check_nvme(f"{where} 的 zero_optimization.{name}", block)
    return messages


def _check_nvme(key: str, block: dict[str, Any]) -> list[str]:
    if not block.get("nvme_path"):
        return [f"{key}.device 是 nvme，但沒有 nvme_path；請填一個資料夾，或改用 cpu"]
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if AsyncIOBuilder().is_compatible(verbose=False):
        return []
    return [f"{key}.device 是 nvme，但這台機器沒有 libaio（非同步磁碟）；請安裝 libaio-dev，或改用 cpu"]


def unresolved_autos(config: dict[str, Any], named: str) -> list[str]:
    """Return a message for each "auto" that no flag decides."""
    names = config.keys() - {"optimizer", "scheduler"}
    places = {place for name in names for place in _autos(config[name], name)}
    return [
        f'{named} 的 {place} 寫 "auto"，但沒有旗標決定它；請填一個值或刪掉'
        for place in sorted(places - FROM_FLAGS)
    ]


def _autos(value: object, path: str) -> list[str]:
    """Return the paths of every "auto" in a value, as `zero_optimization.stage`."""
    if value == "auto":
        return [path]
    items = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    return [place for key, item in items.items() for place in _autos(item, f"{path}.{key}")]


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -(2**63) <= value < 2**63 and math.isfinite(value)
