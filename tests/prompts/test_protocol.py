"""Protocols: their prompts to the letter, and what is said of a file that is none."""

import re
from dataclasses import replace

import pytest

from finetune.data.question import Question
from finetune.prompts.exam import Template
from finetune.prompts.protocol import PROTOCOLS, load_protocol
from finetune.prompts.question_writer import Asking, QuestionWriter, choose_examples
from finetune.runtime.errors import UserError

# Strings below are what lm-eval 0.4.13 sent (benchmarks/parity.py runs it), and those that ievals (71e8534)
# and Twinkle Eval (2.8) build.
ASKED = Question(
    " 光速約為多少？\n", ("3×10^5 km/s", "340 m/s ", "1 km/s", "無限大"), 0, "physics", "physics/test/1"
)
SHOTS = [
    Question("力的單位是？", ("牛頓", "焦耳", "瓦特", "帕斯卡"), 0, "physics"),
    Question("功的單位是？", ("牛頓", "焦耳", "瓦特", "帕斯卡"), 1, "physics"),
]
DESIGN = replace(ASKED, subject="tve_design")
ORDER = range(4)

OPTIONS = "A. 3×10^5 km/s\nB. 340 m/s \nC. 1 km/s\nD. 無限大"
UNITS = "A. 牛頓\nB. 焦耳\nC. 瓦特\nD. 帕斯卡"


def writer(protocol: str, form: str, shots: int = 0, **settings) -> QuestionWriter:
    asking = Asking(load_protocol(protocol), form, num_fewshot=shots, **settings)
    return QuestionWriter(asking, choose_examples(SHOTS, shots))


def said(messages) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def test_lm_eval_without_examples_is_asked_to_the_letter():
    text = writer("lm-eval", "raw").text(ASKED, ORDER)
    assert text == f"以下為物理的單選題，請提供正確答案的選項。\n\n光速約為多少？\n{OPTIONS}\nAnswer:"
    assert writer("lm-eval", "raw").answer(2) == " C"
    assert writer("lm-eval", "raw").text(DESIGN, ORDER).startswith("以下為統測 設計的單選題，")


def test_lm_eval_with_examples_is_asked_to_the_letter():
    assert writer("lm-eval", "raw", 2).text(ASKED, ORDER) == (
        "以下為物理的單選題，請提供正確答案的選項。\n\n"
        f"力的單位是？\n{UNITS}\nAnswer: A\n\n"
        f"功的單位是？\n{UNITS}\nAnswer: B\n\n"
        f"光速約為多少？\n{OPTIONS}\nAnswer:"
    )


def test_lm_eval_in_a_chat_is_asked_to_the_letter():
    system = ("system", "以下為物理的單選題，請提供正確答案的選項。\n\n")
    asked = ("user", f"光速約為多少？\n{OPTIONS}\nAnswer:")
    assert said(writer("lm-eval", "chat").messages(ASKED, ORDER)) == [system, asked]
    assert said(writer("lm-eval", "chat", 2).messages(ASKED, ORDER)) == [
        system,
        ("user", f"力的單位是？\n{UNITS}\nAnswer:"), ("assistant", "A"),
        ("user", f"功的單位是？\n{UNITS}\nAnswer:"), ("assistant", "B"), asked,
    ]  # fmt: skip
    together = writer("lm-eval", "chat", 1, multiturn=False).messages(ASKED, ORDER)
    assert said(together) == [system, ("user", f"力的單位是？\n{UNITS}\nAnswer: A\n\n{asked[1]}")]
    assert writer("lm-eval", "chat").answer(2) == "C"


def test_a_system_prompt_stands_before_the_description_as_in_lm_eval():
    system = writer("lm-eval", "chat", system_prompt="請想清楚。").messages(ASKED, ORDER)[0]["content"]
    assert system == "請想清楚。\n\n以下為物理的單選題，請提供正確答案的選項。\n\n"
    assert said(writer("ours", "chat", system_prompt="請想清楚。").messages(ASKED, ORDER))[0] == (
        "system", "請想清楚。",
    )  # fmt: skip


