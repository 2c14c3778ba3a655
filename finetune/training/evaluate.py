"""The examination after training: the saved model, and the one it was made from, before the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.data.exam import Pools, sample
from finetune.data.question import Question
from finetune.data.question_store import questions_of
from finetune.evaluation.baseline import stand_beside
from finetune.evaluation.classification import names_of
from finetune.evaluation.evaluator import CALIBRATION_ROWS, Sitting, asked_by, sit
from finetune.evaluation.sets import ORDER
from finetune.models.forward import forward_of, light_of
from finetune.training.growth import Growth
from finetune.training.tasks import Desk
from finetune.training.validation import answers_of, figures_of

WHO = {"tuned": "微調後", "untuned": "微調前"}


@dataclass
class Finals:
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
    growth: Growth | None = None
    apart: Sequence[Question] | str = ""
    sittings: dict[str, list[Sitting]] = field(default_factory=dict)
    held_out: Sitting | str = ""
    labels: dict[str, dict] | None = None

    @classmethod
    def of(cls, lesson, pools: Pools) -> Finals:
        """The sets of a lesson. Where no question was kept back, those that the best model was chosen by are
        better than none."""
        flags = lesson.flags
        if lesson.kind == "classifier":
            desk = Desk(flags, lesson.config, lesson.tokenizer, None, lesson.max_length)
            sets = {name: getattr(pools, name) for name in ORDER}
            made = {
                name: lesson.check if name == "validation" else lesson.task.objective(desk, rows, True)
                for name, rows in sets.items()
                if rows
            }
            return cls(lesson, labelled=made, labels={})
        sets = {"test": pools.test, "held_back": pools.held_back} if lesson.prompts else {}
        if lesson.by_token and sets and not any(sets.values()):
            sets = {"validation": pools.validation}
        chosen = {
            name: sample(questions_of(rows), flags.exam_limit, flags.seed) for name, rows in sets.items()
        }
        growth = Growth() if lesson.by_token else None
        apart = "考的就是驗證題，沒有別的題目可用來調整溫度"
        if "validation" not in chosen:
            apart = _unseen(lesson, questions_of(pools.validation))
        return cls(lesson, chosen, growth=growth, apart=apart, sittings={name: [] for name in chosen})

    def __post_init__(self):
        if isinstance(self.apart, str):
            self.held_out = self.apart

    @property
    def answers(self) -> dict[str, list[Sitting | str]]:
        """By set: the sitting of each model in turn, and `held_out`."""
        return {name: [*sat, self.held_out] for name, sat in self.sittings.items() if sat}

    @property
    def compares(self) -> bool:
        """The untuned model is examined too."""
        return self.labels is None

    def hold(self, model, who: str, world, machine) -> None:
        """Examines a model, `tuned` or `untuned`. All ranks call it."""
        lesson, model = self.lesson, model.to(world.device).eval()
        self._hold_labels(model, world)
        forward = model
        if machine.precision == "bf16" and world.device.type == "cpu" and lesson.kind == "masked":
            forward = light_of(model)
        asked = asked_by(forward, lesson.prompts, world.device) if self.questions else None
        for name, rows in self.questions.items():
            title = f"測驗（{WHO[who]}，{name}）" if rows else ""
            orders = lesson.flags.exam_orders
            self.sittings[name].append(sit(asked, rows, lesson.scoring, orders, world, title))
        if who == "tuned" and any(self.questions.values()) and not isinstance(self.apart, str):
            title = "驗證題（校準用）"
            self.held_out = sit(asked, self.apart, lesson.scoring, lesson.flags.exam_orders, world, title)
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
            stand_beside(self.labels, self.lesson.teach.rows, answered, names_of(model.config))


def _unseen(lesson, validation: Sequence[Question]) -> Sequence[Question] | str:
    """Validation questions that neither this run nor an earlier one taught; or why there are none."""
    if not len(validation):
        return "這次沒有留下驗證題（--split_ratio），無法調整溫度"
    rows = sample(validation, CALIBRATION_ROWS, lesson.flags.seed)
    return [
        row for row in rows if row.fingerprint not in lesson.fitted
    ] or "驗證題底模都學過，不能用來調整溫度"
