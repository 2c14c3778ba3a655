"""Rows to answer, in every layout people use; what is wrong with them, all at once; reading comprehension as
exam questions."""

import pytest
from conftest import write_rows

from finetune.data.exam import Exam
from finetune.data.instructions import parse_instruction, read_instructions
from finetune.data.question_rows import parse_question
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import SUFFIXES

ALPACA = {"instruction": "翻成英文", "input": "天空", "output": "sky"}
TURNS = (("user", "翻成英文\n\n天空"), ("assistant", "sky"))
HELLO = (("user", "問好"), ("assistant", "你好"))
PASSAGE = {
    "ID": "7",
    "文章": "天地玄黃。",
    "問題": "什麼是玄？",
    "選項1": "天",
    "選項2": "地",
    "選項3": "日",
    "選項4": "月",
    "正確答案": "2",
}


def sft(train, model, dataset, *more) -> int:
    words = ["--task", "sft", "--model_name_or_path", model, "--dataset", dataset, "--cpu"]
    return train(*words, *more, base=False)


# ---- layouts -----------------------------------------------------------------------------------------------

USER, SAID = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗨"}
LAYOUTS = [
    ("alpaca", ALPACA, TURNS),
    ("without input", {"instruction": "問好", "output": "你好"}, HELLO),
    ("an empty input", {**ALPACA, "input": " "}, (("user", "翻成英文"), TURNS[1])),
    ("input alone", {**ALPACA, "instruction": ""}, (("user", "天空"), TURNS[1])),
    (
        "no value",
        {**ALPACA, "input": None, "system": None, "history": None},
        (("user", "翻成英文"), TURNS[1]),
    ),
    ("system", {**ALPACA, "system": "你是老師"}, (("system", "你是老師"), *TURNS)),
    (
        "history",
        {**ALPACA, "history": [["一", "二"], ["三", "四"]]},
        (("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四"), *TURNS),
    ),
    ("white space", {"instruction": " 甲\n", "output": "\n乙 "}, (("user", "甲"), ("assistant", "乙"))),
    ("a number", {"instruction": "2+2", "output": 4}, (("user", "2+2"), ("assistant", "4"))),
    ("messages", {"messages": [USER, SAID]}, (("user", "你好"), ("assistant", "嗨"))),
    (
        "a talk",
        {"messages": [{"role": "system", "content": "甲"}, USER, SAID, USER, SAID]},
        (("system", "甲"), *(("user", "你好"), ("assistant", "嗨")) * 2),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "嗨"}]},
        (("user", "你好"), ("assistant", "嗨")),
    ),
    (
        "messages beside an empty column",
        {"messages": None, "conversations": [USER, SAID]},
        (("user", "你好"), ("assistant", "嗨")),
    ),
]


