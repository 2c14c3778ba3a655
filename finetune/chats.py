"""What is said to a causal model, as token ids: messages through the tokenizer's own chat template, or in the
plain form `User: …\\nAssistant: …` where it has none and the person said so.

Training and asking go through the same functions, so a model is asked exactly as it was taught. Text of a
message is data: `<|im_end|>` inside it is broken up, never obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix

from .errors import UserError
from .orders import Unaskable
from .prompts import ELLIPSIS, Prompt, Template, TooLong
from .questions import LETTERS, Question

STYLES = ("chat", "plain")
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}  # of the plain form

Message = dict[str, str]  # role and content, as chat templates take them


class Chat:
    """Writes messages for one tokenizer.

    Args:
        style: `chat`, the tokenizer's template, or `plain`.

    Raises:
        UserError: `chat` where the tokenizer has no template.
    """

    def __init__(self, tokenizer, style: str, flag: str = "--template chat"):
        if style == "chat" and not tokenizer.chat_template:
            raise UserError(
                f"{flag}：這個 tokenizer 沒有對話樣板（chat_template）；"
                "請加 --template plain（寫成 User: …、Assistant: …），或換一個有對話樣板的模型"
            )
        self.tokenizer, self.style = tokenizer, style
        specials = {str(token) for token in tokenizer.all_special_tokens} | {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or r"(?!)")

    def text(self, messages: Sequence[Message], reply: bool) -> str:
        """The messages written out; `reply`: up to where the assistant is to speak.

        Raises:
            ValueError: the template refuses them (roles that must take turns, say).
        """
        safe = [{**message, "content": self.defused(message["content"])} for message in messages]
        if self.style == "chat":
            try:
                return self.tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=reply)
            except Exception as error:  # a template is a program, run in jinja2's sandbox: it may divide by 0
                raise ValueError(f"對話樣板不接受：{error}") from error
        lines = [f"{SPEAKERS[message['role']]}: {message['content']}" for message in safe]
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                lines[at] += self.tokenizer.eos_token
        return "\n".join([*lines, "Assistant:"] if reply else lines)

    def defused(self, text: str) -> str:
        """Special tokens in a text, each broken by a space, so that they are read as the letters they are."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that `text` wrote."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def start(self) -> list[int]:
        """What stands before everything: BOS where the tokenizer adds one and no template writes it."""
        tokenizer = self.tokenizer
        begins = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        return [tokenizer.bos_token_id] if self.style == "plain" and begins else []

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """All up to where the assistant is to speak. Raises ValueError as `text` does."""
        return self.start + self.ids(self.text(messages, reply=True))

    def reply(self, before: str, content: str) -> list[int]:
        """Token ids of what the assistant says after `before`, without the end."""
        return self._after(before, self.lead + self.defused(content))

    def _after(self, before: str, said: str) -> list[int]:
        prompt, whole = self.ids(before), self.ids(before + said)
        # Read together, as the model will write it, unless the seam would change the prompt's own tokens.
        return whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.ids(said)

    @property
    def lead(self) -> str:
        """What stands between the place where the assistant is to speak and its words: a space, or ""."""
        return self._around[0]

    @property
    def end(self) -> int:
        """The token that ends what the assistant says: the first special one its template writes after it,
        else the tokenizer's EOS."""
        return self._around[2]

    @cached_property
    def _around(self) -> tuple[str, str, int]:
        """`lead`, what stands between the assistant's words and their end, and `end`."""
        asked, said = [{"role": "user", "content": "問"}], "答"
        before = self.text(asked, reply=True)
        whole = self.text([*asked, {"role": "assistant", "content": said}], reply=False)
        lead, _, rest = (whole[len(before) :] if whole.startswith(before) else "").partition(said)
        if end := self._special.search(rest):
            return lead, rest[: end.start()], self.tokenizer.convert_tokens_to_ids(end[0])
        return lead, "", self.tokenizer.eos_token_id

    @cached_property
    def closing(self) -> list[int]:
        """Token ids that end what the assistant says: what the template writes after it, if anything, and
        `end`."""
        said = self.text([{"role": "user", "content": "問"}], reply=True) + self.lead + "答"
        return [*self._after(said, self._around[1]), self.end]

    def conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[range]]:
        """A whole conversation for training, and where in it the assistant speaks; its end is part of that.
        Where the template rewrites earlier replies once later ones come (it drops what a model thought, say),
        the last one alone is spoken.

        Raises:
            ValueError: the template refuses it.
        """
        ids, spoken, written = list(self.start), [], ""
        messages = [
            {**message, "content": message["content"].strip()} if message["role"] == "assistant" else message
            for message in messages
        ]
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.text(messages[:at], reply=True)
            if not before.startswith(written):
                ids, spoken, written = list(self.start), [], ""
            ids += self._after(written, before[len(written) :]) if written else self.ids(before)
            text = self.text(messages[: at + 1], reply=False)
            end = self.tokenizer.decode([self.end])
            if text.startswith(before) and end in text[len(before) :]:  # the template's own words
                words = text[len(before) : text.index(end, len(before))]
            else:
                words = self.lead + self.defused(message["content"]) + self._around[1]
            said = [*self._after(before, words), self.end]
            spoken.append(range(len(ids), len(ids) + len(said)))
            ids += said
            written = text[: text.rindex(end) + len(end)] if end in text[len(before) :] else text
        return ids, spoken


