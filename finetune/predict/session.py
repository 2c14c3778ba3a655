"""The interactive session of a model, by its kind."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.evaluation.scores import Ranking
from finetune.models.decoding import GREEDY, Decoding
from finetune.predict.chat_repl import ChatRepl
from finetune.predict.classifier import ClassifierPredictor
from finetune.predict.classifier_repl import ClassifierRepl
from finetune.predict.generative import GenerativePredictor
from finetune.predict.predictor import MaskedLMPredictor, Predictor
from finetune.predict.repl import FillMaskRepl, McqRepl


@dataclass(frozen=True)
class SessionSettings:
    """Settings that a session begins with; fields as the parameters of `inference.interactive_mode`."""

    top_k: int = 5
    scoring: str = "auto"
    orders: str = "cyclic"
    word_length: int = 1
    decoding: Decoding = GREEDY
    system_prompt: str | None = None


def run_session(predictor: Predictor, settings: SessionSettings) -> None:
    """Run an interactive session until quit, exit, q or Ctrl-D; a wrong entry does not end it."""

    def answer(question: str, options: dict[str, str], method: str, orders: str) -> Ranking:
        return predictor.rank(question, options, len(options), method, orders)

    top_k, method, orders = settings.top_k, settings.scoring, settings.orders
    if isinstance(predictor, GenerativePredictor):
        ChatRepl(predictor, answer, method, orders, settings.decoding, settings.system_prompt).run()
    elif isinstance(predictor, ClassifierPredictor):
        ClassifierRepl(predictor, top_k).run()
    elif isinstance(predictor, MaskedLMPredictor):
        FillMaskRepl(predictor, answer, top_k, method, orders, settings.word_length).run()
    else:
        McqRepl(predictor, answer).run()
