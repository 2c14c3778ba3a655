"""A loaded model with all that is needed to ask it: its forward pass, its way of writing questions, and the
method it was taught for.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

from finetune.data.question import Question
from finetune.data.question_rows import parse_question
from finetune.evaluation.queries import LogprobRunner
from finetune.evaluation.scoring import Ranking, Scorer, Scores, estimate_prior, score_options
from finetune.models import cpu
from finetune.models.forward import ROW_CLASSES, bf16_forward, forward_of, is_causal
from finetune.models.run_card import RunCard, hash_texts
from finetune.models.tokenizer import prompt_length
from finetune.predict.fill_mask import (
    Blanks,
    Filling,
    fill_first_blanks,
    fill_words,
    rank_candidates,
    read_blanks,
)
from finetune.prompts.exam import ExamPrompts, unknown_parts
from finetune.prompts.scoring_methods import CHOICE, GENERATE, parse
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

CACHE_SIZE = 1 << 12  # texts whose token ids are kept: a file of questions seldom repeats one
DEFAULT_METHOD = "pll"  # asks any masked language model


def asks_for_words(blanks: Blanks, word_length: int, candidates: Sequence[str] | None) -> bool:
    """False for one blank that becomes one token, which has a probability of its own."""
    return bool(candidates) or word_length > 1 or len(blanks.places) > 1


def prompts_for(config, tokenizer, card: RunCard | None, max_length: int | None = None) -> ExamPrompts:
    """How a model is asked: the way its card says, or in the default words; `max_length` tokens, else as its
    card says.
    """
    card = card or RunCard()
    length = prompt_length(config, tokenizer, max_length or card.max_length)
    return ExamPrompts(tokenizer, length, card.template, CACHE_SIZE)


def kind_of(model) -> str:
    """One of `kinds.CLASSES`, by what the model is now; a configuration may still say what its base was."""
    name = type(model).__name__
    heads = zip(ROW_CLASSES, ("classifier", "choice"), strict=True)
    found = next((kind for ending, kind in heads if name.endswith(ending)), "masked")
    return "causal" if is_causal(model) else found


class Predictor:
    """What all kinds of models have in common.

    Args: as `inference.load_model` returns them. `name`: what reports call it.

    Attributes:
        kind: see `kind_of`.
        longest: tokens it can read.
        prompts: how questions are written for it; None for a model that answers none.
    """

    def __init__(self, model, tokenizer, device, name: str = ""):
        self.model, self.tokenizer, self.device, self.name = model, tokenizer, device, name
        self.kind = kind_of(model)
        self.card: RunCard | None = getattr(model, "run_card", None)
        self.forward = forward_of(model).eval()
        self.precision = ""  # not decided yet
        self.bf16 = False
        self.longest = prompt_length(model.config, tokenizer, 1 << 30)
        self.prompts = self._prompts()

    def _prompts(self):
        return None

    @classmethod
    def of(cls, model, tokenizer, device) -> Predictor:
        """The one of this model, made once for a tokenizer, a device and a card."""
        known = getattr(model, "_examinee", None)
        same = (tokenizer, device, getattr(model, "run_card", None))
        if known is None or (known.tokenizer, known.device, known.card) != same:
            known = cls(model, tokenizer, device)
            object.__setattr__(model, "_examinee", known)  # not a submodule: no cycle
        return known

    def use_bf16(self) -> None:
        """Computes in bf16 from now on, where that is faster here and the model's family can be read so."""
        if self.bf16 or self.kind != "masked" or torch.device(self.device).type != "cpu":
            return
        if self.forward.has_fast_path and cpu.choose_precision(self.model.config.hidden_size)[0] == "bf16":
            self.forward, self.bf16 = bf16_forward(self.model), True

    @property
    def is_causal(self) -> bool:
        """It goes on from texts."""
        return self.kind == "causal"

    def score(self, questions: Sequence[Question], method: str, orders: str, **more) -> Scores:
        """`scoring.score_options` of this model."""
        return score_options(
            self.forward, self.tokenizer, questions, self.method(method), orders, prompts=self.prompts,
            device=self.device, **more,
        )  # fmt: skip

    def rank(
        self,
        question: str,
        options: Mapping[str, str],
        top_k: int,
        method: str = "auto",
        orders: str = "cyclic",
    ) -> Ranking:
        """The options of one question, best first.

        Args:
            options: label -> text, 2 to 10 of them.

        Raises:
            UserError: a question or options that cannot be asked; by `generate`, a reply that
                names no option.
        """
        try:
            row = parse_question({"question": question, "choices": list(options.values())}, need_answer=False)
        except ValueError as error:
            raise UserError(f"這一題問不了：{error}") from error
        scores = self.score([row], method, orders)
        if scores.skipped:
            raise UserError(f"這一題問不了：{scores.skipped[0]}")
        if scores.unparsable:
            said = f"看不出模型選了哪一個，它的回答是 {scores.replies[0]!r}"
            raise UserError(f"{said}；可改用 letter（--scoring letter，對話中是 method letter）")
        return Ranking.of(options, scores[0], top_k)

    def prior(self, questions: Sequence[Question]) -> dict[int, list[float]]:
        """The model's preference for letters, see `scoring.estimate_prior`."""
        prober = LogprobRunner(self.forward, self.tokenizer.pad_token_id, self.device)
        return estimate_prior(Scorer(self.prompts, prober), questions)[0]

    def digest(self) -> str:
        """A hash of the weights and of how they are asked; wherever the folder lies."""
        sums = []
        for name, tensor in self.model.named_parameters():
            plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            sums.append(f"{name}{zlib.crc32(plain)}")
        return hash_texts([*sums, *self._manner(), *["bf16"] * self.bf16])

    def _manner(self) -> list[str]:
        """How it is asked, for `digest`."""
        return [str(self.prompts.template), str(self.prompts.max_length)]

    def warn(self, *texts: str) -> None:
        """Says which characters of these texts the model does not know: it reads them all as the same one."""
        found = dict.fromkeys(part for text in texts for part in unknown_parts(self.tokenizer, text))
        if found:
            log(f"⚠️ 這個模型不認得：{'、'.join(list(found)[:20])}（都讀成 [UNK]）")


