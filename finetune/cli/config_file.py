"""YAML file of --config: flags and their values, as texts like those on the command line.

Only the YAML nodes are read, never converted to Python objects: `007` stays `007`, a tag runs nothing, and
anchors that refer to one another a billion times are never expanded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.runtime.errors import UserError, shown
from finetune.runtime.yaml_file import read_node, twice

LARGEST = 1 << 16  # bytes of the file: all flags of a script take 5,000
TAG = "tag:yaml.org,2002:"
PLAIN = {"", *(TAG + kind for kind in ("str", "int", "float", "bool", "timestamp", "value", "seq", "map"))}
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
KINDS = {"mapping": "「鍵: 值」", "sequence": "一串值"}


class NotTextError(ValueError):
    """Value that is neither a text nor a list of texts; the message is the reason.

    Args:
        reason: the message.
        empty: the value is missing.
        null: the value is missing and written as `null` or `~`.
    """

    def __init__(self, reason: str, empty: bool = False, null: bool = False):
        super().__init__(reason)
        self.empty, self.null = empty, null


def read(path: Path) -> list[tuple[str, int, str | NotTextError]]:
    """Read (key, line, value) of each entry; the values of a list are joined by commas.

    Raises:
        UserError: the file cannot be read, is not YAML, or is not a mapping.
    """
    import yaml

    named = f"--config {path}"
    root = read_node(path, named, LARGEST)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = KINDS["sequence"] if isinstance(root, yaml.SequenceNode) else "一個值"
        raise UserError(f"{named} 應該是「旗標: 值」的清單，得到{kind}")
    entries: list[tuple[str, int, str | NotTextError]] = []
    problems: list[str] = []
    for key, value in root.value:
        line = key.start_mark.line + 1
        name = shown(key.value) if key.id == "scalar" else KINDS[key.id]
        try:
            name = _text(key, "鍵")
        except NotTextError as error:
            problems.append(f"{named}：第 {line} 行的 {name}：{error}")
            continue
        try:
            entries.append((name, line, _value(value)))
        except NotTextError as error:
            entries.append((name, line, error))
    problems += [f"{named}：{shown(name)} 寫了兩次" for name in twice(root)]
    if problems:
        raise UserError(problems)
    return entries


def _value(node: Any) -> str:
    """Return the text of a value node, the texts of a list joined by commas. Raises NotTextError."""
    if node.id != "sequence":
        return _text(node, "值")
    if node.tag not in PLAIN:
        raise NotTextError(f"不收標籤 {shown(node.tag)}")
    return ",".join(_text(item, "一串值裡的每個值") for item in node.value)


def _text(node: Any, what: str) -> str:
    """Return the text of a node, named `what` in messages. Raises NotTextError."""
    if node.tag == TAG + "null" or (node.id == "scalar" and not node.value.strip() and not node.style):
        raise NotTextError(f"{what}是空的；不要這個旗標就刪掉這一行", True, bool(node.value.strip()))
    if node.tag == TAG + "merge" or node.tag not in PLAIN:
        raise NotTextError(f"不收標籤 {shown(node.tag)}")
    if node.id != "scalar":
        raise NotTextError(f"{what}應是文字或數，得到{KINDS[node.id]}")
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise NotTextError("有落單的代理字元（surrogate）") from None
    return node.value
