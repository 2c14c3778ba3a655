"""Files as people have them: each kind is read as it is meant, or refused with the way out."""

from __future__ import annotations

import gzip
import json
import random

import openpyxl
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

import inference
from finetune.data.cleaning import Cleaning
from finetune.data.corpus import read_corpus
from finetune.data.encodings import choose_encoding
from finetune.data.exam import read_exam
from finetune.data.instructions import read_instructions
from finetune.data.labelled import read_labelled
from finetune.data.tables import read_table
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import SUFFIXES

COLUMNS = ("question", "A", "B", "C", "D", "answer")
EXAM = [
    {
        "question": f"下列第{n}項何者正確？",
        **dict(zip("ABCD", f"甲乙丙{n}", strict=True)),
        "answer": "ABCD"[n % 4],
    }
    for n in range(8)
]
LABELS = [{"text": f"這家店的菜第{n}次很好吃", "label": "01"[n % 2]} for n in range(8)]
TRADITIONAL = "臺灣的學生參加考試以前應該先讀完這一本書再回答問題"
SIMPLIFIED = "台湾的学生参加考试以前应该先读完这一本书再回答问题"


def lines_of(rows: list[dict], mark=",", header=True, end="\n") -> str:
    lines = [mark.join(rows[0])] if header else []
    return end.join([*lines, *(mark.join(row.values()) for row in rows)]) + end


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    yield write
    choose_encoding(None)


def rows(path) -> list:
    return [row for _, row in read_table(path)]


def refused(call, *arguments, **more) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **more)
    return "\n".join(caught.value.problems)


# ---- encodings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp950", "gb18030"]
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_text_of_enough_characters_is_read_in_the_encoding_that_it_has(put, capsys, encoding, suffix):
    simplified = encoding == "gb18030"
    made = [{"text": (SIMPLIFIED if simplified else TRADITIONAL) + str(n), "label": str(n)} for n in range(3)]
    text = {
        ".csv": lines_of(made), ".jsonl": "\n".join(map(dumped, made)) + "\n", ".json": dumped(made),
    }[suffix]  # fmt: skip
    raw = text.encode(encoding)
    assert rows(put(f"a{suffix}", raw)) == made
    said = capsys.readouterr().err
    assert ("不是 UTF-8，照" in said) == (encoding in ("cp950", "gb18030")) and "iconv" not in said


def test_no_text_that_common_words_make_is_read_in_a_wrong_encoding(put):
    rng = random.Random(1)
    for n in range(60):
        for text, encoding in ((TRADITIONAL, "cp950"), (SIMPLIFIED, "gbk"), (TRADITIONAL, "gbk")):
            piece = "".join(rng.sample(text, rng.randint(2, 20)))
            file = put(f"{n}{encoding}{len(piece)}.csv", f"text\n{piece}\n".encode(encoding))
            (found,) = rows(file)
            assert found == {"text": piece} or "--encoding" in found, (encoding, piece, found)


def test_a_text_that_may_be_of_two_encodings_is_shown_in_both_and_read_in_the_one_chosen(put):
    file = put("a.csv", "label,review\n1,很好，好吃\n0,难吃\n".encode("gbk"))
    problem = refused(read_labelled, str(file))
    assert "GB18030（GBK） 讀成「1,很好，好吃」" in problem and "Big5 讀成「" in problem
    assert "--encoding gb18030" in problem and "--encoding cp950" in problem and "iconv" not in problem
    choose_encoding("gb18030")
    assert [row.text for row in read_labelled(str(file)).rows[""]] == ["很好，好吃", "难吃"]
    assert rows(put("b.csv", lines_of(LABELS))) == LABELS  # what is UTF-8 stays so
    assert "沒有這種編碼" in refused(choose_encoding, "base64")


