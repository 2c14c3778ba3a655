"""The Hugging Face hub: is it there, and a data set from it as one snapshot of files.

Every look-up against a hub that is away costs 23 to 46 seconds of retries, so it is asked once, with a time
limit, before `transformers` or `huggingface_hub` are imported (they read HF_HUB_OFFLINE at import).
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

from finetune.runtime import hub_client
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_named_as_file

PROBE_SECONDS = 6.0  # for name look-up, connection and first byte together
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT (a mirror) or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def looks_local(name: str) -> bool:
    """True for what can only be a path: `./x`, `/x`, `~/x`, `a/b/c`, `x.csv`, `x.xls`, `考題`. A hub name is
    `name` or `owner/name` of letters, digits, `-`, `_` and `.`.
    """
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or not HUB_NAME.fullmatch(name)
        or is_named_as_file(name)
    )


def is_local(name: str) -> bool:
    """True for a file or folder that is there, or that can only be meant as one."""
    return Path(name).expanduser().exists() or looks_local(name)


def located(name: str) -> str:
    """The folder of a model that is meant by a folder of the hub's cache, models--owner--name: its snapshot
    of `main`, or the only one there; any other name as it is.
    """
    folder = Path(name).expanduser()
    if not (folder / "snapshots").is_dir() or (folder / "config.json").is_file():
        return name
    main = folder / "refs" / "main"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = main.read_text(encoding="ascii").strip()
        if re.fullmatch("[0-9a-f]{40}", commit) and (folder / "snapshots" / commit).is_dir():
            return str(folder / "snapshots" / commit)
    there = _snapshots(folder)
    return str(there[0]) if len(there) == 1 else name


def no_snapshot(folder: Path) -> str:
    """Why a folder of the hub's cache says nothing of which snapshot is meant."""
    there = "、".join(path.name for path in _snapshots(folder)[:5])
    if not there:
        return "這是 hub 的快取資料夾，裡面沒有下載好的版本（snapshots）；請重新下載"
    return f"這是 hub 的快取資料夾，有好幾個版本，不知道是哪一個；請指到 snapshots 下的一個：{there}"


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())


def prepare_for(name: str) -> None:
    """To be called before `name` is loaded: a hub that is away is found out once, not at every look-up."""
    if not is_local(name):
        go_offline_if_unreachable()


def go_offline_if_unreachable() -> bool:
    """Asks the hub once; when it does not answer, HF_HUB_OFFLINE is set: the cache is used without a wait.

    Returns:
        True when the hub answered.
    """
    if is_offline():
        return False
    answered = threading.Event()

    def ask():
        request = urllib.request.Request(endpoint(), method="HEAD", headers={"User-Agent": "fine-tuning-llm"})
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # a refusal is an answer too
        except (OSError, ValueError, http.client.HTTPException):  # away, or HF_ENDPOINT is no address
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # name look-up has no time limit of its own
    thread.start()
    thread.join(PROBE_SECONDS)
    if answered.is_set():
        hub_client.use()
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub" in sys.modules:  # it read the variable at its import
        sys.modules["huggingface_hub"].constants.HF_HUB_OFFLINE = True
    log(f"連不上 {endpoint()}，只用本機快取")
    return False


def fetch(model: str, file: str) -> Path | None:
    """A file of a model on the hub, from the cache or fetched; None where the model has none, or the hub is
    away. Imports transformers.
    """
    from transformers.utils import cached_file

    quiet = ("gated_repo", "missing_entries", "connection_errors")
    found = cached_file(model, file, **{f"_raise_exceptions_for_{what}": False for what in quiet})
    return Path(found) if found else None


def fetch_small(model: str) -> Path | None:
    """The folder of a model's files but its weights, to be looked at before any of them is used; None where
    they cannot be had, which whoever needs one says. Imports huggingface_hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = ["*.json", "*.jinja", "vocab.txt", "merges.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*/*.json"]))
    except Exception:  # the hub's, its HTTP client's or the disk's: at least the file that all begins with
        with contextlib.suppress(Exception):  # which cannot be had either: whoever needs it says why
            found = fetch(model, "config.json")
            return found.parent if found else None
        return None


def cached(model: str, file: str) -> Path | None:
    """The same of what has been fetched already."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = try_to_load_from_cache(model, file)
    except HFValidationError:  # no name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def cannot_fetch(what: str, name: str, flag: str, why: object) -> UserError:
    """The error for a model or data set that could not be had, with the three ways on."""
    why = hub_client.MANNERS.reason and f"hub {hub_client.MANNERS.reason}" or why
    reason = " ".join(str(why).split())[:200] or type(why).__name__
    ways = ["用鏡像站：HF_ENDPOINT=https://鏡像站網址 python …"]
    if flag in ("--model_path", "--compare_with"):
        ways += [f"用本機的資料夾：{flag} ./模型資料夾", "自己訓練一個：python fine_tuning_llm.py --demo"]
    elif flag in ("--exam", "--inspect"):
        ways += [f"用本機的資料夾或檔案：{flag} ./題庫資料夾", f"用內建示範：{flag} demo"]
    else:
        ways += [
            "用本機的資料夾：--model_name_or_path ./模型資料夾、--dataset ./資料夾",
            "不下載任何東西，先跑內建示範：--demo",
        ]
    listed = "".join(f"\n      {number}. {way}" for number, way in enumerate(ways, 1))
    here = "" if "/" in name else f"這裡沒有名叫 {name} 的檔案或資料夾，hub 上"
    return UserError(f"{flag} {name}：{here}拿不到這個{what}（{endpoint()}）。{reason}\n    三條路：{listed}")


def quiet_libraries() -> None:
    """Transformers reports by log lines and bars of its own; what matters is checked here and said once."""
    from transformers.utils import logging

    # Else a model of the hub without safetensors is sent to a service to be made anew, and that is loaded.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
