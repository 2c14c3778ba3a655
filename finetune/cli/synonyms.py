"""Flags of other tools: transformers' Trainer, LLaMA-Factory, axolotl, torchrun and similar ones.

Each is looked up here before a correction is suggested: it is translated to one of ours, or it has no effect
here, or the error names the flag to use instead. The same tables apply to the keys of YAML files.
Names: transformers/training_args.py, LLaMA-Factory src/llamafactory/hparams, axolotl docs/config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from finetune.runtime.errors import listed, shown

YES, NO = ("true", "yes", "on", "1", ""), ("false", "no", "off", "0", "none", "null")
# The values that a flag takes on the command line.
SWITCH, ONE, MANY = "true or false, or no word at all", "one word", "all words up to the next flag"


@dataclass(frozen=True)
class Meaning:
    """Translation of another tool's flag with its value.

    Attributes:
        flags: flags of ours with their values; `true` or `false` for a switch.
        unless_given: flags of ours that are set unless they are given in another way.
        remark: logged where the meaning is not quite the same.
        refusal: what to do instead; the run ends with this error.
        unused: it has no counterpart here; all such flags are logged in one line.
    """

    flags: tuple[tuple[str, str], ...] = ()
    unless_given: tuple[tuple[str, str], ...] = ()
    remark: str = ""
    refusal: str = ""
    unused: bool = False


@dataclass(frozen=True)
class Rule:
    """Rule that translates a flag.

    Attributes:
        read: `read(value, given)` returns the meaning; `given` has the values of all flags as they were
            spelled.
        takes: SWITCH, ONE or MANY.
    """

    read: Callable[[str, Mapping[str, str]], Meaning]
    takes: str = ONE


def alias(flag: str, remark: str = "", takes: str = ONE) -> Rule:
    """Make a rule for another name of a flag of ours."""
    return Rule(lambda value, given: Meaning(((flag, value),), remark=remark), takes)


def switch(flag: str, value: str = "true") -> Rule:
    """Make a rule for a switch that sets a flag of ours to `value`."""

    def read(written: str, given: Mapping[str, str]) -> Meaning:
        if written.lower() in ("auto", *NO):
            return Meaning()
        if written.lower() in YES:
            return Meaning(((flag, value),))
        return Meaning(refusal="應為 true 或 false")

    return Rule(read, SWITCH)


def ignored(remark: str = "") -> Rule:
    """Make a rule for a flag without a counterpart, which does not affect the results."""

    def read(value: str, given: Mapping[str, str]) -> Meaning:
        if remark:
            return Meaning(remark=f"沒有用到：{remark}")
        return Meaning(unused=value.lower() not in NO)

    return Rule(read, MANY)


def rejected(refusal: str) -> Rule:
    """Make a rule for what is done in another way, or not at all: an error unless it was switched off."""
    return Rule(
        lambda value, given: Meaning() if value.lower() in NO else Meaning(refusal=refusal.format(value=value)),
        MANY,
    )  # fmt: skip


def fixed_to(values: Iterable[str], refusal: str) -> Rule:
    """Make a rule for a fixed setting: these values have no effect, others are refused."""
    fixed = {value.lower() for value in values}

    def read(value: str, given: Mapping[str, str]) -> Meaning:
        lower = value.lower()
        allowed = lower in fixed or (number(lower) is not None and number(lower) in map(number, fixed))
        return Meaning() if allowed else Meaning(refusal=refusal)

    return Rule(read, MANY)


def mapped(flag: str, translations: Mapping[str, str], refusal: str = "", remark: str = "") -> Rule:
    """Make a rule that translates values; unknown ones are kept or, with a `refusal`, refused."""

    def read(value: str, given: Mapping[str, str]) -> Meaning:
        translated = translations.get(value.lower(), "" if refusal else value)
        return Meaning(((flag, translated),), remark=remark) if translated else Meaning(refusal=refusal)

    return Rule(read)


def for_names(rule: Rule, spelled: str) -> dict[str, Rule]:
    """Give one rule to several names, separated by spaces."""
    return dict.fromkeys(spelled.split(), rule)


def number(text: str) -> float | None:
    """Parse a number; None for anything else."""
    try:
        return float(text)
    except ValueError:
        return None


def same_value(one: str, other: str) -> bool:
    """Return True for two spellings of one value: 3 and 3.0, True and true."""
    if one.lower() == other.lower() or (one.lower() in YES and other.lower() in YES):
        return True
    return number(one) is not None and number(one) == number(other)


class Translation:
    """Translation of written flags, from a command line or a file, into flags of ours.

    Args:
        rules: by name, in lower case with underscores.
        flags: option strings of ours (`--learning_rate`), each with whether it is a switch.
        given: values by the name they were written under.

    Attributes:
        remarks: lines to log.
        unused: flags without a counterpart.
        problems: errors.
        deferred: flags of ours that are set unless they are given in another way.
    """

    def __init__(self, rules: Mapping[str, Rule], flags: Mapping[str, bool], given: Mapping[str, str]):
        self.rules, self.flags, self.given = rules, flags, given
        self.remarks: list[str] = []
        self.unused: list[str] = []
        self.problems: list[str] = []
        self.deferred: list[tuple[str, str]] = []
        self._seen: dict[str, tuple[str, str]] = {}  # flag of ours -> its value, and how it was spelled

    def add_flag(self, name: str, value: str, spelled: str) -> list[tuple[str, str]]:
        """Record a flag of ours; a synonym of it with another value is a problem."""
        earlier, other = self._seen.setdefault(name, (value, spelled))
        if other != spelled and not same_value(earlier, value):
            self.problems.append(
                f"{other} 與 {spelled} 是同一個設定（--{name}），值卻不同：{earlier}、{value}"
            )
        return [(name, value)]

    def apply(self, rule: Rule, value: str, spelled: str, name: str = "") -> list[tuple[str, str]]:
        """Apply a rule: return the flags of ours with their values; record remarks and problems."""
        meaning = rule.read(value, self.given)
        written = f"{spelled} {shown(value)}" if value and meaning.refusal != SECRET else spelled
        if meaning.refusal:
            self.problems.append(f"{written}：{meaning.refusal}")
        if meaning.unused:
            self.unused.append(name or spelled)
        if meaning.remark:
            self.remarks.append(f"{written} {meaning.remark}")
        if any(not value and not self.flags[f"--{flag}"] for flag, value in meaning.flags):
            self.problems.append(f"{spelled} 後面少了值")
            return []
        self.deferred += meaning.unless_given
        return [pair for flag, value in meaning.flags for pair in self.add_flag(flag, value, spelled)]

    def log_lines(self) -> list[str]:
        """Return the remarks, and a line about the unused flags."""
        unused = [f"沒有用到：{listed(self.unused)}（這裡沒有這些，不影響結果）"] if self.unused else []
        return self.remarks + unused

    def deferred_flags(self, given: Iterable[str]) -> list[tuple[str, str]]:
        """Return the deferred flags that are neither in `given` nor recorded."""
        return [
            (name, value) for name, value in self.deferred if name not in given and name not in self._seen
        ]


def translate_argv(
    argv: list[str], rules: Mapping[str, Rule], flags: Mapping[str, bool], several: Container[str] = ()
) -> tuple[list[str], Translation]:
    """Translate a command line into flags of ours; words that are neither ours nor in the table stay.

    `--fp16 True` and `--cpu false` are parsed as transformers' parser does.

    Args:
        argv: the words.
        rules: translations of other tools' flags.
        flags: option strings of ours, each with whether it is a switch.
        several: those that take several words.
    """
    parsed = [_parse_flag(word) for word in argv]
    given = {}
    for place, (name, value) in enumerate(parsed):
        if name:
            next_word = argv[place + 1] if place + 1 < len(argv) and not parsed[place + 1][0] else ""
            given[name] = next_word if value is None else value
    translation, translated, place = Translation(rules, flags, given), [], 0
    while place < len(argv):
        word, (name, value) = argv[place], parsed[place]
        place += 1
        rule = rules.get(name)
        if not name or (rule is None and f"--{name}" not in flags):
            translated.append(word)
            continue
        if rule is None and f"--{name}" in several:  # as they are: each word may hold a comma
            translated.append(f"--{name}" if value is None else f"--{name}={value}")
            continue
        values: list[str] = []
        while value is None and place + len(values) < len(argv) and not parsed[place + len(values)][0]:
            values.append(argv[place + len(values)])
        switch = flags.get(f"--{name}", rule is not None and rule.takes == SWITCH)
        if switch and values and values[0].lower() not in (*YES, *NO):
            values = []
        elif rule is None or rule.takes != MANY:
            values = values[:1]
        place += len(values)
        if rule is None and not switch and value is None and not values:
            translated.append(word)  # argparse reports the missing value
            continue
        text = ",".join(values) if value is None else value
        spelled = word.partition("=")[0]
        pairs = translation.apply(rule, text, spelled) if rule else translation.add_flag(name, text, spelled)
        translated += [option for pair in pairs for option in _as_words(*pair, flags)]
    deferred = translation.deferred_flags({name for name, _ in parsed})
    translated += [option for pair in deferred for option in _as_words(*pair, flags)]
    return translated, translation


def _parse_flag(word: str) -> tuple[str, str | None]:
    """Split a word into the name of a flag and its value after =; ("", None) if it is no flag.

    `-lr` is read as `--lr`.
    """
    match = re.fullmatch(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", word, re.S | re.ASCII)
    if not match or word == "-h":
        return "", None
    return match[1].replace("-", "_").lower(), match[2]


def _as_words(name: str, value: str, flags: Mapping[str, bool]) -> list[str]:
    """Write a flag of ours for argparse."""
    if not flags[f"--{name}"]:
        return [f"--{name}={value}"]
    if value.lower() in NO:
        return []
    return [f"--{name}" if value.lower() in YES else f"--{name}={value}"]  # argparse refuses the second


# ---- both scripts ------------------------------------------------------------------------------------------

PRECISIONS = {
    "float32": "fp32", "float": "fp32", "32": "fp32", "no": "fp32", "float16": "fp16", "half": "fp16",
    "16": "fp16", "bfloat16": "bf16", "none": "auto", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16",
    "auto": "auto", "torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float32": "fp32",
}  # fmt: skip


def _device(value: str, given: Mapping[str, str]) -> Meaning:
    device = value.lower()
    if device == "cpu":
        return Meaning((("cpu", "true"),))
    if device in ("cuda", "gpu", "auto", "cuda:0", "0", ""):
        return Meaning()  # a GPU is used wherever there is one
    return Meaning(refusal="用哪一張 GPU 由環境變數 CUDA_VISIBLE_DEVICES 選；不用 GPU 請加 --cpu")


NEVER_CODE = "這個工具從不執行模型夾帶的程式；請用 transformers 內建架構的模型"
SECRET = "存取權杖不寫在命令列上；請設環境變數 HF_TOKEN，或先執行 hf auth login"
BOTH = {
    **for_names(switch("cpu"), "no_cuda use_cpu cpu_only force_cpu"),
    **for_names(Rule(_device), "device device_map gpu gpus gpu_id cuda_device"),
    **for_names(switch("precision", "fp16"), "fp16 half half_precision use_fp16"),
    **for_names(switch("precision", "bf16"), "bf16 use_bf16 pure_bf16 bfloat16"),
    **for_names(switch("precision", "fp32"), "fp32 no_fp16"),
    **for_names(
        mapped("precision", PRECISIONS, "應為 fp32、bf16、fp16 或 auto（--precision）"),
        "dtype torch_dtype mixed_precision compute_dtype infer_dtype precision",
    ),
    **for_names(rejected(NEVER_CODE), "trust_remote_code allow_remote_code"),
    **for_names(rejected(SECRET), "hub_token hf_hub_token token use_auth_token hf_token auth_token"),
    **for_names(rejected("下載到哪裡由環境變數 HF_HOME 決定"), "cache_dir hf_cache_dir"),
    **for_names(
        ignored(),
        "tf32 flash_attn flash_attention attn_implementation low_cpu_mem_usage use_fast_tokenizer disable_tqdm "
        "log_level dataloader_num_workers num_workers preprocessing_num_workers dataloader_pin_memory overwrite_cache "
        "verbose quiet cuda use_gpu use_cuda bf16_full_eval fp16_full_eval use_cache torch_compile "
        "dataloader_prefetch_factor dataloader_drop_last jit_mode_eval xformers xformers_attention sdp_attention",
    ),
    "allow_bin": switch("allow_pickle"),
    **for_names(alias("seed"), "random_seed manual_seed rng_seed random_state"),
}  # fmt: skip
