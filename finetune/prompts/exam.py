"""A question becomes token ids with a blank in them.

Two ways of asking. *Listed*: stem, options with their letters, then one blank for the letter of the answer
(answer-token prediction, arXiv:2502.03793). *Plain*: stem, then an option written out where the blank would
be, so that its own text is scored; the options are not shown, since scoring what stands in the prompt
measures copying.

Text of a question is data: a `[MASK]` or `[SEP]` inside it is split into ordinary tokens, never obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice

from finetune.data.question import LETTERS, MAX_OPTIONS, Question, Statement
from finetune.data.segmentation import token_words
from finetune.data.subjects import chinese_name
from finetune.prompts.option_order import PromptError
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import LONGEST_TEXT

ELLIPSIS = "…"
TOGETHER = 512  # rows that are tokenized at once
PLACE = re.compile(r"\{[^{}]*\}")  # of a template, and all that looks like one


@dataclass(frozen=True)
class Template:
    """How a question is written out. Kept in the run card, so a model is asked the way it was taught."""

    listed: str = "題目：{stem}\n選項：{options}\n答案：{blank}"
    option: str = "（{letter}）{text}"
    plain: str = "題目：{stem}\n答案：{blank}"
    neutral: str = "題目：這是一題{subject}。\n答案：{blank}"
    asked: str = "以下是單選題，請只回答正確選項的字母。\n\n{stem}\n{options}"  # to a causal model
    choice: str = "{letter}. {text}"

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict) -> Template:
        """Raises UserError when a part lacks its places, or has others: `{stem.__class__}`, say."""
        template = cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})
        needed = {
            "listed": ("{stem}", "{options}", "{blank}"),
            "option": ("{letter}", "{text}"),
            "plain": ("{stem}", "{blank}"),
            "neutral": ("{subject}", "{blank}"),
            "asked": ("{stem}", "{options}"),
            "choice": ("{letter}", "{text}"),
        }
        for name, places in needed.items():
            part = getattr(template, name)
            if not isinstance(part, str) or sorted(PLACE.findall(part)) != sorted(places):
                raise UserError(
                    f"run_card.json 的樣板 {name} 應各有一個 {' '.join(places)}，沒有別的；得到 {part!r:.100}"
                )
            if {"{stem}", "{blank}"} <= set(places) and part.index("{stem}") > part.index("{blank}"):
                raise UserError(
                    f"run_card.json 的樣板 {name}：{{stem}} 應在 {{blank}} 前面；得到 {part!r:.100}"
                )
        return template


@dataclass(frozen=True)
class Prompt:
    """Token ids with special tokens; `blank`: the positions of the blank, or of the option's text."""

    ids: tuple[int, ...]
    blank: tuple[int, ...]
    cut: int = 0  # tokens taken out of the middle of the stem so that the rest fits
    # Where the stem begins, how many of its tokens stand before the cut and how many after it.
    stem: tuple[int, int, int] = (0, 0, 0)


class PromptTooLongError(PromptError):
    """The options alone exceed the length: the question cannot be asked without losing one."""


