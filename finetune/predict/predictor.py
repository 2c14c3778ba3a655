"""Predictors: a model with its prompts and scoring method, one class per kind of model.

Causal models: predict/generative.py their base, predict/causal.py those in this process, predict/served.py
those behind a server. Classifiers: predict/classifier.py.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

from finetune.data.question import Question
from finetune.data.question_rows import parse_question
from finetune.evaluation.outcomes import no_answer_reason
from finetune.evaluation.queries import Forward
from finetune.evaluation.scores import Prior, Progress, Ranking, Scores
from finetune.evaluation.scoring import Scorer, ScoringConfig
from finetune.models import cpu
from finetune.models.forward import TokenLogits, bf16_forward, config_of, is_causal
from finetune.models.heads import forward_of
from finetune.models.kinds import HEAD_ENDINGS, is_seq2seq
from finetune.models.run_card import RunCard, hash_texts
from finetune.models.tokenizer import prompt_length
from finetune.predict.fill_mask import Blanks, Filling, FillMask, read_blanks
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts, mask_positions, read_back, unknown_parts
from finetune.prompts.option_order import PromptError
from finetune.prompts.scoring_methods import CHOICE, GENERATE, LOGLIKELIHOOD, parse
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.journal import AnswerJournal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from finetune.cli.inference_args import InferenceArgs
    from finetune.runtime.distributed import Distributed

CACHE_SIZE = 1 << 12  # texts whose token ids are kept: a file of questions seldom repeats one
UNKNOWN_LENGTH = 1 << 30  # tokens: no limit that is known
SHOWN = 40  # characters of a part that the model does not know
SERVER = "server"  # device of a model that runs elsewhere
DEFAULT_METHOD = "pll"  # works with any masked language model


def needs_word_search(blanks: Blanks, word_length: int, candidates: Sequence[str] | None) -> bool:
    """Return False for one blank that becomes one token, which has a probability of its own."""
    return bool(candidates) or word_length > 1 or len(blanks.positions) > 1


def prompts_for(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    card: RunCard | None,
    max_length: int | None = None,
) -> ExamPrompts:
    """Build the exam prompts of a masked model: the template of its run card, or the default one.

    Args:
        max_length: longest prompt, in tokens; None takes the run card's.
    """
    card = card or RunCard()
    length = prompt_length(config, tokenizer, max_length or card.max_length)
    return ExamPrompts(tokenizer, length, card.template, CACHE_SIZE)


def kind_of_model(model: torch.nn.Module) -> str:
    """Return one of `kinds.CLASSES` by the model's class: a configuration may still name its base's class."""
    if is_causal(model):
        return "causal"
    name = type(model).__name__
    if kind := next((kind for kind, ending in HEAD_ENDINGS.items() if name.endswith(ending)), ""):
        return kind
    if is_seq2seq(config_of(model)):
        return "seq2seq"
    return "encoder" if name.endswith("Model") else "masked"


def weight_checksums(model: torch.nn.Module) -> list[str]:
    """Return the name and the checksum of every parameter; the same wherever the model's folder lies."""
    checksums = []
    for name, tensor in model.named_parameters():
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        checksums.append(f"{name}{zlib.crc32(data)}")
    return checksums


