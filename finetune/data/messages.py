"""Messages of a conversation: who speaks, what is said, and whether an answer is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from finetune.runtime.errors import shown

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

THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought", "complex_cot")
ROLE_KEYS = ("role", "from", "speaker")  # keys of a message
CONTENTS = ("content", "value", "text")
WEIGHTS = ("weight", "train", "training", "loss", "loss_scale")  # 0 or false: left out of the loss
SWITCHES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
TEXT_PARTS = ("text", "input_text", "output_text", None)  # types of the parts that are text


class Turn(NamedTuple):
    """One turn of a conversation.

    Attributes:
        trained: False for an answer that is context only.
        marked: the row says that the answer is not trained on.
    """

    role: str  # system, user or assistant
    content: str
    thought: str = ""
    trained: bool = True
    marked: bool = False


# ---- cells -------------------------------------------------------------------------------------------------


def lower_names(row: dict) -> dict[str, Any]:
    """Return the row with lower-case column names; of two that differ only in case, the first is kept."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        plain.setdefault(str(name).strip().lower(), value)
    return plain


def is_filled(value: object) -> bool:
    """Return whether a cell holds anything."""
    if value is None or value != value:  # NaN is not itself
        return False
    return value.strip() not in ("", "[]", "{}", "null") if isinstance(value, str) else value not in ([], {})


def filled(row: dict, names: Iterable[str]) -> list[str]:
    """Return those of the columns that hold anything."""
    return [name for name in names if is_filled(row.get(name))]


# ---- messages ----------------------------------------------------------------------------------------------


def parse_message(message: dict, remarks: set[str]) -> Turn:
    """Return a message as a turn.

    Raises:
        ValueError: an unknown role, a tool call, or content that is no text.
    """
    role_name = (
        next(message[key] for key in ROLE_KEYS if key in message) if message.keys() & {*ROLE_KEYS} else None
    )
    role_key = role_name.strip().lower() if isinstance(role_name, str) else ""
    if role_key in TOOLS:
        raise ValueError(f"有工具的訊息（角色 {shown(role_name)}），不支援工具的對話")
    role = ROLES.get(role_key)
    if role is None:
        raise ValueError(f"不認得角色 {shown(role_name)}，要是 {'、'.join(_NAMES)}")
    if calls := filled(message, ("tool_calls", "function_call")):
        raise ValueError(f"{role} 呼叫了工具（{calls[0]}），不支援工具的對話")
    if role_key == "developer":
        remarks.add("developer 當作 system")
    content, thought = _content(role, message)
    for key in filled(message, THOUGHTS):
        if not isinstance(message[key], str):
            raise ValueError(f"{role} 的 {key} 應該是文字")
        thought = thought or message[key].strip()
    trained = _is_trained(role, message, remarks)
    return Turn(role, content, thought if role == "assistant" else "", trained, not trained)


def _content(role: str, message: dict) -> tuple[str, str]:
    """Return the text of a message, and the reasoning before it where the content is made of parts."""
    value = next((message[key] for key in CONTENTS if key in message), None)
    if isinstance(value, str):
        return value, ""
    if value is None and role == "assistant":
        return "", ""
    if not isinstance(value, list):
        raise ValueError(f"{role} 的 content 應該是文字")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        part = {"text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        is_thought, text = kind in ("thinking", "reasoning"), None
        if isinstance(part, dict) and (is_thought or kind in TEXT_PARTS):
            text = part.get(kind, part.get("text")) if is_thought else part.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{role} 的 content 裡有 {shown(kind)}，只支援文字（type 是 text 的部分）")
        (thoughts if is_thought else texts).append(text)
    return "".join(texts), "\n".join(thoughts)


def as_switch(value: object) -> bool | None:
    """Return yes or no, which may be a number or a text; None for anything else."""
    return SWITCHES.get(str(value).strip().lower())


def _is_trained(role: str, message: dict, remarks: set[str]) -> bool:
    """Return False where a message is marked as not to be trained on.

    Raises:
        ValueError: the mark is unclear.
    """
    if filled(message, ("train_detail",)):
        raise ValueError(
            f"{role} 的 train_detail（只訓練一句的一部分）不支援；請拆開，或用 train: true/false"
        )
    marks: dict[str, bool] = {}
    for key in filled(message, WEIGHTS):
        trained = as_switch(message[key])
        if trained is None:
            raise ValueError(f"{role} 的 {key} 是 {shown(message[key])}：只能是 0（不訓練）或 1（訓練）")
        marks[key] = trained
    if filled(message, ("mask",)):
        mask = as_switch(message["mask"])
        if mask is None or str(message["mask"]).strip().lower() in ("0", "1", "0.0", "1.0"):
            value = shown(message["mask"])
            raise ValueError(
                f"{role} 的 mask 是 {value}：看不出是不訓練還是要訓練；請改寫 train: false 或 true"
            )
        marks["mask"] = not mask
    if role != "assistant":
        if True in marks.values():
            remarks.add(f"標了要訓練（{'、'.join(marks)}）的使用者或 system 的話：只訓練回答，不訓練這些")
        return True
    if False in marks.values():
        remarks.add(f"標了不訓練（{'、'.join(marks)}）的回答只當上文")
        return False
    return True


# ---- the conversation --------------------------------------------------------------------------------------


def mark_trained(turns: list[Turn], remarks: set[str]) -> list[Turn]:
    """Mark answers as context only where they precede the first prompt or are empty."""
    user_spoke = False
    marked: list[Turn] = []
    for turn in turns:
        user_spoke = user_spoke or turn.role == "user"
        if turn.role == "user" and not turn.content.strip():
            remarks.add("使用者的話是空的")
        if turn.role == "assistant" and turn.trained:
            empty = not (turn.content.strip() or turn.thought)
            if empty and turn is not turns[-1]:
                remarks.add("空的回答不訓練")
            elif not user_spoke:
                remarks.add("模型先開口的話（招呼）只當上文，不訓練")
            turn = turn._replace(trained=user_spoke and not empty)
        marked.append(turn)
    return marked


def merge_same_role(turns: list[Turn], remarks: set[str]) -> list[Turn]:
    """Merge consecutive turns of one role."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last == turn and turn.role == "system":
            continue  # a column repeats the system message of the conversation
        if last and (last.role, *last[3:]) == (turn.role, *turn[3:]):
            remarks.add("同一個角色連續幾則訊息：併成一則")
            content = "\n\n".join(filter(None, (last.content, turn.content)))
            thought = "\n\n".join(filter(None, (last.thought, turn.thought)))
            merged[-1] = turn._replace(content=content, thought=thought)
        else:
            merged.append(turn)
    return merged
