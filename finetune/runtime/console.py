"""Flags, messages and exit codes of both scripts. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from finetune.cli import synonyms
from finetune.runtime import streams
from finetune.runtime.errors import RunError, Stopped, UserError, nearest, reason, shown
from finetune.runtime.strict_json import dumps

HIGHEST = 2**31 - 1  # of a whole number in a flag: what every library takes
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes of a name, characters of a path: more, no file system takes
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
    \\u009b. Takes what `json.dumps` takes."""
    written = dumps(value, **more)
    try:
        written.encode(getattr(sys.stdout, "encoding", None) or "utf-8", "surrogatepass")
    except UnicodeError:
        written = dumps(value, **{"ensure_ascii": True, **more})
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def say(text: str = "") -> None:
    """One line of progress or log: stderr, so that stdout holds results alone; from the main process only."""
    if is_main_process():
        print(plain(text), file=sys.stderr, flush=True)


def show(text: object = "", end: str = "\n") -> None:
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


def tell(text: object = "") -> None:
    """A result that is in a file already: stdout, where nobody needs to read it."""
    try:
        show(text)
    except BrokenPipeError:
        streams.silence(sys.stdout)
    except RunError as error:
        say(f"⚠ {error}；檔案都寫好了")


class _Bad:
    """A flag's value that could not be read. Kept, not raised, so that all problems are reported together."""

    def __init__(self, value: str, wanted: str):
        self.value, self.wanted = value, wanted


def _reader(read: Callable[[str], object], wanted: str) -> Callable[[str], object]:
    def convert(text: str):
        try:
            return read(text)
        except (ValueError, TypeError):
            return _Bad(text, wanted)

    return convert


def whole(low: int = 0, high: int = HIGHEST) -> Callable[[str], object]:
    """argparse type: a whole number in [low, high]."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # 3.0 and 1e5, as YAML files have them
            if not float(text).is_integer():
                raise
            number = int(float(text))
        if not low <= number <= high:
            raise ValueError
        return number

    limit = f"（最多 {HIGHEST}）" if high == HIGHEST else ""
    return _reader(read, f"{low} 以上的整數{limit}" if limit else f"{low} 到 {high} 的整數")


def number(low: float = 0.0, high: float | None = None, above: bool = False) -> Callable[[str], object]:
    """argparse type: a finite number in [low, high]; `above` leaves `low` itself out."""

    def read(text: str) -> float:
        value = float(text)
        enough = low < value if above else low <= value  # NaN is neither
        if not enough or value == float("inf") or (high is not None and value > high):
            raise ValueError
        return value

    bound = f"大於 {low:g}" if above else f"{low:g} 以上"
    return _reader(read, f"{bound}的數" if high is None else f"{bound}、最多 {high:g} 的數")


def place(text: str) -> object:
    """argparse type: the name of a file, a folder or something on the hub; `~` is the home folder.

    A shell leaves `--flag=~/x` as it is.
    """

    def read(raw: str) -> str:
        if not raw.strip():  # a variable of a shell that is not set
            raise ValueError
        path = os.path.expanduser(raw)
        long = len(path) > LONGEST_PATH or max(map(len, os.fsencode(path).split(b"/"))) > LONGEST_NAME
        if long or path.startswith("~") or "\0" in path:
            raise ValueError
        return path

    wanted = f"檔案、資料夾或 hub 上的名稱（不能是空的；一段最多 {LONGEST_NAME} 個位元組；~ 是家目錄）"
    return _reader(read, wanted)(text)


def one_of(*choices: str) -> Callable[[str], object]:
    """argparse type: one of the words given."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return _reader(read, "、".join(choices) + " 其中之一")


def some_of(*choices: str) -> Callable[[str], object]:
    """argparse type: some of the words given, by commas, in the order given here; `all` or `none` of them."""

    def read(text: str) -> list[str]:
        chosen = {part.strip() for part in re.split(r"[,，、]", text) if part.strip()}
        if chosen in ({"all"}, {"none"}):
            return list(choices) if chosen == {"all"} else []
        if not chosen or chosen - set(choices):
            raise ValueError
        return [choice for choice in choices if choice in chosen]

    return _reader(read, f"all、none，或以逗號分開的 {'、'.join(choices)}")


def shares(text: str) -> object:
    """argparse type: three shares that add up to 1, as 0.70,0.25,0.05."""

    def read(raw: str) -> tuple[float, ...]:
        parts = tuple(float(part) for part in raw.split(","))
        if len(parts) != 3 or min(parts) < 0 or parts[0] == 0 or not abs(sum(parts) - 1) < 1e-6:
            raise ValueError
        return parts

    return _reader(read, "三個相加為 1 的數（訓練、驗證、保留），例如 0.70,0.25,0.05")(text)


def words(text: str) -> object:
    """argparse type: words separated by commas, as 好,晴朗,下雨."""

    def read(raw: str) -> list[str]:
        parts = [part.strip() for part in re.split(r"[,，、]", raw)]
        if not all(parts):
            raise ValueError
        return list(dict.fromkeys(parts))

    return _reader(read, "以逗號分開的詞，例如 好,晴朗,下雨")(text)


