"""Snapshot of the validation data: features of its rows, and of the answers that the evaluation got for them.

The run card keeps it, so that what a server is asked later can be compared with it (inference.py --drift).
Nothing is evaluated for it a second time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from finetune.data.instructions import Instruction
from finetune.data.question import Question
from finetune.evaluation.classification import THRESHOLD
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.request_features import (
    WAY,
    Features,
    FeatureSample,
    entity_features,
    label_features,
    option_features,
    reply_features,
    span_features,
    text_features,
    way_of,
)
from finetune.evaluation.tag_records import entities_of
from finetune.models.forward import is_multi
from finetune.models.kinds import finds_no_answer, names_of
from finetune.training.evaluate import FinalEvaluation

KEPT = 1_000  # rows, drawn with a fixed seed: their distribution is known to 4 points everywhere (95 %)
READ = 10_000  # characters of a text of a corpus, which may be a book
OF_ANY_LENGTH = ("unknown", "han")  # what is kept of texts of a corpus: they are not as long as requests are

Observation = tuple[Sequence[str], Features]  # texts of a row, features of the answer to it
Observer = Callable[[Any, Any, Any, Sequence[int]], Iterator[Observation]]


def take_snapshot(evaluation: FinalEvaluation) -> dict[str, Any]:
    """Return the snapshot of an evaluation, as run cards keep it; {} where there are no validation rows.

    Of an exam whose validation questions were not answered, the held-out or test questions stand in.

    Returns:
        `set` of the rows, `way` in which options were scored, and `FeatureSample.as_dict`.
    """
    run = evaluation.run
    name, observations = _observed(evaluation)
    tokenizer = run.data.tokenizer
    features = [text_features(tokenizer, texts) | answer for texts, answer in observations]
    if not features:
        return {}
    sample = FeatureSample.of(features)
    if run.args.task in ("mlm", "cpt"):
        sample = sample.only(OF_ANY_LENGTH.__contains__)
    return {"set": name, "way": features[0].get(WAY, ""), **sample.as_dict()}


def _observed(evaluation: FinalEvaluation) -> tuple[str, list[Observation]]:
    """Return the name of the set, and its rows with the features of their answers."""
    data, name = evaluation.run.data, "validation"
    if observe := OBSERVERS.get(evaluation.run.args.task):
        outputs = evaluation.outputs["tuned"].get(name)
        objective: Any = data.validation
        if outputs is None:
            return name, []
        return name, [*observe(objective, outputs, evaluation.run.loaded.config, _drawn(len(outputs)))]
    found = {name: evaluation.calibration_result}
    found |= {of_set: results[0] for of_set, results in evaluation.results.items() if results[0].questions}
    for of_set, result in found.items():
        if isinstance(result, ExamResult):
            return of_set, [*_questions(result)]
    rows = data.validation.rows
    return name, [(_texts(rows[at]), {}) for at in _drawn(len(rows))]


def _drawn(count: int) -> Sequence[int]:
    """Return the places of the rows that are kept, always the same ones."""
    return range(count) if count <= KEPT else sorted(random.Random(0).sample(range(count), KEPT))


def _texts(row: Any) -> list[str]:
    """Return the texts that a request like this row would hold: of a conversation all but the last reply."""
    if isinstance(row, Question):
        return [row.stem, *row.options]
    if isinstance(row, Instruction):
        return [content for _, content in row.turns[:-1]]
    return [row.text[:READ]]


def _questions(result: ExamResult) -> Iterator[Observation]:
    unanswered = {*result.scores.skipped, *result.scores.outcomes}
    way = {WAY: way_of(result.method, result.orders)}
    for at in _drawn(len(result.questions)):
        if at not in unanswered:
            yield _texts(result.questions[at]), option_features(result.scores[at]) | way


def _labels(objective: Any, outputs: Any, config: Any, places: Sequence[int]) -> Iterator[Observation]:
    names, multi = names_of(config), is_multi(config)
    for at in places:
        row, probabilities = objective.rows[at], dict(zip(names, outputs[at], strict=True))
        chosen = [name for name, probability in probabilities.items() if probability >= THRESHOLD]
        best = max(probabilities, key=probabilities.__getitem__)
        texts = [text for text in (row.text, row.pair) if text]
        yield texts, label_features(probabilities, chosen if multi else best)


def _tags(objective: Any, outputs: Any, config: Any, places: Sequence[int]) -> Iterator[Observation]:
    for at in places:
        text = objective.rows[at].text
        yield [text], entity_features(entities_of(text, objective.encoded[at], outputs[at], objective.tags))


def _spans(objective: Any, outputs: Any, config: Any, places: Sequence[int]) -> Iterator[Observation]:
    may_be_none = finds_no_answer(config)
    for at in places:
        row, answers = objective.rows[at], outputs[at]
        chosen = answers.choose(may_be_none)
        score = answers.probability(chosen, may_be_none)
        yield [row.question, row.context], span_features(score, chosen is not None)


def _replies(objective: Any, outputs: Any, config: Any, places: Sequence[int]) -> Iterator[Observation]:
    for at in places:
        yield [objective.rows[objective.written[at]].source], reply_features(outputs[at])


OBSERVERS: dict[str, Observer] = {  # by task, of rows that are measured one by one
    "classify": _labels, "tag": _tags, "span": _spans, "seq2seq": _replies,
}  # fmt: skip
