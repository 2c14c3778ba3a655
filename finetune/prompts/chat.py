r"""Chat prompts for causal models, as token ids.

Messages go through the tokenizer's own chat template or, where it has none and the user chose so, the plain
form `User: …\nAssistant: …`. Training and inference use the same functions, so a model is prompted exactly as
it was trained. The text of a message is data: a `<|im_end|>` inside it is escaped, never interpreted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finetune.data.instructions import Message
from finetune.runtime.errors import UserError
from finetune.runtime.sandbox import Sandbox
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STYLES = ("chat", "plain")
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}  # in the plain form
# Contents of the messages that a template is probed with: texts that no template contains.
QUESTION, ANSWER, SYSTEM, THOUGHT = "甲乙丙丁", "子丑寅卯", "乾坤震巽", "金木水火"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")  # message keys of reasoning in chat templates
PREFIX = re.compile(r"(?:<think>\s*</think>\s*| *)\Z")  # text that the model generates before its answer


def user(content: str) -> Message:
    """Make a message of the user."""
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    """Make a system message."""
    return {"role": "system", "content": content}


def assistant(content: str, **kwargs: str) -> Message:
    """Make a message of the assistant, with further keys such as its reasoning."""
    return {"role": "assistant", "content": content, **kwargs}


@dataclass(frozen=True)
class TemplateForm:
    """Form in which a template writes a reply of the assistant.

    Attributes:
        reply_prefix: text between the generation prompt and the reply, which the model generates: a space, or
            "".
        suffix: text between the reply and its end token.
        end_id: the token that ends the reply: the first special one after it, else the tokenizer's EOS.
        ignores_generation_prompt: the template does nothing with `add_generation_prompt`: the opening of the
            assistant's turn is taken from a finished turn.
        opens_thought: the generation prompt ends inside an open `<think>`.
        continues_prompt: a finished turn begins with the text of the generation prompt.
    """

    reply_prefix: str
    suffix: str
    end_id: int
    ignores_generation_prompt: bool
    opens_thought: bool
    continues_prompt: bool


@dataclass(frozen=True)
class Passage:
    """Token ids to train on.

    Attributes:
        ids: token ids.
        reply_spans: positions of the assistant's replies, the targets of the loss; the target at the last
            position of each span is the end token, whatever the passage holds there (a template may write
            none between two turns).
    """

    ids: list[int]
    reply_spans: list[range]


class Chat:
    """Writes messages for one tokenizer.

    Args:
        tokenizer: the model's tokenizer.
        style: `chat` for the tokenizer's template, or `plain`.
        flag: named in error messages.
        template_kwargs: arguments of the template, such as enable_thinking.

    Raises:
        UserError: `chat` where the tokenizer has no template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        style: str,
        flag: str = "--template chat",
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        template = tokenizer.chat_template if style == "chat" else ""
        if style == "chat" and not template:
            raise UserError(
                f"{flag}：這個 tokenizer 沒有對話樣板（chat_template）；"
                "請加 --template plain（寫成 User: …、Assistant: …），或換一個有對話樣板的模型"
            )
        if isinstance(template, dict) and "default" not in template:
            if len(template) > 1:
                raise UserError(
                    f"{flag}：tokenizer 的對話樣板有 {'、'.join(template)}，沒有 default，不知道用哪一個；"
                    "請把要用的那一個存成 chat_template.jinja，或加 --template plain"
                )
            template = next(iter(template.values()))
        self.template = chosen = template["default"] if isinstance(template, dict) else template
        self.tokenizer, self.style, self.flag = tokenizer, style, flag
        self._has_kwargs = bool(template_kwargs)
        self._apply = Sandbox(
            lambda messages, reply: tokenizer.apply_chat_template(
                messages,
                chat_template=chosen,
                tokenize=False,
                add_generation_prompt=reply,
                **(template_kwargs or {}),
            ),  # fmt: skip
            f"{flag.split()[0]}：對話樣板（chat_template）",
        )
        specials = {str(token) for token in tokenizer.all_special_tokens} | {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or r"(?!)")

    def serve_strangers(self) -> None:
        """Start what renders the template; a conversation that it cannot render spoils no other one."""
        self._apply.gives_up = False
        if self.style == "chat":
            with contextlib.suppress(ValueError, UserError):  # told to whoever asks for it
                self._render([user("1")], True)

    # ---- messages as text ----------------------------------------------------------------------------------

    def text(self, messages: Sequence[Message], reply: bool) -> str:
        """Render the messages; with `reply`, also the opening of the assistant's next turn.

        Raises:
            ValueError: the template refuses them (roles that must alternate, say).
        """
        adapted = self._adapt(messages)
        if not reply:
            return self._render(adapted, False)
        if not self.form.ignores_generation_prompt:
            return self._render(adapted, True)
        before = self._render([*adapted, assistant(ANSWER)], False).rpartition(ANSWER)[0]
        return PREFIX.sub("", before)

    def _render(self, messages: Sequence[Message], reply: bool) -> str:
        if self.style == "chat":
            try:
                text = self._apply(messages, reply)
            except ValueError as error:  # a template is a program: it may divide by 0
                raise ValueError(f"對話樣板不接受：{error}") from error
            if reason := too_long(text):
                raise ValueError(f"對話樣板寫出的文字{reason}")
            return text
        lines = [f"{SPEAKERS[message['role']]}: {message['content']}" for message in messages]
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                lines[at] += self.tokenizer.eos_token
        return "\n".join([*lines, "Assistant:"] if reply else lines)

    def _adapt(self, messages: Sequence[Message]) -> list[Message]:
        """Adapt messages to what the template supports, special tokens escaped; see `remarks`."""
        adapted: list[Message] = []
        pending: list[str] = []  # system messages, where the template has no place for them
        for message in messages:
            role, content = message["role"], self.escape_special_tokens(message["content"])
            if role == "system" and not self.takes_system:
                pending.append(content)
            elif role == "assistant":
                if self.assistant_first or any(earlier["role"] == "user" for earlier in adapted):
                    adapted.append(self._reply_message(content, message.get("reasoning_content") or ""))
            else:
                adapted.append({"role": role, "content": "\n\n".join([*pending, content])})
                pending = []
        return adapted

    def _reply_message(self, content: str, thought: str) -> Message:
        """Make the assistant's message, with its reasoning where the template has a place for it."""
        content, thought = content.strip(), self.escape_special_tokens(thought).strip()
        if thought and self.thought_key:
            return assistant(content, **{self.thought_key: thought})
        if thought and self.tags_thought:
            content = f"<think>\n{thought}\n</think>\n\n{content}"
        return assistant(content)

    def remarks(self, messages: Sequence[Message]) -> set[str]:
        """Describe how the messages are changed to fit the template."""
        changes, roles = set(), [message["role"] for message in messages]
        if "system" in roles and not self.takes_system:
            changes.add("對話樣板沒有 system 的位置：併入下一句使用者的話")
        if next((role for role in roles if role != "system"), "") == "assistant" and not self.assistant_first:
            changes.add("對話樣板不讓模型先開口：略去招呼")
        if any(message.get("reasoning_content") for message in messages) and not self.writes_thought:
            changes.add("對話樣板沒有思考（reasoning_content）的位置：不訓練思考，只訓練回答")
        return changes

    def notes(self) -> list[str]:
        """Describe the peculiarities of the template."""
        notes = []
        if "strftime_now" in self.template:
            notes.append("對話樣板會寫進當天的日期：訓練時寫的是今天，推論時寫的是推論當天")
        if self.form.ignores_generation_prompt:
            notes.append("對話樣板沒有用到 add_generation_prompt：回答的開頭依它寫回答的格式補上")
        elif not self.form.continues_prompt:
            notes.append("對話樣板寫出的回答，開頭與 add_generation_prompt 加上的不一致：照後者訓練")
        return notes

    def escape_special_tokens(self, text: str) -> str:
        """Break each special token in a text by a space, so that it is tokenized as ordinary characters."""
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    # ---- abilities of the template -------------------------------------------------------------------------

    @cached_property
    def form(self) -> TemplateForm:
        """Form of a reply, found by rendering a question with and without an answer.

        Raises:
            UserError: the template cannot write a question and its answer.
        """
        try:
            closed, prompt, answered = self._probe([user(QUESTION)])
        except ValueError as error:
            try:  # a template may require a system message
                closed, prompt, answered = self._probe([system(SYSTEM), user(QUESTION)])
            except ValueError:
                way = "請換一個對話樣板"
                if self._has_kwargs:
                    way = "請改掉或去掉 --chat_template_kwargs；還是不行，就換一個對話樣板"
                raise UserError(f"{self.flag}：{error}；一問一答也寫不出來，{way}") from error
        before, _, after = answered.rpartition(ANSWER)
        continues = before.startswith(prompt)
        ignores = prompt == closed and bool(not continues or before[len(prompt) :].strip())
        if ignores:
            prompt, continues = PREFIX.sub("", before), True
        prefix = before[len(prompt) :] if continues else ""
        opens_thought = bool(re.search(r"<think>\s*\Z", prompt))
        if opens_thought and not continues:
            prefix = "\n</think>\n\n"
        end = self._special.search(after)
        end_id: Any = self.tokenizer.convert_tokens_to_ids(end[0]) if end else self.tokenizer.eos_token_id
        suffix = after[: end.start()] if end else ""
        return TemplateForm(prefix, suffix, end_id, ignores, opens_thought, continues)

    def _probe(self, question: Sequence[Message]) -> tuple[str, str, str]:
        """Render a question alone, with the generation prompt, and with an answer.

        Raises:
            ValueError: the template refuses one of them, or drops the answer.
        """
        answered = self._render([*question, assistant(ANSWER)], False)
        if ANSWER not in answered:
            raise ValueError("對話樣板不寫模型的回答")
        return self._render(question, False), self._render(question, True), answered

    def _renders(self, messages: Sequence[Message], *texts: str) -> bool:
        """Return True when the template accepts the messages and writes all these texts."""
        try:
            rendered = self._render(messages, False)
        except ValueError:
            return False
        return all(text in rendered for text in texts)

    @cached_property
    def takes_system(self) -> bool:
        """True if the template has a place for a system message: it neither refuses nor drops it."""
        return self._renders([system(SYSTEM), user(QUESTION)], SYSTEM)

    @cached_property
    def assistant_first(self) -> bool:
        """True if the template lets the assistant speak first."""
        return self._renders([assistant(ANSWER), user(QUESTION)], ANSWER, QUESTION)

    @cached_property
    def thought_key(self) -> str:
        """Message key under which the template reads the reasoning; "" where it reads none."""
        if self.style == "plain":
            return ""
        return next(
            (
                key
                for key in THOUGHT_KEYS
                if self._renders([user(QUESTION), assistant(ANSWER, **{key: THOUGHT})], THOUGHT)
            ),
            "",
        )

    @property
    def tags_thought(self) -> bool:
        """True if the template handles reasoning as `<think>…</think>` inside the content."""
        return "</think>" in self.template

    @property
    def writes_thought(self) -> bool:
        """True if the template has a place for reasoning."""
        return bool(self.thought_key) or self.tags_thought

    @property
    def reply_prefix(self) -> str:
        """Text that the model generates before its reply, see `TemplateForm`."""
        return self.form.reply_prefix

    @property
    def end(self) -> int:
        """Token id that ends a reply."""
        return self.form.end_id

    # ---- text as tokens ------------------------------------------------------------------------------------

    def ids(self, text: str) -> list[int]:
        """Tokenize a text rendered by `text`, without adding special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def start(self) -> list[int]:
        """Token ids before everything else: BOS where the tokenizer adds one and no template writes it."""
        tokenizer = self.tokenizer
        adds_bos = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        return [tokenizer.bos_token_id] if self.style == "plain" and adds_bos else []

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the messages with the generation prompt. Raises ValueError as `text`."""
        return self.start + self.ids(self.text(messages, reply=True))

    def reply(self, before: str, content: str) -> list[int]:
        """Return the token ids of a reply after the text `before`, without the end token."""
        return self._ids_after(before, self.reply_prefix + self.escape_special_tokens(content))

    def _ids_after(self, before: str, text: str, prompt: list[int] | None = None) -> list[int]:
        """Return the token ids of `text` where it follows `before`, whose ids are `prompt`."""
        prompt, joined = prompt or self.ids(before), self.ids(before + text)
        # Tokenized together, as the model generates it, unless that changes the tokens of the prompt.
        return joined[len(prompt) :] if joined[: len(prompt)] == prompt else self.ids(text)

    @cached_property
    def end_ids(self) -> list[int]:
        """Token ids that end a reply: the suffix that the template writes after it, if any, and `end`."""
        reply = self.text([user(QUESTION)], reply=True) + self.reply_prefix + ANSWER
        return [*self._ids_after(reply, self.form.suffix), self.end]

    def conversation(self, messages: Sequence[Message]) -> list[Passage]:
        """Tokenize a conversation for training: every reply follows the very tokens of its prompt.

        Replies share a passage as long as the prompt of each begins with the tokens of those before it. Where
        the template rewrites earlier turns (it drops their reasoning, say), a new passage begins.

        Raises:
            ValueError: the template refuses it.
        """
        passages: list[Passage] = []
        for at, message in enumerate(messages):
            if message["role"] != "assistant" or not message.get("train", True):
                continue
            before = self.text(messages[:at], reply=True)
            before_ids = self.ids(before)
            reply = self._ids_after(before, self._reply_text(before, messages[: at + 1]), before_ids)
            prompt = self.start + before_ids
            span = range(len(prompt), len(prompt) + len(reply) + 1)
            last = passages[-1] if passages else None
            if last and prompt[: len(last.ids)] == last.ids:
                passages[-1] = Passage([*prompt, *reply], [*last.reply_spans, span])
            else:
                passages.append(Passage([*prompt, *reply], [span]))
        for passage in passages:
            passage.ids.append(self.end)
        return passages

    def _reply_text(self, before: str, messages: Sequence[Message]) -> str:
        """Return the text of the last message, a reply, as the template writes it after `before`.

        Where the template writes something else in that place, or drops the reasoning, the content itself is
        used, with the reply's prefix and suffix.
        """
        content = self._adapt(messages)[-1]["content"]
        thought, _, answer = content.rpartition("</think>")
        rendered = self._render(self._adapt(messages), False)
        if rendered.startswith(before):
            rendered = rendered[len(before) :]
            end = rendered.find(str(self.tokenizer.decode([self.end])))
            reply = rendered[:end] if end >= 0 else rendered[: rendered.rfind(content) + len(content)]
            if answer.strip() in reply and thought.removeprefix("<think>").strip() in reply:
                return reply
        if self.form.opens_thought and "</think>" in content:
            return content.removeprefix("<think>").lstrip("\n") + self.form.suffix
        prefix = "" if content.startswith("<think>") and "<think>" in self.reply_prefix else self.reply_prefix
        return prefix + content + self.form.suffix

    # ---- generated text ------------------------------------------------------------------------------------

    def start_cleaner(self) -> StartCleaner:
        """Return what strips from a reply, piece by piece, what the template requires at its start."""
        prefix = str(self.tokenizer.decode(self.ids(self.reply_prefix), skip_special_tokens=True))
        return StartCleaner(prefix, self.form.opens_thought)