class Predictor(ABC):
    """Base of all predictors: what evaluation, files and sessions ask of a model, wherever it runs.

    Attributes:
        kind: see `kind_of_model`.
        name: what reports call the model.
        device: a torch device or its name; SERVER for a model that runs elsewhere.
        card: the run card of the training run; None for a model that was not trained here.
        precision: `auto`, `fp32`, `bf16` or `fp16`; "" before it is decided.
        bf16: the forward pass computes in bf16.
        longest: tokens the model can read.
        prompts: how questions are written for it as token ids; None for a model that answers none, or that
            takes them as texts.
        answers: keeps what the model answered while an exam runs; None where nothing is kept.
        answers_digest: its digest in what `answers` keeps: an exam may ask two models.
    """

    kind: str
    name: str
    device: torch.device | str
    card: RunCard | None = None
    precision = ""
    bf16 = False
    longest: int = UNKNOWN_LENGTH
    prompts: ExamPrompts | CausalExamPrompts | None = None
    answers: AnswerJournal | None = None
    answers_digest: str = ""

    @property
    def is_causal(self) -> bool:
        """True for a model that continues texts."""
        return self.kind == "causal"

    @abstractmethod
    def method(self, requested: str = "auto") -> str:
        """Return the name of the scoring method that a request stands for.

        Raises:
            UserError: a method this kind of model cannot be scored by.
        """

    @property
    def reply_length(self) -> int:
        """Longest reply to an exam question, in tokens; 0 of a model that writes none."""
        return 0

    def prompt_of(self, question: Question, method: str) -> tuple[str, list[int]]:
        """Return a question's prompt as text and as token ids, options as written.

        Raises:
            PromptError: it cannot be written.
        """
        raise PromptError(f"{self.name or '這個模型'} 不答題")

    @abstractmethod
    def score(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None = None,
        world: Distributed | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Score the options of questions.

        Args:
            questions: each with 2 to 10 options.
            method: scoring method, or `auto`.
            orders: option orders, see `scoring.ScoringConfig`.
            prior: used by `letter+prior`, see `prior`; estimated from these questions when None.
            world: ranks that share the questions.
            progress: called with the number of questions finished.
        """

    def rank(
        self,
        question: str,
        options: Mapping[str, str],
        top_k: int,
        method: str = "auto",
        orders: str = "cyclic",
    ) -> Ranking:
        """Rank the options of one question, best first.

        Args:
            options: label -> text, 2 to 10 of them.

        Raises:
            UserError: a question or options that cannot be scored; by `generate`, a reply that names no
                option.
        """
        try:
            row = parse_question({"question": question, "choices": list(options.values())}, need_answer=False)
        except ValueError as error:
            raise UserError(f"這一題無法計分：{error}") from error
        scores = self.score([row], method, orders)
        if scores.skipped:
            raise UserError(f"這一題無法計分：{scores.skipped[0]}")
        if scores.outcomes:
            raise UserError(no_answer_reason(scores.outcomes[0], scores.replies[0]))
        return Ranking.of(dict(options), scores[0], top_k)

    @abstractmethod
    def prior(self, questions: Sequence[Question]) -> dict[int, list[float]]:
        """Estimate the model's preference for letters, see `OptionScorer.estimate_prior`."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of the model and of how its prompts are written."""

    @abstractmethod
    def environment(self) -> dict[str, Any]:
        """Return what the model computes in and on, for results.json: `precision`, `device` and more."""

    def log_summary(self) -> None:  # noqa: B027  most have nothing to say
        """Log what is to be said after many questions or rows."""

    @abstractmethod
    def warn(self, *texts: str) -> None:
        """Log which characters of these texts the model does not know."""


class LocalPredictor(Predictor):
    """Base of the predictors of a model in this process: tokenizer, forward pass and option scoring.

    Args:
        model, tokenizer, device: as `inference.load_model` returns them.
        name: what reports call the model.

    Attributes:
        forward: logits at chosen positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        self.model, self.tokenizer, self.device, self.name = model, tokenizer, device, name
        self.kind = kind_of_model(model)
        self.card: RunCard | None = getattr(model, "run_card", None)
        self.forward: Forward = forward_of(model).eval()
        self.longest = prompt_length(model.config, tokenizer, UNKNOWN_LENGTH)

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device | str
    ) -> Self:
        """Return the predictor of a model, made once for a tokenizer, a device and a run card."""
        predictor = getattr(model, "_predictor", None)
        key = (tokenizer, device, getattr(model, "run_card", None))
        if predictor is None or (predictor.tokenizer, predictor.device, predictor.card) != key:
            predictor = cls(model, tokenizer, device)
            object.__setattr__(model, "_predictor", predictor)  # not a submodule: no cycle
        return predictor

    def use_bf16(self) -> None:
        """Compute in bf16 from now on, where that is faster here and the model family has a bf16 pass."""
        if self.bf16 or self.kind != "masked" or torch.device(self.device).type != "cpu":
            return
        fast = isinstance(self.forward, TokenLogits) and self.forward.has_fast_path
        if fast and cpu.choose_precision(self.model.config.hidden_size)[0] == "bf16":
            self.forward, self.bf16 = bf16_forward(self.model), True

    def use_flags(self, flags: InferenceArgs) -> None:
        """Take over flags of inference that settle how a kind of model is used; most have none."""

    @abstractmethod
    def _prompt_settings(self) -> list[str]:
        """Return what decides how inputs are written for the model, for `digest`."""

    def score(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None = None,
        world: Distributed | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Score the options of questions with `scoring.Scorer`; arguments as `Predictor.score`."""
        config = ScoringConfig(self.method(method), orders, prior)  # refuses first what cannot be scored
        return self._scorer(world).score(questions, config, progress)

    def _scorer(self, world: Distributed | None = None) -> Scorer:
        assert self.prompts is not None  # a model that answers no questions has no method
        return Scorer.of(self.forward, self.prompts, self.device, world)

    def prior(self, questions: Sequence[Question]) -> dict[int, list[float]]:
        """Estimate the model's preference for letters, see `OptionScorer.estimate_prior`."""
        return self._scorer().estimate_prior(questions)

    def digest(self) -> str:
        """Hash the weights and the prompt settings; the same wherever the folder lies."""
        return hash_texts([*weight_checksums(self.model), *self._prompt_settings(), *["bf16"] * self.bf16])

    def environment(self) -> dict[str, Any]:
        """Return the precision that the forward pass computes in, and the kind of device."""
        dtype = str(getattr(self.model, "dtype", "")).removeprefix("torch.")
        names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        return {
            "precision": "bf16" if self.bf16 else names.get(dtype, dtype),
            "device": str(torch.device(self.device).type),
        }

    def warn(self, *texts: str) -> None:
        """Log which characters of these texts the tokenizer does not know: it reads them all as [UNK]."""
        unknown = dict.fromkeys(part for text in texts for part in unknown_parts(self.tokenizer, text))
        if unknown:
            some = [part if len(part) <= SHOWN else f"{part[:SHOWN]}…" for part in islice(unknown, 20)]
            log(f"⚠️ 這個模型不認得：{'、'.join(some)}（都讀成 [UNK]）")


AnyPredictor = TypeVar("AnyPredictor", bound=Predictor)


class EncoderPredictor(LocalPredictor):
    """Base of the predictors whose questions are written by `ExamPrompts`."""

    prompts: ExamPrompts

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        super().__init__(model, tokenizer, device, name)
        self.prompts = prompts_for(model.config, tokenizer, self.card)

    def _prompt_settings(self) -> list[str]:
        return [str(self.prompts.template), str(self.prompts.max_length)]

    def prompt_of(self, question: Question, method: str) -> tuple[str, list[int]]:
        """Return a question's prompt; by a method that scores texts with the first option masked."""
        prompts = self.prompts
        if parse(method).by_letter:
            ids = prompts.mcq_prompt(question, range(len(question.options))).ids
        else:
            prompt = prompts.cloze_prompt(question, 0)
            masked = () if parse(method).base == CHOICE else prompt.blank
            ids = mask_positions(prompt.ids, masked, prompts.mask)
        return read_back(self.tokenizer, ids), list(ids)


class MaskedLMPredictor(EncoderPredictor):
    """A masked language model: fills blanks, and scores options by them."""

    def method(self, requested: str = "auto") -> str:
        """Return the scoring method; `auto` is the one the run card names, else DEFAULT_METHOD.

        Raises:
            UserError: a method that has the model write, or that needs a head of its own.
        """
        if requested == "auto":
            requested = (self.card and self.card.scoring) or DEFAULT_METHOD
        if requested in (GENERATE, LOGLIKELIHOOD):
            raise UserError(
                f"--scoring {requested}：這是填空的遮罩模型，不會接著寫下去；可用 auto、letter、pll 等"
            )
        if requested == CHOICE:
            raise UserError(
                f"{self.name or '這個模型'} 是填空的遮罩模型，沒有選擇題的輸出層，不能以 {CHOICE} 作答，"
                "也無從與有這一層的模型比較；可用 letter、pll 等"
            )
        return str(parse(requested))

    @property
    def search(self) -> FillMask:
        """The fill-mask search over the current forward pass."""
        return FillMask(self.forward, self.tokenizer, self.device, self.longest)

    def read(self, prompt: str) -> Blanks:
        """Find the blanks of a prompt. Raises UserError when it does not fit."""
        return read_blanks(self.tokenizer, prompt, self.longest)

    def fill_first(self, prompt: str, top_k: int) -> list[str]:
        """Return at most `top_k` words for the first [MASK] of a prompt, best first.

        A prompt without [MASK] gets one at its end.
        """
        blanks = self.read(prompt)
        if blanks.lookalike:
            self.log_blanks(blanks)
        return [word for word, _ in self.fill([blanks], top_k)[0]]

    def fill(self, prompts: Sequence[Blanks], top_k: int) -> list[list[tuple[str, float]]]:
        """Return (word, probability) for the first blank of each, see `FillMask.first_blanks`."""
        return self.search.first_blanks(prompts, top_k)

    def words(
        self, prompt: str, top_k: int, word_length: int = 1, candidates: Sequence[str] | None = None
    ) -> list[Filling]:
        """Return words for all blanks, see `FillMask.words`; or all `candidates`, ranked for the first."""
        if candidates:
            return self.search.rank(prompt, candidates)
        return self.search.words(prompt, top_k, word_length)

    def log_blanks(self, blanks: Blanks) -> None:
        """Log where a blank was added, and what looks like a blank and is none."""
        lookalike = f"{blanks.lookalike} 不是空格，空格要寫成 [MASK]" if blanks.lookalike else ""
        if blanks.appended:
            log("；".join(filter(None, ("句子裡沒有 [MASK]，加在句尾", lookalike))))
        elif lookalike:
            log(f"⚠️ {lookalike}")

    def warn_of_blanks(self, prompt: str) -> None:
        """Log what a person may not expect of a prompt: unknown characters, where a blank was added."""
        blanks = self.read(prompt)
        self.warn(*blanks.pieces)
        self.log_blanks(blanks)

    def predictions(
        self, prompt: str, top_k: int, word_length: int = 1, candidates: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the predictions for a prompt as a person or --json is shown them.

        Returns:
            `word` and its `probability` for one blank of one token; else `word`, `score` (nats per token)
            and the whole `sentence`.
        """
        blanks = self.read(prompt)
        if needs_word_search(blanks, word_length, candidates):
            fillings = self.words(prompt, top_k, word_length, candidates)
            return [{"word": f.word, "score": f.score, "sentence": f.sentence} for f in fillings]
        return [{"word": word, "probability": p} for word, p in self.fill([blanks], top_k)[0]]


class MultipleChoicePredictor(EncoderPredictor):
    """A multiple-choice head: chooses among options, and does nothing else."""

    def method(self, requested: str = "auto") -> str:
        """Return the method of its own head. Raises UserError for any other one."""
        if requested not in ("auto", CHOICE):
            raise UserError(f"--scoring {requested}：這是選擇題模型，只能以自己的輸出層作答；請用 auto")
        return CHOICE
