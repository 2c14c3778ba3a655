"""A saved tagger in use: one text, the session, files, --exam and --inspect."""

from __future__ import annotations

import csv
import json
import random

import pyarrow.parquet
import pytest
import torch
from conftest import HAN, write_rows
from seqeval import metrics as seqeval

import inference
from finetune.runtime.errors import UserError

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def make_tagger(folder, model_dir, names=NAMES, card=True):
    """A tagger with drawn weights wide enough that it marks something."""
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(model_dir)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: at for at, name in enumerate(names)}
    config.initializer_range = 0.5
    torch.manual_seed(3)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir, do_lower_case=True).save_pretrained(folder)
    if card:
        from finetune.models.run_card import RunCard

        RunCard(task="tag", scoring="", max_length=32, flags={"stride": 8, "text_column": "text"}).write(
            folder
        )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_dir):
    home = tmp_path_factory.mktemp("taggers")
    return {
        "tagger": make_tagger(home / "tagger", model_dir),
        "stranger": make_tagger(home / "stranger", model_dir, card=False),
        "plain": make_tagger(home / "plain", model_dir, ["NN", "VV", "ADJ"]),
        "masked": model_dir,
    }


def texts(count: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(HAN, k=rng.randint(3, 60))) for _ in range(count)]


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(folder, which: str, given: list[str]):
    return inference.tag(*inference.load_model(folder[which], "cpu")[:2], given, "cpu")


def marked(text: str, entities) -> str:
    written, done = "", 0
    for one in entities:
        written += text[done : one["start"]] + f"【{one['text']}｜{one['label']}】"
        done = one["end"]
    return written + text[done:]


def test_a_prompt_is_marked_and_listed_and_one_object_with_json(run, folders):
    text = "天地ABC玄黃😀，宇宙洪荒"
    (found,) = told(folders, "tagger", [text])
    assert found
    code, out, err = run("tagger", "--prompt", text)
    assert code == 0 and f"標註: {marked(text, found)}" in out and "\x1b" not in out
    assert all(f"{one['start']}–{one['end']}" in out for one in found)
    code, out, _ = run("tagger", "--prompt", text, "--json")
    assert json.loads(out) == {"text": text, "entities": found}


def test_on_a_terminal_spans_are_in_colour_unless_no_color_is_set(run, folders, monkeypatch):
    import sys

    from finetune.runtime.console import plain

    text = "天地玄黃宇宙洪荒"
    (found,) = told(folders, "tagger", [text])
    monkeypatch.setenv("TERM", "xterm")
    for no_color in (False, True):
        run("tagger", "--prompt", text, "--json")  # stdout is made robust, and another one each time
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
        monkeypatch.setenv("NO_COLOR", "1") if no_color else monkeypatch.delenv("NO_COLOR", raising=False)
        _, out, _ = run("tagger", "--prompt", text)
        assert ("\x1b[1;" in out) != no_color and ("｜" in out) == no_color
        assert plain(found[0]["text"]) in out


def test_control_characters_of_a_text_never_reach_the_terminal(run):
    code, out, _ = run("tagger", "--prompt", "天\x1b[31m地\u202e玄")
    assert code == 0 and "\x1b" not in out and "\u202e" not in out


def test_texts_of_any_length_and_none_are_tagged_and_what_is_no_text_is_refused(folders):
    from finetune.runtime.errors import UserError

    long = "天地玄黃，" * 200
    found = told(folders, "tagger", ["", " ", long, "天"])
    assert found[0] == found[1] == [] and len(found) == 4
    assert all(long[one["start"] : one["end"]] == one["text"] for one in found[2])
    for wrong, words in (("天地", "一串文字"), ([3], "一段文字"), (["\ud800"], "UTF-8")):
        with pytest.raises(UserError, match=words):
            told(folders, "tagger", wrong)
    with pytest.raises(UserError, match="不會標註"):
        told(folders, "masked", ["天"])


