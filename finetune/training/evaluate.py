"""Evaluation during training and after it.

During training: figures on the validation rows, always the same ones. After it: the saved model and the one
it was made from on the held-out and test rows, and of a language model its loss on texts or replies it was
not trained on, with a few answers side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from finetune.data.question import Question
from finetune.data.question_store import questions_of
from finetune.data.splits import Splits, sample_rows
from finetune.evaluation.baseline import stand_beside
from finetune.evaluation.classification import compute_metrics, probabilities
from finetune.evaluation.evaluator import CALIBRATION_ROWS, ExamResult, run_exam, scorer_for
from finetune.models.forward import bf16_forward, forward_of, is_multi
from finetune.models.generation import Decoding, generate
from finetune.models.kinds import names_of
from finetune.objectives.causal_lm import CausalLMObjective
from finetune.objectives.classification import ClassificationObjective
from finetune.objectives.masked_lm import MaskedLMObjective
from finetune.objectives.preview import shown
from finetune.prompts.exam import read_back
from finetune.reports.perplexity import perplexity
from finetune.training.tasks import TaskContext

WHO = {"tuned": "微調後", "untuned": "微調前"}


@dataclass
class FinalEvaluation:
    """Who is examined on what, and what they answered.

    Args:
        questions: by set; their `sittings`, of each model in turn.
        labelled: objectives of labelled rows, by set; `labels` are the figures of the tuned model alone: one
            with a new head knows nothing before.
        growth: of a language model on texts or replies.
        apart: questions that are neither taught nor examined, which the tuned model answers for its
            temperature (`held_out`); or why there are none.
    """

    lesson: object
    questions: dict[str, Sequence[Question]] = field(default_factory=dict)
    labelled: dict[str, object] = field(default_factory=dict)
    growth: BeforeAfter | None = None
    apart: Sequence[Question] | str = ""
    sittings: dict[str, list[ExamResult]] = field(default_factory=dict)
    held_out: ExamResult | str = ""
    labels: dict[str, dict] | None = None

    @classmethod
    def of(cls, lesson, pools: Splits) -> FinalEvaluation:
        """The sets of a lesson. Where no question was kept back, those that the best model was chosen by are
        better than none.
        """
        flags = lesson.flags
        if lesson.kind == "classifier":
            desk = TaskContext(flags, lesson.config, lesson.tokenizer, None, lesson.max_length)
            sets = {"test": pools.test, "held_back": pools.held_out, "validation": pools.validation}
            made = {
                name: lesson.validation if name == "validation" else lesson.task.objective(desk, rows, True)
                for name, rows in sets.items()
                if rows
            }
            return cls(lesson, labelled=made, labels={})
        sets = {"test": pools.test, "held_back": pools.held_out} if lesson.prompts else {}
        if lesson.by_token and sets and not any(sets.values()):
            sets = {"validation": pools.validation}
        chosen = {
            name: sample_rows(questions_of(rows), flags.exam_limit, flags.seed) for name, rows in sets.items()
        }
        growth = BeforeAfter() if lesson.by_token else None
        apart = "考的就是驗證題，沒有別的題目可用來調整溫度"
        if "validation" not in chosen:
            apart = _unseen(lesson, questions_of(pools.validation))
        return cls(lesson, chosen, growth=growth, apart=apart, sittings={name: [] for name in chosen})

    def __post_init__(self):
        if isinstance(self.apart, str):
            self.held_out = self.apart

    @property
    def answers(self) -> dict[str, list[ExamResult | str]]:
        """By set: the sitting of each model in turn, and `held_out`."""
        return {name: [*sat, self.held_out] for name, sat in self.sittings.items() if sat}

    @property
    def compares(self) -> bool:
        """The untuned model is examined too."""
        return self.labels is None

    def evaluate(self, model, who: str, world, machine) -> None:
        """Examines a model, `tuned` or `untuned`. All ranks call it."""
        lesson, model = self.lesson, model.to(world.device).eval()
        self._hold_labels(model, world)
        forward = model
        if machine.precision == "bf16" and world.device.type == "cpu" and lesson.kind == "masked":
            forward = bf16_forward(model)
        asked = scorer_for(forward, lesson.prompts, world.device) if self.questions else None
        for name, rows in self.questions.items():
            title = f"測驗（{WHO[who]}，{name}）" if rows else ""
            orders = lesson.flags.exam_orders
            self.sittings[name].append(run_exam(asked, rows, lesson.scoring, orders, world, title))
        if who == "tuned" and any(self.questions.values()) and not isinstance(self.apart, str):
            title = "驗證題（校準用）"
            self.held_out = run_exam(
                asked, self.apart, lesson.scoring, lesson.flags.exam_orders, world, title
            )
        if self.growth:
            self.growth.add(who, model, lesson, world, machine.tokens)

    def _hold_labels(self, model, world) -> None:
        """The figures of a classifier, and beside them those of the baseline."""
        answered, pad = {}, self.lesson.tokenizer.pad_token_id
        for name, objective in self.labelled.items():
            found = answers_of(objective, model.config, forward_of(model).eval(), pad, world)
            self.labels[name] = figures_of(objective, model.config, found)
            answered[name] = objective.rows, found
        if answered and world.is_main:
            stand_beside(self.labels, self.lesson.train.rows, answered, names_of(model.config))


def _unseen(lesson, validation: Sequence[Question]) -> Sequence[Question] | str:
    """Validation questions that neither this run nor an earlier one taught; or why there are none."""
    if not len(validation):
        return "這次沒有留下驗證題（--split_ratio），無法調整溫度"
    rows = sample_rows(validation, CALIBRATION_ROWS, lesson.flags.seed)
    return [
        row for row in rows if row.fingerprint not in lesson.fitted
    ] or "驗證題底模都學過，不能用來調整溫度"


SAMPLES = 3
OPENING = 24  # tokens of a text that a model goes on from
WRITTEN = 64  # tokens it writes


@dataclass
class BeforeAfter:
    """By set (`validation`, `held_back`): figures of the `tuned` and the `untuned` model. `samples`: prompt,
    what was wanted, what each model wrote.
    """

    sets: dict[str, dict[str, dict]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, who: str, model: nn.Module, lesson, world, tokens: int) -> None:
        """Measures a model (`tuned` or `untuned`) that is on the device. All ranks call it.

        Args:
            tokens: of one forward pass, with padding.
        """
        model.eval()
        for name, objective in (("validation", lesson.validation), ("held_back", lesson.held_out)):
            if not objective.lengths:
                continue
            measured = lesson.evaluate_loss(objective, forward_of(model, lesson.packed).eval(), world, tokens)
            loss, tokens = measured.loss, measured.num_targets
            found = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
            if isinstance(objective, CausalLMObjective):  # to compare models whose tokenizers differ
                found["bits_per_character"] = loss * tokens / math.log(2) / max(1, objective.characters)
            if isinstance(objective, MaskedLMObjective):
                found["restored"] = measured.accuracy
            self.sets.setdefault(name, {})[who] = found
        if world.is_main:
            self._write(who, model, lesson)

    def _write(self, who: str, model: nn.Module, lesson) -> None:
        if isinstance(lesson.validation, MaskedLMObjective):
            return self._fill_samples(who, model, lesson)
        rows = [row for row in lesson.validation.rows if not isinstance(row, Question)][:SAMPLES]
        if not rows:
            return None
        asked, wanted, shown = zip(*(_opening(lesson, row) for row in rows), strict=True)
        decoding = Decoding(max_new_tokens=WRITTEN)
        written = generate(model, lesson.tokenizer, list(asked), decoding, ends=lesson.ends)
        if not self.samples:
            self.samples = [{"prompt": a, "wanted": b} for a, b in zip(shown, wanted, strict=True)]
        for sample, text in zip(self.samples, written, strict=True):
            sample[who] = text

    @torch.no_grad()
    def _fill_samples(self, who: str, model: nn.Module, lesson) -> None:
        """What the model puts where words are hidden, each by itself."""
        forward, tokenizer = forward_of(model).eval(), lesson.tokenizer
        device = next(model.parameters()).device
        entries = lesson.validation.epoch(0)[:SAMPLES]
        for number, entry in enumerate(entries):
            example = lesson.validation.example(*entry, 0)
            ids = torch.tensor([example.ids], device=device)
            cols = torch.tensor(example.positions, device=device)
            said = forward(ids, torch.ones_like(ids), torch.zeros_like(cols), cols).argmax(-1).tolist()
            if number == len(self.samples):
                hidden = read_back(tokenizer, example.ids[1:-1])
                self.samples.append({"prompt": hidden, "wanted": shown(tokenizer, example)})
            self.samples[number][who] = shown(tokenizer, replace(example, targets=tuple(said)))

    def as_dict(self) -> dict:
        return {"sets": self.sets, "samples": self.samples}


def _opening(lesson, row) -> tuple[list[int], str, str]:
    """What a model is given of a row, what it should say, and the former as text."""
    tokenizer = lesson.tokenizer
    if isinstance(lesson.validation, CausalLMObjective):
        ids = tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        opening = ids[: min(OPENING, max(1, len(ids) // 2))]
        rest = tokenizer.decode(ids[len(opening) : len(opening) + WRITTEN])
        return [*lesson.validation.start, *opening], rest, tokenizer.decode(opening)
    *asked, reply = row.messages
    ids = lesson.prompts.chat.prompt(asked)[-max(1, lesson.max_length - WRITTEN) :]
    return ids, reply["content"], asked[-1]["content"]


def validate(lesson, forward: Callable[..., Tensor], world, tokens: int) -> dict:
    """Loss on the validation rows, always of the same examples; of tokens their perplexity (and, of hidden
    ones, how many are restored), of questions and labels the accuracy. {} without rows.

    Args:
        forward: of an engine that is set to evaluate.
        tokens: of one forward pass, with padding.
    """
    rows = lesson.validation.rows
    if not lesson.validation.lengths:
        return {}
    if isinstance(lesson.validation, ClassificationObjective):
        graded = grade(lesson.validation, lesson.config, forward, lesson.tokenizer.pad_token_id, world)
        return {
            "validation_loss": graded["log_loss"], "validation_accuracy": graded["accuracy"],
            "validation_macro_f1": graded["macro_f1"], "validation_rows": graded["n"],
        }  # fmt: skip
    measured = lesson.evaluate_loss(lesson.validation, forward, world, tokens)
    found = {"validation_loss": measured.loss}
    if lesson.by_token:
        found |= {
            "validation_perplexity": perplexity(measured.loss),
            "validation_tokens": measured.num_targets,
        }
    if isinstance(lesson.validation, MaskedLMObjective):
        found["validation_restored"] = measured.accuracy
    if isinstance(rows[0], Question):
        asked = scorer_for(forward, lesson.prompts, world.device)
        sitting = run_exam(asked, rows, lesson.scoring, "1", world)
        found |= {"validation_accuracy": sitting.accuracy, "validation_questions": len(rows)}
    return found


def grade(
    objective: ClassificationObjective, config, forward: Callable[..., Tensor], pad_id: int, world
) -> dict:
    """The figures of a classifier on labelled rows, see reports/classification.py. All ranks call it."""
    return figures_of(objective, config, answers_of(objective, config, forward, pad_id, world))


def answers_of(
    objective: ClassificationObjective, config, forward: Callable[..., Tensor], pad_id: int, world
) -> list:
    """A classifier's probabilities of the classes, (n, K). All ranks call it."""
    return probabilities(forward, config, pad_id, objective.encoded, world.device, world)


def figures_of(objective: ClassificationObjective, config, found: list) -> dict:
    """Figures from `answers_of`."""
    truth = [row.labels for row in objective.rows]
    return compute_metrics(truth, found, names_of(config), is_multi(config))
