"""Rows of chats or instructions as the turns of a conversation, with which turns are trained on.

    chat        messages, conversations, …: [{role, content}, …], [{from, value}, …], [{role, text}, …],
                [{human, assistant}, …], [[prompt, answer], …]; as a list, or as JSON in a cell of a csv;
                `system` beside it comes first
    Alpaca      instruction, input, output; also system and history
    pairs       prompt + completion, question + answer, …; both may be lists of messages, as TRL has them
    preference  prompt, chosen, rejected: chosen is the answer
    tree        OASST: prompt {text, replies: [{text, replies}, …]}; the branch ranked first

Every reading that a person may not expect adds a remark, in words that can be counted.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from finetune.data.messages import (
    CONTENTS,
    ROLE_KEYS,
    ROLES,
    THOUGHTS,
    Turn,
    as_switch,
    filled,
    is_filled,
    lower_names,
    mark_trained,
    merge_same_role,
    parse_message,
)
from finetune.runtime.errors import listed, shown
from finetune.runtime.strict_json import JsonError, decode

CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "對話")
INSTRUCTIONS = ("instruction", "指令", "指示")
PROMPTS = ("prompt", "query", "question", "problem", "inputs", "input", "問題", "提問", "提示")
INPUTS = ("input", "context", "輸入")  # columns that an instruction is about
ANSWERS = (
    "output", "completion", "response", "chosen", "answer", "solution", "targets", "target", "reply",
    "輸出", "回答", "回覆", "答案",
)  # fmt: skip
SYSTEMS = ("system", "system_prompt", "系統")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
WAYS = "instruction/output（Alpaca）、messages（對話）、文章/問題/選項1–4（閱讀）或 question/A/B…/answer"

LONGEST_REPR = 1 << 20  # characters of a list as Python writes it; of JSON there is no such bound


class UnusableRowError(ValueError):
    """A row has nothing to train on, though nothing is wrong with it; the reason in Chinese."""


def check_trainable(row: object) -> None:
    """Raise UnusableRowError where a row marks itself as not for training."""
    row = lower_names(row) if isinstance(row, dict) else {}
    if as_switch(row.get("weight")) is False:
        raise UnusableRowError("weight 是 0 的列")
    if isinstance(mask := row.get("mask"), str) and ROLES.get(mask.strip().lower()) == "assistant":
        raise UnusableRowError("mask 標了不訓練回答的列")
    if filled(row, ("completion", *CHATS)) and str(row.get("label")).strip().lower() == "false":
        raise UnusableRowError("label 是 false（不要的回答）的列")


def is_chat(row: object) -> bool:
    """Return whether the filled columns make a row a conversation, an instruction or a prompt."""
    row = lower_names(row) if isinstance(row, dict) else {}
    return bool(filled(row, (*CHATS, *INSTRUCTIONS, "prompt", "query")))


def is_answered(row: object) -> bool:
    """Return whether a row holds a prompt with a written answer, or a conversation."""
    row = lower_names(row) if isinstance(row, dict) else {}
    prompts = filled(row, (*INSTRUCTIONS, *PROMPTS))
    return bool(filled(row, CHATS) or (prompts and filled(row, ANSWERS)))


def is_answered_chat(row: dict) -> bool:
    """Return whether a row is a conversation or an answered instruction, even if it looks like a question."""
    row = lower_names(row)
    replies = [name for name in ANSWERS if name not in ("answer", "solution", "答案")]
    return bool(filled(row, CHATS) or (filled(row, INSTRUCTIONS) and filled(row, replies)))


def turns_of(row: object, remarks: set[str]) -> list[Turn]:
    """Return the conversation of a row, with an empty last answer where the row has none.

    Args:
        remarks: readings that a person should know of are added here.

    Raises:
        ValueError: with the reason in Chinese.
    """
    if isinstance(row, list) and row and isinstance(row[0], dict):
        row = {"messages": row}  # a file of conversations without names
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    columns = lower_names(row)
    _check_row(columns, remarks)
    system = [Turn("system", _text(columns, name).strip()) for name in filled(columns, SYSTEMS)[:1]]
    if chats := filled(columns, CHATS):
        turns = _chat(chats[0], columns[chats[0]], remarks)
        if turns[-1].role == "user" and filled(columns, ("chosen",)):
            turns = _answer(columns, turns, remarks)
    elif isinstance(columns.get("prompt"), dict):
        turns = _best_branch(columns["prompt"], remarks)
    elif {*CHATS} & columns.keys() and not filled(columns, (*INSTRUCTIONS, *PROMPTS)):
        raise ValueError("messages 應該是一串 {role, content}")
    else:
        turns = _pair(columns, row, remarks)
    return merge_same_role(mark_trained([*system, *turns], remarks), remarks)


# ---- the row -----------------------------------------------------------------------------------------------


def _text(row: dict, name: str) -> str:
    """Return the text of a cell.

    Raises:
        ValueError: it holds a list or an object.
    """
    value = row.get(name)
    if value is None or value != value:
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError(f"{name} 應該是文字，得到 {type(value).__name__}")
    return str(value)


def _check_row(row: dict, remarks: set[str]) -> None:
    """Check what stands beside the conversation and changes its meaning.

    Raises:
        ValueError: the row is one message, or has pictures or sound.
    """
    alone = "role" in row and filled(row, CONTENTS) and not filled(row, (*CHATS, *INSTRUCTIONS, *PROMPTS))
    if alone or {"message_id", "parent_id"} <= row.keys():
        raise ValueError("一列只有一則訊息；請把同一場對話的訊息依序放進一列的 messages")
    if media := filled(row, MEDIA):
        raise ValueError(f"有 {media[0]}（圖片、影音），只支援文字")
    if tools := filled(row, ("tools", "functions")):
        remarks.add(f"{tools[0]}（工具的說明）不放進提示")
    if filled(row, ("weight",)) and as_switch(row["weight"]) is None:
        remarks.add("整列的 weight 不看，每列一樣重")


def _as_list(value: object, name: str) -> list[Any] | None:
    """Return a cell as a list, or None where it is none.

    A list may also be written as JSON or as Python, or be an object with a list for each key, as `datasets`
    keeps a sequence of objects.

    Raises:
        ValueError: a written list cannot be read, or the lists of the keys differ in length.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            raise ValueError(f"{name} 裡的幾串不一樣長")
        return [dict(zip(value, column, strict=True)) for column in zip(*value.values(), strict=True)]
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith("["):
        return None
    try:
        values = decode(text)
    except JsonError as error:
        try:
            values = ast.literal_eval(text) if len(text) <= LONGEST_REPR else None
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
        if values is None:
            raise ValueError(f"{name} 裡的一串讀不出來：{error}") from error
    return values if isinstance(values, list) else None


