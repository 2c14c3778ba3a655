"""Trial of untrusted patterns in a child process: of a tokenizer's rules, and of an adapter's layer names.

A regular expression that never ends would otherwise block this process for good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.runtime.errors import UserError
from finetune.runtime.limits import MEGABYTE, entries
from finetune.runtime.sandbox import Sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_PART = 4 * MEGABYTE  # bytes of one part of a tokenizer's rules, at most; T5's largest takes 0.4 MB
GROWTH = 64  # tokens or characters that one character may become; the longest ligature becomes 18
# The patterns of GPT-4, Llama 3 and Qwen2: they match every text in bounded time.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN = {WORDS % r"\p{N}", WORDS % r"\p{N}{1,3}"}
HARMLESS = re.compile(r"[\w.\-]*\Z", re.ASCII)  # as a regular expression
SAMPLE = "天地玄黃，宇宙洪荒。The 2 Quick's\r\n\n \t1234567890!? ﷺ 👩‍🚀 é\u0301"
REPEATED = "aA1 \n天。!'_é"  # each many times over, which exposes patterns that never end
PATTERNS = (  # that peft builds from the strings of an adapter's configuration
    "{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
)  # fmt: skip


def try_tokenizer(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Run a tokenizer on a few texts, where not all of its rules are known to be harmless.

    Args:
        tokenizer: as it was loaded.
        what: flag and name of the model, for the message.

    Raises:
        UserError: the tokenizer does not end in time, fails, or makes far too many tokens of a text.
    """
    rules = _rules(tokenizer)
    largest = max(map(len, rules), default=0)
    if largest > LARGEST_PART:
        raise UserError(
            f"{what}：tokenizer.json 的規則有 {largest:,} 個位元組，上限是 {LARGEST_PART:,}，不使用"
        )
    free = [text for rule in rules for text in _free_texts(json.loads(rule))]
    if not free:
        return
    repeated = [*REPEATED, *dict.fromkeys("".join(free)[:64]), *re.findall(r"\w{2,8}", " ".join(free))[:16]]
    texts = [SAMPLE, *(piece * (times // len(piece)) + "\0" for piece in repeated for times in (48, 1500))]

    def read() -> int:
        worst = 0
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            size = max(len(ids), len(tokenizer.decode(ids[: 2 * len(text)])))
            worst = max(worst, size // (len(text) + 16))
        return worst

    subject = f"{what}：tokenizer.json 的規則（normalizer、pre_tokenizer、post_processor、decoder）"
    trial = Sandbox(read, f"{subject}試讀幾句話")
    try:
        worst = trial()
    except ValueError as error:
        raise UserError(f"{subject}試讀幾句話就出錯：{' '.join(str(error).split())[:200]}") from error
    finally:
        trial.close()
    if worst > GROWTH:
        raise UserError(f"{subject}把一個字變成 {worst:,} 個，上限是 {GROWTH}，不使用")


def _rules(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the parts of a tokenizer that hold rules, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return [part.__getstate__() for name in parts if (part := getattr(backend, name, None)) is not None]


def _free_texts(rule: Any) -> list[str]:
    """Return the parts of a rule that may hold any text: patterns, their replacements, tokens around a text.

    Returns:
        [] where the rule is known to be harmless.
    """
    patterns, longest = [], 1
    for key, value in entries(rule):
        if key == "Regex" and value not in KNOWN or key == "precompiled_charsmap":
            patterns.append(str(value)[:1000])
        elif key in ("content", "prepend") and isinstance(value, str):
            longest *= max(1, len(value))
        elif isinstance(value, list):
            longest = max(longest, len(value))
    return patterns or ["…"] * (longest > GROWTH)


def try_patterns(adapter_config: dict[str, Any], names: Sequence[str], what: str) -> None:
    """Match the module names of a model with all patterns in an adapter's configuration.

    Args:
        adapter_config: the contents of adapter_config.json.
        names: names of the model's modules.
        what: flag and name of the adapter, for the message.

    Raises:
        UserError: a pattern does not end in time, or is no regular expression.
    """
    patterns: dict[str, str] = {}
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern",
                "alpha_pattern", "target_parameters"):  # fmt: skip
        value = adapter_config.get(key) or ()
        for item in [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else ():
            if isinstance(item, str) and not HARMLESS.match(item):
                patterns.setdefault(item, key)
    if not patterns:
        return
    trial = Sandbox(lambda pattern: _match(pattern, names), f"{what}：adapter_config.json 的樣式")
    for pattern, key in patterns.items():
        trial.what = subject = f"{what}：adapter_config.json 的 {key!r} 的樣式 {pattern[:80]!r} "
        try:
            trial(pattern)
        except ValueError as error:
            raise UserError(f"{subject}不是 regular expression：{error}") from error
    trial.close()


def _match(pattern: str, names: Sequence[str]) -> None:
    """Match all names with a pattern, in each of the ways in which peft may use it."""
    for around in PATTERNS:
        compiled = re.compile(around.replace("{}", pattern))
        for name in names:
            compiled.fullmatch(name)
            compiled.match(name)
