"""Decoding options of causal models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.runtime.errors import UserError, shown


@dataclass(frozen=True)
class Decoding:
    """Decoding options; names, meaning and order of the filters as in transformers.

    Raises:
        UserError: beam search that samples; a reply that must be longer than it may be; a value of the last
            four that nothing can be done with.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 50  # 0 = all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    seed: int | None = None  # seed of sampling; None = a new one every time
    min_p: float = 0.0  # of the likeliest token's probability; 0 = off
    min_new_tokens: int = 0  # no token ends a reply before; a stop string does
    no_repeat_ngram_size: int = 0  # n-grams of prompt and reply together; 0 = off
    stop: Sequence[str] = ()  # a reply ends before the first of them; one alone may be a str

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        problems = []
        if self.samples and self.num_beams > 1:
            problems.append(f"--num_beams {self.num_beams} 與 --do_sample 不能一起用：束搜尋不抽樣")
        if self.min_new_tokens > self.max_new_tokens:
            problems.append(
                f"--min_new_tokens {self.min_new_tokens} 大於 --max_new_tokens {self.max_new_tokens}；"
                "請調小前者，或加大後者"
            )
        if not 0 <= self.min_p <= 1:
            problems.append(f"--min_p {self.min_p}：應為 0 到 1 的數")
        for name in ("min_new_tokens", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                problems.append(f"--{name} {getattr(self, name)}：應為 0 以上的整數")
        if wrong := [text for text in self.stop if not isinstance(text, str) or not text]:
            problems.append(f"--stop {shown(wrong[0])}：應為至少一個字的文字")
        if problems:
            raise UserError(problems)

    @property
    def samples(self) -> bool:
        """True when tokens are drawn at random; a temperature of 0 is greedy."""
        return self.do_sample and self.temperature > 0

    @property
    def reads_reply(self) -> bool:
        """True when the scores of a token depend on which tokens came before it."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram_size > 0


GREEDY = Decoding()
