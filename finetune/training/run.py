"""One training run: its flags, ranks, hardware, data and model, made once and passed as one argument."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from finetune.cli.train_args import TrainArgs
from finetune.data.splits import Splits
from finetune.models import layer_schedule, run_card
from finetune.models.encoder_decoder import mode_of
from finetune.models.forward import attention_leaks_across_documents
from finetune.models.generation import eos_ids
from finetune.models.kv_cache import decode_mode
from finetune.models.layer_groups import LayerGroups
from finetune.models.layer_schedule import LayerSchedule
from finetune.models.lora import Lora
from finetune.models.run_card import RunCard, hash_texts, versions
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts
from finetune.runtime.console import log
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError
from finetune.runtime.signals import StopRequest
from finetune.training import deepspeed_config
from finetune.training.datamodule import DataModule
from finetune.training.hardware import Hardware
from finetune.training.trackers import Tracker

# Flags that a checkpoint is bound to as they are; the others are in `Run.identity` by what they decide.
BOUND_FLAGS = ("train_batch_size", "learning_rate", "weight_decay", "max_grad_norm", "warmup_ratio", "seed")


@dataclass
class ModelInfo:
    """Facts about the loaded model.

    Args:
        config: its transformers configuration.
        num_parameters: parameters of the whole model.
        new_head: its head was put on here and was randomly initialised.
        end_ids: for a causal model: tokens that end a reply.
        adapter: peft's view of the model, where it has an adapter.
        schedule: which layers are trained, from which step.
        num_trainable: parameters that are trained, those of adapters included.
    """

    config: PreTrainedConfig
    num_parameters: int
    new_head: bool
    end_ids: set[int] = field(default_factory=set)
    adapter: Any = None
    schedule: LayerSchedule | None = None
    num_trainable: int = 0


@dataclass
class Run:
    """Everything one training run consists of.

    Args:
        args: values of all flags.
        checkpoint: the checkpoint to resume from; None starts anew.
        model: known once the model is loaded, see `attach_model`.
    """

    args: TrainArgs
    world: Distributed
    hardware: Hardware
    data: DataModule
    splits: Splits
    stop: StopRequest
    tracker: Tracker
    checkpoint: Path | None = None
    model: ModelInfo | None = None

    def output_path(self, name: str = "") -> Path:
        """Return where a curve, log or report goes: beside the model folder."""
        return output_path(self.args, name)

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, once the data module has filled it in."""
        assert self.args.learning_rate is not None
        return self.args.learning_rate

    @property
    def lora(self) -> Lora | None:
        """Settings of the adapter; None when all weights are trained."""
        args = self.args
        if not args.lora_rank:
            return None
        alpha = args.lora_alpha or 2 * args.lora_rank
        return Lora(args.lora_rank, alpha, args.lora_dropout, args.lora_target_modules)

    @property
    def loaded(self) -> ModelInfo:
        """The model's facts, once it is loaded."""
        assert self.model is not None, "no model is loaded yet"
        return self.model

    @cached_property
    def parent_stages(self) -> list[dict[str, Any]]:
        """Stages that led to the base model; its weights are hashed once."""
        args = self.args
        name = "demo" if args.demo else str(args.model_name_or_path)
        return run_card.ancestors(name, self.data.base_card, args.from_scratch)

    def attach_model(self, model) -> None:
        """Note what only the loaded model knows: its true size, and what ends a reply.

        Raises:
            UserError: attention that cannot keep packed documents apart; a model that is to write and does
                not read from left to right.
        """
        data, end_ids = self.data, set()
        if data.packed and attention_leaks_across_documents(model):
            name = self.args.model_name_or_path
            raise UserError(f"--model_name_or_path {name}：注意力的實作會忽略遮罩，一列裡隔不開兩篇文字")
        if data.kind == "causal":
            if not getattr(model, "is_loaded_in_4bit", False):  # see lora._never_repack
                decode_mode(model)
            chat = data.prompts.chat if isinstance(data.prompts, CausalExamPrompts) else None
            end_ids = eos_ids(model, data.tokenizer) | {chat.end if chat else data.tokenizer.eos_token_id}
        if data.kind == "seq2seq" and not getattr(model, "is_loaded_in_4bit", False):
            mode_of(model)
        self.model = ModelInfo(model.config, model.num_parameters(), bool(model.new_weights), end_ids)

    def freeze_layers(self, model) -> LayerSchedule:
        """Freeze what --freeze and --train_only say, and log which layers are trained.

        Call it after adapters were put in.
        """
        args, info, groups = self.args, self.loaded, LayerGroups(model)
        schedule = layer_schedule.build_schedule(
            args.freeze, args.train_only, args.unfreeze_every, args.layer_lr_decay, groups
        )
        layer_schedule.freeze(model, groups, schedule)
        info.schedule, info.num_trainable = schedule, sum(groups.trainable().values())
        if schedule.describe():
            for line in layer_schedule.table(groups, schedule):
                log("  " + line)
        if schedule.frozen and args.from_scratch:
            log("  ⚠️ 底模是隨機初始化的，凍結的部分會一直是隨機的權重")
        elif info.new_head and "head" in schedule.frozen:
            log("  ⚠️ 輸出層是新加的（隨機初始化），凍結它就學不到東西；請讓 head 也參與訓練")
        if schedule.last_unfreeze_step >= self.data.total_steps:
            log(
                f"  ⚠️ 總共只有 {self.data.total_steps} 步，最下面的層要 "
                f"{schedule.last_unfreeze_step} 步後才開始訓練；可調小 --unfreeze_every，或增加 --num_epochs"
            )
        return schedule

    def identity(self, engine: str, precision: str) -> dict[str, object]:
        """Return what a checkpoint of this run is bound to: a run that resumes it must say the same.

        Collective. The keys and texts are part of the checkpoint's format.
        """
        args, data, info = self.args, self.data, self.loaded
        assert info.schedule is not None
        return {
            "engine": engine,
            "precision": precision,
            "model": hash_texts([info.config.to_json_string(), str(len(data.tokenizer))]),
            "objective": data.train.name,
            "questions": hash_texts(f"{row}" for row in data.train.rows),
            "max_length": data.max_length,
            "total_steps": data.total_steps,
            "lora": str(self.lora or ""),
            "layers": info.schedule.describe(),
            **data.task.identity(args, info.config),
            "base": self.world.broadcast(self.parent_stages[-1]["sha256"] if self.world.is_main else ""),
            "load_in_4bit": args.load_in_4bit,
            **{name: getattr(args, name) for name in BOUND_FLAGS},
        }

    def run_card(self, step: int, weights: str = "") -> RunCard:
        """Return the card of the model saved after `step` steps.

        Args:
            weights: hash of them, see `run_card.weights_hash`.
        """
        args, data, info, lora = self.args, self.data, self.loaded, self.lora
        stage = {
            "stage": args.task, "dataset": data.dataset, "steps": step, "seed": args.seed,
            "lora": vars(lora) if lora else None, "sha256": weights,
        }  # fmt: skip
        card = RunCard(
            task=args.task,
            objective=args.objective if args.task == "exam" else "",
            scoring=data.scoring,
            max_length=data.max_length,
            chat="" if data.kind != "causal" else args.template if data.prompts else "none",
            base_model="demo" if args.demo else str(args.model_name_or_path),
            dataset=data.dataset,
            pool=data.pool,
            step=step,
            parameters={"all": info.num_parameters, "trained": info.num_trainable},
            flags=vars(args),
            fingerprints=sorted(data.fitted),
            sketches={name: text for name, text in data.fitted.items() if text},
            lineage=[*self.parent_stages, stage],
            versions=versions(),
        )
        if isinstance(data.prompts, ExamPrompts):
            card.template = data.prompts.template
        return card

    def deepspeed_config(self) -> dict[str, Any]:
        """Return what DeepSpeed gets of --deepspeed_config; {} where another engine trains.

        Raises:
            UserError: it contradicts a flag, cannot be done here, or DeepSpeed does not take it.
        """
        args, hardware, data = self.args, self.hardware, self.data
        if hardware.engine != "deepspeed":
            return {}
        settings = deepspeed_config.Settings(
            args.train_batch_size, hardware.micro_batch, self.world.size, args.max_grad_norm,
            hardware.precision, self.learning_rate, args.weight_decay, data.warmup_steps, data.total_steps,
            self.world.device.type == "cuda",
        )  # fmt: skip
        name = Path(args.deepspeed_config).name
        resolved = deepspeed_config.resolve(hardware.ds_config, settings, data.config.hidden_size, name)
        deepspeed_config.check_accepted(resolved)
        return resolved


def output_path(args: TrainArgs, name: str = "") -> Path:
    """Return where a curve, log or report goes: beside the model folder."""
    return Path(os.path.realpath(args.output_dir)).parent / name
