"""Command line parser: argparse with synonyms of other tools, YAML files, and all problems at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from finetune.cli import config_file, synonyms
from finetune.cli.flag_types import BadValue, path
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, nearest, shown


class Parser(argparse.ArgumentParser):
    """Parser that takes `--a-b` for `--a_b`, reads flags from YAML, and reports all problems at once.

    Args:
        rules: translations of other tools' flags, see cli/synonyms.py.
        kwargs: passed on to argparse.ArgumentParser.

    Attributes:
        given: destinations of the flags given on the command line or in --config.
    """

    def __init__(self, rules: Mapping[str, synonyms.Rule] | None = None, **kwargs: Any):
        self.rules = rules or {}
        super().__init__(
            allow_abbrev=False, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )
        self.add_argument("-h", "--help", action="help", help="顯示這份說明")
        self.given: set[str] = set()

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error as a UserError, in Chinese."""
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
        """Parse `argv` (sys.argv without the program when None).

        Raises:
            UserError: lists every unknown flag and every invalid value.
        """
        argv = sys.argv[1:] if argv is None else argv
        options = {
            option: action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        }
        switches = {option: action.nargs == 0 for option, action in options.items()}
        several = {option for option, action in options.items() if action.nargs == "+"}
        argv, translation = synonyms.translate_argv(argv, self.rules, switches, several)
        if any(word.split("=")[0] == "--config" for word in argv):
            self._read_config(argv, translation)
        problems = translation.problems
        flags, unknown = self.parse_known_args(argv)
        for at, word in enumerate(unknown):
            if not word.startswith("-") and at and unknown[at - 1].startswith("-"):
                continue  # the value of an unknown flag
            problems.append(self._describe_unknown(word, options))
        for action in self._actions:
            if any(word.split("=")[0] in action.option_strings for word in argv):
                self.given.add(action.dest)
        for dest, values in vars(flags).items():
            if isinstance(values, list):  # of several values the first invalid one
                bad = next((value for value in values if isinstance(value, BadValue)), None)
                setattr(flags, dest, bad or values)
        for dest, value in vars(flags).items():
            if (
                isinstance(value, BadValue)
                and dest not in self.given
                and value.value == self.get_default(dest)
            ):
                setattr(flags, dest, value.value)  # the default "" of a path is valid
            elif isinstance(value, BadValue):
                problems.append(f"--{dest} 是 {shown(value.value)}，應為 {value.wanted}")
        if problems:
            raise UserError(problems)
        for line in translation.log_lines():
            log(line)
        return flags

    def _describe_unknown(self, word: str, options: Iterable[str]) -> str:
        """Word the problem of a word that is neither a flag nor its value."""
        if word.startswith("-"):
            guess = nearest("--" + word.split("=")[0].lstrip("-").replace("-", "_"), options)
            return f"不認得 {word}" + (f"，是不是 {guess[0]}？" if guess else "（--help 列出全部旗標）")
        if word[:1] in "–—―−－﹣" or re.match(r"\w+=", word, re.ASCII):
            return f"多出來的字 {word!r}：旗標以兩個減號 -- 開頭，例如 --seed 1"
        return f"多出來的字 {word!r}：值若含空格請加引號"

    def _read_config(self, argv: list[str], translation: synonyms.Translation) -> None:
        """Set the values of the YAML file of --config as defaults, so that flags on the command line win.

        Problems and remarks are added to those of `translation`.
        """
        peek = Parser()
        peek.add_argument("--config", type=path, default="")
        named_file = peek.parse_known_args(argv)[0].config
        if isinstance(named_file, BadValue):
            return  # reported with the other flags
        actions = {
            option.lstrip("-"): action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and action.dest not in ("help", "config")
        }
        switches = {f"--{name}": action.nargs == 0 for name, action in actions.items()}
        entries = config_file.read(Path(named_file))
        given = {_flag_name(key): value for key, _, value in entries if isinstance(value, str)}
        config = synonyms.Translation(self.rules, switches, given)
        pairs: list[tuple[str, str]] = []
        for key, line, value in entries:
            pairs += _translate_entry(config, key, value, f"--config {named_file}：第 {line} 行")
        for name, text in [*pairs, *config.deferred_flags([name for name, _ in pairs])]:
            action = actions[name]
            default: Any = text
            if action.nargs == 0:  # a switch: on or off
                default = config_file.SWITCHES.get(text.lower())
                if default is None:
                    config.problems.append(
                        f"--config {named_file}：{name} 應為 true 或 false，得到 {shown(text)}"
                    )
            elif callable(action.type):
                default = action.type(text)
            self.set_defaults(**{action.dest: default})
            self.given.add(action.dest)
        translation.problems += config.problems
        translation.remarks += config.remarks
        translation.unused += config.unused


def _flag_name(key: str) -> str:
    """Return the name of the flag that a key of a configuration file stands for."""
    return key.removeprefix("--").replace("-", "_").lower()


def _translate_entry(
    config: synonyms.Translation, key: str, value: str | config_file.NotTextError, place: str
) -> list[tuple[str, str]]:
    """Return the flags of ours with their values that an entry of a configuration file sets.

    Args:
        config: gets the problems and remarks.
        key: as it is written.
        value: the text, or why it is none.
        place: file and line, for messages.
    """
    name, where = _flag_name(key), f"{place}的 {shown(key)}"
    rule, is_switch = config.rules.get(name), config.flags.get(f"--{name}")  # None: no flag of ours
    if isinstance(value, config_file.NotTextError):
        if value.null or (value.empty and is_switch is None):
            config.unused.append(key)
        elif rule and rule.takes == synonyms.MANY:
            return config.apply(rule, "…", where, key)
        else:
            config.problems.append(f"{where}：{value}")
    elif value == "" and is_switch is not False:
        config.unused.append(key)
    elif rule:
        return config.apply(rule, value, where, key)
    elif is_switch is not None:
        return config.add_flag(name, value, where)
    else:
        guess = nearest(name, [flag.removeprefix("--") for flag in config.flags])
        hint = f"，是不是 {guess[0]}？" if guess else ""
        config.problems.append(f"{place}不認得 {shown(key)}{hint}")
    return []
