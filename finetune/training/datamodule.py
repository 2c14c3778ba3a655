"""Data of one training run: objectives for train, validation and held-out rows, batches, step counts."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finetune.cli.train_args import TrainArgs
from finetune.data.splits import Splits
from finetune.demo import builtin
from finetune.models.loading import load_config
from finetune.models.run_card import SKETCHED, RunCard, question_fingerprints
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
from finetune.objectives.objective import ExampleKey, Objective, RecordedObjective
from finetune.objectives.preview import KINDS, format_example, log_row_lengths
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts
from finetune.runtime.console import log
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError
from finetune.training import learning_rate
from finetune.training.hardware import Hardware, resolve_auto_precision
from finetune.training.task import Task, TaskContext
from finetune.training.tasks import TASKS, Source

TITLES = {"train": "訓練", "validation": "驗證", "held_out": "保留"}  # of the objectives, in the log


@dataclass(frozen=True)
class LossStats:
    """Loss of an objective on its rows.

    Args:
        loss: mean in nats.
        accuracy: share of the targets that have the highest logit.
        num_targets: examples or tokens that the mean is over.
    """

    loss: float
    accuracy: float
    num_targets: int


@dataclass
class DataModule:
    """Rows of a run as objectives, with how they are written out and in how many steps they are trained on.

    Args:
        config: the model's configuration, known before it is loaded.
        prompts: writes questions and messages as token ids; None for texts and labels.
        max_length: longest row, in tokens.
        validation: objective of the validation rows, with the same masks and orders every time.
        held_out: objective of rows that neither train nor choose the best step.
        source: the dataset that the rows come from.
        warmup_steps: optimizer steps.
        fitted: fingerprint of every question that this run, or one that trained the base, fits on -> its
            sketch, "" where there is none.
        pool: "all" when this run or one before it fits on official test rows.
        base_card: run card of the base; None if it was not trained here.
    """

    args: TrainArgs
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: ExamPrompts | CausalExamPrompts | None
    max_length: int
    train: Objective
    validation: Objective
    held_out: Objective
    source: Source
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    fitted: dict[str, str]
    pool: str
    base_card: RunCard | None

    @property
    def task(self) -> Task:
        """The task of the run."""
        return TASKS[self.args.task]

    @property
    def scoring(self) -> str:
        """Method by which the trained model is scored."""
        return self.task.scoring(self.args)

    @property
    def by_token(self) -> bool:
        """True when losses are means over tokens, so that they have a perplexity; else over examples."""
        return self.task.by_token

    @property
    def kind(self) -> str:
        """Kind of the model, one of `kinds.CLASSES`."""
        return self.task.kind(self.args)

    @property
    def dataset(self) -> str:
        """Origin of the rows."""
        return self.source.origin

    @property
    def packed(self) -> bool:
        """True when a row holds several documents."""
        return self.train.packed

    def plan(self, epoch: int) -> EpochPlan:
        """Return the global batches of an epoch, as keys of examples: a pure function of the epoch."""
        keys = self.train.epoch(epoch)
        lengths = array("I", map(self.length_of, keys))
        return EpochPlan(keys, plan_epoch(lengths, self.args.train_batch_size, self.args.seed, epoch))

    def micro_batches(
        self, batch: list[ExampleKey], epoch: int, world: Distributed, hardware: Hardware
    ) -> list[Batch]:
        """Return this rank's part of a global batch, one batch for each forward pass."""
        if hardware.by_rows:
            parts = split_micro_batches(batch, world.rank, world.size, hardware.accumulation)
        else:
            parts = split_by_tokens(batch, self.length_of, world.rank, world.size, hardware.tokens)
        return [self.collate(self.train, part, epoch) for part in parts]

    def length_of(self, key: ExampleKey) -> int:
        """Return the number of tokens that a training example takes in a batch."""
        return self.train.lengths[key[1]]

    def collate(self, objective: Objective, keys: Sequence[ExampleKey | None], epoch: int) -> Batch:
        """Make examples and pad them together; None keeps ranks in step."""
        examples = [None if key is None else objective.example(*key, epoch) for key in keys]
        return collate(examples, self.tokenizer.pad_token_id)

    def held_out_prompts(self, count: int) -> list[Sequence[int]]:
        """Return token ids of `count` rows that are not trained on, or of trained ones where all are."""
        objective = next((one for one in (self.validation, self.held_out) if one.lengths), self.train)
        return [objective.example(*key, 0).ids for key in objective.epoch(0)[:count]]

    @torch.no_grad()
    def evaluate_loss(
        self, objective: Objective, forward: Callable[..., Tensor], world: Distributed, tokens: int
    ) -> LossStats:
        """Return the loss on all rows of an objective, always of the same examples; ranks share the work.

        Args:
            forward: see models/forward.py; an engine's, say.
            tokens: most tokens of one forward pass, with padding; its rows are of like length.
        """
        batches = split_by_tokens(objective.epoch(0), lambda key: objective.lengths[key[1]], 0, 1, tokens)
        sums = torch.zeros(4, dtype=torch.float64)
        for number, counts in world.rank_indices(len(batches)):
            batch = self.collate(objective, batches[number], epoch=0).to(world.device)
            logits = forward(*batch.inputs)
            sums[:3] += loss_stats(token_losses(logits, batch), batch) * counts
            sums[3] += float((correct(logits, batch) * batch.weights).sum()) * counts
        num_targets, loss, _, num_correct = world.sum(sums).tolist()
        if not num_targets:
            return LossStats(math.nan, math.nan, 0)
        return LossStats(loss / num_targets, num_correct / num_targets, int(num_targets))


