"""Limits on untrusted models: bytes of their files, numbers in them, lengths of their lists.

They are checked before any library opens the files, since a single number can request a billion layers.
Imports nothing heavy. Each limit is several times the largest published model that we know of (its value is
in the comment).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.runtime.errors import shown

MEGABYTE = 1 << 20
FILES = {  # name or suffix -> bytes
    "tokenizer.json": 80 * MEGABYTE,  # Gemma 3: 33 MB
    "run_card.json": 128 * MEGABYTE,  # ours for two million questions: 40 MB
    ".index.json": 40 * MEGABYTE,  # DeepSeek-V3: 9 MB
    ".json": 16 * MEGABYTE,  # vocab.json of Qwen2.5: 3 MB
    "merges.txt": 24 * MEGABYTE,  # Qwen2.5: 2 MB
    "vocab.txt": 16 * MEGABYTE,  # LaBSE: 5 MB
    ".model": 64 * MEGABYTE,  # sentencepiece, Gemma 3: 5 MB
    ".jinja": MEGABYTE // 4,  # gpt-oss: 16 kB
}
HEADER = 16 * MEGABYTE  # bytes of a safetensors header; 100 bytes a tensor
SHARDS = 4096  # weight files; DeepSeek-V3 has 163
TEMPLATE = MEGABYTE // 4  # characters of a chat template
ADDED = 1 << 17  # added tokens of a tokenizer; speech models have 66,000
SPARE = 1024  # added tokens beyond vocab_size that are let through here: the embedding's size decides later
LAYERS = 1024  # Llama 3.1 405B: 126
RANKED = re.compile(r"lora_(embedding_)?A")  # a tensor whose first dimension is the rank
ENTRIES = 1 << 17  # entries of an object in a configuration (id2label has the most)
ITEMS = 1 << 16  # items of a list in a configuration
ROUNDS = 64  # iterations of an adapter's initialization
# Pattern of a key -> the largest number it may hold. The first matching pattern counts.
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
    """List the files of a folder that are too large.

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
    """Return the largest allowed size in bytes of a model file with this name; 0 means no limit."""
    return next((most for suffix, most in FILES.items() if name == suffix or name.endswith(suffix)), 0)


