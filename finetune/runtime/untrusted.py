"""Checks of untrusted model folders, made before any library opens their files. Imports nothing heavy.

Nothing in a folder may lead out of it, and code inside it is never run. The files of a model may only name
files of the same folder: shards of weights, vocabularies, chat templates. transformers joins such names to
the folder's path without looking for `..`, and follows every link.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.runtime import limits
from finetune.runtime.console import plain
from finetune.runtime.errors import UserError
from finetune.runtime.limits import entries, read

ADAPTER = "adapter_config.json"
INDEX, PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
CODE = ("config.json", "tokenizer_config.json")  # files whose `auto_map` names code that comes with a model
TEMPLATES = "additional_chat_templates"  # the only subfolder of a model that transformers reads
# Old versions of transformers wrote a local path of the author here; thousands of models have it, no code
# reads it.
UNREAD = ("special_tokens_map_file",)
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes, limits of file systems


def check_folder(name: str, flag: str, folder: Path | None = None) -> None:
    """Check the folder of a model or an adapter.

    Args:
        name: the model, a path or a hub name.
        flag: that the name was given to, for the message.
        folder: the downloaded files of a model on the hub.

    Raises:
        UserError: lists every file that leads out of the folder, and everything above its limit.
    """
    folder = folder or Path(name).expanduser()
    if problems := limits.check_sizes(folder, f"{flag} {name}"):
        raise UserError(problems)
    problems = [
        f"{flag} {name}：{link} 是一個連到資料夾外面的連結（{target}），不跟著讀；請換成檔案本身"
        for link, target in _links_out(folder)
    ]
    for index in (INDEX, PICKLED_INDEX):
        problems += check_index(folder / index, f"{flag} {name}")
    tokenizer_config = read(folder / "tokenizer_config.json")
    for key, value in sorted(tokenizer_config.items()):
        if key.endswith(("_file", "_files")) and key not in UNREAD:
            problems += [
                f"{flag} {name}：tokenizer_config.json 的 {key} 是 {str(file)[:80]!r}，指到資料夾外面，不載入"
                for file in (value if isinstance(value, list) else [value])
                if file is not None and not stays_inside(file)
            ]
    config = read(folder / "config.json")
    problems += check_config(config, f"{flag} {name}")
    problems += limits.check_tokens(folder, tokenizer_config, config, f"{flag} {name}")
    if not problems:
        problems += limits.check_weights(folder, config, f"{flag} {name}")
    problems += limits.check_numbers(
        read(folder / "generation_config.json"), f"{flag} {name}：generation_config.json"
    )
    problems += limits.check_adapter(folder, read(folder / ADAPTER), f"{flag} {name}：{ADAPTER}")
    if problems:
        raise UserError(problems)


def check_index(index: Path, what: str) -> list[str]:
    """List what is wrong with the index of a model's shards; [] where there is no index.

    Args:
        index: the index file.
        what: flag and name of the model, for the message.
    """
    if not index.is_file():
        return []
    shards = read(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        return [f"{what}：{index.name} 讀不懂：應有 weight_map，記載每個張量在哪個檔案"]
    folder = index.parent
    root, files = _root(folder), sorted(set(shards.values()))
    if len(files) > limits.SHARDS:
        excess = f"{index.name} 的 'weight_map' 列了 {len(files):,} 個權重檔"
        return [f"{what}：{excess}，上限是 {limits.SHARDS:,}，不載入"]
    for file in files:
        if not stays_inside(file) or not _resolve(folder / file).is_relative_to(root):
            return [f"{what}：{index.name} 的權重檔 {file[:80]!r} 在資料夾外面，不載入"]
        if index.name == INDEX and not file.endswith(".safetensors"):
            return [f"{what}：{index.name} 的權重檔 {file[:80]!r} 不是 safetensors，不載入"]
    return []


def check_config(config: dict[str, Any], what: str) -> list[str]:
    """List what a model's configuration requests in vain.

    That is an attention kernel from elsewhere, weights under a name of its own, or a billion layers.
    """
    problems = limits.check_numbers(config, f"{what}：config.json")
    problems += [
        f"{what}：config.json 要求執行外來的注意力核心 {value[:80]!r}，不載入"
        for key, value in entries(config)
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value
    ]
    if config.get("transformers_weights") is not None:
        file = str(config["transformers_weights"])[:80]
        problems.append(
            f"{what}：config.json 另外指定權重檔（transformers_weights 是 {file!r}），不載入；"
            "請去掉這一項，權重存成 model.safetensors"
        )
    return problems


def has_code(folder: Path) -> bool:
    """Return True where the files of a model ask transformers to run code that comes with it."""
    return any(read(folder / file).get("auto_map") for file in CODE)


def code_refused(what: str, model_type: object) -> str:
    """Word the error for a model that needs code of its own."""
    return (
        f"{what}：{str(model_type)[:80]!r} 不是 transformers 內建的模型，要執行它自己的程式（auto_map）才能用"
        "；模型附帶的程式一律不執行，請換一個模型"
    )


def code_ignored(what: str) -> str:
    """Word the log line for a model that comes with code but does not need it."""
    return f"{what}：它附帶的程式（auto_map）不執行，用 transformers 內建的"


def stays_inside(file: object) -> bool:
    """Return True for a relative file name that cannot lead out of its folder."""
    if not isinstance(file, str) or "\0" in file or "\\" in file:
        return False
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_inside(path: Path, folder: Path) -> bool:
    """Return True where a file in or below a model's folder does not lead out of it by links."""
    return _resolve(path).is_relative_to(_root(folder))


def is_name(text: object) -> bool:
    """Return True for a possible name of a model, or a path: safe for the file system and the terminal."""
    return (
        isinstance(text, str)
        and plain(text, lines=False) == text
        and len(text.encode(errors="replace")) <= LONGEST_PATH
        and all(len(part.encode(errors="replace")) <= LONGEST_NAME for part in text.split("/"))
    )


def _links_out(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (link, target) of the links in a folder that lead out of it."""
    root = _root(folder)
    for path in sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*")]):
        if path.is_symlink() and not _resolve(path).is_relative_to(root):
            yield str(path.relative_to(folder)), str(path.readlink())


def _root(folder: Path) -> Path:
    """Return the folder that the links in `folder` must stay in.

    That is `folder` itself or, in the hub's cache, the folder of the model: every file of a snapshot is a
    link there (models--owner--name/snapshots/commit/config.json → ../../blobs/…).
    """
    root = folder.resolve()
    cached = root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--")
    return root.parent.parent if cached else root


def _resolve(path: Path) -> Path:
    """Return where a path leads; the root of the file system for circular links, which lead nowhere."""
    try:
        path.stat()
    except OSError as error:  # from Python 3.13 on `resolve` accepts a circle
        if error.errno == errno.ELOOP:
            return Path("/")
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return Path("/")
