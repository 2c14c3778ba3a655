"""Evaluation during training and after it.

During training: figures on the validation rows, always the same ones. After it: the saved model and the one
it was made from on the held-out and test rows, and of a language model its loss on texts or replies it was
not trained on, with a few answers side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.question import Question
from finetune.data.question_store import questions_of
from finetune.data.splits import sample_rows
from finetune.evaluation.evaluator import (
    CALIBRATION_ROWS,
    NO_VALIDATION,
    VALIDATION_EVALUATED,
    VALIDATION_TRAINED_ON,
    ExamResult,
    choose_calibration,
    run_exam,
    scorer_for,
)
from finetune.models.forward import bf16_forward, config_of
from finetune.models.generation import Decoding, Generator
from finetune.models.heads import forward_of
from finetune.objectives.batching import Example
from finetune.objectives.causal_lm import CausalLMObjective
from finetune.objectives.masked_lm import MaskedLMObjective
from finetune.objectives.objective import RecordedObjective, RowObjective
from finetune.objectives.preview import mark_masked
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import read_back
from finetune.reports.perplexity import perplexity
from finetune.training.run import Run
from finetune.training.task import TaskContext

TITLES = {"tuned": "微調後", "untuned": "微調前"}
SAMPLES = 3
OPENING = 24  # tokens of a text that a model goes on from
CONTINUATION = 64  # tokens it generates

# ---- during training ---------------------------------------------------------------------------------------


def validate(run: Run, forward: Callable[..., Tensor]) -> dict[str, Any]:
    """Return figures on the validation rows, always of the same examples; {} without rows.

    The loss; of tokens their perplexity (and, of masked ones, the share restored); of questions and labels
    the accuracy.

    Args:
        forward: forward pass of an engine that is set to evaluate.
    """
    data, objective = run.data, run.data.validation
    if not objective.lengths:
        return {}
    if isinstance(objective, RowObjective) and not data.by_token:
        outputs = objective.predict(forward, run.loaded.config, run.world)
        return objective.validation_metrics(objective.metrics(outputs, run.loaded.config))
    stats = data.evaluate_loss(objective, forward, run.world, run.hardware.tokens)
    figures: dict[str, Any] = {"validation_loss": stats.loss}
    if data.by_token:
        figures |= {
            "validation_perplexity": perplexity(stats.loss),
            "validation_tokens": stats.num_targets,
        }
    if isinstance(objective, MaskedLMObjective):
        figures["validation_restored"] = stats.accuracy
    if isinstance(objective.rows[0], Question):
        assert data.prompts is not None
        scorer = scorer_for(forward, data.prompts, run.world.device)
        result = run_exam(scorer, objective.rows, data.scoring, "1", run.world)
        figures |= {"validation_accuracy": result.accuracy, "validation_questions": len(objective.rows)}
    return figures


# ---- after training ----------------------------------------------------------------------------------------


@dataclass
class FinalEvaluation:
    """Evaluate the tuned and the base model on the held-out and test sets.

    Args:
        questions: by set; `exam_results` has a result of each model in turn.
        rows: objectives of rows that are measured one by one, by set; `row_metrics` are those of the tuned
            model, beside the untuned one where that has the same head.
        before_after: figures of a language model on texts or replies.
        calibration: questions that are neither trained on nor evaluated, which the tuned model answers to fit
            its temperature (`calibration_result`); or why there are none.
    """

    run: Run
    questions: dict[str, Sequence[Question]] = field(default_factory=dict)
    rows: dict[str, RowObjective] = field(default_factory=dict)
    before_after: BeforeAfter | None = None
    calibration: Sequence[Question] | str = ""
    exam_results: dict[str, list[ExamResult]] = field(default_factory=dict)
    calibration_result: ExamResult | str = ""
    row_metrics: dict[str, dict] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)  # rows of predictions.jsonl
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> set -> of `predict`

    @classmethod
    def of(cls, run: Run) -> FinalEvaluation:
        """Choose the sets of a run.

        Where no question was held out, those that the best model was chosen by are better than none.
        """
        args, data, splits = run.args, run.data, run.splits
        sets: dict[str, Sequence[Any]] = {"test": splits.test, "held_back": splits.held_out}
        if isinstance(data.validation, RowObjective):
            context = TaskContext(args, run.loaded.config, data.tokenizer, None, data.max_length)
            objectives: dict[str, Any] = {
                name: data.task.objective(context, rows, True) for name, rows in sets.items() if rows
            }
            if splits.validation:
                objectives["validation"] = data.validation
            return cls(run, rows=objectives, before_after=BeforeAfter() if data.by_token else None)
        if not data.prompts:
            sets = {}
        elif data.by_token and not any(sets.values()):
            sets = {"validation": splits.validation}
        questions = {
            name: sample_rows(questions_of(rows), args.exam_limit, args.seed) for name, rows in sets.items()
        }
        calibration: Sequence[Question] | str = VALIDATION_EVALUATED
        if "validation" not in questions:
            calibration = _calibration_questions(run, questions_of(splits.validation))
        return cls(
            run, questions, before_after=BeforeAfter() if data.by_token else None, calibration=calibration,
            exam_results={name: [] for name in questions},
        )  # fmt: skip

    def __post_init__(self):
        if isinstance(self.calibration, str):
            self.calibration_result = self.calibration

    @property
    def results(self) -> dict[str, Sequence[ExamResult]]:
        """By set that was evaluated: the result of each model in turn."""
        return {name: results for name, results in self.exam_results.items() if results}

    @property
    def compares(self) -> bool:
        """True when the untuned model is evaluated too."""
        data = self.run.data
        return not isinstance(data.validation, RowObjective) or data.validation.compares

    def evaluate(self, model: nn.Module, which: str) -> None:
        """Evaluate a model, `tuned` or `untuned`. Collective."""
        run, data, world = self.run, self.run.data, self.run.world
        model = model.to(world.device).eval()
        self._evaluate_rows(model, which)
        forward = model
        if run.hardware.precision == "bf16" and world.device.type == "cpu" and data.kind == "masked":
            forward = bf16_forward(model)
        scorer = scorer_for(forward, data.prompts, world.device) if data.prompts and self.questions else None
        orders = run.args.exam_orders
        for name, rows in self.questions.items():
            title = f"評測（{TITLES[which]}，{name}）" if rows else ""
            assert scorer
            self.exam_results[name].append(run_exam(scorer, rows, data.scoring, orders, world, title))
        if which == "tuned" and any(self.questions.values()) and not isinstance(self.calibration, str):
            assert scorer
            title = "驗證題（校準用）"
            self.calibration_result = run_exam(scorer, self.calibration, data.scoring, orders, world, title)
        if self.before_after:
            self.before_after.add(which, model, run)

    def _evaluate_rows(self, model: nn.Module, which: str) -> None:
        """Note the outputs of a model and, after the last one, the metrics and those of simple rules."""
        world, config = self.run.world, config_of(model)
        forward = forward_of(model).eval()
        self.outputs[which] = {
            name: objective.predict(forward, config, world) for name, objective in self.rows.items()
        }
        if not self.rows or (self.compares and which == "tuned") or not world.is_main:
            return
        before = self.outputs.get("untuned", {})
        for name, objective in self.rows.items():
            outputs = self.outputs["tuned"][name]
            self.row_metrics[name] = objective.metrics(outputs, config, before.get(name))
            if isinstance(objective, RecordedObjective):
                self.predictions += [{"set": name, **row} for row in objective.records(outputs, config)]
        evaluated = {name: (objective, self.outputs["tuned"][name]) for name, objective in self.rows.items()}
        next(iter(self.rows.values())).add_baselines(self.row_metrics, evaluated, self.run.data.train, config)


def _calibration_questions(run: Run, validation: Sequence[Question]) -> Sequence[Question] | str:
    """Return validation questions that no run trained on; or why there are none."""
    if not len(validation):
        return NO_VALIDATION
    drawn = sample_rows(validation, CALIBRATION_ROWS, run.args.seed)  # first: there may be millions
    return choose_calibration(drawn, run.data.fitted, VALIDATION_TRAINED_ON)


@dataclass
class BeforeAfter:
    """Loss and samples of a language model before and after training.

    Attributes:
        sets: by set (`validation`, `held_back`): figures of the `tuned` and the `untuned` model.
        samples: prompt, what was wanted, what each model generated.
    """

    sets: dict[str, dict[str, dict]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, which: str, model: nn.Module, run: Run) -> None:
        """Measure a model (`tuned` or `untuned`) that is on the device. Collective."""
        model.eval()
        data = run.data
        for name, objective in (("validation", data.validation), ("held_back", data.held_out)):
            if not objective.lengths:
                continue
            forward = forward_of(model, data.packed).eval()
            stats = data.evaluate_loss(objective, forward, run.world, run.hardware.tokens)
            figures = {
                "loss": stats.loss, "perplexity": perplexity(stats.loss), "tokens": stats.num_targets,
            }  # fmt: skip
            if isinstance(objective, CausalLMObjective):  # to compare models whose tokenizers differ
                bits = stats.loss * stats.num_targets / math.log(2)
                figures["bits_per_character"] = bits / max(1, objective.characters)
            if isinstance(objective, MaskedLMObjective):
                figures["restored"] = stats.accuracy
            self.sets.setdefault(name, {})[which] = figures
        if run.world.is_main and not isinstance(
            data.validation, RowObjective
        ):  # which has samples of its own
            if isinstance(data.validation, MaskedLMObjective):
                self._fill_samples(which, model, run)
            else:
                self._generate_samples(which, model, run)

    def _generate_samples(self, which: str, model: nn.Module, run: Run) -> None:
        """Have the model go on from openings of validation texts, or reply to validation prompts."""
        data = run.data
        rows = [row for row in data.validation.rows if not isinstance(row, Question)][:SAMPLES]
        if not rows:
            return
        ids, wanted, prompts = zip(*(_opening(run, row) for row in rows), strict=True)
        decoding = Decoding(max_new_tokens=CONTINUATION)
        generator = Generator(model, data.tokenizer, decoding, end_ids=run.loaded.end_ids)
        texts = generator.generate(list(ids))
        if not self.samples:
            self.samples = [{"prompt": a, "wanted": b} for a, b in zip(prompts, wanted, strict=True)]
        for sample, text in zip(self.samples, texts, strict=True):
            sample[which] = text

    @torch.no_grad()
    def _fill_samples(self, which: str, model: nn.Module, run: Run) -> None:
        """Have the model fill masked words of validation texts, each by itself."""
        objective, tokenizer = run.data.validation, run.data.tokenizer
        forward = forward_of(model).eval()
        device = next(model.parameters()).device
        for number, key in enumerate(objective.epoch(0)[:SAMPLES]):
            example = objective.example(*key, 0)
            assert isinstance(example, Example)
            ids = torch.tensor([example.ids], device=device)
            cols = torch.tensor(example.positions, device=device)
            filled = forward(ids, torch.ones_like(ids), torch.zeros_like(cols), cols).argmax(-1).tolist()
            if number == len(self.samples):
                masked = read_back(tokenizer, example.ids[1:-1])
                self.samples.append({"prompt": masked, "wanted": mark_masked(tokenizer, example)})
            self.samples[number][which] = mark_masked(tokenizer, replace(example, targets=tuple(filled)))

    def as_dict(self) -> dict[str, Any]:
        """Return it as run cards keep it."""
        return {"sets": self.sets, "samples": self.samples}


def _opening(run: Run, row: Any) -> tuple[list[int], str, str]:
    """Return the token ids that a model goes on from, what it should generate, and the former as text."""
    data = run.data
    if isinstance(data.validation, CausalLMObjective):
        ids = data.tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        opening = ids[: min(OPENING, max(1, len(ids) // 2))]
        rest = str(data.tokenizer.decode(ids[len(opening) : len(opening) + CONTINUATION]))
        return [*data.validation.start, *opening], rest, str(data.tokenizer.decode(opening))
    assert isinstance(data.prompts, CausalExamPrompts)
    *messages, reply = row.messages
    ids = data.prompts.chat.prompt(messages)[-max(1, data.max_length - CONTINUATION) :]
    return ids, reply["content"], messages[-1]["content"]
