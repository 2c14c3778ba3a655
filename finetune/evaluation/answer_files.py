"""Files of per-question answers: which ones a path means, and their rows, one Answer a question.

Several answers of a file to one question (runs, samples) become one, its credit their mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import Unreadable, where
from finetune.data.encodings import UnknownEncodingError
from finetune.data.json_files import read_json
from finetune.data.question import normalised
from finetune.data.subjects import SUBJECTS
from finetune.evaluation.answer_layouts import (
    ANSWERED,
    LM_EVAL,
    OURS,
    TWINKLE,
    Answer,
    layout_of,
    read_answer,
)
from finetune.runtime.errors import UserError, listed, reason

OUR_FILE = "predictions.jsonl"
# TASK and the time of the run, to the microsecond
LM_EVAL_FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.jsonl")
TWINKLE_FILE = re.compile(r"eval_results_(?P<time>.+)_run\d+(_node\w+?_rank\d+)?\.jsonl")
KNOWN = (
    "認得的有：本程式的 predictions.jsonl、lm-eval --log_samples 的 samples_*.jsonl、"
    "Twinkle Eval 的 eval_results_*.jsonl"
)
TITLES = {OURS: "本程式", LM_EVAL: "lm-eval", TWINKLE: "Twinkle Eval"}
_SUBJECT_OF = {re.sub(r"\W", "_", subject): subject for subject in SUBJECTS}  # as lm-eval writes file names


@dataclass
class AnswerFile:
    """Answers of one model.

    Attributes:
        path: as given.
        files: that were read.
        layout: OURS, LM_EVAL or TWINKLE.
        answers: one a question, in the order of the files.
        rows: answers read, of which several may be to one question.
        keyless: number of rows without a key, which are left out.
        bad: `file:line：reason` of the rows that cannot be read.
        other_filters: names of lm-eval's filters whose rows are left out, for they count a reply again.
    """

    path: str
    files: list[Path]
    layout: str
    answers: list[Answer] = field(default_factory=list)
    rows: int = 0
    keyless: int = 0
    bad: list[str] = field(default_factory=list)
    other_filters: list[str] = field(default_factory=list)

    @property
    def sets(self) -> list[str]:
        """Names of the sets of questions in it; [""] where it has none."""
        return list(dict.fromkeys(answer.set for answer in self.answers))


def read_answers(path: str, flag: str = "--compare") -> AnswerFile:
    """Read the answers of a file, or of a folder that holds those of one model.

    Args:
        path: the file or folder.
        flag: that named it, for messages.

    Raises:
        UserError: no such file, several candidates, or no answers in it.
    """
    files = answer_files(path, flag)
    result = AnswerFile(path, files, "")
    answers: dict[tuple[str, str, str], list[Answer]] = {}
    for file in files:
        try:
            for answer in _read_file(file, result):
                key = (answer.fingerprint, answer.set, answer.id)
                answers.setdefault(key, []).append(answer)
        except (OSError, UnknownEncodingError) as error:
            raise UserError(f"{flag} {file}：讀不進來（{reason(error)}）") from None
    if not answers:
        if result.keyless:
            raise UserError(f"{flag} {path}：{result.keyless} 題都沒有答案，無從比較")
        why = result.bad[0].partition("：")[2] if result.bad else "裡面沒有作答"
        raise UserError(f"{flag} {path}：不是逐題的作答（{why}）。{KNOWN}")
    result.answers = [_merged(runs) for runs in answers.values()]
    return result


def answer_files(path: str, flag: str = "--compare") -> list[Path]:
    """Return the files that a path means: itself, or those of the only model in a folder.

    Raises:
        UserError: there is nothing, or several.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{flag} {path}：沒有這個檔案或資料夾")
    groups: dict[tuple[Path, str], list[Path]] = {}
    for pattern in ("*.jsonl", "*/*.jsonl", "*/*/*.jsonl"):
        for file in sorted(place.glob(pattern)):
            if (kind := _kind_of(file.name)) and file.is_file():
                groups.setdefault((file.parent, kind), []).append(file)
    if not groups:
        raise UserError(f"{flag} {path}：資料夾裡沒有逐題的作答。{KNOWN}")
    if len(groups) > 1:
        found = listed((files[0] for files in groups.values()), 5)
        raise UserError(
            f"{flag} {path}：資料夾裡有 {len(groups)} 份作答，看不出要比哪一份：{found}；請給其中一份的路徑"
        )
    files = next(iter(groups.values()))
    tasks = Counter(match["task"] for file in files if (match := LM_EVAL_FILE.fullmatch(file.name)))
    if twice := [task for task, count in tasks.items() if count > 1]:
        raise UserError(
            f"{flag} {path}：{listed(twice, 5)} 評測過不只一次（檔名裡的時間不同），看不出要比哪一次；"
            "請給其中一個檔案，或把別次的移開"
        )
    return files


