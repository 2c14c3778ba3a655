"""Predictor for causal language models: chat prompts, option letters, generation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from finetune.data.instructions import Message, parse_instruction
from finetune.data.question import LETTERS, Question
from finetune.evaluation.scores import Prior, Progress, Scores
from finetune.models.generation import Decoding, Generator, eos_ids
from finetune.models.run_card import RunCard
from finetune.models.streaming import STOPS
from finetune.predict.predictor import Predictor
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import STYLES, Chat, user
from finetune.prompts.option_order import PromptError
from finetune.prompts.protocol import CHAT
from finetune.prompts.question_writer import Asking, Examples, QuestionWriter, our_asking
from finetune.prompts.scoring_methods import CAUSAL, GENERATE, parse
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed

LETTER_TOKENS = 16  # longest reply of a model without a chat template that is to name a letter
THINKING_TOKENS = 4096  # longest reply of a model that thinks before it answers
NO_TEMPLATE = "none"  # no template: a prompt is a text to go on from


def style_of(tokenizer: PreTrainedTokenizerBase, card: RunCard | None) -> str:
    """Return how messages are written: as the run card says, else by the chat template, else NO_TEMPLATE."""
    return card.chat if card and card.chat else "chat" if tokenizer.chat_template else NO_TEMPLATE


def exam_prompts_for(
    tokenizer: PreTrainedTokenizerBase,
    card: RunCard | None,
    max_length: int,
    asking: Asking | None = None,
    examples: Examples | None = None,
) -> CausalExamPrompts:
    """Build the exam prompts of a causal model; one without a template gets the plain form.

    Args:
        max_length: longest prompt, in tokens.
        asking: protocol and settings; None is our own prompt.
        examples: answered questions by subject.
    """
    style = style_of(tokenizer, card)
    asking = asking or our_asking()
    chat = Chat(tokenizer, style if style in STYLES else "plain", "--model_path", asking.template_kwargs)
    template = (card or RunCard()).template
    own = (template.asked, template.choice) if asking.is_ours and asking.format == CHAT else ("", "")
    return CausalExamPrompts(chat, max_length, QuestionWriter(asking, examples or {}, *own))


class CausalLMPredictor(Predictor):
    """A causal language model: chats, or continues texts, and answers questions with a letter.

    Args: as `Predictor`.

    Attributes:
        style: how messages are written: as the run card says, else the tokenizer's chat template where it has
            one, else NO_TEMPLATE.
        chat: the writer of messages.
    """

    prompts: CausalExamPrompts

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        super().__init__(model, tokenizer, device, name)
        self.style = style_of(tokenizer, self.card)
        self.decoding = Decoding()
        self.ask(our_asking(), {})

    def ask(self, asking: Asking, examples: Examples, decoding: Decoding | None = None) -> None:
        """Ask exam questions in this way from now on.

        Args:
            asking: protocol and settings.
            examples: answered questions by subject.
            decoding: how replies are generated, without a length as long as `reply_tokens`; None is greedy.
        """
        self.prompts = exam_prompts_for(self.tokenizer, self.card, self.longest, asking, examples)
        self.chat = self.prompts.chat
        decoding = decoding or Decoding(max_new_tokens=0)
        self.decoding = replace(decoding, max_new_tokens=decoding.max_new_tokens or self.reply_tokens)

    def prompt_of(self, question: Question, method: str) -> tuple[str, list[int]]:
        """Return a question's prompt as text and as token ids, options as written."""
        text = self.prompts.text(question, range(len(question.options)))
        return text, self.prompts.ids(text)

    @property
    def reply_length(self) -> int:
        """Longest reply to an exam question, in tokens."""
        return self.decoding.max_new_tokens

    @property
    def reply_tokens(self) -> int:
        """Longest reply to an exam question unless flags say otherwise, in tokens."""
        published = self.prompts.writer.form.max_new_tokens
        if published:
            return published
        if not self.has_chat_template:  # it does not know when to stop
            return LETTER_TOKENS
        return THINKING_TOKENS if self.chat.writes_thought else Decoding().max_new_tokens

    def method(self, requested: str = "auto") -> str:
        """Return the scoring method; `auto` is the protocol's. Raises UserError for one that fills blanks."""
        method = self.prompts.writer.form.scoring if requested == "auto" else str(parse(requested))
        if method not in CAUSAL:
            raise UserError(
                f"--scoring {requested}：這是因果模型，可用的是 {'、'.join(CAUSAL)}；"
                f"{requested} 要有 [MASK] 的模型"
            )
        return method

    def _prompt_settings(self) -> list[str]:
        return [str(self.prompts.writer), str(self.prompts.max_length)]

    def score(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None = None,
        world: Distributed | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Score the options by letters as `scoring.Scorer`, or by what a generated reply names.

        By `generate` the chosen option has 0, the others -1, which is an order and no probability.
        """
        if self.method(method) != GENERATE:
            return super().score(questions, method, orders, prior, world, progress)
        return self._score_replies(questions, world, progress)

    def _score_replies(
        self,
        questions: Sequence[Question],
        world: Distributed | None,
        progress: Progress | None,
    ) -> Scores:
        """Generate a reply to each question, shared among the ranks, and read the chosen letter from it."""
        scores = Scores([0.0] * len(question.options) for question in questions)
        scores.by_order = [[] for _ in questions]
        prompts: dict[int, list[int]] = {}
        # A long reply may have less room than it is allowed: no question is cut for what it may never need.
        spare = min(self.decoding.max_new_tokens, max(LETTER_TOKENS, self.longest // 8))
        for index, question in enumerate(questions):
            order = range(len(question.options))
            try:
                prompts[index], cut = self.prompts.reply_prompt(question, order, spare)
            except PromptError as error:
                scores.skipped[index] = str(error)
                continue
            if cut:
                scores.truncated.add(index)
        rank_indices = list(prompts) if world is None else list(prompts)[world.rank :: world.size]
        generated = self.generate([prompts[index] for index in rank_indices], self.decoding, progress)
        replies = list(zip(rank_indices, generated, strict=True))
        for index, reply in world.all_gather(replies) if world else replies:
            scores.replies[index] = reply
            chosen = chosen_letter(reply, len(questions[index].options))
            if chosen is None:
                scores.unparsable.add(index)
            else:
                scores[index] = [0.0 if i == chosen else -1.0 for i in range(len(scores[index]))]
        return scores

    @property
    def has_chat_template(self) -> bool:
        """True for a model that replies to a conversation; else it continues a text."""
        return self.style != NO_TEMPLATE

    @property
    def ends(self) -> set[int]:
        """Ids of the tokens that end a reply."""
        style_end = {self.chat.end} if self.style in STYLES else set()
        return eos_ids(self.model, self.tokenizer) | style_end

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a prompt, or of a conversation whose last message is the user's.

        Raises:
            UserError: the chat template refuses it; half characters, which no tokenizer can read.
        """
        try:
            if not isinstance(prompt, str):
                prompt = parse_instruction({"messages": list(prompt)}, need_answer=False).messages
            texts = [prompt] if isinstance(prompt, str) else [str(message["content"]) for message in prompt]
            "".join(texts).encode()
            if reason := too_long(*texts):
                raise UserError(f"句子{reason}")
            if isinstance(prompt, str):
                if self.style == NO_TEMPLATE:  # as texts are written in training
                    return self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
                prompt = [user(prompt)]
            return self.chat.prompt(prompt)
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
        """Generate a reply to each prompt, given as token ids. Raises UserError for one that does not fit."""
        replies = self._generator(decoding).generate(prompts, on_done)
        if self.style == NO_TEMPLATE:
            return replies
        return ["".join(self._without_template([reply])) for reply in replies]

    def stream(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[str]:
        """Generate the reply to one prompt, piece by piece."""
        pieces = self._generator(decoding).stream(prompt)
        return pieces if self.style == NO_TEMPLATE else self._without_template(pieces)

    def _generator(self, decoding: Decoding) -> Generator:
        return Generator(self.model, self.tokenizer, decoding, STOPS, self.ends)

    def _without_template(self, pieces: Iterable[str]) -> Iterator[str]:
        """Remove what the chat template writes around a reply."""
        return _stripped(self.chat.cleaned(pieces))

    def warn(self, *texts: str) -> None:
        """Log nothing: a causal model's tokenizer reads every character."""


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without the white space around it, which waits until more text follows."""
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
    """Return the index of the option that a reply names, None when it does not plainly name one.

    The first line must open with a letter of the `count` options, alone or followed by a mark or a space, and
    no other option's letter may stand alone in it: `A或B` and `A and B` are no answers, nor is `b or c`.
    """
    lines = unicodedata.normalize("NFKC", reply).strip().splitlines()
    match = OPENS.match(lines[0]) if lines else None
    if not match:
        return None
    index = LETTERS.index(match[1].upper())
    line = lines[0].upper() if match[1].islower() else lines[0]  # else a small one is a word: `B. a planet`
    others = set(ALONE.findall(line)) & set(LETTERS[:count]) - {LETTERS[index]}
    return None if index >= count or others else index
