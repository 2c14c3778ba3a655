"""Bodies of requests in OpenAI's shape: what is followed, what is harmless, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.models.decoding import Decoding
from finetune.runtime.errors import UserError, shown
from finetune.serving.errors import ApiError
from finetune.serving.schemas import Body

MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS, MOST_PROMPTS = 8, 8, 20, 256
MOST_TOKENS = 1 << 20  # of a reply: the model's room ends it before

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Stop = Annotated[str, Field(min_length=1)]


def _is_any(value: object) -> bool:
    return True


def _is_one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: any(value == one and type(value) is type(one) for one in values)


def _is_zero(value: object) -> bool:
    return value == 0 and not isinstance(value, bool)


# Fields that change nothing with these values; with any other they are refused.
HARMLESS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(
        ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"),
        _is_any,
    ),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), _is_zero),
    **dict.fromkeys(("store", "use_beam_search", "ignore_eos"), _is_one_of(False)),
    **dict.fromkeys(("tools", "functions"), _is_one_of([])),
    "skip_special_tokens": _is_one_of(True),
    "logit_bias": _is_one_of({}),
    "tool_choice": _is_one_of("none", "auto"),
    "function_call": _is_one_of("none", "auto"),
    "modalities": _is_one_of(["text"]),
    "response_format": _is_one_of({"type": "text"}),
    "suffix": _is_one_of(""),
    "best_of": _is_one_of(1),
    "length_penalty": lambda value: value == 1,
    "chat_template_kwargs": _is_one_of({}),
}  # fmt: skip


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = Field(False, description="the last part counts the tokens")


class WritingBody(Body):
    """What both paths take: how tokens are chosen, and how the answer comes."""

    n: int = Field(1, ge=1, le=MOST_CHOICES, description="replies to each prompt; the i-th has seed + i")
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = ()  # type: ignore[assignment]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions(include_usage=False)
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="without it, top_p and seed the likeliest token is chosen; 0 does so too"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    top_k: int = Field(0, ge=-1, description="0 or -1: all tokens")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    min_tokens: int = Field(0, ge=0, le=MOST_TOKENS)

    @model_validator(mode="before")
    @classmethod
    def _without_harmless(cls, body: Any) -> Any:
        """Leave out what changes nothing; a field that would be ignored is refused by its name."""
        if not isinstance(body, dict):
            return body
        kept = {}
        for name, value in body.items():
            if name in cls.model_fields:
                if value is not None:  # as if it were not there
                    kept[name] = value
            elif name not in HARMLESS:
                kept[name] = value  # there is no such field
            elif value is not None and not HARMLESS[name](value):
                raise ApiError(
                    422, f"{shown(name)[1:-1]}：這個伺服器不支援 {shown(value)}；請拿掉這個欄位", str(name)
                )
        return kept

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def tokens_asked(self) -> int | None:
        """New tokens at most; None where nothing says."""
        return self.max_tokens

    def decodings(self, default: Decoding) -> list[Decoding]:
        """Return how each of the `n` replies to a prompt is written.

        Args:
            default: greedy, with the length of a reply whose request names none.

        Raises:
            UserError: values that contradict each other.
        """
        asked = self.tokens_asked
        length = default.max_new_tokens if asked is None else max(1, asked)
        if self.min_tokens > length:
            raise UserError(f"min_tokens {self.min_tokens} 大於 max_tokens {length}；請調小前者，或加大後者")
        is_random = not (self.temperature is None and self.top_p is None and self.seed is None)
        temperature = 1.0 if self.temperature is None else self.temperature
        return [
            Decoding(
                length, is_random, temperature, max(0, self.top_k), 1.0 if self.top_p is None else self.top_p,
                self.repetition_penalty, seed=None if self.seed is None else self.seed + number,
                min_p=self.min_p, min_new_tokens=self.min_tokens, stop=self.stops,
            )
            for number in range(self.n)
        ]  # fmt: skip


class CompletionBody(WritingBody):
    """Texts to go on from."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    echo: bool = Field(False, description="the answer begins with the prompt")
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(
        None, description="log-probabilities of each token, and of so many others in its place"
    )

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @model_validator(mode="after")
    def _check(self) -> CompletionBody:
        count = len(self.prompts) * self.n
        if count > MOST_PROMPTS:
            raise ApiError(
                422,
                f"prompt：{len(self.prompts)} 段文字 × n {self.n} 是 {count} 個回答，最多 {MOST_PROMPTS} 個",
                "prompt",
            )
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(422, "max_tokens 0：什麼都不寫，只有 echo 時可以；請給 1 以上的數", "max_tokens")
        return self


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]

    @property
    def text(self) -> str:
        """Its text."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatBody(WritingBody):
    """A conversation to reply to."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)

    @property
    def tokens_asked(self) -> int | None:
        """New tokens at most; None where nothing says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _check(self) -> ChatBody:
        if self.max_tokens == 0:
            raise ApiError(422, "max_tokens 0：什麼都不寫；請給 1 以上的數", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(
                422, f"top_logprobs {self.top_logprobs}：要與 logprobs true 一起給", "top_logprobs"
            )
        return self
