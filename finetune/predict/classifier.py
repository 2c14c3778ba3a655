"""Predictor for classifiers: texts, or pairs of texts, become ranked labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.label_columns import column_names
from finetune.evaluation.classification import THRESHOLD, Encoded, encode, logits, probabilities
from finetune.models.forward import is_multi
from finetune.models.kinds import names_of
from finetune.models.run_card import RunCard
from finetune.models.tokenizer import prompt_length
from finetune.predict.predictor import LocalPredictor
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed

Ranked = list[tuple[str, float]]  # every label with its probability, best first
TextOrPair = str | tuple[str, str]


class ClassifierPredictor(LocalPredictor):
    """A sequence classifier, single-label or multi-label.

    Args: as `LocalPredictor`.

    Attributes:
        names: the labels, by class.
        multi: a text may have no label, or several: each has a probability of its own.
        max_length: tokens of a text that are read; as the run card says, as far as the model can.
        truncation_logged: the warning about a text that was too long was given.
        trained_columns: the text columns of the training data, two for pairs; none where that is not known.

    Raises:
        UserError: a head with one output, which is a regression and has no labels.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        super().__init__(model, tokenizer, device, name)
        self.names: list[str] = names_of(model.config)
        self.multi: bool = is_multi(model.config)
        if len(self.names) < 2 and not self.multi:
            raise UserError(f"{name or '這個模型'} 的輸出只有一個數（迴歸），沒有類別可分")
        card = self.card or RunCard()
        self.max_length: int = prompt_length(model.config, tokenizer, card.max_length)
        self.truncation_logged = False
        self.trained_columns = column_names(str(card.flags.get("text_column") or ""))

    def warn(self, *texts: str) -> None:
        """Log unknown characters, and texts that come singly or in pairs unlike the training data."""
        super().warn(*texts)
        self.warn_of_count(len(texts))

    def warn_of_count(self, count: int) -> None:
        """Warn when a model trained on pairs gets single texts, or the other way round.

        Args:
            count: texts of a row, 1 or 2.
        """
        trained, titles = len(self.trained_columns), {1: "一段文字", 2: "句對"}
        if trained and trained != count:
            log(f"⚠️ 這個模型是以{titles[trained]}訓練的，這裡給的是{titles[count]}，答案可能沒有意義")

    def classify(self, texts: Sequence[TextOrPair]) -> list[Ranked]:
        """Return the labels of each text or pair, ranked by probability.

        The probabilities are a softmax or, of a multi-label model, independent sigmoids. Labels that are
        equal keep the order of the classes. A text that is too long loses its end, of a pair the longer one;
        that is logged once.

        Raises:
            UserError: what is no text, half characters.
        """
        return [self.ranked(row) for row in self.probabilities(texts)]

    def ranked(self, probabilities: Sequence[float]) -> Ranked:
        """Return the labels with their probabilities, best first."""
        return sorted(zip(self.names, probabilities, strict=True), key=lambda pair: -pair[1])

    def probabilities(
        self, texts: Sequence[TextOrPair], world: Distributed | None = None
    ) -> list[list[float]]:
        """Return the probabilities of the classes, (n, K), in their order; see `classify`.

        Args:
            world: shares the rows among the ranks; every rank gets all of them.
        """
        rows = self.encode(texts)
        if not self.truncation_logged and any(row.cut for row in rows):
            self.truncation_logged = True
            log(f"⚠️ 有文字超過 {self.max_length} 個 token，超過的部分沒有讀")
        return self.of_rows(rows, world)

    def encode(self, texts: Sequence[TextOrPair]) -> list[Encoded]:
        """Return texts or pairs as token ids. Raises UserError for what is no text."""
        return [encode(self.tokenizer, *_as_pair(text), self.max_length) for text in texts]

    def of_rows(self, rows: Sequence[Encoded], world: Distributed | None = None) -> list[list[float]]:
        """Return the probabilities of the classes of rows, (n, K)."""
        return probabilities(self.forward, self.model.config, self._pad_id, rows, self.device, world)

    def logits(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """Return the logits of the classes of rows, (n, K)."""
        return logits(self.forward, self.model.config, self._pad_id, rows, self.device)

    @property
    def _pad_id(self) -> int:
        """The model's pad id, not the tokenizer's: a decoder finds the end of a row by it."""
        pad_id = getattr(self.model.config, "pad_token_id", None)
        return self.tokenizer.pad_token_id if pad_id is None else pad_id

    def chosen_labels(self, ranked: Ranked) -> list[str]:
        """Return the best label or, of a multi-label model, those of at least THRESHOLD, perhaps none."""
        if self.multi:
            return [label for label, probability in ranked if probability >= THRESHOLD]
        return [ranked[0][0]]

    def to_record(self, ranked: Ranked, top_k: int | None = None) -> dict[str, Any]:
        """Return `label` or, of a multi-label model, `labels`; and the `probabilities` of `top_k` labels."""
        labels = self.chosen_labels(ranked)
        chosen: dict[str, Any] = {"labels": labels} if self.multi else {"label": labels[0]}
        return chosen | {"probabilities": {label: round(share, 6) for label, share in ranked[:top_k]}}

    def method(self, requested: str = "auto") -> str:
        """Raise UserError: a classifier does not answer questions."""
        raise UserError(f"{self.name or '這個模型'} 是分類模型，只會分類，不會答選擇題；請用 classify")

    def _prompt_settings(self) -> list[str]:
        return [*self.names, str(self.multi), str(self.max_length)]


def _as_pair(text: object) -> tuple[str, str]:
    """Return a text or a pair of texts as two; the second may be empty. Raises UserError."""
    pair = (text, "") if isinstance(text, str) else text
    if not isinstance(pair, (tuple, list)) or [type(part) for part in pair] != [str, str]:
        raise UserError(f"每一筆應是一段文字，或兩段一組 (甲, 乙)，得到 {str(text)[:40]!r}")
    try:
        "".join(pair).encode()
    except UnicodeEncodeError:
        raise UserError("文字不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    if reason := too_long(*pair):
        raise UserError(f"文字{reason}")
    return pair[0], pair[1]
