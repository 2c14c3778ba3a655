"""The published readers of protocols, as lists of regular expressions."""

import pytest

from finetune.evaluation.pattern_reader import PatternReader
from finetune.evaluation.reply_reader import ReadReply
from finetune.runtime import sandbox
from finetune.runtime.errors import UserError

BOX = (r"\\{1,2}box{([A-Z])}", r"\\{1,2}boxed{([A-Z])}")  # of Twinkle
FOUR = ("甲", "乙", "丙", "丁")


def test_the_first_match_of_the_first_pattern_that_hits_is_the_answer():
    read = PatternReader(BOX)
    assert read(r"\boxed{C} \box{B} \box{A}", FOUR) == ReadReply(1, "answered")
    assert read(r"\\boxed{D} \boxed{A}", FOUR) == ReadReply(3, "answered")
    assert read("答案是 B", FOUR) == ReadReply(None, "unreadable")  # the protocol reads nothing else
    assert read(r"\box{E}", FOUR) == ReadReply(None, "unreadable")
    assert read("答案是 B", FOUR, truncated=True) == ReadReply(None, "truncated")
    assert read("抱歉，我無法回答", FOUR) == ReadReply(None, "refused")


def test_the_last_match_is_read_where_a_protocol_says_so():
    read = PatternReader((r"^([A-D])", r"答案：([A-D])"), match="last")
    assert read("想想。答案：A。不，答案：C", FOUR).option == 2 and read("B 答案：C", FOUR).option == 1


def test_thoughts_are_removed_only_where_both_tags_are_there():
    read = PatternReader(BOX)
    assert read(r"<think>\box{A}</think>\box{B}", FOUR).option == 1
    assert read(r"\box{A}</think>\box{B}", FOUR).option == 0
    assert read(r"\box{A}</think>\box{B}", FOUR, thinking=True).option == 1


@pytest.mark.parametrize(
    "patterns, match, words",
    [
        (["(["], "first", "不合文法"),
        (["[A-D]"], "first", "0 個群組"),
        (["(A)(B)"], "first", "2 個群組"),
        ([], "first", "一個也沒有"),
        (["(A)"], "longest", "longest"),
    ],
)
def test_what_is_no_pattern_of_one_letter_is_refused(patterns, match, words):
    with pytest.raises(UserError, match=words):
        PatternReader(patterns, match, "--protocol mine.yaml")


def test_a_pattern_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.3)
    read = PatternReader([r"((?:a+)+)$"], what="--protocol mine.yaml")
    with pytest.raises(UserError, match="--protocol mine.yaml.*超過上限"):
        read("a" * 40 + "!", FOUR)
