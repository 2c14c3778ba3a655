"""Answers in OpenAI's shape, whole and in parts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.models.logits import TokenLogprob
from finetune.models.reply_batch import ReplyEvent
from finetune.models.streaming import FilterChain
from finetune.serving.generation import Prompt
from finetune.serving.token_texts import TokenTexts

Json = dict[str, Any]


@dataclass
class Choice:
    """One reply of an answer.

    Attributes:
        index: its number in the answer.
        prompt: what it replies to.
        pieces: changes its text, piece by piece.
        offset: where the text of its next token begins, for log-probabilities.
        text, logprobs: what has been written.
        reason: why it ended.
        num_tokens: tokens written.
    """

    index: int
    prompt: Prompt
    pieces: FilterChain = field(default_factory=FilterChain)
    offset: int = 0
    text: str = ""
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    reason: str = ""
    num_tokens: int = 0

    def take(self, event: ReplyEvent) -> str:
        """Take in what was written; return the text that became certain."""
        piece = self.pieces.write(event.text) + (self.pieces.finish() if event.reason else "")
        self.text += piece
        self.num_tokens += 1
        self.reason = event.reason
        if event.logprob:
            self.logprobs.append(event.logprob)
        return piece


def usage(choices: Sequence[Choice]) -> Json:
    """Return how many tokens a request took; a prompt counts once, however many replies it got."""
    prompts = {id(choice.prompt.ids): len(choice.prompt.ids) for choice in choices}
    read, written = sum(prompts.values()), sum(choice.num_tokens for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


@dataclass
class CompletionShape:
    """Answers of /v1/completions.

    Args:
        model: its name.
        texts: texts of single tokens.
    """

    model: str
    texts: TokenTexts
    name = part_name = "text_completion"
    prefix = "cmpl-"

    def choice(self, choice: Choice) -> Json:
        """Return a whole reply."""
        return self._entry(choice, choice.text, choice.logprobs)

    def first(self, choice: Choice) -> Json | None:
        """Return the part that a stream begins with: the echo of the prompt."""
        return self._entry(choice, choice.text, choice.logprobs) if choice.text or choice.reason else None

    def part(self, choice: Choice, piece: str, logprobs: Sequence[TokenLogprob | None]) -> Json:
        """Return what was added to a reply."""
        return self._entry(choice, piece, logprobs)

    def _entry(self, choice: Choice, text: str, logprobs: Sequence[TokenLogprob | None]) -> Json:
        listed = None if choice.prompt.top_logprobs is None else self._lists(choice, logprobs)
        return {
            "index": choice.index,
            "text": text,
            "logprobs": listed,
            "finish_reason": choice.reason or None,
        }

    def _lists(self, choice: Choice, logprobs: Sequence[TokenLogprob | None]) -> Json:
        """Return log-probabilities as lists; nothing predicts the first token of a prompt."""
        lists: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in logprobs:
            token = choice.prompt.ids[0] if one is None else one.token
            text = self.texts.text(token)
            lists["tokens"].append(text)
            lists["token_logprobs"].append(None if one is None else one.logprob)
            lists["top_logprobs"].append(None if one is None else self._top(text, one))
            lists["text_offset"].append(choice.offset)
            choice.offset += len(text)
        return lists

    def _top(self, text: str, one: TokenLogprob) -> dict[str, float]:
        """Return the likeliest tokens and the token itself by their texts; of equal texts the likeliest."""
        top: dict[str, float] = {}
        for name, value in [
            *((self.texts.text(token), value) for token, value in one.top),
            (text, one.logprob),
        ]:
            top[name] = max(value, top.get(name, value))
        return top


@dataclass
class ChatShape:
    """Answers of /v1/chat/completions; arguments as of `CompletionShape`."""

    model: str
    texts: TokenTexts
    name, part_name = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl-"

    def choice(self, choice: Choice) -> Json:
        """Return a whole reply."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self._entry(choice, "message", message, choice.logprobs)

    def first(self, choice: Choice) -> Json | None:
        """Return the part that a stream begins with."""
        return self._entry(choice, "delta", {"role": "assistant", "content": ""}, [])

    def part(self, choice: Choice, piece: str, logprobs: Sequence[TokenLogprob | None]) -> Json:
        """Return what was added to a reply."""
        return self._entry(choice, "delta", {"content": piece} if piece else {}, logprobs)

    def _entry(
        self, choice: Choice, name: str, message: Json, logprobs: Sequence[TokenLogprob | None]
    ) -> Json:
        listed = None
        if choice.prompt.top_logprobs is not None:
            listed = {"content": [self._token(one) for one in logprobs if one], "refusal": None}
        return {
            "index": choice.index,
            name: message,
            "logprobs": listed,
            "finish_reason": choice.reason or None,
        }

    def _token(self, one: TokenLogprob) -> Json:
        top = [self._named(token, value) for token, value in one.top]
        return self._named(one.token, one.logprob) | {"top_logprobs": top}

    def _named(self, token: int, value: float) -> Json:
        return {"token": self.texts.text(token), "logprob": value, "bytes": self.texts.bytes(token)}


Shape = CompletionShape | ChatShape


@dataclass
class Answer:
    """What all parts of an answer share."""

    shape: Shape
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id, self.created = f"{self.shape.prefix}{uuid.uuid4().hex}", int(time.time())

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Return the whole answer."""
        entries = [self.shape.choice(choice) for choice in choices]
        return self._envelope(self.shape.name, entries) | {"usage": usage(choices)}

    def part(self, entries: Sequence[Json], counted: Json | None = None) -> Json:
        """Return a part of a streamed answer.

        Args:
            counted: the usage, in the last part.
        """
        return self._envelope(self.shape.part_name, entries) | ({"usage": counted} if counted else {})

    def _envelope(self, name: str, entries: Sequence[Json]) -> Json:
        return {
            "id": self.id, "object": name, "created": self.created, "model": self.shape.model,
            "choices": list(entries),
        }  # fmt: skip