def _kind_of(name: str) -> str:
    """Return what files are one candidate with: their layout, and the time where each has its own."""
    if name == OUR_FILE:
        return OURS
    if LM_EVAL_FILE.fullmatch(name):
        return LM_EVAL
    match = TWINKLE_FILE.fullmatch(name)
    return f"{TWINKLE} {match['time']}" if match else ""


def _read_file(file: Path, result: AnswerFile) -> Iterator[Answer]:
    """Yield the answers of one file that have a key; what else is in it is counted in `result`."""
    subject = _subject_in_name(file.name)
    chosen_filter: Any = None
    rows = read_json(file)
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except UserError as error:  # it breaks off, for the run was killed: the rows before it stand
            result.bad.append(str(error))
            return
        try:
            if not isinstance(row, dict):
                raise ValueError(row if isinstance(row, Unreadable) else "應該是一個物件")
            layout = layout_of(row)
            if layout is None:
                raise ValueError(f"有的欄位是 {listed(row, 8)}")
            result.layout = result.layout or layout
            answer = read_answer(row, result.layout, subject)
        except ValueError as error:
            result.bad.append(f"{where(file, number)}：{error}")
            continue
        if layout == LM_EVAL:
            name = str(row.get("filter"))
            chosen_filter = chosen_filter or name
            if name != chosen_filter:
                if name not in result.other_filters:
                    result.other_filters.append(name)
                continue
        if answer.gold is None:
            result.keyless += 1
            continue
        result.rows += 1
        yield answer


def _subject_in_name(name: str) -> str:
    """Return the subject in a file name of lm-eval: of `tmmluplus_physics` physics; "" of other files."""
    if not (match := LM_EVAL_FILE.fullmatch(name)):
        return ""
    task = match["task"]
    parts = re.sub(r"\W", "_", task).split("_")
    names = ("_".join(parts[start:]) for start in range(len(parts)))
    return next((_SUBJECT_OF[name] for name in names if name in _SUBJECT_OF), task)


def _merged(runs: Sequence[Answer]) -> Answer:
    """Return several answers to one question as one, their options in the order of the first."""
    first = runs[0]
    if len(runs) == 1:
        return first
    chosen = tuple(
        matching(prediction, run.options, first.options) for run in runs for prediction in run.chosen
    )
    outcomes = Counter(run.outcome for run in runs)
    outcome = first.outcome if len(outcomes) == 1 else ANSWERED if ANSWERED in outcomes else first.outcome
    mean = sum(run.credit for run in runs) / len(runs)
    return replace(first, chosen=chosen, credit=mean, outcome=outcome)


def matching(prediction: Any, options: Sequence[str], others: Sequence[str]) -> Any:
    """Return a prediction as an index into the same options in another order.

    It stays as it is where a file does not hold the options, and becomes -1 where none is the same.
    """
    if isinstance(prediction, tuple):
        return tuple(matching(one, options, others) for one in prediction)
    if prediction is None or prediction < 0 or not options or not others or tuple(options) == tuple(others):
        return prediction
    if prediction >= len(options):
        return -1
    text = options[prediction]
    for same in (str.strip, normalised):
        texts = [same(option) for option in others]
        if texts.count(same(text)) and (same is not normalised or same(text)):
            return texts.index(same(text))
    return -1
