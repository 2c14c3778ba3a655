"""Read ds_config.json, fill every "auto" from the flags, and report conflicts and unknown keys."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.cli.train_args import DEFAULT_DEEPSPEED_CONFIG
from finetune.runtime.console import first_line, log
from finetune.runtime.errors import RunError, UserError, shown
from finetune.runtime.strict_json import JsonError, decode
from finetune.training import deepspeed_keys

if TYPE_CHECKING:
    from pydantic import ValidationError

LARGEST = 1 << 20  # bytes
SMALLEST_BUCKET = 1 << 22  # elements; 16 MB in fp32


@dataclass(frozen=True)
class Settings:
    """Values of the flags that DeepSpeed has keys for; micro batch and precision are the chosen ones."""

    train_batch: int
    micro_batch: int
    world_size: int
    max_grad_norm: float
    precision: str
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    total_steps: int
    on_gpu: bool = False


def read(path: str | Path) -> dict[str, Any]:
    """Read the file; every "auto" stays as it is.

    Raises:
        UserError: it cannot be read, is not an object, or has a problem that does not depend on the flags.
    """
    if str(path) == DEFAULT_DEEPSPEED_CONFIG and not Path(path).exists():  # started in another folder
        path = _shipped_file()
    named = f"--deepspeed_config {path}"
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise UserError(f"{named} 讀不懂：不是一般的檔案")
        with Path(path).open("rb") as stream:
            raw = stream.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UserError(f"{named} 讀不懂：超過 {LARGEST:,} 個位元組，不像設定檔")
        config = decode(raw.decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{named}：沒有這個檔案") from None
    except OSError as error:
        raise UserError(f"{named} 讀不懂：{error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{named} 讀不懂：不是 UTF-8（第 {error.start + 1} 個位元組）") from error
    except JsonError as error:
        raise UserError(f"{named} 讀不懂：{error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{named} 應該是一個 JSON 物件")
    if problems := deepspeed_keys.find_problems(config, named):
        raise UserError(sorted(problems))
    return deepspeed_keys.normalize(config)


def _shipped_file() -> Path:
    """Find the default configuration: beside this module in a wheel (setup.py), else beside the scripts."""
    packaged = Path(__file__).with_name(DEFAULT_DEEPSPEED_CONFIG)
    return packaged if packaged.exists() else Path(__file__).parents[2] / DEFAULT_DEEPSPEED_CONFIG


def precision_in(config: dict[str, Any]) -> str:
    """Return the precision that the file fixes: `bf16` or `fp16`; else `auto`."""
    for name in ("bf16", "fp16"):
        if config.get(name, {}).get("enabled") is True:
            return name
    return "auto"


def micro_batch_in(config: dict[str, Any], train_batch: int, world_size: int) -> int:
    """Return the micro batch size that the file fixes, directly or by its accumulation steps; else 0."""
    micro = config.get("train_micro_batch_size_per_gpu", "auto")
    steps = config.get("gradient_accumulation_steps", "auto")
    if micro != "auto":
        return micro if isinstance(micro, int) else 0
    if isinstance(steps, int) and steps > 0 and train_batch % (steps * world_size) == 0:
        return train_batch // (steps * world_size)
    return 0


def resolve(config: dict[str, Any], settings: Settings, hidden_size: int, where: str) -> dict[str, Any]:
    """Return the configuration for DeepSpeed: without "auto", and in agreement with the flags.

    Args:
        config: as `read` returned it.
        hidden_size: the model's; bucket sizes follow it as in transformers' integration, but a small model
            gets one bucket instead of fifty, since each costs a round of messages.
        where: the file's name, for messages.

    Raises:
        UserError: with all conflicts and every "auto" that no flag decides.
    """
    problems = deepspeed_keys.unsupported_settings(config, settings.world_size, settings.on_gpu, where)
    flags = _FlagCheck(settings, where, problems)
    resolved = {**config, **_batch(config, flags), **_precision(config, flags)}
    _check_optimizer(config, flags)
    # This project makes AdamW and the schedule itself, the same for every engine.
    for name in ("optimizer", "scheduler", "compile"):
        resolved.pop(name, None)
    resolved["zero_optimization"] = zero = _zero(config, hidden_size)
    if zero.get("stage", 0) == 0 and settings.precision != "fp32":  # the fp32 weights could not be read
        problems.append(
            f"{where} 的 zero_optimization.stage 是 0，不能配 {settings.precision}；請用 1 以上或 "
            "--precision fp32"
        )
    if config.get("activation_checkpointing"):  # only read by models that call DeepSpeed's own function
        instead = "要以時間換記憶體請加 --gradient_checkpointing"
        log(f"  {where} 的 activation_checkpointing 對這些模型沒有作用；{instead}")
    resolved.setdefault("zero_allow_untested_optimizer", True)
    resolved.setdefault("zero_force_ds_cpu_optimizer", False)  # offloading would compile DeepSpeedCPUAdam
    resolved.setdefault("steps_per_print", 1_000_000_000)  # this project prints its own progress
    problems += deepspeed_keys.unresolved_autos(resolved, where)
    if problems:
        raise UserError(problems)
    return resolved


@dataclass(frozen=True)
class _FlagCheck:
    """Comparison of the file's values with those of the flags.

    Args:
        settings: values of the flags.
        where: the file's name, for messages.
        problems: messages so far.
    """

    settings: Settings
    where: str
    problems: list[str]

    def compare(self, key: str, written: object, value: object, flag: str) -> None:
        """Add a problem where the file has another value than the flag."""
        if written == "auto" or written == value:
            return
        hint = f"，或把旗標改成 {flag} {written}" if re.fullmatch(r"--\w+", flag) else ""
        if key == "gradient_accumulation_steps" and isinstance(written, int):
            factors = self.settings.micro_batch, written, self.settings.world_size
            product = " × ".join(map(str, factors))
            hint = f"，或把旗標改成 --train_batch_size {math.prod(factors)}（{product}）"
        self.problems.append(
            f'{self.where} 的 {key} 是 {shown(written)}，{flag} 是 {value!r}；請在檔案裡寫 "auto"{hint}'
        )


def _batch(config: dict[str, Any], flags: _FlagCheck) -> dict[str, Any]:
    """Return the keys of the batch and of gradient clipping, as the flags decide them."""
    settings = flags.settings
    steps = settings.train_batch // (settings.micro_batch * settings.world_size)
    decided = {
        "train_batch_size": (settings.train_batch, "--train_batch_size"),
        "train_micro_batch_size_per_gpu": (settings.micro_batch, "--micro_batch_size"),
        "gradient_accumulation_steps": (steps, "--train_batch_size ÷（--micro_batch_size × rank 數）"),
        "gradient_clipping": (settings.max_grad_norm, "--max_grad_norm"),
    }
    for key, (value, flag) in decided.items():
        flags.compare(key, config.get(key, "auto"), value, flag)
    return {key: value for key, (value, _) in decided.items()}


def _precision(config: dict[str, Any], flags: _FlagCheck) -> dict[str, Any]:
    """Return the blocks `bf16` and `fp16`, enabled as --precision decides."""
    precision = flags.settings.precision
    blocks = {}
    for name in ("bf16", "fp16"):
        block, enabled = config.get(name, {}), precision == name
        flags.compare(f"{name}.enabled", block.get("enabled", "auto"), enabled, f"--precision（{precision}）")
        blocks[name] = {**block, "enabled": enabled}
    return blocks


def _zero(config: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    """Return the block `zero_optimization`; what is "auto" there follows from the size of the model."""
    from_hidden_size: dict[str, int | bool] = {
        "reduce_bucket_size": max(hidden_size * hidden_size, SMALLEST_BUCKET),
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage": 0,
    }
    zero = config.get("zero_optimization", {})
    return {
        key: from_hidden_size.get(key, value) if value == "auto" else value for key, value in zero.items()
    }


def _check_optimizer(config: dict[str, Any], flags: _FlagCheck) -> None:
    """Add a problem for each value of an optimizer or scheduler block that differs from the flags."""
    settings, where, problems = flags.settings, flags.where, flags.problems
    expected: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "optimizer": (
            ("AdamW", "Adam", "auto"),
            {
                "lr": settings.learning_rate, "weight_decay": settings.weight_decay,
                "betas": [0.9, 0.999], "eps": 1e-8,
            },
        ),
        "scheduler": (
            ("WarmupDecayLR", "auto"),
            {
                "warmup_min_lr": 0, "warmup_max_lr": settings.learning_rate, "warmup_type": "linear",
                "warmup_num_steps": settings.warmup_steps, "total_num_steps": settings.total_steps,
            },
        ),
    }  # fmt: skip
    for name, (types, values) in expected.items():
        block = config.get(name)
        if not block:
            continue
        parameters = block.get("params") or {}
        if name == "scheduler" and set(map(str, parameters.values())) == {"auto"}:
            if block.get("type") not in types:
                log(f"  {where} 的 scheduler 全是 auto：學習率照旗標，先暖身，再線性降到 0")
            continue
        if block.get("type") not in types:
            problems.append(
                f"{where} 的 {name}.type 是 {shown(block.get('type'))}，這裡用 {types[0]}；"
                f"請改掉或刪掉整個 {name}"
            )
        for key, written in parameters.items():
            if key in values:
                flags.compare(f"{name}.params.{key}", written, values[key], "旗標")
            elif key not in ("torch_adam", "adam_w_mode"):
                problems.append(f"{where} 的 {name}.params.{key} 不會被用到；請刪掉")


def check_accepted(resolved: dict[str, Any]) -> None:
    """Let DeepSpeed read the configuration, before a model is loaded.

    Raises:
        UserError: DeepSpeed's own configuration classes refuse it.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    config = copy.deepcopy(resolved)
    config.pop("train_batch_size", None)  # would be compared with the number of ranks, which is not set yet
    try:
        DeepSpeedConfig(config)
    except ValidationError as error:
        raise UserError(not_accepted(error)) from error
    except Exception as error:  # assertions, and errors without a common class
        raise UserError(f"--deepspeed_config：DeepSpeed 不接受：{first_line(error)}") from error


