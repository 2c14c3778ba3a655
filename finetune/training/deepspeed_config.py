"""ds_config.json: every "auto" filled from the flags in one place, conflicts and unknown keys named."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.cli.train_args import SHIPPED
from finetune.runtime.console import first_line, log
from finetune.runtime.errors import RunError, UserError, shown
from finetune.runtime.strict_json import JsonError, decode
from finetune.training import deepspeed_keys

LARGEST = 1 << 20  # bytes
SMALLEST_BUCKET = 1 << 22  # elements; 16 MB in fp32


@dataclass(frozen=True)
class Settings:
    """The flags as DeepSpeed counts them; micro batch and precision as chosen, see training/hardware.py."""

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


def read(path: str | Path) -> dict:
    """The file as it is.

    Raises:
        UserError: it cannot be read, is no object, or what it says can be wrong whatever the flags say.
    """
    if str(path) == SHIPPED and not Path(path).exists():  # another folder: the one beside the scripts
        path = Path(__file__).parents[2] / SHIPPED
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
    if found := deepspeed_keys.problems(config, named):
        raise UserError(sorted(found))
    return deepspeed_keys.tidied(config)


def precision_in(config: dict) -> str:
    """`bf16`, `fp16` or `auto`: what the file fixes."""
    for name in ("bf16", "fp16"):
        if config.get(name, {}).get("enabled") is True:
            return name
    return "auto"


def micro_batch_in(config: dict, train_batch: int, world_size: int) -> int:
    """Sequences a forward pass that the file fixes, directly or by its accumulation steps; else 0."""
    micro = config.get("train_micro_batch_size_per_gpu", "auto")
    steps = config.get("gradient_accumulation_steps", "auto")
    if micro != "auto":
        return micro if isinstance(micro, int) else 0
    if isinstance(steps, int) and steps > 0 and train_batch % (steps * world_size) == 0:
        return train_batch // (steps * world_size)
    return 0


def resolve(config: dict, settings: Settings, hidden_size: int, where: str) -> dict:
    """The configuration DeepSpeed gets: no "auto" left, and nothing in it that contradicts a flag.

    Args:
        config: as `read` returned it.
        hidden_size: of the model; bucket sizes follow it as in transformers' integration, but a small model
            gets one bucket rather than fifty: each costs a round of messages.
        where: the file's name, for messages.

    Raises:
        UserError: all conflicts and all "auto" that no flag decides.
    """
    steps = settings.train_batch // (settings.micro_batch * settings.world_size)
    decided = {
        "train_batch_size": (settings.train_batch, "--train_batch_size"),
        "train_micro_batch_size_per_gpu": (settings.micro_batch, "--micro_batch_size"),
        "gradient_accumulation_steps": (steps, "--train_batch_size ÷（--micro_batch_size × 行程數）"),
        "gradient_clipping": (settings.max_grad_norm, "--max_grad_norm"),
    }
    problems = deepspeed_keys.impossible(config, settings.world_size, settings.on_gpu, where)

    def agree(key: str, seen: object, value: object, flag: str) -> None:
        if seen == "auto" or seen == value:
            return
        way = f"，或把旗標改成 {flag} {seen}" if re.fullmatch(r"--\w+", flag) else ""
        if key == "gradient_accumulation_steps" and isinstance(seen, int):
            factors = settings.micro_batch, seen, settings.world_size
            product = " × ".join(map(str, factors))
            way = f"，或把旗標改成 --train_batch_size {math.prod(factors)}（{product}）"
        problems.append(f'{where} 的 {key} 是 {shown(seen)}，{flag} 是 {value!r}；請在檔案裡寫 "auto"{way}')

    resolved = dict(config)
    for key, (value, flag) in decided.items():
        agree(key, config.get(key, "auto"), value, flag)
        resolved[key] = value
    for name in ("bf16", "fp16"):
        block = dict(config.get(name, {}))
        agree(
            f"{name}.enabled",
            block.get("enabled", "auto"),
            settings.precision == name,
            f"--precision（{settings.precision}）",
        )
        resolved[name] = {**block, "enabled": settings.precision == name}
    _check_optimizer(config, settings, agree, problems, where)
    # The script builds AdamW and the schedule itself, the same for every engine.
    for name in ("optimizer", "scheduler", "compile"):
        resolved.pop(name, None)
    zero = dict(config.get("zero_optimization", {}))
    by_size = {
        "reduce_bucket_size": max(hidden_size * hidden_size, SMALLEST_BUCKET),
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage": 0,
    }
    for key, value in by_size.items():
        if zero.get(key) == "auto":
            zero[key] = value
    resolved["zero_optimization"] = zero
    if zero.get("stage", 0) == 0 and settings.precision != "fp32":  # its fp32 weights cannot be had
        problems.append(
            f"{where} 的 zero_optimization.stage 是 0，不能配 {settings.precision}；請用 1 以上或 "
            "--precision fp32"
        )
    if config.get("activation_checkpointing"):  # read by models that call DeepSpeed's own function for it
        instead = "要以時間換記憶體請加 --gradient_checkpointing"
        log(f"  {where} 的 activation_checkpointing 對這些模型沒有作用；{instead}")
    resolved.setdefault("zero_allow_untested_optimizer", True)
    resolved.setdefault("zero_force_ds_cpu_optimizer", False)  # offloading would compile DeepSpeedCPUAdam
    resolved.setdefault("steps_per_print", 1_000_000_000)  # this project prints its own progress
    problems += deepspeed_keys.undecided(resolved, where)
    if problems:
        raise UserError(problems)
    return resolved


def _check_optimizer(config: dict, settings: Settings, agree, problems: list[str], where: str) -> None:
    """An optimizer or scheduler block may stand in the file as long as it says what the flags say."""
    expected = {
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
    for name, (kinds, values) in expected.items():
        block = config.get(name)
        if not block:
            continue
        decided = (block.get("params") or {}).values()
        if name == "scheduler" and set(map(str, decided)) == {"auto"}:
            if block.get("type") not in kinds:
                log(f"  {where} 的 scheduler 全是 auto：學習率照旗標，先暖身，再線性降到 0")
            continue
        if block.get("type") not in kinds:
            problems.append(
                f"{where} 的 {name}.type 是 {shown(block.get('type'))}，這裡用 {kinds[0]}；"
                f"請改掉或刪掉整個 {name}"
            )
        for key, seen in (block.get("params") or {}).items():
            if key in values:
                agree(f"{name}.params.{key}", seen, values[key], "旗標")
            elif key not in ("torch_adam", "adam_w_mode"):
                problems.append(f"{where} 的 {name}.params.{key} 不會被用到；請刪掉")


def of_run(flags, world, machine, lesson) -> dict:
    """What DeepSpeed gets of --deepspeed_config in this run; {} where another engine trains.

    Raises:
        UserError: it contradicts a flag, cannot be done here, or DeepSpeed does not take it.
    """
    if machine.engine != "deepspeed":
        return {}
    settings = Settings(
        flags.train_batch_size, machine.micro_batch, world.size, flags.max_grad_norm, machine.precision,
        flags.learning_rate, flags.weight_decay, lesson.warmup_steps, lesson.total_steps,
        world.device.type == "cuda",
    )  # fmt: skip
    where = Path(flags.deepspeed_config).name
    resolved = resolve(machine.ds_config, settings, lesson.config.hidden_size, where)
    check_accepted(resolved)
    return resolved


def check_accepted(resolved: dict) -> None:
    """Has DeepSpeed read the configuration, before a model is loaded.

    Raises:
        UserError: what its own configuration models do not take.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    asked = copy.deepcopy(resolved)
    asked.pop("train_batch_size", None)  # it is held against a number of ranks that is not known yet
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        raise UserError(not_accepted(error)) from error
    except Exception as error:  # assertions, and errors of its own that have no common class
        raise UserError(f"--deepspeed_config：DeepSpeed 不接受：{first_line(error)}") from error


def not_accepted(error) -> list[str]:
    """What pydantic found wrong, by key."""
    block = error.title.removeprefix("DeepSpeed").removesuffix("Config")
    return [
        f"--deepspeed_config：DeepSpeed 不接受 {block} 的 {'.'.join(map(str, one['loc']))}：{one['msg']}"
        for one in error.errors()
    ]


def compare_built(engine, resolved: dict) -> None:
    """Compares what the built engine believes with what it was given.

    Raises:
        RunError: naming each value that differs.
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
    wrong = [
        f"{name}：引擎 {seen!r}，設定 {given!r}" for name, (seen, given) in pairs.items() if seen != given
    ]
    if wrong:
        raise RunError("DeepSpeed 引擎與設定不合：" + "；".join(wrong))
