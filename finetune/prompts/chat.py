"""What is said to a causal model, as token ids: messages through the tokenizer's own chat template, or in the
plain form `User: …\\nAssistant: …` where it has none and the person said so.

Training and asking go through the same functions, so a model is asked exactly as it was taught. Text of a
message is data: `<|im_end|>` inside it is broken up, never obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from finetune.data.instructions import Message
from finetune.runtime.errors import UserError
from finetune.runtime.sandbox import Sandbox
from finetune.runtime.strict_json import too_long

STYLES = ("chat", "plain")
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}  # of the plain form
# What a template is tried with: texts that no template holds itself.
ASKED, ANSWER, SYSTEM, THOUGHT = "甲乙丙丁", "子丑寅卯", "乾坤震巽", "金木水火"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")  # by which templates know what was thought
LEAD = re.compile(r"(?:<think>\s*</think>\s*| *)\Z")  # what a model says itself before its words


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, **more) -> Message:
    return {"role": "assistant", "content": content, **more}


@dataclass(frozen=True)
class Form:
    """How a template writes what the assistant says.

    Attributes:
        lead: stands between the place where the assistant is to speak and its words: a space, or ""; the
            assistant says it.
        tail: stands between its words and their end.
        end: the token that ends them: the first special one after them, else the tokenizer's EOS.
        adds: the template takes no notice of `add_generation_prompt`: what opens the assistant's turn is
            taken from a turn that it writes.
        thinks: the place where the assistant is to speak lies inside an open `<think>`.
        joins: what is written where the assistant spoke begins with what was asked.
    """

    reply_prefix: str
    tail: str
    end: int
    adds: bool
    thinks: bool
    joins: bool


@dataclass(frozen=True)
class Passage:
    """Token ids to learn from. `spoken`: where the assistant speaks and learns; the last place of each range
    asks for the end, whatever stands there (a template may write none between two turns).
    """

    ids: list[int]
    reply_spans: list[range]


class Chat:
    """Writes messages for one tokenizer.

    Args:
        style: `chat`, the tokenizer's template, or `plain`.

    Raises:
        UserError: `chat` where the tokenizer has no template.
    """

    def __init__(self, tokenizer, style: str, flag: str = "--template chat"):
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
        self._apply = Sandbox(
            lambda messages, reply: tokenizer.apply_chat_template(
                messages, chat_template=chosen, tokenize=False, add_generation_prompt=reply
            ),
            f"{flag.split()[0]}：對話樣板（chat_template）",
        )
        specials = {str(token) for token in tokenizer.all_special_tokens} | {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or r"(?!)")

    # ---- messages as text ----------------------------------------------------------------------------------

    def text(self, messages: Sequence[Message], reply: bool) -> str:
        """The messages written out; `reply`: up to where the assistant is to speak.

        Raises:
            ValueError: the template refuses them (roles that must take turns, say).
        """
        fitted = self._fitted(messages)
        if not reply:
            return self._render(fitted, False)
        if not self.form.adds:
            return self._render(fitted, True)
        before = self._render([*fitted, assistant(ANSWER)], False).rpartition(ANSWER)[0]
        return LEAD.sub("", before)

    def _render(self, messages: Sequence[Message], reply: bool) -> str:
        if self.style == "chat":
            try:
                written = self._apply(messages, reply)
            except ValueError as error:  # a template is a program: it may divide by 0
                raise ValueError(f"對話樣板不接受：{error}") from error
            if reason := too_long(written):
                raise ValueError(f"對話樣板寫出的文字{reason}")
            return written
        lines = [f"{SPEAKERS[message['role']]}: {message['content']}" for message in messages]
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                lines[at] += self.tokenizer.eos_token
        return "\n".join([*lines, "Assistant:"] if reply else lines)

    def _fitted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template takes them, without special tokens; `remarks` says of it."""
        fitted: list[Message] = []
        waiting: list[str] = []  # of the system, where the template has no place for it
        for message in messages:
            role, content = message["role"], self.escape_special_tokens(message["content"])
            if role == "system" and not self.takes_system:
                waiting.append(content)
            elif role == "assistant":
                if self.opens or any(one["role"] == "user" for one in fitted):
                    fitted.append(self._answer(content, message.get("reasoning_content") or ""))
            else:
                fitted.append({"role": role, "content": "\n\n".join([*waiting, content])})
                waiting = []
        return fitted

    def _answer(self, content: str, thought: str) -> Message:
        """What the assistant said and, where the template has a place for it, thought."""
        content, thought = content.strip(), self.escape_special_tokens(thought).strip()
        if thought and self.thought_key:
            return assistant(content, **{self.thought_key: thought})
        if thought and self.tags_thought:
            content = f"<think>\n{thought}\n</think>\n\n{content}"
        return assistant(content)

    def remarks(self, messages: Sequence[Message]) -> set[str]:
        """What is not written as the messages have it."""
        said, roles = set(), [message["role"] for message in messages]
        if "system" in roles and not self.takes_system:
            said.add("對話樣板沒有 system 的位置：併入下一句使用者的話")
        if next((role for role in roles if role != "system"), "") == "assistant" and not self.opens:
            said.add("對話樣板不讓模型先開口：略去招呼")
        if any(message.get("reasoning_content") for message in messages) and not self.writes_thought:
            said.add("對話樣板沒有思考（reasoning_content）的位置：不教思考，只教回答")
        return said

    def notes(self) -> list[str]:
        """What is to be known of the template itself."""
        said = []
        if "strftime_now" in self.template:
            said.append("對話樣板會寫進當天的日期：訓練時寫的是今天，以後問的是那一天")
        if self.form.adds:
            said.append("對話樣板不理會 add_generation_prompt：模型開口的地方依它寫回答的方式補上")
        elif not self.form.joins:
            said.append("對話樣板寫回答的方式接不上它請模型開口的地方：照請模型開口的地方教")
        return said

    def escape_special_tokens(self, text: str) -> str:
        """Special tokens in a text, each broken by a space, so that they are read as the letters they are."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    # ---- what the template does ----------------------------------------------------------------------------

    @cached_property
    def form(self) -> Form:
        """Raises UserError where the template cannot write a question and its answer."""
        try:
            closed, asked, whole = self._tried([user(ASKED)])
        except ValueError as error:
            try:  # a template may insist on a system
                closed, asked, whole = self._tried([{"role": "system", "content": SYSTEM}, user(ASKED)])
            except ValueError:
                message = f"{self.flag}：{error}；一問一答也寫不出來，請換一個對話樣板"
                raise UserError(message) from error
        before, _, after = whole.rpartition(ANSWER)
        joins = before.startswith(asked)
        adds = asked == closed and bool(not joins or before[len(asked) :].strip())
        if adds:
            lead = LEAD.search(before)[0]
            asked, joins = before[: len(before) - len(lead)], True
        else:
            lead = before[len(asked) :] if joins else ""
        thinks = bool(re.search(r"<think>\s*\Z", asked))
        if thinks and not joins:
            lead = "\n</think>\n\n"
        end = self._special.search(after)
        token = self.tokenizer.convert_tokens_to_ids(end[0]) if end else self.tokenizer.eos_token_id
        return Form(lead, after[: end.start()] if end else "", token, adds, thinks, joins)

    def _tried(self, question: Sequence[Message]) -> tuple[str, str, str]:
        """A question without and with the place for its answer, and with an answer. Raises ValueError."""
        whole = self._render([*question, assistant(ANSWER)], False)
        if ANSWER not in whole:
            raise ValueError("對話樣板不寫模型的回答")
        return self._render(question, False), self._render(question, True), whole

    def _shows(self, messages: Sequence[Message], *texts: str) -> bool:
        """True when the template writes all these texts."""
        try:
            written = self._render(messages, False)
        except ValueError:
            return False
        return all(text in written for text in texts)

    @cached_property
    def takes_system(self) -> bool:
        """The template has a place for what the system says: it neither refuses nor drops it."""
        return self._shows([{"role": "system", "content": SYSTEM}, user(ASKED)], SYSTEM)

    @cached_property
    def opens(self) -> bool:
        """The template lets the assistant speak first."""
        return self._shows([assistant(ANSWER), user(ASKED)], ANSWER, ASKED)

    @cached_property
    def thought_key(self) -> str:
        """The key by which the template writes what was thought; "" where it knows none."""
        if self.style == "plain":
            return ""
        return next(
            (
                key
                for key in THOUGHT_KEYS
                if self._shows([user(ASKED), assistant(ANSWER, **{key: THOUGHT})], THOUGHT)
            ),
            "",
        )

    @property
    def tags_thought(self) -> bool:
        """The template knows thoughts as `<think>…</think>` inside what is said."""
        return "</think>" in self.template

    @property
    def writes_thought(self) -> bool:
        return bool(self.thought_key) or self.tags_thought

    @property
    def reply_prefix(self) -> str:
        return self.form.reply_prefix

    @property
    def end(self) -> int:
        return self.form.end

    # ---- text as tokens ------------------------------------------------------------------------------------

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
        return self._after(before, self.reply_prefix + self.escape_special_tokens(content))

    def _after(self, before: str, said: str, prompt: list[int] | None = None) -> list[int]:
        """Token ids of `said` where it follows `before`, whose ids are `prompt`."""
        prompt, whole = prompt or self.ids(before), self.ids(before + said)
        # Read together, as the model will write it, unless the seam would change the prompt's own tokens.
        return whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.ids(said)

    @cached_property
    def end_ids(self) -> list[int]:
        """Token ids that end what the assistant says: what the template writes after it, if anything, and
        `end`.
        """
        said = self.text([user(ASKED)], reply=True) + self.reply_prefix + ANSWER
        return [*self._after(said, self.form.tail), self.end]

    def conversation(self, messages: Sequence[Message]) -> list[Passage]:
        """A whole conversation for training: every answer after the very tokens that it is asked with.

        Answers share a passage as long as each is asked after the tokens of those before it. Where the
        template rewrites what came before (it drops what a model thought, say), a new passage begins.

        Raises:
            ValueError: the template refuses it.
        """
        passages: list[Passage] = []
        for at, message in enumerate(messages):
            if message["role"] != "assistant" or not message.get("train", True):
                continue
            before = self.text(messages[:at], reply=True)
            asked = self.ids(before)
            said = self._after(before, self._words(before, messages[: at + 1]), asked)
            prompt = self.start + asked
            spoken = range(len(prompt), len(prompt) + len(said) + 1)
            last = passages[-1] if passages else None
            if last and prompt[: len(last.ids)] == last.ids:
                passages[-1] = Passage([*prompt, *said], [*last.reply_spans, spoken])
            else:
                passages.append(Passage([*prompt, *said], [spoken]))
        for passage in passages:
            passage.ids.append(self.end)
        return passages

    def _words(self, before: str, messages: Sequence[Message]) -> str:
        """What the assistant says last in these messages, as the template writes it after `before`; as it
        stands there, where the template would write something else in that place, or drop its thoughts.
        """
        content = self._fitted(messages)[-1]["content"]
        thought, _, words = content.rpartition("</think>")
        written = self._render(self._fitted(messages), False)
        if written.startswith(before):
            written = written[len(before) :]
            end = written.find(self.tokenizer.decode([self.end]))
            said = written[:end] if end >= 0 else written[: written.rfind(content) + len(content)]
            if words.strip() in said and thought.removeprefix("<think>").strip() in said:
                return said
        if self.form.thinks and "</think>" in content:
            return content.removeprefix("<think>").lstrip("\n") + self.form.tail
        lead = "" if content.startswith("<think>") and "<think>" in self.reply_prefix else self.reply_prefix
        return lead + content + self.form.tail

    # ---- what a model said ---------------------------------------------------------------------------------

    def cleaned(self, pieces: Iterable[str]) -> Iterator[str]:
        """What a model said, piece by piece, without what the template and not the model means by it: the
        lead of an answer, a `<think>` without a thought. A thought that was opened in the prompt is whole.
        """
        lead = self.tokenizer.decode(self.ids(self.reply_prefix), skip_special_tokens=True)
        residues = [_dense(lead), "</think>" if self.form.thinks else "<think></think>"]
        held, opened = "", False
        for piece in pieces:
            if opened:
                yield piece
                continue
            held += piece
            dense = _dense(held)
            found = next((one for one in residues if one and dense.startswith(one)), "")
            if not found and any(one.startswith(dense) for one in residues):
                continue  # it may become one
            yield self._opening(held, found)
            held, opened = "", True
        if held:
            yield self._opening(held, "")

    def _opening(self, held: str, residue: str) -> str:
        if residue:
            return re.sub(r"\A\s*" + r"\s*".join(map(re.escape, residue)) + r"\s*", "", held)
        return f"<think>\n{held.lstrip()}" if self.form.thinks and held.strip() else held


def _dense(text: str) -> str:
    return "".join(text.split())
