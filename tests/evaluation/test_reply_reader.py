"""Which option a reply chooses, and why none: forms seen in the wild, generated replies, limits."""

import time

import pytest
from reply_maker import Maker

from finetune.evaluation.reply_reader import ReadReply, opens_thought, read_reply

PLANETS = ("水星", "木星", "火星", "金星")

B = [
    "B",
    "(B)",
    "B.",
    "B. 木星",
    "B) 木星",
    "（B）木星",
    "【B】",
    "「B」",
    "Ｂ",
    "b",
    "b. 木星",
    "\n B\n",
    "B，因為",
    "答案：B",
    "答案是 B。",
    "答案：（B）",
    "正確答案是：Ｂ",
    "選項B",
    "Answer: B",
    "The answer is B.",
    "B\nA 錯了",
    "B. a planet",
    "B. I think",
    "B 木星",
    "B：木星",
    "B、木星",
    "B選項",
    "> B",
    "②",
    "答案是②",
    r"\boxed{B}",
    r"\box{B}",
    r"\boxed{\text{B}}",
    r"\boxed{(B)}",
    r"\boxed{B. 木星}",
    r"$\boxed{B}$",
    r"\\boxed{B}",
    r"\boxed{木星}",
    r"\boxed { B }",
    r"\[\boxed{B}\]",
    r"The final answer is $\boxed{\textbf{(B)}}$.",
    "<answer>B</answer>",
    "**B**",
    "**(B)**",
    "**B. 木星**",
    "**答案：B**",
    "**正確答案：** B",
    "### 答案：B",
    "答案：\n\nB",
    "答案：\n**B. 木星**",
    "答案是 B",
    "答案為(B)",
    "選 B",
    "故選(B)",
    "應選B",
    "應選 (B)",
    "我認為應該選 B",
    "我選擇 B",
    "故答案選 B。",
    "答：B",
    "選項 B 是正確的",
    "B 是正確的",
    "只有 B 正確",
    "正確的是 B",
    "綜上所述，正確的選項應為: B",
    "正確答案是選項 B",
    "答案應該是選項 B：木星",
    "答案是選項（B）木星",
    "答案 B 正確",
    "本題正確答案為 **(B) 木星**",
    "正解：B",
    "Option B is correct.",
    "final answer: B",
    "Final answer - B",
    "ANSWER: **B**",
    "ANSWER: $B$",
    "Answer: $B",
    "The correct answer is b.",
    "The best answer is B: Jupiter",
    '{"answer": "B"}',
    "I would pick B — a safe choice.",
    "木星",
    "木星。",
    "木星。因為它最大。",
    "答案是木星",
    "**答案：木星**",
    "太大了。所以答案是木星。",
    "最終答案：木星",
]
B += [
    "【答案】B",
    "【正確答案】：B",
    "正確選項：B",
    "選項 B「木星」是正確答案。",
    "木星是正確答案。",
    "答案是 B（A 是錯的）",
    "答案是 B 而不是 A",
    "A、C、D 皆錯誤，故選 B。",
    "The correct answer is:\n\n\nB. 木星",
    "### Final Answer\n\nB",
    r"\boxed{答案：B}",
    "I'd go with B.",
]
REASONED = [
    "The answer is B because a car moves.",
    "Answer seems to be B.",
    "Answer seems to be A? No.\n\nAnswer: B",
    "The answer is B. Note that A is a common distractor.",
    "Answer: It is not A, the answer is B",
    "Answer: I think it is B",
    "I considered (A), but it is incorrect. Final answer: B.",
    "答案不是 A，而是 B",
    "答案是 A，不對。最終答案：B",
    "我想答案是 A……再想想\n最終答案是 (B)。",
    "先看 A，答案是 A 嗎？不。\\boxed{B}",
    "如果答案是 A 就太小了，所以選 B。",
    "我不能選 A，所以選 B",
    "A 是錯的，因為太小。所以答案是 B",
    "A. 水星：太小\nB. 木星：最大\n因此答案是 B",
    "A. 水星\nB. 木星\nC. 火星\n\n\\boxed{B}",
    "應該是 **B**，因為它最大。",
    "太陽系最大的是木星。\n\n**B**",
    "太陽系最大的是木星。\n\nB. 木星",
    "B\n\n解析：\nA. 水星太小\nC. 火星也是",
    "無法完全確定，但答案應該是 B",
    "抱歉，剛才算錯了。答案是 B",
    "半徑 \\boxed{42}，質量 \\boxed{\\Delta C}\n答案：B",
    "<think>答案是 A</think>B",
    "想答案是 A</think>\n\nB",
    "<think>A</reasoning>答案是 B",
    "<reason>\\boxed{A}</reason>\\boxed{B}",
    "<think>A</think><think>C</think>答案：B",
    "analysis也許是 A assistantfinalB",
]
NONE = [
    "",
    " \n",
    "我不知道",
    "A或B",
    "A、B",
    "A/B",
    "AB",
    "A and B",
    "b or c",
    "B 或 C",
    "BCD",
    "Because",
    "E",
    "K",
    "Z",
    "**",
    "A planet named Jupiter",
    "I think it is Jupiter",
    "不是 B",
    "<B>",
    "1",
    "\ufffd",
    "(A)(B)",
    "①②",
    "第 B 題",
    "答案是 A … 答案是 B",
    "答案不是 A",
    "The answer is not A",
    "答案 A 是錯的",
    "不應該選 A",
    "選 A 或 C",
    "答案是 A、B",
    r"\boxed{A} \boxed{B}",
    r"\boxed{E}",
    r"\boxed{4}",
    r"\boxed{\Delta B}",
    r"\boxed{A, B}",
    "\\boxed{A}\n所以答案是 B",
    r"\boxed{B",
    "答案是 A 嗎？",
    "如果答案是 A",
    "答案是 B 或 C",
    "答案是 A 還是 B？",
    "答案可能是 A 或 B",
    "答案是 E",
    "選項 A 和 B 都是正確的",
    "A 選項與 B 選項都對",
    "A. 水星\nB. 木星\nC. 火星\nD. 金星",
    "水星和木星",
    "太陽系的行星",
    "Answer: Let's think step by step",
    "Answer: I think it is hard",
    "A perfect answer cannot be found.",
    "答案是水星。不，答案是木星。",
    "B. 木星\n…因此答案是 C",
    "Actually this one is tricky, I'm unsure",
    "Error: rate limited",
    "<think>答案是 B",
    "答案是 B <think>",
    "最終答案：A\n最終答案：B",
    "選 A 的人很多",
    "有人選 A，有人選 B",
]
NONE += [
    "A. 水星 B. 木星 C. 火星 D. 金星",
    "(A) 水星 (B) 木星",
    "選項 A：水星，選項 B：木星",
    "答案：\nA. 水星\nB. 木星\nC. 火星",
    "請從 A、B、C、D 中選出答案",
    "不是 A 就是 B",
    "答案不會是 B",
    "Is the answer B?",
    "為什麼答案是 B？",
    "選項 B 不正確",
    "Both A and B are correct",
    "Answer: None of the above",
]
REFUSALS = [
    "抱歉，我無法回答這個問題。",
    "對不起，我不能提供答案",
    "很遺憾，題目資訊不足，沒辦法判斷",
    "我無法回答",
    "对不起，我无法回答",
    "I'm sorry, I cannot answer",
    "As an AI language model, I don't",
    "I’m sorry, but I can’t help with that.",
    "抱歉，我無法判斷答案是 A 還是 B",
    "作為一個 AI，我無法作答。",
]


