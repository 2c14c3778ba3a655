"""Messages, results and exit codes of both scripts.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from finetune.runtime import streams
from finetune.runtime.errors import RunError, Stopped, UserError, reason
from finetune.runtime.strict_json import dumps

MODEL_FOLDER = "./my_bert_finetuned_model_hf_format"  # written by fine_tuning_llm.py, read by inference.py
# The commands that pip installs, by the script that each runs.
INSTALLED = {"fine_tuning_llm.py": "fine-tuning-llm", "inference.py": "fine-tuning-llm-inference"}


def command(script: str) -> str:
    """Return how a script is called: by its installed command where one was used, else by Python."""
    return INSTALLED[script] if Path(sys.argv[0]).stem in INSTALLED.values() else f"python {script}"


def is_main_process() -> bool:
    """Return True in the only process that logs: rank 0, by the RANK that launchers set."""
    return os.environ.get("RANK", "0") in ("", "0")


# Characters that a terminal executes instead of showing: control characters (C0, DEL, C1) except tab and line
# feed, line and paragraph separators, bidirectional marks (CVE-2021-42574); and lone surrogates, which cannot
# be written at all.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object, lines: bool = True) -> str:
    r"""Escape the characters of an untrusted text that a terminal would execute, as \x1b or \u202e.

    Args:
        lines: keep tabs and line feeds. False escapes them too, so that the text takes one line.
    """
    shown = _UNSAFE.sub(lambda match: _escape(match[0]), str(text))
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def as_json(value: object, **kwargs: Any) -> str:
    r"""Serialize a value as JSON that is safe to print to the terminal.

    Chinese stays as it is where stdout can write it; characters that a terminal would execute are escaped as
    \u009b. `kwargs` are those of `json.dumps`.
    """
    written = dumps(value, **kwargs)
    try:
        written.encode(getattr(sys.stdout, "encoding", None) or "utf-8", "surrogatepass")
    except UnicodeError:
        written = dumps(value, **{"ensure_ascii": True, **kwargs})
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


_sinks: list[Callable[[str], None]] = []  # the last one takes what `log` is given


@contextlib.contextmanager
def logging_to(sink: Callable[[str], None]) -> Iterator[None]:
    """Give what `log` is given to a function instead, in all threads, while the block runs."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


def log(text: str = "") -> None:
    """Print a line of progress to stderr, from the main process only; stdout holds results alone."""
    if _sinks:
        _sinks[-1](text)
    elif is_main_process():
        print(plain(text), file=sys.stderr, flush=True)


