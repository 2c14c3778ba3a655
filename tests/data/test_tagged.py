"""Tagged texts: every layout read alike, and all that is wrong told together."""

from __future__ import annotations

import json

import pytest
from conftest import write_rows

from finetune.data.splits import split_rows
from finetune.data.tagged import TaggedDataset, TaggedOptions, read_tagged
from finetune.runtime.errors import UserError

TEXT = "王小明住台北"
FOUND = [(TEXT, [("王小明", "PER"), ("台北", "LOC")])]
SPANS = {
    "objects": {
        "text": TEXT,
        "entities": [{"start": 0, "end": 3, "label": "PER"}, {"start": 4, "end": 6, "label": "LOC"}],
    },
    "doccano": {"id": 7, "text": TEXT, "label": [[0, 3, "PER"], [4, 6, "LOC"]]},
    "doccano relations": {
        "text": TEXT,
        "relations": [],
        "Comments": [],
        "entities": [
            {"id": 1, "label": "PER", "start_offset": 0, "end_offset": 3},
            {"id": 2, "label": "LOC", "start_offset": 4, "end_offset": 6},
        ],
    },
    "cluener": {"text": TEXT, "label": {"PER": {"王小明": [[0, 2]]}, "LOC": {"台北": [[4, 5]]}}},
    "spacy ents": {
        "text": TEXT,
        "ents": [{"start": 0, "end": 3, "label": "PER"}, {"start": 4, "end": 6, "label": "LOC"}],
        "tokens": [{"id": 0, "start": 0, "end": 3}],
    },
    "prodigy": {
        "text": TEXT,
        "spans": [
            {"start": 0, "end": 3, "label": "PER", "token_start": 0, "token_end": 0},
            {"start": 4, "end": 6, "label": "LOC"},
        ],
        "answer": "accept",
    },
    "pipeline": {
        "text": TEXT,
        "entities": [
            {"entity_group": "PER", "word": "王 小 明", "start": 0, "end": 3, "score": 0.9},
            {"entity_group": "LOC", "word": "台 北", "start": 4, "end": 6},
        ],
    },
    "label studio": {
        "data": {"text": TEXT},
        "annotations": [
            {
                "result": [
                    {"value": {"start": 0, "end": 3, "text": "王小明", "labels": ["PER"]}},
                    {"value": {"start": 4, "end": 6, "text": "台北", "labels": ["LOC"]}},
                ]
            }
        ],
    },
    "by label": {"text": TEXT, "entities": {"PER": [[0, 3]], "LOC": [[4, 6]]}},
    "inclusive": {
        "text": TEXT,
        "entities": [
            {"begin": 0, "end": 2, "type": "PER", "mention": "王小明"},
            {"begin": 4, "end": 5, "type": "LOC", "mention": "台北"},
        ],
    },
}
TOKENS = {
    "bio": {"tokens": list(TEXT), "ner_tags": ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC"]},
    "underscores": {"tokens": list(TEXT), "labels": ["B_PER", "I_PER", "I_PER", "O", "B_LOC", "I_LOC"]},
    "suffixes": {"tokens": list(TEXT), "tags": ["PER-B", "PER-I", "PER-I", "O", "LOC-B", "LOC-I"]},
    "bioes": {"words": list(TEXT), "labels": ["B-PER", "I-PER", "E-PER", "O", "B-LOC", "E-LOC"]},
    "bmes": {"tokens": list(TEXT), "labels": ["B-PER", "M-PER", "E-PER", "O", "B-LOC", "E-LOC"]},
    "iob1": {"tokens": list(TEXT), "tags": ["I-PER", "I-PER", "I-PER", "O", "I-LOC", "I-LOC"]},
    "words": {"tokens": ["王小明", "住", "台北"], "tags": ["B-PER", "O", "B-LOC"]},
    "characters of a text": {"text": TEXT, "labels": ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC"]},
    "written": {"tokens": str(list(TEXT)), "tags": "B-PER I-PER I-PER O B-LOC I-LOC"},
}


def found(dataset: TaggedDataset, split: str = "") -> list[tuple]:
    return [
        (row.text, [(row.text[span.start : span.end], span.label) for span in row.spans])
        for row in dataset.rows[split]
    ]


def problems(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_tagged(str(path), options=TaggedOptions(**options))
    return str(caught.value)


@pytest.mark.parametrize("layout", [*SPANS, *TOKENS])
def test_every_layout_is_read_alike_one_row_or_many(tmp_path, layout):
    row = {**SPANS, **TOKENS}[layout]
    for count in (1, 3):
        file = write_rows(tmp_path / f"{count}.jsonl", [row] * count)
        assert found(read_tagged(str(file))) == FOUND * count


def test_spacys_pairs_are_read(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([[TEXT, {"entities": [[0, 3, "PER"], [4, 6, "LOC"]]}]] * 2))
    assert found(read_tagged(str(tmp_path / "x.json"))) == FOUND * 2


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json"])
def test_lists_written_into_a_table_are_read(tmp_path, suffix):
    for name in ("objects", "bio"):
        row = {**SPANS, **TOKENS}[name]
        if suffix in (".csv", ".tsv"):
            row = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
        assert found(read_tagged(str(write_rows(tmp_path / f"{name}{suffix}", [row] * 2)))) == FOUND * 2


def test_columns_of_conll_2003_are_read_and_another_one_by_its_number(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text(
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\n. . O O\n\n"
        "# NN B-NP O\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n",
        encoding="utf-8",
    )
    wanted = [
        ("EU rejects German .", [("EU", "ORG"), ("German", "MISC")]),
        ("# Peter Blackburn", [("Peter Blackburn", "PER")]),
    ]
    dataset = read_tagged(str(file))
    assert found(dataset) == wanted and dataset.scheme == "BIO"
    assert [row.id for row in dataset.rows[""]] == ["x.txt:3", "x.txt:8"]
    words = read_tagged(str(file), options=TaggedOptions(label_column="2"))
    assert words.scheme == "plain" and found(words)[0][1][:2] == [("EU", "NNP"), ("rejects", "VBZ")]
    assert "沒有第 9 欄" in problems(file, label_column="9")
    assert "欄位請寫第幾欄" in problems(file, label_column="ner_tags")


@pytest.mark.parametrize("suffix", [".bio", ".conll", ".iob", ".txt", ".tsv"])
@pytest.mark.parametrize("mark", ["\t", " "])
def test_characters_in_columns_make_chinese_without_spaces(tmp_path, suffix, mark):
    tags = TOKENS["bio"]["ner_tags"]
    lines = [f"{token}{mark}{tag}" for token, tag in zip(TEXT, tags, strict=True)]
    (tmp_path / f"x{suffix}").write_text("\n".join([*lines, "", *lines, ""]), encoding="utf-8")
    assert found(read_tagged(str(tmp_path / f"x{suffix}"))) == FOUND * 2


def test_conll_u_has_words_in_its_second_column_and_parts_of_speech_in_its_fourth(tmp_path):
    lines = ["# sent_id = 1", "# text = I can't", "1\tI\tI\tPRON\t_\t_\t2\tnsubj\t_\t_"]
    lines += [
        "2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\t_",
        "2\tca\tcan\tAUX\t_\t_\t0\troot\t_\t_",
        "3\tn't\tnot\tPART\t_\t_\t2\tadvmod\t_\t_",
    ]
    (tmp_path / "x.conllu").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert found(read_tagged(str(tmp_path / "x.conllu"))) == [
        ("I ca n't", [("I", "PRON"), ("ca", "AUX"), ("n't", "PART")])
    ]


def test_a_line_without_a_tag_is_a_bad_sentence_with_its_line(tmp_path):
    (tmp_path / "x.conll").write_text("王 B-PER\n小 I-PER\n\n台 B-LOC\n北\n\n天 O\n", encoding="utf-8")
    message = problems(tmp_path / "x.conll")
    assert "x.conll:4：第 5 行 '北' 有 1 欄，應有 2 欄" in message


def test_numbers_become_the_names_that_datasets_or_a_card_gives_them(tmp_path):
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    row = {"id": "0", "tokens": list(TEXT), "pos_tags": [0] * 6, "ner_tags": [1, 2, 2, 0, 5, 6]}
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    file = write_rows(tmp_path / "a/train-00000-of-00001.parquet", [row] * 2, {"ner_tags": feature})
    dataset = read_tagged(str(file.parent))
    assert found(dataset, "train") == FOUND * 2
    assert dataset.names == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]  # in their own order
    card = "---\ndataset_info:\n  features:\n  - name: ner_tags\n    sequence:\n      class_label:\n"
    card += "        names:\n"
    card += "".join(f"          '{at}': {name}\n" for at, name in enumerate(names)) + "---\n"
    write_rows(tmp_path / "b/train.jsonl", [row] * 2)
    (tmp_path / "b/README.md").write_text(card, encoding="utf-8")
    assert found(read_tagged(str(tmp_path / "b")), "train") == FOUND * 2
    bad = write_rows(tmp_path / "c/train.parquet", [{**row, "ner_tags": [9] * 6}], {"ner_tags": feature})
    assert "0 到 6" in problems(bad.parent)


def test_ends_are_included_where_the_texts_of_the_spans_say_so_and_else_not(tmp_path):
    rows = [SPANS["inclusive"]] * 3
    assert any(
        "最後一個字的位置" in remark
        for remark in read_tagged(str(write_rows(tmp_path / "a.jsonl", rows))).remarks
    )
    silent = [{"text": TEXT, "entities": [{"start": 0, "end": 2, "label": "PER"}]}] * 2
    assert found(read_tagged(str(write_rows(tmp_path / "b.jsonl", silent))))[0][1] == [("王小", "PER")]
    wrong = [*rows, {"text": TEXT, "entities": [{"start": 1, "end": 2, "label": "PER", "mention": "王小"}]}]
    message = problems(write_rows(tmp_path / "c.jsonl", wrong))
    assert "c.jsonl:4" in message and "應是 '王小'" in message and "'小明'" in message


def test_white_space_at_the_ends_of_a_span_is_left_out_with_a_remark(tmp_path):
    rows = [{"text": "王 小明 \u3000住", "entities": [[0, 6, "PER"]]}, {"text": "台北", "entities": []}]
    dataset = read_tagged(str(write_rows(tmp_path / "x.jsonl", rows)))
    assert found(dataset)[0][1] == [("王 小明", "PER")] and list(dataset.remarks.values()) == [1]


BAD = [
    ({"text": TEXT, "entities": [[0, 9, "X"]]}, "超出文字"),
    ({"text": TEXT, "entities": [[-1, 2, "X"]]}, "超出文字"),
    ({"text": TEXT, "entities": [[2, 1, "X"]]}, "起迄顛倒"),
    ({"text": TEXT, "entities": [[1, 1, "X"]]}, "是空的"),
    ({"text": TEXT, "entities": [[0, 3, "X"], [1, 2, "Y"]]}, "重疊"),
    ({"text": TEXT, "entities": [[0, 3, "X"], [0, 3, "Y"]]}, "重疊"),
    ({"text": TEXT, "entities": [[0, 3, "X"], [2, 4, "Y"]]}, "交錯"),
    ({"text": "王 明", "entities": [[1, 2, "X"]]}, "只有空白"),
    ({"text": TEXT, "entities": [[0, 3, " "]]}, "標籤"),
    ({"text": TEXT, "entities": [{"start": 0, "end": 3}]}, "沒有 label"),
    ({"text": TEXT, "entities": [[0.5, 3, "X"]]}, "應是整數"),
    ({"text": TEXT, "entities": ["X"]}, "看不懂"),
    ({"text": TEXT, "entities": [["X"]]}, "看不懂"),
    ({"text": TEXT}, "沒有 entities"),
    ({"text": "", "entities": []}, "text 是空的"),
    ({"text": TEXT, "entities": None}, "是空的"),
    ({"text": "\ud800", "entities": []}, "surrogate"),
    (["王"], "應該是一個物件"),
]


def test_every_bad_row_is_told_with_its_line_and_reason_and_may_be_skipped(tmp_path):
    good = {"text": TEXT, "entities": [[0, 3, "PER"]]}
    file = write_rows(tmp_path / "x.jsonl", [good, *(row for row, _ in BAD)])
    message = problems(file).splitlines()
    for line, (_, reason) in enumerate(BAD, 2):
        told = [one for one in message if one.startswith(f"{file}:{line}：")]
        assert told and reason in told[0], (line, told)
    assert [one.split("：")[0] for one in message[:3]] == [f"{file}:{line}" for line in (2, 3, 4)]
    dataset = read_tagged(str(file), on_bad_rows="skip")
    assert len(dataset) == 1 and len(dataset.skipped) == len(BAD)


def test_tokens_and_tags_of_different_length_and_tags_that_cannot_stand_there_are_bad_rows(tmp_path):
    good = [TOKENS["bio"]] * 5
    bad = [
        ({"tokens": ["王", "小"], "ner_tags": ["O"]}, "要一樣多"),
        ({"tokens": ["王", "小"], "ner_tags": ["O", "I-PER"]}, "第 2 個標記 'I-PER'"),
        ({"tokens": ["王", "小"], "ner_tags": ["B-PER", "I-LOC"]}, "不合 BIO 的寫法"),
        ({"tokens": ["王", "小"], "ner_tags": ["O", "人名"]}, "寫法與其他列不同"),
        ({"tokens": ["王", "小"], "ner_tags": ["B-PER", "M-PER"]}, "混用"),
        ({"tokens": [], "ner_tags": []}, "是空的"),
        ({"tokens": ["", "小"], "ner_tags": ["B-PER", "O"]}, "是空的"),
    ]
    file = write_rows(tmp_path / "x.jsonl", good + [row for row, _ in bad])
    message = problems(file).splitlines()
    for line, (_, reason) in enumerate(bad, 6):
        assert any(one.startswith(f"{file}:{line}：") and reason in one for one in message), (reason, message)


def test_labels_that_training_does_not_have_are_refused_and_a_file_without_spans_too(tmp_path):
    write_rows(tmp_path / "d/train.jsonl", [{"text": "天地", "entities": [[0, 1, "A"]]}])
    write_rows(tmp_path / "d/dev.jsonl", [{"text": "玄黃", "entities": [[0, 1, "B"]]}])
    write_rows(tmp_path / "d/test.jsonl", [{"text": "宇宙", "entities": [[0, 1, "C 類"]]}])
    message = problems(tmp_path / "d")
    assert "validation 有 1 句" in message and "test 有 1 句" in message and "C 類" in message
    assert {*read_tagged(str(tmp_path / "d"), learn=False).rows} == {"train", "validation", "test"}
    assert "一個標記也沒有" in problems(
        write_rows(tmp_path / "x.jsonl", [{"text": "天地", "entities": []}] * 2)
    )


def test_english_words_have_spaces_between_them_and_latin_in_chinese_stays_together(tmp_path):
    rows = [{"tokens": ["John", "lives", "in", "U.S.", "."], "tags": ["B-P", "O", "O", "B-L", "O"]}]
    assert found(read_tagged(str(write_rows(tmp_path / "a.jsonl", rows * 2))))[0][0] == "John lives in U.S. ."
    rows = [{"tokens": [*"我用", "C", "O", "V", *"很久，台北"], "tags": ["O"] * 8 + ["B-L", "I-L"]}]
    assert found(read_tagged(str(write_rows(tmp_path / "b.jsonl", rows * 2))))[0][0] == "我用COV很久，台北"
    rows = [{"tokens": [*"我愛", "Hong", "Kong", "台"], "tags": ["O", "O", "B-L", "I-L", "O"]}]
    assert found(read_tagged(str(write_rows(tmp_path / "c.jsonl", rows * 2))))[0] == (
        "我愛Hong Kong台",
        [("Hong Kong", "L")],
    )


def test_a_column_that_is_not_there_is_named_and_the_nearest_offered(tmp_path):
    file = write_rows(
        tmp_path / "x.jsonl", [{"text": TEXT, "entities": []}, {"text": TEXT, "entities": [[0, 1, "A"]]}]
    )
    message = problems(file, label_column="entites", text_column="txt")
    assert (
        "--label_column entites" in message
        and "是不是 entities" in message
        and "--text_column txt" in message
    )
    message = problems(write_rows(tmp_path / "y.jsonl", [{"a": 1, "b": 2}] * 2))
    assert "看不出哪一欄是文字" in message and "看不出哪一欄是標記" in message


def test_official_splits_of_files_in_columns_are_used_as_such(tmp_path):
    for number, split in enumerate(("train", "dev", "test")):
        lines = "".join(f"天 B-A\n{c} I-A\n\n" for c in "地玄黃宇宙洪荒日月盈昃"[: 9 - 3 * number])
        (tmp_path / f"{split}.conll").write_text(lines, encoding="utf-8")
    (tmp_path / "README.md").write_text("一份資料", encoding="utf-8")
    dataset = read_tagged(str(tmp_path))
    assert {split: len(rows) for split, rows in dataset.rows.items()} == {
        "train": 9,
        "validation": 6,
        "test": 3,
    }
    splits = split_rows(dataset, (0.8, 0.1, 0.1), 1)
    assert len(splits.test) == 3 and not splits.held_out and splits.duplicates == 6 + 3


def test_the_same_text_never_stands_in_two_splits(tmp_path):
    rows = [{"text": f"天地玄黃{n}", "entities": [[0, 1, "A"]]} for n in range(30)]
    write_rows(tmp_path / "d/train.jsonl", rows)
    write_rows(tmp_path / "d/test.jsonl", rows[:3])
    splits = split_rows(read_tagged(str(tmp_path / "d")), (0.8, 0.1, 0.1), 1)
    texts = [
        row.text for part in (splits.fit, splits.validation, splits.held_out, splits.test) for row in part
    ]
    assert len(texts) == len(set(texts)) == 30 and len(splits.test) == 3 and splits.duplicates == 3


def test_a_label_of_the_whole_text_is_taken_for_no_tag(tmp_path):
    message = problems(write_rows(tmp_path / "x.csv", [{"text": "天地玄黃", "label": "甲"}] * 3))
    assert "看不出哪一欄是標記" in message and "--task classify" in message


def test_a_split_without_any_tags_is_left_out_and_one_row_without_is_a_bad_row(tmp_path, capsys):
    row = {"text": TEXT, "label": [[0, 3, "PER"]]}
    write_rows(tmp_path / "d/train.jsonl", [row] * 3)
    write_rows(tmp_path / "d/test.jsonl", [{"id": n, "text": TEXT} for n in range(4)])
    assert {*read_tagged(str(tmp_path / "d")).rows} == {"train"}
    assert "略過 test：4 句都沒有標記" in capsys.readouterr().err
    message = problems(write_rows(tmp_path / "x.jsonl", [row, {"text": TEXT, "label": None}]))
    assert "x.jsonl:2：label 是空的" in message
    (tmp_path / "y.conll").write_text("天\n地\n", encoding="utf-8")
    assert "每行只有一欄" in problems(tmp_path / "y.conll")


def test_rows_that_their_annotation_tool_says_not_to_use_are_left_out(tmp_path, capsys):
    spans = [{"start": 0, "end": 3, "label": "PER"}]
    rows = [{"text": TEXT, "spans": spans, "answer": said} for said in ("accept", "reject", "ignore")]
    dataset = read_tagged(str(write_rows(tmp_path / "prodigy.jsonl", rows)))
    assert len(dataset) == 1 and "略過 2 句：answer 是 reject 或 ignore" in capsys.readouterr().err

    def task(*annotations):
        return {"data": {"text": TEXT}, "annotations": list(annotations)}

    value = {"start": 0, "end": 3, "text": "王小明", "labels": ["PER"]}
    done = {"result": [{"value": {"choices": ["x"]}}, {"value": value}]}
    cancelled = {"was_cancelled": True, "result": []}
    file = write_rows(tmp_path / "studio.json", [task(done), task(), task(cancelled), task(cancelled, done)])
    assert found(read_tagged(str(file))) == [(TEXT, [("王小明", "PER")])] * 2
    assert "略過 2 句：沒有人標註過" in capsys.readouterr().err


def test_a_table_with_a_token_a_row_says_how_to_save_it(tmp_path):
    rows = [{"Sentence #": 1, "Word": "王", "POS": "NR", "Tag": "B-PER"}] * 3
    message = problems(write_rows(tmp_path / "x.csv", rows))
    assert "一列只有一個字（Word）與它的標記（Tag）" in message and ".conll" in message
    assert "classify" not in message