def test_a_tagger_from_elsewhere_needs_no_run_card(run):
    code, out, _ = run("stranger", "--prompt", "天地玄黃宇宙洪荒", "--json")
    assert code == 0 and json.loads(out)["entities"]


def test_the_session_marks_what_is_typed_and_survives_rubbish(run, folders, monkeypatch):
    entries = iter(["天地玄黃宇宙洪荒", "labels", "labels 3", "qa", "/nonsense", "help", "😀\u200d", "q"])
    monkeypatch.setattr("builtins.input", lambda *_: next(entries))
    code, out, _ = run("tagger")
    (found,) = told(folders, "tagger", ["天地玄黃宇宙洪荒"])
    assert code == 0 and marked("天地玄黃宇宙洪荒", found) in out
    for words in (
        "序列標註：LOC、PER",
        "LOC、PER",
        "labels 後面不用寫什麼",
        "不會答選擇題",
        "沒有 '/nonsense'",
        "再見",
    ):
        assert words in out


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".json"])
def test_a_file_is_tagged_row_by_row_with_its_other_columns(run, tmp_path, folders, suffix):
    given = texts(5)
    rows = [{"id": f"r{at}", "text": text, "note": f"甲{at}"} for at, text in enumerate(given)]
    write_rows(tmp_path / "in.csv", rows + [{"id": "r5", "text": "", "note": ""}])
    code, _, err = run("tagger", "--input", "in.csv", "--output", f"out{suffix}")
    assert code == 0, err
    found = told(folders, "tagger", given)
    if suffix == ".csv":
        with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as stream:
            out = [
                {**row, "entities": json.loads(row["entities"] or "null")} for row in csv.DictReader(stream)
            ]
    elif suffix == ".parquet":
        out = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    elif suffix == ".json":
        out = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    else:
        out = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in out] == [f"r{at}" for at in range(6)]
    assert [row["entities"] for row in out[:5]] == found
    assert [row["note"] for row in out[:5]] == [f"甲{at}" for at in range(5)]
    assert "text 是空的" in out[5]["error"]


def exam_rows(count: int = 12) -> list[dict]:
    rng = random.Random(2)
    return [
        {"id": f"e{at}", "text": text, "entities": [[0, 2, rng.choice(["PER", "LOC"])]]}
        for at, text in enumerate(texts(count, 5))
    ]


def scores(rows: list[dict]) -> dict:
    """seqeval's figures of records with gold and predicted spans, character by character."""

    def tags(text, spans):
        written = ["O"] * len(text)
        for one in spans:
            for at in range(one["start"], one["end"]):
                written[at] = f"{'I' if at > one['start'] else 'B'}-{one['label']}"
        return written

    gold, said = ([tags(row["text"], row[name]) for row in rows] for name in ("true_entities", "entities"))
    return seqeval.classification_report(gold, said, output_dict=True, zero_division=0)


def test_a_files_own_gold_spans_are_written_beside_and_measured(run, tmp_path):
    write_rows(
        tmp_path / "in.jsonl", [*exam_rows(), {"id": "x", "text": "天地", "entities": [[0, 9, "PER"]]}]
    )
    code, out, err = run("tagger", "--input", "in.jsonl", "--output", "out.jsonl")
    assert code == 0 and "1 列的標記讀不懂" in err
    rows = rows_of(tmp_path / "out.jsonl")
    assert rows[-1]["true_entities"] is None and rows[-1]["entities"] is not None
    assert [row["true_entities"][0]["text"] for row in rows[:-1]] == [row["text"][:2] for row in exam_rows()]
    wanted = scores(rows[:-1])["micro avg"]["f1-score"]
    assert f"F1 {wanted:.3f}：12 句" in out


