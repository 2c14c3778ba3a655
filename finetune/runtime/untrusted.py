"""Model folders from strangers, looked at before any library opens their files: nothing in one may lead out
of it, and the code that lies in one is never run. Imports nothing heavy.

What a model's own files may name are other files of the same folder: shards of weights, vocabularies, chat
templates. transformers joins such names to the folder's without looking for `..`, and follows every link.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from finetune.runtime import limits
from finetune.runtime.console import plain
from finetune.runtime.errors import UserError
from finetune.runtime.limits import entries, read

ADAPTER = "adapter_config.json"
INDEX, PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
CODE = ("config.json", "tokenizer_config.json")  # files whose `auto_map` names a model's own code
TEMPLATES = "additional_chat_templates"  # the one folder below a model's that transformers reads
# An old transformers wrote its author's own path there into thousands of honest models, and none reads it.
UNREAD = ("special_tokens_map_file",)
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes that a file system takes


def check_folder(name: str, flag: str, folder: Path | None = None) -> None:
    """Looks at a model's or an adapter's folder.

    Args:
        folder: where it lies, of a model on the hub.

    Raises:
        UserError: with every file that leads out of it, and with all that is larger than any model's.
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
    said = read(folder / "tokenizer_config.json")
    for key in sorted(said):
        named = said[key] if isinstance(said[key], list) else [said[key]]
        if key.endswith(("_file", "_files")) and key not in UNREAD:
            problems += [
                f"{flag} {name}：tokenizer_config.json 的 {key} 是 {str(one)[:80]!r}，指到資料夾外面，不載入"
                for one in named
                if one is not None and not stays_inside(one)
            ]
    config = read(folder / "config.json")
    problems += check_config(config, f"{flag} {name}")
    problems += limits.check_tokens(folder, said, config, f"{flag} {name}")
    if not problems:
        problems += limits.check_weights(folder, config, f"{flag} {name}")
    problems += limits.check_numbers(
        read(folder / "generation_config.json"), f"{flag} {name}：generation_config.json"
    )
    problems += limits.check_adapter(folder, read(folder / ADAPTER), f"{flag} {name}：{ADAPTER}")
    if problems:
        raise UserError(problems)


def check_index(index: Path, what: str) -> list[str]:
    """What is wrong with the list of a model's shards: none where there is none.

    Args:
        what: flag and name of the model, for the message.
    """
    if not index.is_file():
        return []
    shards = read(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        return [f"{what}：{index.name} 讀不懂：應有 weight_map，記載每個張量在哪個檔案"]
    folder = index.parent
    home, files = _home(folder), sorted(set(shards.values()))
    if len(files) > limits.SHARDS:
        listed = f"{index.name} 的 'weight_map' 列了 {len(files):,} 個權重檔"
        return [f"{what}：{listed}，上限是 {limits.SHARDS:,}，不載入"]
    for file in files:
        if not stays_inside(file) or not _resolved(folder / file).is_relative_to(home):
            return [f"{what}：{index.name} 的權重檔 {file[:80]!r} 在資料夾外面，不載入"]
        if index.name == INDEX and not file.endswith(".safetensors"):
            return [f"{what}：{index.name} 的權重檔 {file[:80]!r} 不是 safetensors，不載入"]
    return []


def check_config(said: dict, what: str) -> list[str]:
    """What a model's configuration asks for that is not done: a kernel from elsewhere, weights by a name of
    its own, a billion layers.
    """
    problems = limits.check_numbers(said, f"{what}：config.json")
    problems += [
        f"{what}：config.json 要求執行外來的注意力核心 {value[:80]!r}，不載入"
        for key, value in entries(said)
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value
    ]
    if said.get("transformers_weights") is not None:
        own = str(said["transformers_weights"])[:80]
        problems.append(
            f"{what}：config.json 另外指定權重檔（transformers_weights 是 {own!r}），不載入；"
            "請去掉這一項，權重存成 model.safetensors"
        )
    return problems


def has_code(folder: Path) -> bool:
    """True where a model comes with code of its own, which its files ask transformers to run."""
    return any(read(folder / file).get("auto_map") for file in CODE)


def not_run(what: str, model_type: object) -> str:
    """Why a model that needs its own code is refused."""
    return (
        f"{what}：{str(model_type)[:80]!r} 不是 transformers 內建的模型，要執行它自己的程式（auto_map）才能用"
        "；模型附帶的程式一律不執行，請換一個模型"
    )


def ignored(what: str) -> str:
    """What is said of one that does not need it."""
    return f"{what}：它附帶的程式（auto_map）不執行，用 transformers 內建的"


def stays_inside(file: object) -> bool:
    """True for a name of a file that, below a folder, is in it."""
    if not isinstance(file, str) or "\0" in file or "\\" in file:
        return False
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_name(text: object) -> bool:
    """True for what can be the name of a model, or a path: what a file system and a terminal take."""
    return (
        isinstance(text, str)
        and plain(text, lines=False) == text
        and len(text.encode(errors="replace")) <= LONGEST_PATH
        and all(len(part.encode(errors="replace")) <= LONGEST_NAME for part in text.split("/"))
    )


def _links_out(folder: Path) -> Iterator[tuple[str, str]]:
    """Links in a folder, and where they lead, of those that lead out of it."""
    home = _home(folder)
    for path in sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*")]):
        if path.is_symlink() and not _resolved(path).is_relative_to(home):
            yield str(path.relative_to(folder)), str(path.readlink())


def _home(folder: Path) -> Path:
    """What a folder's links must stay in: itself, or the model's place in the hub's cache, where every file
    is a link: models--owner--name/snapshots/commit/config.json → ../../blobs/…
    """
    home = folder.resolve()
    cached = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    return home.parent.parent if cached else home


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle lead nowhere
        return Path("/")