def not_accepted(error: ValidationError) -> list[str]:
    """Return a message for each key that pydantic refused."""
    block = error.title.removeprefix("DeepSpeed").removesuffix("Config")
    return [
        f"--deepspeed_config：DeepSpeed 不接受 {block} 的 {'.'.join(map(str, one['loc']))}：{one['msg']}"
        for one in error.errors()
    ]


def compare_built(engine: Any, resolved: dict[str, Any]) -> None:
    """Compare the settings of DeepSpeed's engine with the configuration it was made from.

    Raises:
        RunError: with each value that differs.
    """
    zero = resolved["zero_optimization"]
    pairs = {
        "train_batch_size": (engine.train_batch_size(), resolved["train_batch_size"]),
        "train_micro_batch_size_per_gpu": (
            engine.train_micro_batch_size_per_gpu(), resolved["train_micro_batch_size_per_gpu"],
        ),
        "gradient_accumulation_steps": (
            engine.gradient_accumulation_steps(), resolved["gradient_accumulation_steps"],
        ),
        "gradient_clipping": (engine.gradient_clipping(), resolved["gradient_clipping"]),
        "bf16": (engine.bfloat16_enabled(), resolved["bf16"]["enabled"]),
        "fp16": (engine.fp16_enabled(), resolved["fp16"]["enabled"]),
        "zero stage": (engine.zero_optimization_stage(), zero.get("stage", 0)),
    }  # fmt: skip
    differing = [
        f"{name}：引擎 {actual!r}，設定 {wanted!r}"
        for name, (actual, wanted) in pairs.items()
        if actual != wanted
    ]
    if differing:
        raise RunError("DeepSpeed 引擎與設定不合：" + "；".join(differing))
