"""Rows of per-question answers, as this program, lm-eval and Twinkle Eval write them, read as one type.

lm-eval: `--log_samples` of 0.4 (samples_TASK_TIME.jsonl). Twinkle Eval: eval_results_TIME_runN.jsonl, whose
question is one text, a column a line.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.question import LETTERS, MAX_OPTIONS, MIN_OPTIONS, Question
from finetune.data.question_rows import draft
from finetune.evaluation.metrics import Prediction, credit
from finetune.runtime.errors import shown

OURS, LM_EVAL, TWINKLE = "ours", "lm-eval", "twinkle"
ANSWERED, UNREADABLE, REFUSED = "answered", "unreadable", "refused"
NO_ANSWER: Prediction = -1
METRICS = ("acc", "exact_match")  # of lm-eval, the first one that a row has
OPTION = re.compile(r"\n([A-J]): ?")
COLUMN = re.compile(r"\n([A-Za-z_]\w+): ([^\n]*)$")  # no option: its name has two characters or more


@dataclass(frozen=True)
class Answer:
    """Answer to one question.

    Attributes:
        fingerprint: of the question's content; "" where the row neither says it nor holds the question.
        id: names the row in its file.
        subject: "" where it is not known.
        stem: "" where the row does not hold it.
        options: in the order they were shown; () where the row does not hold them.
        gold: index of the key; None without one.
        chosen: the prediction of each run, NO_ANSWER where none can be read.
        credit: 0 to 1, as the file itself counts it; of several runs the mean.
        outcome: answered, unreadable, truncated, refused.
        set: of the file: test, validation …; "" where it has none.
    """

    fingerprint: str
    id: str
    subject: str
    stem: str
    options: tuple[str, ...]
    gold: int | None
    chosen: tuple[Prediction, ...]
    credit: float
    outcome: str
    set: str = ""


def layout_of(row: dict[str, Any]) -> str | None:
    """Return the layout of a row; None where it is none that is known."""
    if isinstance(row.get("doc"), dict) and row.keys() & {"resps", "filtered_resps"}:
        return LM_EVAL
    if row.keys() >= {"question", "correct_answer", "is_correct"}:
        return TWINKLE
    return OURS if row.keys() >= {"gold", "prediction"} else None


def read_answer(row: dict[str, Any], layout: str, subject: str = "") -> Answer:
    """Read a row.

    Args:
        row: of the file.
        layout: OURS, LM_EVAL or TWINKLE.
        subject: that the file's name says.

    Raises:
        ValueError: it cannot be read; the reason in Chinese.
    """
    if layout_of(row) != layout:
        raise ValueError("欄位與前面的列不同")
    reader = {OURS: _read_ours, LM_EVAL: _read_lm_eval, TWINKLE: _read_twinkle}[layout]
    return reader(row, subject)


# ---- this program ------------------------------------------------------------------------------------------


def _read_ours(row: dict[str, Any], subject: str) -> Answer:
    options = row.get("options")
    texts = tuple(map(str, options.values())) if isinstance(options, dict) else ()
    gold = _index_of(row["gold"])
    tied = row.get("tied")
    first: Prediction = _place(row["prediction"])
    if isinstance(tied, list) and len(tied) > 1:
        first = tuple(_place(letter) for letter in tied)
    runs = row.get("runs")
    chosen = (first, *map(_place, runs[1:])) if isinstance(runs, list) and runs else (first,)
    fingerprint = row.get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint:
        fingerprint = ""
    unanswered = REFUSED if row.get("refused") else UNREADABLE
    outcome = row.get("outcome")
    return Answer(
        fingerprint, _text(row.get("id")), _text(row.get("subject")) or subject, _text(row.get("question")),
        texts, gold, chosen, _mean(credit(gold, each) for each in chosen) if gold is not None else 0.0,
        outcome if isinstance(outcome, str) else unanswered if first == NO_ANSWER else ANSWERED,
        _text(row.get("set")),
    )  # fmt: skip


# ---- lm-eval -----------------------------------------------------------------------------------------------


def _read_lm_eval(row: dict[str, Any], subject: str) -> Answer:
    drafted = draft(row["doc"])
    stem, options = drafted.stem, drafted.bare or drafted.options
    replies = row.get("filtered_resps") or row.get("resps") or []
    if not isinstance(replies, list):
        raise ValueError(f"filtered_resps 應該是一串，得到 {type(replies).__name__}")
    likelihoods = [_log_likelihood(reply) for reply in replies]
    scored = None not in likelihoods and len(likelihoods) in (len(options), 2 * len(options))
    gold = _lm_eval_gold(row.get("target"), options, _continuations(row) if scored else ())
    figure = _lm_eval_metric(row)
    chosen: tuple[Prediction, ...]
    if scored:  # twice as many: the second half is without the question, for acc_mutual_info
        scores = [-math.inf if s is None or math.isnan(s) else s for s in likelihoods[: len(options)]]
        best = max(scores)
        chosen = (scores.index(best) if best > -math.inf else NO_ANSWER,)
    else:
        texts = replies[0] if len(replies) == 1 and isinstance(replies[0], list) else replies
        chosen = tuple(_named_option(text, options) for text in texts) or (NO_ANSWER,)
        if figure == 1 and set(chosen) == {NO_ANSWER}:
            chosen = (gold,)  # what counted as right can have named nothing else
    if figure is None:
        figure = _mean(credit(gold, each) for each in chosen)
    outcome = UNREADABLE if set(chosen) == {NO_ANSWER} else ANSWERED
    fingerprint = _fingerprint(stem, tuple(options))
    row_id = f"{subject}/{row['doc_id']}" if "doc_id" in row else drafted.id
    return Answer(
        fingerprint, row_id, drafted.subject or subject, stem, tuple(options), gold, chosen, figure, outcome
    )


def _log_likelihood(reply: Any) -> float | None:
    """Return the log-likelihood of an answer's text, which lm-eval writes as ["-1.5", "False"]."""
    while isinstance(reply, list) and len(reply) == 1 and isinstance(reply[0], list):
        reply = reply[0]
    if not isinstance(reply, list) or len(reply) != 2 or str(reply[1]) not in ("True", "False"):
        return None
    try:
        return math.nan if reply[0] is None else float(reply[0])
    except (TypeError, ValueError):
        return None


