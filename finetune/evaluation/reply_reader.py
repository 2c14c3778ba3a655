r"""Read which option a generated reply chooses; where it chooses none, say why.

A reply counts as an answer only where it plainly says one thing. Thoughts are removed first: what stands up
to the last closing tag (`</think>` and its like; a template may have opened it in the prompt), and all of a
reply whose thought is never closed. The rest is looked at in this order, and the first kind there decides:

1. final: `\boxed{B}`, `<answer>B</answer>`, 最終答案, final answer. Counts alone over what stands before it;
   an answer that is stated behind it must be the same one.
2. stated: 答案是 B, 故選 B, Answer: B; and the first line where it opens with the answer (`B. 木星`, `(B)`)
   or is an option's own text.
3. closing: the last line, where it is nothing but an answer (`**B**`, `B. 木星`, 木星).
4. judged: 選項 B 是正確的, B is correct.
5. marked: a letter in bold type within the text.
6. opening word: the first line begins with a letter and goes on as prose.

Within a kind all must name the same option. Two options, a letter that the question has not (E of four), a
question (答案是 A 嗎), a condition (如果答案是 A), or 答案不是 A beside 答案是 A: no answer. A reply that was
cut at its limit may have gone on otherwise: only kind 1 and an answer that opens it count, and no letter
that may be the beginning of a word. (`B. 木星 … \boxed{C}`, cut in between, is read as B, as a person would.)

Reading is linear in the length of a reply: see `reply_phrases`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.data.question import LETTERS, normalised
from finetune.evaluation import reply_phrases as phrases

ANSWERED, UNREADABLE, TRUNCATED, REFUSED = "answered", "unreadable", "truncated", "refused"
NO_OPTION = -1  # stated, but no option of the question: a letter too many, or several letters
MOST = 500  # statements at either end of a reply that are looked at: a model in a loop states thousands
LONGEST_HEAD, LONGEST_TAIL = 4000, 16_000  # characters of a longer reply that are read
BEGINNING, END = 2000, 1000  # characters in which a refusal is looked for


@dataclass(frozen=True)
class ReadReply:
    """What a reply says.

    Args:
        option: index of the chosen option; None where there is none.
        outcome: `answered`; `unreadable`: it names none, or several; `truncated`: it was cut before an answer
            stood; `refused`: the model declined.
    """

    option: int | None
    outcome: str


@dataclass(frozen=True)
class _Statement:
    """An option that a place in a reply names; `denied`: as one that it is not."""

    start: int
    option: int
    final: bool = False
    denied: bool = False


def read_reply(
    reply: str, options: Sequence[str], truncated: bool = False, thinking: bool = False
) -> ReadReply:
    """Read the option that a reply chooses, in the order that the module describes.

    Args:
        reply: as the model wrote it, with its thoughts.
        options: texts of the options, at most ten.
        truncated: it was cut at the limit of its length.
        thinking: its prompt opened a thought, see `opens_thought`.
    """
    text = without_thoughts("<think>" + reply if thinking else reply)
    if text is None:
        return ReadReply(None, TRUNCATED if truncated else UNREADABLE)
    option = _Reader(text, options, truncated).option()
    if option is None:
        return without_answer(text, truncated)
    if option == NO_OPTION:
        return ReadReply(None, TRUNCATED if truncated else UNREADABLE)
    return ReadReply(option, ANSWERED)


def without_answer(text: str, truncated: bool) -> ReadReply:
    """Return the outcome of a text without an answer: cut, refused or unreadable."""
    if truncated:
        return ReadReply(None, TRUNCATED)
    shown = unicodedata.normalize("NFKC", text[:BEGINNING] + "\n" + text[BEGINNING:][-END:]).replace("’", "'")
    return ReadReply(None, REFUSED if phrases.REFUSAL.search(shown) else UNREADABLE)


def without_thoughts(reply: str) -> str | None:
    """Return what a reply says after its thoughts; None where a thought is still open at its end."""
    text, tags = reply, list(phrases.TAG.finditer(reply))
    closing = max((number for number, tag in enumerate(tags) if tag[1]), default=-1)
    if closing + 1 < len(tags):  # opened, and never closed
        return None
    if closing >= 0:
        text = reply[tags[closing].end() :]
    if phrases.CHANNEL in text:
        return text.rpartition(phrases.CHANNEL)[2]
    return None if phrases.THINKING.match(text) else text


def opens_thought(prompt: str) -> bool:
    """Return whether a prompt ends within a thought, as templates of models that always think write it."""
    tags = list(phrases.TAG.finditer(prompt[-200:]))
    return bool(tags) and not tags[-1][1] and not prompt[-200:][tags[-1].end() :].strip()


class _Reader:
    """The evidence in one text.

    Args:
        text: without thoughts.
        options: texts of the options.
        truncated: it was cut at the limit of its length.
    """

    def __init__(self, text: str, options: Sequence[str], truncated: bool):
        marks = any(ord(mark) in phrases.CIRCLED for option in options for mark in option)
        text = _shortened(text)
        text = unicodedata.normalize("NFKC", text if marks else text.translate(phrases.CIRCLED))
        self.raw = text.replace("’", "'").strip()
        self.text = phrases.LATEX.sub("", phrases.MARKDOWN.sub("", self.raw)).strip()
        self.lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        self.count, self.truncated = len(options), truncated
        self.names = [normalised(option) for option in options]
        self.by_text = {name: i for i, name in enumerate(self.names) if name and self.names.count(name) == 1}
        signs = [_signs(option) for option in options]  # 1.59 and 15.9 are told apart by their signs alone
        self.by_sign = {sign: i for i, sign in enumerate(signs) if sign and signs.count(sign) == 1}
        self.longest = max(map(len, options), default=0) + 12
        self.texts_read: dict[str, int | None] = {}

    def option(self) -> int | None:
        """Return the chosen option; NO_OPTION where it contradicts itself, None where it names none."""
        if not self.lines:
            return None
        stated = list(self._stated())
        denied = {one.option for one in stated if one.denied}
        named = [one for one in stated if not one.denied]
        final = [one for one in named if one.final] + list(self._boxed())
        if final:
            # boxes are found in the text with its marks, statements in that without: only order matters
            last = max((one.start for one in named if one.final), default=-1)
            later = {one.option for one in named if not one.final and one.start > last >= 0}
            later |= self._behind_box(stated)
            return _agreed({one.option for one in final} | later, denied if last >= 0 else set())
        opening = self._opening(strong=True)
        if self.truncated:  # what was said on the way may have been taken back
            leading = any(phrases.LEAD.fullmatch(self.text[: one.start][:30]) for one in named)
            named = named if leading or opening is not None else []
        found = {one.option for one in named} | ({opening} if opening is not None else set())
        if found:
            return _agreed(found, denied)
        if self.truncated:
            return None
        weaker = (self._closing(), self._judged(), self._bold(), self._opening(strong=False))
        kinds = (kind if isinstance(kind, set) else {kind} - {None} for kind in weaker)
        return next((_agreed(kind, denied) for kind in kinds if kind), None)  # type: ignore[arg-type]

    # ---- kinds of evidence ---------------------------------------------------------------------------------

    def _boxed(self) -> Iterator[_Statement]:
        """Yield the options in boxes; a box with something else (a value, a formula) is none."""
        for start, content in [
            *_boxes(self.raw),
            *((m.start(), m[1]) for m in phrases.TAGGED.finditer(self.raw)),
        ]:
            option = self._whole(phrases.LATEX.sub("", phrases.MARKDOWN.sub("", content)))
            if option is not None:
                yield _Statement(start, option, final=True)

    def _behind_box(self, stated: Sequence[_Statement]) -> set[int]:
        """Return the options stated after the last box."""
        boxes = [
            start
            for start, content in _boxes(self.raw)
            if self._whole(phrases.LATEX.sub("", content)) is not None
        ]
        if not boxes or not stated:
            return set()
        behind = len(phrases.LATEX.sub("", phrases.MARKDOWN.sub("", self.raw[boxes[-1] :])))
        return {one.option for one in stated if not one.denied and one.start > len(self.text) - behind}

    def _stated(self) -> Iterator[_Statement]:
        matches = list(phrases.STATED.finditer(self.text))
        if len(matches) > 2 * MOST:
            matches = [*matches[:MOST], *matches[-MOST:]]
        for match in matches:
            clause = phrases.CLAUSE.split(self.text[max(0, match.start() - 24) : match.start()])[-1]
            if phrases.CONDITION.search(clause):
                continue
            option, end = self._named(match)
            if option is None or phrases.ASKED.match(self.text, end) or self._listed(end, option, self.text):
                continue
            groups = match.groupdict()
            denied = any(groups[key] for key in ("not2", "not3", "not4"))
            denied |= bool(groups["not"]) and self._text_at(match.start("not")) is None
            denied |= not groups["but"] and bool(phrases.DENIED.search(clause))
            denied |= bool(phrases.WRONG.match(self.text, end))
            yield _Statement(match.start(), option, bool(groups["final"] or groups["final2"]), denied)

    def _named(self, match: re.Match[str]) -> tuple[int | None, int]:
        """Return the option that follows a cue, by its text or its letter, and where it ends."""
        begin = match.start("letter") if match["letter"] else match.end()
        option = self._text_at(begin)
        if option is None and match["not"]:  # 答案：不等 begins with the text of an option
            option = self._text_at(match.start("not"))
        if option is not None:
            return option, len(self.text)  # a text is followed by the end of its clause
        return (self._letter(match), match.end("letter")) if match["letter"] else (None, begin)

    def _opening(self, strong: bool) -> int | None:
        """Return the option that the first line opens with.

        Args:
            strong: it stands by itself, or a mark, its own text or the reason follows; else prose.
        """
        line = self.lines[0]
        option = None if self.truncated else self._exactly(self.text)
        option = self._text_at(0, line) if option is None else option
        if option is not None:
            return option if strong else None
        match = phrases.OPENING.match(line)
        if (
            not match
            or phrases.ASKED.match(line, match.end("letter"))
            or phrases.WRONG.match(line, match.end("letter"))
        ):
            return None
        option = self._letter(match, line)
        if option is None or option == NO_OPTION:  # several letters may be spoken of before one is chosen
            beyond = match["letter"] < "\ue000" and LETTERS.index(match["letter"].upper()) >= self.count
            return NO_OPTION if option is not None and strong and beyond else None
        rest = line[match.end() :]
        own = normalised(rest[: self.longest]).startswith(self.names[option] or "\0")
        reason = bool(phrases.REASON.match(line[match.end("letter") :]))
        plain = not rest.strip() or match["mark"] or match["close"].strip() or own or reason
        if match["letter"] >= "\ue000":  # a circled number also counts reasons and statements
            plain = not rest.strip() or own
        if (
            bool(plain) != strong
            or self._lists_options(option)
            or self._listed(match.end("letter"), option, line)
        ):
            return None
        if own or reason:
            return option
        letters = phrases.ALONE_SMALL if match["letter"].islower() else phrases.ALONE
        others = {letter.upper() for letter in letters.findall(line)} & set(LETTERS[: self.count])
        return NO_OPTION if others - {LETTERS[option]} else option

    def _lists_options(self, first: int) -> bool:
        """Return whether the first line begins a list of the options: A, and the next one B."""
        labels = [
            LETTERS.index(match[1]) for line in self.lines[1:40] if (match := phrases.LISTED.match(line))
        ]
        return first == 0 and labels[:1] == [1]

    def _listed(self, end: int, option: int, text: str) -> bool:
        """Return whether A, its own text and B follow one another, as in a list of options."""
        if option != 0:
            return False
        following = phrases.NEXT.search(text, end + 1, end + self.longest + 40)
        if not following or following[1] != LETTERS[1]:
            return False
        between = re.sub(r"(?:選項|选项|option)\s*$", "", text[end : following.start()])
        return normalised(between) == self.names[0]

    def _closing(self) -> int | None:
        """Return the option that the last line consists of, where it is not the last of a list of options."""
        option = self._whole(self.lines[-1]) if len(self.lines) > 1 else None
        before = phrases.LISTED.match(self.lines[-2]) if option is not None else None
        return None if before and LETTERS.index(before[1]) != option else option

    def _judged(self) -> set[int]:
        found = set()
        for match in _ends(phrases.JUDGED, self.text):
            clause = phrases.CLAUSE.split(self.text[max(0, match.start() - 24) : match.start()])[-1]
            asked = re.match(r"[^\n。!,;]{0,6}(?:嗎|吗|\?)", self.text[match.end() :][:10])
            if phrases.CONDITION.search(clause) or phrases.DENIED.search(clause) or asked:
                continue
            name = "letter" if match["letter"] else "letter2"
            option = self._letter(match, name=name)
            joined = re.search(r"(?<![A-Za-z])[A-J]\s{0,3}(?:、|,|/|和|與|与|及|或|and|or|&)\s{0,3}$", clause)
            if option is not None:
                found.add(NO_OPTION if joined else option)
        for match in _ends(phrases.JUDGED_TEXT, self.text):
            before = self.text[max(0, match.start() - self.longest) : match.start()]
            option = self._exactly(phrases.CLAUSE.split(before)[-1])
            if option is not None:
                found.add(option)
        return found

    def _bold(self) -> set[int]:
        found = set()
        for match in _ends(phrases.BOLD, self.raw):
            option = self._whole(phrases.LATEX.sub("", match[1]))
            before = phrases.CLAUSE.split(self.raw[max(0, match.start() - 24) : match.start()])[-1]
            if option is None or phrases.CONDITION.search(before) or phrases.DENIED.search(before):
                continue
            if not phrases.WRONG.match(self.raw, match.end()) and not phrases.ASKED.match(
                self.raw, match.end()
            ):
                found.add(option)
        return found

    # ---- labels and texts ----------------------------------------------------------------------------------

    def _whole(self, text: str) -> int | None:
        """Return the option that a text consists of: its letter, its text, both, or a statement of them."""
        text = text.strip().strip("。.,;: \n")
        option = self._exactly(text)
        if option is not None:
            return option
        match = phrases.OPENING.match(text) or phrases.STATED.match(text)
        if not match or not match["letter"]:
            return self._text_at(match.end(), text) if match else None
        option = self._letter(match, text)
        rest = normalised(text[match.end("letter") :])
        if option is None or option == NO_OPTION or not rest or rest == self.names[option]:
            return option
        marked = re.match(r"\s{0,3}[)\]】」』]?\s{0,3}[.:、]", text[match.end("letter") :][:8])
        return option if marked and len(rest) > 1 else None

    def _text_at(self, start: int, text: str | None = None) -> int | None:
        """Return the option whose text stands there, up to the end of a clause, a sentence or the line."""
        text = self.text if text is None else text
        line = text[start : start + 2 * self.longest].split("\n")[0]
        flush = self.truncated and start + len(line) == len(text) and text in (self.text, self.lines[-1])
        ends = [mark.start() for mark in re.finditer(r"[。!?;,]|\.(?!\d)|$", line)][:12]
        for end in ends:
            if flush and end == len(line):
                continue  # the rest of a longer text may have been cut off
            option = self._exactly(line[:end])
            if option is not None:
                return option
        return None

    def _exactly(self, text: str) -> int | None:
        """Return the one option of this text; a single letter is a label and no text."""
        if len(text) > 2 * self.longest:
            return None
        if text not in self.texts_read:
            if len(self.texts_read) > 4 * MOST:
                return None
            name = normalised(text)
            option = self.by_text.get(name, self.by_sign.get(_signs(text)))
            self.texts_read[text] = None if name in tuple(LETTERS.lower()) else option
        return self.texts_read[text]

    def _letter(self, match: re.Match[str], text: str | None = None, name: str = "letter") -> int | None:
        """Return the option of a letter, NO_OPTION for several or one too many; None where it is a word."""
        text, letter, end = self.text if text is None else text, match[name], match.end(name)
        if letter >= "\ue000":
            index = ord(letter) - 0xE000
        else:
            index = LETTERS.index(letter.upper())
            bracketed = re.match(r"\s{0,3}[)\]】」』]", text[end : end + 4])
            if (
                letter in "AI"
                and phrases.ARTICLE.match(text, end)
                or letter.islower()
                and not phrases.SMALL.match(text, end)
            ):
                return None if not (phrases.JOINED.match(text, end) and letter.islower()) else NO_OPTION
            following = normalised(text[end : end + 3].split("\n")[0])[:1]
            begins = letter.lower() + following
            if (
                not bracketed
                and following
                and text[end : end + 1].strip() not in tuple(".:、,。;)")
                and any(other.startswith(begins) for other in self.names)
            ):
                return None  # B 細胞 is the text of an option, or the beginning of one
            if (
                self.truncated
                and end == len(text)
                and text in (self.text, self.lines[-1])
                and len(self.text) > 1
            ):
                return NO_OPTION  # it may be the beginning of a word
        if index >= self.count:
            return NO_OPTION
        joined = phrases.JOINED.match(text, end)
        if joined and not (joined["comma"] and joined["after"] is None):
            second = joined["letter"]
            other = ord(second) - 0xE000 if second >= "\ue000" else LETTERS.index(second.upper())
            if other != index and other < self.count:
                return NO_OPTION
        return index


def _signs(text: str) -> str:
    """Return a text without its white space, in NFKC and lower case."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split()).strip("。.,;:!?")


