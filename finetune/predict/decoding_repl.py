"""Base of the sessions with models that write: how replies are generated and printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from shlex import quote
from typing import Any, Protocol, TypeVar

from finetune.models.decoding import Decoding
from finetune.models.streaming import ReplyStream
from finetune.predict.repl import Answer, Repl, int_between
from finetune.runtime.console import log, print_result
from finetune.runtime.errors import UserError

HELP = """  sample on|off   抽樣，或每次都選最可能的字（現在 {sample}）
  temperature N   抽樣的溫度，0 到 5（現在 {temperature:g}）
  tokens N        最多生成幾個 token（現在 {tokens}）"""
OTHERS = """
  （{flags}：開始時給的，在這裡一樣有作用）"""
COMMANDED = {"max_new_tokens", "do_sample", "temperature"}  # options of decoding that a command sets


class WritingPredictor(Protocol):
    """What a session asks of a model that writes: `GenerativePredictor` or `Seq2SeqPredictor`."""

    def stream(self, prompt: Any, decoding: Decoding) -> ReplyStream:
        """Generate the reply to one prompt, piece by piece."""

    def truncation_note(self, prompt: Any, decoding: Decoding, limit: str, remedy: str) -> str:
        """Describe why a reply to this prompt was truncated."""


Writing = TypeVar("Writing", bound=Any)  # a predictor that is a WritingPredictor


class DecodingRepl(Repl[Writing]):
    """Session whose commands `sample`, `temperature` and `tokens` set how replies are generated.

    Args: as `Repl`; `decoding`: how replies are generated, at first.
    """

    def __init__(
        self,
        predictor: Writing,
        answer: Answer | None,
        decoding: Decoding,
        method: str = "auto",
        orders: str = "1",
    ):
        super().__init__(predictor, answer, 1, method, orders)
        self.decoding = decoding
        self.commands = {"sample": self._sample, "temperature": self._temperature, "tokens": self._tokens}

    def decoding_help(self) -> str:
        """Return the lines of the help on the commands that set how replies are generated."""
        return HELP.format(
            sample="on" if self.decoding.samples else "off",
            temperature=self.decoding.temperature,
            tokens=self.decoding.max_new_tokens,
        )

    def other_flags(self) -> str:
        """Return a line on the options of decoding that no command sets, where they are not the default."""
        flags = [
            f"--{option.name}" if value is True else f"--{option.name} {_as_flag(value)}"
            for option in fields(Decoding)
            if option.name not in COMMANDED
            and (value := getattr(self.decoding, option.name)) != option.default
        ]
        return OTHERS.format(flags="、".join(flags)) if flags else ""

    def print_reply(self, prompt: Sequence[int] | Any) -> str | None:
        """Print the reply to a prompt as it is generated; Ctrl-C stops it there.

        Args:
            prompt: as the predictor's `encode` returns it.

        Returns:
            the reply; None where it was stopped before its first piece.
        """
        pieces: list[str] = []
        truncated = False
        stream = self.predictor.stream(prompt, self.decoding)
        try:
            for piece in stream:
                print_result(piece if pieces else f"\n🤖 {piece}", end="")
                pieces.append(piece)
            if not pieces:
                print_result("\n🤖 （模型沒有輸出）", end="")
            truncated = stream.truncated
        except KeyboardInterrupt:
            print_result("…（已中止）", end="")
            if not pieces:
                return None  # no reply to keep
        finally:
            print_result("\n")
        if truncated:
            longer = f"要更長就輸入 tokens {2 * self.decoding.max_new_tokens}"
            log(self.predictor.truncation_note(prompt, self.decoding, "tokens", longer))
        return "".join(pieces)

    def _sample(self, value: str) -> None:
        if value not in ("on", "off"):
            raise UserError(f"sample {value}：應為 on 或 off")
        self.decoding = replace(self.decoding, do_sample=value == "on", num_beams=1)
        print_result(f"  抽樣 {value}")

    def _temperature(self, value: str) -> None:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 5:
            raise UserError(f"temperature {value[:20]}：應為 0 到 5 的數，例如 temperature 0.7")
        self.decoding = replace(self.decoding, temperature=number)
        print_result(f"  溫度 {number:g}" + ("" if self.decoding.do_sample else "（sample on 之後才有作用）"))

    def _tokens(self, value: str) -> None:
        self.decoding = replace(self.decoding, max_new_tokens=int_between("tokens", value, 1, 100_000))
        print_result(f"  最多 {self.decoding.max_new_tokens} 個 token")


def _as_flag(value: object) -> str:
    """Write the value of an option as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(quote(text.replace("\n", "\\n").replace("\t", "\\t")) for text in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
