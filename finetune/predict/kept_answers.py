"""Answers of an unfinished exam, in the report's folder, so that the same command goes on after a kill."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from finetune.cli.inference_args import InferenceArgs, report_folder
from finetune.predict.generative import GenerativePredictor
from finetune.predict.predictor import SERVER, Predictor
from finetune.prompts.scoring_methods import GENERATE
from finetune.runtime.console import log
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import RunError, Stopped
from finetune.runtime.journal import AnswerJournal

NAME = "answers{rank}.part.jsonl"  # reports/report.py removes it with the former report


def keep_answers(
    flags: InferenceArgs, predictor: Predictor, comparison: Predictor | None, method: str, world: Distributed
) -> None:
    """Have the models keep what they answer: replies, which take hours, and whatever a server answers.

    Raises:
        UserError: the folder holds answers of a run with another model or other settings.
    """
    models = [predictor, comparison] if comparison else [predictor]
    keeping = [model for model in models if method == GENERATE or model.device == SERVER]
    if not keeping:
        return
    path = Path(report_folder(flags)) / NAME.format(rank=f".rank{world.rank}" if world.rank else "")
    identity = {
        "model": predictor.digest(),
        "compare_with": comparison.digest() if comparison else "",
        "scoring": method,
        "decoding": "".join(str(one.decoding) for one in models if isinstance(one, GenerativePredictor)),
        "ranks": world.size,
    }
    answers = AnswerJournal(path, identity, "--report")
    if answers.known and world.is_main:
        log(f"從 {path} 接著做：已有 {answers.known} 個回答")
    for model in keeping:
        model.answers = answers


def stop_keeping(predictor: Predictor, comparison: Predictor | None) -> None:
    """Close the file of answers: all questions are answered, and the report will take its place."""
    for model in (predictor, comparison):
        if model and model.answers:
            model.answers.close()
            model.answers = None


@contextlib.contextmanager
def resumable(predictor: Predictor) -> Iterator[None]:
    """Say how to go on where the block ends before all questions are answered."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        if not predictor.answers:
            raise
        code = stop.exit_code - 128 if isinstance(stop, Stopped) else signal.SIGINT
        raise Stopped(code, f"已中斷；{predictor.answers.hint}") from None
    except RunError as error:
        if not predictor.answers:
            raise
        raise RunError(f"{error}；{predictor.answers.hint}") from error
