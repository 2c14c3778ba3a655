"""Where a model comes from: base → continued pre-training → instruction tuning, each stage with the hash of
its weights, so that anyone can tell which weights a stage began from and whether they are still the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from finetune.models.loading import ADAPTER_WEIGHTS, WEIGHTS
from finetune.runtime.console import say


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
        say(
            f"⚠️ {name} 的權重與它的 run_card.json 記載的不同"
            f"（{stages[-1]['sha256'][:12]} → {own[:12]}）；來歷記為中斷"
        )
        return [{"stage": "base", "model": str(name), "sha256": own, "claims": stages}]
    return stages


def as_line(stages: list[dict]) -> str:
    """base Qwen/Qwen2.5-0.5B (1a2b3c4d5e6f) → cpt taigi.json，1000 步 (…)"""
    shown = []
    for stage in stages:
        what = f"{stage['model']}" if stage["stage"] == "base" else f"{stage['dataset']}，{stage['steps']} 步"
        known = f"（{stage['sha256'][:12]}）" if stage.get("sha256") else ""
        shown.append(f"{stage['stage']} {what}{known}")
    return " → ".join(shown)
