"""Ranks of a run without the nine seconds of imports that each costs: they are forked from a process that has
the libraries already. The rank itself is a process of its own, which runs the script as `python script` does.

What a launcher does, and what is imported when, shows only under a real one: see test_engine, test_stopping.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = (
    "torch", "transformers", "transformers.models.bert.modeling_bert", "peft", "safetensors.torch", "jinja2",
    "transformers.models.qwen2.modeling_qwen2", "sklearn.metrics", "scipy.stats", "jieba", "matplotlib.pyplot",
)  # fmt: skip
PATIENCE = 60  # seconds in which the others have to end when one rank has failed and they were told
_server: list[subprocess.Popen] = []


def run_ranks(cwd: Path, script: Path | str, *argv, ranks: int = 2, timeout: float = 300):
    """Runs a script as `torchrun --nproc_per_node ranks` does; `ranks=0` is without a launcher.

    Returns:
        a CompletedProcess: the code of the first rank that failed, and what all of them said.
    """
    from conftest import environment, free_port

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    place["LOCAL_WORLD_SIZE"] = str(ranks)
    places = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)] or [{}]
    with tempfile.TemporaryDirectory() as said:
        streams = [Path(said) / name for name in ("out", "err")]
        wanted = {
            "argv": list(map(str, [Path(cwd) / script, *argv])), "cwd": str(cwd), "timeout": timeout,
            "streams": list(map(str, streams)), "environments": [environment(**one) for one in places],
        }  # fmt: skip
        server = _serving()
        server.stdin.write(json.dumps(wanted) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in streams)
    assert not answer["late"], f"{wanted['argv']} did not end in {timeout} s\n{err[-3000:]}"
    return subprocess.CompletedProcess(wanted["argv"], answer["code"], out, err)


def _serving() -> subprocess.Popen:
    """The server of this worker."""
    from conftest import environment

    if not _server or _server[0].poll() is not None:
        words = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _server[:] = [subprocess.Popen(words, env=environment(), start_new_session=True, **pipes)]
        atexit.register(_server[0].stdin.close)  # which ends it
    return _server[0]


# ---- the server --------------------------------------------------------------------------------------------


def serve() -> None:
    import importlib
    import pkgutil

    root = Path(__file__).resolve().parents[1]
    sys.path[0] = str(root)
    speaks, complains = os.fdopen(os.dup(1), "w"), os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print at their import is no answer
    os.dup2(1, 2)
    for name in LIBRARIES:
        importlib.import_module(name)
    import finetune.engine

    finetune.engine.import_deepspeed(on_gpu=False)
    for module in pkgutil.iter_modules([str(root / "finetune")]):
        importlib.import_module(f"finetune.{module.name}")
    os.dup2(complains, 2)
    gc.freeze()
    for line in sys.stdin:
        speaks.write(json.dumps(_run(json.loads(line))) + "\n")
        speaks.flush()


def _run(wanted: dict) -> dict:
    sys.stdout.flush()
    sys.stderr.flush()
    running = set()
    for environment in wanted["environments"]:
        if not (child := os.fork()):
            _become(wanted, environment)
        os.setpgid(child, child)
        running.add(child)
    code, end, late = 0, time.monotonic() + wanted["timeout"], False
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in running:
            running.remove(child)
            failed = os.waitstatus_to_exitcode(status)
            if failed and not code:
                code, end = failed, min(end, time.monotonic() + PATIENCE)
                for other in running:  # as launchers do
                    os.killpg(other, signal.SIGTERM)
        elif time.monotonic() > end:
            late, end = True, float("inf")
            for child in running:
                os.killpg(child, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return {"code": code, "late": late}


def _become(wanted: dict, environment: dict) -> None:
    """Makes of this fork what `python script …` would be, and ends it."""
    os.setpgid(0, 0)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)
    for number, path in enumerate(wanted["streams"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    script = wanted["argv"][0]
    sys.argv, sys.path[0] = wanted["argv"], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    serve()
