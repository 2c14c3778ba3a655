"""Prompts of exam questions for masked models, as token ids with a blank.

There are two forms. *Listed*: stem, options with their letters, then one blank for the letter of the answer
(answer-token prediction, arXiv:2502.03793). *Plain*: stem, then the text of an option in place of the blank,
so that this text is scored; the options are not shown, since scoring text that is in the prompt measures
copying.

The text of a question is data: a `[MASK]` or `[SEP]` inside it is split into ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from finetune.data.question import LETTERS, MAX_OPTIONS, Question, Statement
from finetune.data.segmentation import token_words
from finetune.data.subjects import chinese_name
from finetune.prompts.option_order import PromptError
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import LONGEST_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ELLIPSIS = "…"
BATCH = 512  # rows that are tokenized at once
PLACEHOLDER = re.compile(r"\{[^{}]*\}")  # a template's placeholders, unknown ones included


@dataclass(frozen=True)
class Template:
    """Texts around the parts of a question.

    Saved in the run card, so that a model is evaluated with the prompts of its training.
    """

    listed: str = "題目：{stem}\n選項：{options}\n答案：{blank}"
    option: str = "（{letter}）{text}"
    plain: str = "題目：{stem}\n答案：{blank}"
    neutral: str = "題目：這是一題{subject}。\n答案：{blank}"
    asked: str = "以下是單選題，請只回答正確選項的字母。\n\n{stem}\n{options}"  # causal models
    choice: str = "{letter}. {text}"

    def as_dict(self) -> dict[str, str]:
        """Return the parts by name, for the run card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Template:
        """Read a template from a run card.

        Raises:
            UserError: a part lacks a placeholder, or has an unknown one: `{stem.__class__}`, say.
        """
        template = cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})
        needed = {
            "listed": ("{stem}", "{options}", "{blank}"),
            "option": ("{letter}", "{text}"),
            "plain": ("{stem}", "{blank}"),
            "neutral": ("{subject}", "{blank}"),
            "asked": ("{stem}", "{options}"),
            "choice": ("{letter}", "{text}"),
        }
        for name, placeholders in needed.items():
            part = getattr(template, name)
            if not isinstance(part, str) or sorted(PLACEHOLDER.findall(part)) != sorted(placeholders):
                listed = " ".join(placeholders)
                raise UserError(
                    f"run_card.json 的樣板 {name} 應各有一個 {listed}，沒有別的；得到 {part!r:.100}"
                )
            if {"{stem}", "{blank}"} <= set(placeholders) and part.index("{stem}") > part.index("{blank}"):
                raise UserError(
                    f"run_card.json 的樣板 {name}：{{stem}} 應在 {{blank}} 前面；得到 {part!r:.100}"
                )
        return template


@dataclass(frozen=True)
class Prompt:
    """Prompt as token ids.

    Attributes:
        ids: token ids with special tokens.
        blank: positions of the blank, or of the option's text.
        cut: tokens (characters for causal models) removed from the middle of the stem so that the rest fits.
        stem: position of the stem, number of its tokens before the cut, and number after it.
    """

    ids: tuple[int, ...]
    blank: tuple[int, ...]
    cut: int = 0
    stem: tuple[int, int, int] = (0, 0, 0)


class PromptTooLongError(PromptError):
    """Question whose options alone exceed the length limit."""