class MaskedLMPredictor(Predictor):
    """A masked language model: fills blanks, and scores options by them."""

    def _prompts(self) -> ExamPrompts:
        return prompts_for(self.model.config, self.tokenizer, self.card)

    def method(self, wanted: str = "auto") -> str:
        """`auto` is what the run card says the model was taught for, else UNTAUGHT.

        Raises:
            UserError: a method that has the model write, or that needs a head of its own.
        """
        if wanted == "auto":
            wanted = (self.card and self.card.scoring) or DEFAULT_METHOD
        if wanted == GENERATE:
            raise UserError(f"--scoring {wanted}：這是填空的遮罩模型，不會寫答案；可用 auto、letter、pll 等")
        if wanted == CHOICE:
            raise UserError(
                f"{self.name or '這個模型'} 是填空的遮罩模型，沒有選擇題的輸出層，不能以 {CHOICE} 作答，"
                "也無從與有這一層的模型比較；可用 letter、pll 等"
            )
        return str(parse(wanted))

    def read(self, prompt: str) -> Blanks:
        """A prompt's blanks. Raises UserError when it does not fit."""
        return read_blanks(self.tokenizer, prompt, self.longest)

    def fill_first(self, prompt: str, top_k: int) -> list[str]:
        """At most `top_k` words for the first [MASK] of a prompt, best first; one is added if there
        is none.
        """
        blanks = self.read(prompt)
        if blanks.meant:
            self.tell_of(blanks)
        return [word for word, _ in self.fill([blanks], top_k)[0]]

    def fill(self, prompts: Sequence[Blanks], top_k: int) -> list[list[tuple[str, float]]]:
        """(word, probability) for the first blank of each, see `filling.fill_first_blanks`."""
        return fill_first_blanks(self.forward, self.tokenizer, prompts, top_k, self.device)

    def words(
        self, prompt: str, top_k: int, word_length: int = 1, candidates: Sequence[str] | None = None
    ) -> list[Filling]:
        """Words for all blanks, see `filling.fill_words`; or all `candidates`, ranked for the first."""
        where = self.longest, self.device
        if candidates:
            return rank_candidates(self.forward, self.tokenizer, prompt, candidates, *where)
        return fill_words(self.forward, self.tokenizer, prompt, top_k, word_length, *where)

    def tell_of(self, blanks: Blanks) -> None:
        """Says where a blank is that the prompt did not write out, and what was meant for one but is none."""
        odd = f"{blanks.meant} 不是空格，空格要寫成 [MASK]" if blanks.meant else ""
        if blanks.appended:
            log("；".join(filter(None, ("句子裡沒有 [MASK]，加在句尾", odd))))
        elif odd:
            log(f"⚠️ {odd}")

    def fill_mask(
        self, prompt: str, top_k: int, word_length: int = 1, candidates: Sequence[str] | None = None
    ) -> list[dict]:
        """What a person is shown for a prompt: `word` and its `probability` for one blank of one token;
        `word`, `score` (nats per token) and the `sentence` for words.
        """
        blanks = self.read(prompt)
        self.warn(*blanks.pieces)
        self.tell_of(blanks)
        if asks_for_words(blanks, word_length, candidates):
            found = self.words(prompt, top_k, word_length, candidates)
            return [{"word": f.word, "score": f.score, "sentence": f.sentence} for f in found]
        return [{"word": word, "probability": p} for word, p in self.fill([blanks], top_k)[0]]


class MultipleChoicePredictor(MaskedLMPredictor):
    """A multiple-choice head: chooses among options, and does nothing else."""

    def method(self, wanted: str = "auto") -> str:
        """Its own head. Raises UserError for any other way."""
        if wanted not in ("auto", CHOICE):
            raise UserError(f"--scoring {wanted}：這是選擇題模型，只能以自己的輸出層作答；請用 auto")
        return CHOICE
