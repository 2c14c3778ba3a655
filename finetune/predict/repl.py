"""Interactive terminal sessions (REPLs), and how predictions are printed."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic

from finetune.cli.inference_args import LONGEST_WORD, MOST_WORDS, InferenceArgs, required
from finetune.data.option_syntax import from_lines, labelled, parse_options
from finetune.evaluation.scores import Ranking
from finetune.predict.predictor import AnyPredictor, MaskedLMPredictor, Predictor
from finetune.predict.records import fill_record
from finetune.prompts.scoring_methods import GENERATE, METHODS, ORDERS, SHORT
from finetune.runtime.console import as_json, first_line, plain, print_result
from finetune.runtime.errors import RunError, UserError, nearest, shown

GREETING = """
============================================================
🤖 填空與選擇題
  輸入一句話：[MASK] 是空格，沒有就加在句尾
  輸入 qa：問一題選擇題
  輸入 help：其他指令
  輸入 quit、exit 或 q：離開
============================================================"""
HELP = f"""
  一句話        填空；[MASK] 可以有好幾個，會一起填
  qa            問一題選擇題；選項寫成一行 A:地球 B:木星，或直接按 Enter 再一行一個
  top N         列出前 N 名（現在 {{top_k}}）
  words N       一個 [MASK] 最多變成 N 個字，1 到 {LONGEST_WORD}（現在 {{word_length}}）
  method M      選擇題的作答方式（現在 {{method}}）：auto、letter、joint、pll、pll_l2r、first、pmi、prior …
  orders O      letter 的選項順序（現在 {{orders}}）：1、cyclic、all
  quit          離開（也可按 Ctrl-D；Ctrl-C 只取消這一行）
"""
QUIZ = """
============================================================
🤖 選擇題
  輸入 qa：問一題選擇題
  輸入 quit、exit 或 q：離開
============================================================"""
QUIZ_HELP = """
  qa            問一題選擇題；選項寫成一行 A:地球 B:木星，或直接按 Enter 再一行一個
  quit          離開
