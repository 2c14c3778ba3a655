"""Requests to an OpenAI-compatible server, and how its answers are read; servers differ in both.

Log-probabilities come in two forms: lists beside one another (OpenAI's /completions, vLLM, SGLang), or a list
of objects in `content` (/chat/completions everywhere, and llama.cpp's /completions).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from finetune.data.question import LETTERS
from finetune.models.decoding import Decoding
from finetune.models.streaming import STOPS, Reply, cut_at_stops

COMPLETIONS, CHAT_COMPLETIONS = "/completions", "/chat/completions"
TAIL = 16  # last tokens of an echoed prompt that are kept: a continuation is a letter with a little around it
EXTRAS = {  # options that are no part of OpenAI's interface -> their names with vLLM, SGLang, llama.cpp
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
}  # fmt: skip
WORD_BEGINS = str.maketrans({"\u0120": " ", "\u2581": " "})  # Ġ and ▁, where tokens come undecoded

Listed = list[tuple[str, float]]  # tokens with their log-probabilities


class ServedReply(Reply):
    """The reply of a model on a server.

    Attributes:
        refused: the server or the model declined, by `refusal` or a content filter.
    """

    refused: bool

    def __new__(cls, text: str = "", truncated: bool = False, refused: bool = False) -> ServedReply:
        """Make a reply of a text."""
        reply = super().__new__(cls, text, truncated)
        assert isinstance(reply, cls)
        reply.refused = refused
        return reply


@dataclass(frozen=True)
class Asked:
    """A request: where it goes, and what is sent but for the model's name."""

    endpoint: str
    body: Mapping[str, Any]


# ---- requests ----------------------------------------------------------------------------------------------


def prompt_body(prompt: str | Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]) -> Asked:
    """Return the request that goes on from a text, or replies to messages."""
    if isinstance(prompt, str):
        return Asked(COMPLETIONS, {"prompt": prompt})
    more = {"chat_template_kwargs": dict(template_kwargs)} if template_kwargs else {}
    return Asked(CHAT_COMPLETIONS, {"messages": list(prompt), **more})


def with_decoding(asked: Asked, decoding: Decoding, given: Collection[str]) -> Asked:
    """Return a request that decodes so; what is no part of OpenAI's interface goes along only where given.

    Args:
        given: names of the flags that were given.
    """
    body: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "temperature": 0}
    if decoding.samples:
        body |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
        if decoding.seed is not None:
            body["seed"] = decoding.seed
    if decoding.stop:
        body["stop"] = list(decoding.stop)
    for option, name in EXTRAS.items():
        if option in given:
            body[name] = getattr(decoding, option)
    if body.get("top_k") == 0:  # all of them
        body["top_k"] = -1
    return Asked(asked.endpoint, {**asked.body, **body})