@dataclass
class ExamPrompts:
    """Writes questions as prompts for one tokenizer.

    Args:
        tokenizer: with cls/sep (or bos/eos) and mask tokens.
        max_length: longest prompt, in tokens, special ones included.
        template: texts around the parts of a question.
        cache_size: number of texts whose token ids are cached, so that an epoch need not tokenize again.
        examples: answered questions by subject, shown before each question (few-shot).

    Attributes:
        ids: function from a text to its token ids.
        start: token id that opens a prompt.
        end: token id that closes it.
        mask: token id of the mask.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    template: Template = field(default_factory=Template)
    cache_size: int = 1 << 17
    examples: Mapping[str, Sequence[Question]] = field(default_factory=dict)

    def __post_init__(self):
        self.start, self.end = boundary_tokens(self.tokenizer)
        self.mask = self.tokenizer.mask_token_id
        self._cache = TokenCache(self.tokenizer, self.cache_size)
        self.ids = self._cache.__getitem__
        self._ellipsis = self.ids(ELLIPSIS)

    def prepare(self, rows: Iterable[Question | Statement], answers: bool = False) -> None:
        """Tokenize the texts of questions in one batch, twice as fast as one by one, into the cache.

        Args:
            rows: questions; statements are skipped.
            answers: the options other than the answer are not needed.
        """
        texts: list[str] = []
        for row in rows:
            if isinstance(row, Question):
                answer = row.answer if answers else None
                texts += [row.stem, *(row.options if answer is None else [row.options[answer]])]
        self._cache.add(texts)

    @cached_property
    def _letters(self) -> list[tuple[int, ...]]:
        """Token ids of the letters, found when first needed: a vocabulary without letters can score texts."""
        return [self.ids(word) for word in choose_verbalizer(self.tokenizer)]

    def verbalizer_ids(self, count: int) -> list[int]:
        """Return the token ids of the letters of the first `count` options."""
        return [ids[0] for ids in self._letters[:count]]

    def mcq_prompt(self, question: Question, order: Sequence[int]) -> Prompt:
        """Write the stem, the options in `order` with letters A, B, … by place, and one [MASK].

        Raises:
            PromptTooLongError: the options alone do not fit.
        """
        examples: list[int] = []
        for example, key in self._examples(question):
            options = self._options(example, range(len(example.options)))
            parts = {"options": options, "blank": self._letters[key]}
            examples += self._example(self.template.listed, example, parts)
        values = {"options": self._options(question, order), "blank": (self.mask,)}
        return self._assemble(self.template.listed, question.stem, values, examples)

    def _options(self, question: Question, order: Sequence[int]) -> list[int]:
        """Return the token ids of the options in `order`, with letters by place."""
        ids: list[int] = []
        for place, index in enumerate(order):
            values = {"letter": self._letters[place], "text": self.ids(question.options[index])}
            ids += self._fill(self.template.option, values)
        return ids

    def _examples(self, question: Question) -> Iterator[tuple[Question, int]]:
        """Yield the examples of a question's subject with their keys, but for the question itself."""
        rows = self.examples.get(question.subject, ())
        mark = question.fingerprint if rows else ""
        for row in rows:
            if row.fingerprint != mark and row.answer is not None:
                yield row, row.answer

    def _example(self, pattern: str, example: Question, values: Mapping[str, Sequence[int]]) -> list[int]:
        """Return the token ids of an answered question, and of the blank line after it."""
        filled = self._fill(pattern, {**values, "stem": self.ids(example.stem)})
        return [*filled, *self.ids("\n\n")]

    def fits(self, question: Question, listed: bool) -> bool:
        """Return whether a question fits with its examples, nothing cut.

        Args:
            listed: its options are listed; else each of them stands in the blank.
        """
        places = range(len(question.options))
        try:
            prompts = (
                [self.mcq_prompt(question, places)]
                if listed
                else [self.cloze_prompt(question, option) for option in places]
            )
        except PromptTooLongError:
            return False
        return not any(prompt.cut for prompt in prompts)

    def option_ids(self, question: Question, option: int) -> tuple[int, ...]:
        """Return the token ids of an option; [UNK] where the tokenizer leaves nothing of it."""
        return self.ids(question.options[option]) or (cast(int, self.tokenizer.unk_token_id),)

    def cloze_prompt(self, question: Question, option: int) -> Prompt:
        """Write the stem, then the text of one option, covered by `blank`. Raises PromptTooLongError."""
        return self.cloze_prompt_ids(question, self.option_ids(question, option))

    def cloze_prompt_ids(self, question: Question, text: Sequence[int]) -> Prompt:
        """Write the stem, then the token ids `text`, covered by `blank`. Raises PromptTooLongError."""
        examples: list[int] = []
        for example, key in self._examples(question):
            examples += self._example(self.template.plain, example, {"blank": self.option_ids(example, key)})
        return self._assemble(self.template.plain, question.stem, {"blank": text}, examples)

    def unconditional_prompt(self, question: Question, text: Sequence[int]) -> Prompt:
        """Write the cloze prompt with the subject in place of the stem, for the prior of a text as an answer.

        This is the domain prompt of arXiv:2104.08315, section 3.

        Raises:
            PromptTooLongError: the text does not fit.
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
        """Return, for each token of `text`, the index after the last token of its word (words by jieba)."""
        return [word[-1] + 1 for word in token_words(self.tokenizer, text) for _ in word]

    def cloze_words(self, question: Question, option: int, prompt: Prompt) -> list[list[int]]:
        """Return the positions of each word of stem and option in a cloze prompt.

        A word that was truncated with the stem is left out.
        """
        first, before, after = prompt.stem
        total = len(self.ids(question.stem))
        removed = total - after - before  # tokens replaced by an ellipsis
        offset = first + len(self._ellipsis) - removed if removed else first
        positions = {at: first + at for at in range(before)}
        positions |= {at: offset + at for at in range(total - after, total)}
        stem_words = [
            [positions[at] for at in word]
            for word in token_words(self.tokenizer, question.stem)
            if all(at in positions for at in word)
        ]
        option_words = token_words(self.tokenizer, question.options[option])
        return stem_words + [[prompt.blank[at] for at in word] for word in option_words]

    def statement_words(self, statement: Statement) -> list[list[int]]:
        """Return the positions of each word in a statement prompt."""
        text, first = statement.text, 1
        words: list[list[int]] = []
        for part in (text[: statement.start], text[statement.start : statement.end], text[statement.end :]):
            words += [[first + at for at in word] for word in token_words(self.tokenizer, part)]
            first += len(self.ids(part))
        return words

    def statement_prompt(self, statement: Statement) -> Prompt:
        """Write a sentence; `blank` covers its answer, as a question about it would ask for.

        Raises:
            PromptTooLongError: the sentence does not fit.
        """
        before, answer = statement.text[: statement.start], statement.text[statement.start : statement.end]
        after = statement.text[statement.end :]
        ids = [self.start, *self.ids(before)]
        blank = range(len(ids), len(ids) + len(self.ids(answer)))
        ids += [*self.ids(answer), *self.ids(after), self.end]
        if len(ids) > self.max_length:
            raise PromptTooLongError(f"敘述有 {len(ids)} 個 token，上限 {self.max_length}")
        return Prompt(tuple(ids), tuple(blank))

    def _fill(self, pattern: str, values: Mapping[str, Sequence[int]]) -> list[int]:
        """Tokenize a part of a template, with the given token ids in place of its placeholders."""
        ids: list[int] = []
        for piece in re.split(r"(\{\w+\})", pattern):
            ids += values[piece[1:-1]] if piece[:1] == "{" else self.ids(piece)
        return ids

    def _assemble(
        self, pattern: str, stem_text: str, values: Mapping[str, Sequence[int]], examples: Sequence[int] = ()
    ) -> Prompt:
        head, tail = pattern.split("{stem}")
        stem = self.ids(stem_text)
        before = [self.start, *examples, *self._fill(head, values)]
        up_to_blank, after_blank = tail.split("{blank}")
        between, after = self._fill(up_to_blank, values), [*self._fill(after_blank, values), self.end]
        room = self.max_length - len(before) - len(between) - len(values["blank"]) - len(after)
        cut, kept = 0, (len(stem), 0)
        if len(stem) > room:
            keep = room - len(self._ellipsis)
            if keep < 0:
                raise PromptTooLongError(
                    f"選項本身就超過 --max_length {self.max_length}"
                    f"（缺 {len(self._ellipsis) - room} 個 token）"
                )
            front = (keep + 1) // 2  # a stem begins with the topic and ends with the actual question
            cut, kept = len(stem) - keep, (front, keep - front)
            stem = (*stem[:front], *self._ellipsis, *stem[len(stem) - (keep - front) :])
        ids = [*before, *stem, *between]
        blank = range(len(ids), len(ids) + len(values["blank"]))
        return Prompt((*ids, *values["blank"], *after), tuple(blank), cut, (len(before), *kept))


class TokenCache(dict):
    """Cache of token ids by text, filled on first access and cleared when it would exceed `cache_size`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cache_size: int):
        self.tokenizer, self.cache_size = tokenizer, cache_size

    def add(self, texts: Iterable[str]) -> None:
        """Tokenize the texts that are not cached yet, in one batch."""
        new = [text for text in dict.fromkeys(texts) if text not in self]
        if len(self) + len(new) > self.cache_size:
            self.clear()
        if new:
            encoded = self.tokenizer(
                new, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False,
                return_token_type_ids=False,
            )  # fmt: skip
            self.update(zip(new, map(tuple, encoded["input_ids"]), strict=True))

    def __missing__(self, text: str) -> tuple[int, ...]:
        self.add([text])
        return self[text]


