"""Flags that people type from habit, of transformers' Trainer, LLaMA-Factory, axolotl, torchrun and their like.

Each is looked up here before any guess is made: it means one of ours, or it changes nothing here, or it is
answered with the flag that does what was wanted. The same tables read the keys of their YAML files.
Names: transformers/training_args.py, LLaMA-Factory src/llamafactory/hparams, axolotl docs/config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from finetune.runtime.errors import listed, shown

YES, NO = ("true", "yes", "on", "1", ""), ("false", "no", "off", "0", "none", "null")
SWITCH, ONE, MANY = "true or false, or no word at all", "one word", "all words up to the next flag"


@dataclass(frozen=True)
class Meaning:
    """What a flag comes to.

    Args:
        flags: flags of ours with their values, `true` or `false` of a switch.
        unless_given: such flags, where they are given in no other way.
        remark: said in one line, where it is not quite the same.
        refusal: what to do instead; the run does not begin.
        unused: it has no counterpart here; all such flags are said in one line.
    """

    flags: tuple[tuple[str, str], ...] = ()
    unless_given: tuple[tuple[str, str], ...] = ()
    remark: str = ""
    refusal: str = ""
    unused: bool = False


@dataclass(frozen=True)
class Rule:
    """`read(value, given)`: the meaning, where `given` has the values of all flags as they were spelled."""

    read: Callable[[str, Mapping[str, str]], Meaning]
    takes: str = ONE


def same(flag: str, remark: str = "", takes: str = ONE) -> Rule:
    """Ours of another name."""
    return Rule(lambda value, given: Meaning(((flag, value),), remark=remark), takes)


def on(flag: str, value: str = "true") -> Rule:
    """A switch, that sets a flag of ours."""

    def read(seen: str, given: Mapping[str, str]) -> Meaning:
        if seen.lower() in ("auto", *NO):
            return Meaning()
        if seen.lower() in YES:
            return Meaning(((flag, value),))
        return Meaning(refusal="應為 true 或 false")

    return Rule(read, SWITCH)


def idle(remark: str = "") -> Rule:
    """What has no counterpart, and changes no result."""

    def read(value: str, given: Mapping[str, str]) -> Meaning:
        if remark:
            return Meaning(remark=f"沒有用到：{remark}")
        return Meaning(unused=value.lower() not in NO)

    return Rule(read, MANY)


def instead(refusal: str) -> Rule:
    """What is done in another way, or not at all; said unless it was switched off."""
    return Rule(
        lambda value, given: Meaning() if value.lower() in NO else Meaning(refusal=refusal.format(value=value)),
        MANY,
    )  # fmt: skip


def only(values: Iterable[str], refusal: str) -> Rule:
    """What is always so here: these values change nothing, others cannot be had."""
    fixed = {value.lower() for value in values}

    def read(value: str, given: Mapping[str, str]) -> Meaning:
        low = value.lower()
        equal = low in fixed or (number(low) is not None and number(low) in map(number, fixed))
        return Meaning() if equal else Meaning(refusal=refusal)

    return Rule(read, MANY)


def words(flag: str, meant: Mapping[str, str], refusal: str = "", also: str = "") -> Rule:
    """A value of theirs for a value of ours; others are left as they are, or refused."""

    def read(value: str, given: Mapping[str, str]) -> Meaning:
        known = meant.get(value.lower(), "" if refusal else value)
        return Meaning(((flag, known),), remark=also) if known else Meaning(refusal=refusal)

    return Rule(read)


def names(rule: Rule, spelled: str) -> dict[str, Rule]:
    """One rule for several names, by spaces."""
    return dict.fromkeys(spelled.split(), rule)


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def alike(one: str, other: str) -> bool:
    """Two ways of writing a value: 3 and 3.0, True and true."""
    if one.lower() == other.lower() or (one.lower() in YES and other.lower() in YES):
        return True
    return number(one) is not None and number(one) == number(other)


class Reading:
    """Flags of ours out of what was written, from a command line or a file.

    Args:
        rules: meanings by name, small letters and underscores.
        flags: the options of ours (`--learning_rate`), each with whether it is a switch.
        given: values by the name they were written under.
    """

    def __init__(self, rules: Mapping[str, Rule], flags: Mapping[str, bool], given: Mapping[str, str]):
        self.rules, self.flags, self.given = rules, flags, given
        self.remarks: list[str] = []
        self.unused: list[str] = []
        self.problems: list[str] = []
        self.later: list[tuple[str, str]] = []  # unless given in another way
        self._seen: dict[str, tuple[str, str]] = {}

    def own(self, name: str, value: str, spelled: str) -> list[tuple[str, str]]:
        """A flag of ours, noted: another word for it must not say something else."""
        before, other = self._seen.setdefault(name, (value, spelled))
        if other != spelled and not alike(before, value):
            self.problems.append(
                f"{other} 與 {spelled} 說的是同一件事（--{name}），值卻不同：{before}、{value}"
            )
        return [(name, value)]

    def meant(self, rule: Rule, value: str, spelled: str, name: str = "") -> list[tuple[str, str]]:
        """(flag of ours, value) of a name out of the table; remarks and refusals are kept."""
        meaning = rule.read(value, self.given)
        said = f"{spelled} {shown(value)}" if value and meaning.refusal != SECRET else spelled
        if meaning.refusal:
            self.problems.append(f"{said}：{meaning.refusal}")
        if meaning.unused:
            self.unused.append(name or spelled)
        if meaning.remark:
            self.remarks.append(f"{said} {meaning.remark}")
        if any(not value and not self.flags[f"--{flag}"] for flag, value in meaning.flags):
            self.problems.append(f"{spelled} 後面少了值")
            return []
        self.later += meaning.unless_given
        return [pair for flag, value in meaning.flags for pair in self.own(flag, value, spelled)]

    def told(self) -> list[str]:
        """The remarks, a line each."""
        more = [f"沒有用到：{listed(self.unused)}（這裡沒有這些，不影響結果）"] if self.unused else []
        return self.remarks + more

    def rest(self, given: Iterable[str]) -> list[tuple[str, str]]:
        """What follows from the others, but where it was said."""
        return [(name, value) for name, value in self.later if name not in given and name not in self._seen]


def in_argv(
    argv: list[str], rules: Mapping[str, Rule], flags: Mapping[str, bool]
) -> tuple[list[str], Reading]:
    """A command line in our own flags; what is neither ours nor in the table stays as it is.

    `--fp16 True` and `--cpu false` are read as transformers' parser reads them.
    """
    words = [_name(word) for word in argv]
    given = {}
    for place, (name, value) in enumerate(words):
        if name:
            after = argv[place + 1] if place + 1 < len(argv) and not words[place + 1][0] else ""
            given[name] = after if value is None else value
    reading, found, place = Reading(rules, flags, given), [], 0
    while place < len(argv):
        word, (name, value) = argv[place], words[place]
        place += 1
        rule = rules.get(name)
        if not name or (rule is None and f"--{name}" not in flags):
            found.append(word)
            continue
        follows = []
        while value is None and place + len(follows) < len(argv) and not words[place + len(follows)][0]:
            follows.append(argv[place + len(follows)])
        switch = flags.get(f"--{name}", rule is not None and rule.takes == SWITCH)
        if switch and follows and follows[0].lower() not in (*YES, *NO):
            follows = []
        elif rule is None or rule.takes != MANY:
            follows = follows[:1]
        place += len(follows)
        if rule is None and not switch and value is None and not follows:
            found.append(word)  # argparse says what is missing
            continue
        text = ",".join(follows) if value is None else value
        spelled = word.partition("=")[0]
        pairs = reading.meant(rule, text, spelled) if rule else reading.own(name, text, spelled)
        found += [written for pair in pairs for written in _written(*pair, flags)]
    found += [
        written
        for pair in reading.rest({name for name, _ in words})
        for written in _written(*pair, flags)
    ]  # fmt: skip
    return found, reading


def _name(word: str) -> tuple[str, str | None]:
    """The name of a flag and its value after =; "" of what is no flag. `-lr` is `--lr`."""
    found = re.fullmatch(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", word, re.S | re.ASCII)
    if not found or word == "-h":
        return "", None
    return found[1].replace("-", "_").lower(), found[2]


def _written(name: str, value: str, flags: Mapping[str, bool]) -> list[str]:
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
    low = value.lower()
    if low == "cpu":
        return Meaning((("cpu", "true"),))
    if low in ("cuda", "gpu", "auto", "cuda:0", "0", ""):
        return Meaning()  # it is used where there is one
    return Meaning(refusal="用哪一張 GPU 由環境變數 CUDA_VISIBLE_DEVICES 選；不用 GPU 請加 --cpu")


NEVER_CODE = "這個工具從不執行模型夾帶的程式；請用 transformers 內建架構的模型"
SECRET = "存取權杖不寫在命令列上；請設環境變數 HF_TOKEN，或先執行 hf auth login"
BOTH = {
    **names(on("cpu"), "no_cuda use_cpu cpu_only force_cpu"),
    **names(Rule(_device), "device device_map gpu gpus gpu_id cuda_device"),
    **names(on("precision", "fp16"), "fp16 half half_precision use_fp16"),
    **names(on("precision", "bf16"), "bf16 use_bf16 pure_bf16 bfloat16"),
    **names(on("precision", "fp32"), "fp32 no_fp16"),
    **names(
        words("precision", PRECISIONS, "應為 fp32、bf16、fp16 或 auto（--precision）"),
        "dtype torch_dtype mixed_precision compute_dtype infer_dtype precision",
    ),
    **names(instead(NEVER_CODE), "trust_remote_code allow_remote_code"),
    **names(instead(SECRET), "hub_token hf_hub_token token use_auth_token hf_token auth_token"),
    **names(instead("下載到哪裡由環境變數 HF_HOME 決定"), "cache_dir hf_cache_dir"),
    **names(
        idle(),
        "tf32 flash_attn flash_attention attn_implementation low_cpu_mem_usage use_fast_tokenizer disable_tqdm "
        "log_level dataloader_num_workers num_workers preprocessing_num_workers dataloader_pin_memory overwrite_cache "
        "verbose quiet cuda use_gpu use_cuda bf16_full_eval fp16_full_eval use_cache torch_compile "
        "dataloader_prefetch_factor dataloader_drop_last jit_mode_eval xformers xformers_attention sdp_attention",
    ),
    "allow_bin": on("allow_pickle"),
    **names(same("seed"), "random_seed manual_seed rng_seed random_state"),
}  # fmt: skip
