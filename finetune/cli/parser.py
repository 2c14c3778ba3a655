"""Command line parser: argparse with synonyms of other tools, YAML files, and all problems at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from finetune.cli import synonyms
from finetune.cli.flag_types import BadValue, path
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, nearest, shown


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
        for at, word in enumerate(unknown):
            if not word.startswith("-") and at and unknown[at - 1].startswith("-"):
                continue  # the value of an unknown flag
            problems.append(self._of_unknown(word, options))
        for action in self._actions:
            if any(word.split("=")[0] in action.option_strings for word in argv):
                self.given.add(action.dest)
        for dest, value in vars(flags).items():
            if (
                isinstance(value, BadValue)
                and dest not in self.given
                and value.value == self.get_default(dest)
            ):
                setattr(flags, dest, value.value)  # the default "" of a path is none
            elif isinstance(value, BadValue):
                problems.append(f"--{dest} 是 {shown(value.value)}，應為 {value.wanted}")
        if problems:
            raise UserError(problems)
        for remark in reading.told():
            log(remark)
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
        are added to those of `reading`.
        """
        from finetune.cli import config_file

        peek = Parser()
        peek.add_argument("--config", type=path, default="")
        named_file = peek.parse_known_args(argv)[0].config
        if isinstance(named_file, BadValue):
            return  # told with the other flags
        actions = {
            option.lstrip("-"): action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and action.dest not in ("help", "config")
        }
        switches = {f"--{name}": action.nargs == 0 for name, action in actions.items()}
        entries = config_file.read(Path(named_file))
        named = {key: key.removeprefix("--").replace("-", "_").lower() for key, _, _ in entries}
        given = {named[key]: value for key, _, value in entries if isinstance(value, str)}
        here = synonyms.Reading(self.rules, switches, given)
        pairs = []
        for key, line, value in entries:
            name, at = named[key], f"--config {named_file}：第 {line} 行的 {shown(key)}"
            rule = self.rules.get(name)
            odd = value if isinstance(value, config_file.NotTextError) else None
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
                here.problems.append(f"--config {named_file}：第 {line} 行不認得 {shown(key)}{hint}")
        for name, value in [*pairs, *here.rest(name for name, _ in pairs)]:
            action = actions[name]
            if action.nargs == 0:  # a switch: on or off
                switch = config_file.SWITCHES.get(value.lower())
                if switch is None:
                    here.problems.append(
                        f"--config {named_file}：{name} 應為 true 或 false，得到 {shown(value)}"
                    )
                value = switch
            else:
                value = action.type(value) if action.type else value
            self.set_defaults(**{action.dest: value})
            self.given.add(action.dest)
        reading.problems += here.problems
        reading.remarks += here.remarks
        reading.unused += here.unused