def _shortened(text: str) -> str:
    """Return a text, or the beginning and the end of one that is longer than any answer."""
    if len(text) <= LONGEST_HEAD + LONGEST_TAIL:
        return text
    head, tail = text[:LONGEST_HEAD], text[-LONGEST_TAIL:]
    cut = re.search(r"[。!?！？\n]", tail[:500])  # from the next sentence on
    return f"{head}\n\n{tail[cut.end() if cut else 0 :]}"


def _agreed(found: set[int], denied: set[int]) -> int:
    """Return the one option of a kind of evidence, NO_OPTION where there are several or it is denied too."""
    (option, *others) = found
    return NO_OPTION if others or option in denied else option


def _ends(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Return the matches of a pattern; of very many the first and the last."""
    matches = list(pattern.finditer(text))
    return matches if len(matches) <= 2 * MOST else [*matches[:MOST], *matches[-MOST:]]


def _boxes(text: str) -> list[tuple[int, str]]:
    """Return where closed boxes of LaTeX are, and what is in them; of very many the first and the last."""
    found: list[tuple[int, int, int]] = []
    still_open: list[tuple[int, int] | None] = []
    for match in phrases.BOX.finditer(text):
        if match[0] == "}":
            if still_open and (begin := still_open.pop()) is not None:
                found.append((begin[0], begin[1], match.start()))
        else:
            still_open.append((match.start(), match.end()) if len(match[0]) > 1 else None)
    found.sort()
    found = found if len(found) <= 2 * MOST else [*found[:MOST], *found[-MOST:]]
    return [(start, text[begin : min(end, begin + 3000)]) for start, begin, end in found]
