"""Meaning of a row of questions, in the many ways people write it: one reader of columns, options and answers
for training, --exam, --input and --inspect."""

import json

import pytest
from conftest import write_csv, write_rows

from finetune.data.exam import read_exam
from finetune.data.question_rows import parse_question, survey
from finetune.data.tables import read_table
from finetune.runtime.errors import UserError

TEXTS = ("玉山", "雪山", "合歡山", "阿里山")
HEAD = ("question", "A", "B", "C", "D", "answer")


def rows_with(*answers, options=TEXTS) -> list[list]:
    return [[f"第{number}題？", *options, answer] for number, answer in enumerate(answers)]


def read(path, rows=None, header=HEAD, **more):
    """(answers of the questions, what was said of the reading)."""
    if rows is not None:
        write_csv(path, rows, header)
    exam = read_exam(str(path), **more)
    return [q.answer for q in exam.questions.get("", ())], "；".join(exam.notes)


def refused(path, rows=None, header=HEAD, **more) -> str:
    with pytest.raises(UserError) as caught:
        read(path, rows, header, **more)
    return "\n".join(caught.value.problems)


WAYS = [
    ("A", "B", "D"),
    ("a", "b", "d"),
    ("Ａ", "Ｂ", "Ｄ"),
    ("(A)", "(B)", "(D)"),
    ("（Ａ）", "（Ｂ）", "（Ｄ）"),
    ("A.", "B.", "D."),
    ("A)", "B)", "D)"),
    ("A、", "B、", "D、"),
    ("【A】", "【B】", "【D】"),
    ("選項A", "選項B", "選項D"),
    ("答案：A", "答案：B", "答案：D"),
    ("正確答案是A", "正確答案是B", "正確答案是D"),
    ("Answer: A", "Answer: B", "The answer is D."),
    ("①", "②", "④"),
    ("❶", "❷", "❹"),
    ("Ⅰ", "Ⅱ", "Ⅳ"),
    ("甲", "乙", "丁"),
    ("一", "二", "四"),
    ("第一個", "第二個", "第4個"),
    ("🅐", "🅑", "🅓"),
    ("A. 玉山", "B. 雪山", "D. 阿里山"),
    ("(A) 玉山", "(B)雪山", "（D）阿里山"),
    ("玉山", "雪山", "阿里山"),
    (" 玉 山", "雪山。", "阿里山"),
    ('["A"]', "['B']", "['D']"),
    ("1", "2", "4"),
    ("1.0", "2.0", "4.0"),
    ("(1)", "(2)", "(4)"),
    ("1.", "2.", "4."),
    ("0", "1", "3", "0"),
    ("0.0", "1.0", "3.0", "0.0"),
    ("[0]", "[1]", "[3]", "[0]"),
    ("A", "雪山", "④"),
]


@pytest.mark.parametrize("answers", WAYS, ids=lambda way: way[0])
def test_an_answer_is_read_however_it_is_written_and_that_is_said(tmp_path, answers, capsys):
    found, said = read(tmp_path / "q.csv", rows_with(*answers))
    assert found == [0, 1, 3, 0][: len(answers)]
    plain = set(answers) <= {*"ABDabdＡＢＤ"}
    assert bool(said) != plain
    assert (f"q.csv 的讀法：{said}" in capsys.readouterr().err) == bool(said)


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        ([0, 1, 3], [0, 1, 3]),
        ([1, 2, 4], [0, 1, 3]),
        ([1.0, 2.0, 4.0], [0, 1, 3]),
        ([["A"], ["d"]], [0, 3]),
        ([[0], [3]], [0, 3]),
        (["B", 0, 3], [1, 0, 3]),
        ([{"a": 1}], None),
        ([1.5], None),
        ([True], None),
        (["E"], None),
        (["AC"], None),
        (["A,C"], None),
        ([["A", "C"]], None),
        (["A和C"], None),
        (["(A)(C)"], None),
        (["B. 玉山"], None),
        ([[0, 2]], None),
        (["1,3"], None),
        (["玉山和雪山"], None),
        ([99], None),
    ],
)
def test_an_answer_of_json_is_read_or_refused_and_never_guessed(tmp_path, values, answers):
    rows = [{"question": "？", "choices": list(TEXTS), "answer": value} for value in values]
    file = write_rows(tmp_path / "q.jsonl", rows)
    if answers is None:
        assert "答案" in refused(file)
    else:
        assert read(file)[0] == answers