@pytest.mark.parametrize(("row", "turns"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS])
def test_a_row_of_every_layout_is_a_conversation_that_ends_with_the_answer(tmp_path, row, turns):
    assert parse_instruction(row).turns == turns
    course = read_instructions(str(write_rows(tmp_path / "rows.jsonl", [row])))
    assert [found.turns for found in course.rows] == [turns]
    roles = [message["role"] for message in course.rows[0].messages]
    assert roles == [role for role, _ in turns]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_the_same_rows(tmp_path, suffix):
    rows = [ALPACA, {**ALPACA, "input": "", "output": '含 "引號"，逗號,\n與換行'}]
    course = read_instructions(str(write_rows(tmp_path / f"rows{suffix}", rows)))
    assert [row.turns for row in course.rows] == [
        TURNS, (("user", "翻成英文"), ("assistant", "含 \"引號\"，逗號,\n與換行")),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_format_that_holds_lists_holds_conversations(tmp_path, suffix):
    rows = [{"messages": [USER, SAID]}, {"messages": [USER, SAID, USER, SAID]}]
    course = read_instructions(str(write_rows(tmp_path / f"rows{suffix}", rows)))
    assert [len(row.turns) for row in course.rows] == [2, 4]


def test_a_folder_is_all_its_files(tmp_path):
    folder = tmp_path / "rows"
    (folder / "inner").mkdir(parents=True)
    write_rows(folder / "a.csv", [ALPACA])
    write_rows(folder / "inner/b.jsonl", [{"messages": [USER, SAID]}])
    (folder / "README.md").write_text("not data")
    assert [row.turns[0][1] for row in read_instructions(str(folder)).rows] == ["翻成英文\n\n天空", "你好"]


def test_a_row_that_is_to_be_answered_needs_no_answer_and_keeps_none():
    asked = {"instruction": "問", "output": "舊的答案"}
    assert parse_instruction(asked, need_answer=False).turns == (("user", "問"),)
    assert parse_instruction({"messages": [USER, SAID]}, need_answer=False).turns == (("user", "你好"),)
    assert len(parse_instruction({"messages": [USER, SAID, USER]}, need_answer=False).turns) == 3
    with pytest.raises(ValueError, match="最後一句要是使用者說的"):
        parse_instruction({"messages": [USER, {"role": "system", "content": "甲"}]}, need_answer=False)


# ---- bad rows ----------------------------------------------------------------------------------------------

BAD = [
    ({"instruction": "問", "output": ""}, "沒有回答"),
    ({"instruction": "問"}, "沒有回答"),
    ({"instruction": " ", "input": "", "output": "答"}, "instruction 是空的"),
    ({"messages": [{"role": "alien", "content": "你好"}, SAID]}, "不認得角色 'alien'"),
    ({"messages": [USER]}, "沒有回答"),
    ({"messages": [SAID]}, "沒有使用者的訊息"),
    ({"messages": []}, "messages 應該是一串"),
    ({"messages": ["你好"]}, "messages 應該是一串"),
    ({"messages": [{"role": "user", "content": 7}, SAID]}, "user 的 content 應該是文字"),
    ({**ALPACA, "history": ["一"]}, "history 應該是一串 [問, 答]"),
    ({**ALPACA, "history": 5}, "history 應該是一串 [問, 答]"),
    ({**ALPACA, "input": ["天"]}, "input 應該是文字"),
    ({"text": "天"}, "欄位是 text；要有"),
    (["天"], "應該是一個物件"),
]


def test_bad_rows_are_all_named_with_their_lines_at_once_and_skipped_when_said_so(
    tmp_path, train, qwen_dir, capsys
):
    source = write_rows(
        tmp_path / "rows.jsonl", [ALPACA, *(row for row, _ in BAD), {**ALPACA, "input": "水"}]
    )
    with source.open("a", encoding="utf-8") as stream:
        stream.write("\n{torn\n")
    assert sft(train, qwen_dir, source) == 2
    err = capsys.readouterr().err
    for line, (_, reason) in enumerate(BAD, 2):
        assert any(f"{source}:{line}：" in told and reason in told for told in err.splitlines()), reason
    assert f"{source}:{len(BAD) + 3}：不是 JSON" in err and "Traceback" not in err
    assert f"共 {len(BAD) + 1} 列有問題" in err and "--on_bad_rows skip" in err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]

    course = read_instructions(str(source), on_bad_rows="skip")
    assert [row.turns[0][1][-1] for row in course.rows] == ["空", "水"]
    assert len(course.skipped) == len(BAD) + 1
    assert sft(train, qwen_dir, source, "--on_bad_rows", "skip", "--max_steps", "1") == 0
    assert f"2 列，略過 {len(BAD) + 1} 列" in capsys.readouterr().err


def test_a_csv_row_with_an_unquoted_comma_is_named(tmp_path, train, qwen_dir, capsys):
    source = tmp_path / "rows.csv"
    source.write_text("instruction,output\n問,答\n問,一,二\n", encoding="utf-8")
    assert sft(train, qwen_dir, source) == 2
    assert f"{source}:3：有 3 欄，標題列是 2 欄（內容含逗號要加引號" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("gone.csv", None, "沒有這個檔案"), ("empty.jsonl", "", "空的檔案"), ("rows.csv", "stem\n天\n", "要有")],
)
def test_a_file_without_rows_to_answer_is_refused(tmp_path, train, qwen_dir, capsys, name, text, reason):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert sft(train, qwen_dir, tmp_path / name) == 2
    assert reason in capsys.readouterr().err


