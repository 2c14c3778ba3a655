"""Passages and questions: every layout gives the same rows, and an answer stands where its text does."""

from __future__ import annotations

import json
import random

import pytest
from conftest import write_csv, write_rows
from span_rows import make_spans, nested, write_json

from finetune.data.answer_spans import SpanOptions, read_spans
from finetune.data.span_offsets import place_answer
from finetune.data.splits import split_rows
from finetune.runtime.errors import UserError

ROWS = make_spans(12, unanswerable=4)


def read(path, **options) -> list[tuple]:
    """(question, context, answers) of each row."""
    dataset = read_spans(str(path), options=SpanOptions(**options))
    return [(row.question, row.context, row.answers) for part in dataset.rows.values() for row in part]


def wanted(rows=None) -> list[tuple]:
    return [
        (row["question"], row["context"], ((row["answer"], row["answer_start"]),) if row["answer"] else ())
        for row in rows or ROWS
    ]


def hub_rows(rows):
    """The rows as the hub has SQuAD."""
    return [
        {
            "id": row["id"], "title": row["title"], "context": row["context"], "question": row["question"],
            "answers": {
                "text": [row["answer"]] if row["answer"] else [],
                "answer_start": [row["answer_start"]] if row["answer"] else [],
            },
        }
        for row in rows
    ]  # fmt: skip


def cmrc(rows):
    """The rows as CMRC 2018 first came: texts without places."""
    return [
        {
            "context_id": row["title"] + row["id"], "context_text": row["context"], "title": row["title"],
            "qas": [{"query_id": row["id"], "query_text": row["question"], "answers": [row["answer"]]}],
        }
        for row in rows
    ]  # fmt: skip


def pandas_cell(answers) -> str:
    """How pandas writes the dict of a parquet row into a csv."""
    texts = ", ".join(map(repr, answers["text"]))
    starts = ", ".join(map(str, answers["answer_start"]))
    return f"{{'text': array([{texts}], dtype=object), 'answer_start': array([{starts}], dtype=int32)}}"


@pytest.mark.parametrize("layout", [
    "squad", "squad2", "articles", "one article", "mrqa", "cmrc", "hub.json", "hub.jsonl", "hub.parquet",
    "hub.csv", "pandas.csv", "flat.csv", "flat.tsv", "flat.jsonl", "flat.parquet", "chinese.csv",
    "no start.csv", "list.jsonl",
])  # fmt: skip
def test_every_layout_gives_the_same_rows(layout, tmp_path):
    rows = [row for row in ROWS if row["answer"]] if layout in ("squad", "cmrc") else ROWS
    path = tmp_path / (layout if "." in layout else "x.json")
    flat = [{**row, "answer_start": "" if row["answer"] == "" else row["answer_start"]} for row in rows]
    if layout in ("squad", "squad2"):
        write_json(path, nested(rows, "1.1" if layout == "squad" else "v2.0"))
    elif layout == "articles":
        write_json(path, nested(rows)["data"])
    elif layout == "one article":
        rows = rows[:3]
        write_json(path, nested(rows)["data"][0])
    elif layout == "mrqa":
        path = tmp_path / "x.jsonl"
        passages = [{"title": a["title"], **p} for a in nested(rows)["data"] for p in a["paragraphs"]]
        path.write_text("\n".join(map(json.dumps, [{"header": {"dataset": "x"}}, *passages])))
    elif layout == "cmrc":
        write_json(path, cmrc(rows))
    elif layout.startswith("hub"):
        made = hub_rows(rows)
        if layout == "hub.csv":
            made = [{**row, "answers": str(row["answers"])} for row in made]
        write_rows(path, made)
    elif layout == "pandas.csv":
        write_rows(path, [{**row, "answers": pandas_cell(row["answers"])} for row in hub_rows(rows)])
    elif layout == "chinese.csv":
        cells = [[row["context"], row["question"], row["answer"]] for row in rows]
        write_csv(path, cells, ("文章", "問題", "答案"))
    elif layout == "no start.csv":
        cells = [[row["context"], row["question"], row["answer"]] for row in rows]
        write_csv(path, cells, ("passage", "Question", "Answer Text"))
    elif layout == "list.jsonl":
        made = [{**row, "answer": [row["answer"]] if row["answer"] else []} for row in rows]
        write_rows(path, [{k: v for k, v in row.items() if k != "answer_start"} for row in made])
    else:
        write_rows(path, rows if layout == "flat.parquet" else flat)
    assert read(path) == wanted(rows)


