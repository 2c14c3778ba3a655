"""The terminal: commands, options in every form, and rubbish."""

from __future__ import annotations

import builtins
import fcntl
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from conftest import ROOT, environment

import inference
from finetune.data.option_syntax import from_lines
from finetune.runtime.errors import UserError


@pytest.fixture(autouse=True)
def own_history(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def run_repl(loaded, monkeypatch, capsys):
    """Types the entries given; returns what the terminal said."""

    def run(*entries: str) -> str:
        waiting = iter([*entries, "q"])
        monkeypatch.setattr(builtins, "input", lambda prompt="": print(prompt) or next(waiting))
        inference.interactive_mode(*loaded)
        assert next(waiting, None) is None, "it ended before the last entry"
        return capsys.readouterr().out

    return run


def test_top_words_and_method_change_what_is_answered(run_repl):
    out = run_repl(
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
def test_options_may_hold_spaces_and_colons_or_stand_one_a_line(run_repl, entries):
    out = run_repl("qa", "天？", *entries)
    for option in ("A: 地 球 (", "B: 9:30 出發 (", "C: x: y ("):
        assert option in out


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["top x"], "應為 1 到 1000 的整數"),
        (["top 0"], "應為 1 到 1000 的整數"),
        (["top " + "9" * 5000], "應為 1 到 1000 的整數"),
        (["qa", "天？", "", "A:地", "C:玄", "", "", ""], "選項要照順序標成 A、B"),
        (["words 9"], "應為 1 到 4 的整數"),
        (["method letters"], "是不是 letter"),
        (["method"], "有的是 auto"),
        (["orders 7"], "有的是 1、cyclic、all"),
        (["qa", "天？", "", "只有一個", "", "", ""], "有 1 個選項"),
        (["qa", "天？", "", *"地玄黃宇宙洪荒日月盈昃", "", "", ""], "有 11 個選項"),
        (["天" * 300], "最多 128 個"),
        (["\ud800"], "不是 UTF-8"),
    ],
)
def test_a_wrong_entry_is_explained_and_the_next_one_is_taken(run_repl, entries, says):
    out = run_repl(*entries, "天[MASK]")
    assert says in out and out.count("⚠️") == 1 and "🔮 預測結果（Top 5）" in out


def test_an_option_that_holds_a_label_stays_whole_when_options_stand_one_a_line(run_repl):
    out = run_repl("qa", "天？", "A: 地", "B: 選 C: 玄", "C: 黃", "")
    assert "B: 選 C: 玄 (" in out and "C: 黃 (" in out and out.count("(分數: ") == 3


def test_help_names_every_command_and_what_is_set_now(run_repl):
    out = run_repl("top 7", "help")
    for word in ("qa", "top N", "words N", "method M", "orders O", "quit"):
        assert word in out
    assert "現在 7" in out


def test_a_sentence_that_begins_like_a_command_is_a_sentence(run_repl):
    out = run_repl("top of the [MASK]", "words are [MASK] here")
    assert out.count("🔮 預測結果") == 2 and "⚠️" not in out


def test_rubbish_never_ends_it(run_repl):
    rng = random.Random(2)
    alphabet = "天地ＡAb12:：[]()（）,，\t \x00\x1b\u202e😀[MASK]" + "qa top words method "
    entries = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(120)]
    run_repl(*(entry for entry in entries if entry.strip().lower() not in ("q", "qa", "quit", "exit")))


LEAVING = (
    "quit", "exit", "q", "Q", " exit ", "exit()", "quit()", "quit;", ":q", ":q!", "/exit", "/quit", "bye",
    "離開", "結束", "離開。", "ｑ", "ＱＵＩＴ", "／ｅｘｉｔ", "\u3000離開\u3000",
)  # fmt: skip


@pytest.mark.parametrize("word", LEAVING)
def test_words_of_leaving_leave_at_the_prompt_and_within_a_question(loaded, monkeypatch, capsys, word):
    for before in ([], ["qa"], ["qa", "天？"]):
        waiting = iter([*before, word])
        monkeypatch.setattr(builtins, "input", lambda prompt="", waiting=waiting: next(waiting))
        inference.interactive_mode(*loaded)
        assert next(waiting, None) is None
        out = capsys.readouterr().out
        assert out.rstrip().endswith("👋 再見！") and "⚠️" not in out and "🔮" not in out


@pytest.mark.parametrize(
    "word", ["help", "?", "？", "h", "/help", "/?", "幫助", "說明", "ＨＥＬＰ", "help()"]
)
def test_words_that_ask_for_help_show_it(run_repl, word):
    out = run_repl(word)
    assert "words N" in out and "Ctrl-D" in out and "🔮" not in out


@pytest.mark.parametrize(
    "text",
    [
        "我要離開[MASK]",
        "說明書",
        "quit 是什麼意思",
        "bye bye 天",
        "什麼是 /help？",
        "top 的意思",
        "q 天",
        "天？",
    ],
)
def test_a_text_that_merely_holds_such_a_word_is_a_text(run_repl, text):
    out = run_repl(text)
    assert out.count("🔮 預測結果") == 1 and "⚠️" not in out and "words N" not in out


def test_commands_may_be_typed_in_every_way(run_repl):
    for way in ("top 3", "TOP 3", "/top 3", "top=3", "top３", "ｔｏｐ　３", "top: 3", " top  3 "):
        assert "列出前 3 名" in run_repl(way), way
    assert "沒有 '/foo' 這個指令" in run_repl("/foo")