def test_several_right_answers_are_refused_by_name_with_how_many(tmp_path):
    assert "'ABD' 有 3 個；這裡只收單選題" in refused(tmp_path / "q.csv", rows_with("A", "ABD"))
    assert "有 2 個" in refused(tmp_path / "q.csv", rows_with("A", "A、C"))


def test_integers_count_from_what_occurs_in_all_files_and_a_skipped_row_shifts_nothing(tmp_path):
    for split, answers in (("train", "123"), ("test", "24")):
        write_csv(tmp_path / f"x_{split}.csv", rows_with(*answers), HEAD)
    exam = read_exam(str(tmp_path))
    assert [q.answer for q in exam.questions["train"]] == [0, 1, 2]
    assert [q.answer for q in exam.questions["test"]] == [1, 3]
    assert "從 1 算起" in exam.notes[0]
    bad = [*rows_with("1", "4", "9", "2"), ["", *TEXTS, "0"]]
    assert read(tmp_path / "b.csv", bad, on_bad_rows="skip")[0] == [0, 3, 1]


@pytest.mark.parametrize("answers", [("1", "2", "3"), ("2",), ("0", "1", "4")])
def test_integers_that_may_count_from_0_or_1_are_asked_for_and_a_flag_answers(tmp_path, answers):
    assert "--answers_from" in refused(tmp_path / "q.csv", rows_with(*answers), on_bad_rows="skip")
    first = int(answers[0]) if "0" not in answers else 1
    found = read(tmp_path / "q.csv", answers_from="1", on_bad_rows="skip")[0]
    assert found == [int(a) - 1 for a in answers if a != "0"] and first
    assert read(tmp_path / "q.csv", answers_from="0", on_bad_rows="skip")[0] == [
        int(a) for a in answers if a != "4"
    ]


def test_an_option_that_is_a_letter_or_a_number_is_not_taken_for_the_key(tmp_path):
    letters = ("B", "A", "AB", "O")
    assert read(tmp_path / "q.csv", rows_with("A", "B", options=letters))[0] == [0, 1]
    rows = [*rows_with("血型", options=("血型", "天氣", "無", "NA")), *rows_with("A", "AB", options=letters)]
    found, said = read(tmp_path / "q.csv", rows)
    assert found == [0, 1, 2] and "照其他列讀成選項的文字" in said
    numbers = ("2", "4", "6", "8")
    found, said = read(tmp_path / "q.csv", [*rows_with("1", "4"), *rows_with("2", options=numbers)])
    assert found == [0, 3, 1] and "照其他列讀成編號" in said
    found, said = read(
        tmp_path / "q.csv", [*rows_with("玉山"), *rows_with("2", "12", options=("2", "4", "12", "8"))]
    )
    assert found == [0, 0, 2]
    assert "可能是選項" in refused(
        tmp_path / "q.csv", [*rows_with("1", "4", "玉山"), *rows_with("2", options=numbers)]
    )
    assert "沒有對應" in refused(tmp_path / "q.csv", rows_with("無", "None", "NA"))


def test_a_number_among_numbers_is_refused_where_its_readings_differ(tmp_path):
    numbers = ("2", "1", "3", "4")
    assert "可能是選項" in refused(tmp_path / "q.csv", rows_with("2", options=numbers))
    assert read(tmp_path / "q.csv", rows_with("2", options=("1", "2", "3", "4")))[0] == [1]
    row = {"question": "？", "choices": [2, 1, 3, 4], "answer": 2}
    assert "可能是選項" in refused(write_rows(tmp_path / "q.jsonl", [row]))
    rows = [{"question": f"{n}？", "choices": list(numbers), "answer": n} for n in (0, 3, 2)]
    assert read(write_rows(tmp_path / "q.jsonl", rows))[0] == [0, 3, 2]  # whole numbers beside texts count


def test_two_columns_of_one_option_are_refused(tmp_path):
    assert "只差大小寫" in refused(
        tmp_path / "q.csv", [["？", "甲", "乙", "丙", "A"]], ("question", "A", "a", "B", "answer")
    )


def test_the_text_of_two_equal_options_is_no_answer(tmp_path):
    same = ("玉山", "玉山", "雪山", "阿里山")
    assert "相同" in refused(tmp_path / "q.csv", rows_with("雪山", "玉山", options=same))
    assert read(tmp_path / "q.csv", rows_with("雪山", "B", options=same))[0] == [2, 1]


