"""A lesson: which rows are taught and which check them, how they are written out, in how many steps."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from finetune.data.splits import Splits
from finetune.demo import builtin
from finetune.models import layer_schedule, run_card
from finetune.models.forward import attention_leaks_across_documents
from finetune.models.generation import eos_ids
from finetune.models.kv_cache import manner_of
from finetune.models.layer_schedule import LayerGroups, LayerSchedule
from finetune.models.loading import load_config
from finetune.models.lora import Lora
from finetune.models.run_card import SKETCHED, RunCard, hash_texts, question_fingerprints, versions
from finetune.models.tokenizer import load_tokenizer, prompt_length
from finetune.objectives.batching import (
    Batch,
    EpochPlan,
    collate,
    plan_epoch,
    split_by_tokens,
    split_micro_batches,
)
from finetune.objectives.loss import correct, loss_stats, token_losses
from finetune.objectives.preview import KINDS, as_seen, tell_of_lengths
from finetune.runtime.console import log
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError
from finetune.training import learning_rate
from finetune.training.hardware import Hardware, resolve_auto_precision
from finetune.training.tasks import TASKS, TaskContext

ExampleKey = tuple[str, int]  # kind and row of an example, see Objective.epoch


@dataclass(frozen=True)
class LossStats:
    """loss: mean in nats. accuracy: share of the targets that the logits say. num_targets: how many
    examples or tokens.
    """

    loss: float
    accuracy: float
    num_targets: int


@dataclass
class DataModule:
    """What is taught, to which model, in how many steps."""

    flags: object
    config: object  # of the model
    tokenizer: object
    prompts: object  # ExamPrompts, AskingPrompts, or None for texts
    max_length: int  # of a row, in tokens
    train: object  # an objective, as `tasks` makes them
    validation: object  # the validation rows, with the same masks and orders every time
    held_out: object  # the rows kept back
    source: object  # of the rows: Exam, Corpus, Course or Catalogue
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    # what this run, or one that taught the base, fitted on: by fingerprint its sketch, "" where there is none
    fitted: dict[str, str]
    pool: str  # "all" when this run or one before it fitted on official test rows
    base_card: RunCard | None  # of the base, if it was taught here
    adapter: object = None  # peft's view of the model, once it has an adapter
    ends: set[int] = field(default_factory=set)  # of a causal model: tokens that end what it says
    parameters: int = 0  # of the model
    trained: int = 0  # of its parameters, with adapters
    new_head: bool = False  # put on here, and random before it was taught
    learning: LayerSchedule | None = None  # which layers learn, once there is a model

    @property
    def task(self):
        return TASKS[self.flags.task]

    @property
    def scoring(self) -> str:
        """How the model is asked once it is taught."""
        return self.task.scoring(self.flags)

    @property
    def by_token(self) -> bool:
        """Losses are means over tokens, so that they have a perplexity; else over examples."""
        return self.task.by_token

    @property
    def kind(self) -> str:
        """Of the model, one of `kinds.CLASSES`."""
        return self.task.kind(self.flags)

    @property
    def dataset(self) -> str:
        """Where the rows came from."""
        return self.source.origin

    @property
    def packed(self) -> bool:
        return getattr(self.train, "packed", False)

    @property
    def lora(self) -> Lora | None:
        """None when all weights are trained."""
        flags = self.flags
        if not flags.lora_rank:
            return None
        alpha = flags.lora_alpha or 2 * flags.lora_rank
        return Lora(flags.lora_rank, alpha, flags.lora_dropout, flags.lora_target_modules)

    @cached_property
    def parent_stages(self) -> list[dict]:
        """The stages that led to the base; the base's weights are hashed once."""
        name, scratch = str(self.flags.model_name_or_path), self.flags.from_scratch
        return run_card.ancestors("demo" if self.flags.demo else name, self.base_card, scratch)

    def run_identity(self, engine: str, precision: str, world: Distributed) -> dict[str, object]:
        """What a checkpoint of this lesson is bound to: who goes on from it must say the same. Collective."""
        flags = self.flags
        same = ("train_batch_size", "learning_rate", "weight_decay", "max_grad_norm", "warmup_ratio", "seed")
        return {
            "engine": engine,
            "precision": precision,
            "model": hash_texts([self.config.to_json_string(), str(len(self.tokenizer))]),
            "objective": self.train.name,
            "questions": hash_texts(f"{row}" for row in self.train.rows),
            "max_length": self.max_length,
            "total_steps": self.total_steps,
            "lora": str(self.lora or ""),
            "layers": self.learning.describe(),
            **self.task.identity(flags, self.config),
            "base": world.broadcast(self.parent_stages[-1]["sha256"] if world.is_main else ""),
            "load_in_4bit": flags.load_in_4bit,
            **{name: getattr(flags, name) for name in same},
        }

    def attach_model(self, model) -> None:
        """Takes from the loaded model what only it knows: its true size, and what ends a reply.

        Raises:
            UserError: attention that cannot keep packed documents apart; a model that is to write and does
                not read from left to right.
        """
        self.config, self.parameters = model.config, model.num_parameters()
        self.new_head = bool(model.new_weights)
        if self.packed and attention_leaks_across_documents(model):
            name = self.flags.model_name_or_path
            raise UserError(f"--model_name_or_path {name}：注意力的實作不理會遮罩，一列裡隔不開兩篇文字")
        if self.kind == "causal":
            if not getattr(model, "is_loaded_in_4bit", False):  # see adapters._never_repack
                manner_of(model)
            taught = {self.prompts.chat.end} if self.prompts else {self.tokenizer.eos_token_id}
            self.ends = eos_ids(model, self.tokenizer) | taught

    def plan(self, epoch: int, batch_size: int, seed: int) -> EpochPlan:
        """The global batches of an epoch, as examples to be made: a pure function of the epoch."""
        entries = self.train.epoch(epoch)
        lengths = array("I", map(self.length_of, entries))
        return EpochPlan(entries, plan_epoch(lengths, batch_size, seed, epoch))

    def micro_batches(
        self, batch: list[ExampleKey], epoch: int, world: Distributed, machine: Hardware
    ) -> list[Batch]:
        """This rank's share of a global batch, a forward pass each."""
        if machine.by_rows:
            parts = split_micro_batches(batch, world.rank, world.size, machine.accumulation)
        else:
            parts = split_by_tokens(batch, self.length_of, world.rank, world.size, machine.tokens)
        return [self.collate(self.train, part, epoch) for part in parts]

    def length_of(self, entry: ExampleKey) -> int:
        """Tokens that a taught example takes in a batch."""
        return self.train.lengths[entry[1]]

    def collate(self, objective, entries: Sequence[ExampleKey | None], epoch: int) -> Batch:
        """Makes the examples and pads them together; None keeps ranks in step."""
        made = [None if entry is None else objective.example(*entry, epoch) for entry in entries]
        return collate(made, self.tokenizer.pad_token_id)

    def freeze_layers(self, model) -> LayerSchedule:
        """Freezes what --freeze and --train_only say, and tells what learns. After adapters were put in."""
        flags, parts = self.flags, LayerGroups(model)
        chosen = flags.freeze, flags.train_only, flags.unfreeze_every, flags.layer_lr_decay
        self.learning = layer_schedule.build_schedule(*chosen, parts)
        layer_schedule.apply(model, parts, self.learning)
        self.trained = sum(parts.trainable().values())
        if self.learning.describe():
            for line in layer_schedule.table(parts, self.learning):
                log("  " + line)
        if self.learning.frozen and flags.from_scratch:
            log("  ⚠️ 底模是亂數權重，凍結的部分會一直是亂數")
        elif self.new_head and "head" in self.learning.frozen:
            log("  ⚠️ 輸出層是新裝的（亂數），凍結它就學不到東西；請讓 head 也學")
        last = self.learning.last_opening
        if last >= self.total_steps:
            log(
                f"  ⚠️ 總共只有 {self.total_steps} 步，最下面的層要 {last} 步後才開始學；"
                "可調小 --unfreeze_every，或增加 --num_epochs"
            )
        return self.learning

    def held_out_prompts(self, count: int) -> list[tuple[int, ...]]:
        """Token ids of some rows that were not taught (of taught ones where none was kept out)."""
        objective = next((found for found in (self.validation, self.held_out) if found.lengths), self.train)
        return [objective.example(*entry, 0).ids for entry in objective.epoch(0)[:count]]

    @torch.no_grad()
    def evaluate_loss(
        self, objective, forward: Callable[..., Tensor], world: Distributed, tokens: int
    ) -> LossStats:
        """The loss on all rows of an objective, always of the same examples; the ranks share the work.

        Args:
            forward: see models/forward.py; an engine's, say.
            tokens: of one forward pass, with padding; its rows are of like length.
        """
        batches = split_by_tokens(objective.epoch(0), lambda entry: objective.lengths[entry[1]], 0, 1, tokens)
        sums = torch.zeros(4, dtype=torch.float64)
        for number, counts in world.rank_indices(len(batches)):
            batch = self.collate(objective, batches[number], epoch=0).to(world.device)
            logits = forward(*batch.inputs)
            sums[:3] += loss_stats(token_losses(logits, batch), batch) * counts
            sums[3] += float((correct(logits, batch) * batch.weights).sum()) * counts
        num_targets, loss, _, right = world.sum(sums).tolist()
        return (
            LossStats(loss / num_targets, right / num_targets, int(num_targets))
            if num_targets
            else LossStats(math.nan, math.nan, 0)
        )

    def run_card(self, step: int, weights: str = "") -> RunCard:
        """What the model saved after `step` steps will say of itself.

        Args:
            weights: hash of them, see models/lineage.py.
        """
        flags, lora = self.flags, self.lora
        stage = {
            "stage": flags.task, "dataset": self.dataset, "steps": step, "seed": flags.seed,
            "lora": vars(lora) if lora else None, "sha256": weights,
        }  # fmt: skip
        more = {"template": self.prompts.template} if self.prompts else {}
        return RunCard(
            task=flags.task,
            objective=flags.objective if flags.task == "exam" else "",
            scoring=self.scoring,
            max_length=self.max_length,
            chat="" if self.kind != "causal" else flags.template if self.prompts else "none",
            base_model="demo" if flags.demo else str(flags.model_name_or_path),
            dataset=self.dataset,
            pool=self.pool,
            step=step,
            parameters={"all": self.parameters, "trained": self.trained},
            flags=vars(flags),
            fingerprints=sorted(self.fitted),
            sketches={name: text for name, text in self.fitted.items() if text},
            lineage=[*self.parent_stages, stage],
            versions=versions(),
            **more,
        )


