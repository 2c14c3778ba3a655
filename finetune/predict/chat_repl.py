"""Interactive session with a causal model: streamed replies, conversation history, questions."""

from __future__ import annotations

from dataclasses import replace

from finetune.data.instructions import Message
from finetune.models.generation import Decoding
from finetune.predict.generative import GenerativePredictor
from finetune.predict.repl import Answer, Repl, decode_entry, int_between
from finetune.runtime.console import print_result
from finetune.runtime.errors import UserError

GREETING = """
============================================================
🤖 {what}
  輸入 qa：問一題選擇題
  輸入 help：其他指令
  輸入 quit、exit 或 q：離開
============================================================"""
CHATS = "對話：直接輸入想說的話\n  輸入 reset：清除先前的對話，重新開始"
GOES_ON = "續寫：輸入一段文字的開頭"
CHATS_HELP = """
  一段話          模型回答；並保留先前的對話（現在 {turns} 個來回）
  reset           清除先前的對話"""
GOES_ON_HELP = """
  一段文字        模型續寫；每次重新開始，不保留先前的內容"""
HELP = """
  qa              問一題選擇題
  sample on|off   抽樣，或每次都選最可能的字（現在 {sample}）
  temperature N   抽樣的溫度，0 到 5（現在 {temperature:g}）
  tokens N        最多生成幾個 token（現在 {tokens}）
  method M        選擇題的作答方式（現在 {method}）：letter、generate、prior
  orders O        letter 的選項順序（現在 {orders}）：1、cyclic、all
  quit            離開（也可按 Ctrl-D；Ctrl-C 取消這一行，或中止正在寫的回答）
"""

ROOM = 64  # tokens left for a reply before the oldest turns are dropped


class ChatRepl(Repl[GenerativePredictor]):
    """Session with a causal model.

    Args: as `Repl`; `decoding`: how replies are generated, at first.
    """

    def __init__(
        self, predictor: GenerativePredictor, answer: Answer, method: str, orders: str, decoding: Decoding
    ):
        super().__init__(predictor, answer, 1, method, orders)
        self.decoding = decoding
        self.messages: list[Message] = []
        self.has_chat_template = predictor.has_chat_template
        self.greeting = GREETING.format(what=CHATS if self.has_chat_template else GOES_ON)
        self.commands = {
            "sample": self._sample, "temperature": self._temperature, "tokens": self._tokens,
            "method": self._method, "orders": self._orders,
        }  # fmt: skip

    def handle(self, entry: str) -> None:
        """Handle one entry as `Repl.handle`; `reset` clears the conversation."""
        if decode_entry(entry) == "reset" or entry.lower() in ("/clear", "/new"):
            self.messages = []
            cleared = "已清除先前的對話" if self.has_chat_template else "這個模型本來就不保留先前的內容"
            print_result(f"  {cleared}\n")
        else:
            super().handle(entry)

    def help(self) -> str:
        """Return the list of commands with the current settings."""
        return ((CHATS_HELP if self.has_chat_template else GOES_ON_HELP) + HELP).format(
            turns=len(self.messages) // 2,
            sample="on" if self.decoding.samples else "off",
            temperature=self.decoding.temperature,
            tokens=self.decoding.max_new_tokens,
            method=self.method,
            orders=self.orders,
        )

    def respond(self, entry: str) -> None:
        """Print the reply to an entry as it is generated; Ctrl-C stops it there.

        The oldest turns are dropped once the conversation no longer fits.

        Raises:
            UserError: the entry alone does not fit the model.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": entry}]
        ids = self.predictor.encode(messages if self.has_chat_template else entry)
        while len(messages) > 1 and len(ids) + ROOM > self.predictor.longest:
            messages = messages[2:]
            ids = self.predictor.encode(messages)
            print_result("  （對話太長，捨去最早的一個來回）")
        pieces: list[str] = []
        try:
            for piece in self.predictor.stream(ids, self.decoding):
                print_result(piece if pieces else f"\n🤖 {piece}", end="")
                pieces.append(piece)
            if not pieces:
                print_result("\n🤖 （模型沒有輸出）", end="")
        except KeyboardInterrupt:
            print_result("…（已中止）", end="")
            if not pieces:
                return  # no reply to keep
        finally:
            print_result("\n")
        if self.has_chat_template:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

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