def warm_cache(prompts: ExamPrompts, rows: Iterable, answers: bool = False) -> Iterator:
    """Yield the same rows, after tokenizing the texts of each batch of them at once."""
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        prompts.prepare(batch, answers)
        yield from batch


def mask_positions(ids: Sequence[int], positions: Sequence[int], mask_id: int) -> tuple[int, ...]:
    """Replace the tokens at `positions` by the mask."""
    masked = set(positions)
    return tuple(mask_id if i in masked else token for i, token in enumerate(ids))


def boundary_tokens(tokenizer: Any) -> tuple[int, int]:
    """Return the ids of the tokens that open and close a sequence: [CLS] and [SEP], or <s> and </s>."""
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    return (tokenizer.bos_token_id if start is None else start), (
        tokenizer.eos_token_id if end is None else end
    )


def unknown_parts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the parts of a text that become [UNK]."""
    if len(text) > LONGEST_TEXT:  # such a text is refused elsewhere
        return []
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [text[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id]


def choose_verbalizer(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Choose the letters of the options: A–J, else a–j, else 1–10; each one known token, all distinct.

    Raises:
        UserError: the tokenizer has none of these sets (letters that all become [UNK] would make all options
            equal).
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


def read_back(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode token ids, without the spaces that decoding puts between Chinese characters."""
    text = str(tokenizer.decode(list(ids))).removeprefix("##")
    return re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)


def format_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], blank: Sequence[int]) -> str:
    """Show token ids as the tokens that the model sees, the blank in 【】."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    marked = [f"【{token}】" if i in set(blank) else token for i, token in enumerate(tokens)]
    return " ".join(marked).replace("】 【", " ")
