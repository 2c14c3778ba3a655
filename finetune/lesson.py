"""A lesson: which rows are taught and which check them, in which prompts, in how many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import demo, models
from .batching import Batch, collate, cut, plan_epoch
from .cli import say
from .errors import UserError
from .exams import Exam, Pools, Question, describe, read_exam, split_pool
from .machine import Machine
from .methods import OF_OBJECTIVE
from .objectives import Objective
from .prompts import ExamPrompts, readable
from .run_card import RunCard, sketches, versions
from .world import World

Entry = tuple[str, int]  # kind and row of an example, see Objective.epoch


@dataclass
class Lesson:
    """What is taught, to which model, in how many steps."""

    config: object  # of the model
    tokenizer: object
    prompts: ExamPrompts
    teach: Objective
    check: Objective  # the validation rows, with the same masks and orders every time
    dataset: str
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    fitted: dict[str, str]  # sketches by fingerprint of what this run fitted on, or one that taught the base
    pool: str  # "all" when this run or one before it fitted on official test rows

    def plan(self, epoch: int, batch_size: int, seed: int) -> list[list[Entry]]:
        """The global batches of an epoch, as examples to be made: a pure function of the epoch."""
        entries = self.teach.epoch(epoch)
        lengths = [self.teach.lengths[row] for _, row in entries]
        return [[entries[i] for i in batch] for batch in plan_epoch(lengths, batch_size, seed, epoch)]

    def micro_batches(self, batch: list[Entry], epoch: int, world: World, count: int) -> list[Batch]:
        """This rank's share of a global batch, in `count` forward passes."""
        return [self.collate(self.teach, part, epoch) for part in cut(batch, world.rank, world.size, count)]

    def check_batches(self, size: int) -> list[list[Entry]]:
        """The validation rows, `size` of like length together."""
        entries = sorted(self.check.epoch(0), key=lambda entry: self.check.lengths[entry[1]])
        return [entries[i : i + size] for i in range(0, len(entries), size)]

    def collate(self, objective: Objective, entries: Sequence[Entry | None], epoch: int) -> Batch:
        """Makes the examples and pads them together; None keeps ranks in step."""
        made = [None if entry is None else objective.example(*entry, epoch) for entry in entries]
        return collate(made, self.tokenizer.pad_token_id)

    def card(self, flags, step: int) -> RunCard:
        """What the model saved after `step` steps will say of itself."""
        return RunCard(
            objective=flags.objective,
            scoring=OF_OBJECTIVE[flags.objective],
            template=self.prompts.template,
            max_length=self.prompts.max_length,
            base_model="demo" if flags.demo else str(flags.model_name_or_path),
            dataset=self.dataset,
            pool=self.pool,
            step=step,
            flags=vars(flags),
            fingerprints=sorted(self.fitted),
            sketches=self.fitted,
            versions=versions(),
        )


def read_data(flags, world: World, local_exam: Exam | None) -> tuple[Exam, Pools]:
    """Questions → fit / validation / held-back / official test."""
    if flags.demo:
        exam = demo.exam()
        flags.model_name_or_path = str(world.main_first(lambda: demo.base_model(flags.save_dir)))
        flags.from_scratch = True
    else:
        source = flags.dataset, flags.revision, flags.subjects, flags.on_bad_rows
        exam = local_exam or world.main_first(lambda: read_exam(*source))
    pools = split_pool(exam, flags.split_ratio, flags.pool, flags.seed)
    describe(exam, pools)
    return exam, pools


def prepare(flags, world: World, machine: Machine, exam: Exam, pools: Pools) -> Lesson:
    """Tokenizer, prompts and objective; how many steps; a few examples as the model sees them."""
    name, flag = flags.model_name_or_path, "--model_name_or_path"
    config = world.main_first(lambda: models.load_config(name, flag))
    tokenizer = world.main_first(lambda: models.load_tokenizer(name, flag))
    prompts = ExamPrompts(tokenizer, models.prompt_length(config, tokenizer, flags.max_length))
    teach = Objective(flags.objective, prompts, [*pools.fit, *exam.told], flags.seed)
    check_rows = Objective(flags.objective, prompts, pools.validation, flags.seed)
    for objective, what in ((teach, "訓練"), (check_rows, "驗證")):
        if objective.shortened or objective.too_long:
            say(
                f"  {what}題：{objective.shortened} 題的題幹縮短了中段，"
                f"以放進 {prompts.max_length} 個 token；{len(objective.too_long)} 題連選項都放不下，未採用"
            )
    if not teach.rows:
        raise UserError(f"--max_length {flags.max_length}：沒有一題放得下，請加長")
    for kind, row in teach.epoch(0)[: flags.show_examples]:
        example = teach.example(kind, row, 0)
        wanted = [example.candidates[t] if example.candidates else t for t in example.targets]
        say(
            f"  例（{kind}）{readable(tokenizer, example.ids, example.positions)}\n    → "
            f"{' '.join(tokenizer.convert_ids_to_tokens(wanted))}"
        )
    steps = math.ceil(len(teach.epoch(0)) / flags.train_batch_size)
    total = flags.max_steps or flags.num_epochs * steps
    say(
        f"每輪 {steps} 步，最多 {total} 步；每步 {flags.train_batch_size} 例 = "
        f"一次 {machine.micro_batch} 例 × {machine.accumulation} 次 × {world.size} 個行程"
    )
    former = RunCard.read(name)  # taught here before: what the base was fitted on, this model was too
    fitted = sketches(row for row in teach.rows if isinstance(row, Question))
    pool = flags.pool
    if former is not None:
        say(f"  底模先前教過 {len(former.fingerprints)} 題（見它的 run_card.json），一併記入")
        fitted = {**dict.fromkeys(former.fingerprints, ""), **former.sketches, **fitted}
        pool = "all" if former.pool == "all" else pool
    warmup = math.ceil(flags.warmup_ratio * total)
    return Lesson(
        config, tokenizer, prompts, teach, check_rows, exam.origin, steps, total, warmup, fitted, pool
    )