def check_numbers(config: object, what: str) -> list[str]:
    """List the numbers and lengths in a configuration that exceed their limit, by key; 5 at most.

    Args:
        config: the JSON value.
        what: flag, name and file, for the message.
    """
    problems = []
    for key, value in entries(config):
        most: int = 0
        amount: float = 0
        if isinstance(value, dict):
            most, amount = ENTRIES, len(value)
        elif isinstance(value, list):
            most, amount = ITEMS, len(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            most, amount = next((limit for pattern, limit in NUMBERS if pattern.search(key)), 0), value
        if most and amount > most:
            number = f"{value:,}" if isinstance(value, int) and value < 1e30 else shown(value)
            excess = f"有 {amount:,} 項" if isinstance(value, (dict, list)) else f"是 {number}"
            problems.append(f"{what} 的 {key[:80]!r} {excess}，上限是 {most:,}，不載入")
            if len(problems) == 5:
                break
    return problems


def entries(config: object) -> Iterator[tuple[str, object]]:
    """Yield every key of a JSON object with its value, nested ones included.

    The items of a list are yielded under its key; a list or object above the limit is not descended into.
    """
    pending = [("", config)]
    while pending:
        key, value = pending.pop()
        if key:
            yield key, value
        if isinstance(value, dict) and len(value) <= ENTRIES:
            pending += value.items()
        elif isinstance(value, list) and len(value) <= ITEMS:
            pending += [(key, item) for item in value if isinstance(item, (dict, list, int, float))]


def check_tokens(
    folder: Path, tokenizer_config: dict[str, Any], config: dict[str, Any], what: str
) -> list[str]:
    """List what is too large in a tokenizer: the tokens it adds, and its chat templates.

    The added tokens are part of the model's vocabulary, so vocab_size limits them.

    Args:
        folder: where the tokenizer's files are.
        tokenizer_config: tokenizer_config.json.
        config: config.json.
        what: flag and name of the model, for the message.
    """
    sizes = [value for key, value in entries(config) if key == "vocab_size" and type(value) is int]
    most = min(ADDED, max(sizes, default=ADDED) + SPARE)
    counts = {
        f"tokenizer_config.json 的 {key!r}": len(value)
        for key, value in tokenizer_config.items()
        if isinstance(value, (dict, list))
    }
    counts["tokenizer.json 的 'added_tokens'"] = _count_added(folder / "tokenizer.json")
    counts["tokenizer.json 的 'post_processor'"] = _count_template_pieces(folder / "tokenizer.json")
    counts["added_tokens.json"] = len(read(folder / "added_tokens.json"))
    for key, value in entries(read(folder / "special_tokens_map.json")):
        if isinstance(value, (dict, list)):
            counts[f"special_tokens_map.json 的 {key!r}"] = len(value)
    problems = [
        f"{what}：{where} 有 {count:,} 個，上限是 {most:,}，不載入"
        for where, count in counts.items()
        if count > most
    ]
    templates = tokenizer_config.get("chat_template")
    for template in templates if isinstance(templates, list) else [templates]:
        text = template.get("template") if isinstance(template, dict) else template
        if isinstance(text, str) and len(text) > TEMPLATE:
            problems.append(
                f"{what}：tokenizer_config.json 的 'chat_template' 有 {len(text):,} 個字，"
                f"上限是 {TEMPLATE:,}，不使用"
            )
    return problems


def _count_added(file: Path) -> int:
    r"""Count the added tokens in tokenizer.json by their field "single_word".

    The whole file is decoded, which takes seconds for a large one, only where it escapes ASCII letters as
    \u00xx, which could hide the field's name.
    """
    try:
        raw = file.read_bytes()
        if raw.count(b"\\u00") < 1000:
            return raw.count(b'"single_word"')
        return len(json.loads(raw)["added_tokens"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0  # the code that needs the file reports what is wrong with it


def _count_template_pieces(file: Path) -> int:
    """Count the pieces of the post-processor templates in tokenizer.json by their field "type_id"."""
    try:
        return file.read_bytes().count(b'"type_id"')
    except OSError:
        return 0


def check_weights(folder: Path, config: dict[str, Any], what: str) -> list[str]:
    """List what is wrong with the headers of safetensors files.

    There must be at least one tensor for each layer that config.json promises.

    Args:
        folder: where the weights are.
        config: config.json.
        what: flag and name of the model, for the message.
    """
    problems, tensors = [], 0
    for path in sorted(folder.glob("*.safetensors")):
        size, count = _header(path)
        tensors += count
        if size > HEADER:
            problems.append(
                f"{what}：{path.name} 的檔頭（header）有 {size:,} 個位元組，上限是 {HEADER:,}，不載入"
            )
    layers = config.get("num_hidden_layers")
    if not problems and isinstance(layers, int) and 0 < tensors < layers:
        problems.append(
            f"{what}：config.json 的 'num_hidden_layers' 是 {layers:,}，權重檔卻只有 {tensors:,} 個張量"
        )
    return problems


def check_adapter(folder: Path, config: dict[str, Any], what: str) -> list[str]:
    """List what a LoRA adapter requests beyond what its weights hold, or without limit.

    Args:
        folder: where the adapter is.
        config: adapter_config.json; {} where there is none.
        what: flag, name and file, for the message.
    """
    problems = check_numbers(config, what)
    if not config or problems:
        return problems
    kind, init = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        problems.append(f"{what} 的 'peft_type' 是 {shown(kind)}，只讀 LoRA（'LORA'）")
    if isinstance(init, str) and (rounds := re.search(r"niter_(\d+)", init)) and len(rounds[1]) > 2:
        problems.append(f"{what} 的 'init_lora_weights' 是 {shown(init)}，niter 上限是 99，不載入")
    ranks = {"r": config.get("r"), **_object(config.get("rank_pattern"))}
    most = _largest_rank(folder / "adapter_model.safetensors")
    for key, rank in ranks.items():
        if most and isinstance(rank, (int, float)) and rank > most:
            problems.append(f"{what} 的 {key[:80]!r} 是 {shown(rank)}，權重檔裡最大的 rank 是 {most:,}")
            break
    spans = config.get("layer_replication")
    if isinstance(spans, list) and sum(_layers_in(span) for span in spans) > LAYERS:
        problems.append(f"{what} 的 'layer_replication' 複製出的層數超過上限 {LAYERS:,}，不載入")
    return problems


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _layers_in(span: object) -> int:
    """Count the layers of a span [first, end), plus one so that empty spans count too."""
    if isinstance(span, list) and len(span) == 2 and all(type(number) is int for number in span):
        return 1 + max(0, span[1] - span[0])
    return 1


def _largest_rank(path: Path) -> int:
    """Return the largest LoRA rank in an adapter's weights; 0 where none can be read."""
    try:
        with path.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8))[0]
            tensors = json.loads(stream.read(size)) if size <= HEADER else {}
        return max((tensor["shape"][0] for key, tensor in tensors.items() if RANKED.search(key)), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError):
        return 0


def _header(path: Path) -> tuple[int, int]:
    """Return the header size in bytes and the number of tensors of a safetensors file.

    Tensors are counted by their field "data_offsets". (0, 0) where the file is shorter than its header: the
    code that loads it reports that.
    """
    try:
        with path.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8))[0]
            if size > path.stat().st_size:
                return 0, 0
            return size, stream.read(size).count(b'"data_offsets"') if size <= HEADER else 0
    except (OSError, struct.error):
        return 0, 0


def read(file: Path) -> dict[str, Any]:
    """Read a JSON object; {} where there is no readable one: the code that needs it reports that."""
    try:
        value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
