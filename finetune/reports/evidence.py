"""What a score rests on, in words: protocol, how it differs from what is published, prompt, data.

`evidence` is what predict/evidence.py makes and results.json keeps: protocol, prompt, environment, data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.subjects import SUBJECTS
from finetune.runtime.strict_json import dumps

TITLE = "怎麼問的"
PROMPT_TITLE = "一題完整的提示"
OURS = "ours"  # the protocol of this project
FORMATS = {"raw": "直接接在文字後面（raw）", "chat": "對話樣板（chat）", "masked": "填空（[MASK]）"}
ORDERS = {"1": "照原順序", "cyclic": "輪換順序取平均", "all": "全部順序取平均"}
AGGREGATES = {"micro": "每題平均（micro）", "macro-4": "四大類平均（macro-4）"}


def macro_note(evidence: Mapping[str, Any], subjects: int) -> str:
    """Return what must stand beside a macro-4 figure: whether it can be laid beside published ones."""
    if subjects != len(SUBJECTS):
        return f"；公布的是 {len(SUBJECTS)} 科"
    if not evidence or evidence["protocol"]["name"] == OURS:
        return "，加總方式同公布的成績，問法是這個專案自己的，不可並列"
    if evidence["protocol"]["own"]:
        return f"，加總方式同公布的成績，問法是 {evidence['protocol']['name']} 的，不可並列"
    return "，加總方式同公布的成績"


def protocol_lines(evidence: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Return the protocol's own figure and how far it is comparable; nothing for our own protocol."""
    if not evidence or evidence["protocol"]["name"] == OURS:
        return []
    protocol = evidence["protocol"]
    figure = metrics["model"]["accuracy"]
    if protocol["aggregate"] == "macro-4":
        figure = metrics["macro_4"]["macro_4"] if metrics["macro_4"] else None
    value = f"{figure:.4f}" if figure is not None else "算不出來（四大類沒有都有題目）"
    theirs = "檔案裡的" if protocol["own"] else "公布的"
    line = f"{setting(protocol)}：{theirs}算法是{AGGREGATES[protocol['aggregate']]}，這裡 {value}"
    differing = "；".join(protocol["differences"])
    if protocol["own"]:
        return [line, *([f"與 {protocol['name']} 不同之處：{differing}"] if differing else [])]
    if differing:
        return [line, f"不是公布的 {protocol['name']} 成績，不同之處：{differing}"]
    return [line, f"問法、計分與加總同公布的 {protocol['name']}，可以並列"]


def setting(protocol: Mapping[str, Any]) -> str:
    """Return name and settings of a protocol in a few words."""
    parts = [protocol["format"], f"{protocol['num_fewshot']}-shot", protocol["scoring"]]
    if protocol["fewshot_as_multiturn"]:
        parts.insert(2, "multiturn")
    return f"問法 {protocol['name']}（{'，'.join(parts)}）"


def rows(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) of everything a score rests on, but for the prompt itself."""
    protocol, prompt = evidence["protocol"], evidence["prompt"]
    environment, data = evidence["environment"], evidence["data"]
    kwargs, decoding = protocol["chat_template_kwargs"], protocol["decoding"]
    pairs = [
        ("問法", f"{protocol['name']}：{protocol['title']}"),
        ("來源", protocol["source"]),
        ("形式", FORMATS.get(protocol["format"], protocol["format"])),
        ("示範", f"{protocol['num_fewshot']} 題" if protocol["num_fewshot"] else "無"),
        ("示範寫成", {True: "一來一往的對話", False: "同一句裡"}.get(protocol["fewshot_as_multiturn"], "")),
        ("系統提示", protocol["system_prompt"]),
        ("樣板參數", "、".join(f"{key}={_written(value)}" for key, value in kwargs.items())),
        ("計分", protocol["scoring"]),
        ("選項順序", ORDERS.get(protocol["orders"], protocol["orders"])),
        ("次數", f"{protocol['runs']} 次，第 2 次起打亂選項" if protocol["runs"] > 1 else ""),
        ("回答長度", f"最多 {protocol['max_new_tokens']} 個 token" if protocol["max_new_tokens"] else ""),
        ("生成的旗標", "、".join(f"--{key} {_written(value)}" for key, value in decoding.items())),
        (
            "檔案裡的算法" if protocol["own"] else "公布的算法",
            "" if protocol["name"] == OURS else AGGREGATES[protocol["aggregate"]],
        ),
        ("不同之處", "；".join(protocol["differences"])),
        ("精度", f"{environment['precision']}，{environment['device']}"),
        ("版本", "、".join(f"{name} {version}" for name, version in environment["versions"].items())),
        ("題目", _data_line(data)),
        ("提示的 token", _prompt_line(prompt)),
    ]  # fmt: skip
    return [(label, value) for label, value in pairs if value]


def _written(value: object) -> str:
    """Return the value of a flag as one gives it: true, not True."""
    return value if isinstance(value, str) else dumps(value)


def _data_line(data: Mapping[str, Any]) -> str:
    release = f"，test 題數與 TMMLU+ {data['release']} 相同" if data["release"] else ""
    return f"{data['source']}，{data['split']}，{data['rows']} 題{release}"


def _prompt_line(prompt: Mapping[str, Any]) -> str:
    if not prompt or not prompt["tokens"]:
        return ""
    return f"{prompt['id']}：{prompt['tokens']} 個，SHA-256 {prompt['token_ids_sha256'][:16]}…"