def with_next_token(asked: Asked, top: int) -> Asked:
    """Return a request for the log-probabilities of the `top` likeliest next tokens."""
    chat = asked.endpoint == CHAT_COMPLETIONS
    wanted = {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
    return Asked(asked.endpoint, {**asked.body, "max_tokens": 1, "temperature": 0, **wanted})


def echoed(text: str, max_tokens: int) -> Asked:
    """Return a request for the log-probabilities of the tokens of a text."""
    body = {"prompt": text, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1, "echo": True}
    return Asked(COMPLETIONS, body)


# ---- answers -----------------------------------------------------------------------------------------------


def read_reply_of(choice: Mapping[str, Any]) -> tuple[str, bool, bool]:
    """Return the text of a reply, whether its length ended it, and whether it is a refusal.

    What a reasoning model thinks (`reasoning_content`, `reasoning`) is no part of the text.
    """
    reason, message = choice.get("finish_reason"), choice.get("message")
    if "text" in choice:
        text, refusal = cut_at_stops(str(choice["text"] or ""), STOPS), None
    else:
        message = message if isinstance(message, dict) else {}
        text, refusal = _content(message.get("content")).strip(), message.get("refusal")
    refused = bool(refusal) or reason == "content_filter"
    return text or (str(refusal) if refusal else ""), reason == "length", refused


def piece_of(choice: Mapping[str, Any]) -> str:
    """Return the text that a part of a streamed reply adds; of an answer that was not streamed the whole."""
    if "text" in choice:
        return str(choice["text"] or "")
    part = choice.get("delta") or choice.get("message")
    part = part if isinstance(part, dict) else {}
    return _content(part.get("content")) or str(part.get("refusal") or "")


def _content(content: object) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def next_tokens(choice: Mapping[str, Any]) -> Listed | None:
    """Return the likeliest first tokens of a reply, the likeliest first; None without log-probabilities."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    if isinstance(entries := logprobs.get("content"), list):
        first = entries[0] if entries and isinstance(entries[0], dict) else {}
        rows = first.get("top_logprobs")
        found = _pairs(
            (row.get("token"), row.get("logprob"))
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict)
        )
    else:
        tops = logprobs.get("top_logprobs")
        first = tops[0] if isinstance(tops, list) and tops and isinstance(tops[0], dict) else {}
        found = _pairs(first.items())
    return sorted(found, key=lambda pair: -pair[1]) or None


def echoed_tail(choice: Mapping[str, Any], ending: str, generated: int) -> Listed | None:
    """Return the last tokens of an echoed prompt; None where the server echoed none.

    Args:
        ending: the end of the prompt.
        generated: tokens that were asked for behind it, 0 or 1. Some servers generate one all the same: their
            own count of the prompt's tokens tells, or else where the ending is.
    """
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    counted = choice.get("usage", {}).get("prompt_tokens")
    guesses = [len(tokens) - generated, len(tokens) - 1 + generated]
    for count in [counted] if isinstance(counted, int) else guesses:
        part = slice(max(0, count - TAIL), count)
        tail = _pairs(zip(tokens[part], values[part], strict=True))
        if "".join(token for token, _ in tail).endswith(ending):
            return tail
    return None


def _pairs(pairs: Any) -> Listed:
    """Return what are texts with finite log-probabilities."""
    return [
        (str(text).translate(WORD_BEGINS), float(value))
        for text, value in pairs
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]


# ---- letters -----------------------------------------------------------------------------------------------


def letter_texts(answers: Sequence[str]) -> tuple[str, list[str]]:
    """Return the text before the letter that all answers share (`(` of `(A)`), and the letters behind it.

    White space before a letter belongs to the letter: tokenizers join them.
    """
    lead = commonprefix(list(answers)).rstrip()
    rest = [answer[len(lead) :] for answer in answers]
    return lead, [text[: text.index(LETTERS[place]) + 1] for place, text in enumerate(rest)]


def letter_scores(listed: Sequence[tuple[str, float]], letters: Sequence[str]) -> list[float | None]:
    """Return the log-probability of each letter; None for one that is not among the listed tokens.

    A letter is its token as the answer writes it. Where no letter is listed so, all that is the letter but
    for white space counts, added up: ` A` and `A`.
    """
    for same in (
        lambda token, letter: token == letter,
        lambda token, letter: token.strip() == letter.strip(),
    ):
        rows = [[value for token, value in listed if same(token, letter)] for letter in letters]
        if any(rows):
            return [_log_sum(values) if values else None for values in rows]
    return [None] * len(letters)


def unlisted_bound(listed: Sequence[tuple[str, float]]) -> float:
    """Return the highest log-probability that a token can have which is not listed."""
    left = 1 - math.fsum(math.exp(value) for _, value in listed)
    return min(min(value for _, value in listed), math.log(max(left, 1e-12)))


def continuation_scores(
    tails: Sequence[Sequence[tuple[str, float]]], continuations: Sequence[str]
) -> list[float] | None:
    """Return the sum over the tokens of each continuation of one prompt; None where they cannot be found.

    They are found from the end, since the texts of tokens that are parts of a character are no text. Where a
    token holds the end of the prompt too (`:A`), the sums of all continuations begin at its first character.
    """
    over = 0
    for tail, text in zip(tails, continuations, strict=True):
        size, index = 0, len(tail)
        while size < len(text):
            index -= 1
            if index < 0:
                return None
            size += len(tail[index][0])
        if not "".join(token for token, _ in tail[index:]).endswith(text):
            return None
        over = max(over, size - len(text))
    sums = []
    for tail, text in zip(tails, continuations, strict=True):
        size, total = 0, 0.0
        for token, value in reversed(tail):
            if size >= len(text) + over:
                break
            size, total = size + len(token), total + value
        sums.append(total)
    return sums


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