# ---- layouts -----------------------------------------------------------------------------------------------


def _pair(row: dict, original: dict, remarks: set[str]) -> list[Turn]:
    """Return the turns of a prompt and its answer, each in a column of its own."""
    if not {*INSTRUCTIONS, *PROMPTS} & row.keys():
        if filled(row, ("chosen",)):  # a preference whose prompt is part of the conversation
            return _answer(row, [], remarks)
        raise ValueError(f"欄位是 {listed(original)}；要有 {WAYS}")
    if {"a", "b"} <= row.keys() or filled(row, ("choices", "options")):
        raise ValueError(f"欄位是 {listed(original)}；選擇題要有 question、A、B…、answer")
    prompts = filled(row, (*INSTRUCTIONS, *PROMPTS))
    if not prompts:
        raise ValueError(f"{next(name for name in (*INSTRUCTIONS, *PROMPTS) if name in row)} 是空的")
    prompt, inputs = prompts[0], [name for name in filled(row, INPUTS) if name != prompts[0]]
    if ignored := [name for name in prompts[1:] if name not in inputs]:
        remarks.add(f"只看 {prompt} 欄，不看 {'、'.join(ignored)}")
    if (turns := _messages(row[prompt], prompt, remarks)) is None:
        text = _text(row, prompt)
        if inputs or prompt in (*INSTRUCTIONS, *INPUTS):
            text = "\n\n".join(_text(row, name).strip() for name in (prompt, *inputs))
        if inputs and prompt not in INSTRUCTIONS:
            remarks.add(f"{'、'.join(inputs)} 接在 {prompt} 後面")
        turns = [Turn("user", text)]
    return _answer(row, [*_history(row, remarks), *turns], remarks)