"""
HISTORY = 1000  # entries kept between sessions
# Whole entries, as `decode_entry` returns them.
LEAVE = {"quit", "exit", "q", "bye", "離開", "离开", "結束", "结束", "退出", "wq", "logout"}
ASKS_HELP = {"help", "?", "h", "幫助", "帮助", "說明", "说明"}
HINT = "  輸入 help 看可以做什麼，q 離開\n"
INTERRUPTED = "\n  （取消了；設定與模型都還在。要離開請輸入 q，或按 Ctrl-D）\n"
# `top 3`, `top=3`, `top3`, `/top 3`; a value is one word without Chinese, so that `top 的意思` is a sentence.
_COMMAND = re.compile(r"[/:\\]?([a-z]+)(?:\s*[=:]\s*|\s+|(?=\d)|$)([!-~]*)")
_UNKNOWN = re.compile(r"/[a-z]\w*(\s+\S+)?", re.ASCII)


# (question, options, method, orders) -> the options ranked, best first
Answer = Callable[[str, dict[str, str], str, str], Ranking]


class QuitError(Exception):
    """The user asked to leave in the middle of an entry."""


def decode_entry(entry: str) -> str:
    """Normalize an entry for comparison with commands: half-width, lower case.

    `/exit`, `:q`, `exit()` and `quit.` become the word alone.
    """
    word = unicodedata.normalize("NFKC", entry).strip().lower()
    match = re.fullmatch(r"[/:\\]?(\w+|\?)(?:\(\))?[!.;。]*", word)
    return match[1] if match else word


class Repl(ABC, Generic[AnyPredictor]):
    """Base of the interactive sessions: commands, multiple-choice questions, and what `respond` does.

    Args:
        answer: ranks the options of a question; None for a model that answers none.
        top_k: predictions that are listed.
        method, orders: how multiple-choice questions are scored at first.
    """

    input_prompt = "💬 請輸入問題: "

    def __init__(
        self,
        predictor: AnyPredictor,
        answer: Answer | None,
        top_k: int,
        method: str = "auto",
        orders: str = "1",
    ):
        self.predictor, self.answer = predictor, answer
        self.top_k, self.method, self.orders = top_k, method, orders
        self.greeting = GREETING
        self.commands: dict[str, Callable[[str], None]] = {}

    def run(self) -> None:
        """Read and handle entries until quit, exit, q, 離開 or Ctrl-D, whatever is entered.

        At a terminal Ctrl-C cancels what is being typed, asked or answered, and says how to leave; elsewhere
        it ends the session.
        """
        save = _line_editing()
        print_result(self.greeting)
        notice = ""
        try:
            while True:
                try:
                    print_result(notice, end="")  # in here: a second Ctrl-C comes soon
                    notice = ""
                    self._turn()
                except KeyboardInterrupt:
                    if not sys.stdin.isatty():
                        raise
                    notice = INTERRUPTED
        except (EOFError, KeyboardInterrupt):
            print_result()
        except QuitError:
            pass
        finally:
            save()
        print_result("👋 再見！")

    def _turn(self) -> None:
        """Read one entry and handle it.

        Raises:
            QuitError, EOFError: it was the last one.
        """
        try:
            entry = typed_line(self.input_prompt).strip()
            if decode_entry(entry) in LEAVE:
                raise QuitError
            self.handle(entry)
        except (UserError, RunError) as error:
            print_result(f"⚠️ {error}\n")
        except (EOFError, QuitError):
            raise
        except BaseException as error:  # a library failed on text that nobody foresaw
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's
                raise
            print_result(
                f"⚠️ 這一句讓程式出了錯（{type(error).__name__}：{first_line(error)[:200]}）；請換一句\n"
            )

    def handle(self, entry: str) -> None:
        """Handle one entry: a command, or a text to respond to.

        Raises:
            UserError: what is wrong with it.
        """
        word = decode_entry(entry)
        match = _COMMAND.fullmatch(unicodedata.normalize("NFKC", entry).strip().lower())
        command = self.commands.get(match[1]) if match and "[mask]" not in word else None
        if not word:
            print_result(HINT)
        elif word == "qa":
            self._ask_question()
        elif word in ASKS_HELP:
            print_result(self.help())
        elif match and command:
            command(match[2])
            print_result()
        elif _UNKNOWN.fullmatch(entry.lower()):
            raise UserError(f"沒有 {shown(entry)} 這個指令；輸入 help 看有哪些")
        else:
            self.respond(entry)

    @abstractmethod
    def help(self) -> str:
        """Return the list of commands."""

    @abstractmethod
    def respond(self, entry: str) -> None:
        """Print the model's prediction for an entry that is no command.

        Raises:
            UserError: what is wrong with the entry.
        """

    def _top(self, value: str) -> None:
        self.top_k = int_between("top", value, 1, MOST_WORDS)
        print_result(f"  列出前 {self.top_k} 名")

    def _method(self, value: str) -> None:
        resolved = self.predictor.method(_one_of("method", value, ("auto", *METHODS, *SHORT, GENERATE)))
        self.method = value
        print_result(f"  作答方式 {self.method}" + (f"（{resolved}）" if resolved != self.method else ""))

    def _orders(self, value: str) -> None:
        self.orders = _one_of("orders", value, ORDERS)
        print_result(f"  選項順序 {self.orders}")

    def _ask_question(self) -> None:
        """Ask for a multiple-choice question and its options, and print the ranking."""
        question = typed_line("❓ 問題: ").strip()
        if decode_entry(question) in LEAVE:
            raise QuitError
        if not question:
            print_result("  沒有題目，取消了\n")
            return
        while True:
            try:
                options = self._options()
                break
            except UserError as error:
                print_result(f"⚠️ {error}\n  題目還在：請再輸入一次選項；不問了就直接按兩次 Enter\n")
        if not options:
            print_result("  沒有選項，取消了這一題\n")
            return
        self.predictor.warn(question, *options.values())
        assert self.answer is not None  # sessions without it refuse `qa`
        ranked = self.answer(question, options, self.method, self.orders)
        print_result("\n🎯 預測結果（按可能性排序）:")
        print_ranking(ranked)
        print_result()

    def _options(self) -> dict[str, str]:
        """Read options from one line; or, after an empty line or a lone `A:…`, one a line until an empty one.

        Returns:
            label -> text; {} when there is nothing but empty lines.
        """
        first = typed_line("選項: ")
        if decode_entry(first) in LEAVE:
            raise QuitError
        if first.strip() and len(labelled(first)) != 1:
            return parse_options(first)
        lines = [first] if first.strip() else []
        while (line := typed_line("  下一個選項（空行結束）: ")).strip():
            lines.append(line)
        return from_lines(lines) if lines else {}


class FillMaskRepl(Repl[MaskedLMPredictor]):
    """Session with a masked language model.

    Args: as `Repl`; `word_length`: characters that one blank may become.
    """

    def __init__(
        self,
        predictor: MaskedLMPredictor,
        answer: Answer | None,
        top_k: int,
        method: str = "auto",
        orders: str = "1",
        word_length: int = 1,
    ):
        super().__init__(predictor, answer, top_k, method, orders)
        self.word_length = word_length
        self.commands = {
            "top": self._top,
            "words": self._words,
            "method": self._method,
            "orders": self._orders,
        }

    def help(self) -> str:
        """Return the list of commands with the current settings."""
        return HELP.format(**vars(self))

    def respond(self, entry: str) -> None:
        """Print the likeliest words for the blanks of an entry."""
        self.predictor.warn_of_blanks(entry)
        predictions = self.predictor.predictions(entry, self.top_k, self.word_length)
        print_result(f"\n🔮 預測結果（Top {self.top_k}）:")
        print_words(predictions)
        print_result()

    def _words(self, value: str) -> None:
        self.word_length = int_between("words", value, 1, LONGEST_WORD)
        print_result(f"  一個 [MASK] 最多 {self.word_length} 個字")


class McqRepl(Repl[Predictor]):
    """Session with a multiple-choice model, which answers questions only. Args: as `Repl`."""

    def __init__(self, predictor: Predictor, answer: Answer):
        super().__init__(predictor, answer, 1)
        self.greeting = QUIZ

    def help(self) -> str:
        """Return the list of commands."""
        return QUIZ_HELP

    def respond(self, entry: str) -> None:
        """Raise UserError: a question is asked by `qa` alone."""
        raise UserError("這是選擇題模型，只答選擇題；輸入 qa 問一題")


def typed_line(prompt: str) -> str:
    """Read a line from the terminal.

    Raises:
        UserError: half characters, which no tokenizer can read.
        EOFError: there will be no more lines.
    """
    try:
        line = input(prompt)
        line.encode()
    except UnicodeError:
        raise UserError("這一行不是 UTF-8，看不懂；請把終端機的編碼改成 UTF-8") from None
    except Exception as error:  # the terminal is gone, and would be gone for every later line
        raise EOFError(str(error)) from error
    return line


def show_words(flags: InferenceArgs, predictor: MaskedLMPredictor) -> None:
    """Print the predictions of a masked language model for --prompt."""
    asked = required(flags.prompt), flags.top_k, flags.word_length, flags.candidates
    predictor.warn_of_blanks(asked[0])
    if flags.json:
        print_result(as_json(fill_record(predictor, *asked)))
    else:
        predictions = predictor.predictions(*asked)
        print_result(f"問題: {flags.prompt}\n\n預測結果（Top {len(predictions)}）:")
        print_words(predictions, bare=True)  # `  1. 好`: programs read it so


def print_words(predictions: list[dict[str, Any]], bare: bool = False) -> None:
    """Print the words of `MaskedLMPredictor.predictions`, numbered.

    Args:
        bare: leave out the probability of a word of one blank.
    """
    for place, row in enumerate(predictions, 1):
        title, value = ("分數", row["score"]) if "score" in row else ("機率", row["probability"])
        suffix = "" if bare and title == "機率" else f" ({title}: {value:.4f})"
        print_result(f"  {place}. {plain(row['word'], lines=False)}{suffix}")


def print_ranking(ranked: Ranking) -> None:
    """Print ranked options, numbered, and which of them share the highest score."""
    for place, (label, text, score) in enumerate(ranked, 1):
        print_result(f"  {place}. {label}: {plain(text, lines=False)} (分數: {score:.4f})")
    if tied := getattr(ranked, "tied", ()):
        print_result(f"  ⚠️ {'、'.join(tied)} 並列最高分，這個模型分不出來；依輸入的順序排列")


def int_between(name: str, value: str, low: int, high: int) -> int:
    """Parse the integer after a command. Raises UserError with the range it should be in."""
    if not value.isdecimal() or len(value) > 9 or not low <= int(value) <= high:
        raise UserError(f"{name} {value[:20]}：應為 {low} 到 {high} 的整數，例如 {name} {low + 1}")
    return int(value)


def _one_of(name: str, value: str, known: Iterable[str]) -> str:
    """Return a value that is one of those known. Raises UserError with the nearest one, or all."""
    if value not in known:
        guess = nearest(value, known)
        hint = f"是不是 {guess[0]}？" if guess else f"有的是 {'、'.join(known)}"
        raise UserError(f"{name} {value[:20]}：{hint}")
    return value


def _line_editing() -> Callable[[], None]:
    """Enable arrow keys and a history that outlasts the session. Returns the function that saves it."""
    try:
        import readline
    except ImportError:  # not there on Windows
        return lambda: None
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    path = Path(state) / "fine-tuning-llm/history"
    with suppress(OSError, UnicodeError):  # the first session, or a file that is no history
        readline.read_history_file(path)
    readline.set_history_length(HISTORY)

    def save() -> None:
        with suppress(OSError):  # nowhere to keep it: the session itself lacked nothing
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(path)
            path.chmod(0o600)

    return save
