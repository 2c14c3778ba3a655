"""A question becomes token ids with a blank in them.

Two ways of asking. *Listed*: stem, options with their letters, then one blank for the letter of the answer
(answer-token prediction, arXiv:2502.03793). *Plain*: stem, then an option written out where the blank would
be, so that its own text is scored; the options are not shown, since scoring what stands in the prompt
measures copying.

Text of a question is data: a `[MASK]` or `[SEP]` inside it is split into ordinary tokens, never obeyed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

from .errors import UserError
from .exams import LETTERS, MAX_OPTIONS, Question, Statement

METHODS = ("letter", "joint", "pll")  # of scoring, see scoring.py
SCORING = {"answer+mlm": "letter", "answer": "letter", "mlm": "joint"}  # of each objective
ORDERS = ("1", "cyclic")
ELLIPSIS = "…"
# Options that speak of others, once widths, brackets, spaces and punctuation are gone.
_VERDICT = r"(兩者|二者|三者|皆|均|都|全|部|才|為|是|不|非|對|錯|正確|錯誤|可|能|有|會|符合|成立)*"
BY_LETTER = re.compile(
    rf"((選項|以上|僅|只有)+[A-J]|[A-J](選項|與|和|及|跟|或)*[A-J])(選項|與|和|及|跟|或|[A-J])*{_VERDICT}"
)
ABOVE = re.compile(
    rf"(以上|上述|前述|上列|以下|所有|各|[兩二三四]?[者項]|選項|答案|敘述|說法)*(皆|均|都|全){_VERDICT}|無正確(答案|選項)"
)


@dataclass(frozen=True)
class Template:
    """How a question is written out. Kept in the run card, so a model is asked the way it was taught."""

    listed: str = "題目：{stem}\n選項：{options}\n答案：{blank}"
    option: str = "（{letter}）{text}"
    plain: str = "題目：{stem}\n答案：{blank}"

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict) -> Template:
        """Raises UserError when a part lacks its places."""
        template = cls(**{name: str(saved[name]) for name in ("listed", "option", "plain") if name in saved})
        needed = {
            "listed": ("{stem}", "{options}", "{blank}"),
            "option": ("{letter}", "{text}"),
            "plain": ("{stem}", "{blank}"),
        }
        for name, places in needed.items():
            if any(getattr(template, name).count(place) != 1 for place in places):
                raise UserError(
                    f"run_card.json 的樣板 {name} 應各有一個 {' '.join(places)}，得到 "
                    f"{getattr(template, name)!r}"
                )
        return template


@dataclass(frozen=True)
class Prompt:
    """Token ids with special tokens; `blank`: the positions of the blank, or of the option's text."""

    ids: tuple[int, ...]
    blank: tuple[int, ...]
    cut: int = 0  # tokens taken out of the middle of the stem so that the rest fits


class TooLong(ValueError):
    """The options alone exceed the length: the question cannot be asked without losing one."""


def speaks_of_others(option: str) -> str:
    """ "letters" for an option like "A與C" or （A）（B）皆是, "above" for 以上皆非, "" for one that stands
    alone."""
    bare = re.sub(r"[^\w]|_", "", unicodedata.normalize("NFKC", option))
    return "letters" if BY_LETTER.fullmatch(bare) else "above" if ABOVE.fullmatch(bare) else ""


def fixed_places(options: Sequence[str]) -> tuple[int, ...]:
    """The indices that must keep their place when options change order.

    An option such as "A與C" speaks of letters, and one such as 以上皆是 that is not the last speaks of
    those before it: then every option stays. A last 以上皆是 stays last, and the others may move.
    """
    everything = tuple(range(len(options)))
    speaks = [speaks_of_others(option) for option in options]
    if "letters" in speaks:
        return everything
    above = tuple(i for i, kind in enumerate(speaks) if kind)
    return above if above in ((), everything[-1:]) else everything


def rearranged(options: Sequence[str], arrange) -> tuple[int, ...]:
    """An order of the options: `arrange(list of movable indices) -> the same indices in a new order`.

    Returns:
        order, where order[place] is the index of the option shown at that place.
    """
    fixed = set(fixed_places(options))
    movable = [i for i in range(len(options)) if i not in fixed]
    moved = iter(arrange(list(movable)))
    return tuple(i if i in fixed else next(moved) for i in range(len(options)))


def cyclic_orders(options: Sequence[str]) -> list[tuple[int, ...]]:
    """Every rotation of the movable options; one order when none may move."""
    turns = max(1, len(options) - len(fixed_places(options)))
    return [rearranged(options, lambda places, by=by: places[by:] + places[:by]) for by in range(turns)]


