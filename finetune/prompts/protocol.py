"""Protocols: how an exam is asked, answered and added up, each in one small file.

The built-in ones are `prompts/protocols/*.yaml`; a person's own has the same keys. A protocol is data, so
that a new one needs no code. Texts hold placeholders: `{subject}` (Chinese name), `{stem}`, `{options}`, in
`option` and `answer` `{letter}` and `{text}`, in `example` `{question}` and `{letter}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from finetune.prompts.scoring_methods import GENERATE, LETTER, LOGLIKELIHOOD
from finetune.runtime.errors import UserError, nearest, shown
from finetune.runtime.yaml_file import problem_of, read_node, twice

OURS = "ours"
PROTOCOLS = (OURS, "lm-eval", "ievals", "twinkle-box", "twinkle-logit")
FOLDER = Path(__file__).with_name("protocols")
FLAG = "--protocol"
RAW, CHAT = "raw", "chat"
MICRO, MACRO_4 = "micro", "macro-4"
CUT_STEM, CUT_LEFT, SKIP = "cut_stem", "cut_left", "skip"  # what becomes of a prompt that is too long
LARGEST = 1 << 20  # bytes of a protocol's file
SURROGATES = re.compile("[\ud800-\udfff]")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
PLACES = {  # text of a form -> placeholders it must hold, placeholders it may hold
    "header": ((), ("subject",)),
    "lead": ((), ("subject",)),
    "question": (("stem", "options"), ("subject",)),
    "example": (("question", "letter"), ()),
    "answer": (("letter",), ()),
}


@dataclass(frozen=True)
class Form:
    """Texts of one way to ask: as a text that goes on (raw), or as messages (chat).

    Attributes:
        question: the question; the model's reply, or the scored continuation, follows.
        answer: the scored continuation for a letter; in chat also the assistant's turn of an example.
        example: an example in running text: of raw prompts, and of all examples in one message.
        header: before everything; in chat the system message.
        header_needs_examples: the header stands only before examples.
        lead: in front of the first message of the user.
        scoring: `letter`, `loglikelihood` or `generate`.
        max_new_tokens: longest reply of `generate`; 0 where nothing is published.
        remarks: sentences on what the published code does otherwise than this form.
    """

    question: str
    answer: str = "{letter}"
    example: str = "{question}{letter}\n\n"
    header: str = ""
    header_needs_examples: bool = False
    lead: str = ""
    scoring: str = LETTER
    max_new_tokens: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """A protocol, read and checked.

    Attributes:
        name: of a built-in one; of a person's own that of the file, with the suffix that no built-in one has.
        title: what it is, with the version it was checked against.
        source: where it is published.
        option: an option; they are joined by line breaks.
        raw, chat: its forms; None where it has none.
        format: the form of `--prompt_format auto`: raw, chat, or auto (chat where there is a template).
        multiturn: in chat, whether examples are turns of their own by default.
        num_fewshot: examples by default.
        strip_stem: white space around the stem is removed.
        subjects: names of subjects that differ from ours, by TMMLU+'s key.
        aggregate: the figure that is published: micro (per question) or macro-4.
        too_long: what becomes of a prompt that does not fit: cut_stem, cut_left or skip.
        reader: regular expressions with one group, tried in order, that read a letter from a reply; () reads
            with evaluation/reply_reader.py.
        match: which match of a pattern counts, first or last.
        runs: runs of which published figures are the mean.
        takes_examples: published figures may have examples.
    """

    name: str
    title: str
    source: str = ""
    option: str = "{letter}. {text}"
    raw: Form | None = None
    chat: Form | None = None
    format: str = "auto"
    multiturn: bool = True
    num_fewshot: int = 0
    strip_stem: bool = False
    subjects: Mapping[str, str] = field(default_factory=dict)
    aggregate: str = MICRO
    too_long: str = SKIP
    reader: tuple[str, ...] = ()
    match: str = "first"
    runs: int = 1
    takes_examples: bool = True

    @property
    def is_own(self) -> bool:
        """True for a person's own: nothing is published that its figures could be laid beside."""
        return self.name not in PROTOCOLS

    def form_name(self, requested: str, has_template: bool) -> str:
        """Return the form to ask in, raw or chat.

        Args:
            requested: --prompt_format: auto, raw or chat.
            has_template: the model has a chat template, or a server that has one.

        Raises:
            UserError: the protocol has no such form, or the model no chat template.
        """
        chosen = requested if requested != "auto" else self.format
        if chosen == "auto":
            chosen = CHAT if self.chat and (has_template or not self.raw) else RAW
        if getattr(self, chosen) is None:
            other = RAW if chosen == CHAT else CHAT
            raise UserError(
                f"--prompt_format {chosen}：--protocol {self.name} 沒有這種問法，只有 {other}；"
                f"請改用 --prompt_format {other} 或別的 --protocol"
            )
        # our own prompt is also written as User: …, Assistant: … where nobody asked for a template
        if chosen == CHAT and not has_template and (self.name != OURS or requested == CHAT):
            way = "請加 --prompt_format raw" if self.raw else "請換一個有對話樣板的模型或別的 --protocol"
            raise UserError(
                f"--protocol {self.name} 以對話發問，這個 tokenizer 沒有對話樣板（chat_template）；{way}"
            )
        return chosen

    def form(self, name: str) -> Form:
        """Return the form of a name that `form_name` returned."""
        form = self.raw if name == RAW else self.chat
        assert form is not None
        return form