def test_the_flag_of_the_encoding_reaches_every_door(put, train, capsys):
    file = put("a.csv", "question,A,B,answer\n很好,好吃,难吃,A\n".encode("gbk"))
    for argv in (
        ["--exam", file],
        ["--inspect", file],
        ["--input", file, "--output", file.with_name("o.csv")],
    ):
        words = ["--model_path", "./none", *map(str, argv)]
        assert inference.main([*words, "--encoding", "nonsense"]) == 2
        assert "--encoding nonsense：沒有這種編碼" in capsys.readouterr().err
    assert inference.main(["--inspect", str(file)]) == 2 and "「很好" in capsys.readouterr().err
    assert inference.main(["--inspect", str(file), "--encoding", "gbk"]) == 0


def test_bytes_that_are_no_text_are_refused_in_their_row(put):
    mixed = lines_of(EXAM).encode() + lines_of(EXAM, header=False).encode("cp950")
    found = rows(put("a.csv", mixed))
    assert found[:8] == EXAM and all("不是 UTF-8" in row and "Big5 讀成「下列" in row for row in found[8:])
    found = rows(put("b.csv", lines_of(EXAM).replace("第3項", "第3\0項")))
    assert [row for row in found if isinstance(row, dict)] == EXAM[:3] + EXAM[4:] and "NUL" in found[3]
    assert "--encoding latin-1" in rows(put("c.csv", "text\ncafé it’s\n".encode("cp1252")))[0]


# ---- separators and quotes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.csv.gz", "a.tsv.bz2", "a.txt.xz"])
@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_separator_is_the_one_that_finds_the_columns_whatever_the_name(put, name, mark, end):
    import bz2
    import lzma

    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(name.split(".")[-1], bytes)
    assert rows(put(name, pack(lines_of(EXAM, mark, end=end).encode()))) == EXAM


def test_a_first_line_that_only_names_the_separator_is_no_header(put):
    for mark in ",;|^":
        found = list(read_table(put("a.csv", f"sep={mark}\r\n{lines_of(EXAM, mark)}")))
        assert [row for _, row in found] == EXAM and found[0][0] == 3


def test_one_column_of_texts_with_other_signs_in_them_stays_one(put):
    texts = ["好;壞", "好\t壞;中", "甲|乙", "丙"]
    assert rows(put("a.csv", "text\n" + "\n".join(texts))) == [{"text": text} for text in texts]


STRAY = 'text\tlabel\n很好吃\t1\n"難吃\t0\n還可以\t1\n普通"\t0\n不錯\t1\n太差了\t0\n'


def test_a_quote_in_a_tsv_is_text_and_in_a_csv_an_error_that_names_the_lines_it_swallowed(put):
    found = rows(put("a.tsv", STRAY))
    assert [tuple(row.values()) for row in found] == [
        tuple(line.split("\t")) for line in STRAY.splitlines()[1:]
    ]
    problem = refused(read_labelled, str(put("a.csv", STRAY.replace("\t", ","))))
    assert "a.csv:3：" in problem and "第 3 到 5 行讀成了一列" in problem


def test_a_quote_that_is_never_closed_takes_no_line_of_a_tsv_along(put):
    lines = ['"' * (n % 3 == 1) + f"好吃{n}\t{n % 2}" for n in range(9)]
    found = rows(put("a.tsv", "text\tlabel\n" + "\n".join(lines)))
    assert [tuple(row.values()) for row in found] == [tuple(line.split("\t")) for line in lines]


def test_what_really_quotes_in_a_tsv_is_taken_off(put):
    text = 'text\tlabel\n"他說""好""\t啊\n走"\t1\n"好吃"\t0\n"a\tb"\t1\n'
    texts = ['他說"好"\t啊\n走', '"好吃"', "a\tb"]
    assert [row["text"] for row in rows(put("a.tsv", text))] == texts
    quoted = '"text"\t"label"\n"好吃"\t1\n"難""吃"\t0\n'  # whoever quotes names quotes texts too
    assert [row["text"] for row in rows(put("b.tsv", quoted))] == ["好吃", '難"吃']


