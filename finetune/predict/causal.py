"""Predictor for causal language models: chat prompts, option letters, generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from finetune.data.instructions import Message, parse_instruction
from finetune.data.question import Question
from finetune.evaluation.reply_reader import opens_thought
from finetune.evaluation.reply_scoring import answer_all
from finetune.evaluation.scores import Prior, Progress, Scores
from finetune.models.generation import Decoding, Generator, eos_ids
from finetune.models.kv_cache import decode_mode
from finetune.models.run_card import RunCard
from finetune.models.streaming import STOPS, FilterChain, Reply, ReplyStream, Stripper, through
from finetune.predict.generative import LETTER_TOKENS, THINKING_TOKENS, GenerativePredictor
from finetune.predict.predictor import LocalPredictor
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import STYLES, Chat, user
from finetune.prompts.protocol import CHAT
from finetune.prompts.question_writer import Asking, Examples, QuestionWriter, our_asking
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed

ROUND = 64  # replies that a killed run loses at most
TAIL = 16  # tokens at the end of a prompt among which a template opens a thought
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


def _check_readable(*texts: str) -> None:
    """Raise UserError for texts that no tokenizer can read: half characters, or far too long."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise UserError("句子不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    if reason := too_long(*texts):
        raise UserError(f"句子{reason}")


class CausalLMPredictor(GenerativePredictor, LocalPredictor):
    """A causal language model in this process.

    Args: as `LocalPredictor`.

    Attributes:
        style: how messages are written: as the run card says, else the tokenizer's chat template where it has
            one, else NO_TEMPLATE.
        chat: the writer of messages.
        write_replies: (prompts, decoding, on_done) -> replies as the model writes them; a server replaces it.
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
        self.write_replies = self._write_replies
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
    def writer(self) -> QuestionWriter:
        """How questions are written."""
        return self.prompts.writer

    @property
    def reply_tokens(self) -> int:
        """Longest reply to an exam question unless flags say otherwise, in tokens."""
        published = self.prompts.writer.form.max_new_tokens
        if published:
            return published
        if not self.has_chat_template:  # it does not know when to stop
            return LETTER_TOKENS
        return THINKING_TOKENS if self.chat.writes_thought else Decoding().max_new_tokens

    def _prompt_settings(self) -> list[str]:
        return [str(self.prompts.writer), str(self.prompts.max_length)]

    def _score_options(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None,
        world: Distributed | None,
        progress: Progress | None,
    ) -> Scores:
        return LocalPredictor.score(self, questions, method, orders, prior, world, progress)

    def _reply_prompt(self, question: Question) -> tuple[list[int], int]:
        # A long reply may have less room than it is allowed: no question is cut for what it may never need.
        spare = min(self.decoding.max_new_tokens, max(LETTER_TOKENS, self.longest // 8))
        return self.prompts.reply_prompt(question, range(len(question.options)), spare)

    def _opens_thought(self, prompt: list[int]) -> bool:
        return opens_thought(str(self.tokenizer.decode(prompt[-TAIL:])))

    def _reply_to(self, prompts: Sequence[list[int]], progress: Progress | None) -> list[Reply]:
        """Return the replies, generated in rounds that are the same wherever a run was stopped."""

        def ask(missing: list[int]) -> Iterator[dict[int, tuple[str, bool]]]:
            for first in sorted({number // ROUND * ROUND for number in missing}):
                decoding = self.decoding
                if decoding.samples and decoding.seed is not None and first:  # other draws for other rounds
                    decoding = replace(decoding, seed=decoding.seed * 1_000_003 + first)
                replies = self.generate(prompts[first : first + ROUND], decoding, progress)
                yield {first + at: (str(reply), reply.truncated) for at, reply in enumerate(replies)}

        asked: Sequence[object] = prompts
        if self.answers:  # what decides a reply
            asked = [[self.answers_digest, str(self.decoding), ids] for ids in prompts]
        samples = self.decoding.samples
        answers = answer_all(
            asked, ask, self.answers, lambda known: progress and progress(len(known)), samples
        )
        return [Reply(*answer) for answer in answers]

    @property
    def has_chat_template(self) -> bool:
        """True for a model that replies to a conversation; else it continues a text."""
        return self.style != NO_TEMPLATE

    def check_generates(self) -> None:
        """Refuse a model that cannot generate. Raises UserError."""
        decode_mode(self.model)

    def remarks(self, prompt: str | Sequence[Message]) -> set[str]:
        """Describe how a conversation is changed to fit the chat template."""
        return set() if isinstance(prompt, str) else self.chat.remarks(prompt)

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
            if isinstance(prompt, str):
                if self.style == NO_TEMPLATE:
                    return self.encode_text(prompt)
                prompt = [user(prompt)]
            _check_readable(*(str(message["content"]) for message in prompt))
            return self.chat.prompt(prompt)
        except ValueError as error:
            raise UserError(str(error)) from error

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text to go on from, as it is.

        A special token in it is one where the model has a chat template, by which the text may have been
        written; else it is ordinary text, as in training.

        Raises:
            UserError: half characters, which no tokenizer can read.
        """
        _check_readable(text)
        ids: list[int] = self.tokenizer(text, split_special_tokens=self.style == NO_TEMPLATE)["input_ids"]
        bos_id = self.tokenizer.bos_token_id
        return ids[1:] if bos_id is not None and ids[:2] == [bos_id] * 2 else ids  # a template writes its own

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> list[Reply]:
        """Generate a reply to each prompt, given as token ids. Raises UserError for one that does not fit."""
        replies = self.write_replies(prompts, decoding, on_done)
        return [Reply("".join(through([reply], self.reply_filter())), reply.truncated) for reply in replies]

    def stream(self, prompt: Sequence[int], decoding: Decoding) -> ReplyStream:
        """Generate the reply to one prompt, piece by piece."""
        stream = self._generator(decoding).stream(prompt)
        return stream.through(lambda pieces: through(pieces, self.reply_filter()))

    def _write_replies(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> list[Reply]:
        return self._generator(decoding).generate(prompts, on_done)

    def _generator(self, decoding: Decoding) -> Generator:
        return Generator(self.model, self.tokenizer, decoding, STOPS, self.ends)

    def reply_filter(self) -> FilterChain:
        """Return what removes from a reply, piece by piece, what the chat template writes around it."""
        return FilterChain([] if self.style == NO_TEMPLATE else [self.chat.start_cleaner(), Stripper()])

    def warn(self, *texts: str) -> None:
        """Log nothing: a causal model's tokenizer reads every character."""