def _continuations(row: dict[str, Any]) -> list[str]:
    """Return the texts whose likelihoods were compared."""
    arguments = row.get("arguments")
    requests = list(arguments.values()) if isinstance(arguments, dict) else arguments
    texts = []
    for request in requests if isinstance(requests, list) else ():
        if isinstance(request, dict):
            texts.append(str(request.get("arg_1")).strip())
        elif isinstance(request, list):  # as older versions write a request
            texts.append("".join(map(str, request[1:2])).strip())
    return texts


def _lm_eval_gold(target: Any, options: Sequence[str], continuations: Sequence[str]) -> int:
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(options):
        return target
    text = str(target).strip()
    for texts in (continuations[: len(options)], [option.strip() for option in options]):
        if text in texts:
            return texts.index(text)
    bare = text.strip("()（）.。: ")
    if len(bare) == 1 and bare.upper() in LETTERS[: len(options)]:
        return LETTERS.index(bare.upper())
    if bare.isascii() and bare.isdecimal() and int(bare[:3]) < len(options):
        return int(bare[:3])
    raise ValueError(f"target {shown(target)} 不是選項的代號或文字")


def _lm_eval_metric(row: dict[str, Any]) -> float | None:
    """Return what the row itself counts; None where it counts nothing that is a share."""
    named = row.get("metrics")
    names = [*METRICS, *(named if isinstance(named, list) else ())]
    values = (row.get(name) for name in names if isinstance(name, str))
    shares = (float(v) for v in values if isinstance(v, (int, float)) and 0 <= v <= 1)
    return next(shares, None)


