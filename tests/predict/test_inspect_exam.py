"""The data doctor: what is wrong with questions, before any time is spent on them."""

from __future__ import annotations

import json

import pytest
from conftest import write_csv

import inference

HEADER = ("question", "A", "B", "C", "D", "E", "answer")


def row(stem, *options, answer="A"):
    return [stem, *options, *[""] * (5 - len(options)), answer]


@pytest.fixture
def sick(tmp_path):
    """A folder with one of every ailment."""
    train = [
        row("天地玄黃宇宙洪荒日月盈昃辰宿列張？", "天", "地", "玄", "黃"),
        row("寒來暑往秋收冬藏閏餘成歲律呂調陽？", "天", "地", "玄", "黃"),
        row("寒來暑往，秋收冬藏，閏餘成歲，律呂調陽？", "黃", "玄", "地", "天"),  # again, with another answer
        row("相同的選項？", "天", "天", "玄", "黃"),
        row("第五個選項？", "天", "地", "玄", "黃", "宇", answer="E"),
        row("兩個選項？", "天", "地"),
        row("？", "天", "地", "玄", "黃"),
        row("控制字元\x07在此？", "天", "地", "玄", "黃"),
    ]
    test = [
        row("天地玄黃宇宙洪荒日月盈昃辰宿列張？", "天", "地", "玄", "黃"),  # also in train
        row("雲騰致雨露結為霜金生麗水玉出崑岡天地玄黃宇宙洪荒？", "天", "地", "玄", "以上皆是", answer="D"),
        row("雲騰致雨露結為霜金生麗水玉出崑岡天地玄黃宇宙洪荒日？", "天", "地", "玄", "以上皆是", answer="D"),
        row("龘與DNA是什麼？", "天", "地", "玄", "黃", answer="B"),
        row("天" * 150, "天", "地", "玄", "黃", answer="B"),
    ]
    write_csv(tmp_path / "sick/physics_dev.csv", train, HEADER)
    write_csv(tmp_path / "sick/physics_test.csv", test, HEADER)
    return tmp_path / "sick"


@pytest.fixture
def inspect(capsys):
    def run(source, *more) -> tuple[int, str]:
        capsys.readouterr()
        code = inference.main(["--inspect", str(source), *map(str, more)])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return code, seen.out

    return run


def test_every_ailment_is_found_and_named_by_its_row(sick, inspect):
    code, out = inspect(sick, "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"] == 13 and found["unusable"] == []
    assert {name: split["rows"] for name, split in found["splits"].items()} == {"train": 8, "test": 5}
    assert found["splits"]["test"]["answers"] == {"A": 0.2, "B": 0.4, "D": 0.4}
    twice = found["duplicates"]
    assert twice["between"] == [["physics/train/2", "physics/test/2"]]
    assert twice["within"] == twice["contradict"] == [["physics/train/3", "physics/train/4"]]
    assert found["near_duplicates"] == ["physics/test/3", "physics/test/4"]
    assert found["suspect"] == {
        "equal_options": ["physics/train/5"],
        "more_than_four_options": ["physics/train/6"],
        "fewer_than_four_options": ["physics/train/7"],
        "short_stem": ["physics/train/8"],
        "odd_characters": ["physics/train/9"],
    }
    assert found["speaks_of_others"] == 2 and "model" not in found


def test_a_model_says_what_it_cannot_read_and_what_would_be_cut(sick, inspect, model_dir):
    from transformers import AutoTokenizer

    code, out = inspect(sick, "--json", "--model_path", model_dir, "--max_length", "64")
    model = json.loads(out)["model"]
    assert code == 0 and model["max_length"] == 64
    assert model["shortened"] == ["physics/test/6"] and model["skipped"] == []
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    known = set(tokenizer.get_vocab())
    assert "龘" in model["unknown"] and "dna" not in model["unknown"]  # capitals are repaired first
    assert all(set(word.lower()) - known for word in model["unknown"])
    assert model["tokens"]["longest"] > 150 and 0 < model["with_unknown"] <= 1
    _, text = inspect(sick, "--model_path", model_dir)
    assert "不認得的字：" in text and "龘×1" in text


def test_a_model_trained_here_is_inspected_with_its_own_length(train, inspect, sick):
    assert train("--max_length", 64, "--max_steps", 1, "--exam_limit", 2) == 0
    folder = "my_bert_finetuned_model_hf_format"
    assert json.loads(inspect(sick, "--json", "--model_path", folder)[1])["model"]["max_length"] == 64


def test_the_table_counts_what_the_json_lists(sick, inspect):
    code, text = inspect(sick)
    assert code == 0
    for line in ("選項相同", "跨部分重複的題目", "題幹太短", "幾乎相同的題目"):
        assert line in text
    assert "physics/train/2 = physics/test/2" in text and "| 物理" in text


def test_unusable_rows_end_with_2_and_are_listed(tmp_path, inspect):
    source = write_csv(
        tmp_path / "bad.csv", [row("好？", "天", "地"), row("壞？", "天", "地", answer="Z")], HEADER
    )
    code, out = inspect(source, "--json")
    found = json.loads(out)
    assert code == 2 and found["rows"] == 1
    assert len(found["unusable"]) == 1 and "bad.csv:3" in found["unusable"][0]
    assert inspect(source)[0] == 2
    only = write_csv(tmp_path / "only.csv", [row("壞？", "天", "地", answer="Z")], HEADER)
    assert inference.main(["--inspect", str(only)]) == 2
    assert inference.main(["--inspect", str(tmp_path / "gone.csv")]) == 2


def test_a_healthy_exam_has_nothing_to_say(inspect):
    code, out = inspect("demo", "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"] == 727 and not any(found["duplicates"].values())
    assert not any(found["suspect"].values()) and not found["near_duplicates"]


def test_what_was_interpreted_what_has_no_answer_and_what_a_model_cannot_tell_apart_is_said(
    tmp_path, inspect, model_dir
):
    rows = [row("天？", "😀", "😭", "😡", answer="(A)"), row("地？", "天", "地", answer="(B)")]
    write_csv(tmp_path / "e/x_dev.csv", rows, HEADER)
    write_csv(tmp_path / "e/x_test.csv", [row("玄？", "龘", "靐", "地")[:-1]], HEADER[:-1])
    code, out = inspect(tmp_path / "e", "--json", "--model_path", model_dir)
    found = json.loads(out)
    assert code == 0 and found["rows"] == 2 and found["keyless"] == {"test": 1}
    assert "'(A)' 這樣" in found["read_as"][0]
    assert found["model"]["indistinguishable"] == ["x/train/2", "x/test/2"]
    text = inspect(tmp_path / "e", "--model_path", model_dir)[1]
    assert "模型分不出來（算並列）：x/train/2、x/test/2" in text and "另有無答案的題目：test 1" in text
