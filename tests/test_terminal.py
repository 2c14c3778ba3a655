"""The terminal: commands, options in every form, and rubbish."""

from __future__ import annotations

import builtins
import os
import pty
import random
import subprocess
import sys
import time

import pytest
from conftest import ROOT, environment

import inference


@pytest.fixture(autouse=True)
def own_history(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def talk(loaded, monkeypatch, capsys):
    """Types the entries given; returns what the terminal said."""

    def run(*entries: str) -> str:
        waiting = iter([*entries, "q"])
        monkeypatch.setattr(builtins, "input", lambda prompt="": print(prompt) or next(waiting))
        inference.interactive_mode(*loaded)
        assert next(waiting, None) is None, "it ended before the last entry"
        return capsys.readouterr().out

    return run


def test_top_words_and_method_change_what_is_answered(talk):
    out = talk(
        "top 2", "天[MASK]", "words 2", "天[MASK]", "method joint", "qa", "天？", "A:地 B:玄", "orders all"
    )
    first, second = out.split("🔮 預測結果")[1:]
    assert first.count("\n  ") >= 2 and "（Top 2）" in first and "  3. " not in first
    assert "(分數: " in second and "作答方式 joint" in out and "選項順序 all" in out
    assert "⚠️" not in out


@pytest.mark.parametrize(
    "entries",
    [
        ["A: 地 球 B:9:30 出發 C：x: y"],
        ["A: 地 球", "B:9:30 出發", "C：x: y", ""],
        ["", "地 球", "9:30 出發", "x: y", ""],
        ["A: 地 球", "B：9:30 出發", "C: x: y", ""],
    ],
)
def test_options_may_hold_spaces_and_colons_or_stand_one_a_line(talk, entries):
    out = talk("qa", "天？", *entries)
    for option in ("A: 地 球 (", "B: 9:30 出發 (", "C: x: y ("):
        assert option in out


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["top x"], "應為 1 到 1000 的整數"),
        (["top 0"], "應為 1 到 1000 的整數"),
        (["top " + "9" * 5000], "應為 1 到 1000 的整數"),
        (["qa", "天？", "", "A:地", "C:玄", ""], "選項要照順序標成 A、B"),
        (["words 9"], "應為 1 到 4 的整數"),
        (["method letters"], "是不是 letter"),
        (["method"], "有的是 auto"),
        (["orders 7"], "有的是 1、cyclic、all"),
        (["qa", "天？", "", "只有一個", ""], "有 1 個選項"),
        (["qa", "天？", "", *"地玄黃宇宙洪荒日月盈昃", ""], "有 11 個選項"),
        (["qa", "", "A:地 B:玄"], "question 是空的"),
        (["天" * 300], "最多 128 個"),
        (["\ud800"], "不是 UTF-8"),
    ],
)
def test_a_wrong_entry_is_explained_and_the_next_one_is_taken(talk, entries, says):
    out = talk(*entries, "天[MASK]")
    assert says in out and out.count("⚠️") == 1 and "🔮 預測結果（Top 5）" in out


def test_an_option_that_holds_a_label_stays_whole_when_options_stand_one_a_line(talk):
    out = talk("qa", "天？", "A: 地", "B: 選 C: 玄", "C: 黃", "")
    assert "B: 選 C: 玄 (" in out and "C: 黃 (" in out and out.count("(分數: ") == 3


def test_help_names_every_command_and_what_is_set_now(talk):
    out = talk("top 7", "help")
    for word in ("qa", "top N", "words N", "method M", "orders O", "quit"):
        assert word in out
    assert "現在 7" in out


def test_a_sentence_that_begins_like_a_command_is_a_sentence(talk):
    out = talk("top of the [MASK]", "words are [MASK] here")
    assert out.count("🔮 預測結果") == 2 and "⚠️" not in out


def test_rubbish_never_ends_it(talk):
    rng = random.Random(2)
    alphabet = "天地ＡAb12:：[]()（）,，\t \x00\x1b\u202e😀[MASK]" + "qa top words method "
    entries = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(120)]
    talk(*(entry for entry in entries if entry.strip().lower() not in ("q", "qa", "quit", "exit")))


@pytest.mark.slow
def test_in_a_real_terminal_arrows_recall_entries_and_the_history_outlasts_the_session(tmp_path, model_dir):
    """Through a pseudo-terminal: what readline does shows only there."""

    def session(*keys: bytes) -> str:
        ours, theirs = pty.openpty()
        words = [sys.executable, ROOT / "inference.py", "--model_path", model_dir, "--cpu"]
        process = subprocess.Popen(
            list(map(str, words)), stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, close_fds=True,
            env=environment(TERM="xterm", XDG_STATE_HOME=str(tmp_path / "state")),
        )  # fmt: skip
        os.close(theirs)
        seen = b""

        def wait_for(mark: bytes, count: int):
            nonlocal seen
            until = time.monotonic() + 60
            while seen.count(mark) < count and time.monotonic() < until:
                try:
                    seen += os.read(ours, 65536)
                except OSError:  # the other side has closed
                    break

        for number, key in enumerate(keys, 1):
            wait_for("請輸入問題".encode(), number)
            time.sleep(0.2)
            os.write(ours, key)
        wait_for("再見".encode(), 1)
        process.wait(timeout=30)
        os.close(ours)
        assert process.returncode == 0
        return seen.decode(errors="replace")

    up, left = b"\x1b[A", b"\x1b[D"
    first = session("天地[MASK]\n".encode(), up + left * 6 + "玄".encode() + b"\n", b"\x04")
    assert first.count("預測結果") == 2 and "⚠" not in first
    history = (tmp_path / "state/fine-tuning-llm/history").read_text()
    assert "天地[MASK]" in history and "天地玄[MASK]" in history
    second = session(up + up + b"\n", b"q\n")
    assert second.count("預測結果") == 1 and "天地玄[MASK]" in second