@pytest.mark.parametrize("reply", [*B, *REASONED])
def test_a_reply_that_plainly_names_an_option_is_read(reply):
    assert read_reply(reply, PLANETS) == ReadReply(1, "answered")


@pytest.mark.parametrize("reply", NONE)
def test_a_reply_that_names_none_or_two_is_never_guessed(reply):
    assert read_reply(reply, PLANETS) == ReadReply(None, "unreadable")
    assert read_reply(reply, PLANETS, truncated=True) == ReadReply(None, "truncated")


@pytest.mark.parametrize("reply", REFUSALS)
def test_a_reply_that_declines_is_counted_apart(reply):
    assert read_reply(reply, PLANETS) == ReadReply(None, "refused")


def test_a_letter_beyond_the_options_is_no_answer():
    ten = [f"第{number}個" for number in "零壹貳參肆伍陸柒捌玖"]
    assert read_reply("C", PLANETS[:2]).option is None and read_reply("C", PLANETS[:3]).option == 2
    assert read_reply("J", ten).option == 9 and read_reply("I", ten).option == 8
    assert read_reply("A. 像 F 一樣", PLANETS).option == 0  # no option is called F
    assert read_reply("⑩", ten).option == 9 and read_reply("答案是 J", ten).option == 9


def test_texts_of_options_that_begin_with_a_letter_or_are_one_are_not_taken_for_labels():
    cells = ("T 細胞", "A 型血", "B 細胞", "巨噬細胞")
    assert read_reply("答案是 B 細胞", cells).option == 2 and read_reply("答案是 A 型血。", cells).option == 1
    assert read_reply("B. A 型血", cells).option == 1 and read_reply("A", cells).option == 0
    assert read_reply("答案是 B 細胞與 T 細胞", cells).option is None
    blood = ("O", "AB", "A", "B")  # the letters are labels first
    assert read_reply("答案是 AB", blood).option == 1 and read_reply("A", blood).option == 0
    assert read_reply("答案是 O", blood).option == 0
    marks = ("①②", "①③", "②③", "①②③")
    assert read_reply("答案是①③", marks).option == 1 and read_reply("①", marks).option is None
    assert read_reply("木星", ("木星", "木星", "火星")).option is None  # two options of one text
    waves = ("不等而反相", "相等而反相", "不等", "相等")
    assert read_reply("答案：不等而反相", waves).option == 0 and read_reply("答案是不等", waves).option == 2
    hertz = ("15.9 Hz", "159 Hz", "1.59 kHz", "15.9 kHz")
    assert [read_reply(rf"\boxed{{{text}}}", hertz).option for text in hertz] == [0, 1, 2, 3]
    assert read_reply("木星\n又大，又亮", ("木星\n又大，又亮", "木星")).option == 0
    assert read_reply("維生素 A", ("維生素 A", "維生素 B")).option == 0
    assert read_reply("B. 維生素 A", ("維生素 C", "維生素 A")).option == 1