def print_result(text: object = "", end: str = "\n", style: str = "") -> None:
    """Print a result or a reply of the REPL to stdout.

    Args:
        style: how a terminal shows it: parameters of SGR (ECMA-48), such as `1;32`; "" for as it is.

    Raises:
        BrokenPipeError: the reader of stdout is gone.
        RunError: stdout cannot be written.
    """
    try:
        if "stdout" in streams.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        shown = f"\x1b[{style}m{plain(text)}\x1b[0m" if style else plain(text)
        print(shown, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        streams.silence(sys.stdout)
        raise RunError(f"結果寫不到標準輸出（{reason(error)}）") from error


def shows_colour() -> bool:
    """Return whether stdout is a terminal that shows colours, and the user has not said no (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_optional(text: object = "") -> None:
    """Print to stdout a result that is in a file already, so that a failure to print is no error."""
    try:
        print_result(text)
    except BrokenPipeError:
        streams.silence(sys.stdout)
    except RunError as error:
        log(f"⚠ {error}；檔案都寫好了")


def run(body: Callable[[], int | None], debug: bool = False) -> int:
    """Run a script's body and turn how it ended into an exit code; no traceback unless `debug`.

    Returns:
        0 done, 1 the run failed, 2 bad flag or bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    streams.make_robust()
    try:
        return body() or 0
    except SystemExit as error:  # raised by argparse once it has shown the help
        streams.flush()
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    except (UserError, RunError, Stopped) as error:
        if debug:
            _print_traceback()
        lines = error.problems if isinstance(error, UserError) else [str(error)]
        _print_problems("■" if isinstance(error, Stopped) else "✗", lines)
        return error.exit_code
    except KeyboardInterrupt:
        _print_problems("■", ["已中斷"])
        return 130
    except BrokenPipeError:  # the reader of our stdout is gone (`| head`)
        streams.silence(sys.stdout)
        return 1
    except Exception as error:
        if debug:
            _print_traceback()
        rank = "" if is_main_process() else f"rank {os.environ['RANK']}："
        text = f"✗ {rank}{_one_message(_in_chinese(error))}\n  加上 --debug 可看完整的錯誤經過"
        print(text, file=sys.stderr, flush=True)
        return 1
    except BaseException as error:  # a panic of Rust is not an Exception, and has no importable class
        if type(error).__name__ != "PanicException":
            raise
        if debug:
            _print_traceback()
        _print_problems(
            "✗", [f"tokenizer 讀不了這段文字：{first_line(error)[:200]}；它的 tokenizer.json 可能有問題"]
        )
        return 2


def exit_process(code: int) -> NoReturn:
    """End this process with `code`, after flushing the streams and running the atexit functions.

    A rank of a parallel run skips the finalization of the interpreter. A gloo thread that is still alive by
    then, as it is after an error and wherever a library holds the process group, aborts the process about
    one time in thirty (SIGABRT, "terminate called without an active exception"), and the launcher reports
    that instead of `code`.
    """
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        streams.flush()
        os._exit(code)
    streams.flush()
    sys.exit(code)


# Error messages of gloo and NCCL when another rank is gone.
_PEER_FAILURE = re.compile(
    "Connection closed by peer|Connection reset by peer|remote process exited|Broken pipe"
)


def first_line(error: BaseException) -> str:
    """Return the first line of the exception message."""
    return (str(error).strip().splitlines() or [""])[0]


def is_peer_failure(error: BaseException) -> bool:
    """Return True if the error only reports that another rank died."""
    return not isinstance(error, OSError) and bool(_PEER_FAILURE.search(str(error)))


def _in_chinese(error: Exception) -> str:
    """Describe a failure: in Chinese where the user can act on it, else in the library's own words."""
    if type(error).__name__ == "OutOfMemoryError":
        return f"GPU 記憶體不足；把 --micro_batch_size 減半（每步的批次大小不變）。{first_line(error)}"
    if isinstance(error, OSError) and error.filename:
        return f"檔案操作失敗：{error.filename}（{reason(error)}）"
    if is_peer_failure(error):
        return f"別的 rank 先結束了，這個 rank 也停下（{first_line(error)[:200]}）"
    return f"執行失敗（{type(error).__name__}）：{error}"


def _one_message(text: str) -> str:
    """Indent the second and later lines of a message, so that none looks like a message of its own."""
    return re.sub(r"\n(?=\S)", "\n    ", plain(text))


def _print_traceback() -> None:
    """Print the traceback of the error being handled, escaped: its text may hold anything."""
    print(plain(traceback.format_exc()), file=sys.stderr, end="", flush=True)


def _print_problems(mark: str, problems: list[str]) -> None:
    """Print one problem as a message, several as a list.

    Each node prints them once, since all ranks of a run find the same ones.
    """
    if os.environ.get("LOCAL_RANK", "0") not in ("", "0"):
        time.sleep(2)  # a launcher ends all ranks once one has ended: let local rank 0 print first
        if mark == "■":
            return
        # still running after local rank 0 had its turn: only this rank has found the problem
        problems = [f"rank {os.environ.get('RANK', '?')}：{problem}" for problem in problems]
    lines = [_one_message(problem) for problem in problems]
    listed = [f"{mark} 有 {len(lines)} 個問題：", *(f"  - {line}" for line in lines)]
    print("\n".join(listed if len(lines) > 1 else [f"{mark} {lines[0]}"]), file=sys.stderr, flush=True)
