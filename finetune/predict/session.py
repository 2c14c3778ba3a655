"""The interactive session of a model, by its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.evaluation.scores import Ranking
from finetune.models.decoding import GREEDY, Decoding
from finetune.predict.abilities import ability
from finetune.predict.predictor import MaskedLMPredictor, Predictor
from finetune.predict.repl import Answer, FillMaskRepl, McqRepl
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune.predict.chat_repl import ChatRepl


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
    """Run an interactive session until quit, exit, q or Ctrl-D; a wrong entry does not end it.

    Raises:
        UserError: a model without a session.
    """
    make_repl: Any = ability(predictor.kind, "repl")
    if make_repl is None:
        raise UserError(
            f"{predictor.name or '這個模型'} 沒有輸出層，不能對話；"
            "可用 --embed，或 --prompt 加 --hidden_states"
        )
    make_repl(predictor, settings).run()


def fill_mask_session(predictor: MaskedLMPredictor, settings: SessionSettings) -> FillMaskRepl:
    """Make the session of a masked model."""
    top_k, method, orders = settings.top_k, settings.scoring, settings.orders
    return FillMaskRepl(predictor, _answering(predictor), top_k, method, orders, settings.word_length)


def chat_session(predictor: Any, settings: SessionSettings) -> ChatRepl:
    """Make the session of a causal model."""
    from finetune.predict.chat_repl import ChatRepl

    asked = _answering(predictor), settings.scoring, settings.orders
    return ChatRepl(predictor, *asked, settings.decoding, settings.system_prompt)


def quiz_session(predictor: Predictor, settings: SessionSettings) -> McqRepl:
    """Make the session of a model that only answers multiple-choice questions."""
    return McqRepl(predictor, _answering(predictor))


def _answering(predictor: Predictor) -> Answer:
    """Return what ranks all options of a question."""

    def answer(question: str, options: dict[str, str], method: str, orders: str) -> Ranking:
        return predictor.rank(question, options, len(options), method, orders)

    return answer
