"""What a saved model says of itself: `run_card.json` for programs, `README.md` for people.

Inference reads the card, so it asks a model the way it was taught. The card keeps the fingerprints of every
question fitted on, so that an exam that holds some of them can be told apart. Its lineage says where a model
comes from: base → continued pre-training → instruction tuning, each stage with the hash of its weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from finetune.data.contamination import TrainedQuestions, decode_sketch, encode_sketch, grams
from finetune.data.question_store import QuestionView, questions_of
from finetune.models.source_checks import ADAPTER_WEIGHTS, WEIGHTS
from finetune.prompts.chat import STYLES
from finetune.prompts.exam import Template
from finetune.prompts.scoring_methods import METHODS
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.files import atomic_open, read_json
from finetune.runtime.strict_json import dumps
from finetune.runtime.untrusted import is_name

FILE = "run_card.json"
FORMAT = 1
SKETCHED = 100_000  # questions, of which sketches are kept: 0.3 kB each
TASK_TITLES = {
    "exam": "考題微調",
    "mlm": "續訓",
    "cpt": "續訓",
    "sft": "問答微調",
    "classify": "分類",
}  # of tasks
NEEDED = ("scoring", "template", "max_length")  # a card without them says nothing
LARGEST = 1 << 53  # a whole number that a float still holds
UNSCORED = ("", "choice")  # `scoring` of a classifier, and of a model with a head of its own for options


@dataclass
class RunCard:
    """`scoring`: the method it was taught for, or one of UNSCORED. `pool`: `all` means official test rows
    were fitted on.
    """

    task: str = "exam"
    chat: str = ""  # of a causal model: how messages are written (chats.STYLES), or none: it was taught texts
    objective: str = ""
    scoring: str = "pll"
    step: int = 0  # optimizer steps it was taught
    parameters: dict[str, int] = field(default_factory=dict)  # `all`, and `trained` of them
    template: Template = field(default_factory=Template)
    max_length: int = 512
    base_model: str = ""
    dataset: str = ""
    pool: str = "fit"
    flags: dict = field(default_factory=dict)
    fingerprints: list[str] = field(default_factory=list)
    sketches: dict[str, str] = field(
        default_factory=dict
    )  # of them, but of very many; see data/contamination.py
    lineage: list[dict] = field(default_factory=list)  # base → this model, see models/lineage.py
    history: list[dict] = field(default_factory=list)  # of training, an entry an epoch
    results: dict = field(default_factory=dict)
    growth: dict = field(default_factory=dict)  # of a model taught texts or replies, see training/growth.py
    labels: dict = field(
        default_factory=dict
    )  # of a classifier: figures by set, see reports/classification.py
    versions: dict = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        card = {"format": FORMAT, **vars(self), "template": self.template.as_dict()}
        with atomic_open(folder / FILE) as file:
            file.write(dumps(card, indent=1))
            file.write("\n")

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
        if saved.get("format") != FORMAT or saved["format"] is True:  # which is 1, too
            raise UserError(f"{path}：格式 {saved.get('format')!r:.60} 不是這個版本讀得懂的 {FORMAT}")
        known = {name: value for name, value in saved.items() if name in cls.__dataclass_fields__}
        wrong = [
            f"{path}：{name} 不對，得到 {known.get(name)!r:.60}；刪去這個檔案，就以預設的方式使用這個模型"
            for name, makes_sense in PARTS.items()
            if (name in known or name in NEEDED) and not makes_sense(known.get(name))
        ]
        if wrong:
            raise UserError(wrong)
        card = cls(**{**known, "template": Template.from_dict(known["template"])})
        try:
            card.taught  # noqa: B018  read once here, so that a spoilt card is refused before an exam
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}：fingerprints 或 sketches 不對（{error}）") from error
        return card

    @property
    def taught(self) -> TrainedQuestions:
        """What the model was fitted on, to look questions up in."""
        known = {name: decode_sketch(text) for name, text in self.sketches.items()}
        return TrainedQuestions({**dict.fromkeys(self.fingerprints, ()), **known})


# ---- what each part of a card must be, that a stranger may have written ------------------------------------


def _text(value: object) -> bool:
    return isinstance(value, str)


def _object(value: object) -> bool:
    return isinstance(value, dict)


def _whole(value: object, low: int = 0) -> bool:
    return type(value) is int and low <= value <= LARGEST


def _number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST)


def _among(*words: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in words


def _flags(value: object) -> bool:
    return isinstance(value, dict) and _whole(value.get("seed", 0))


def _stage(value: object) -> bool:
    if not isinstance(value, dict) or not _text(value.get("stage")) or not _text(value.get("sha256", "")):
        return False
    if value["stage"] == "base":
        return _text(value.get("model"))
    return _text(value.get("dataset")) and _whole(value.get("steps"))


def _epoch(value: object) -> bool:
    return isinstance(value, dict) and _whole(value.get("step")) and all(map(_number, value.values()))


def _list_of(one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _object_of(one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(one, value.values()))


PARTS: dict[str, Callable[[object], bool]] = {
    "task": _among(*TASK_TITLES), "chat": _among("", "none", *STYLES), "objective": _text,
    "scoring": _among(*METHODS, *UNSCORED), "step": _whole, "parameters": _object_of(_whole),
    "template": _object, "max_length": partial(_whole, low=1),
    "base_model": lambda value: value == "" or is_name(value), "dataset": _text,
    "pool": _among("fit", "all"), "flags": _flags, "fingerprints": _list_of(_text),
    "sketches": _object_of(_text), "lineage": _list_of(_stage), "history": _list_of(_epoch),
    "results": _object, "growth": _object, "labels": _object, "versions": _object,
}  # fmt: skip


def question_fingerprints(rows: Sequence) -> dict[str, str]:
    """What a card keeps of the questions among some rows: fingerprint -> sketch, "" of more than SKETCHED."""
    if isinstance(rows, QuestionView) and len(rows) > SKETCHED:
        return {f"{number:016x}": "" for number in rows.fingerprints.tolist()}
    return {question.fingerprint: encode_sketch(grams(question)) for question in questions_of(rows)}


def hash_texts(texts: Iterable[str]) -> str:
    """One hash for many texts, in their order: 16 hex digits."""
    found = hashlib.sha256()
    for number, text in enumerate(texts):
        found.update(("\x1f" if number else "").encode() + text.encode())
    return found.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide the numbers."""
    names = ("torch", "transformers", "deepspeed", "tokenizers", "peft")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names if _installed(name)},
    }


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def weights_hash(name: str | Path) -> str:
    """SHA-256 of a model's weights: of its one file, as `sha256sum` prints it, or of the hashes of its parts,
    one a line in the order of their names. "" where there are none (a model made from its configuration).

    Args:
        name: a folder, or a hub name whose files are in the cache.
    """
    whole, parts = (_local(name, file) for file in WEIGHTS)
    if whole:
        return _sha256(whole)
    if parts:
        files = sorted(set(json.loads(parts.read_text(encoding="utf-8"))["weight_map"].values()))
        found = [path for path in (_local(name, file) for file in files) if path]
        return hashlib.sha256("\n".join(map(_sha256, found)).encode()).hexdigest()
    adapter = _local(name, ADAPTER_WEIGHTS)
    return _sha256(adapter) if adapter else ""