OPTIONS = dict(zip("ABCD", TEXTS, strict=True))
LAYOUTS = [
    {"問題": "？", **OPTIONS, "答案": "B"},
    {"题目": "？", **OPTIONS, "正确答案": "B"},
    {"題幹": "？", **OPTIONS, "正解": "B"},
    {"Question": "？", "Ａ": "玉山", "Ｂ": "雪山", "Ｃ": "合歡山", "Ｄ": "阿里山", "Answer": "B"},
    *(
        {"question": "？", **{f"{word}{letter}": text for letter, text in OPTIONS.items()}, "answer": "B"}
        for word in ("選項", "選項 ", "option_", "option", "Option ", "op", "choice_")
    ),
    *(
        {"question": "？", **{f"{word}{n}": text for n, text in enumerate(TEXTS, 1)}, "answer": "2"}
        for word in ("選項", "選項 ", "option", "Option ", "choice", "mc_answer")
    ),
    {"question": "？", **{f"選項{n}": text for n, text in zip("一二三四", TEXTS, strict=True)}, "答案": "二"},
    {"題目": "？", **dict(zip("甲乙丙丁", TEXTS, strict=True)), "答案": "乙"},
    {"question": "？", **{letter.lower(): text for letter, text in OPTIONS.items()}, "answer": "b"},
    {"sent1": "天", "startphrase": "？", **{f"ending{n}": text for n, text in enumerate(TEXTS)}, "label": 1},
    {"question": "？", "choices": list(TEXTS), "answerKey": "B"},
    {"question": "？", "options": OPTIONS, "answer_idx": "B"},
    {"question": "？", "options": json.dumps(TEXTS), "answer": "B"},
    {"question": "？", "options": str(list(TEXTS)), "answer": "B"},
    {"question": "？", "options": str(OPTIONS), "answer": "B"},
    {"question": "？", "options": "|".join(TEXTS), "answer": "B"},
    {"question": "？", "options": "['玉山' '雪山'\n '合歡山' '阿里山']", "answer": "B"},
    {"question": "？", "options": ";".join(TEXTS), "answer": "B"},
    {"question": "？", "options": "\n".join(TEXTS), "answer": "B"},
    {"question": "？", "選項": "(A) 玉山 (B) 雪山 (C) 合歡山 (D) 阿里山", "answer": "B"},
    {"question": "？", "選項": "1. 玉山 2. 雪山 3. 合歡山 4. 阿里山", "answer": "2"},
    {"question": "？ (A) 玉山 (B) 雪山 (C) 合歡山 (D) 阿里山", "answer": "B"},
    {"question": "？\nA. 玉山\nB. 雪山\nC. 合歡山\nD. 阿里山", "answer": "B"},
    {"question": "？（A）玉山（B）雪山（C）合歡山（D）阿里山", "answer": "B"},
    {"question": "？", "choices": {"text": list(TEXTS), "label": list("1234")}, "answerKey": "2"},
    {"question": "？", "choices": {"text": list(TEXTS), "label": list("ABCD")}, "answerKey": "B"},
    {
        "question": {"stem": "？", "choices": [{"label": k, "text": v} for k, v in OPTIONS.items()]},
        "answerKey": "B",
    },
    {"question": "？", "options": [{"key": k, "value": v} for k, v in OPTIONS.items()], "answer": "B"},
    {"question": "？", "options": dict(zip("1234", TEXTS, strict=True)), "answer": 2},
    {"question": "？", "choice": list(TEXTS), "answer": "雪山"},
    {"question": "？", **OPTIONS, "E": "", "F": None, "answer": "B"},
    {"question": "？", **{f"選項{k}": v for k, v in OPTIONS.items()}, "答案": "選項B"},
]


@pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: "-".join(map(str, row))[:40])
def test_the_layouts_of_the_field_are_the_same_question(tmp_path, row):
    exam = read_exam(
        str(write_rows(tmp_path / "q.jsonl", [row])), answers_from="auto" if row.get("label") != 1 else "0"
    )
    (question,) = exam.questions[""]
    assert (question.stem, question.options, question.answer) == ("？", TEXTS, 1)
    _, reading = survey([row])  # as --input reads it
    assert reading.labelled == frozenset()


def test_a_passage_stands_before_its_question_whatever_the_options_are_called():
    race = {"article": "文章", "question": "問？", "options": list(TEXTS), "answer": "C"}
    c3 = {
        "context": ["女：你好。", "男：好。"],
        "question": "問？",
        "choice": list(TEXTS),
        "answer": "合歡山",
    }
    belebele = {"flores_passage": "文章", "question": "問？", "correct_answer_num": "3"}
    belebele |= {f"mc_answer{n}": text for n, text in enumerate(TEXTS, 1)}
    found = [parse_question(row) for row in (race, c3, belebele)]
    assert [q.stem for q in found] == ["文章\n\n問？", "女：你好。\n男：好。\n\n問？", "文章\n\n問？"]
    assert {q.answer for q in found} == {2} and found[0].passage == found[2].passage != found[1].passage