class StartCleaner:
    """Strips what a template requires at the start of a generated reply, piece by piece.

    That is the reply's prefix, or a `<think>` without a thought. A thought that was opened in the prompt
    gets its `<think>` back.
    """

    def __init__(self, prefix: str, opens_thought: bool):
        self._residues = [_without_spaces(prefix), "</think>" if opens_thought else "<think></think>"]
        self._opens_thought = opens_thought
        self._held, self._started = "", False

    def write(self, piece: str) -> str:
        """Return what a piece makes certain of the cleaned text."""
        if self._started:
            return piece
        self._held += piece
        compact = _without_spaces(self._held)
        residue = next((text for text in self._residues if text and compact.startswith(text)), "")
        if not residue and any(text.startswith(compact) for text in self._residues):
            return ""  # it may still become one
        return self._begin(residue)

    def finish(self) -> str:
        """Return the rest, when no piece follows."""
        return self._begin("") if self._held else ""

    def _begin(self, residue: str) -> str:
        held, self._held, self._started = self._held, "", True
        if residue:
            return re.sub(r"\A\s*" + r"\s*".join(map(re.escape, residue)) + r"\s*", "", held)
        return f"<think>\n{held.lstrip()}" if self._opens_thought and held.strip() else held


def _without_spaces(text: str) -> str:
    return "".join(text.split())