@pytest.mark.parametrize(
    "reply, option",
    [
        ("B", 1),
        ("B. 木", 1),
        ("B. 木星\n因為它", 1),
        ("答案是 B。因為木", 1),
        (r"想。\boxed{B}", 1),
        ("**B**", 1),
        ("答案是 B", None),
        ("答案是", None),
        ("分析：答案是 A 有", None),
        ("<think>答案是 A。", None),
        (r"\boxed{B", None),
        ("The answer is A", None),
        ("木星和土星", None),
        ("答案是木星", None),
        ("抱歉，我無法回答", None),
        ("選項 A 是正確的，", None),
    ],
)
def test_of_a_reply_cut_at_its_limit_only_what_stands_for_certain_is_read(reply, option):
    outcome = "truncated" if option is None else "answered"
    assert read_reply(reply, PLANETS, truncated=True) == ReadReply(option, outcome)


def test_a_prompt_that_ends_within_a_thought_is_known():
    assert opens_thought("<|im_start|>assistant\n<think>\n") and opens_thought("答<reasoning>")
    assert not opens_thought("<think>\n\n</think>\n\n") and not opens_thought("天地 <think> 玄黃")


LOOPS = [
    "答案是",
    "答案是 B ",
    "\\boxed{",
    "\\boxed{B}",
    "**B** ",
    "( ",
    "選 A 或 ",
    "答案是木星。",
    "A ",
    "\n",
    "<think>",
    "</think>",
    "<answer>",
    "抱歉",
    "不是",
    "a",
    "{",
    "}",
    "B 是正確的",
    "B. 木星\n",
    "answer ",
    "*",
    "最終答案不",
    " \n ",
    "選項 ",
    "(",
    "正確的",
    "「",
    "final ",
    "\\",
    "< ",
    "<",
]


@pytest.mark.parametrize("piece", LOOPS)
def test_a_reply_of_100000_characters_is_read_at_once(piece):
    """A model in a loop, and text made to have patterns go back and forth; CPU time of this thread alone, the
    least of three: a busy machine makes it longer, never shorter."""
    reply = (piece * 100_000)[:100_000]
    for text in (reply, reply + "\n答案是 B。", "B. 木星\n" + reply):
        times = []
        while not times or (min(times) >= 0.05 and len(times) < 3):
            started = time.thread_time()
            read_reply(text, PLANETS)
            times.append(time.thread_time() - started)
        assert min(times) < 0.15


# ---- replies whose answers are known -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 40))]
)
def test_500_replies_of_known_answers_are_read_right_and_the_bounds_hold_the_truth(seed):
    """A cut reply is read as the whole one would have been, or as cut; nothing else may be uncertain."""
    maker, right, without, truth, wrong = Maker(seed), 0, 0, 0, []
    for _ in range(500):
        made = maker.reply()
        read = read_reply(made.text, made.options, made.truncated, made.thinking)
        truth, right = truth + (made.says == made.key), right + (read.option == made.key)
        without += read.option is None
        cut = made.outcome == "cut" and read == ReadReply(None, "truncated")
        expected = "answered" if made.outcome == "cut" else made.outcome
        if not cut and read != ReadReply(made.says, expected):
            wrong.append((made, read))
    assert not wrong
    assert right <= truth <= right + without and without < 300
