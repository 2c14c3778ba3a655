"""A loaded classifier with all that is needed to use it: texts, or pairs of them, become ranked labels."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.columns import column_names
from finetune.evaluation.classification import THRESHOLD, encode, probabilities
from finetune.models.forward import is_multi
from finetune.models.kinds import names_of
from finetune.models.run_card import RunCard
from finetune.models.tokenizer import prompt_length
from finetune.predict.predictor import Predictor
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

Ranked = list[tuple[str, float]]  # every label with its probability, best first


class ClassifierPredictor(Predictor):
    """Args: as `Examinee`.

    Attributes:
        names: the labels, by class.
        multi: a text may have no label, or several: each has a probability of its own.
        max_length: tokens of a text that are read; as the run card says, as far as the model can.
        told_of_cut: a text that was longer has been spoken of.
        taught_columns: of the texts it was taught, two for pairs; none where that is not known.

    Raises:
        UserError: a head that gives one number, which is a regression and no choice of labels.
    """

    def __init__(self, model, tokenizer, device, name: str = ""):
        super().__init__(model, tokenizer, device, name)
        self.names = names_of(model.config)
        self.multi = is_multi(model.config)
        if len(self.names) < 2 and not self.multi:
            raise UserError(f"{name or '這個模型'} 的輸出只有一個數（迴歸），沒有類別可分")
        self.max_length = prompt_length(model.config, tokenizer, (self.card or RunCard()).max_length)
        self.told_of_cut = False
        self.taught_columns = column_names(str((self.card or RunCard()).flags.get("text_column") or ""))

    def warn(self, *texts: str) -> None:
        super().warn(*texts)
        self.warn_of_count(len(texts))

    def warn_of_count(self, count: int) -> None:
        """Says when a model that was taught pairs gets single texts, or the other way round."""
        taught, kinds = len(self.taught_columns), {1: "一段文字", 2: "句對"}
        if taught and taught != count:
            log(f"⚠️ 這個模型學的是{kinds[taught]}，這裡給的是{kinds[count]}，答案可能沒有意義")

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[Ranked]:
        """The labels of each text or pair of texts: a softmax or, of a multi-label model, independent
        sigmoids. Labels that are equal keep the order of the classes. A text that is too long loses its end,
        of a pair the longer one; that is said once.

        Raises:
            UserError: what is no text, half characters.
        """
        return [self.ranked(row) for row in self.shares(texts)]

    def ranked(self, shares: Sequence[float]) -> Ranked:
        """Labels with their probabilities, best first."""
        return sorted(zip(self.names, shares, strict=True), key=lambda one: -one[1])

    def shares(self, texts: Sequence[str | tuple[str, str]], world=None) -> list[list[float]]:
        """The probabilities of the classes, (n, K), in their order; see `classify`.

        Args:
            world: shares the rows among the processes; every process gets all of them.
        """
        rows = [encode(self.tokenizer, *_both(text), self.max_length) for text in texts]
        if not self.told_of_cut and any(row.cut for row in rows):
            self.told_of_cut = True
            log(f"⚠️ 有文字超過 {self.max_length} 個 token，超過的部分沒有讀")
        # Not the tokenizer's: by this one a decoder finds where a row ends.
        pad = getattr(self.model.config, "pad_token_id", None)
        pad = self.tokenizer.pad_token_id if pad is None else pad
        return probabilities(self.forward, self.model.config, pad, rows, self.device, world)

    def chosen(self, ranked: Ranked) -> str | list[str]:
        """The label or, of a multi-label model, all those from THRESHOLD on, of which there may be none."""
        if self.multi:
            return [label for label, share in ranked if share >= THRESHOLD]
        return ranked[0][0]

    def to_record(self, ranked: Ranked, top_k: int | None = None) -> dict:
        """What a file is told of a text: `label` or `labels`, and `probabilities` by label, of `top_k`."""
        shares = {label: round(share, 6) for label, share in ranked[:top_k]}
        return {"labels" if self.multi else "label": self.chosen(ranked), "probabilities": shares}

    def method(self, wanted: str = "auto") -> str:
        """Raises UserError: it does not answer questions."""
        raise UserError(f"{self.name or '這個模型'} 是分類模型，只會分類，不會答選擇題；請用 classify")

    def _manner(self) -> list[str]:
        return [*self.names, str(self.multi), str(self.max_length)]


def _both(text: object) -> tuple[str, str]:
    """A text, or a pair of them, as two; the second may be empty. Raises UserError."""
    both = (text, "") if isinstance(text, str) else text
    if not isinstance(both, (tuple, list)) or [type(one) for one in both] != [str, str]:
        raise UserError(f"每一筆應是一段文字，或兩段一組 (甲, 乙)，得到 {str(text)[:40]!r}")
    try:
        "".join(both).encode()
    except UnicodeEncodeError:
        raise UserError("文字不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    if reason := too_long(*both):
        raise UserError(f"文字{reason}")
    return both[0], both[1]
