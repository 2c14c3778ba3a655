"""A row of chats or instructions as the turns of a conversation: who said what, and what is to be learnt.

    chat        messages, conversations, …: [{role, content}, …], [{from, value}, …], [{role, text}, …],
                [{human, assistant}, …], [[asked, answered], …]; as a list, or as JSON in a cell of a csv;
                `system` beside it comes first
    Alpaca      instruction, input, output; also system and history
    pairs       prompt + completion, question + answer, …; both may be lists of messages, as TRL has them
    preference  prompt, chosen, rejected: chosen is the answer
    tree        OASST: prompt {text, replies: [{text, replies}, …]}; the branch that was ranked first

Whatever is read in a way that a person may not expect is remarked, in words that can be counted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from finetune.runtime.errors import listed, shown
from finetune.runtime.strict_json import JsonError, decode

_NAMES = {
    "user": "user human prompter user_input question 使用者 用戶 用户 人類",
    "assistant": "assistant gpt bot model chatgpt chatbot ai bard bing claude answer 助理 助手 模型",
    "system": "system developer 系統 系统",
}
ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
TOOLS = {
    "tool", "tools", "tool_call", "tool_calls", "tool_response", "function", "function_call",
    "function_response", "observation", "ipython", "工具",
}  # fmt: skip

CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "對話")
INSTRUCTIONS = ("instruction", "指令", "指示")
ASKED = ("prompt", "query", "question", "problem", "inputs", "input", "問題", "提問", "提示")
FURTHER = ("input", "context", "輸入")  # what an instruction is about
ANSWERED = (
    "output", "completion", "response", "chosen", "answer", "solution", "targets", "target", "reply",
    "輸出", "回答", "回覆", "答案",
)  # fmt: skip
SYSTEMS = ("system", "system_prompt", "系統")
THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought", "complex_cot")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
WHO, SAID = ("role", "from", "speaker"), ("content", "value", "text")  # of a message
WEIGHTS = ("weight", "train", "training", "loss", "loss_scale")  # of a message: 0 or false is not taught
SWITCHES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
TEXT_PARTS = {"text", "input_text", "output_text", None}
WAYS = "instruction/output（Alpaca）、messages（對話）、文章/問題/選項1–4（閱讀）或 question/A/B…/answer"

LONGEST_REPR = 1 << 20  # characters of a list as Python writes it; of JSON there is no such bound


class Turn(NamedTuple):
    """What one said. `taught`: False of an answer that is context only; `marked`: its row says so."""

    role: str  # system, user or assistant
    content: str
    thought: str = ""
    taught: bool = True
    marked: bool = False


class UnusableRowError(ValueError):
    """Why a row has nothing to teach, though nothing is wrong with it."""


def check_taught(row: object) -> None:
    """Raises UnusableRowError where a row says of itself that it is not to be learnt."""
    row = _plain_names(row) if isinstance(row, dict) else {}
    if _switch(row.get("weight")) is False:
        raise UnusableRowError("weight 是 0 的列")
    if isinstance(mask := row.get("mask"), str) and ROLES.get(mask.strip().lower()) == "assistant":
        raise UnusableRowError("mask 說不教回答的列")
    if _filled(row, ("completion", *CHATS)) and str(row.get("label")).strip().lower() == "false":
        raise UnusableRowError("label 是 false（不要的回答）的列")


def is_told(row: object) -> bool:
    """True for a row that is a conversation, an instruction or a prompt, by its filled columns."""
    row = _plain_names(row) if isinstance(row, dict) else {}
    return bool(_filled(row, (*CHATS, *INSTRUCTIONS, "prompt", "query")))


def is_answered(row: object) -> bool:
    """True for a row that holds an answer in words beside what was asked, or a conversation."""
    row = _plain_names(row) if isinstance(row, dict) else {}
    asked = _filled(row, (*INSTRUCTIONS, *ASKED))
    return bool(_filled(row, CHATS) or (asked and _filled(row, ANSWERED)))


def is_talk(row: dict) -> bool:
    """True for a row that is a conversation or an answered instruction, however like a question it looks."""
    row = _plain_names(row)
    replied = [name for name in ANSWERED if name not in ("answer", "solution", "答案")]
    return bool(_filled(row, CHATS) or (_filled(row, INSTRUCTIONS) and _filled(row, replied)))


def turns_of(row: object, remarks: set[str]) -> list[Turn]:
    """The conversation of a row, without an answer of `""` where none is given.

    Args:
        remarks: what was read in a way that is to be told is added here.

    Raises:
        ValueError: with the reason in Chinese.
    """
    if isinstance(row, list) and row and isinstance(row[0], dict):
        row = {"messages": row}  # a file of conversations without names
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    given = _plain_names(row)
    _check_row(given, remarks)
    system = [Turn("system", _text(given, name).strip()) for name in _filled(given, SYSTEMS)[:1]]
    if chats := _filled(given, CHATS):
        turns = _chat(chats[0], given[chats[0]], remarks)
        if turns[-1].role == "user" and _filled(given, ("chosen",)):
            turns = _answer(given, turns, remarks)
    elif isinstance(given.get("prompt"), dict):
        turns = _branch(given["prompt"], remarks)
    elif {*CHATS} & given.keys() and not _filled(given, (*INSTRUCTIONS, *ASKED)):
        raise ValueError("messages 應該是一串 {role, content}")
    else:
        turns = _pair(given, row, remarks)
    return _joined(_weighed([*system, *turns], remarks), remarks)


# ---- the row -----------------------------------------------------------------------------------------------


def _plain_names(row: dict) -> dict:
    """The row with its columns in small letters; of two that differ in nothing else, the first one."""
    plain: dict = {}
    for name, value in row.items():
        plain.setdefault(str(name).strip().lower(), value)
    return plain


def _is_filled(value: object) -> bool:
    if value is None or value != value:  # NaN is not itself
        return False
    return value.strip() not in ("", "[]", "{}", "null") if isinstance(value, str) else value not in ([], {})


def _filled(row: dict, names: Iterable[str]) -> list[str]:
    return [name for name in names if _is_filled(row.get(name))]


def _text(row: dict, name: str) -> str:
    value = row.get(name)
    if value is None or value != value:
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError(f"{name} 應該是文字，得到 {type(value).__name__}")
    return str(value)


def _check_row(row: dict, remarks: set[str]) -> None:
    """What stands beside the conversation and changes what it means."""
    alone = "role" in row and _filled(row, SAID) and not _filled(row, (*CHATS, *INSTRUCTIONS, *ASKED))
    if alone or {"message_id", "parent_id"} <= row.keys():
        raise ValueError("一列只有一則訊息；請把同一場對話的訊息依序放進一列的 messages")
    if media := _filled(row, MEDIA):
        raise ValueError(f"有 {media[0]}（圖片、影音），只教文字")
    if tools := _filled(row, ("tools", "functions")):
        remarks.add(f"{tools[0]}（工具的說明）不放進提示")
    if _filled(row, ("weight",)) and _switch(row["weight"]) is None:
        remarks.add("整列的 weight 不看，每列一樣重")


def _listed(value: object, name: str) -> list | None:
    """A list, also where a cell holds it as JSON or as Python writes it, or where each key has a list of its
    own, as `datasets` keeps a sequence of objects; None where it is none.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        if len({len(one) for one in value.values()}) > 1:
            raise ValueError(f"{name} 裡的幾串不一樣長")
        return [dict(zip(value, one, strict=True)) for one in zip(*value.values(), strict=True)]
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith("["):
        return None
    try:
        found = decode(text)
    except JsonError as error:
        try:
            found = ast.literal_eval(text) if len(text) <= LONGEST_REPR else None
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if found is None:
            raise ValueError(f"{name} 裡的一串讀不出來：{error}") from error
    return found if isinstance(found, list) else None


