"""Processes that run a script without the six seconds of imports that each costs: they are forked from a
server that has the libraries already. Each is a process of its own and runs the file as `python script` does.
The workers of xdist share a server. It draws no pictures, except for the commands of the documents.

What launchers do, and what is imported when, shows only without this: see test_engine, test_stopping.

As a program it is the server, or, under the name `python` in a folder that is first on PATH, a Python that
has our two scripts run there and everything else by the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

BARE = (  # libraries that read nothing of the environment at their import, unlike those of the hub
    "torch", "torch._dynamo", "torch.distributed.tensor", "sklearn.feature_extraction.text",
    "sklearn.linear_model", "sklearn.metrics", "scipy.stats", "jieba", "matplotlib.pyplot", "pytest",
)  # fmt: skip
LIBRARIES = (
    *BARE, "transformers", "transformers.models.bert.modeling_bert", "peft", "safetensors.torch", "jinja2",
    "transformers.models.qwen2.modeling_qwen2",
)  # fmt: skip
SCRIPTS = ("fine_tuning_llm.py", "inference.py")
SOCKET = "TESTS_FORKED_SOCKET"  # the environment variable with the server's address
STEPS = "TESTS_FORKED_STEPS"  # set: a training command that begins a run and names no steps takes so many
NAMES_STEPS = {"--max_steps", "--resume", "--load_dir", "--verify_resume", "--dry_run", "--help"}
WITH_PICTURES = "TESTS_WITH_PICTURES"  # set where what is drawn is looked at
PIXEL = bytes.fromhex(  # a PNG of one white pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63f80f00010101"
    "00b138f6140000000049454e44ae426082"
)
PATIENCE = 60  # seconds in which the others have to end when one rank has failed and they were told
_SIZE = struct.Struct("<Q")


class Process:
    """A script that runs, as subprocess.Popen.

    Args:
        words: the script, and its arguments.
        streams: what its stdin, stdout and stderr shall be.
        server: the address of the server.
    """

    def __init__(self, words: list[str], cwd: str, environment: dict[str, str], streams, server: str):
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(server)
        wanted = json.dumps({"argv": words, "cwd": cwd, "environment": environment}).encode()
        socket.send_fds(self._line, [_SIZE.pack(len(wanted))], [stream.fileno() for stream in streams])
        self._line.sendall(wanted)
        self.pid = int(self._hear())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code as Popen has it, -9 where it was killed; None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._hear())
            self._line.close()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _hear(self) -> bytes:
        said = b""
        while not said.endswith(b"\n"):
            if not (more := self._line.recv(1)):
                raise RuntimeError("the server of tests/forked.py has ended; its last words are above")
            said += more
        return said


def start(words: list, cwd: Path, out, **env: str) -> Process:
    """Starts `python words…`; what it says goes to the file `out`."""
    from conftest import environment

    with open(os.devnull) as nothing:
        return Process(list(map(str, words)), str(cwd), environment(**env), (nothing, out, out), address())


def run_ranks(
    cwd: Path, script: Path | str, *argv, ranks: int = 2, timeout: float = 300, bare: bool = False, **env: str
):
    """Runs a script as `torchrun --nproc_per_node ranks` does; `ranks=0` is without a launcher.

    Args:
        bare: the process imports the libraries of the hub itself, and so reads `env` as any other.
        env: environment variables.

    Returns:
        a CompletedProcess: the code of the first rank that failed, and what all of them said.
    """
    from conftest import environment, free_port

    words = list(map(str, [script, *argv]))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    place["LOCAL_WORLD_SIZE"] = str(ranks)
    places = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)] or [{}]
    with contextlib.ExitStack() as held:
        nothing = held.enter_context(open(os.devnull))
        out, err = (held.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        running = [
            Process(words, str(cwd), environment(**env, **one), (nothing, out, err), address(bare))
            for one in places
        ]
        code, end = 0, time.monotonic() + timeout
        while running:
            ended = [process for process in running if process.poll() is not None]
            running = [process for process in running if process not in ended]
            failed = [process.returncode for process in ended if process.returncode]
            if failed and not code:
                code, end = failed[0], min(end, time.monotonic() + PATIENCE)
                for process in running:  # as launchers do
                    process.send_signal(signal.SIGTERM)
            late = time.monotonic() > end
            for process in running if late else ():
                process.send_signal(signal.SIGKILL)
            assert not late, f"{words} did not end in {timeout} s\n{_read(err)[-3000:]}"
            time.sleep(0.01)
        return subprocess.CompletedProcess(words, code, _read(out), _read(err))


def run_bare(argv: list, cwd: Path, timeout: float = 300, **env: str):
    """Runs `python script …` as conftest.run_process does; its libraries of the hub read `env`."""
    return run_ranks(cwd, *argv[1:], ranks=0, timeout=timeout, bare=True, **env)


def _read(stream) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def quick_python(folder: Path, **env: str) -> dict[str, str]:
    """Environment variables under which `python fine_tuning_llm.py …` is run by a server.

    Args:
        folder: an empty one, for the Python that is found first.
        env: more of them. Libraries read some at their import, so each set of them has its own server.
    """
    from conftest import environment

    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n" + Path(__file__).read_text("utf-8"), encoding="utf-8")
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{environment()['PATH']}"
    return environment(**env, **{SOCKET: address(**env), WITH_PICTURES: "1", "PATH": path})


def address(bare: bool = False, **env: str) -> str:
    """Address of this test run's server; it is started at the first call, and ends with the run.

    Args:
        bare: it has no library of the hub.
        env: what libraries read at their import.
    """
    from conftest import environment
    from filelock import FileLock

    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    which = sha256(repr((bare, sorted(env.items()))).encode()).hexdigest()[:12]
    folder = f"{tempfile.gettempdir()}/forked_{run}_{which}"
    with FileLock(f"{folder}.lock"):
        if not os.path.exists(f"{folder}/socket"):
            os.makedirs(folder, exist_ok=True)
            server = subprocess.Popen(
                [sys.executable, __file__, folder, str(run), "bare" if bare else "all"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=environment(**env),
                start_new_session=True,
            )
            assert server.stdout.readline(), "the server did not start"
    return f"{folder}/socket"


def draw_nothing(patch) -> None:
    """Pictures of one pixel and pages without a font of their own: drawing and cutting take most of the time
    of a small run.

    Args:
        patch: a pytest.MonkeyPatch.
    """
    from finetune.runtime.files import atomic_open

    def save(figure, path: Path, dpi: int) -> None:
        with atomic_open(path, "wb") as stream:
            stream.write(PIXEL)

    patch.setattr("finetune.reports.plots._save", save)
    patch.setattr("finetune.reports.html.embedded", lambda characters: "")


# ---- the server --------------------------------------------------------------------------------------------


def serve(folder: str, run: int, bare: bool) -> None:
    """Forks a process at each request, as long as the process of the test run lives."""
    import gc
    import importlib
    import pkgutil
    import shutil

    root = Path(__file__).resolve().parents[1]
    sys.path[0] = str(root)
    ready, complains = os.dup(1), os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print at their import is nobody's answer
    os.dup2(1, 2)
    try:
        for name in BARE if bare else LIBRARIES:
            importlib.import_module(name)
        if not bare:
            importlib.import_module("finetune.training.deepspeed_engine").import_deepspeed(on_gpu=False)
            for module in pkgutil.walk_packages([str(root / "finetune")], "finetune."):
                importlib.import_module(module.name)
        importlib.import_module("jieba").initialize()
    finally:
        os.dup2(complains, 2)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(64)
        os.write(ready, b"ready\n")
        os.close(ready)
        running: dict[int, socket.socket] = {}
        while True:
            if select.select([listener], [], [], 0.02)[0]:
                line, _ = listener.accept()
                running[_begin(line, [listener, line, *running.values()])] = line
            elif not _is_alive(run):
                break
            _tell_ends(running)
    shutil.rmtree(folder)
    Path(f"{folder}.lock").unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tell_ends(running: dict[int, socket.socket]) -> None:
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        with contextlib.suppress(OSError):  # who asked has gone
            running[child].sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        running.pop(child).close()


def _begin(line: socket.socket, ours: list[socket.socket]) -> int:
    """Starts what is asked for; returns its process id."""
    head, streams, *_ = socket.recv_fds(line, _SIZE.size, 3)
    (size,) = _SIZE.unpack(head)
    raw = line.recv(size, socket.MSG_WAITALL)
    sys.stdout.flush()
    sys.stderr.flush()
    if not (child := os.fork()):
        os.setpgid(0, 0)
        for one in ours:
            one.close()
        _become(json.loads(raw), streams)
    os.setpgid(child, child)
    for stream in streams:
        os.close(stream)
    line.sendall(f"{child}\n".encode())
    return child


def _become(wanted: dict, streams: list[int]) -> None:
    """Makes of this fork what `python script …` would be, and ends it."""
    import runpy

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    script = Path(wanted["argv"][0])
    if script.resolve().parent != Path(__file__).resolve().parents[1]:  # it may have a package of its own
        for name in [name for name in sys.modules if name.split(".")[0] == "finetune"]:
            del sys.modules[name]
    elif WITH_PICTURES not in os.environ:
        import pytest

        draw_nothing(pytest.MonkeyPatch())
    sys.argv, sys.path[0] = wanted["argv"], str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    sys.exit(0)


def stand_in() -> None:
    """Stand in for `python …` where quick_python() comes first on the path."""
    if not sys.argv[1:] or Path(sys.argv[1]).name not in SCRIPTS:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    streams, server, words = (sys.stdin, sys.stdout, sys.stderr), os.environ[SOCKET], sys.argv[1:]
    if STEPS in os.environ and Path(words[0]).name == "fine_tuning_llm.py" and not NAMES_STEPS & {*words}:
        words += ["--max_steps", os.environ[STEPS]]
    process = Process(words, os.getcwd(), dict(os.environ), streams, server)
    signal.signal(signal.SIGTERM, lambda signum, frame: process.send_signal(signum))
    sys.exit(process.wait() % 256)


if __name__ == "__main__":
    if Path(sys.argv[0]).name == "python":
        stand_in()
    else:
        serve(sys.argv[1], int(sys.argv[2]), bare=sys.argv[3] == "bare")