# ---- reading -----------------------------------------------------------------------------------------------


@cache
def load_protocol(name: str) -> Protocol:
    """Return a built-in protocol by its name, or read a person's own from a yaml file.

    Raises:
        UserError: no such protocol or file, or what is wrong with the file, all of it.
    """
    if name in PROTOCOLS:
        return _read(FOLDER / f"{name}.yaml", name)
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml"):
        guess = nearest(name, PROTOCOLS)
        hint = f"；是不是 {guess[0]}？" if guess else ""
        raise UserError(
            f"{FLAG} {shown(name)}：沒有這個協定，有的是 {'、'.join(PROTOCOLS)}，或自己的 .yaml 檔{hint}"
        )
    if not os.path.exists(path):  # not path.exists(), which fails on a name that is too long
        raise UserError(f"{FLAG} {shown(name)}：沒有這個檔案")
    return _read(path, path.name)


def _read(path: Path, name: str) -> Protocol:
    import yaml

    named = f"{FLAG} {path}"
    root = read_node(path, named, LARGEST)
    try:
        values = yaml.SafeLoader("").construct_document(root) if root else None
    except RecursionError:
        raise UserError(f"{named} 不是正確的 YAML：巢狀太深") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date of the 40th
        raise UserError(f"{named} 不是正確的 YAML{problem_of(error)}") from error
    problems = [f"{place}{shown(key)} 寫了兩次" for place, key in _twice(root)]
    settings = _checked(values, Protocol, "", problems, skipped=("name",))
    for form in (RAW, CHAT):
        if settings.get(form) is not None:
            settings[form] = _form(settings[form], form, problems)
    if not problems and not (settings.get(RAW) or settings.get(CHAT)):
        problems.append(f"要有 {RAW} 或 {CHAT}：怎麼寫題目（見 {FOLDER / 'lm-eval.yaml'}）")
    allowed = {
        "format": ("auto", RAW, CHAT), "aggregate": (MICRO, MACRO_4), "match": ("first", "last"),
        "too_long": (CUT_STEM, CUT_LEFT, SKIP),
    }  # fmt: skip
    for key, words in allowed.items():
        if settings.get(key, words[0]) not in words:
            problems.append(f"{key} 是 {shown(str(settings[key]))}，應為 {'、'.join(words)} 其中之一")
    for key, least, most in (("num_fewshot", 0, 100), ("runs", 1, 100)):
        if not least <= settings.get(key, least) <= most:
            problems.append(f"{key} 是 {settings[key]}，應為 {least} 到 {most}")
    _check_places("option", settings.get("option", "{letter}{text}"), ("letter", "text"), (), problems)
    problems += [
        f"reader：{problem}" for problem in map(_pattern_problem, settings.get("reader", ())) if problem
    ]
    if problems:
        raise UserError([f"{FLAG} {path}：{problem}" for problem in problems])
    return Protocol(name=name, **settings)


