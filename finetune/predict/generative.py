"""Base of the predictors of causal models, in this process or behind a server: chat, texts, questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune.data.instructions import Message
from finetune.data.question import Question
from finetune.evaluation.pattern_reader import PatternReader
from finetune.evaluation.reply_reader import ReadReply, read_reply
from finetune.evaluation.reply_scoring import score_replies
from finetune.evaluation.scores import Prior, Progress, Scores
from finetune.models.decoding import Decoding
from finetune.models.streaming import Reply, ReplyStream
from finetune.predict.predictor import Predictor
from finetune.prompts.chat import system, user
from finetune.prompts.option_order import PromptError
from finetune.prompts.question_writer import Asking, Examples, QuestionWriter
from finetune.prompts.scoring_methods import CAUSAL, GENERATE, parse
from finetune.runtime.errors import UserError, shown

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed

LETTER_TOKENS = 16  # longest reply of a model without a chat template that is to name a letter
THINKING_TOKENS = 4096  # longest reply of a model that thinks before it answers
Encoded = Any  # a prompt as the model takes it: token ids; for a server a text or messages


@cache
def pattern_reader(patterns: tuple[str, ...], match: str, name: str) -> PatternReader | None:
    """Return the published reader of a protocol; None where it has none."""
    return PatternReader(patterns, match, f"--protocol {name}") if patterns else None


class GenerativePredictor(Predictor):
    """A causal language model: chats, or continues texts, and answers questions with a letter.

    Attributes:
        decoding: how replies to exam questions are generated.
    """

    decoding: Decoding

    @property
    @abstractmethod
    def has_chat_template(self) -> bool:
        """True for a model that replies to a conversation; else it continues a text."""

    @property
    @abstractmethod
    def writer(self) -> QuestionWriter:
        """How questions are written."""

    @abstractmethod
    def ask(self, asking: Asking, examples: Examples, decoding: Decoding | None = None) -> None:
        """Ask exam questions in this way from now on.

        Args:
            asking: protocol and settings.
            examples: answered questions by subject.
            decoding: how replies are generated, without a length as long as the predictor's own; None is
                greedy.
        """

    @property
    def reply_length(self) -> int:
        """Longest reply to an exam question, in tokens."""
        return self.decoding.max_new_tokens

    def method(self, requested: str = "auto") -> str:
        """Return the scoring method; `auto` is the protocol's. Raises UserError for one that fills blanks."""
        method = self.writer.form.scoring if requested == "auto" else str(parse(requested))
        if method not in CAUSAL:
            raise UserError(
                f"--scoring {requested}：這是因果模型，可用的是 {'、'.join(CAUSAL)}；"
                f"{requested} 要有 [MASK] 的模型"
            )
        return method

    def score(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None = None,
        world: Distributed | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Score the options by letters, or by what a generated reply names; arguments as `Predictor.score`.

        By `generate` the chosen option has 0, the others -1, which is an order and no probability.
        """
        if self.method(method) != GENERATE:
            return self._score_options(questions, method, orders, prior, world, progress)
        return score_replies(questions, self._reply_prompt, self._reply_to, self._read_reply, world, progress)

    @abstractmethod
    def _score_options(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None,
        world: Distributed | None,
        progress: Progress | None,
    ) -> Scores:
        """Score the options by their letters."""

    @abstractmethod
    def _reply_prompt(self, question: Question) -> tuple[Encoded, int]:
        """Return the prompt that a reply answers, and how much of it was cut. Raises PromptError."""

    @abstractmethod
    def _reply_to(
        self, prompts: Sequence[Encoded], progress: Progress | None
    ) -> Sequence[Reply | PromptError]:
        """Return the reply to each prompt, or why there is none; known ones come from `answers`."""

    @abstractmethod
    def _opens_thought(self, prompt: Encoded) -> bool:
        """Return whether a prompt ends within a thought, which the reply then goes on with."""

    def _read_reply(self, reply: Reply, question: Question, prompt: Encoded) -> ReadReply:
        """Read the option that a reply names, as the protocol has it."""
        thinking = self._opens_thought(prompt)
        return self._reader(reply, question.options, reply.truncated, thinking)

    @property
    def _reader(self) -> Callable[..., ReadReply]:
        """`read_reply`, or the published reader of the protocol."""
        protocol = self.writer.asking.protocol
        return pattern_reader(protocol.reader, protocol.match, protocol.name) or read_reply

    def check_generates(self) -> None:
        """Refuse a model that cannot generate. Raises UserError."""

    def remarks(self, prompt: str | Sequence[Message]) -> set[str]:
        """Describe how a conversation is changed to fit the chat template."""
        return set()

    def with_system(self, prompt: str | list[Message], system_prompt: str | None) -> str | list[Message]:
        """Return a prompt as a conversation that begins with the system prompt, unless it has its own.

        Raises:
            UserError: the model has no chat template, and so no place for it.
        """
        if system_prompt is None:
            return prompt
        if not self.has_chat_template:
            raise UserError(
                f"--system_prompt {shown(system_prompt)}：這個模型沒有對話樣板（chat_template），只會續寫，"
                "沒有系統提示的位置；請換一個對話模型，或把這段話寫在文字的開頭"
            )
        messages = [user(prompt)] if isinstance(prompt, str) else prompt
        if any(message["role"] == "system" for message in messages):
            return messages
        return [system(system_prompt), *messages]

    @abstractmethod
    def encode(self, prompt: str | Sequence[Message]) -> Encoded:
        """Return a prompt, or a conversation whose last message is the user's, as the model takes it.

        Raises:
            UserError: the chat template refuses it; half characters, which no tokenizer can read.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Encoded],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> Sequence[Reply]:
        """Generate a reply to each prompt as `encode` returns it.

        Raises:
            UserError: a prompt that does not fit.
        """

    def generate_rows(self, prompts: Sequence[Encoded], decoding: Decoding) -> Sequence[Reply | UserError]:
        """Generate a reply to each prompt as `generate`; errors may stand in the place of replies."""
        return self.generate(prompts, decoding)

    @abstractmethod
    def stream(self, prompt: Encoded, decoding: Decoding) -> ReplyStream:
        """Generate the reply to one prompt, piece by piece."""

    def truncation_note(self, prompt: Encoded, decoding: Decoding, limit: str, remedy: str) -> str:
        """Describe why a reply to this prompt was truncated, for the person who waits for its end.

        Args:
            limit: the limit of new tokens, in the words by which it is set.
            remedy: how to set a higher one.
        """
        if len(prompt) + decoding.max_new_tokens > self.longest:
            return (
                f"（到了這個模型的上限，沒寫完：提示與回答共 {self.longest} 個 token；"
                "請縮短提示，或換一個上下文更長的模型）"
            )
        return f"（到了 {limit} {decoding.max_new_tokens} 的上限，沒寫完；{remedy}）"