def load_data(flags, world: Distributed, source):
    """Rows → fit / validation / held back / official test.

    Args:
        source: what `checks.check` has read already (local data), or None.

    Returns:
        the source (an Exam, a Corpus or a Course), and its Pools.
    """
    task = TASKS[flags.task]
    if flags.demo:
        source = builtin.corpus() if flags.task == "mlm" else builtin.exam()
        flags.model_name_or_path = str(world.main_process_first(lambda: builtin.base_model(flags.save_dir)))
        flags.from_scratch = True
    elif source is None:
        source = world.main_process_first(lambda: task.read(flags))
    return source, task.split(source, flags)


def setup_data(flags, world: Distributed, machine: Hardware, source, pools: Splits) -> DataModule:
    """Tokenizer, prompts and objective; how many steps; a few examples as the model sees them."""
    name, flag, task = flags.model_name_or_path, "--model_name_or_path", TASKS[flags.task]
    kind = task.kind(flags)
    config = world.main_process_first(lambda: load_config(name, flag, kind))
    if flags.learning_rate is None:
        flags.learning_rate = learning_rate.of_random_weights(config)
        log(f"  亂數權重，學習率用 {flags.learning_rate:g}（--learning_rate 可另外指定）")
    task.align_labels(config, source, pools)
    task.configure_model(config, source)
    resolve_auto_precision(machine, world, config.get_text_config().hidden_size)
    tokenizer = world.main_process_first(lambda: load_tokenizer(name, flag, kind))
    max_length = prompt_length(config, tokenizer, flags.max_length)
    prompts = task.prompts(flags, tokenizer, max_length)
    statements = getattr(source, "statements", ())
    parts = {
        "訓練": [*pools.fit, *statements] if statements else pools.fit,
        "驗證": pools.validation,
        "保留": pools.held_out if task.by_token else [],
    }
    desk = TaskContext(flags, config, tokenizer, prompts, max_length)
    made = {what: task.objective(desk, rows, checking=what != "訓練") for what, rows in parts.items()}
    if max_length < flags.max_length:
        log(f"  這個模型最多讀 {max_length} 個 token：--max_length {flags.max_length} 改為 {max_length}")
    for what, objective in made.items():
        tell_of_lengths(what, objective)
    teach = made["訓練"]
    if not getattr(teach, "packed", True) and flags.task == "cpt":
        log(f"  {config.model_type} 模型沒辦法在一列裡隔開好幾篇文字：一列一篇")
    if not teach.rows or not teach.lengths:
        limit = f"（上限 {max_length} 個 token）"
        row = "題" if flags.task == "exam" else "列"
        way_out = "請加長，或換上下文更長的模型"
        raise UserError(f"--max_length {flags.max_length}：沒有一{row}放得下{limit}，{way_out}")
    for kind, row in teach.epoch(0)[: flags.show_examples]:
        log(f"  例（{KINDS.get(kind, kind)}）{as_seen(tokenizer, teach.example(kind, row, 0))}")
    steps = math.ceil(len(teach.epoch(0)) / flags.train_batch_size)
    total = flags.max_steps or flags.num_epochs * steps
    once = f"一次 {machine.micro_batch} 例 × {machine.accumulation} 次 × {world.size} 個行程"
    if not machine.by_rows:
        once = f"{world.size} 個行程，一次最多 {machine.tokens:,} 個 token"
    log(f"每輪 {steps} 步，最多 {total} 步；每步 {flags.train_batch_size} 例 = {once}")
    former = RunCard.read(name)  # taught here before: what the base was fitted on, this model was too
    fitted = question_fingerprints(teach.rows)
    if len(fitted) > SKETCHED:
        log(f"  題目超過 {SKETCHED:,} 題：run_card.json 只記每題的指紋，日後認得出同一題，認不出相近的題")
    pool = flags.pool
    if former is not None:
        if former.fingerprints:
            log(f"  底模先前教過 {len(former.fingerprints)} 題（見它的 run_card.json），一併記入")
        before = {**dict.fromkeys(former.fingerprints, ""), **former.sketches}
        fitted = {**before, **{name: text or before.get(name, "") for name, text in fitted.items()}}
        pool = "all" if former.pool == "all" else pool
    warmup = min(
        math.ceil(flags.warmup_ratio * total), total - 1
    )  # the first step of a warm-up changes nothing
    return DataModule(
        flags, config, tokenizer, prompts, max_length, teach, made["驗證"], made["保留"], source,
        steps, total, warmup, fitted, pool, former,
    )  # fmt: skip