# ---- layouts -----------------------------------------------------------------------------------------------


def _pair(row: dict, given: dict, remarks: set[str]) -> list[Turn]:
    """Something asked and its answer, each in a column of its own."""
    if not {*INSTRUCTIONS, *ASKED} & row.keys():
        if _filled(row, ("chosen",)):  # a preference whose prompt is part of the conversation
            return _answer(row, [], remarks)
        raise ValueError(f"欄位是 {listed(given)}；要有 {WAYS}")
    if {"a", "b"} <= row.keys() or _filled(row, ("choices", "options")):
        raise ValueError(f"欄位是 {listed(given)}；選擇題要有 question、A、B…、answer")
    found = _filled(row, (*INSTRUCTIONS, *ASKED))
    if not found:
        raise ValueError(f"{next(name for name in (*INSTRUCTIONS, *ASKED) if name in row)} 是空的")
    asked, further = found[0], [name for name in _filled(row, FURTHER) if name != found[0]]
    if unread := [name for name in found[1:] if name not in further]:
        remarks.add(f"只看 {asked} 欄，不看 {'、'.join(unread)}")
    if (turns := _messages(row[asked], asked, remarks)) is None:
        text = _text(row, asked)
        if further or asked in (*INSTRUCTIONS, *FURTHER):
            text = "\n\n".join(_text(row, name).strip() for name in (asked, *further))
        if further and asked not in INSTRUCTIONS:
            remarks.add(f"{'、'.join(further)} 接在 {asked} 後面")
        turns = [Turn("user", text)]
    return _answer(row, [*_history(row, remarks), *turns], remarks)