class Parser(argparse.ArgumentParser):
    """argparse that takes `--a-b` for `--a_b`, reads flags from YAML, and reports all problems at once.

    Args:
        rules: what flags of other tools mean, see cli/synonyms.py.
    """

    def __init__(self, rules: Mapping[str, synonyms.Rule] | None = None, **kwargs):
        self.rules = rules or {}
        super().__init__(
            allow_abbrev=False, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )
        self.add_argument("-h", "--help", action="help", help="顯示這份說明")
        self.given: set[str] = set()  # destinations named on the command line or in --config

    def error(self, message: str):
        patterns = (
            (
                r"argument (.+): expected (?:one|at least one) argument",
                r"\1 後面少了值（值以 - 開頭時寫成 \1=值）",
            ),
            (r"argument (.+): ignored explicit argument (.+)", r"\1 不需要值，卻得到 \2"),
            (r"argument (.+): not allowed with argument (.+)", r"\1 與 \2 不能同時使用"),
            (r"ambiguous option: (.+) could match (.+)", r"\1 不明確，可能是 \2"),
        )
        for pattern, chinese in patterns:
            message = re.sub(pattern, chinese, message)
        raise UserError(message)

    def read(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The flags of `argv` (sys.argv without the program when None).

        Raises:
            UserError: with every unknown flag and every unreadable value in it.
        """
        argv = sys.argv[1:] if argv is None else argv
        options = {
            option: action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        }
        switches = {option: action.nargs == 0 for option, action in options.items()}
        argv, reading = synonyms.in_argv(argv, self.rules, switches)
        if any(word.split("=")[0] == "--config" for word in argv):
            self._take_config(argv, reading)
        problems = reading.problems
        flags, unknown = self.parse_known_args(argv)
        for place, word in enumerate(unknown):
            if not word.startswith("-") and place and unknown[place - 1].startswith("-"):
                continue  # the value of an unknown flag
            problems.append(self._of_unknown(word, options))
        for action in self._actions:
            if any(word.split("=")[0] in action.option_strings for word in argv):
                self.given.add(action.dest)
        for dest, value in vars(flags).items():
            if isinstance(value, _Bad) and dest not in self.given and value.value == self.get_default(dest):
                setattr(flags, dest, value.value)  # the default "" of a path is none
            elif isinstance(value, _Bad):
                problems.append(f"--{dest} 是 {shown(value.value)}，應為 {value.wanted}")
        if problems:
            raise UserError(problems)
        for remark in reading.told():
            say(remark)
        return flags

    def _of_unknown(self, word: str, options) -> str:
        """What is said of a word that is no flag and no value of one."""
        if word.startswith("-"):
            guess = nearest("--" + word.split("=")[0].lstrip("-").replace("-", "_"), options)
            return f"不認得 {word}" + (f"，是不是 {guess[0]}？" if guess else "（--help 列出全部旗標）")
        if word[:1] in "–—―−－﹣" or re.match(r"\w+=", word, re.ASCII):
            return f"多出來的字 {word!r}：旗標以兩個減號 -- 開頭，例如 --seed 1"
        return f"多出來的字 {word!r}：值若含空格請加引號"

    def _take_config(self, argv: list[str], reading: synonyms.Reading) -> None:
        """Values of the YAML file named by --config become defaults, so that flags win. Problems and remarks
        are added to those of `reading`."""
        from finetune.cli import config_file

        peek = Parser()
        peek.add_argument("--config", type=place, default="")
        path = peek.parse_known_args(argv)[0].config
        if isinstance(path, _Bad):
            return  # told with the other flags
        actions = {
            option.lstrip("-"): action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and action.dest not in ("help", "config")
        }
        switches = {f"--{name}": action.nargs == 0 for name, action in actions.items()}
        entries = config_file.read(Path(path))
        named = {key: key.removeprefix("--").replace("-", "_").lower() for key, _, _ in entries}
        given = {named[key]: value for key, _, value in entries if isinstance(value, str)}
        here = synonyms.Reading(self.rules, switches, given)
        pairs = []
        for key, line, value in entries:
            name, at = named[key], f"--config {path}：第 {line} 行的 {shown(key)}"
            rule = self.rules.get(name)
            odd = value if isinstance(value, config_file.NoText) else None
            of_ours = name in actions and not switches[f"--{name}"]
            if odd and (odd.null or (odd.empty and name not in actions)) or (value == "" and not of_ours):
                here.unused.append(key)
            elif odd and rule and rule.takes == synonyms.MANY:
                pairs += here.meant(rule, "…", at, key)
            elif odd:
                here.problems.append(f"{at}：{value}")
            elif rule:
                pairs += here.meant(rule, value, at, key)
            elif name in actions:
                pairs += here.own(name, value, at)
            else:
                guess = nearest(name, actions)
                hint = f"，是不是 {guess[0]}？" if guess else ""
                here.problems.append(f"--config {path}：第 {line} 行不認得 {shown(key)}{hint}")
        for name, value in [*pairs, *here.rest(name for name, _ in pairs)]:
            action = actions[name]
            if action.nargs == 0:  # a switch: on or off
                switch = config_file.SWITCHES.get(value.lower())
                if switch is None:
                    here.problems.append(f"--config {path}：{name} 應為 true 或 false，得到 {shown(value)}")
                value = switch
            else:
                value = action.type(value) if action.type else value
            self.set_defaults(**{action.dest: value})
            self.given.add(action.dest)
        reading.problems += here.problems
        reading.remarks += here.remarks
        reading.unused += here.unused


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


def leave(code: int) -> NoReturn:
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
