"""Meaning of labels, in the many ways people write them."""

import pytest
from conftest import write_rows

from finetune.data.labelled import LabelledOptions, read_labelled
from finetune.runtime.errors import UserError


def read(tmp_path, labels, name="a.jsonl", column="label", **more):
    """(names of the classes, a row may have several, the labels of each row)."""
    rows = [{"text": f"文{number}", column: label} for number, label in enumerate(labels)]
    catalogue = read_labelled(str(write_rows(tmp_path / name, rows)), options=LabelledOptions(**more))
    found = [[catalogue.names[label] for label in row.labels] for row in catalogue.rows[""]]
    return catalogue.names, catalogue.multi, found


def test_lists_of_0_and_1_are_switches_by_place_and_never_two_classes(tmp_path, capsys):
    hot = [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    places = ["label_0", "label_1", "label_2"]
    wanted = (places, True, [places[:2], [], places[1:]])
    assert read(tmp_path, hot) == wanted and "開關" in capsys.readouterr().err
    assert read(tmp_path, [list(map(bool, row)) for row in hot]) == wanted
    for written in (str, lambda row: str(row).replace(",", ""), lambda row: f"array({row})"):
        assert read(tmp_path, list(map(written, hot)), "a.csv") == wanted
    assert read(tmp_path, ["1|1|0", "0|0|0", "0|1|1"], "b.csv", multi_label=True) == wanted


def test_lists_with_one_1_each_are_classes_unless_several_are_asked_for(tmp_path):
    hot = [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert read(tmp_path, hot)[1:] == (False, [["label_1"], ["label_0"], ["label_2"]])
    assert read(tmp_path, hot, multi_label=True)[1] is True
    with pytest.raises(UserError, match="可能是開關，也可能是類別編號"):
        read(tmp_path, [[0, 1], [1, 0]])


def test_a_list_written_as_text_is_the_list(tmp_path):
    wanted = (["哀", "喜", "怒"], True, [["喜", "怒"], ["哀"], []])
    assert read(tmp_path, ["['喜', '怒']", "['哀']", "[]"], "a.csv") == wanted
    assert read(tmp_path, ['["喜", "怒"]', '["哀"]', "[]"], "a.csv") == wanted
    assert read(tmp_path, ["['喜' '怒']", "['哀']", "[]"], "a.csv") == wanted
    assert read(tmp_path, ["[新聞]", "[體育]"], "b.csv")[0] == ["[新聞]", "[體育]"]


def test_a_text_that_may_be_several_labels_is_reported_with_the_flag_that_splits_it(tmp_path, capsys):
    assert read(tmp_path, ["喜|怒", "喜", "哀"])[1] is False
    assert "1 列的標籤像 喜|怒" in capsys.readouterr().err
    read(tmp_path, ["喜、怒", "喜", "怒"])
    assert "--multi_label" in capsys.readouterr().err
    assert read(tmp_path, ["喜|怒", "喜", "哀"], multi_label=True)[2] == [["喜", "怒"], ["喜"], ["哀"]]
    read(tmp_path, ["衣、食", "住", "行"])
    assert "--multi_label" not in capsys.readouterr().err


def test_a_sign_for_no_label_is_left_out_and_counted(tmp_path, capsys):
    assert read(tmp_path, ["甲", "-", "乙", "－"])[2] == [["甲"], ["乙"]]
    assert "略過 資料 的 2 列" in capsys.readouterr().err
    assert read(tmp_path, [0, 1, 2, -1])[0] == ["0", "1", "2"]
    assert "略過 資料 的 1 列" in capsys.readouterr().err
    assert read(tmp_path, [0, 1, -1])[0] == ["-1", "0", "1"]
    assert "當作一類" in capsys.readouterr().err


def test_labels_alike_but_for_how_they_are_written_are_named(tmp_path, capsys):
    labels = ["正面", "正面 ", "负面", "負面", "Good", "good", "1", "1.0", "Ａ", "A"]
    names, _, found = read(tmp_path, labels, "a.csv")
    assert names == sorted({*labels} - {"正面 "}) and found[1] == ["正面"]
    said = capsys.readouterr().err
    for same in (
        "'負面'、'负面'",
        "'Good'、'good'",
        "'1'、'1.0'",
        "'A'、'Ａ'",
        "標籤 正面 有 1 列前後多了空白",
    ):
        assert same in said


def test_the_names_beside_numbers_of_classes_are_taken(tmp_path, capsys):
    rows = [{"text": f"文{n}", "label": n % 2, "label_text": ("負", "正")[n % 2]} for n in range(4)]
    assert read_labelled(str(write_rows(tmp_path / "a.jsonl", rows))).names == ["正", "負"]
    assert "label_text 欄的名稱" in capsys.readouterr().err
    options = LabelledOptions(label_column="label")
    assert read_labelled(str(tmp_path / "a.jsonl"), options=options).names == ["0", "1"]


@pytest.mark.parametrize("labels", [["0.5", "1.5", "2"], ["3.7", "-0.2"]])
def test_scores_are_refused_with_the_reason_and_whole_stars_are_classes(tmp_path, labels):
    with pytest.raises(UserError, match="像是分數"):
        read(tmp_path, labels, "a.csv")
    assert read(tmp_path, ["1", "5", "3"], "a.csv")[0] == ["1", "3", "5"]
