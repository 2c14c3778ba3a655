"""Flags, messages and exit codes of both scripts. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import atexit
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from finetune.runtime import streams
from finetune.runtime.errors import RunError, Stopped, UserError, reason
from finetune.runtime.strict_json import dumps

MODEL_FOLDER = "./my_bert_finetuned_model_hf_format"  # where one script puts the model, the other finds it


def is_main_process() -> bool:
    """True in the process that speaks for all: launchers set RANK."""
    return os.environ.get("RANK", "0") in ("", "0")


# What a terminal obeys instead of showing it: control characters (C0, DEL, C1) but tab and line feed, the
# separators of lines and paragraphs, the marks that turn the direction of writing (CVE-2021-42574); and half
# characters, which cannot be written at all.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object, lines: bool = True) -> str:
    """A text that came from outside, for the terminal: what it would obey is shown as \\x1b or \\u202e.

    Args:
        lines: tabs and line feeds stay. False shows them too: the text is to stand in one line.
    """
    shown = _OBEYED.sub(lambda found: _escape(found[0]), str(text))
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def as_json(value: object, **more) -> str:
    """JSON for the terminal: Chinese as it is where stdout can write it, what a terminal would obey as
    \\u009b. Takes what `json.dumps` takes.
    """
    written = dumps(value, **more)
    try:
        written.encode(getattr(sys.stdout, "encoding", None) or "utf-8", "surrogatepass")
    except UnicodeError:
        written = dumps(value, **{"ensure_ascii": True, **more})
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def log(text: str = "") -> None:
    """One line of progress or log: stderr, so that stdout holds results alone; from the main process only."""
    if is_main_process():
        print(plain(text), file=sys.stderr, flush=True)


def print_result(text: object = "", end: str = "\n") -> None:
    """A result, or what the REPL says: stdout.

    Raises:
        BrokenPipeError: nobody reads it any more.
        RunError: it cannot be written.
    """
    try:
        if "stdout" in streams.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(plain(text), end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        streams.silence(sys.stdout)
        raise RunError(f"結果寫不到標準輸出（{reason(error)}）") from error


def print_optional(text: object = "") -> None:
    """A result that is in a file already: stdout, where nobody needs to read it."""
    try:
        print_result(text)
    except BrokenPipeError:
        streams.silence(sys.stdout)
    except RunError as error:
        log(f"⚠ {error}；檔案都寫好了")


def run(body: Callable[[], int | None], debug: bool = False) -> int:
    """Runs a script's body and turns how it ended into an exit code; no traceback unless `debug`.

    Returns:
        0 done, 1 the run failed, 2 bad flag or bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    streams.steady()
    try:
        return body() or 0
    except SystemExit as left:  # of argparse, once it has shown the help
        streams.flush()
        return left.code if isinstance(left.code, int) else int(bool(left.code))
    except (UserError, RunError, Stopped) as error:
        if debug:
            _trace()
        lines = error.problems if isinstance(error, UserError) else [str(error)]
        _complain("■" if isinstance(error, Stopped) else "✗", lines)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("■", ["已中斷"])
        return 130
    except BrokenPipeError:  # the reader of our stdout went away (`| head`)
        streams.silence(sys.stdout)
        return 1
    except Exception as error:
        if debug:
            _trace()
        rank = "" if is_main_process() else f"行程 {os.environ['RANK']} "
        text = f"✗ {rank}{_one_message(_in_chinese(error))}\n  加上 --debug 可看完整的錯誤經過"
        print(text, file=sys.stderr, flush=True)
        return 1
    except BaseException as error:  # Rust's panics are no Exception, and cannot be imported by name
        if type(error).__name__ != "PanicException":
            raise
        if debug:
            _trace()
        _complain(
            "✗", [f"tokenizer 讀不了這段文字：{first_line(error)[:200]}；它的 tokenizer.json 可能有問題"]
        )
        return 2


def exit_process(code: int) -> NoReturn:
    """Ends this process with `code`, what was printed and what waits at exit done.

    One rank among several skips the end of the interpreter. A thread of gloo that still lives by then, as it
    does after an error and wherever a library holds the process group, aborts the process about one time in
    thirty (SIGABRT, "terminate called without an active exception"), and the launcher reports that instead
    of `code`.
    """
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        streams.flush()
        os._exit(code)
    streams.flush()
    sys.exit(code)


# What gloo and NCCL say of a rank that is gone.
_OF_ANOTHER = re.compile(
    "Connection closed by peer|Connection reset by peer|remote process exited|Broken pipe"
)


def first_line(error: BaseException) -> str:
    """Of what it says."""
    return (str(error).strip().splitlines() or [""])[0]


def of_another(error: BaseException) -> bool:
    """Whether it is the end of another process that this one tells of."""
    return not isinstance(error, OSError) and bool(_OF_ANOTHER.search(str(error)))


def _in_chinese(error: Exception) -> str:
    """What happened, for the failures a person can do something about; the library's words for the others."""
    if type(error).__name__ == "OutOfMemoryError":
        return f"GPU 記憶體不足；把 --micro_batch_size 減半（每一步的題數不變）。{first_line(error)}"
    if isinstance(error, OSError) and error.filename:
        return f"檔案操作失敗：{error.filename}（{reason(error)}）"
    if of_another(error):
        return f"別的行程先結束了，這個行程也停下（{first_line(error)[:200]}）"
    return f"執行失敗（{type(error).__name__}）：{error}"


def _one_message(text: str) -> str:
    """For the terminal; its further lines are indented, so that none passes for a message of its own."""
    return re.sub(r"\n(?=\S)", "\n    ", plain(text))


def _trace() -> None:
    """The traceback of what is being handled; a library's words may hold anything too."""
    print(plain(traceback.format_exc()), file=sys.stderr, end="", flush=True)


def _complain(mark: str, lines: list[str]) -> None:
    """One message; several problems as a list. Each node says it once: the ranks of a run find the same."""
    if os.environ.get("LOCAL_RANK", "0") not in ("", "0"):
        time.sleep(2)  # a launcher ends all ranks once one has ended: the one that speaks comes first
        if mark == "■":
            return
        lines = [f"行程 {os.environ.get('RANK', '?')}：{line}" for line in lines]  # no other has found it
    lines = [_one_message(line) for line in lines]
    many = [f"{mark} 有 {len(lines)} 個問題：", *(f"  - {line}" for line in lines)]
    print("\n".join(many if len(lines) > 1 else [f"{mark} {lines[0]}"]), file=sys.stderr, flush=True)
