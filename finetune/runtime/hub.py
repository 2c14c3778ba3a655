"""Access to the Hugging Face hub: is it reachable, and which files does it or its cache have.

Every look-up at an unreachable hub costs 23 to 46 seconds of retries, so it is probed once, with a time
limit, before the first one. `huggingface_hub` reads HF_HUB_OFFLINE at import; where it is imported already,
its constant is set too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from finetune.runtime.console import command, log
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_named_as_file
from finetune.runtime.hub_health import HEALTH

PROBE_SECONDS = 6.0  # limit for DNS look-up, connection and first byte together
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT (a mirror) or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Return True when HF_HUB_OFFLINE is set, so that the cache alone is used."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def looks_local(name: str) -> bool:
    """Return True for what can only be a path: `./x`, `/x`, `~/x`, `a/b/c`, `x.csv`, `x.xls`, `考題`.

    A hub name is `name` or `owner/name` of letters, digits, `-`, `_` and `.`.
    """
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or not HUB_NAME.fullmatch(name)
        or is_named_as_file(name)
    )


def is_local(name: str) -> bool:
    """Return True for a file or folder that exists, or for a name that can only be a path."""
    return Path(name).expanduser().exists() or looks_local(name)


def resolve_cache_folder(name: str) -> str:
    """Resolve a folder of the hub's cache (models--owner--name) to a snapshot; leave other names as they are.

    The snapshot is that of `main`, or the only one there is.
    """
    folder = Path(name).expanduser()
    if not (folder / "snapshots").is_dir() or (folder / "config.json").is_file():
        return name
    main = folder / "refs" / "main"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = main.read_text(encoding="ascii").strip()
        if re.fullmatch("[0-9a-f]{40}", commit) and (folder / "snapshots" / commit).is_dir():
            return str(folder / "snapshots" / commit)
    snapshots = _snapshots(folder)
    return str(snapshots[0]) if len(snapshots) == 1 else name


def no_snapshot(folder: Path) -> str:
    """Explain why no snapshot can be chosen from a folder of the hub's cache."""
    names = "、".join(path.name for path in _snapshots(folder)[:5])
    if not names:
        return "這是 hub 的快取資料夾，裡面沒有下載好的版本（snapshots）；請重新下載"
    return f"這是 hub 的快取資料夾，有好幾個版本，不知道是哪一個；請指到 snapshots 下的一個：{names}"


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())


def prepare_for(name: str) -> None:
    """Probe the hub before `name` is loaded from it, so that an unreachable one costs its time limit once."""
    if not is_local(name):
        go_offline_if_unreachable()


def go_offline_if_unreachable() -> bool:
    """Probe the hub once; set HF_HUB_OFFLINE when it does not answer, so that the cache is used at once.

    Returns:
        True when the hub answered.
    """
    if is_offline():
        return False
    answered = threading.Event()

    def probe() -> None:
        request = urllib.request.Request(endpoint(), method="HEAD", headers={"User-Agent": "fine-tuning-llm"})
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an error status is an answer too
        except (OSError, ValueError, http.client.HTTPException):  # unreachable, or HF_ENDPOINT is invalid
            return
        answered.set()

    thread = threading.Thread(target=probe, daemon=True)  # a DNS look-up has no time limit of its own
    thread.start()
    thread.join(PROBE_SECONDS)
    if answered.is_set():
        from finetune.runtime import hub_client

        hub_client.install()
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub" in sys.modules:  # it read the variable at its import
        sys.modules["huggingface_hub"].constants.HF_HUB_OFFLINE = True
    log(f"連不上 {endpoint()}，只用本機快取")
    return False


def fetch(model: str, file: str) -> Path | None:
    """Return a file of a model on the hub, from the cache or downloaded. Imports transformers.

    None where the model has no such file, or the hub is unreachable.
    """
    from transformers.utils import cached_file

    quiet = ("gated_repo", "missing_entries", "connection_errors")
    path = cached_file(model, file, **{f"_raise_exceptions_for_{what}": False for what in quiet})
    return Path(path) if path else None


def fetch_small(model: str) -> Path | None:
    """Download all files of a model except its weights and return their folder. Imports huggingface_hub.

    They are checked before any of them is used. None where they cannot be downloaded: the caller that needs
    one reports it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = ["*.json", "*.jinja", "vocab.txt", "merges.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*/*.json"]))
    except Exception:  # the hub, its HTTP client or the disk failed: try config.json at least
        with contextlib.suppress(Exception):  # the caller that needs the file reports why it is missing
            config = fetch(model, "config.json")
            return config.parent if config else None
        return None


def cached(model: str, file: str) -> Path | None:
    """Return a file of a model from the cache; None when it has not been downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        path = try_to_load_from_cache(model, file)
    except HFValidationError:  # not a valid name of a hub repository
        return None
    return Path(path) if isinstance(path, str) else None


def cannot_fetch(what: str, name: str, flag: str, why: object) -> UserError:
    """Word the error for a model or dataset that could not be downloaded, with the ways to go on."""
    why = f"hub {HEALTH.reason}" if HEALTH.reason else why
    reason = " ".join(str(why).split())[:200] or type(why).__name__
    ways = ["用鏡像站：HF_ENDPOINT=https://鏡像站網址 python …"]
    if flag in ("--model_path", "--compare_with"):
        training = command("fine_tuning_llm.py")
        ways += [f"用本機的資料夾：{flag} ./模型資料夾", f"自己訓練一個：{training} --demo"]
    elif flag in ("--exam", "--inspect"):
        ways += [f"用本機的資料夾或檔案：{flag} ./題庫資料夾", f"用內建示範：{flag} demo"]
    else:
        ways += [
            "用本機的資料夾：--model_name_or_path ./模型資料夾、--dataset ./資料夾",
            "不下載任何東西，先跑內建示範：--demo",
        ]
    listed = "".join(f"\n      {number}. {way}" for number, way in enumerate(ways, 1))
    where = "" if "/" in name else f"這裡沒有名叫 {name} 的檔案或資料夾，hub 上"
    return UserError(
        f"{flag} {name}：{where}拿不到這個{what}（{endpoint()}）。{reason}\n    三種做法：{listed}"
    )


def quiet_libraries() -> None:
    """Silence the log lines and progress bars of transformers: this package reports what matters itself."""
    from transformers.utils import logging

    # Else transformers asks a hub service to convert a model without safetensors, and loads the conversion.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
