"""Schemes by which tags write spans: BIO, BIOES, BMES with or without types, and tags that are no spans.

A tag has a role and a label. Roles: B the first unit of a span, I one within, E the last, S the only one, O
none. BMES writes M for I, BILOU L for E and U for S, BMEWO W for S. IOB1 writes B only between two spans of
one label that touch (Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040); it is read, and trained as BIO (IOB2).
Tags without such a letter, such as parts of speech, are plain: a run of the same tag is a span.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

OUTSIDE = "O"
UNTYPED = "_"  # the label of spans whose tags are letters alone, as seqeval calls it
ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}  # letter -> role
BIO, IOB1, BIOES, PLAIN = "BIO", "IOB1", "BIOES", "plain"
SCHEMES = (BIO, BIOES, IOB1)  # the likeliest first
_STYLES = {  # how a tag is written: prefix B-PER, suffix PER-B, letter B
    "prefix": re.compile(r"(?P<letter>[BIMELSUW])[-_](?P<label>.*\S)"),
    "suffix": re.compile(r"(?P<label>\S.*)[-_](?P<letter>[BIMELSUW])"),
    "letter": re.compile(r"(?P<letter>[BIMELSUW])(?P<label>)"),
}
MOST = 0.9  # share of the tags that must be written in a style for it to be the style of the data


class Tag(NamedTuple):
    """A tag: its role, "" where it is plain, and its label."""

    role: str
    label: str


# ---- styles ------------------------------------------------------------------------------------------------


def style_of(counts: Counter[str], most: float = MOST) -> str:
    """Return how tags are written: `prefix`, `suffix`, `letter` or `plain`.

    Args:
        counts: how often each tag occurs.
        most: share of them that must be written so.
    """
    names = [name for name in counts if name != OUTSIDE]
    total = sum(counts[name] for name in names)
    for style, pattern in _STYLES.items():
        fitting = [match for name in names if (match := pattern.fullmatch(name))]
        if sum(counts[match[0]] for match in fitting) >= most * total and any(
            ROLES[match["letter"]] in "BI" for match in fitting
        ):
            return style
    return PLAIN


def parse_tag(name: str, style: str) -> Tag:
    """Return the role and the label of a tag.

    Raises:
        ValueError: it is not written in this style; in Chinese.
    """
    if style == PLAIN:
        return Tag("", name)
    if name == OUTSIDE:
        return Tag(OUTSIDE, "")
    if match := _STYLES[style].fullmatch(name):
        return Tag(ROLES[match["letter"]], match["label"] or UNTYPED)
    example = {"prefix": "B-類型、I-類型", "suffix": "類型-B、類型-I", "letter": "B、I"}[style]
    raise ValueError(f"標記 {name!r:.60} 的寫法與其他列不同（別的是 {example} 這樣，或 O）")


def letter_of(name: str, style: str) -> str:
    """Return the letter that stands for the role of a tag; "" without one."""
    match = _STYLES[style].fullmatch(name) if style != PLAIN else None
    return match["letter"] if match else ""


def fault(tags: Sequence[Tag], scheme: str) -> int | None:
    """Return the place of the first tag that cannot stand there in a scheme of SCHEMES; None without any."""
    before = Tag(OUTSIDE, "")
    for place, tag in enumerate([*tags, Tag(OUTSIDE, "")]):
        same = before.role in "BI" and before.label == tag.label
        if scheme == BIOES:
            wrong = (tag.role in "IE") != (before.role in "BI") or (before.role in "BI" and not same)
        elif scheme == BIO:
            wrong = tag.role in "ES" or (tag.role == "I" and not same)
        else:
            wrong = tag.role in "ES" or (tag.role == "B" and not same)
        if wrong:
            return min(place, len(tags) - 1)
        before = tag
    return None


def spans_of(tags: Sequence[Tag]) -> list[tuple[int, int, str]]:
    """Return (start, end, label) of the spans of tags, by their places; `end` is excluded.

    Of legal tags exactly the spans that they write. Of others the spans that seqeval takes them for by
    default: a tag that continues no span begins one.
    """
    spans: list[tuple[int, int, str]] = []
    start, open_label = 0, None
    for place, (role, label) in enumerate(tags):
        goes_on = open_label == label and role in ("I", "E", "")
        if open_label is not None and not goes_on:
            spans.append((start, place, open_label))
            open_label = None
        if role == OUTSIDE or (role == "" and label == OUTSIDE):
            continue
        if not goes_on:
            start, open_label = place, label
        if role in ("E", "S"):
            spans.append((start, place + 1, label))
            open_label = None
    if open_label is not None:
        spans.append((start, len(tags), open_label))
    return spans


# ---- the tags of a model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TagSet:
    """The tags of a model, by number, and which may follow which.

    Args:
        names: as the model's configuration names them.
    """

    names: tuple[str, ...]

    @cached_property
    def style(self) -> str:
        """How the tags are written."""
        return style_of(Counter(self.names), 0.5)  # some have an X or a [CLS] beside them

    @cached_property
    def tags(self) -> tuple[Tag, ...]:
        """Role and label of each tag; a name in no style is a label without a role."""
        parsed = []
        for name in self.names:
            try:
                parsed.append(parse_tag(name, self.style))
            except ValueError:
                parsed.append(Tag("", name))
        return tuple(parsed)

    @property
    def plain(self) -> bool:
        """Whether the tags are no scheme of spans, such as parts of speech."""
        return self.style == PLAIN

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels of the spans, in the order of the tags."""
        return tuple(dict.fromkeys(label for role, label in self.tags if OUTSIDE not in (role, label)))

    @cached_property
    def outside(self) -> int | None:
        """Number of the tag of units in no span; None where every unit is in one."""
        return next((at for at, tag in enumerate(self.tags) if OUTSIDE in (tag.role, tag.label)), None)

    @cached_property
    def _numbers(self) -> dict[Tag, int]:
        return {tag: at for at, tag in reversed(list(enumerate(self.tags)))}

    @cached_property
    def begins(self) -> tuple[bool, ...]:
        """Whether a tag may be the first of a text, or follow a tag that may end one."""
        opened = {label for role, label in self.tags if role == "B"}
        # IO, without any B: the first I begins a span
        return tuple(role in ("B", "S", OUTSIDE, "") or label not in opened for role, label in self.tags)

    @cached_property
    def before(self) -> tuple[tuple[int, ...], ...]:
        """Of each tag that goes on with a span, the tags that it may follow; of others ()."""
        return tuple(
            ()
            if self.begins[at]
            else tuple(n for role in "BI" if (n := self._numbers.get(Tag(role, tag.label))) is not None)
            for at, tag in enumerate(self.tags)
        )

    @cached_property
    def ends(self) -> tuple[bool, ...]:
        """Whether a tag may be the last of a text."""
        closed = {label for role, label in self.tags if role == "E"}
        return tuple(role not in ("B", "I") or label not in closed for role, label in self.tags)

    def allows(self, tag: int, following: int) -> bool:
        """Return whether one tag may follow another."""
        return self.ends[tag] if self.begins[following] else tag in self.before[following]

    def encode(self, spans: Iterable[tuple[int, int, str]], count: int) -> list[int]:
        """Return the tags of `count` units for disjoint spans of units (start, end, label), ascending.

        Raises:
            KeyError: a span, or a unit in none, that these tags cannot write.
        """
        numbers, tags, done = self._numbers, [], 0
        for start, end, label in spans:
            tags += self._uncovered(start - done)
            if self.plain:
                tags += [numbers[Tag("", label)]] * (end - start)
            else:
                tags += self._written(end - start, label)
            done = end
        return tags + self._uncovered(count - done)

    def _uncovered(self, count: int) -> list[int]:
        if count and self.outside is None:
            raise KeyError(OUTSIDE)
        return [self.outside] * count if count and self.outside is not None else []

    def _written(self, length: int, label: str) -> list[int]:
        """Return the tags of one span."""
        inside = self._numbers.get(Tag("I", label))
        first = self._numbers.get(Tag("B", label), inside)
        if length == 1:
            only = self._numbers.get(Tag("S", label), first)
            places = [only]
        else:
            places = [first, *[inside] * (length - 2), self._numbers.get(Tag("E", label), inside)]
        if None in places:
            raise KeyError(label)
        return [place for place in places if place is not None]

    def writes(self, labels: Iterable[str], outside: bool) -> bool:
        """Return whether spans of these labels can be written, and units in none where `outside`."""
        try:
            self.encode([], int(outside))
            for label in labels:
                for length in (1, 2, 3):
                    self.encode([(0, length, label)], length)
        except KeyError:
            return False
        return True

    def decode(self, tags: Sequence[int]) -> list[tuple[int, int, str]]:
        """Return the spans (start, end, label) of units that tags write."""
        return spans_of([self.tags[tag] for tag in tags])


def tag_names(labels: Sequence[str], letters: dict[str, str], outside: bool) -> list[str]:
    """Return the names of the tags of a scheme: O first, then those of each label.

    Args:
        letters: role -> letter, of the roles B, I, E, S that there are; none for plain tags.
        outside: there are units in no span.
    """
    names = [OUTSIDE] if outside else []
    for label in labels:
        if not letters:
            names.append(label)
        for letter in (letters[role] for role in "BIES" if role in letters):
            names.append(letter if label == UNTYPED else f"{letter}-{label}")
    return names
