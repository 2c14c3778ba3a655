"""How much a stranger's model may hold: bytes of its files, numbers in them, entries of their lists. Looked
at before any library opens them, for a number alone can ask for a billion layers. Imports nothing heavy.

Each bound lies several times above the largest published model that we know of (its value stands beside it).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from finetune.runtime.errors import shown

MEGABYTE = 1 << 20
FILES = {  # name or ending -> bytes
    "tokenizer.json": 80 * MEGABYTE,  # Gemma 3: 33 MB
    "run_card.json": 128 * MEGABYTE,  # ours of two million questions: 40 MB
    ".index.json": 40 * MEGABYTE,  # DeepSeek-V3: 9 MB
    ".json": 16 * MEGABYTE,  # vocab.json of Qwen2.5: 3 MB
    "merges.txt": 24 * MEGABYTE,  # Qwen2.5: 2 MB
    "vocab.txt": 16 * MEGABYTE,  # LaBSE: 5 MB
    ".model": 64 * MEGABYTE,  # sentencepiece, Gemma 3: 5 MB
    ".jinja": MEGABYTE // 4,  # gpt-oss: 16 kB
}
HEADER = 16 * MEGABYTE  # of a safetensors file; 100 bytes a tensor
SHARDS = 4096  # files of weights; DeepSeek-V3 has 163
TEMPLATE = MEGABYTE // 4  # characters of a chat template
ADDED = 1 << 17  # tokens beside a vocabulary; models of speech have 66,000
SPARE = 1024  # of them, beyond a model's vocabulary, are left to be told by its real size
LAYERS = 1024  # Llama 3.1 405B: 126
RANKED = re.compile(r"lora_(embedding_)?A")  # a tensor whose first dimension is the rank
ENTRIES = 1 << 17  # of an object in a configuration, labels most of all
ITEMS = 1 << 16  # of a list in one
ROUNDS = 64  # of a loop that prepares an adapter
# What a key is called -> the largest number it may hold. The first that fits counts.
NUMBERS = (
    (re.compile(r"theta|base$|_token_ids?$"), 1 << 62),
    (re.compile(r"layers?$|blocks?$|depths?$"), LAYERS),
    (re.compile(r"_iter$"), ROUNDS),  # loftq_iter: 1 to 5
    (re.compile(r"expert"), 1 << 16),  # Switch: 2048
    (re.compile(r"label"), ENTRIES),
    (re.compile(r"heads?$"), 1 << 14),  # 128
    (re.compile(r"vocab|^n_words$"), 1 << 23),  # XLM-V: 901,629
    (re.compile(r"position|n_ctx|seq_len"), 1 << 27),  # Llama 4 Scout: 10,485,760
    (re.compile(r"(size|dim|dims|rank|width|channels|inner|embd|d_\w+|kernel|state|group|groups)$"), 1 << 20),
)


def check_sizes(folder: Path, what: str) -> list[str]:
    """What is wrong with the sizes of a folder's files.

    Args:
        what: flag and name of the model, for the message.
    """
    problems = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*.jinja")]):
        most = most_bytes(path.name)
        if most and path.is_file() and (size := path.stat().st_size) > most:
            where = path.relative_to(folder)
            problems.append(f"{what}：{where} 有 {size:,} 個位元組，上限是 {most:,}，不讀取")
    return problems


def most_bytes(name: str) -> int:
    """The largest size of a file of a model, by its name; 0 is any."""
    return next((most for ending, most in FILES.items() if name == ending or name.endswith(ending)), 0)


def check_numbers(said: object, what: str) -> list[str]:
    """What asks for too much in a configuration, by its key.

    Args:
        what: flag, name and file, for the message.
    """
    problems = []
    for key, value in entries(said):
        most, found = 0, value
        if isinstance(value, dict):
            most, found = ENTRIES, len(value)
        elif isinstance(value, list):
            most, found = ITEMS, len(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            most = next((bound for pattern, bound in NUMBERS if pattern.search(key)), 0)
        if most and found > most:
            whole = f"{value:,}" if isinstance(value, int) and value < 1e30 else shown(value)
            counted = f"有 {found:,} 項" if isinstance(value, (dict, list)) else f"是 {whole}"
            problems.append(f"{what} 的 {key[:80]!r} {counted}，上限是 {most:,}，不載入")
            if len(problems) == 5:
                break
    return problems


def entries(said: object) -> Iterator[tuple[str, object]]:
    """Every key of a JSON object with its value, those inside others too. The items of a list stand under its
    key; one that is longer than a list may be is not gone through.
    """
    waiting = [("", said)]
    while waiting:
        key, value = waiting.pop()
        if key:
            yield key, value
        if isinstance(value, dict) and len(value) <= ENTRIES:
            waiting += value.items()
        elif isinstance(value, list) and len(value) <= ITEMS:
            waiting += [(key, item) for item in value if isinstance(item, (dict, list, int, float))]


def check_tokens(folder: Path, said: dict, config: dict, what: str) -> list[str]:
    """What is wrong with the number of tokens that a tokenizer adds to its vocabulary, which is part of the
    model's own; and with the length of its chat templates.

    Args:
        said: tokenizer_config.json.
        config: config.json.
    """
    sizes = [value for key, value in entries(config) if key == "vocab_size" and type(value) is int]
    most = min(ADDED, max(sizes, default=ADDED) + SPARE)
    counts = {
        f"tokenizer_config.json 的 {key!r}": len(value)
        for key, value in said.items()
        if isinstance(value, (dict, list))
    }
    counts["tokenizer.json 的 'added_tokens'"] = _added(folder / "tokenizer.json")
    counts["tokenizer.json 的 'post_processor'"] = _around(folder / "tokenizer.json")
    counts["added_tokens.json"] = len(read(folder / "added_tokens.json"))
    for key, value in entries(read(folder / "special_tokens_map.json")):
        if isinstance(value, (dict, list)):
            counts[f"special_tokens_map.json 的 {key!r}"] = len(value)
    problems = [
        f"{what}：{where} 有 {count:,} 個，上限是 {most:,}，不載入"
        for where, count in counts.items()
        if count > most
    ]
    template = said.get("chat_template")
    for one in template if isinstance(template, list) else [template]:
        text = one.get("template") if isinstance(one, dict) else one
        if isinstance(text, str) and len(text) > TEMPLATE:
            problems.append(
                f"{what}：tokenizer_config.json 的 'chat_template' 有 {len(text):,} 個字，"
                f"上限是 {TEMPLATE:,}，不使用"
            )
    return problems


def _added(file: Path) -> int:
    """How many tokens tokenizer.json adds. Each has a field of this name; only where letters are written as
    numbers is the whole file decoded, which takes seconds where it is large.
    """
    try:
        raw = file.read_bytes()
        if raw.count(b"\\u00") < 1000:
            return raw.count(b'"single_word"')
        return len(json.loads(raw)["added_tokens"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0  # whoever needs it says what is wrong with it


def _around(file: Path) -> int:
    """Pieces in the templates of tokenizer.json around a text; each has a field of this name."""
    try:
        return file.read_bytes().count(b'"type_id"')
    except OSError:
        return 0


def check_weights(folder: Path, said: dict, what: str) -> list[str]:
    """What is wrong with the headers of safetensors files, beside the layers that config.json names: each has
    a tensor at least.

    Args:
        said: config.json.
    """
    problems, tensors = [], 0
    for path in sorted(folder.glob("*.safetensors")):
        size, count = _header(path)
        tensors += count
        if size > HEADER:
            problems.append(
                f"{what}：{path.name} 的檔頭（header）有 {size:,} 個位元組，上限是 {HEADER:,}，不載入"
            )
    layers = said.get("num_hidden_layers")
    if not problems and isinstance(layers, int) and 0 < tensors < layers:
        problems.append(
            f"{what}：config.json 的 'num_hidden_layers' 是 {layers:,}，權重檔卻只有 {tensors:,} 個張量"
        )
    return problems


def check_adapter(folder: Path, said: dict, what: str) -> list[str]:
    """What a LoRA adapter asks for beyond what its weights hold, or without end.

    Args:
        said: adapter_config.json; {} where there is none.
        what: flag, name and file, for the message.
    """
    problems = check_numbers(said, what)
    if not said or problems:
        return problems
    kind, init = said.get("peft_type"), said.get("init_lora_weights")
    if kind != "LORA":
        problems.append(f"{what} 的 'peft_type' 是 {shown(kind)}，只讀 LoRA（'LORA'）")
    if isinstance(init, str) and (rounds := re.search(r"niter_(\d+)", init)) and len(rounds[1]) > 2:
        problems.append(f"{what} 的 'init_lora_weights' 是 {shown(init)}，niter 上限是 99，不載入")
    ranks = {"r": said.get("r"), **_object(said.get("rank_pattern"))}
    most = _rank(folder / "adapter_model.safetensors")
    for key, rank in ranks.items():
        if most and isinstance(rank, (int, float)) and rank > most:
            problems.append(f"{what} 的 {key[:80]!r} 是 {shown(rank)}，權重檔裡最大的秩（rank）是 {most:,}")
            break
    copies = said.get("layer_replication")
    if isinstance(copies, list) and sum(_length(one) for one in copies) > LAYERS:
        problems.append(f"{what} 的 'layer_replication' 複製出的層數超過上限 {LAYERS:,}，不載入")
    return problems


def _object(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _length(span: object) -> int:
    """Layers from the first of a pair of numbers to the second; an empty one counts too."""
    numbers = isinstance(span, list) and len(span) == 2 and all(type(one) is int for one in span)
    return 1 + max(0, span[1] - span[0]) if numbers else 1


def _rank(path: Path) -> int:
    """The largest rank in an adapter's weights; 0 where none can be read."""
    try:
        with path.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8))[0]
            tensors = json.loads(stream.read(size)) if size <= HEADER else {}
        return max((one["shape"][0] for key, one in tensors.items() if RANKED.search(key)), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError):
        return 0


def _header(path: Path) -> tuple[int, int]:
    """Bytes of a safetensors file's header, and how many tensors it names: each has a field of this name. 0
    where there is less of the file than that, which whoever reads it says.
    """
    try:
        with path.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8))[0]
            if size > path.stat().st_size:
                return 0, 0
            return size, stream.read(size).count(b'"data_offsets"') if size <= HEADER else 0
    except (OSError, struct.error):
        return 0, 0


def read(file: Path) -> dict:
    """A JSON object; {} where there is none that can be read, which whoever needs it says."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