def _local(name: str | Path, file: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(name), file)
    return Path(found) if isinstance(found, str) else None


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def ancestors(name: str, card, from_scratch: bool) -> list[dict]:
    """The stages that led to the base of this run, the base itself last.

    Args:
        card: the base's run card; None for a model that was not taught here.
    """
    if from_scratch:
        return [{"stage": "base", "model": str(name), "sha256": ""}]
    own = weights_hash(name)
    stages = list(card.lineage) if card else []
    if not stages:
        return [{"stage": "base", "model": str(name), "sha256": own}]
    if stages[-1].get("sha256") not in ("", own):
        log(
            f"⚠️ {name} 的權重與它的 run_card.json 記載的不同"
            f"（{stages[-1]['sha256'][:12]} → {own[:12]}）；來歷記為中斷"
        )
        return [{"stage": "base", "model": str(name), "sha256": own, "claims": stages}]
    return stages


def as_line(stages: list[dict]) -> str:
    """Base Qwen/Qwen2.5-0.5B (1a2b3c4d5e6f) → cpt taigi.json，1000 步 (…)"""
    shown = []
    for stage in stages:
        what = f"{stage['model']}" if stage["stage"] == "base" else f"{stage['dataset']}，{stage['steps']} 步"
        known = f"（{stage['sha256'][:12]}）" if stage.get("sha256") else ""
        shown.append(f"{stage['stage']} {what}{known}")
    return " → ".join(shown)