def load_data(args: TrainArgs, world: Distributed, source: Source | None) -> tuple[Source, Splits]:
    """Load the dataset and split its rows.

    Args:
        source: what `preflight.check` has read already (local data), or None.
    """
    task = TASKS[args.task]
    if args.demo:
        source = builtin.corpus() if args.task == "mlm" else builtin.exam()
        args.model_name_or_path = str(world.main_process_first(lambda: builtin.base_model(args.save_dir)))
        args.from_scratch = True
    elif source is None:
        source = world.main_process_first(lambda: task.read(args))
    assert source is not None
    return source, task.split(source, args)


def setup_data(
    args: TrainArgs, world: Distributed, hardware: Hardware, source: Source, splits: Splits
) -> DataModule:
    """Load the tokenizer, make prompts and objectives, count the steps, and log a few examples.

    Raises:
        UserError: no row fits into --max_length; labels that the base does not have.
    """
    name, flag, task = args.model_name_or_path, "--model_name_or_path", TASKS[args.task]
    kind = task.kind(args)
    config = world.main_process_first(lambda: load_config(name, flag, kind))
    if args.learning_rate is None:
        args.learning_rate = learning_rate.default_from_scratch(config)
        log(f"  隨機初始化，學習率用 {args.learning_rate:g}（--learning_rate 可另外指定）")
    task.align_labels(config, source, splits)
    task.configure_model(config, source)
    resolve_auto_precision(hardware, world, config.get_text_config().hidden_size)
    tokenizer = world.main_process_first(lambda: load_tokenizer(name, flag, kind))
    max_length = prompt_length(config, tokenizer, args.max_length)
    prompts = task.prompts(args, tokenizer, max_length)
    rows = {
        "train": [*splits.fit, *splits.statements] if splits.statements else splits.fit,
        "validation": splits.validation,
        "held_out": splits.held_out if task.by_token else [],
    }
    context = TaskContext(args, config, tokenizer, prompts, max_length)
    made = {key: task.objective(context, part, validating=key != "train") for key, part in rows.items()}
    if max_length < args.max_length:
        log(f"  這個模型最多讀 {max_length} 個 token：--max_length {args.max_length} 改為 {max_length}")
    for key, objective in made.items():
        log_row_lengths(TITLES[key], objective)
    train = made["train"]
    if args.task == "cpt" and not train.packed:
        log(f"  {config.model_type} 模型沒辦法在一列裡隔開好幾篇文字：一列一篇")
    if not train.rows or not train.lengths:
        limit = f"（上限 {max_length} 個 token）"
        row = "題" if args.task == "exam" else "列"
        hint = "請加長，或換上下文更長的模型"
        raise UserError(f"--max_length {args.max_length}：沒有一{row}放得下{limit}，{hint}")
    for kind, index in train.epoch(0)[: args.show_examples]:
        shown = (
            train.show(index)
            if isinstance(train, RecordedObjective)
            else format_example(tokenizer, train.example(kind, index, 0))
        )
        log(f"  樣本（{KINDS.get(kind, kind)}）{shown}")
    steps_per_epoch = math.ceil(len(train.epoch(0)) / args.train_batch_size)
    total_steps = args.max_steps or args.num_epochs * steps_per_epoch
    _log_steps(args, world, hardware, steps_per_epoch, total_steps)
    base_card = RunCard.read(name)
    fitted, pool = _fitted_questions(train.rows, base_card, args.pool)
    # the first step of a warm-up changes nothing
    warmup_steps = min(math.ceil(args.warmup_ratio * total_steps), total_steps - 1)
    return DataModule(
        args, config, tokenizer, prompts, max_length, train, made["validation"], made["held_out"], source,
        steps_per_epoch, total_steps, warmup_steps, fitted, pool, base_card,
    )  # fmt: skip


def _log_steps(
    args: TrainArgs, world: Distributed, hardware: Hardware, steps_per_epoch: int, total_steps: int
) -> None:
    if hardware.by_rows:
        passes = f"一次 {hardware.micro_batch} 列 × {hardware.accumulation} 次 × {world.size} 個 rank"
    else:
        passes = f"{world.size} 個 rank，一次最多 {hardware.tokens:,} 個 token"
    log(f"每輪 {steps_per_epoch} 步，最多 {total_steps} 步；批次大小 {args.train_batch_size}（{passes}）")


def _fitted_questions(rows: Sequence, base_card: RunCard | None, pool: str) -> tuple[dict[str, str], str]:
    """Return fingerprints (-> sketch) of what this run and those before it fit on, and the wider pool."""
    fitted = question_fingerprints(rows)
    if len(fitted) > SKETCHED:
        log(f"  題目超過 {SKETCHED:,} 題：run_card.json 只記每題的指紋，日後認得出同一題，認不出相近的題")
    if base_card is None:
        return fitted, pool
    if base_card.fingerprints:
        log(f"  底模先前以 {len(base_card.fingerprints)} 題訓練過（見它的 run_card.json），一併記入")
    before = {**dict.fromkeys(base_card.fingerprints, ""), **base_card.sketches}
    fitted = {**before, **{name: sketch or before.get(name, "") for name, sketch in fitted.items()}}
    return fitted, "all" if base_card.pool == "all" else pool
