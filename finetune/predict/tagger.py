"""Predictor for taggers: spans of texts of any length, with their places in the text as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.data.tag_schemes import TagSet
from finetune.data.tagged import TaggedRow
from finetune.evaluation.tag_records import Entity, entities_of
from finetune.evaluation.tagging import Tagger, Tagging, gold_tags
from finetune.models.kinds import names_of
from finetune.models.run_card import RunCard
from finetune.models.tokenizer import prompt_length
from finetune.models.unit_tokens import STRIDE, EncodedText, UnitTokenizer
from finetune.predict.predictor import LocalPredictor
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed


class TaggerPredictor(LocalPredictor):
    """A token classifier.

    Args: as `LocalPredictor`.

    Attributes:
        tags: its tags, by number.
        max_length: tokens of a window; a longer text is read in several.
        units: tokenizes texts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        super().__init__(model, tokenizer, device, name)
        self.tags = TagSet(tuple(names_of(model.config)))
        card = self.card or RunCard()
        self.max_length: int = prompt_length(model.config, tokenizer, card.max_length)
        stride = card.flags.get("stride")
        self.stride: int = stride if isinstance(stride, int) and stride >= 0 else STRIDE
        self.units = UnitTokenizer(tokenizer, self.max_length, self.stride)

    def tag(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Return the spans of each text, in order. Texts may be of any length, and empty.

        Raises:
            UserError: what is no text, half characters.
        """
        encoded, taggings = self.taggings(texts)
        return [
            self.entities(text, parts, tagging)
            for text, parts, tagging in zip(texts, encoded, taggings, strict=True)
        ]

    def taggings(
        self, texts: Sequence[str], world: Distributed | None = None, rows: Sequence[TaggedRow] | None = None
    ) -> tuple[list[EncodedText], list[Tagging]]:
        """Return the units of each text, and their tags; see `tag`.

        Args:
            world: shares the texts among the ranks; every rank gets all of them.
            rows: the texts with their gold spans, for the losses; None without.
        """
        encoded = self.units.encode([_as_text(text) for text in texts])
        # The model's pad id, not the tokenizer's: a decoder may find the end of a row by it.
        pad_id = getattr(self.model.config, "pad_token_id", None)
        pad_id = self.tokenizer.pad_token_id if pad_id is None else pad_id
        tagger = Tagger(self.forward, self.tags, pad_id or 0, self.device, world)
        gold = None
        if rows is not None:
            gold = [gold_tags(row, text.units, self.tags)[0] for row, text in zip(rows, encoded, strict=True)]
        return encoded, tagger.tag(encoded, gold)

    def entities(self, text: str, encoded: EncodedText, tagging: Tagging) -> list[Entity]:
        """Return the spans that the tags of a text write."""
        return entities_of(text, encoded, tagging, self.tags)

    def method(self, requested: str = "auto") -> str:
        """Raise UserError: a tagger does not answer questions."""
        raise UserError(f"{self.name or '這個模型'} 是序列標註模型，只會標註，不會答選擇題；請用 tag")

    def _prompt_settings(self) -> list[str]:
        return [*self.tags.names, str(self.max_length), str(self.stride)]


def _as_text(text: object) -> str:
    """Return a text. Raises UserError where it is none, or cannot be read."""
    if not isinstance(text, str):
        raise UserError(f"每一筆應是一段文字，得到 {str(text)[:40]!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("文字不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    if reason := too_long(text):
        raise UserError(f"文字{reason}")
    return text
