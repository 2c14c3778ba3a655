"""Reading, choosing and splitting questions."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from conftest import ODD_OPTIONS, make_exam_dir, write_csv, write_rows
from conftest import SUBJECTS as EXAM_SUBJECTS

from finetune.data.exam import Exam, read_exam
from finetune.data.labelled import read_labelled
from finetune.data.question import Question, as_dict
from finetune.data.question_rows import parse_question
from finetune.data.splits import split_exam
from finetune.data.subjects import CATEGORIES, SUBJECTS, category_of
from finetune.runtime.errors import UserError

RATIO = (0.70, 0.25, 0.05)
ROW = {"question": "天？", "A": "地", "B": "玄", "C": "黃", "D": "宇", "answer": "C"}


def reasons(source) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_exam(str(source))
    return caught.value.problems


def test_the_66_subjects_have_a_chinese_name_and_a_category():
    assert len(SUBJECTS) == 66
    counts = {category: sum(category_of(s) == category for s in SUBJECTS) for category in CATEGORIES}
    assert counts == {"STEM": 14, "humanities": 7, "social_sciences": 18, "other": 27}
    assert all(any("一" <= c <= "鿿" for c in name) for name in SUBJECTS.values())


@pytest.mark.parametrize("bom", [False, True])
def test_text_stays_text(tmp_path, bom):
    rows = [["題？", *ODD_OPTIONS[:4], "A"], ["1.50", *ODD_OPTIONS[4:], "D"]]
    exam = read_exam(str(write_csv(tmp_path / "q.csv", rows, bom=bom)))
    seen = exam.questions[""]
    assert [q.options for q in seen] == [ODD_OPTIONS[:4], ODD_OPTIONS[4:]]
    assert seen[1].stem == "1.50" and seen[1].answer == 3


def test_every_layout_of_a_file_reads_as_the_same_questions(tmp_path):
    row, listed = ROW, {"question": "天？", "choices": ["地", "玄", "黃", "宇"], "answer": "2"}
    told = {"answers_from": "0"}
    (tmp_path / "a.json").write_text(json.dumps([row, listed], ensure_ascii=False), encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(r) for r in (row, listed)) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "c.parquet")
    write_csv(tmp_path / "d.csv", [[row[k] for k in ("question", *"ABCD", "answer")]] * 2)
    kept = parse_question(as_dict(parse_question(row)))
    for name in ("a.json", "b.jsonl", "c.parquet", "d.csv"):
        for question in read_exam(str(tmp_path / name), **told).questions[""]:
            assert (question.stem, question.options, question.answer) == (kept.stem, kept.options, 2), name


def test_a_folder_reads_the_same_with_its_files_below_data(tmp_path, exam_dir):
    below = make_exam_dir(tmp_path / "data").parent
    ours, theirs = read_exam(str(below)), read_exam(str(exam_dir))
    assert ours.questions == theirs.questions
    assert {split: len(rows) for split, rows in ours.questions.items()} == {
        "train": 20,
        "validation": 32,
        "test": 40,
    }


def test_two_to_ten_options_are_questions_and_others_are_not():
    for count in (2, 10):
        letters = "ABCDEFGHIJ"[:count]
        question = parse_question(
            {"question": "天？", **dict(zip(letters, letters, strict=True)), "answer": letters[-1]}
        )
        assert len(question.options) == count and question.answer == count - 1
    for options in (["甲"], list("ABCDEFGHIJK")):
        with pytest.raises(ValueError, match="個選項"):
            parse_question({"question": "天？", "choices": options, "answer": 0})


def test_every_bad_row_is_reported_with_file_line_and_reason(tmp_path):
    (tmp_path / "bad.csv").write_text(
        "question,A,B,C,D,answer\n"
        "好的,1,2,3,4,A\n"
        "沒有這個選項,1,2,3,4,E\n"
        "多一欄,1,2,3,4,5,A\n"
        "少一欄,1,2,3,A\n"
        ",1,2,3,4,A\n"
        "空選項,1,,3,4,A\n"
        '"跨\n行",1,2,3,4,\n',
        encoding="utf-8",
    )
    found = reasons(tmp_path / "bad.csv")
    at = {int(line.split("bad.csv:")[1].split("：")[0]) for line in found[:-1]}
    assert at == {3, 4, 5, 6, 7, 8}
    assert "共 6 列有問題" in found[-1]
    kept = read_exam(str(tmp_path / "bad.csv"), on_bad_rows="skip")
    assert len(kept) == 1 and len(kept.skipped) == 6


def test_rows_of_another_encoding_are_reported_ten_times_a_file_with_what_they_could_say_and_counted(
    tmp_path,
):
    row = "題目,甲,乙,A\n"
    (tmp_path / "q.csv").write_bytes(b"question,A,B,answer\n" + row.encode("big5") * 19 + row.encode())
    found = reasons(tmp_path / "q.csv")
    assert len(found) == 12 and "q.csv:2：這一行不是 UTF-8" in found[0] and "Big5 讀成「題目" in found[0]
    assert "另有 9 列" in found[10] and "讀到 1 題，共 19 列有問題" in found[11]


def test_a_quote_that_is_not_closed_names_the_lines_it_took_along(tmp_path):
    text = 'question,A,B,answer\n題,甲,乙,A\n"題,甲,乙,A\n題,甲,乙,B\n題,甲,乙,B\n'
    (tmp_path / "q.csv").write_text(text, encoding="utf-8")
    assert "第 3 到 5 行讀成了一列" in reasons(tmp_path / "q.csv")[0]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"", "空的檔案"),
        ("a.csv", b"question,A,B,C,D,answer\n", "一題也沒有"),
        ("a.csv", b"question,A,A,answer\nx,1,2,A\n", "出現兩次"),
        ("a.csv", b'question,A,B,answer\n"x,1,2,A\n', "引號沒有成對"),
        ("a.csv", "question,A,B,answer\n很,好,吃,A\n".encode("gbk"), "不是 UTF-8"),
        ("a.json", b"{", "不是 JSON"),
        ("a.json", b'"x"', "一串資料"),
        ("a.json", b"[" * 100_000, "不是 JSON"),
        ("a.jsonl", b"", "空的檔案"),
        ("a.jsonl", b"[1]\n", "應該是一個物件"),
        ("a.parquet", b"PAR1", "不是 parquet"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason in "\n".join(reasons(tmp_path / name))


def declare(folder: Path, *configs: dict) -> None:
    """A README.md as the hub reads it."""
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [*configs]})}---\n# 題庫\n", "utf-8")


def test_the_card_of_a_folder_decides_which_file_is_which_subject_and_split(tmp_path, capsys):
    files = {"a1.csv": "甲", "b2.csv": "乙", "more/c3.csv": "丙", "spare.csv": "丁"}
    for name, stem in files.items():
        write_csv(tmp_path / name, [[stem, "NA", "007", "1.0", "None", "B"]])
    splits = {"data_files": [{"split": "train", "path": ["a1.csv"]}, {"split": "test", "path": "more/*.csv"}]}
    declare(
        tmp_path,
        {
            "config_name": "all",
            "data_files": [{"split": "train", "path": ["a1.csv", "b2.csv", "more/c3.csv"]}],
        },
        {"config_name": "physics", **splits},
        {"config_name": "art", "data_files": [{"split": "dev", "path": "b2.csv"}]},
    )
    exam = read_exam(str(tmp_path))
    read = {(q.stem, split, q.subject) for split, part in exam.questions.items() for q in part}
    assert read == {("甲", "train", "physics"), ("丙", "test", "physics"), ("乙", "validation", "art")}
    assert exam.questions["train"][0].options == ("NA", "007", "1.0", "None")
    assert "略過 spare.csv" in capsys.readouterr().err


def test_a_card_that_declares_what_the_names_say_changes_nothing(tmp_path, exam_dir):
    folder = shutil.copytree(exam_dir, tmp_path / "declared" / "data").parent
    names = {"train": "dev", "validation": "val", "test": "test"}
    declare(
        folder,
        *(
            {
                "config_name": subject,
                "data_files": [{"split": s, "path": f"data/{subject}_{names[s]}.csv"} for s in names],
            }
            for subject in EXAM_SUBJECTS
        ),
    )
    assert read_exam(str(folder)).questions == read_exam(str(exam_dir)).questions


def test_a_card_may_name_one_of_two_formats_and_splits_that_are_none_of_ours(tmp_path):
    write_csv(tmp_path / "x.csv", [["草稿", "一", "二", "三", "四", "A"]])
    write_rows(tmp_path / "x.jsonl", [{**ROW, "question": "定稿"}])
    declare(tmp_path, {"config_name": "default", "data_files": [{"split": "few_shot", "path": "x.jsonl"}]})
    assert [q.stem for part in read_exam(str(tmp_path)).questions.values() for q in part] == ["定稿"]
    rows = [{"text": f"天{n}", "label": "ab"[n % 2]} for n in range(8)]
    for name in ("a", "b"):
        write_rows(tmp_path / f"labels/{name}.jsonl", rows)
    splits = [{"split": "few_shot", "path": "a.jsonl"}, {"split": "train", "path": "b.jsonl"}]
    declare(tmp_path / "labels", {"config_name": "default", "data_files": splits})
    assert {name: len(part) for name, part in read_labelled(str(tmp_path / "labels")).rows.items()} == {
        "train": 8
    }


@pytest.mark.parametrize(
    ("data_files", "said"),
    [
        ([{"split": "test", "path": "../secret_test.csv"}], "指到資料夾外面"),
        ([{"split": "test", "path": "https://example.com/x.csv"}], "指到資料夾外面"),
        ([{"split": "test", "path": "/etc/*"}], "指到資料夾外面"),
        ([{"split": "test", "path": "gone.csv"}], ""),
        ([{"split": "test"}], "無法解析"),
        ([{"split": "test", "path": "a"}, {"split": "test", "path": "b"}], "無法解析"),
        ([7], "無法解析"),
        (7, "無法解析"),
    ],
)
def test_a_card_that_cannot_be_followed_is_passed_over_and_said(tmp_path, capsys, data_files, said):
    folder = tmp_path / "exam"
    write_csv(tmp_path / "secret_test.csv", [["密", "一", "二", "三", "四", "A"]])
    write_csv(folder / "art_test.csv", [["題", "一", "二", "三", "四", "A"]])
    declare(folder, {"config_name": "default", "data_files": data_files})
    exam = read_exam(str(folder))
    assert [(q.stem, q.subject) for q in exam.questions["test"]] == [("題", "art")]
    assert said in capsys.readouterr().err


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path):
    assert "沒有這個檔案或資料夾" in reasons(tmp_path / "nothing.csv")[0]


@pytest.mark.parametrize("chosen", ["physics", "物理", "STEM", "理工"])
def test_subjects_are_chosen_by_name_or_category_in_either_language(exam_dir, chosen):
    exam = read_exam(str(exam_dir), subjects=chosen)
    assert {q.subject for rows in exam.questions.values() for q in rows} == {"physics"}


def test_an_unknown_subject_is_named_with_the_nearest_one(exam_dir):
    with pytest.raises(UserError, match="'phisics'.*physics"):
        read_exam(str(exam_dir), subjects="trade,phisics")


def questions(count, subject="s", split="train"):
    return [
        Question(f"{subject} {i}", ("a", "b"), 0, subject, f"{subject}/{split}/{i}") for i in range(count)
    ]


def test_splits_keep_their_shares_in_the_whole_and_nearly_so_in_each_subject():
    exam = Exam({"train": questions(100, "x") + questions(40, "y") + questions(60, "z")}, "test")
    splits = split_exam(exam, RATIO, "fit", seed=3)
    assert [len(splits.fit), len(splits.validation), len(splits.held_out)] == [140, 50, 10]
    for subject, count in (("x", 100), ("y", 40), ("z", 60)):
        assert abs(sum(q.subject == subject for q in splits.fit) - 0.7 * count) <= 2


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_rows():
    rows = questions(60)
    ids = [
        [q.id for q in split_exam(Exam({"train": r}, ""), RATIO, "fit", s).fit]
        for r, s in ((rows, 1), (rows[::-1], 1), (rows, 2))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_official_test_rows_are_never_fitted_on_unless_the_pool_is_all(exam_dir):
    exam = read_exam(str(exam_dir))
    test = {q.id for q in exam.questions["test"]}
    honest, mixed = (split_exam(exam, RATIO, pool, 0) for pool in ("fit", "all"))
    assert not test & {q.id for q in [*honest.fit, *honest.validation, *honest.held_out]}
    assert {q.id for q in honest.test} == test
    assert test & {q.id for q in mixed.fit} and not mixed.test


def test_the_same_question_never_stands_on_both_sides_of_a_split():
    again = Question("S 1 ！", ("b", "ａ"), 1, "s", "again")  # other width, case, punctuation and order
    rows = questions(20)
    splits = split_exam(Exam({"train": rows, "test": [again]}, ""), RATIO, "fit", 0)
    assert again.fingerprint == rows[1].fingerprint
    assert splits.duplicates == 1
    assert again.fingerprint not in {
        q.fingerprint for q in [*splits.fit, *splits.validation, *splits.held_out]
    }


def test_a_file_without_test_rows_is_all_pool(tmp_path):
    splits = split_exam(Exam({"": questions(20)}, ""), RATIO, "fit", 0)
    assert len(splits.fit) == 14 and not splits.test