def _form(values: object, key: str, problems: list[str]) -> Form | None:
    """Return a form; None where something is wrong, which is added to `problems`."""
    count = len(problems)
    settings = _checked(values, Form, f"{key}.", problems)
    for name, (needed, optional) in PLACES.items():
        if name in settings:
            _check_places(f"{key}.{name}", settings[name], needed, optional, problems)
    methods = (LETTER, LOGLIKELIHOOD, GENERATE)
    if settings.get("scoring", LETTER) not in methods:
        problems.append(
            f"{key}.scoring 是 {shown(str(settings['scoring']))}，應為 {'、'.join(methods)} 其中之一"
        )
    if not 0 <= settings.get("max_new_tokens", 0) <= 1 << 20:
        problems.append(f"{key}.max_new_tokens 是 {settings['max_new_tokens']}，應為 0 以上的整數")
    return None if len(problems) > count else Form(**settings)


def _checked(
    values: object, kind: type, prefix: str, problems: list[str], skipped: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the known settings of the right type, by name; what is wrong is added to `problems`."""
    if not isinstance(values, dict):
        problems.append(f"{prefix.rstrip('.') or '內容'}應為「名稱: 值」一列一個")
        return {}
    known = {one.name: one for one in fields(kind) if one.name not in skipped}
    types: dict[str, tuple[type, str]] = {
        "str": (str, "文字"), "bool": (bool, "true 或 false"), "int": (int, "整數"),
        "tuple[str, ...]": (list, "一串文字"), "Mapping[str, str]": (dict, "「名稱: 文字」一列一個"),
        "Form | None": (dict, "「名稱: 值」一列一個"),
    }  # fmt: skip
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            guess = nearest(str(key), known)
            hint = f"，是不是 {guess[0]}？" if guess else f"，有的是 {'、'.join(known)}"
            problems.append(f"不認得 {prefix}{shown(str(key))}{hint}")
            continue
        wanted, title = types[str(known[key].type)]
        right = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
        if wanted is list:
            right = right and all(isinstance(part, str) for part in value)
        elif str(known[key].type).startswith("Mapping"):
            right = right and all(isinstance(part, str) for pair in value.items() for part in pair)
        if not right:
            got = "空的" if value is None else f" {shown(value if isinstance(value, str) else str(value))}"
            problems.append(f"{prefix}{key} 是{got}，應為{title}")
        elif SURROGATES.search(str(value) if isinstance(value, str) else "".join(_texts(value))):
            problems.append(f"{prefix}{key} 有落單的代理字元（surrogate），不是合法的 UTF-8")
        else:
            settings[key] = tuple(value) if wanted is list else value
    needed = {"Form": ("question",), "Protocol": ("title",)}[kind.__name__]
    problems += [f"少了 {prefix}{name}" for name in needed if name not in values]
    return settings


def _texts(value: object) -> list[str]:
    """Return the texts of a list or of a mapping."""
    parts = [text for pair in value.items() for text in pair] if isinstance(value, dict) else value
    return [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []


def _twice(root: Any) -> list[tuple[str, str]]:
    """Return (`form.`, key) of each key that a file or one of its forms holds twice."""
    if root is None or root.id != "mapping":
        return []
    inner = [(f"{key.value}.", value) for key, value in root.value if value.id == "mapping"]
    return [(place, key) for place, node in (("", root), *inner) for key in twice(node)]


def _check_places(
    key: str, text: str, needed: tuple[str, ...], optional: tuple[str, ...], problems: list[str]
) -> None:
    """Add to `problems` what is wrong with the placeholders of a text: each needed one once, no others."""
    found = PLACEHOLDER.findall(text)
    if sorted(name for name in found if name not in optional) != sorted(needed):
        must = " ".join(f"{{{name}}}" for name in needed) or "沒有"
        also = f"，可有 {' '.join(f'{{{name}}}' for name in optional)}" if optional else ""
        problems.append(f"{key} 的佔位符應各有一個 {must}{also}，沒有別的；得到 {shown(text)}")


def _pattern_problem(pattern: str) -> str:
    """Return what is wrong with a pattern of a reader, "" where nothing is."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        place = getattr(error, "pos", None)
        return f"{shown(pattern)} 不是正規表示式" + (
            f"（錯在第 {place + 1} 個字）" if place is not None else ""
        )
    return "" if groups == 1 else f"{shown(pattern)} 要有剛好一組括號（選項的字母），現在有 {groups} 組"


def filled(pattern: str, **values: str) -> str:
    """Fill the placeholders of a text in one pass, so that a `{stem}` inside a value stays text."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), pattern)