def test_texts_of_several_lines_in_a_csv_are_no_swallowed_rows(put):
    made = "".join(f'"Good food, fine {n}\nbut dear, far\nso no",{n % 2}\n' for n in range(6))
    found = rows(put("a.csv", "text,label\n" + made))
    assert len(found) == 6 and all(isinstance(row, dict) and row["text"].count("\n") == 2 for row in found)


# ---- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        lines_of(EXAM).replace("\n", ",,\n"),  # columns without a name or a value
        lines_of(EXAM).replace("answer\n", "answer,,\n"),
        lines_of(EXAM) + ",,,,,\n , ,,,,\n\n",  # rows without a value
        "一一三學年度考題,,,,,\n" + lines_of(EXAM),
        "一一三學年度考題\n\n" + lines_of(EXAM),
        lines_of(EXAM, header=False),
        "\ufeff" + lines_of(EXAM),
        " \u200bquestion ,“A”, Ｂ ,'C',D\u00ad,ａnswer\n" + lines_of(EXAM, header=False),
        lines_of([{"": str(n), **row} for n, row in enumerate(EXAM)]),  # an index without a name
    ],
)
def test_the_header_is_found_where_it_stands_and_names_what_it_names(put, text):
    assert rows(put("a.csv", text)) == EXAM
    assert rows(put("a.tsv", text.replace(",", "\t"))) == EXAM


def test_rows_without_a_header_have_the_names_that_their_values_tell(put, capsys):
    assert rows(put("a.tsv", lines_of(LABELS, "\t", header=False))) == LABELS
    assert "沒有標題列，當作 text,label" in capsys.readouterr().err
    pairs = [{"sentence1": f"天{n}", "sentence2": f"地{n}", "label": str(n % 2)} for n in range(6)]
    assert rows(put("b.txt", lines_of(pairs, "\t", header=False))) == pairs
    numbered = [{"id": str(n), **row} for n, row in enumerate(EXAM)]
    assert rows(put("c.csv", lines_of(numbered, header=False))) == numbered
    strange = "甲,乙\n丙,丁\n戊,己\n"
    assert rows(put("d.csv", strange)) == [{"甲": "丙", "乙": "丁"}, {"甲": "戊", "乙": "己"}]


def test_a_header_that_comes_again_is_a_bad_row_and_nothing_else(put):
    for again in ("", "\ufeff"):
        file = put("a.csv", lines_of(EXAM) + again + lines_of(EXAM))
        problem = refused(read_exam, str(file))
        assert "a.csv:10：標題列又出現一次" in problem and "讀到 16 題，共 1 列有問題" in problem
        assert len(read_exam(str(file), on_bad_rows="skip")) == 16


def test_a_value_under_no_name_is_reported_and_shifts_nothing(put):
    problem = refused(read_exam, str(put("a.csv", "question,A,B,answer,\n題,甲,乙,丙,A\n")))
    assert "第 5 欄沒有名稱，卻有內容 'A'" in problem


# ---- JSON --------------------------------------------------------------------------------------------------