# ---- questions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("1", 0),
        ("2", 1),
        (3, 2),
        (4, 3),
        ("２", 1),
        ("3.0", 2),
        (3.0, 2),
        (" 4 ", 3),
        ("B", 1),
        ("ｂ", 1),
        ("一", 0),
    ],
)
def test_answers_of_reading_comprehension_count_from_1(answer, index):
    assert parse_question({**PASSAGE, "正確答案": answer}).answer == index


@pytest.mark.parametrize("answer", ["0", 0, "5", 5, "1.5", "E", "五", 12])
def test_an_answer_that_is_no_option_is_refused_as_it_was_written(answer):
    with pytest.raises(ValueError, match=f"答案 '?{answer}'? 沒有對應的選項"):
        parse_question({**PASSAGE, "正確答案": answer})
    with pytest.raises(ValueError, match="answer 是空的"):
        parse_question({**PASSAGE, "正確答案": ""})


@pytest.mark.parametrize(("answer", "reason"), [("-1", "是空的"), (True, "答案 True 是布林值")])
def test_no_answer_and_what_can_be_none_are_refused_in_words(answer, reason):
    with pytest.raises(ValueError, match=reason):
        parse_question({**PASSAGE, "正確答案": answer})


def test_the_passage_stands_before_the_question_and_its_id_is_kept():
    question = parse_question(PASSAGE, row_id="elsewhere")
    assert question.stem == "天地玄黃。\n\n什麼是玄？"
    assert question.options == ("天", "地", "日", "月") and question.id == "7"


@pytest.mark.parametrize("names", [
    ("article", "question", "option1", "option2", "answer"),
    ("passage", "question", "Option 1", "Option 2", "correct_answer"),
    ("context", "question", "choice_1", "choice_2", "Correct Answer"),
    ("文章", "問題", "選項1", "選項2", "答案"),
])  # fmt: skip
def test_the_columns_may_have_english_names(names):
    question = parse_question(dict(zip(names, ("甲。", "乙？", "丙", "丁", "2"), strict=True)))
    assert (question.stem, question.options, question.answer) == ("甲。\n\n乙？", ("丙", "丁"), 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"選項2": ""}, "選項 B 是空的"),
        ({"問題": ""}, "question 是空的"),
        ({"選項2": "", "選項3": "", "選項4": ""}, "有 1 個選項"),
        ({f"選項{number}": "甲" for number in range(1, 12)}, "有 11 個選項"),
    ],
)
def test_a_question_of_reading_comprehension_that_cannot_be_used_has_its_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        parse_question({**PASSAGE, **changes})


def test_fewer_options_than_columns_are_those_that_are_filled():
    assert parse_question({**PASSAGE, "選項3": "", "選項4": None}).options == ("天", "地")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_that_are_questions_become_an_exam_in_every_format(tmp_path, suffix):
    letters = {"question": "天？", "A": "地", "B": "玄", "answer": "B"}
    for rows, answers in (
        ([PASSAGE, {**PASSAGE, "正確答案": "4"}], [1, 3]),
        ([letters, {**letters, "answer": "A"}], [1, 0]),
    ):
        exam = read_instructions(str(write_rows(tmp_path / f"rows{suffix}", rows)))
        assert isinstance(exam, Exam)
        assert [question.answer for question in exam.questions[""]] == answers


def test_bad_rows_of_reading_comprehension_are_named_and_skipped_like_any(tmp_path, train, qwen_dir, capsys):
    rows = [PASSAGE, {**PASSAGE, "正確答案": "5"}, {**PASSAGE, "選項2": ""}, {**PASSAGE, "問題": "何？"}]
    source = write_rows(tmp_path / "read.csv", rows)
    assert sft(train, qwen_dir, source) == 2
    err = capsys.readouterr().err
    assert f"{source}:3：答案 '5' 沒有對應的選項" in err and f"{source}:4：選項 B 是空的" in err
    exam = read_instructions(str(source), on_bad_rows="skip")
    assert len(exam) == 2 and len(exam.skipped) == 2
    with pytest.raises(UserError):
        read_instructions(str(source))