def test_several_gold_answers_are_a_list_or_separated(tmp_path):
    context = "梵語又稱梵文，古印度的語言；也叫雅語。"
    path = write_csv(tmp_path / "x.csv", [
        [context, "甲？", "梵語|梵文", ""], [context, "乙？", "['雅語', '梵語']", "[16, 0]"],
        [context, "丙？", "古印度的語言；也叫雅語", ""], [context, "丁？", "梵語；雅語", "0;16"],
    ], ("context", "question", "answers", "answer_start"))  # fmt: skip
    assert [[answer.text for answer in answers] for _, _, answers in read(path)] == [
        ["梵語", "梵文"], ["雅語", "梵語"], ["古印度的語言；也叫雅語"], ["梵語", "雅語"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("context", "text", "start", "place", "remark"),
    [
        ("👨‍👩‍👧住在台北市", "台北", 7, 7, ""),
        ("👨‍👩‍👧住在台北市", "台北", 10, 7, "UTF-16"),
        ("梵語在台北", "台北", 9, 3, "UTF-8"),
        ("台北和台北", "台北", None, 0, "好幾次"),
        ("在台北", "台北", None, 1, "第一次出現"),
        ("  在台北和台北", "台北", 4, 3, "最近"),
        ("甲台北乙丙丁台北", "台北", 7, 6, "最近"),
        ("甲台北", "台北", 900, 1, "最近"),
        ("甲 台北 乙", " 台北 ", 1, 2, "空白"),
        ("台北 台北", "台北 ", 1, 0, "最近"),
    ],
)
def test_an_answer_stands_where_its_text_does(context, text, start, place, remark):
    answer, said = place_answer(context, text, start)
    assert (answer.start, answer.text) == (place, text.strip())
    assert context[answer.start : answer.end] == answer.text
    assert remark in said if remark else not said


def test_every_unit_of_offsets_is_understood_for_random_texts():
    rng, alphabet = random.Random(5), "台北梵語a é😀👩‍𠮷Ａ。"
    for _ in range(400):
        context = "".join(rng.choice(alphabet) for _ in range(rng.randint(5, 40)))
        start = rng.randrange(len(context))
        text = context[start : start + rng.randint(1, 6)]
        if not text.strip() or context.count(text) > 1:
            continue
        for units in (start, len(context[:start].encode("utf-16-le")) // 2, len(context[:start].encode())):
            answer, _ = place_answer(context, text, units)
            assert context[answer.start : answer.end] == answer.text == text.strip()


def test_all_bad_rows_are_reported_together_and_skipped_on_demand(tmp_path):
    data = nested(ROWS[1:4])
    first = data["data"][0]["paragraphs"][0]
    opening = first["context"][:2]
    first["qas"] += [
        {"id": "absent", "question": "問？", "answers": [{"text": "沒這字", "answer_start": 0}]},
        {"id": "width", "question": "問？", "answers": [{"text": opening, "answer_start": "x"}]},
        {"id": "empty", "question": " ", "answers": []},
        {"id": "unsaid", "question": "問？"},
        {"id": "both", "question": "問？", "is_impossible": True, "answers": [{"text": opening}]},
        7,
    ]  # fmt: skip
    path = write_json(tmp_path / "x.json", data)
    with pytest.raises(UserError) as caught:
        read_spans(str(path))
    text = "\n".join(caught.value.problems)
    for name in ("absent", "width", "empty", "unsaid", "both"):
        assert f"（{name}）" in text
    assert "不在文章裡" in text and "整數" in text and "共 6 列" in text and f"{path}:1：" in text
    kept = read_spans(str(path), on_bad_rows="skip")
    assert len(kept) == 3 and len(kept.skipped) == 6


def test_an_article_is_never_divided_nor_a_passage_without_a_title(tmp_path):
    rows = make_spans(90)
    for drop in ((), ("title",)):
        made = [{k: v for k, v in row.items() if k not in drop} for row in rows]
        if drop:  # three questions about each passage
            made = [
                {**row, "context": made[at - at % 3]["context"], "answer": ""} for at, row in enumerate(made)
            ]
        path = write_rows(tmp_path / f"{len(drop)}.jsonl", made)
        splits = split_rows(read_spans(str(path)), (0.6, 0.2, 0.2), 1)
        groups = [{row.group for row in part} for part in (splits.fit, splits.validation, splits.held_out)]
        assert all(groups) and sum(map(len, groups)) == len(set.union(*groups)) == 30
        assert sum(map(len, (splits.fit, splits.validation, splits.held_out))) == 90


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("context", "question", "A", "B", "answer"), "選擇題"),
        (("context", "foo", "bar", "baz", "answer"), "問題"),
        (("x", "question", "y", "z", "answer"), "--text_column"),
        (("context", "question", "y", "z", "w"), "--label_column"),
    ],
)
def test_missing_columns_are_named_with_the_way_out(header, message, tmp_path):
    path = write_csv(tmp_path / "x.csv", [["天地玄黃", "何？", "甲", "乙", "天地"]], header)
    with pytest.raises(UserError, match=message):
        read_spans(str(path))


def test_columns_may_be_named(tmp_path):
    path = write_csv(tmp_path / "x.csv", [["天地玄黃", "何？", "天地"]], ("x", "問題", "y"))
    assert read(path, text_column="x", label_column="y") == [("何？", "天地玄黃", (("天地", 0),))]
    with pytest.raises(UserError, match="--text_column z"):
        read(path, text_column="z", label_column="y")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_one_question_alone_is_a_row_and_its_list_of_answers_is_none(tmp_path, suffix):
    context = "天地玄黃宇宙"
    answer = {"text": "玄黃", "answer_start": 2}
    for number, answers in enumerate(([answer], [answer, {"text": "宇宙", "answer_start": 4}])):
        row = {"context": context, "question": "何色？", "answers": answers}
        for name, value in (("flat", row), ("passage", {"context": context, "qas": [row]})):
            file = tmp_path / f"{name}{number}{suffix}"
            file.write_text(json.dumps(value), encoding="utf-8")
            (found,) = read_spans(str(file)).rows[""]
            assert found.context == context and len(found.answers) == len(answers)


def test_columns_named_for_nested_questions_are_said_to_have_no_effect(tmp_path, capsys):
    qa = {"question": "何色？", "answers": [{"text": "玄黃", "answer_start": 2}]}
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "天地玄黃", "qas": [qa]}]}]}))
    assert len(read_spans(str(file), options=SpanOptions(label_column="答案"))) == 1
    assert "--label_column 答案 沒有作用" in capsys.readouterr().err
