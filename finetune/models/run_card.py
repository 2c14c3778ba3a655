"""The run card of a saved model, `run_card.json`: how it was trained, on what, and from which base.

Inference reads the card, so that it writes prompts the way they were written in training. The card keeps the
fingerprints of every question trained on, so that an exam that contains some of them is recognised. Its
lineage is base → continued pre-training → instruction tuning, each stage with the hash of its weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

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
SKETCHED = 100_000  # the most questions of which sketches are kept: 0.3 kB each
TASK_TITLES = {
    "exam": "考題微調",
    "mlm": "持續預訓練",
    "cpt": "持續預訓練",
    "sft": "指令微調",
    "classify": "文字分類",
    "tag": "序列標註",
    "span": "抽取式問答",
    "seq2seq": "文字轉換",
}  # titles of the tasks, for the model card and the report
NEEDED = ("scoring", "template", "max_length")  # a card without them is useless
LARGEST = 1 << 53  # the largest integer that a float still represents
UNSCORED = ("", "choice")  # `scoring` of a classifier, and of a model with a head of its own for options


@dataclass
class RunCard:
    """Record of how a model was trained, saved beside its weights."""

    task: str = "exam"
    chat: str = ""  # how a causal model's messages are written (chat.STYLES); "none": trained on texts
    objective: str = ""
    scoring: str = "pll"  # the method it was trained for, or one of UNSCORED
    step: int = 0  # optimizer steps
    parameters: dict[str, int] = field(default_factory=dict)  # `all`, and `trained` of them
    template: Template = field(default_factory=Template)
    max_length: int = 512
    base_model: str = ""
    dataset: str = ""
    pool: str = "fit"  # `all`: trained on official test rows too
    flags: dict[str, Any] = field(default_factory=dict)
    fingerprints: list[str] = field(default_factory=list)
    # sketches of the same questions, unless there are more than SKETCHED; see data/contamination.py
    sketches: dict[str, str] = field(default_factory=dict)
    lineage: list[dict[str, Any]] = field(default_factory=list)  # base → this model, see `ancestors`
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry for each epoch of training
    results: dict[str, Any] = field(default_factory=dict)
    # for a model trained on texts or replies: evaluation before and after, see training/evaluate.py
    growth: dict[str, Any] = field(default_factory=dict)
    # for a classifier: metrics by set, see reports/classification.py
    labels: dict[str, Any] = field(default_factory=dict)
    # for a tagger, an extractor or an encoder-decoder: metrics by set, see reports/row_report.py
    metrics: dict[str, Any] = field(default_factory=dict)
    # features of the validation rows and of the answers to them, see training/snapshot.py
    snapshot: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the card into a folder."""
        card = {"format": FORMAT, **vars(self), "template": self.template.as_dict()}
        with atomic_open(folder / FILE) as file:
            file.write(dumps(card, indent=1))
            file.write("\n")

    @classmethod
    def read(cls, folder: str | Path) -> RunCard | None:
        """Read the card of a folder; None when there is none (a model that was not trained here).

        Raises:
            UserError: a card that cannot be read.
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
            card.trained_on  # noqa: B018  read once here, so that a spoilt card is refused before an exam
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}：fingerprints 或 sketches 不對（{error}）") from error
        return card

    @property
    def trained_on(self) -> TrainedQuestions:
        """The questions that the model was trained on."""
        known = {name: decode_sketch(text) for name, text in self.sketches.items()}
        return TrainedQuestions({**dict.fromkeys(self.fingerprints, ()), **known})


# ---- checks of each field: a card may come from an untrusted source ---------------------------------------


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


def _snapshot(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return value == {}
    answers = value.get("answers")
    if not _whole(value.get("rows")) or not (_text(value.get("set")) and _text(value.get("way"))):
        return False
    if not _object_of(_list_of(_finite))(value.get("numbers")) or not isinstance(answers, dict):
        return False
    counted = _whole(answers.get("n")) and _object_of(_whole)(answers.get("counts"))
    return not answers or (counted and isinstance(answers.get("exclusive"), bool))


def _finite(value: object) -> bool:
    return not isinstance(value, bool) and _number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


PARTS: dict[str, Callable[[object], bool]] = {
    "task": _among(*TASK_TITLES), "chat": _among("", "none", *STYLES), "objective": _text,
    "scoring": _among(*METHODS, *UNSCORED), "step": _whole, "parameters": _object_of(_whole),
    "template": _object, "max_length": partial(_whole, low=1),
    "base_model": lambda value: value == "" or is_name(value), "dataset": _text,
    "pool": _among("fit", "all"), "flags": _flags, "fingerprints": _list_of(_text),
    "sketches": _object_of(_text), "lineage": _list_of(_stage), "history": _list_of(_epoch),
    "results": _object, "growth": _object, "labels": _object, "metrics": _object,
    "snapshot": _snapshot, "versions": _object,
}  # fmt: skip


def question_fingerprints(rows: Sequence) -> dict[str, str]:
    """Return fingerprint -> sketch of the questions among some rows; "" for more than SKETCHED questions."""
    if isinstance(rows, QuestionView) and len(rows) > SKETCHED:
        return {f"{number:016x}": "" for number in rows.fingerprints.tolist()}
    return {question.fingerprint: encode_sketch(grams(question)) for question in questions_of(rows)}


def hash_texts(texts: Iterable[str]) -> str:
    """Return one hash for many texts, in their order: 16 hex digits."""
    digest = hashlib.sha256()
    for number, text in enumerate(texts):
        digest.update(("\x1f" if number else "").encode() + text.encode())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect the results."""
    names = ("torch", "transformers", "deepspeed", "tokenizers", "peft")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names if _installed(name)},
    }


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def weights_hash(name: str | Path) -> str:
    """Return the SHA-256 of a model's weights; "" where there are none (a model made from its configuration).

    It is the hash of a single file, as `sha256sum` prints it, or of the hashes of the shards, one a line in
    the order of their names.

    Args:
        name: a folder, or a hub name whose files are in the cache.
    """
    whole, parts = (_local(name, file) for file in WEIGHTS)
    if whole:
        return _sha256(whole)
    if parts:
        files = sorted(set(json.loads(parts.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [path for path in (_local(name, file) for file in files) if path]
        return hashlib.sha256("\n".join(map(_sha256, shards)).encode()).hexdigest()
    adapter = _local(name, ADAPTER_WEIGHTS)
    return _sha256(adapter) if adapter else ""


def _local(name: str | Path, file: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(name), file)
    return Path(cached) if isinstance(cached, str) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_of(card: RunCard | None) -> str:
    """Return by what the weights of a model are known in a few characters; "" where no card tells."""
    return str(card.lineage[-1].get("sha256", ""))[:12] if card and card.lineage else ""


def ancestors(name: str, card: RunCard | None, from_scratch: bool) -> list[dict[str, Any]]:
    """Return the stages that led to the base of this run, the base itself last.

    Args:
        name: the base, a folder or a name on the hub.
        card: the base's run card; None for a model that was not trained here.
        from_scratch: the base's weights are not used.
    """
    if from_scratch:
        return [{"stage": "base", "model": str(name), "sha256": ""}]
    sha256 = weights_hash(name)
    stages = list(card.lineage) if card else []
    if not stages:
        return [{"stage": "base", "model": str(name), "sha256": sha256}]
    if stages[-1].get("sha256") not in ("", sha256):
        log(
            f"⚠️ {name} 的權重與它的 run_card.json 記載的不同"
            f"（{stages[-1]['sha256'][:12]} → {sha256[:12]}）；來歷記為中斷"
        )
        return [{"stage": "base", "model": str(name), "sha256": sha256, "claims": stages}]
    return stages


def as_line(stages: list[dict[str, Any]]) -> str:
    """Return stages as text: `base Qwen/Qwen2.5-0.5B（1a2b3c4d5e6f） → cpt taigi.json，1000 步（…）`."""
    shown = []
    for stage in stages:
        data = f"{stage['model']}" if stage["stage"] == "base" else f"{stage['dataset']}，{stage['steps']} 步"
        sha256 = f"（{stage['sha256'][:12]}）" if stage.get("sha256") else ""
        shown.append(f"{stage['stage']} {data}{sha256}")
    return " → ".join(shown)