def test_ievals_asks_base_models_with_its_cue_twice_and_its_header_before_examples_alone():
    stem = ASKED.stem
    asked = f"問題：{stem}\n{OPTIONS}\n答案：\n答案："
    assert writer("ievals", "raw").text(ASKED, ORDER) == asked
    assert writer("ievals", "raw", 1).text(ASKED, ORDER) == (
        "以下是關於物理考試單選題，請選出正確的答案。\n\n"
        f"問題：力的單位是？\n{UNITS}\n答案：\n答案：A\n\n{asked}"
    )


def test_ievals_asks_chat_models_with_its_header_before_the_first_turn():
    system = ("system", "你是一位專業的中文AI助理，以下是關於物理考試單選題，請選出正確的答案。")
    lead = "以下是關於物理考試單選題，請選出正確的答案。\n\n"
    asked = f"{ASKED.stem}\n{OPTIONS}\n答案："
    assert said(writer("ievals", "chat").messages(ASKED, ORDER)) == [system, ("user", lead + asked)]
    assert said(writer("ievals", "chat", 1).messages(ASKED, ORDER)) == [
        system, ("user", f"{lead}力的單位是？\n{UNITS}\n答案："), ("assistant", "A"), ("user", asked),
    ]  # fmt: skip
    assert "統測＿設計" in writer("ievals", "chat").messages(DESIGN, ORDER)[0]["content"]


def test_twinkle_asks_for_a_box_or_scores_the_letter():
    colons = "A: 3×10^5 km/s\nB: 340 m/s \nC: 1 km/s\nD: 無限大"
    box = writer("twinkle-box", "chat")
    assert said(box.messages(ASKED, ORDER)) == [
        ("system", "使用者將提供一個題目，並附上選項。\n請選出最正確的選項，以 \\box{選項} 格式回答。"),
        ("user", f"{ASKED.stem}\n{colons}"),
    ]
    assert box.answer(1) == "\\box{B}"
    logit = writer("twinkle-logit", "raw")
    assert logit.text(ASKED, ORDER) == f"{ASKED.stem}\n{colons}\nAnswer:"
    assert logit.answer(1) == " B"


def test_options_are_written_in_the_order_asked_and_up_to_ten_of_them():
    ten = Question("？", tuple("甲乙丙丁戊己庚辛壬癸"), 9, "physics")
    lines = writer("lm-eval", "raw").text(ten, range(9, -1, -1)).splitlines()
    assert lines[3] == "A. 癸" and lines[12] == "J. 甲"


def test_a_placeholder_in_a_question_stays_text():
    tricky = Question("{options} 與 {stem}", ("{letter}", "{text}"), 0, "{subject}")
    text = writer("lm-eval", "raw").text(tricky, range(2))
    assert "以下為{subject}的" in text and "{options} 與 {stem}\nA. {letter}\nB. {text}\n" in text


def test_examples_are_the_first_of_the_subject_in_file_order_and_never_the_question_itself():
    others = [replace(row, subject="chemistry") for row in SHOTS]
    examples = choose_examples([*SHOTS, *others], 1)
    assert examples == {"physics": SHOTS[:1], "chemistry": others[:1]}
    both = QuestionWriter(Asking(load_protocol("lm-eval"), "raw", num_fewshot=2), {"physics": SHOTS})
    assert both.examples_for(SHOTS[0]) == SHOTS[1:]
    with pytest.raises(UserError, match="--num_fewshot 3.*dev"):
        choose_examples([], 3)


def test_our_own_chat_prompt_is_the_one_that_run_cards_keep():
    ours = load_protocol("ours")
    assert (ours.chat.question, ours.option) == (Template().asked, Template().choice)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_built_in_protocol_reads_and_names_its_source(name):
    protocol = load_protocol(name)
    assert protocol.title and (protocol.source.startswith("https://") or name == "ours")
    assert all(re.compile(pattern).groups == 1 for pattern in protocol.reader)


