"""Consoles as people really have them: closed, full, read by nobody, in an encoding without Chinese. A
message that nobody can read ends no run; a result that nobody can have is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from finetune.cli.flag_types import path

FULL = Path("/dev/full")
SPEAKS = """
import sys
sys.path.insert(0, {root!r})
from finetune.runtime import console
def body():
    for number in range(200):
        console.log(f"第 {{number}} 步 😀 测试")
    {body}
    open("written", "w").write("whole")
console.exit_process(console.run(body))
"""


def run(folder: Path, body: str = "pass", shell: str = "", **env: str) -> subprocess.CompletedProcess:
    """A script of ours that says 200 lines and then writes a file, with redirections of a shell."""
    (folder / "x.py").write_text(SPEAKS.format(root=str(ROOT), body=body), encoding="utf-8")
    words = ["bash", "-c", f"{sys.executable} x.py {shell}"]
    return subprocess.run(words, cwd=folder, capture_output=True, env={**os.environ, **env}, timeout=120)


@pytest.mark.parametrize(
    "shell",
    [
        "2>&-",
        "2>/dev/full",
        "2> >(head -1 >/dev/null)",
        ">&-",
        ">&- 2>&- <&-",
        ">/dev/full 2>&1",
        "2>&1 | head -1",
    ],
)
@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a disk that is always full")
def test_a_log_that_nobody_can_read_ends_no_run(tmp_path, shell):
    done = run(tmp_path, "console.print_optional('做完了')", f"{shell}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0 and (tmp_path / "written").read_text() == "whole", done
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr + done.stdout


@pytest.mark.parametrize("shell", [">&-", ">/dev/full", "| true"])
@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a disk that is always full")
def test_a_result_that_cannot_be_written_is_a_failure_in_one_line(tmp_path, shell):
    """Of a pipe whose reader has gone away nothing is said, as of any program's."""
    body = "console.print_result('結果' * 99999)"
    done = run(tmp_path, body, f"{shell}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 1 and not (tmp_path / "written").exists()
    said = [line for line in done.stderr.decode().splitlines() if "步" not in line]
    assert len(said) == (shell != "| true") and all("寫不到標準輸出" in line for line in said), said


def test_help_that_nobody_reads_makes_no_noise():
    words = f"{sys.executable} inference.py --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0 and not done.stderr


CONSOLES = [
    {"PYTHONIOENCODING": "cp950"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp437:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("console", CONSOLES, ids=lambda found: next(iter(found.values())))
def test_a_console_without_our_characters_gets_their_numbers_and_json_stays_json(tmp_path, console):
    body = (
        "console.print_result('测试 😀'); console.print_result(console.as_json({'字': '测试 😀 題', 'x': 1}))"
    )
    done = run(tmp_path, body, **console)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    encoding = console.get("PYTHONIOENCODING", "ascii").split(":")[0]
    first, second = done.stdout.decode(encoding).splitlines()
    assert first.encode().decode("unicode_escape", "replace").endswith("😀")
    assert json.loads(second) == {"字": "测试 😀 題", "x": 1}


@pytest.mark.parametrize("script", ["fine_tuning_llm.py", "inference.py"])
def test_the_help_reaches_every_console(script):
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and b"--cpu" in done.stdout and not done.stderr


@pytest.mark.slow
def test_bytes_that_are_no_text_spoil_one_line_of_stdin_and_no_other(tmp_path):
    """They would take the lines after them along, up to 8 KB."""
    body = (
        "from finetune.runtime.errors import UserError\n"
        "    from finetune.predict.repl import typed_line\n"
        "    for _ in range(3):\n"
        "        try:\n"
        "            console.print_result(typed_line(''))\n"
        "        except UserError:\n"
        "            console.print_result('看不懂')\n"
    )
    (tmp_path / "lines").write_bytes("天\n".encode() + b"\xa4\xd1\n" + "地\n".encode())
    done = run(tmp_path, body, "< lines", PYTHONUTF8="1")
    assert done.stdout.decode().split() == ["天", "看不懂", "地"] and done.returncode == 0, done.stderr


def test_a_file_is_never_opened_as_one_of_the_streams(tmp_path):
    """With stderr closed, the first file to be opened would get its number, and a library's words."""
    body = (
        "import os; file = open('data', 'wb'); os.write(2, b'a library'); file.write(b'data'); file.close()"
    )
    assert run(tmp_path, body, "2>&- >&- <&-").returncode == 0
    assert (tmp_path / "data").read_bytes() == b"data"


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_refused_with_its_flag(value, capsys):
    """As a shell makes it of a variable that is not set."""
    import fine_tuning_llm
    import inference
    from finetune.cli import inference_checks, train_args

    checked = 0
    for script, parser in (
        (fine_tuning_llm, train_args.build_parser()),
        (inference, inference_checks.build_parser()),
    ):
        for action in parser._actions:
            if action.type is path:
                assert script.main([action.option_strings[0], value]) == 2
                assert f"--{action.dest} 是 {value!r}" in capsys.readouterr().err
                checked += 1
    assert checked >= 16


@pytest.mark.parametrize(
    ("called", "advice"),
    [
        ("inference.py", "python fine_tuning_llm.py --demo"),
        ("/opt/bin/fine-tuning-llm-inference", "fine-tuning-llm --demo"),
    ],
)
def test_advice_names_the_installed_command_where_one_was_used(called, advice, tmp_path, monkeypatch, capsys):
    import inference

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [called])
    assert inference.main(["--prompt", "天氣很[MASK]。"]) == 2
    assert f"先訓練一個：{advice}，" in capsys.readouterr().err