def test_one_blank_shows_the_probabilities_of_its_words(loaded, run_repl):
    model, tokenizer, device = loaded
    ids = tokenizer("天[MASK]", return_tensors="pt").to(device)
    logits = model(**ids).logits[0, ids["input_ids"][0].tolist().index(tokenizer.mask_token_id)]
    shares = logits.softmax(-1)
    lines = re.findall(r"^  \d\. (\S+) \(機率: (0\.\d{4})\)$", run_repl("top 3", "天[MASK]"), re.M)
    assert len(lines) == 3
    for word, share in lines:
        assert abs(shares[tokenizer.convert_tokens_to_ids(word)].item() - float(share)) < 1e-3


def test_options_that_cannot_be_read_are_asked_for_again_with_the_question_kept(run_repl):
    out = run_repl("method joint", "qa", "天？", "地 玄", "A:地 B:", "A:地 B:玄")
    assert out.count("❓ 問題:") == 1 and out.count("題目還在") == 2
    assert "A: 地 (分數: " in out and "B: 玄 (分數: " in out


def test_a_question_or_options_left_empty_are_no_question(run_repl):
    assert "取消了" in run_repl("qa", " ") and "取消了這一題" in run_repl("qa", "天？", "", "")


def test_what_a_library_raises_ends_nothing_but_that_entry(loaded, run_repl, monkeypatch):
    from finetune.predict.predictor import MaskedLMPredictor

    propose = MaskedLMPredictor.predictions

    def broken(self, prompt, *more):
        if prompt == "壞":
            raise IndexError("index out of range in self")
        return propose(self, prompt, *more)

    monkeypatch.setattr(MaskedLMPredictor, "predictions", broken)
    out = run_repl("top 2", "壞", "天[MASK]")
    assert "IndexError：index out of range" in out and "🔮 預測結果（Top 2）" in out


def test_every_entry_is_answered_by_a_line(run_repl):
    quiet = run_repl()
    rubbish = ("", "   ", "\u3000", "\x00", "\x1b[2J", "\ud800", "12345", "{}", "%s", "[MASK]", "/", ":")
    unfinished = ("top", "top abc", "words 9", "method foo", "orders", "天" * 10_000)
    for entry in (*rubbish, *unfinished):
        assert len(run_repl(entry).splitlines()) > len(quiet.splitlines()) + 1, repr(entry)


def _take_terminal() -> None:
    """In a new process: its stdin is its terminal, and Ctrl-C is heard though a shell started the tests in
    the background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Session:
    """A script in a pseudo-terminal, which is what Ctrl-C and readline work with."""

    def __init__(self, model_dir, home, *more):
        self.ours, theirs = pty.openpty()
        words = [sys.executable, ROOT / "inference.py", "--model_path", model_dir, "--cpu", *more]
        self.process = subprocess.Popen(
            list(map(str, words)), stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, close_fds=True,
            env=environment(TERM="xterm", XDG_STATE_HOME=str(home)), start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def type(self, keys: str, until: str) -> str:
        """Presses keys; returns what the script says up to `until`."""
        time.sleep(0.2)  # Python's readline prints its prompt before it listens for signals
        os.write(self.ours, keys.encode())
        said, limit = b"", time.monotonic() + 60
        while until.encode() not in said and time.monotonic() < limit:
            if select.select([self.ours], [], [], 0.5)[0]:
                try:
                    said += os.read(self.ours, 65536)
                except OSError:  # it has closed
                    break
        text = said.decode(errors="replace")
        assert until in text, (keys, text[-500:])
        time.sleep(0.1)
        return text

    def end(self) -> int:
        try:
            return self.process.wait(timeout=30)
        finally:
            os.close(self.ours)


@pytest.mark.slow
def test_ctrl_c_cancels_the_line_and_the_question_and_keeps_settings_and_model(tmp_path, model_dir):
    session = Session(model_dir, tmp_path)
    asks, ctrl_c = "💬 請輸入問題: ", "\x03"
    session.type("", asks)
    session.type("top 2\n", asks)
    assert "離開請輸入 q" in session.type("天地" + ctrl_c, asks)
    assert "離開請輸入 q" in session.type(ctrl_c, asks)
    session.type("qa\n", "問題: ")
    session.type("天？\n", "選項: ")
    session.type(ctrl_c, asks)
    said = session.type("玄[MASK]\n", asks)
    assert "（Top 2）" in said and "天地" not in said
    session.type("ｑ\n", "再見")
    assert session.end() == 0


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


@pytest.mark.parametrize(
    "lines",
    [["A:甲", "乙"], ["K:甲", "乙"], ["⑩ 甲", "乙"], ["壬:甲", "乙", "丙"], ["A:甲"] * 30, ["A:甲", "C:乙"]],
)
def test_lines_of_options_whose_labels_are_missing_or_out_of_sequence_are_refused(lines):
    with pytest.raises(UserError, match="選項要照順序標成 .+，或都不標；得到 [^、]+、[^、]+"):
        from_lines(lines)


def test_lines_of_options_are_labelled_as_they_were_typed_or_with_letters():
    assert from_lines(["① 甲", "② 乙"]) == {"①": "甲", "②": "乙"}
    assert from_lines(["甲", "", " 乙 "]) == {"A": "甲", "B": "乙"}