SHAPES = {
    "records": EXAM,
    "columns": {name: {str(n): row[name] for n, row in enumerate(EXAM)} for name in COLUMNS},
    "index": {str(n): row for n, row in enumerate(EXAM)},
    "split": {"columns": COLUMNS, "index": list(range(8)), "data": [list(row.values()) for row in EXAM]},
    "values": [list(row.values()) for row in EXAM],
    "list": {name: [row[name] for row in EXAM] for name in COLUMNS},
    "data": {"version": "1", "about": {"a": [1]}, "data": EXAM},
    "one name": {"考題": EXAM},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("indent", [None, 1])
def test_json_of_every_shape_holds_the_same_rows(put, shape, indent):
    for suffix in (".json", ".jsonl"):
        text = json.dumps(SHAPES[shape], ensure_ascii=False, indent=indent)
        assert rows(put(f"a{suffix}", text)) == EXAM


@pytest.mark.parametrize("indent", [None, 1])
def test_objects_one_after_the_other_are_rows_in_a_json_too(put, indent):
    for count in (1, 2, 8):
        text = "\n".join(json.dumps(row, indent=indent) for row in EXAM[:count])
        assert rows(put("a.json", text)) == EXAM[:count] == rows(put("a.jsonl", text))


def test_no_number_is_null_and_only_outside_of_texts(put):
    text = '[{"a": NaN, "b": "x: NaN, -Infinity]"}, {"a": -Infinity, "b": Infinity}]'
    wanted = [{"a": None, "b": "x: NaN, -Infinity]"}, {"a": None, "b": None}]
    assert rows(put("a.json", text)) == wanted
    assert rows(put("a.jsonl", text[1:-1].replace("}, {", "}\n{"))) == wanted


def test_nested_questions_of_squad_are_named(put):
    nested = {"data": [{"title": "a", "paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}
    file = str(put("a.json", dumped(nested)))
    assert "SQuAD" in refused(read_exam, file) and "SQuAD" in refused(read_corpus, file, Cleaning())


def test_json_in_blocks_of_any_size_is_the_same(put, monkeypatch):
    from finetune.runtime import strict_json

    made = [{"a": '甲\\"\n乙' * n, "b": [n, 10**n, {"c": None}], "d": -1.5e3, "e": True} for n in range(20)]
    files = [put("a.json", json.dumps(made)), put("b.json", json.dumps({"x": 1234, "data": made}, indent=2))]
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(strict_json, "BLOCK", size)
        for file in files:
            assert rows(file) == made


# ---- files that break off ----------------------------------------------------------------------------------


def broken(name: str, put):
    noise = random.Random(0)
    many = [{**EXAM[0], "D": f"{noise.random()}"} for _ in range(4000)]
    text = {"jsonl": "\n".join(map(dumped, EXAM)), "json": dumped(EXAM), "wrapped": dumped({"data": EXAM})}
    if name == "gz":
        return put("a.csv.gz", gzip.compress(lines_of(many).encode())[:-3000])
    return put(f"a.{'json' if name == 'wrapped' else name}", text[name][: -30 if name == "jsonl" else -60])


@pytest.mark.parametrize("name", ["jsonl", "json", "wrapped", "gz"])
def test_a_file_that_breaks_off_ends_with_2_everywhere_and_says_how_much_was_read(put, capsys, name):
    file = broken(name, put)
    for how in ("fail", "skip"):
        problem = refused(read_exam, str(file), on_bad_rows=how)
        assert str(file) in problem and "中斷，不完整；前面讀到" in problem
        assert name == "gz" or "前面讀到 7" in problem
    assert inference.main(["--inspect", str(file)]) == 2 and "前面讀到" in capsys.readouterr().err


def test_a_file_that_breaks_off_within_a_character_is_no_other_encoding(tmp_path, capsys):
    whole = json.dumps([{"text": "天地玄黃"}, {"text": "宇宙洪荒"}], ensure_ascii=False).encode()
    for lost in (4, 5):  # in the last of them, which are three bytes each
        (tmp_path / "a.json").write_bytes(whole[:-lost])
        problem = refused(read_corpus, str(tmp_path / "a.json"), Cleaning(min_chars=1))
        assert "檔案在第 2 筆中斷，不完整；前面讀到 1 筆" in problem
    assert "GB18030" not in capsys.readouterr().err


def test_a_file_to_be_answered_that_breaks_off_is_refused_before_anything_is_written(put, model_dir, capsys):
    file = broken("json", put)
    words = ["--model_path", model_dir, "--cpu", "--input", file, "--output", file.with_name("o.jsonl")]
    assert inference.main(list(map(str, words))) == 2 and "前面讀到 7 筆" in capsys.readouterr().err
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.json"]


def test_a_csv_that_breaks_off_says_so_in_its_last_row(put):
    problem = refused(read_exam, str(put("a.csv", lines_of(EXAM)[:-8])))
    assert "a.csv:9：" in problem and "就斷了，可能不完整" in problem and "讀到 7 題" in problem


# ---- Excel, Arrow, and kinds that are not read -------------------------------------------------------------


def workbook(path, sheets: dict[str, list[list]]):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, cells in sheets.items():
        sheet = book.create_sheet(name)
        for row in cells:
            sheet.append(row)
    book.save(path)
    return path


def test_the_sheet_that_fits_is_read_as_excel_shows_it(tmp_path):
    cells = [
        ["考題"],
        [*COLUMNS, None],
        [],
        ["題", 1, 2.0, 2.5, True, "A"],
        [None] * 6,
        ["問", "NA", "無", 0, "x", "B"],
    ]
    file = workbook(tmp_path / "a.xlsx", {"說明": [["先讀我"]], "題目": cells})
    assert rows(file) == [
        dict(zip(COLUMNS, ("題", "1", "2", "2.5", "TRUE", "A"), strict=True)),
        dict(zip(COLUMNS, ("問", "NA", "無", "0", "x", "B"), strict=True)),
    ]
    file = workbook(tmp_path / "b.xlsx", {"甲": [COLUMNS, ["題"] * 6], "乙": [COLUMNS, ["題"] * 6]})
    assert "有幾張工作表：甲、乙" in rows(file)[0] and "CSV UTF-8" in rows(file)[0]


def test_a_workbook_is_as_large_as_its_cells_whatever_it_says_and_leaves_empty_ones_out(tmp_path):
    import zipfile

    columns = ("text", "label", "note")
    file = workbook(tmp_path / "a.xlsx", {"a": [columns, ["天", 1], ["地", 0, "x"], ["玄", 1]]})
    with zipfile.ZipFile(file) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert b'ref="A1:C4"' in members[name]
    members[name] = members[name].replace(b'ref="A1:C4"', b'ref="A1:XFD1048576"')
    assert b"<v>1</v>" in members[name]
    members[name] = members[name].replace(b"<v>1</v>", b"<v>1.0</v>")  # as some programs write it
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    cells = [("天", "1", ""), ("地", "0", "x"), ("玄", "1", "")]
    assert rows(file) == [dict(zip(columns, row, strict=True)) for row in cells]


@pytest.mark.parametrize("kind", ["xlsx", "json"])
def test_a_file_that_holds_splits_is_read_split_by_split(tmp_path, put, kind):
    if kind == "xlsx":
        tables = {"train": EXAM[:5], "test": EXAM[5:]}
        cells = {name: [COLUMNS, *(list(row.values()) for row in some)] for name, some in tables.items()}
        file = workbook(tmp_path / "a.xlsx", cells)
    else:
        file = put("a.json", dumped({"about": "x", "train": EXAM[:5], "test": EXAM[5:]}))
    assert {split: len(some) for split, some in read_exam(str(file)).questions.items()} == {
        "train": 5,
        "test": 3,
    }


def test_arrow_files_are_read_with_the_names_of_their_classes(tmp_path):
    feature = {"names": ["負", "正"], "_type": "ClassLabel"}
    noted = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    made = [{"text": row["text"], "label": n % 2} for n, row in enumerate(LABELS)]
    table = pyarrow.Table.from_pylist(made).replace_schema_metadata(noted)
    for split, kind in (("train", pyarrow.ipc.new_stream), ("test", pyarrow.ipc.new_file)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        for name in ("dataset_info.json", "state.json"):
            (folder / name).write_text("{}")
        with kind(folder / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = read_labelled(str(tmp_path / "saved"))
    assert {split: len(some) for split, some in found.rows.items()} == {"train": 8, "test": 8}
    assert found.names == ["負", "正"] and rows(folder / "data-00000-of-00001.arrow") == made


def test_text_that_was_saved_as_bytes_is_text(tmp_path):
    table = pyarrow.table({name: [row[name].encode() for row in EXAM] for name in COLUMNS})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == EXAM


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.xls", b"x", "CSV UTF-8"), ("a.ods", b"x", "UTF-8"), ("a.docx", b"x", "CSV UTF-8"),
        ("a.zip", b"PK", "解壓縮"), ("a.pkl", b"x", "to_json"), ("a.xlsx", b"x", "不是 Excel"),
        ("a.csv", b"\xd0\xcf\x11\xe0", "其實是舊的 Excel"), ("b.csv", b"<!DOCTYPE html><p>", "其實是網頁"),
        ("c.jsonl", b"version https://git-lfs.github.com/spec", "git lfs pull"),
        ("d.csv", b"PK\x03\x04rest", "壓縮檔"), ("a.csv.gz", b"x", "檔案不完整"),
        ("a.txt", "只是文字".encode(), "看不出欄位"), ("a.arrow", b"x" * 20, "不是 Arrow"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_the_way_out(put, name, content, says):
    file = put(name, content)
    for read in (read_exam, read_labelled, read_instructions):
        problem = refused(read, str(file))
        assert says in problem and str(file) in problem and "b'" not in problem


def test_labels_before_each_text_are_those_of_fasttext(put):
    lines = [f"__label__{row['label']} {row['text']}" for row in LABELS]
    assert rows(put("a.txt", "\n".join(lines))) == LABELS
    several = read_labelled(str(put("b.txt", "\n".join(f"__label__x {line}" for line in lines))))
    assert several.multi and several.names == ["0", "1", "x"]


# ---- folders -----------------------------------------------------------------------------------------------

BOTH = {"physics", "history"}
LAYOUTS = {
    "flat": ("{subject}_dev.csv", "{subject}_val.csv", "{subject}_test.csv"),
    "C-Eval": ("dev/{subject}_dev.csv", "val/{subject}_val.csv", "test/{subject}_test.csv"),
    "MMLU": ("data/dev/{subject}_dev.csv", "data/val/{subject}_val.csv", "data/test/{subject}_test.csv"),
    "CMMLU": ("dev/{subject}.csv", "val/{subject}.csv", "test/{subject}.csv"),
    "hub": tuple("{subject}/" + f"{split}-00000-of-00001.jsonl" for split in ("dev", "validation", "test")),
    "folders": ("{subject}/train.csv.gz", "{subject}/valid.json", "{subject}/test.tsv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_splits_and_subjects_of_an_exam_are_found_in_every_layout(put, tmp_path, layout):
    for subject in BOTH:
        for split, name in enumerate(LAYOUTS[layout]):
            some = [{**row, "question": f"{subject}{split}{row['question']}"} for row in EXAM[: split + 2]]
            text = {
                "jsonl": "\n".join(map(dumped, some)), "json": dumped(some), "tsv": lines_of(some, "\t"),
            }.get(name.split(".")[-1], lines_of(some, header=layout != "MMLU"))  # fmt: skip
            path = "exam/" + name.format(subject=subject)
            put(path, gzip.compress(text.encode()) if name.endswith("gz") else text)
    exam = read_exam(str(tmp_path / "exam"))
    assert {split: len(some) for split, some in exam.questions.items()} == {
        "train": 4,
        "validation": 6,
        "test": 8,
    }
    for some in exam.questions.values():
        assert some.subjects == BOTH and all(question.stem.startswith(question.subject) for question in some)


def test_dev_is_to_choose_by_where_there_is_a_part_to_train_on_and_no_other(put, tmp_path):
    for number, split in enumerate(("train", "dev", "test"), 1):
        put(f"e/{split}.csv", lines_of(EXAM[:number]))
    exam = read_exam(str(tmp_path / "e"))
    assert {split: len(some) for split, some in exam.questions.items()} == {
        "train": 1,
        "validation": 2,
        "test": 3,
    }
    assert exam.split("dev") == "validation" == exam.split("val")


CARD = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': 負, '1': 正}}}
---
"""
INFOS = {"default": {"features": {"label": {"names": ["負", "正"], "_type": "ClassLabel"}}}}


@pytest.mark.parametrize("note", ["README.md", "dataset_infos.json"])
def test_the_card_of_a_data_set_names_its_classes(put, tmp_path, note):
    put("d/train.csv", lines_of(LABELS))
    put("d/test.jsonl", "\n".join(dumped({"text": f"天{n}", "label": n % 2}) for n in range(4)))
    put(f"d/{note}", CARD if note == "README.md" else json.dumps(INFOS))
    found = read_labelled(str(tmp_path / "d"))
    assert found.names == ["負", "正"] and [row.labels for row in found.rows["test"]] == [
        (0,),
        (1,),
        (0,),
        (1,),
    ]


def test_what_is_named_test_is_not_trained_on_where_there_is_a_train(put, tmp_path, capsys):
    for name, count in (("train", 3), ("test", 2)):
        put(
            f"s/{name}.jsonl",
            "\n".join(dumped({"instruction": f"{name}{n}", "output": "好"}) for n in range(count)),
        )
        put(f"t/{name}.txt", f"{name}的文章\n")
    assert len(read_instructions(str(tmp_path / "s")).rows) == 3
    assert len(read_corpus(str(tmp_path / "t"), Cleaning(min_chars=1))) == 1
    assert capsys.readouterr().err.count("不拿來訓練") == 2


def test_the_same_rows_in_two_formats_are_read_once(put, tmp_path, capsys):
    put("d/a.csv", lines_of(EXAM))
    put("d/a.jsonl", "\n".join(map(dumped, EXAM)))
    assert len(read_exam(str(tmp_path / "d"))) == 8 and "a.jsonl：a.csv 是同名" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "x.xlsx",
        "./data/my.csv",
        "my_exam.csv",
        "a.xls",
        "a.docx",
        "q.csv.gz",
        "data/",
        "考題",
        "my exam",
        "a\\b",
    ],
)
def test_a_path_that_is_not_there_is_never_a_name_on_the_hub(name, monkeypatch, tmp_path):
    from finetune.data import hub_dataset
    from finetune.runtime import hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_dataset, "fetch_dataset", lambda *words: pytest.fail("the hub was asked"))
    for read in (read_exam, read_labelled, read_instructions):
        assert f"--dataset {name}：沒有這個檔案或資料夾" in refused(read, name)
    assert not hub.looks_local("ikala/tmmluplus") and not hub.looks_local("Qwen/Qwen2.5-0.5B")


def test_a_flood_of_bad_rows_is_ten_lines_and_a_count_in_every_task(put):
    exam = "question,A,B,answer\n" + "".join(f"題{n},甲,乙,Z{n}\n" for n in range(300))
    course = "\n".join(dumped({"instruction": "", "output": f"{n}"}) for n in range(300))
    texts = "\n".join(dumped({"text": n}) for n in range(300))
    for read, name, content in (
        (read_exam, "a.csv", exam), (read_instructions, "a.jsonl", course),
        (lambda path: read_corpus(path, Cleaning()), "b.jsonl", texts),
    ):  # fmt: skip
        problem = refused(read, str(put(name, content))).splitlines()
        assert len(problem) == 12 and "另有 290 列" in problem[10] and "共 300 列有問題" in problem[11]


def test_rows_are_numbered_alike_at_every_reading(put):
    text = "標題\n\n" + lines_of(EXAM) + ",,,,,\n" + lines_of(EXAM)
    for name, content in (
        ("a.csv", text),
        ("a.json", dumped({"data": EXAM})),
        ("a.tsv", text.replace(",", "\t")),
    ):
        file = put(name, content)
        assert list(read_table(file)) == list(read_table(file)) != []


def test_every_format_that_is_written_is_still_read(tmp_path):
    from finetune.data.tables import write_table

    made = [{"text": 'a"b\tc\n,d;|', "label": "x"}, {"text": "'", "label": '"'}, {"text": '"', "label": "NA"}]
    for suffix in SUFFIXES:
        write_table(tmp_path / f"a{suffix}", made, {"text": "text", "label": "text"}, suffix)
        assert rows(tmp_path / f"a{suffix}") == made
