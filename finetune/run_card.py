"""What a saved model says of itself: `run_card.json` for programs, `README.md` for people.

Inference reads the card, so it asks a model the way it was taught. The card keeps the fingerprints of every
question fitted on, so that an exam that holds some of them can be told apart.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from .errors import UserError
from .exams import Question
from .models import read_json
from .prompts import METHODS, Template

FILE = "run_card.json"
FORMAT = 1
TITLES = {"held_back": "保留題", "test": "正式測驗"}  # of the sets of questions a model is examined on


@dataclass
class RunCard:
    """`scoring`: the method it was taught for. `pool`: `all` means official test rows were fitted on."""

    task: str = "exam"
    objective: str = ""
    scoring: str = "pll"
    step: int = 0  # optimizer steps it was taught
    template: Template = field(default_factory=Template)
    max_length: int = 512
    base_model: str = ""
    dataset: str = ""
    pool: str = "fit"
    flags: dict = field(default_factory=dict)
    fingerprints: list[str] = field(default_factory=list)
    results: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        card = {"format": FORMAT, **vars(self), "template": self.template.as_dict()}
        (folder / FILE).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> RunCard | None:
        """The card of a folder; None when there is none (a model that was not taught here).

        Raises:
            UserError: a card that cannot be understood.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        saved = read_json(path)
        if saved.get("format") != FORMAT:
            raise UserError(f"{path}：格式 {saved.get('format')!r} 不是這個版本讀得懂的 {FORMAT}")
        template = saved.get("template")
        if (
            saved.get("scoring") not in METHODS
            or not isinstance(template, dict)
            or not isinstance(saved.get("max_length"), int)
        ):
            raise UserError(f"{path}：scoring、template 或 max_length 不對")
        known = {name: value for name, value in saved.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "template": Template.from_dict(template)})


def fingerprints(questions: Iterable[Question]) -> list[str]:
    return sorted({question.fingerprint for question in questions})


def digest(texts: Iterable[str]) -> str:
    """One hash for many texts, in their order: 16 hex digits."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide the numbers."""
    names = ("torch", "transformers", "deepspeed", "tokenizers")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names if _installed(name)},
    }


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def model_card(card: RunCard) -> str:
    """README.md of the model folder: what it is, how it was taught, how good it became, how to ask it."""
    results = card.results
    lines = [
        "---",
        "language: zh",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [tmmluplus, multiple-choice, traditional-chinese]",
        "---",
        "",
        f"# {Path(card.base_model).name} 考題微調模型",
        "",
        f"- 底模：`{card.base_model}`",
        f"- 資料：{card.dataset}",
        f"- 目標：`{card.objective}`；作答方式：`{card.scoring}`",
        f"- 訓練題數：{len(card.fingerprints)}（指紋存於 `{FILE}`）",
        "",
        "## 成績",
        "",
    ]
    if card.pool == "all":
        lines += ["> **不可與公布的 TMMLU+ 成績比較**（`--pool all`：訓練用到了正式測驗題）。", ""]
    lines += [
        "| 題目 | 題數 | 微調後 | 95 % 區間 | 微調前 | McNemar p | 亂猜 | 全答一個字母 | 全選最長 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        if figures := results.get(name):
            tuned, (low, high) = figures["tuned"], figures["tuned"]["interval_95"]
            shown = [tuned["accuracy"], f"{low:.3f}–{high:.3f}", figures["untuned"]["accuracy"]]
            shown += [f"{figures['paired']['p_value']:.2g}", tuned["chance"]]
            shown += [tuned["majority_letter"], tuned["longest_option"]]
            cells = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in shown]
            lines.append("| " + " | ".join([title, str(tuned["n"]), *cells]) + " |")
    lines += [
        "",
        "## 使用",
        "",
        "```bash",
        'python inference.py --model_path 這個資料夾 --question "最大的行星是？" --options "A:地球 B:木星"',
        "```",
        "",
    ]
    return "\n".join(lines)