@dataclass
class ExamPrompts:
    """Writes questions as prompts for one tokenizer.

    Args:
        tokenizer: with cls/sep (or bos/eos) and mask tokens.
        max_length: of a prompt, in tokens, special ones included.
    """

    tokenizer: object
    max_length: int
    template: Template = field(default_factory=Template)

    def __post_init__(self):
        tok = self.tokenizer
        self.start, self.end = ends(tok)
        self.mask = tok.mask_token_id
        self.ids = lru_cache(maxsize=1 << 17)(self._ids)
        self.verbalizer = choose_verbalizer(tok)
        self._letters = [self.ids(word) for word in self.verbalizer]
        self._ellipsis = self.ids(ELLIPSIS)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def verbalizer_ids(self, count: int) -> list[int]:
        """Token id that stands for each of the first `count` places."""
        return [ids[0] for ids in self._letters[:count]]

    def listed(self, question: Question, order: Sequence[int]) -> Prompt:
        """Options in `order` with letters A, B, … by place, one [MASK] for the letter. Raises TooLong."""
        options: list[int] = []
        for place, index in enumerate(order):
            options += self._fill(
                self.template.option,
                {"letter": self._letters[place], "text": self.ids(question.options[index])},
            )
        return self._assemble(
            self.template.listed, question.stem, {"options": options, "blank": (self.mask,)}
        )

    def plain(self, question: Question, option: int) -> Prompt:
        """The stem, then the text of one option; `blank` covers that text. Raises TooLong."""
        text = self.ids(question.options[option]) or (self.tokenizer.unk_token_id,)
        return self._assemble(self.template.plain, question.stem, {"blank": text})

    def told(self, statement: Statement) -> Prompt:
        """A sentence; `blank` covers what a question about it would ask for. Raises TooLong."""
        before, asked = statement.text[: statement.start], statement.text[statement.start : statement.end]
        after = statement.text[statement.end :]
        ids = [self.start, *self.ids(before)]
        blank = range(len(ids), len(ids) + len(self.ids(asked)))
        ids += [*self.ids(asked), *self.ids(after), self.end]
        if len(ids) > self.max_length:
            raise TooLong(f"敘述有 {len(ids)} 個 token，上限 {self.max_length}")
        return Prompt(tuple(ids), tuple(blank))

    def _fill(self, pattern: str, values: dict[str, Sequence[int]]) -> list[int]:
        """Token ids of a template part, with token ids put in its places."""
        ids: list[int] = []
        for piece in re.split(r"(\{\w+\})", pattern):
            ids += values[piece[1:-1]] if piece[:1] == "{" else self.ids(piece)
        return ids

    def _assemble(self, pattern: str, stem_text: str, values: dict[str, Sequence[int]]) -> Prompt:
        head, tail = pattern.split("{stem}")
        stem = self.ids(stem_text)
        before = [self.start, *self._fill(head, values)]
        upto_blank, after_blank = tail.split("{blank}")
        between, after = self._fill(upto_blank, values), [*self._fill(after_blank, values), self.end]
        room = self.max_length - len(before) - len(between) - len(values["blank"]) - len(after)
        cut = 0
        if len(stem) > room:
            keep = room - len(self._ellipsis)
            if keep < 0:
                raise TooLong(
                    f"選項本身就超過 --max_length {self.max_length}"
                    f"（缺 {len(self._ellipsis) - room} 個 token）"
                )
            front = (keep + 1) // 2  # a stem opens with its matter and closes with what is asked
            cut = len(stem) - keep
            stem = (*stem[:front], *self._ellipsis, *stem[len(stem) - (keep - front) :])
        ids = [*before, *stem, *between]
        blank = range(len(ids), len(ids) + len(values["blank"]))
        return Prompt((*ids, *values["blank"], *after), tuple(blank), cut)


def hide(ids: Sequence[int], positions: Sequence[int], mask_id: int) -> tuple[int, ...]:
    """Replaces every one of `positions` by the mask."""
    hidden = set(positions)
    return tuple(mask_id if i in hidden else token for i, token in enumerate(ids))


def ends(tokenizer) -> tuple[int, int]:
    """Ids of the tokens that open and close a row: [CLS] and [SEP], or <s> and </s>."""
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    return (tokenizer.bos_token_id if start is None else start), (
        tokenizer.eos_token_id if end is None else end
    )


def choose_verbalizer(tokenizer) -> list[str]:
    """The token that stands for each place: A–J, else a–j, else 1–10; each one known token, all distinct.

    Raises:
        UserError: this tokenizer has none of them (letters that all become [UNK] would make every option
            the same).
    """
    candidates = (list(LETTERS), list(LETTERS.lower()), [str(n) for n in range(1, MAX_OPTIONS + 1)])
    for words in candidates:
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        single = [i[0] for i in ids if len(i) == 1 and i[0] != tokenizer.unk_token_id]
        if len(single) == len(set(single)) == len(words):
            return words
    raise UserError(
        "這個 tokenizer 沒有能代表選項的字：A–J、a–j、1–10 都不是各自一個已知的 token（bert-base-chinese "
        "需轉小寫，見 models.py）"
    )


def readable(tokenizer, ids: Sequence[int], blank: Sequence[int]) -> str:
    """Token ids as the model sees them, the blank in 【】."""
    words = tokenizer.convert_ids_to_tokens(list(ids))
    shown = [f"【{word}】" if i in set(blank) else word for i, word in enumerate(words)]
    return " ".join(shown).replace("】 【", " ")