def _answer(row: dict, asked: list[Turn], remarks: set[str]) -> list[Turn]:
    """The conversation with the answer of a pair."""
    name = next(iter(found := _filled(row, ANSWERED)), "")
    if found[1:]:
        remarks.add(f"只教 {name} 欄，不看 {'、'.join(found[1:])}")
    if _filled(row, ("rejected",)):
        remarks.add(f"偏好資料：只教 {name or 'chosen'}，不看 rejected")
    messages = _messages(row.get(name), name, remarks)
    if messages is not None:
        again = messages[: len(asked)] == asked  # the answer may repeat what it answers
        return messages if again else [*asked, *messages]
    if not asked:
        raise ValueError(f"欄位是 {listed(row)}；{name} 要有 prompt 欄，或是一串 {{role, content}}")
    thought = next((_text(row, column).strip() for column in _filled(row, THOUGHTS)), "")
    return [*asked, Turn("assistant", _text(row, name).strip() if name else "", thought)]


def _history(row: dict, remarks: set[str]) -> list[Turn]:
    """Earlier turns beside an instruction: pairs, or messages."""
    if not _filled(row, ["history"]):
        return []
    turns = _listed(row["history"], "history")
    try:
        if turns is None:
            raise ValueError
        return _turns(turns, "history", remarks)
    except ValueError as error:
        if str(error) and any(isinstance(one, dict) for one in turns):
            raise
        raise ValueError("history 應該是一串 [問, 答]") from error


def _messages(value: object, name: str, remarks: set[str]) -> list[Turn] | None:
    """The turns where a column holds messages; None where it holds a text."""
    if isinstance(value, str):
        if "role" not in value and "from" not in value:
            return None
        try:
            value = _listed(value, name)
        except ValueError:  # a text that begins with a bracket
            return None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, dict) for one in value):
        return None
    return _turns(value, name, remarks)


def _chat(name: str, value: object, remarks: set[str]) -> list[Turn]:
    found = _listed(value, name)
    if not found:
        raise ValueError(f"{name} 應該是一串 {{role, content}}")
    turns = _turns(found, name, remarks)
    if "user" not in [turn.role for turn in turns]:
        raise ValueError("沒有使用者的訊息")
    return turns


def _turns(found: Sequence, name: str, remarks: set[str]) -> list[Turn]:
    turns: list[Turn] = []
    for message in found:
        if isinstance(message, (list, tuple)) and len(message) == 2:
            texts = ("" if one is None else str(one) for one in message)
            turns += map(Turn, ("user", "assistant"), texts)
        elif not isinstance(message, dict):
            raise ValueError(f"{name} 應該是一串 {{role, content}}")
        elif message.keys() & {*WHO}:
            turns.append(_turn(_plain_names(message), remarks))
        elif _is_filled(message) and {*message} <= {*ROLES}:  # {human, assistant}
            turns += [Turn(ROLES[who], _text(message, who)) for who in sorted(message, key=_speaks)]
        else:
            raise ValueError(f"{name} 裡有一則沒有 role（或 from）：{shown(message)}")
    return turns


def _speaks(who: str) -> int:
    return ("system", "user", "assistant").index(ROLES[who])


def _branch(node: dict, remarks: set[str]) -> list[Turn]:
    """The conversation of a tree along the replies that were ranked first."""
    turns = []
    while isinstance(node, dict):
        turns.append(_turn(node, remarks))
        replies = [one for one in node.get("replies") or () if isinstance(one, dict)]
        if len(replies) > 1:
            remarks.add("對話樹只取排名最前的一支")
        replies.sort(key=lambda one: one.get("rank") if isinstance(one.get("rank"), int) else 1 << 30)
        node = replies[0] if replies else None
    return turns


# ---- messages ----------------------------------------------------------------------------------------------


