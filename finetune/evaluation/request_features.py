"""Features of requests and their answers that may be kept: numbers, and answers of a closed set, no texts.

Training takes them from the validation rows and the run card keeps them (training/snapshot.py); a server
takes them from what it is asked (serving/watch.py). They are defined here alone, so that the two can be
compared (evaluation/drift.py).

An answer is kept only where its words are those of the model or of this program: a label, the letter of an
option by its place, that there is no answer. Names of options, words that fill a blank, spans and replies
come from a text, and are counted or measured instead.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune.data.question import LETTERS
from finetune.prompts.scoring_methods import parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Features = dict[str, Any]  # names of NUMBERS -> a number; ANSWER, WAY
NUMBERS = {  # the features that are numbers, and their units
    "characters": "of all texts of the request", "tokens": "of them, without special tokens",
    "unknown": "share of the tokens that are [UNK]", "han": "share of Han characters among those that show",
    "confidence": "probability of the best answer, 0 to 1", "found": "labels or spans that were found",
    "reply": "characters that were written",
}  # fmt: skip
ANSWER = "answer"  # a text of a closed set; or, where there may be several or none, {text: how often}
WAY = "way"  # how options were scored: confidences of different ways cannot be compared
FOUND, NONE = "span", "none"  # answers of an extractor
DIGITS = 6  # decimals of a share or a probability
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
PATHS = {  # --task -> the paths of a server whose requests resemble the rows that it is trained on
    "exam": ("/v1/answer",), "classify": ("/v1/classify", "/predict"), "tag": ("/v1/tag",),
    "span": ("/v1/span",), "seq2seq": ("/v1/completions",), "mlm": ("/v1/fill",),
    "cpt": ("/v1/completions",), "sft": ("/v1/chat/completions", "/v1/completions"),
}  # fmt: skip


# ---- of one request ----------------------------------------------------------------------------------------


def text_features(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Features:
    """Return `characters`, `tokens`, `unknown` and `han` of the texts of a request, taken together.

    `unknown` is left out where a tokenizer has no [UNK].

    Args:
        tokenizer: the model's; special tokens that stand in a text are text.
    """
    ids = [
        token
        for text in texts
        for token in tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
    ]
    shown = sum(len(part) for text in texts for part in text.split())
    features = {
        "characters": sum(map(len, texts)), "tokens": len(ids),
        "han": round(sum(len(HAN.findall(text)) for text in texts) / max(1, shown), DIGITS),
    }  # fmt: skip
    if tokenizer.unk_token_id is not None:
        features["unknown"] = round(ids.count(tokenizer.unk_token_id) / max(1, len(ids)), DIGITS)
    return features


def option_features(scores: Sequence[float]) -> Features:
    """Return `confidence` and the letter of the best option.

    Args:
        scores: log-probabilities of the options, in nats, in the order of the options. The confidence is
            their softmax.
    """
    best = max(scores)
    total = sum(math.exp(score - best) for score in scores if math.isfinite(score))
    confidence = {"confidence": round(1 / total, DIGITS)} if math.isfinite(best) and total else {}
    return {**confidence, ANSWER: LETTERS[scores.index(best)]}


def label_features(probabilities: Mapping[str, float], chosen: str | Sequence[str]) -> Features:
    """Return `confidence`, the highest probability of a label, and what was chosen.

    Args:
        probabilities: of the labels, the likeliest among them.
        chosen: the label; of a multi-label model all that the text has, perhaps none.
    """
    features: Features = {"confidence": round(max(probabilities.values()), DIGITS)}
    if isinstance(chosen, str):
        return {**features, ANSWER: chosen}
    return {**features, "found": len(chosen), ANSWER: dict(Counter(chosen))}


def entity_features(entities: Sequence[Mapping[str, Any]]) -> Features:
    """Return how many spans a tagger found, of which labels; `confidence` is that of the least sure one.

    Args:
        entities: objects with `label` and `score`; a text without any has no confidence.
    """
    scores = [float(entity["score"]) for entity in entities if "score" in entity]
    return {
        **({"confidence": round(min(scores), DIGITS)} if scores else {}),
        "found": len(entities), ANSWER: dict(Counter(str(entity["label"]) for entity in entities)),
    }  # fmt: skip


def span_features(score: float, is_answer: bool) -> Features:
    """Return the `confidence` of an extractor, and whether it found an answer."""
    return {"confidence": round(score, DIGITS), ANSWER: FOUND if is_answer else NONE}


def reply_features(reply: str, logprobs: Sequence[float] = ()) -> Features:
    """Return how long a reply is and, where it is known, the mean probability of a token."""
    confidence = math.exp(sum(logprobs) / len(logprobs)) if logprobs else math.nan
    known = {"confidence": round(confidence, DIGITS)} if math.isfinite(confidence) else {}
    return {"reply": len(reply), **known}


def fill_features(best: Mapping[str, Any]) -> Features:
    """Return the `confidence` of the best word for a blank: of several tokens a geometric mean."""
    probability = best["probability"] if "probability" in best else math.exp(best["score"])
    return {"confidence": round(min(1.0, probability), DIGITS)}


def record_features(record: Mapping[str, Any], options: Sequence[str] = ()) -> Features:
    """Return the features of an answer as predict/records.py writes it; {} of a record that is none of them.

    Args:
        options: of a multiple-choice question the names of its options, in their order.
    """
    if "scores" in record and options:
        return option_features([record["scores"][name] for name in options])
    if "probabilities" in record:
        return label_features(record["probabilities"], record.get("label", record.get("labels")))
    if "entities" in record:
        return entity_features(record["entities"])
    if "start" in record:
        return span_features(record["score"], record["start"] is not None)
    if record.get("predictions"):
        return fill_features(record["predictions"][0])
    if "response" in record:
        return reply_features(record["response"], record.get("logprobs") or ())
    return {}


def way_of(method: str, orders: str) -> str:
    """Return how options were scored: the method and, where it matters, their orders."""
    parsed = parse(method)
    return f"{parsed} {orders}" if parsed.by_letter else str(parsed)


# ---- of many requests --------------------------------------------------------------------------------------


@dataclass
class FeatureSample:
    """Features of many requests.

    Attributes:
        rows: how many requests.
        numbers: name of a feature -> its values, ascending; of the requests that have it.
        answers: answer -> requests that have it.
        answered: requests that have an answer at all, or might have had one.
        exclusive: an answer is one of a set; else a request may have several of them, or none.
    """

    rows: int = 0
    numbers: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    exclusive: bool = True

    @classmethod
    def of(cls, features: Sequence[Features]) -> FeatureSample:
        """Collect the features of requests."""
        numbers = {
            name: sorted(one[name] for one in features if name in one)
            for name in NUMBERS
            if any(name in one for one in features)
        }
        answers = [one[ANSWER] for one in features if ANSWER in one]
        exclusive = all(isinstance(answer, str) for answer in answers)
        counts = Counter(
            name for answer in answers for name in ([answer] if isinstance(answer, str) else answer)
        )
        return cls(len(features), numbers, dict(sorted(counts.items())), len(answers), exclusive)

    def only(self, keeps: Callable[[str], bool]) -> FeatureSample:
        """Return the sample with the features whose names are kept; ANSWER is the name of the answers."""
        numbers = {name: values for name, values in self.numbers.items() if keeps(name)}
        if keeps(ANSWER):
            return FeatureSample(self.rows, numbers, self.answers, self.answered, self.exclusive)
        return FeatureSample(self.rows, numbers)

    def as_dict(self) -> dict[str, Any]:
        """Return the sample as run cards keep it."""
        answers = {"n": self.answered, "exclusive": self.exclusive, "counts": self.answers}
        return {"rows": self.rows, "numbers": self.numbers, "answers": answers if self.answered else {}}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> FeatureSample:
        """Read what `as_dict` returned, as `RunCard.read` has checked it."""
        answers = kept["answers"]
        return cls(
            kept["rows"], {name: sorted(values) for name, values in kept["numbers"].items()},
            dict(answers.get("counts", {})), answers.get("n", 0), answers.get("exclusive", True),
        )  # fmt: skip