GOOD = """title: 我的
raw:
  question: "{stem}\\n{options}\\n答："
  answer: "{letter}"
"""


def own(tmp_path, text: str):
    load_protocol.cache_clear()
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    return load_protocol(str(tmp_path / "my.yaml"))


def test_a_file_of_ones_own_is_a_protocol(tmp_path):
    protocol = own(tmp_path, GOOD)
    assert protocol.name == "my.yaml" and protocol.is_own and protocol.form_name("auto", True) == "raw"
    assert QuestionWriter(Asking(protocol, "raw")).text(SHOTS[0], (0, 1)) == (
        "力的單位是？\nA. 牛頓\nB. 焦耳\n答："
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: x", "要有 raw 或 chat"),
        ("- 1", "內容應為"), ("", "內容應為"),
        (GOOD.replace("{stem}", "{stam}"), "raw.question 的佔位符"),
        (GOOD.replace("question:", "qestion:"), "是不是 question"),
        (GOOD + "aggregate: mean\n", "aggregate 是 'mean'"),
        (GOOD + "num_fewshot: true\n", "num_fewshot 是 'True'，應為整數"),
        (GOOD + "reader: ['(A)(B)']\n", "剛好一組括號"),
        (GOOD + "reader: ['(']\n", "不是正規表示式"),
        (GOOD + "  scoring: guess\n", "raw.scoring 是 'guess'"),
        ("title: [", "不是正確的 YAML：第 1 行"),
        (GOOD.replace("  question", "\tquestion"), "縮排要用空格"),
        (GOOD + "---\n" + GOOD, "只能有一份文件"),
        (GOOD + "title: again\n", "'title' 寫了兩次"),
        (GOOD + "  answer: '{letter}'\n", "raw.'answer' 寫了兩次"),
        (GOOD + "source: !!python/name:os.system\n", "不收標籤"),
        (GOOD + 'source: "\\ud800"\n', "source 有落單的代理字元"),
        (GOOD + "chat:\n", "chat 是空的"),
        ("title: " + "[" * 5000, "巢狀太深"),
        (GOOD + "subjects: {1: 2}\n", "subjects"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_protocol_is_refused_with_the_key(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        own(tmp_path, text)
    assert words in str(caught.value) and "--protocol" in str(caught.value)
    said_in_english = re.findall(r"[a-z]+ [a-z]+ [a-z]+", str(caught.value).replace("python/name:os", ""))
    assert not said_in_english


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_file_named_like_a_built_in_protocol_is_still_ones_own(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text(GOOD, encoding="utf-8")
    protocol = load_protocol(str(tmp_path / f"{name}.yaml"))
    assert protocol.is_own and protocol.name == f"{name}.yaml" and not Asking(protocol, "raw").is_ours
    assert not load_protocol(name).is_own


def test_a_protocol_in_another_encoding_or_that_is_no_file_is_refused_in_chinese(tmp_path):
    (tmp_path / "big5.yaml").write_bytes(GOOD.encode("cp950"))
    for name, words in (("big5.yaml", "不是 UTF-8（第 8 個位元組）"), ("x" * 300 + ".yaml", "沒有這個檔案")):
        with pytest.raises(UserError, match=words):
            load_protocol(str(tmp_path / name))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match="不是一般的檔案"):
        load_protocol(str(tmp_path / "folder.yaml"))


def test_an_unknown_protocol_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="lm-eval、ievals.*是不是 lm-eval？"):
        load_protocol("lm_eval")


def test_a_form_that_a_protocol_or_a_model_lacks_is_refused_with_the_way_out():
    for name, requested, template, words in (
        ("twinkle-logit", "chat", True, "只有 raw"), ("twinkle-box", "auto", False, "沒有對話樣板"),
        ("lm-eval", "chat", False, "--prompt_format raw"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            load_protocol(name).form_name(requested, template)
    assert load_protocol("ievals").form_name("auto", False) == "raw"
    assert load_protocol("ievals").form_name("auto", True) == "chat"