def _turn(message: dict, remarks: set[str]) -> Turn:
    named = next(message[key] for key in WHO if key in message) if message.keys() & {*WHO} else None
    who = named.strip().lower() if isinstance(named, str) else ""
    if who in TOOLS:
        raise ValueError(f"有工具的訊息（角色 {shown(named)}），這裡不教工具的對話")
    role = ROLES.get(who)
    if role is None:
        raise ValueError(f"不認得角色 {shown(named)}，要是 {'、'.join(_NAMES)}")
    if called := _filled(message, ("tool_calls", "function_call")):
        raise ValueError(f"{role} 呼叫了工具（{called[0]}），這裡不教工具的對話")
    if who == "developer":
        remarks.add("developer 當作 system")
    content, thought = _content(role, message)
    for key in _filled(message, THOUGHTS):
        if not isinstance(message[key], str):
            raise ValueError(f"{role} 的 {key} 應該是文字")
        thought = thought or message[key].strip()
    taught = _taught(role, message, remarks)
    return Turn(role, content, thought if role == "assistant" else "", taught, not taught)


def _content(role: str, message: dict) -> tuple[str, str]:
    """What is said, and what was thought before, where the content is made of parts."""
    value = next((message[key] for key in SAID if key in message), None)
    if isinstance(value, str):
        return value, ""
    if value is None and role == "assistant":
        return "", ""
    if not isinstance(value, list):
        raise ValueError(f"{role} 的 content 應該是文字")
    texts, thoughts = [], []
    for part in value:
        part = {"text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind in ("thinking", "reasoning") and isinstance(part.get(kind, part.get("text")), str):
            thoughts.append(part.get(kind, part.get("text")))
        elif isinstance(part, dict) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"{role} 的 content 裡有 {shown(kind)}，只教文字（type 是 text 的部分）")
    return "".join(texts), "\n".join(thoughts)


def _switch(value: object) -> bool | None:
    """Yes or no, also as a number or as text; None of anything else."""
    return SWITCHES.get(str(value).strip().lower())


def _taught(role: str, message: dict, remarks: set[str]) -> bool:
    """False where a message says that it is not to be learnt."""
    if _filled(message, ("train_detail",)):
        raise ValueError(f"{role} 的 train_detail（只教一句的一部分）不支援；請拆開，或用 train: true/false")
    said = {}
    for key in _filled(message, WEIGHTS):
        said[key] = _switch(message[key])
        if said[key] is None:
            raise ValueError(f"{role} 的 {key} 是 {shown(message[key])}：只能是 0（不教）或 1（教）")
    if _filled(message, ("mask",)):
        mask = _switch(message["mask"])
        if mask is None or str(message["mask"]).strip().lower() in ("0", "1", "0.0", "1.0"):
            what = shown(message["mask"])
            raise ValueError(f"{role} 的 mask 是 {what}：看不出是不教還是要教；請改寫 train: false 或 true")
        said["mask"] = not mask
    if role != "assistant":
        if True in said.values():
            remarks.add(f"標了要教（{'、'.join(said)}）的使用者或 system 的話：只教回答，不教這些")
        return True
    if False in said.values():
        remarks.add(f"標了不教（{'、'.join(said)}）的回答只當上文")
        return False
    return True


# ---- the conversation --------------------------------------------------------------------------------------


def _weighed(turns: list[Turn], remarks: set[str]) -> list[Turn]:
    """The turns; an answer that nobody asked for, or that says nothing, is context."""
    asked, found = False, []
    for turn in turns:
        asked = asked or turn.role == "user"
        if turn.role == "user" and not turn.content.strip():
            remarks.add("使用者的話是空的")
        if turn.role == "assistant" and turn.taught:
            empty = not (turn.content.strip() or turn.thought)
            if empty and turn is not turns[-1]:
                remarks.add("空的回答不教")
            elif not asked:
                remarks.add("模型先開口的話（招呼）只當上文，不教")
            turn = turn._replace(taught=asked and not empty)
        found.append(turn)
    return found


def _joined(turns: list[Turn], remarks: set[str]) -> list[Turn]:
    """The turns with what one and the same said in a row made one."""
    found: list[Turn] = []
    for turn in turns:
        last = found[-1] if found else None
        if last == turn and turn.role == "system":
            continue  # a column says what the conversation begins with
        if last and (last.role, *last[3:]) == (turn.role, *turn[3:]):
            remarks.add("同一個角色連說幾則：接成一則")
            texts = (("\n\n".join(filter(None, pair))) for pair in zip(last[1:3], turn[1:3], strict=True))
            found[-1] = Turn(turn.role, *texts, *turn[3:])
        else:
            found.append(turn)
    return found
