"""A loaded causal model with all that is needed to talk to it: how messages are written for it, how it
answers questions with a letter, how it goes on from a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from finetune.data.instructions import Message, parse_instruction
from finetune.data.question import LETTERS, Question
from finetune.evaluation.scoring import Scores
from finetune.models.generation import Decoding, eos_ids, generate, stream
from finetune.models.run_card import RunCard
from finetune.models.streaming import STOPS
from finetune.predict.predictor import Predictor
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import STYLES, Chat, user
from finetune.prompts.option_order import PromptError
from finetune.prompts.scoring_methods import CAUSAL, GENERATE, parse
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

LETTER_TOKENS = 16  # of a reply that is to name a letter
NO_TEMPLATE = "none"  # no template: a prompt is a text to go on from


def style_of(tokenizer, card: RunCard | None) -> str:
    """How messages are written for a model: as its card says, else by its chat template, else UNTOLD."""
    return card.chat if card and card.chat else "chat" if tokenizer.chat_template else NO_TEMPLATE


def exam_prompts_for(tokenizer, card: RunCard | None, max_length: int) -> CausalExamPrompts:
    """How a causal model is asked questions, in prompts of at most `max_length` tokens; one without a
    template in the plain form.
    """
    style = style_of(tokenizer, card)
    chat = Chat(tokenizer, style if style in STYLES else "plain", "--model_path")
    return CausalExamPrompts(chat, max_length, (card or RunCard()).template)


class CausalLMPredictor(Predictor):
    """Args: as `Examinee`.

    Attributes:
        style: how messages are written: as the run card says, else the tokenizer's chat template where it has
            one, else UNTOLD.
    """

    def _prompts(self) -> CausalExamPrompts:
        self.style = style_of(self.tokenizer, self.card)
        prompts = exam_prompts_for(self.tokenizer, self.card, self.longest)
        self.chat = prompts.chat
        return prompts

    def method(self, wanted: str = "auto") -> str:
        """Raises UserError for a method that fills blanks."""
        meant = "letter" if wanted == "auto" else str(parse(wanted))
        if meant not in CAUSAL:
            raise UserError(
                f"--scoring {wanted}：這是因果模型，可用的是 {'、'.join(CAUSAL)}；{wanted} 要有 [MASK] 的模型"
            )
        return meant

    def score(self, questions: Sequence[Question], method: str, orders: str, **more) -> Scores:
        """By letters as `scoring.score_options`; by `generate`, what the reply names: the chosen option has
        0, the others -1, which is an order and no probability.
        """
        if self.method(method) != GENERATE:
            return super().score(questions, method, orders, **more)
        return self._generated(questions, more.get("world"), more.get("progress"))

    def _generated(self, questions: Sequence[Question], world, progress) -> Scores:
        scores = Scores([0.0] * len(question.options) for question in questions)
        scores.by_order = [[] for _ in questions]
        asked: dict[int, list[int]] = {}
        for index, question in enumerate(questions):
            order = range(len(question.options))
            try:
                prompt = self.prompts.mcq_prompt(question, order, spare=LETTER_TOKENS)
            except PromptError as error:
                scores.skipped[index] = str(error)
                continue
            if prompt.cut:
                scores.truncated.add(index)
            asked[index] = list(prompt.ids[: len(prompt.ids) - self.prompts.shared(len(order))])
        mine = list(asked) if world is None else list(asked)[world.rank :: world.size]
        decoding = Decoding(max_new_tokens=LETTER_TOKENS)
        replies = self.generate([asked[index] for index in mine], decoding, progress)
        found = list(zip(mine, replies, strict=True))
        for index, reply in world.all_gather(found) if world else found:
            scores.replies[index] = reply
            chosen = chosen_letter(reply, len(questions[index].options))
            if chosen is None:
                scores.unparsable.add(index)
            else:
                scores[index] = [0.0 if i == chosen else -1.0 for i in range(len(scores[index]))]
        return scores

    @property
    def has_chat_template(self) -> bool:
        """It is told a conversation, and answers; else it goes on from a text."""
        return self.style != NO_TEMPLATE

    @property
    def ends(self) -> set[int]:
        """The tokens that end what it says."""
        own = {self.chat.end} if self.style in STYLES else set()
        return eos_ids(self.model, self.tokenizer) | own

    def encode(self, said: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt, or of a conversation that the user spoke last in.

        Raises:
            UserError: the chat template refuses it; half characters, which no tokenizer can read.
        """
        try:
            if not isinstance(said, str):
                said = parse_instruction({"messages": list(said)}, need_answer=False).messages
            texts = [said] if isinstance(said, str) else [one["content"] for one in said]
            "".join(texts).encode()
            if reason := too_long(*texts):
                raise UserError(f"句子{reason}")
            if isinstance(said, str):
                if self.style == NO_TEMPLATE:
                    return self.tokenizer(said, split_special_tokens=True)["input_ids"]  # as texts are taught
                said = [user(said)]
            return self.chat.prompt(said)
        except UnicodeEncodeError:
            raise UserError("句子不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
        except ValueError as error:
            raise UserError(str(error)) from error

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> list[str]:
        """What it says after each prompt, given as token ids. Raises UserError for one that does not fit."""
        found = generate(
            self.model, self.tokenizer, prompts, decoding, STOPS, on_done=on_done, ends=self.ends
        )
        return found if self.style == NO_TEMPLATE else ["".join(self._said([text])) for text in found]

    def stream(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[str]:
        """The same of one prompt, piece by piece."""
        pieces = stream(self.model, self.tokenizer, prompt, decoding, self.ends, STOPS)
        return pieces if self.style == NO_TEMPLATE else self._said(pieces)

    def _said(self, pieces: Iterable[str]) -> Iterator[str]:
        """What it says without what its template writes around it."""
        return _stripped(self.chat.cleaned(pieces))

    def warn(self, *texts: str) -> None:
        """Nothing to say: a causal model's tokenizer reads every character."""


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text without the white space around it, which waits until more text follows."""
    begun, held = False, ""
    for piece in pieces:
        held += piece
        shown = held.rstrip() if begun else held.strip()
        if shown:
            yield shown
            begun, held = True, held[len(held.rstrip()) :]


# The reply, or its first line, opens with the letter: `B`, `(B)`, `B. 木星`, `答案：B`, `答案是 B。`; but
# `A planet` and `I think` open with a word.
OPENS = re.compile(
    r"\s*(?:(?:正確)?(?:答案|選項)(?:是|為)?\s*[::]?|(?:the\s+)?(?:correct\s+)?answer(?:\s+is)?\s*:?)?"
    r"\s*[(\[【「]?\s*([A-J])(?:\s*[)\]】」]|(?=$|[\s.,:;、。])(?!(?<=[AI])\s+(?!is\b|because\b)(?-i:[a-z])))",
    re.IGNORECASE,
)
ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")


def chosen_letter(reply: str, count: int) -> int | None:
    """The index of the option that a reply names, None when it does not plainly name one.

    The first line must open with a letter of the `count` options, alone or followed by a mark or a space, and
    no other option's letter may stand alone in it: `A或B` and `A and B` are no answers, nor is `b or c`.
    """
    lines = unicodedata.normalize("NFKC", reply).strip().splitlines()
    found = OPENS.match(lines[0]) if lines else None
    if not found:
        return None
    index = LETTERS.index(found[1].upper())
    line = lines[0].upper() if found[1].islower() else lines[0]  # else a small one is a word: `B. a planet`
    others = set(ALONE.findall(line)) & set(LETTERS[:count]) - {LETTERS[index]}
    return None if index >= count or others else index