@dataclass
class AskingPrompts:
    """Writes questions for a causal model that answers with a letter. Stands where `prompts.ExamPrompts` does
    for a masked one.

    Args:
        max_length: of a prompt, in tokens.
    """

    chat: Chat
    max_length: int
    template: Template = field(default_factory=Template)

    @property
    def tokenizer(self):
        return self.chat.tokenizer

    def _letters(self, count: int) -> tuple[list[int], list[int]]:
        """What the first `count` letters all begin with when they are said (a lone space, say), and the token
        of each.

        Raises:
            UserError: a letter is not one known token of its own.
        """
        if count not in self._known:
            for said in self._said:
                shared = commonprefix(said[:count])
                rest = [tokens[len(shared) :] for tokens in said[:count]]
                firsts = {tokens[0] for tokens in rest if len(tokens) == 1} - {self.tokenizer.unk_token_id}
                if len(firsts) == count:
                    self._known[count] = shared, [tokens[0] for tokens in rest]
                    break
            else:
                last = LETTERS[count - 1]
                raise UserError(f"這個 tokenizer 分不出 A 到 {last} 這幾個字母，不能用字母作答")
        return self._known[count]

    @cached_property
    def _said(self) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of each letter, said as the model would; and with the space before it apart, since a
        vocabulary may have ` A` and no ` D`."""
        before = self.chat.text([{"role": "user", "content": "題目"}], reply=True)
        apart = self.chat.ids(self.chat.lead)
        together = [self.chat.reply(before, letter) for letter in LETTERS]
        return together, [[*apart, *self.chat.ids(letter)] for letter in LETTERS]

    @cached_property
    def _known(self) -> dict[int, tuple[list[int], list[int]]]:
        return {}

    def verbalizer_ids(self, count: int) -> list[int]:
        """Token id that says the letter of each of the first `count` places."""
        return self._letters(count)[1]

    def messages(self, question: Question, order: Sequence[int], stem: str) -> list[Message]:
        """The question as it is put to the model, with this stem, options in `order`."""
        options = "\n".join(
            _filled(self.template.choice, letter=LETTERS[place], text=question.options[index])
            for place, index in enumerate(order)
        )
        return [{"role": "user", "content": _filled(self.template.asked, stem=stem, options=options)}]

    def shared(self, count: int) -> int:
        """How many tokens `count` letters all begin with: the last ones of a prompt that `listed` writes."""
        return len(self._letters(count)[0])

    def listed(self, question: Question, order: Sequence[int], spare: int = 2) -> Prompt:
        """All up to the token that says the letter; `blank` is the last position, whose logits choose it.

        A stem that does not fit is cut in its middle, never an option.

        Args:
            spare: tokens to leave free for the answer.

        Raises:
            TooLong: the options alone do not fit.
        """
        shared = self._letters(len(order))[0]
        ids, size = self._prompt(question, order), len(question.stem)
        room = self.max_length - len(shared) - spare
        keep = self._kept.get((question, room), size)  # in another order it fitted, or nearly
        while len(ids) > room:
            if keep < size:
                ids = self._prompt(question, order, keep)
            if len(ids) > room:  # never too many at once: the stem is but a part of the tokens
                keep -= 1 + int((len(ids) - room) / len(ids) * keep)
            if keep < 0:
                raise TooLong(f"選項本身就超過 {self.max_length} 個 token 的上限")
        if keep < size:
            self._kept[question, room] = keep
        ids = [*ids, *shared]
        return Prompt(tuple(ids), (len(ids) - 1,), size - keep)

    @cached_property
    def _kept(self) -> dict[tuple[Question, int], int]:
        """Characters left of the stems that had to be cut."""
        return {}

    def _prompt(self, question: Question, order: Sequence[int], keep: int | None = None) -> list[int]:
        stem = question.stem
        if keep is not None:
            front = (keep + 1) // 2  # a stem opens with its matter and closes with what is asked
            stem = stem[:front] + ELLIPSIS + stem[len(stem) - (keep - front) :]
        try:
            return self.chat.prompt(self.messages(question, order, stem))
        except ValueError as error:
            raise Unaskable(str(error)) from error


def _filled(pattern: str, **values: str) -> str:
    """A template with its places filled in one pass: a `{stem}` inside a value is text."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), pattern)
