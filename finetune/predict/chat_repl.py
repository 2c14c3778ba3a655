"""Interactive session with a causal model: streamed replies, conversation history, questions."""

from __future__ import annotations

import re

from finetune.data.instructions import Message
from finetune.models.generation import Decoding
from finetune.predict.decoding_repl import DecodingRepl
from finetune.predict.generative import GenerativePredictor
from finetune.predict.repl import Answer, decode_entry
from finetune.prompts.chat import user
from finetune.runtime.console import log, print_result
from finetune.runtime.errors import UserError, shown

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
  reset           清除先前的對話；系統提示還在
  system TEXT     放在對話最前面的系統提示（現在 {system}）；system off 不用"""
GOES_ON_HELP = """
  一段文字        模型續寫；每次重新開始，不保留先前的內容"""
HELP = """
  qa              問一題選擇題
{decoding}
  method M        選擇題的作答方式（現在 {method}）：letter、generate、prior
  orders O        letter 的選項順序（現在 {orders}）：1、cyclic、all{others}
  quit            離開（也可按 Ctrl-D；Ctrl-C 取消這一行，或中止正在寫的回答）
"""

SYSTEM = re.compile(r"(?P<mark>[/:\\]?)system(?:\s*[=:：]\s*|\s+|$)(?P<text>.*)", re.IGNORECASE)

ROOM = 64  # tokens left for a reply before the oldest turns are dropped


class ChatRepl(DecodingRepl[GenerativePredictor]):
    """Session with a causal model.

    Args: as `Repl`; `decoding`, `system_prompt`: how replies are generated, at first.

    Raises:
        UserError: a system prompt for a model that has no place for one.
    """

    def __init__(
        self,
        predictor: GenerativePredictor,
        answer: Answer,
        method: str,
        orders: str,
        decoding: Decoding,
        system_prompt: str | None = None,
    ):
        super().__init__(predictor, answer, decoding, method, orders)
        self.system_prompt: str | None = None
        if system_prompt is not None:
            self._set_system(system_prompt)
        self.messages: list[Message] = []
        self.has_chat_template = predictor.has_chat_template
        self.greeting = GREETING.format(what=CHATS if self.has_chat_template else GOES_ON)
        self.commands |= {"method": self._method, "orders": self._orders}

    def handle(self, entry: str) -> None:
        """Handle one entry as `Repl.handle`; `reset` clears the conversation, `system` takes a text."""
        if decode_entry(entry) == "reset" or entry.lower() in ("/clear", "/new"):
            self.messages = []
            cleared = "已清除先前的對話" if self.has_chat_template else "這個模型本來就不保留先前的內容"
            print_result(f"  {cleared}\n")
        elif (match := SYSTEM.fullmatch(entry)) and (
            self.has_chat_template or match["mark"] or not match["text"]  # `System design is` can go on
        ):
            self._system(match["text"].strip())
        else:
            super().handle(entry)

    def help(self) -> str:
        """Return the list of commands with the current settings."""
        return ((CHATS_HELP if self.has_chat_template else GOES_ON_HELP) + HELP).format(
            turns=len(self.messages) // 2,
            method=self.method,
            orders=self.orders,
            system=shown(self.system_prompt) if self.system_prompt else "沒有",
            decoding=self.decoding_help(),
            others=self.other_flags(),
        )

    def respond(self, entry: str) -> None:
        """Print the reply to an entry as it is generated; Ctrl-C stops it there.

        The oldest turns are dropped once the conversation no longer fits.

        Raises:
            UserError: the entry alone does not fit the model.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": entry}]
        ids = self._encode(messages)
        while len(messages) > 1 and len(ids) + ROOM > self.predictor.longest:
            messages = messages[2:]
            ids = self._encode(messages)
            print_result("  （對話太長，捨去最早的一個來回）")
        reply = self.print_reply(ids)
        if self.has_chat_template and reply is not None:
            self.messages = [*messages, {"role": "assistant", "content": reply}]

    def _encode(self, messages: list[Message]) -> list[int]:
        """Return the token ids of the conversation with the system prompt, or of the text to go on from."""
        if not self.has_chat_template:
            return self.predictor.encode(messages[-1]["content"])
        return self.predictor.encode(self.predictor.with_system(messages, self.system_prompt))

    def _system(self, value: str) -> None:
        """Show the system prompt, remove it, or set it."""
        if not self.has_chat_template:
            self._set_system(value)  # says why there is none
        elif value.lower() == "off":
            self.system_prompt = None
            print_result("  不用系統提示\n")
        elif value:
            self._set_system(value)
            print_result(f"  系統提示：{self.system_prompt}\n")
        else:
            print_result(f"  系統提示：{self.system_prompt or '沒有；輸入 system TEXT 設定'}\n")

    def _set_system(self, text: str) -> None:
        """Set the system prompt, and say how the template changes it.

        Raises:
            UserError: the model has no place for one, or it leaves no room.
        """
        messages = self.predictor.with_system([user("x")], text)
        if len(self.predictor.encode(messages)) + ROOM > self.predictor.longest:
            raise UserError(
                f"系統提示 {shown(text)} 太長：這個模型連同對話最多 {self.predictor.longest} 個 token，"
                "請縮短它"
            )
        for remark in sorted(self.predictor.remarks(messages)):
            log(remark)
        self.system_prompt = text