def test_a_right_answer_apart_from_the_wrong_ones_is_put_among_them_at_a_fixed_place(tmp_path):
    rows = [
        {
            "question": f"{n}？",
            "correct_answer": "對",
            "distractor1": "錯",
            "distractor2": "誤",
            "distractor3": "否",
        }
        for n in range(40)
    ]
    exam = read_exam(str(write_rows(tmp_path / "q.jsonl", rows)))
    assert all(q.options[q.answer] == "對" for q in exam.questions[""])
    assert {q.answer for q in exam.questions[""]} == {0, 1, 2, 3} and "誘答" in exam.notes[0]
    assert read_exam(str(tmp_path / "q.jsonl")).questions == exam.questions


def test_labels_in_front_of_options_go_where_nearly_all_rows_bear_them(tmp_path):
    borne = [f"({letter}) {text}" for letter, text in OPTIONS.items()]
    rows = rows_with(*"ABCD" * 5, options=borne)
    write_csv(tmp_path / "q.csv", [*rows, ["無號？", *TEXTS, "A"]], HEAD)
    exam = read_exam(str(tmp_path / "q.csv"))
    assert {q.options for q in exam.questions[""]} == {TEXTS} and "20 列的選項前面有代號" in exam.notes[0]
    seen, reading = survey(row for _, row in read_table(tmp_path / "q.csv"))
    assert reading.labelled and seen.labelled[""] == 20
    write_csv(tmp_path / "q.csv", [*rows[:5], *rows_with(*"ABCD")], HEAD)
    exam = read_exam(str(tmp_path / "q.csv"))
    assert tuple(borne) in {q.options for q in exam.questions[""]} and "照原樣留著" in exam.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        ("①②", "②③", "③④", "④①"),
        ("甲、乙", "乙、丙", "丙、丁", "丁、甲"),
        ("A:B", "B:C", "C:D", "D:A"),
        ("1.5", "2.5", "3.5", "4.5"),
        ("A型", "B型", "C型", "D型"),
        ("NA", "None", "1.0", "無"),
        ("(A)(B)", "(B)(C)", "(C)(D)", "(D)(A)"),
    ],
)
def test_an_option_that_only_looks_labelled_keeps_its_text(tmp_path, options):
    write_csv(tmp_path / "q.csv", rows_with(*"ABCD", options=options), HEAD)
    assert {q.options for q in read_exam(str(tmp_path / "q.csv")).questions[""]} == {options}


def test_rows_without_an_answer_are_kept_apart_and_a_lone_blank_is_a_bad_row(tmp_path):
    write_csv(tmp_path / "x_dev.csv", rows_with("A", "B", "-"), HEAD)
    write_csv(tmp_path / "x_test.csv", [row[:-1] for row in rows_with("A", "B")], HEAD[:-1])
    exam = read_exam(str(tmp_path))
    assert len(exam) == 2 and {k: len(rows) for k, rows in exam.keyless.items()} == {"train": 1, "test": 2}
    assert "answer 是空的" in refused(tmp_path / "b.csv", rows_with("A", "", "B"))
    write_csv(tmp_path / "c.csv", [row[:-1] for row in rows_with("A")], HEAD[:-1])
    with pytest.raises(UserError, match="少了欄位 answer，有的是 question、A"):
        read_exam(str(tmp_path / "c.csv")).need_answers("--dataset c.csv")


def test_a_csv_without_names_of_columns_is_read_by_place(tmp_path):
    write_csv(tmp_path / "q.csv", rows_with("B", "C")[1:], rows_with("B")[0])
    assert read(tmp_path / "q.csv")[0] == [1, 2]


def test_a_file_that_holds_no_questions_is_reported_once_with_the_columns_there_are(tmp_path):
    found = refused(tmp_path / "q.csv", [["天", "1"]] * 50, ("text", "label"))
    assert found.count("看不出哪一欄是題目") == 1 and "text、label" in found


def test_a_subject_may_have_a_column_of_any_name(tmp_path):
    for name in ("subject", "科目", "category", "学科"):
        exam = read_exam(str(write_csv(tmp_path / "q.csv", [[*rows_with("A")[0], "物理"]], (*HEAD, name))))
        assert exam.questions[""][0].subject == "物理"