def test_an_exam_has_seqevals_figures_predictions_and_a_page(run, tmp_path):
    write_rows(tmp_path / "d/test.jsonl", exam_rows())
    write_rows(tmp_path / "d/train.jsonl", exam_rows(3))
    code, out, err = run("tagger", "--exam", "d", "--split", "test", "--report", "r")
    assert code == 0, err
    rows = rows_of(tmp_path / "r/predictions.jsonl")
    found = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))["metrics"]["test"]
    wanted = scores(rows)
    assert len(rows) == found["n"] == 12
    assert found["f1"] == pytest.approx(wanted["micro avg"]["f1-score"])
    assert found["macro_f1"] == pytest.approx(wanted["macro avg"]["f1-score"])
    assert "測試：12 句有 12 個標記" in out and "序列標註報告" in (tmp_path / "r/report.md").read_text(
        encoding="utf-8"
    )
    code, out, _ = run(
        "tagger", "--exam", "d", "--split", "all", "--exam_limit", "4", "--report", "r2", "--json"
    )
    assert code == 0 and json.loads(out)["all"]["n"] == 4
    code, _, err = run("tagger", "--exam", "d", "--split", "validation", "--report", "r3")
    assert code == 2 and "--split validation" in err


def test_labels_that_the_model_lacks_count_as_missed_and_alone_they_are_refused(run, tmp_path):
    rows = exam_rows(6)
    rows[0]["entities"] = [[0, 2, "公司"]]
    write_rows(tmp_path / "x.jsonl", rows)
    code, out, _ = run("tagger", "--exam", "x.jsonl", "--report", "r")
    assert code == 0 and "公司 1" in out and "都算漏掉" in out
    write_rows(tmp_path / "y.jsonl", rows[:1] * 2)
    code, _, err = run("tagger", "--exam", "y.jsonl", "--report", "r2")
    assert code == 2 and "公司" in err and "LOC、PER" in err
    write_rows(tmp_path / "z.csv", [{"text": "天", "label": "甲"}, {"text": "地", "label": "乙"}])
    code, _, err = run("tagger", "--exam", "z.csv", "--report", "r3")
    assert code == 2 and "只會標註" in err


def test_parts_of_speech_are_measured_by_the_tokens_of_the_file(run, tmp_path):
    rows = [
        {"tokens": ["天地", "玄", "黃宇"], "tags": ["NN", "VV", "NN"]},
        {"tokens": ["宙", "洪荒"], "tags": ["ADJ", "NN"]},
    ]
    write_rows(tmp_path / "x.jsonl", rows)
    code, out, err = run("plain", "--exam", "x.jsonl", "--report", "r")
    assert code == 0, err
    found = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))["metrics"]["all"]
    assert found["gold"] == found["predicted"] == 5 and found["plain"]
    code, out, err = run("plain", "--input", "x.jsonl", "--output", "y.jsonl")
    assert code == 0 and f"F1 {found['f1']:.3f}" in out, err
    assert [len(row["entities"]) for row in rows_of(tmp_path / "y.jsonl")] == [3, 2]


def test_inspect_counts_labels_lengths_duplicates_and_bad_rows(run, tmp_path, capsys):
    rows = exam_rows(6)
    write_rows(
        tmp_path / "d/train.jsonl",
        [*rows, {**rows[0], "entities": []}, {"text": "天", "entities": [[0, 5, "A"]]}],
    )
    write_rows(tmp_path / "d/test.jsonl", [rows[1], {"text": "新的", "entities": [[0, 1, "ORG"]]}])
    code = inference.main(["--inspect", "d", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 2 and found["splits"] == {"train": 7, "test": 2} and found["untrained"] == ["ORG"]
    assert len(found["unusable"]) == len(found["same_across"]) == len(found["contradict"]) == 1
    assert found["labels"]["ORG"] == {"train": 0, "test": 1} and found["without_spans"]["train"] == 1
    code = inference.main(["--inspect", "d"])
    out = capsys.readouterr().out
    for words in ("標註資料 d：9 句", "| ORG", "超出文字", "文字相同、標記不同", "訓練資料裡沒有的標籤"):
        assert words in out
    (tmp_path / "x.bio").write_text("天 B-A\n地 I-A\n\n玄 O\n", encoding="utf-8")
    assert (
        inference.main(["--inspect", "x.bio"]) == 0
        and "標註資料 x.bio：2 句，1 種標籤" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "天地", "label": "甲"}] * 3, [{"text": "天地", "labels": ["甲", "乙"]}] * 3,
        [{"question": "天？", "A": "甲", "B": "乙", "answer": "A"}] * 3, [{"text": "天地玄黃"}] * 3,
        [{"messages": [{"role": "user", "content": "天"}, {"role": "assistant", "content": "地"}]}] * 3,
    ],
)  # fmt: skip
def test_other_data_are_not_taken_for_tagged_texts(tmp_path, rows):
    from finetune.predict.inspect_tags import holds_tags

    assert not holds_tags(str(write_rows(tmp_path / "x.jsonl", rows)))


