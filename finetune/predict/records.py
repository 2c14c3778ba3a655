"""Records of single predictions, as --json prints them and the server answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.models.streaming import Reply
    from finetune.predict.classifier import ClassifierPredictor
    from finetune.predict.extractor import ExtractorPredictor
    from finetune.predict.predictor import MaskedLMPredictor, Predictor
    from finetune.predict.tagger import TaggerPredictor

Record = dict[str, Any]
DIGITS = 6  # decimals of a probability that is rounded


def fill_record(
    predictor: MaskedLMPredictor,
    prompt: str,
    top_k: int,
    word_length: int = 1,
    candidates: Sequence[str] | None = None,
) -> Record:
    """Return `prompt` and its `predictions`, see `MaskedLMPredictor.predictions`."""
    return {"prompt": prompt, "predictions": predictor.predictions(prompt, top_k, word_length, candidates)}


def answer_record(
    predictor: Predictor,
    question: str,
    options: Mapping[str, str],
    scoring: str = "auto",
    orders: str = "cyclic",
    answer_format: str = "letter",
) -> Record:
    """Return the answer to a multiple-choice question: `answer`, `scores` by label, `tied` where several are.

    Args:
        answer_format: `letter` for the label of the answer, `index` for its place, from 0.
    """
    ranked = predictor.rank(question, options, len(options), scoring, orders)
    best = ranked[0][0]
    return {
        "question": question,
        "answer": best if answer_format == "letter" else list(options).index(best),
        "scores": {label: score for label, _, score in ranked},
        **({"tied": list(ranked.tied)} if ranked.tied else {}),
    }


def labels_record(
    predictor: ClassifierPredictor, text: str, pair: str | None = None, top_k: int | None = None
) -> Record:
    """Return the labels of a text, or of a pair: `label` or `labels`, and `probabilities` of `top_k`."""
    ranked = predictor.classify([text if pair is None else (text, pair)])[0]
    texts = {"text": text} if pair is None else {"text": text, "pair": pair}
    return texts | predictor.to_record(ranked, top_k)


def entities_record(predictor: TaggerPredictor, text: str) -> Record:
    """Return the spans of a text as `entities`."""
    return {"text": text, "entities": predictor.tag([text])[0]}


def span_record(
    predictor: ExtractorPredictor, question: str, context: str, top_k: int | None = None
) -> Record:
    """Return the answer from a passage: `answer`, `start`, `end`, `score`.

    Args:
        top_k: also list so many `answers`; None for the best alone.
    """
    answers = predictor.answer_pairs([(question, context)], top_k or 1)[0]
    record = {"question": question, **_rounded(answers[0])}
    if top_k is not None:
        record["answers"] = [_rounded(answer) for answer in answers]
    return record


def _rounded(answer: Record) -> Record:
    return {
        "answer": answer["text"], "start": answer["start"], "end": answer["end"],
        "score": round(answer["score"], DIGITS),
    }  # fmt: skip


def reply_record(prompt: str, reply: Reply) -> Record:
    """Return a generated reply as `response`, and whether it was `truncated`."""
    return {"prompt": prompt, "response": reply, "truncated": reply.truncated}