def _answer(row: dict, prompt: list[Turn], remarks: set[str]) -> list[Turn]:
    """Append the answer of a pair to its prompt."""
    name = next(iter(answers := filled(row, ANSWERS)), "")
    if answers[1:]:
        remarks.add(f"只訓練 {name} 欄，不看 {'、'.join(answers[1:])}")
    if filled(row, ("rejected",)):
        remarks.add(f"偏好資料：只訓練 {name or 'chosen'}，不看 rejected")
    messages = _messages(row.get(name), name, remarks)
    if messages is not None:
        repeats_prompt = messages[: len(prompt)] == prompt  # the answer may repeat what it answers
        return messages if repeats_prompt else [*prompt, *messages]
    if not prompt:
        raise ValueError(f"欄位是 {listed(row)}；{name} 要有 prompt 欄，或是一串 {{role, content}}")
    reasoning = next((_text(row, column).strip() for column in filled(row, THOUGHTS)), "")
    return [*prompt, Turn("assistant", _text(row, name).strip() if name else "", reasoning)]


def _history(row: dict, remarks: set[str]) -> list[Turn]:
    """Return the earlier turns beside an instruction: pairs, or messages."""
    if not filled(row, ["history"]):
        return []
    turns = _as_list(row["history"], "history")
    not_pairs = ValueError("history 應該是一串 [問, 答]")
    if turns is None:
        raise not_pairs
    try:
        return _turns(turns, "history", remarks)
    except ValueError as error:
        if any(isinstance(one, dict) for one in turns):
            raise
        raise not_pairs from error


def _messages(value: object, name: str, remarks: set[str]) -> list[Turn] | None:
    """Return the turns of a column that holds messages, or None where it holds a text."""
    if isinstance(value, str):
        if "role" not in value and "from" not in value:
            return None
        try:
            value = _as_list(value, name)
        except ValueError:  # a text that begins with a bracket
            return None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, dict) for one in value):
        return None
    return _turns(value, name, remarks)


def _chat(name: str, value: object, remarks: set[str]) -> list[Turn]:
    """Return the turns of a column of messages.

    Raises:
        ValueError: it holds no messages, or none by the user.
    """
    messages = _as_list(value, name)
    if not messages:
        raise ValueError(f"{name} 應該是一串 {{role, content}}")
    turns = _turns(messages, name, remarks)
    if "user" not in [turn.role for turn in turns]:
        raise ValueError("沒有使用者的訊息")
    return turns


def _turns(messages: Sequence[Any], name: str, remarks: set[str]) -> list[Turn]:
    """Return messages of any layout as turns."""
    turns: list[Turn] = []
    for message in messages:
        if isinstance(message, (list, tuple)) and len(message) == 2:
            prompt, answer = ("" if text is None else str(text) for text in message)
            turns += [Turn("user", prompt), Turn("assistant", answer)]
        elif not isinstance(message, dict):
            raise ValueError(f"{name} 應該是一串 {{role, content}}")
        elif message.keys() & {*ROLE_KEYS}:
            turns.append(parse_message(lower_names(message), remarks))
        elif is_filled(message) and {*message} <= {*ROLES}:  # {human, assistant}
            turns += [Turn(ROLES[key], _text(message, key)) for key in sorted(message, key=_role_order)]
        else:
            raise ValueError(f"{name} 裡有一則沒有 role（或 from）：{shown(message)}")
    return turns


def _role_order(key: str) -> int:
    """Return the place of a role among those of one object, {system, human, assistant}."""
    return ("system", "user", "assistant").index(ROLES[key])


def _best_branch(node: dict, remarks: set[str]) -> list[Turn]:
    """Return the conversation of a tree along the replies ranked first."""
    turns = [parse_message(node, remarks)]
    while replies := [reply for reply in node.get("replies") or () if isinstance(reply, dict)]:
        if len(replies) > 1:
            remarks.add("對話樹只取排名最前的一支")
        node = min(replies, key=_rank)
        turns.append(parse_message(node, remarks))
    return turns


def _rank(reply: dict) -> int:
    """Return the rank of a reply; those without one come last."""
    rank = reply.get("rank")
    return rank if isinstance(rank, int) else 1 << 30
