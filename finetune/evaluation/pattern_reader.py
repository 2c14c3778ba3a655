"""Read replies with the regular expressions that a protocol's authors published."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.question import LETTERS
from finetune.evaluation.reply_reader import ANSWERED, ReadReply, without_answer
from finetune.runtime.errors import UserError
from finetune.runtime.sandbox import Sandbox


class PatternReader:
    """The published reader of a protocol: regular expressions with one group each, which holds the letter.

    The first pattern that matches anywhere decides. They come from people's files and may be such as never
    end, so they run in a child process with limits on time and memory (`runtime.sandbox`).

    Args:
        patterns: in the order in which they are tried.
        match: which match of that pattern counts: `first` or `last`.
        what: names where the patterns stand, for messages: flag and file.

    Raises:
        UserError: no patterns, one that is no regular expression, or has not exactly one group.
    """

    def __init__(self, patterns: Sequence[str], match: str = "first", what: str = "--protocol"):
        self._what, self._last = what, match == "last"
        self._patterns = [str(pattern) for pattern in patterns]
        if match not in ("first", "last"):
            raise UserError(f"{what}：match 是 {match!r}，可用的是 first、last")
        if not self._patterns:
            raise UserError(f"{what}：判讀回答的正規表示式一個也沒有")
        self._sandbox = Sandbox(self._search, f"{what}：判讀回答的正規表示式")
        for pattern in self._patterns:
            self._check(pattern)

    def __call__(
        self, reply: str, options: Sequence[str], truncated: bool = False, thinking: bool = False
    ) -> ReadReply:
        """Read the option that a reply chooses; arguments as of `read_reply`.

        Thoughts are removed only where both of their tags are in the reply, as published readers do.

        Raises:
            UserError: the patterns take too long or too much memory.
        """
        text = _without_closed_thoughts("<think>" + reply if thinking else reply)
        found = self._sandbox("search", text)
        letter = found.strip().upper() if found else ""
        index = LETTERS.find(letter) if len(letter) == 1 else -1
        if 0 <= index < len(options):
            return ReadReply(index, ANSWERED)
        return without_answer(text, truncated)

    def close(self) -> None:
        """End the child process."""
        self._sandbox.close()

    def _check(self, pattern: str) -> None:
        shown = f"{self._what}：判讀回答的正規表示式 {pattern[:80]!r} "
        try:
            groups = self._sandbox("groups", pattern)
        except ValueError as error:
            raise UserError(f"{shown}不合文法：{error}") from error
        if groups != 1:
            raise UserError(f"{shown}有 {groups} 個群組；要恰好一個，圍住選項的字母，其他的寫成 (?:…)")

    def _search(self, what: str, text: str) -> int | str | None:
        """Count the groups of a pattern, or search a text; in the child process."""
        if what == "groups":
            return re.compile(text).groups
        for pattern in self._patterns:
            found = [match[1] for match in re.finditer(pattern, text)] if self._last else []
            if not self._last and (match := re.search(pattern, text)):
                found = [match[1]]
            if found:
                return found[-1]
        return None


def _without_closed_thoughts(reply: str) -> str:
    """Return what stands behind the last closing tag of the first kind whose both tags are there."""
    lower = reply.lower()
    for name in ("think", "reason", "reasoning"):
        if f"<{name}>" in lower and f"</{name}>" in lower:
            return reply[lower.rfind(f"</{name}>") + len(name) + 3 :].strip()
    return reply
