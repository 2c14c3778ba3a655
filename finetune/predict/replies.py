"""The letter a reply in words chooses, by a strict pattern: what is not plainly one letter is no answer."""

from __future__ import annotations

import re
import unicodedata

from finetune.data.question import LETTERS

# The reply, or its first line, opens with the letter: `B`, `(B)`, `B. 木星`, `答案：B`, `答案是 B。`; but
# `A planet` and `I think` open with a word.
OPENS = re.compile(
    r"\s*(?:(?:正確)?(?:答案|選項)(?:是|為)?\s*[::]?|(?:the\s+)?(?:correct\s+)?answer(?:\s+is)?\s*:?)?"
    r"\s*[(\[【「]?\s*([A-J])(?:\s*[)\]】」]|(?=$|[\s.,:;、。])(?!(?<=[AI])\s+(?!is\b|because\b)(?-i:[a-z])))",
    re.IGNORECASE,
)
ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")


def chosen_letter(reply: str, count: int) -> int | None:
    """The index of the option that a reply names, None when it does not plainly name one.

    The first line must open with a letter of the `count` options, alone or followed by a mark or a space, and
    no other option's letter may stand alone in it: `A或B` and `A and B` are no answers, nor is `b or c`.
    """
    lines = unicodedata.normalize("NFKC", reply).strip().splitlines()
    found = OPENS.match(lines[0]) if lines else None
    if not found:
        return None
    index = LETTERS.index(found[1].upper())
    line = lines[0].upper() if found[1].islower() else lines[0]  # else a small one is a word: `B. a planet`
    others = set(ALONE.findall(line)) & set(LETTERS[:count]) - {LETTERS[index]}
    return None if index >= count or others else index