@dataclass
class ExamPrompts:
    """Writes questions as prompts for one tokenizer.

    Args:
        tokenizer: with cls/sep (or bos/eos) and mask tokens.
        max_length: of a prompt, in tokens, special ones included.
        remembered: texts whose token ids are kept, so that an epoch need not tokenize again.

    Attributes:
        ids: of a text its token ids.
    """

    tokenizer: object
    max_length: int
    template: Template = field(default_factory=Template)
    remembered: int = 1 << 17

    def __post_init__(self):
        tok = self.tokenizer
        self.start, self.end = boundary_tokens(tok)
        self.mask = tok.mask_token_id
        self._known = TokenCache(tok, self.remembered)
        self.ids = self._known.__getitem__
        self._ellipsis = self.ids(ELLIPSIS)

    def prepare(self, rows: Iterable[Question | Statement], answers: bool = False) -> None:
        """Makes the token ids of questions' texts together: twice as fast as one by one.

        Args:
            answers: the other options are not needed.
        """
        texts = []
        for row in rows:
            if isinstance(row, Question):
                texts += [row.stem, *([row.options[row.answer]] if answers else row.options)]
        self._known.learn(texts)

    @cached_property
    def _letters(self) -> list[tuple[int, ...]]:
        """Found when options are first listed: a vocabulary without letters can still score texts."""
        return [self.ids(word) for word in choose_verbalizer(self.tokenizer)]

    def verbalizer_ids(self, count: int) -> list[int]:
        """Token id that stands for each of the first `count` places."""
        return [ids[0] for ids in self._letters[:count]]

    def mcq_prompt(self, question: Question, order: Sequence[int]) -> Prompt:
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

    def text_of(self, question: Question, option: int) -> tuple[int, ...]:
        """Token ids of an option; [UNK] where the tokenizer leaves nothing of it."""
        return self.ids(question.options[option]) or (self.tokenizer.unk_token_id,)

    def cloze_prompt(self, question: Question, option: int) -> Prompt:
        """The stem, then the text of one option; `blank` covers that text. Raises TooLong."""
        return self.cloze_prompt_ids(question, self.text_of(question, option))

    def cloze_prompt_ids(self, question: Question, text: Sequence[int]) -> Prompt:
        """The stem, then `text` where the answer goes; `blank` covers it. Raises TooLong."""
        return self._assemble(self.template.plain, question.stem, {"blank": text})

    def unconditional_prompt(self, question: Question, text: Sequence[int]) -> Prompt:
        """The same with nothing said of the question but its subject: how likely a text is as an answer to
        anything (the domain prompt of arXiv:2104.08315, section 3). Raises TooLong.
        """
        subject = self.ids(chinese_name(question.subject))
        before, after = self.template.neutral.split("{blank}")
        ids = [self.start, *self._fill(before, {"subject": subject})]
        blank = range(len(ids), len(ids) + len(text))
        ids += [*text, *self._fill(after, {"subject": subject}), self.end]
        if len(ids) > self.max_length:
            raise PromptTooLongError(f"選項有 {len(text)} 個 token，放不進 --max_length {self.max_length}")
        return Prompt(tuple(ids), tuple(blank))

    def word_ends(self, text: str) -> list[int]:
        """For each token of `text`, the index after the last token of its word (words by jieba)."""
        return [word[-1] + 1 for word in token_words(self.tokenizer, text) for _ in word]

    def words(self, question: Question, option: int, prompt: Prompt) -> list[list[int]]:
        """Positions of the words of stem and option in the prompt of `plain`; a word that the cut went
        through is left out.
        """
        first, before, after = prompt.stem
        total = len(self.ids(question.stem))
        gap = total - after - before  # tokens taken out; an ellipsis stands in their place
        back = first + len(self._ellipsis) - gap if gap else first
        place = {at: first + at for at in range(before)}
        place |= {at: back + at for at in range(total - after, total)}
        found = [
            [place[at] for at in word]
            for word in token_words(self.tokenizer, question.stem)
            if all(at in place for at in word)
        ]
        answer = token_words(self.tokenizer, question.options[option])
        return found + [[prompt.blank[at] for at in word] for word in answer]

    def words_told(self, statement: Statement) -> list[list[int]]:
        """Positions of the words of the prompt of `told`."""
        text, found, first = statement.text, [], 1
        for piece in (text[: statement.start], text[statement.start : statement.end], text[statement.end :]):
            found += [[first + at for at in word] for word in token_words(self.tokenizer, piece)]
            first += len(self.ids(piece))
        return found

    def statement_prompt(self, statement: Statement) -> Prompt:
        """A sentence; `blank` covers what a question about it would ask for. Raises TooLong."""
        before, asked = statement.text[: statement.start], statement.text[statement.start : statement.end]
        after = statement.text[statement.end :]
        ids = [self.start, *self.ids(before)]
        blank = range(len(ids), len(ids) + len(self.ids(asked)))
        ids += [*self.ids(asked), *self.ids(after), self.end]
        if len(ids) > self.max_length:
            raise PromptTooLongError(f"敘述有 {len(ids)} 個 token，上限 {self.max_length}")
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
        cut, kept = 0, (len(stem), 0)
        if len(stem) > room:
            keep = room - len(self._ellipsis)
            if keep < 0:
                raise PromptTooLongError(
                    f"選項本身就超過 --max_length {self.max_length}"
                    f"（缺 {len(self._ellipsis) - room} 個 token）"
                )
            front = (keep + 1) // 2  # a stem opens with its matter and closes with what is asked
            cut, kept = len(stem) - keep, (front, keep - front)
            stem = (*stem[:front], *self._ellipsis, *stem[len(stem) - (keep - front) :])
        ids = [*before, *stem, *between]
        blank = range(len(ids), len(ids) + len(values["blank"]))
        return Prompt((*ids, *values["blank"], *after), tuple(blank), cut, (len(before), *kept))


class TokenCache(dict):
    """Token ids by text; found when they are first asked for, all forgotten when there are `most`."""

    def __init__(self, tokenizer, most: int):
        self.tokenizer, self.most = tokenizer, most

    def learn(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self]
        if len(self) + len(new) > self.most:
            self.clear()
        if new:
            found = self.tokenizer(
                new, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False,
                return_token_type_ids=False,
            )  # fmt: skip
            self.update(zip(new, map(tuple, found["input_ids"]), strict=True))

    def __missing__(self, text: str) -> tuple[int, ...]:
        self.learn([text])
        return self[text]


def warm_cache(prompts: ExamPrompts, rows: Iterable, answers: bool = False) -> Iterator:
    """The same rows, once the token ids of their texts are known."""
    rows = iter(rows)
    while together := list(islice(rows, TOGETHER)):
        prompts.prepare(together, answers)
        yield from together


def mask_positions(ids: Sequence[int], positions: Sequence[int], mask_id: int) -> tuple[int, ...]:
    """Replaces every one of `positions` by the mask."""
    hidden = set(positions)
    return tuple(mask_id if i in hidden else token for i, token in enumerate(ids))


def boundary_tokens(tokenizer) -> tuple[int, int]:
    """Ids of the tokens that open and close a row: [CLS] and [SEP], or <s> and </s>."""
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    return (tokenizer.bos_token_id if start is None else start), (
        tokenizer.eos_token_id if end is None else end
    )


def unknown_parts(tokenizer, text: str) -> list[str]:
    """The parts of a text that become [UNK]."""
    if len(text) > LONGEST_TEXT:  # it is refused wherever it is read
        return []
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [text[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id]


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
        "需轉小寫，見 models/tokenizer.py）"
    )


def read_back(tokenizer, ids: Sequence[int]) -> str:
    """Token ids as text, Chinese without the spaces that decoding puts between its characters."""
    text = tokenizer.decode(list(ids)).removeprefix("##")
    return re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)


def readable(tokenizer, ids: Sequence[int], blank: Sequence[int]) -> str:
    """Token ids as the model sees them, the blank in 【】."""
    words = tokenizer.convert_ids_to_tokens(list(ids))
    shown = [f"【{word}】" if i in set(blank) else word for i, word in enumerate(words)]
    return " ".join(shown).replace("】 【", " ")
