"""What ds_config.json may say: its keys, what stands at each, and where "auto" is filled in.

DeepSpeed ignores a misspelt key at the top without a word, and finds a wrong value only once the model is
loaded. Source: deepspeed.ai/docs/config-json, deepspeed/runtime/config.py and zero/config.py (0.19).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

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
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}  # that monitors write with
WRAPPED = {  # blocks that DeepSpeed's own objects are named after, and what it reads of them at the top
    "monitor_config": {**dict.fromkeys(MONITORS, BLOCK), "enabled": SWITCH, "tag": TEXT},
    "comms_config": {
        "verbose": SWITCH, "enabled": SWITCH, "debug": SWITCH, "prof_all": SWITCH, "comms_logger": BLOCK,
        "comms_logger_enabled": SWITCH,
    },
}  # fmt: skip
FLAG_FOR = {  # what is no key of DeepSpeed, but a flag here
    "gradient_checkpointing": "--gradient_checkpointing",
    "use_gradient_checkpointing": "--gradient_checkpointing",
    "learning_rate": "--learning_rate", "lr": "--learning_rate", "num_train_epochs": "--num_epochs",
    "weight_decay": "--weight_decay", "warmup_ratio": "--warmup_ratio", "max_grad_norm": "--max_grad_norm",
    "mixed_precision": "--precision", "precision": "--precision", "seed": "--seed",
    "per_device_train_batch_size": "--micro_batch_size", "max_steps": "--max_steps",
    "torch_compile": "", "use_cache": "",
}  # fmt: skip
# What none of our runs does, where it is switched on: the script calls another part of DeepSpeed for it.
NOT_HERE = {
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
HALVES = {"enabled": SWITCH}  # of bf16 and fp16; the others are DeepSpeed's to look at
OPTIMIZERS = {"type": TEXT, "params": BLOCK}  # of optimizer and scheduler
INSIDE = {
    "zero_optimization": ZERO, "bf16": HALVES, "fp16": HALVES, "optimizer": OPTIMIZERS,
    "scheduler": OPTIMIZERS, **WRAPPED,
}  # fmt: skip
FITS: dict[str, Callable[[object], bool]] = {
    SWITCH: lambda value: isinstance(value, bool),
    SIZE: lambda value: _is_number(value) and value >= 0,
    COUNT: lambda value: _is_number(value) and value == int(value) and 1 <= value < 2**31,
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
            strict = known is ZERO or block in WRAPPED
            found += _wrong(inside, known, named, f"{block}.", strict)
    found += undecided(config, named)
    if not found and all(config.get(name, {}).get("enabled") is True for name in ("bf16", "fp16")):
        found.append(f"{named}：bf16 與 fp16 只能開一個")
    return found


def _wrong(values: dict, known: dict[str, str], named: str, before: str, strict: bool) -> list[str]:
    found = []
    for key, value in values.items():
        wanted = known.get(key)
        if wanted is None and strict and key.startswith(("_", "//", "#", "$")):
            continue  # how people write remarks into JSON
        if wanted is None and key in FLAG_FOR:
            flag = FLAG_FOR[key]
            hint = f"請刪掉，改用旗標 {flag}" if flag else "請刪掉"
            found.append(f"{named}：{shown(before + key)} 不是 DeepSpeed 的鍵；{hint}")
        elif wanted is None and strict:
            guess = nearest(key, known)
            hint = f"，是不是 {guess[0]}？" if guess else ""
            found.append(f"{named}：不認得 {shown(before + key)}{hint}")
        elif wanted and not FITS[wanted](value) and not (value == "auto" and wanted != BLOCK):
            gap = " " if wanted[0].isascii() else ""
            found.append(f"{named}：{before}{key} 應該是{gap}{wanted}，得到 {shown(value)}")
    return found


def tidied(config: dict) -> dict:
    """As DeepSpeed reads it: whole numbers as such (1e5 is a float in JSON), remarks left out, and the blocks
    of `monitor_config` and `comms_config` at the top, where they are looked for.
    """
    found = {key: value for key, value in config.items() if key in TOP}
    for key, wanted in TOP.items():
        if wanted == COUNT and isinstance(found.get(key), float):
            found[key] = int(found[key])
    for name in MONITORS:
        block = found.get("monitor_config", {}).get(name)
        if block is not None:
            found.setdefault(name, block)
    comms = dict(found.get("comms_config", {}))
    logger = {**comms, **comms.pop("comms_logger", {})}
    enabled = logger.pop("comms_logger_enabled", logger.get("enabled", False))
    logger.pop("comms_logger", None)
    if enabled:
        found.setdefault("comms_logger", {**logger, "enabled": True})
    return {key: value for key, value in found.items() if key not in WRAPPED}


def impossible(config: dict, world_size: int, on_gpu: bool, where: str) -> list[str]:
    """What cannot be done here, or by this script, whatever the flags say."""
    zero = config.get("zero_optimization", {})
    found = [
        f"{where} 的 {name}.enabled 是 true，這支腳本沒有這項功能；{instead}，並刪掉 {name}"
        for name, instead in NOT_HERE.items()
        if config.get(name, {}).get("enabled") is True
    ]
    found += [
        f"{where} 的 {name}.enabled 是 true，但沒有安裝 {package}；請 pip install {package}，或改成 false"
        for name, package in PACKAGES.items()
        if config.get(name, {}).get("enabled") is True and find_spec(package) is None
    ]
    compiled = config.get("compile", {})
    if compiled and compiled.get("disable") is not True:
        found.append(f"{where} 的 compile：這支腳本不用 torch.compile 訓練；請刪掉 compile")
    if config.get("tensor_parallel", {}).get("autotp_size", 0) > 1:
        found.append(f"{where} 的 tensor_parallel.autotp_size：這支腳本不切分張量；請刪掉 tensor_parallel")
    quantized = [name for name, value in zero.items() if name.startswith("zero_quantized") and value is True]
    if not on_gpu:
        said = "要有 NVIDIA GPU，這裡用 CPU；請改成 false"
        found += [f"{where} 的 zero_optimization.{name} {said}" for name in quantized]
    parts = zero.get("zero_hpz_partition_size", 1)
    if parts > 1 and world_size % parts:
        said = f"是 {parts:g}，不能整除行程數 {world_size}；請改成 1 或整除它的數"
        found.append(f"{where} 的 zero_optimization.zero_hpz_partition_size {said}")
    for name in ("offload_optimizer", "offload_param"):
        block = zero.get(name, {})
        if block.get("device") == "nvme":
            found += _of_nvme(f"{where} 的 zero_optimization.{name}", block)
    return found


def _of_nvme(key: str, block: dict) -> list[str]:
    if not block.get("nvme_path"):
        return [f"{key}.device 是 nvme，但沒有 nvme_path；請填一個資料夾，或改用 cpu"]
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if AsyncIOBuilder().is_compatible(verbose=False):
        return []
    return [f"{key}.device 是 nvme，但這台機器沒有 libaio（非同步磁碟）；請安裝 libaio-dev，或改用 cpu"]


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