def test_files_of_columns_tokens_and_tools_are_tagged_row_by_row(run, tmp_path, folders):
    text = "天地玄黃"
    columns = "\n\n".join("\n".join(f"{c} {'O' if n else 'B-PER'}" for c in text) for n in range(2))
    (tmp_path / "x.conll").write_text(columns, encoding="utf-8")
    write_rows(
        tmp_path / "tokens.jsonl", [{"tokens": list(text)}, {"tokens": []}, {"tokens": ["John", "日"]}]
    )
    studio = {"data": {"text": text}, "annotations": []}
    write_rows(tmp_path / "studio.json", [studio, studio])
    write_rows(tmp_path / "spacy.json", [[text, {"entities": []}]] * 2)
    entities = [{"start": 0, "end": 1, "label": "PER"}, {"start": 1, "end": 2, "label": "LOC"}]
    write_rows(tmp_path / "lone.jsonl", [{"text": text, "entities": entities}])
    wanted = inference.tag(*inference.load_model(folders["tagger"], "cpu")[:2], [text], "cpu")[0]
    files = {"x.conll": 2, "tokens.jsonl": 3, "studio.json": 2, "spacy.json": 2, "lone.jsonl": 1}
    for name, count in files.items():
        code, out, err = run("tagger", "--input", tmp_path / name, "--output", f"{name}.out.jsonl")
        assert code == 0, err
        rows = rows_of(tmp_path / f"{name}.out.jsonl")
        assert len(rows) == count and rows[0]["text"] == text and rows[0]["entities"] == wanted
    rows = rows_of(tmp_path / "tokens.jsonl.out.jsonl")
    assert rows[1]["error"] == "tokens 是空的" and rows[2]["text"] == "John日"
    (tmp_path / "one.conll").write_text("天\n地\n", encoding="utf-8")
    code, _, err = run("tagger", "--input", tmp_path / "one.conll", "--output", "o.jsonl")
    assert code == 2 and "每行只有一欄" in err
    assert run("masked", "--input", tmp_path / "x.conll", "--output", "o.jsonl")[0] == 2


def test_python_takes_any_list_of_texts_and_refuses_what_is_none(folders):
    model, tokenizer, device = inference.load_model(folders["tagger"], "cpu")
    one = inference.tag(model, tokenizer, ["天地"], device)
    assert inference.tag(model, tokenizer, (text for text in ["天地"]), device) == one
    for wrong in (None, "天地", 5, {"text": "天地"}):
        for function in (inference.tag, inference.embed):
            with pytest.raises(UserError, match="要一串文字"):
                function(model, tokenizer, wrong, device)


def test_an_exam_of_questions_is_refused_by_name(run):
    code, _, err = run("tagger", "--exam", "demo")
    assert code == 2 and "--exam demo 是內建的選擇題" in err and "三種做法" not in err


def test_a_long_unknown_part_is_shown_by_its_beginning(run):
    _, _, err = run("tagger", "--prompt", "🙂" * 300)
    assert "🙂" * 40 + "…" in err and "🙂" * 41 not in err
