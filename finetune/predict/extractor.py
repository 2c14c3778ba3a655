"""Predictor for extractors: a question about a passage becomes a part of the passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.answer_spans import SpanOptions
from finetune.data.cells import is_blank
from finetune.data.span_rows import SpanRow
from finetune.evaluation.extraction import MAX_ANSWER_LENGTH, STRIDE, EncodedQuestions, SpanSettings
from finetune.evaluation.span_search import Candidate, SpanAnswers, SpanSearch
from finetune.models.kinds import finds_no_answer
from finetune.models.run_card import RunCard
from finetune.models.tokenizer import prompt_length
from finetune.predict.file_columns import trained_columns
from finetune.predict.predictor import LocalPredictor
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.cli.inference_args import InferenceArgs
    from finetune.runtime.distributed import Distributed

Answer = dict[str, Any]  # text, start, end, score
LISTED = 20  # most answers of a question


class ExtractorPredictor(LocalPredictor):
    """An extractive question-answering model.

    Args: as `LocalPredictor`.

    Attributes:
        may_be_none: it was trained on passages without an answer too, and may find none.
        settings: how passages are read: as in training, where the run card tells.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        super().__init__(model, tokenizer, device, name)
        card = self.card or RunCard()
        self.may_be_none = finds_no_answer(model.config)
        self.settings = SpanSettings(
            prompt_length(model.config, tokenizer, card.max_length),
            int(card.flags.get("stride", STRIDE)),
            int(card.flags.get("max_answer_length", MAX_ANSWER_LENGTH)),
        )

    def use_flags(self, flags: InferenceArgs) -> None:
        """Take over --max_answer_length, where it is given."""
        if "max_answer_length" in flags.given:
            old = self.settings
            self.settings = SpanSettings(old.max_length, old.stride, flags.max_answer_length)

    def answer(self, question: str, context: str) -> Answer:
        """Return the best answer to a question about a passage.

        Returns:
            `text`, `start`, `end` (characters of the passage, the end excluded) and `score`, the probability
            among all answers that may be given. The text is "" and the places are None where the passage has
            no answer.

        Raises:
            UserError: what is no text, or is empty; a question that leaves no room for the passage.
        """
        return self.answer_pairs([(question, context)], 1)[0][0]

    def answer_pairs(self, pairs: Sequence[tuple[str, str]], top_k: int = 1) -> list[list[Answer]]:
        """Return the `top_k` best answers to each (question, passage), at most LISTED, best first.

        At least one: no answer, where a passage has none. Raises UserError as `answer`.
        """
        rows = [SpanRow(*checked_pair(question, context)) for question, context in pairs]
        encoded = self.encode(rows)
        if encoded.too_long:
            raise UserError(encoded.too_long[0][1])
        found = zip(rows, self.search(encoded), strict=True)
        return [self.ranked(row.context, answers)[: max(1, top_k)] for row, answers in found]

    def encode(self, rows: Sequence[SpanRow]) -> EncodedQuestions:
        """Return questions as windows of tokens."""
        return EncodedQuestions.of(self.tokenizer, rows, self.settings)

    def search(self, encoded: EncodedQuestions, world: Distributed | None = None) -> list[SpanAnswers]:
        """Return what was found for each question; shared among the ranks of `world`."""
        search = SpanSearch(
            self.forward, self.tokenizer.pad_token_id, self.settings.max_answer_length, self.device, world
        )
        return search(encoded.windows)

    def ranked(self, context: str, answers: SpanAnswers) -> list[Answer]:
        """Return all answers that were kept, no answer among them where it may be given, best first."""
        candidates: list[Candidate | None] = [*answers.best[:LISTED]]
        if self.may_be_none or not candidates:
            null = answers.null
            place = sum(one is not None and one.score >= null for one in candidates)
            candidates.insert(place, None)
        return [
            {
                "text": "" if one is None else context[one.start : one.end],
                "start": one and one.start,
                "end": one and one.end,
                "score": answers.probability(one, self.may_be_none),
            }  # fmt: skip
            for one in candidates
        ]

    def method(self, requested: str = "auto") -> str:
        """Raise UserError: an extractor knows no options."""
        raise UserError(
            f"{self.name or '這個模型'} 是抽取式問答模型，只在文章裡找答案，不會答選擇題；請用 answer_span"
        )

    def _prompt_settings(self) -> list[str]:
        return [str(self.settings), str(self.may_be_none)]


def columns_for(flags: InferenceArgs, card: RunCard | None, source: str) -> SpanOptions:
    """Return the columns of passages and answers: the flags', else those of training that the file has."""
    trained = card.flags if card else {}
    return SpanOptions(
        flags.text_column or trained_columns(source, trained.get("text_column")),
        flags.label_column or trained_columns(source, trained.get("label_column")),
    )


def checked_pair(question: object, context: object) -> tuple[str, str]:
    """Return question and passage. Raises UserError where they are no texts, or empty, or too long."""
    for text, what in ((question, "問題"), (context, "文章")):
        if not isinstance(text, str):
            raise UserError(f"{what}應是一段文字，得到 {str(text)[:40]!r}")
        if is_blank(text):
            raise UserError(f"{what}是空的")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{what}不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
        if reason := too_long(text):
            raise UserError(f"{what}{reason}")
    return str(question), str(context)