def _named_option(reply: Any, options: Sequence[str]) -> int:
    """Return the option that a filtered reply is: its letter, or its text."""
    text = str(reply).strip()
    texts = [option.strip() for option in options]
    if text in texts:
        return texts.index(text)
    bare = text.strip("()（）.。: ").upper()
    return LETTERS.index(bare) if len(bare) == 1 and bare in LETTERS[: len(options)] else -1


# ---- Twinkle Eval ------------------------------------------------------------------------------------------


def _read_twinkle(row: dict[str, Any], subject: str) -> Answer:
    if not isinstance(row["question"], str):
        raise ValueError(f"question 應該是文字，得到 {type(row['question']).__name__}")
    stem, options, columns = split_twinkle_question(row["question"])
    gold = _index_of(row["correct_answer"])
    if gold is None or gold >= len(options):
        raise ValueError(f"correct_answer {shown(row['correct_answer'])} 不是選項的代號")
    chosen = _place(row.get("predicted_answer"))
    if chosen >= len(options):
        chosen = -1
    fingerprint = _fingerprint(stem, options)
    return Answer(
        fingerprint, _text(columns.get("id")) or _text(row.get("question_id")),
        columns.get("subject") or columns.get("category") or subject, stem, options, gold, (chosen,),
        float(row["is_correct"] is True), UNREADABLE if chosen == NO_ANSWER else ANSWERED,
    )  # fmt: skip


def split_twinkle_question(text: str) -> tuple[str, tuple[str, ...], dict[str, str]]:
    r"""Split a question's text, its columns one a line: `stem\nA: …\nB: …`.

    Returns:
        stem, options, and the columns beside them by name; an option that is `None` was empty.

    Raises:
        ValueError: it holds no options.
    """
    text, columns = _take_columns(text)
    labels = list(OPTION.finditer(text))
    starts = [place for place, label in enumerate(labels) if label[1] == "A"]
    if not starts:
        raise ValueError("題目裡沒有選項（A: …）")
    chain = [labels[starts[-1]]]  # a dialogue in the stem may be labelled A and B too
    for label in labels[starts[-1] + 1 :]:
        if label[1] == LETTERS[len(chain)]:
            chain.append(label)
            if len(chain) == MAX_OPTIONS:
                break
    ends = [*(label.start() for label in chain[1:]), len(text)]
    options = [text[label.end() : end].strip() for label, end in zip(chain, ends, strict=True)]
    while options and options[-1] in ("", "None", "nan") and len(options) > 4:
        options.pop()
    if len(options) < MIN_OPTIONS:
        raise ValueError(f"有 {len(options)} 個選項，應為 {MIN_OPTIONS} 到 {MAX_OPTIONS} 個")
    stem, before = _take_columns(text[: chain[0].start()])
    return stem, tuple(options), {**before, **columns}


KNOWN_COLUMNS = ("id", "index", "subject", "category", "explanation", "source", "split", "dataset")


def _take_columns(text: str) -> tuple[str, dict[str, str]]:
    """Return a text without the columns at its end that are no part of a question, and those columns."""
    columns: dict[str, str] = {}
    while (match := COLUMN.search(text)) and match[1].lower() in KNOWN_COLUMNS:
        columns[match[1].lower()] = match[2].strip()
        text = text[: match.start()]
    return text, columns


# ---- shared ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)  # the second file asks the same questions
def _fingerprint(stem: str, options: tuple[str, ...]) -> str:
    return Question(stem, options, None).fingerprint


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _index_of(letter: Any) -> int | None:
    """Return the index of a letter; None for nothing.

    Raises:
        ValueError: it is something else.
    """
    if letter is None or letter == "":
        return None
    text = str(letter).strip().upper()
    if len(text) != 1 or text not in LETTERS:
        raise ValueError(f"{shown(letter)} 不是選項的字母")
    return LETTERS.index(text)


def _place(letter: Any) -> int:
    """Return the index of a chosen letter; -1 where nothing that is one was chosen."""
    try:
        index = _index_of(letter)
    except ValueError:
        return -1
    return -1 if index is None else index


def _mean(values: Iterable[float]) -> float:
    each = list(values)
    return sum(each) / len(each)
