"""Checks of the flags of --serve and --drift against one another and against this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from pathlib import Path

from finetune.cli.file_checks import is_same_file, source_problems, target_problems
from finetune.cli.inference_args import InferenceArgs
from finetune.cli.job_flags import idle_flags
from finetune.runtime.errors import UserError, reason, shown
from finetune.runtime.listening import listen
from finetune.runtime.server_address import is_server

SERVING = {"host", "port", "api_key", "cors_origin", "max_queue", "log_texts", "watch"}
COMPARING = {"drift_reference", "drift_bound"}
USED_BY = {  # job -> the flags that it uses
    "--serve": {"serve", *SERVING, "served_model", "request_timeout", "pooling", "max_answer_length"},
    "--drift": {"drift", *COMPARING, "report"},
}
PER_REQUEST = "由每一個請求自己決定，寫在 JSON 裡"
INSTALL = "pip install -r requirements-serve.txt"
LIBRARIES = ("fastapi", "httptools", "prometheus_client", "starlette", "uvicorn")
LOCAL_NAMES = ("localhost", "ip6-localhost")
KEY = re.compile(r"[!-~]{8,}")
ORIGIN = re.compile(r"https?://[^/\s?#@*]+")


def check_serve(args: InferenceArgs) -> None:
    """Check the flags of a server, and of --drift.

    Raises:
        UserError: with every problem.
    """
    if not args.serve and args.drift is None:
        names = sorted(args.given & (SERVING | COMPARING))
        if names:
            owner = "--drift" if COMPARING.issuperset(names) else "--serve"
            raise UserError(f"{'、'.join('--' + name for name in names)} 要與 {owner} 一起給")
        return
    job = "--serve" if args.serve else "--drift"
    problems = [
        f"{flag} 與 {job} 不能一起用" + (f"：{PER_REQUEST}" if args.serve else "")
        for flag in idle_flags(args, USED_BY[job]).values()
    ]
    if args.drift is not None:
        problems += source_problems("--drift", Path(args.drift))
        if args.drift_reference is not None:
            problems += source_problems("--drift_reference", Path(args.drift_reference))
            if is_same_file(args.drift, args.drift_reference):
                problems.append(f"--drift_reference 與 --drift 是同一個檔案：{args.drift}")
    else:
        problems += _server_problems(args)
    if problems:
        raise UserError(problems)


def _server_problems(args: InferenceArgs) -> list[str]:
    problems = [not_installed(name) for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if is_server(args.model_path):
        problems.append(f"--model_path {args.model_path}：--serve 要本機的模型，不轉送給別的伺服器")
    if not is_loopback(args.host) and args.api_key is None:
        problems.append(
            f"--host {args.host}：別的機器也連得到，要有 --api_key env:NAME 或 --api_key FILE；"
            "只給這台機器用就不加 --host"
        )
    if args.api_key is not None:
        try:
            read_keys(args.api_key)
        except UserError as error:
            problems += error.problems
    problems += [
        f"--cors_origin {shown(origin)}：應為網站的來源，例如 https://example.edu.tw（不含路徑，也不能是 *）"
        for origin in args.cors_origin
        if not ORIGIN.fullmatch(origin)
    ]
    try:
        listen(args.host, args.port).close()  # before a model is loaded
    except UserError as error:
        problems += error.problems
    if args.watch is not None:
        problems += target_problems("--watch", Path(args.watch), (".jsonl",))
    return problems


def not_installed(library: str) -> str:
    """Return what is said of a library of requirements-serve.txt that is not installed."""
    return f"--serve：沒有安裝 {library}；請先執行 {INSTALL}"


def is_loopback(host: str) -> bool:
    """Return True for an address that only this machine reaches."""
    if host.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_keys(place: str) -> tuple[str, ...]:
    """Return the keys of --api_key: those of a file, one a line, or the one of an environment variable.

    Raises:
        UserError: there is none, or what is there is no key; it is not repeated.
    """
    if place.startswith("env:"):
        name = place.removeprefix("env:")
        lines = [os.environ.get(name, "")]
        where = f"環境變數 {name}"
    else:
        where = f"檔案 {place}"
        try:
            lines = Path(place).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UserError(
                f"--api_key：讀不到這個檔案（{reason(error)}）；要 env:環境變數的名稱，或檔案，"
                "金鑰本身不寫在指令裡（ps 看得到）"
            ) from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UserError(f"--api_key：{where} 裡沒有金鑰")
    if not all(map(KEY.fullmatch, keys)):
        raise UserError(f"--api_key：{where} 裡有不像金鑰的一行；要 8 個以上的英數字與符號，沒有空白")
    return keys
