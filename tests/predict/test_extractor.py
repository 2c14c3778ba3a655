"""A trained extractor in use: the function, --question, the session, files, --exam and --inspect."""

from __future__ import annotations

import csv
import json

import pytest
from conftest import make_model_dir, write_csv, write_rows
from span_rows import make_spans, nested, write_json

import inference


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two extractors: one may find no answer."""
    import fine_tuning_llm

    home = tmp_path_factory.mktemp("extractors")
    base = make_model_dir(home / "base")
    made = {}
    for name, unanswerable in (("span", 0), ("none", 5)):
        source = write_json(home / f"{name}.json", nested(make_spans(200, unanswerable=unanswerable)))
        words = [
            "--task", "span", "--dataset", source, "--model", base, "--learning_rate", 5e-3,
            "--max_length", 64, "--stride", 8, "--num_epochs", 4, "--train_batch_size", 8,
            "--split_ratio", "0.9,0.1,0", "--cpu", "--save_dir", home / name,
            "--output_dir", home / f"{name}_model" / "model", "--max_answer_length", 12,
        ]  # fmt: skip
        assert fine_tuning_llm.main(list(map(str, words))) == 0
        made[name] = home / f"{name}_model" / "model"
    return made


CONTEXT = "天地玄黃宇宙洪荒（甲成乙）日月盈昃辰宿列張"


def test_the_function_gives_text_places_and_a_probability(folders):
    model, tokenizer, device = inference.load_model(folders["span"], "cpu")
    for context in (CONTEXT, "😀👨‍👩‍👧𠮷" + CONTEXT, CONTEXT * 9):
        answer = inference.answer_span(model, tokenizer, context, "天地？", device)
        assert set(answer) == {"text", "start", "end", "score"} and 0 < answer["score"] <= 1
        assert context[answer["start"] : answer["end"]] == answer["text"] == "甲成乙"
    for bad in (
        ("", "天？"),
        ("天", " "),
        (None, "天？"),
        ("天", 3),
        ("天\ud800", "天"),
        ("天" * 99, "地" * 99),
    ):
        with pytest.raises(inference.UserError):
            inference.answer_span(model, tokenizer, *bad, device)
    with pytest.raises(inference.UserError, match="answer_span"):
        inference.classify(model, tokenizer, ["天"], device)
    with pytest.raises(inference.UserError, match="answer_span"):
        inference.qa_inference(model, tokenizer, "天？", {"A": "地", "B": "玄"}, device)


def test_several_answers_are_distinct_and_best_first(folders):
    from finetune.predict.loading import predictor_of_kind

    for name in ("span", "none"):
        predictor = predictor_of_kind("extractor", *inference.load_model(folders[name], "cpu"))
        (ranked,) = predictor.answer_pairs([("天？", CONTEXT)], 5)
        assert len(ranked) == 5 and predictor.answer("天？", CONTEXT) == ranked[0]
        assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)
        assert len({(one["start"], one["end"]) for one in ranked}) == 5
        assert all(one["end"] - one["start"] <= 12 for one in ranked if one["text"])
        assert predictor.settings.max_answer_length == 12  # as in training


def test_a_passage_without_an_answer_has_none_for_a_model_that_learnt_so(folders):
    empty = "天地玄黃。宇宙洪荒日月盈昃"
    found = {name: inference.answer_span(*inference.load_model(folder, "cpu")[:2], empty, "天？", "cpu")
             for name, folder in folders.items()}  # fmt: skip
    assert found["span"]["text"]
    assert (found["none"]["text"], found["none"]["start"], found["none"]["end"]) == ("", None, None)
    assert found["none"]["score"] > 0.3


def test_one_question_is_answered_in_its_sentence_or_as_json(run, tmp_path):
    code, out, _ = run("span", "--question", "天？", "--context", CONTEXT)
    assert code == 0 and "🔎 甲成乙 (機率:" in out and "（【甲成乙】）" in out
    (tmp_path / "文章.txt").write_bytes(CONTEXT.encode("big5"))
    code, out, _ = run("span", "--question", "天？", "--context", "@文章.txt", "--json", "--top_k", 3)
    record = json.loads(out)
    assert code == 0 and record["answer"] == "甲成乙" and len(record["answers"]) == 3
    code, out, _ = run("none", "--question", "天？", "--context", "天地玄黃。宇宙洪荒")
    assert code == 0 and "文章裡沒有答案" in out
    for words, message in (
        (("--context", "@沒有.txt"), "不存在"), (("--context", "@."), "不是檔案"),
        (("--context", " "), "空的"), ((), "--context"),
        (("--context", CONTEXT, "--max_answer_length", 0), "--max_answer_length"),
    ):  # fmt: skip
        code, _, err = run("span", "--question", "天？", *words)
        assert code == 2 and message in err, words
    code, out, _ = run("span", "--question", "天？", "--context", CONTEXT, "--max_answer_length", 1)
    assert code == 0 and "甲成乙" not in out.partition("【")[0]


@pytest.fixture
def talk(folders, monkeypatch, capsys, tmp_path):
    """The session's answer to some lines."""
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, which="span") -> str:
        typed = iter(lines)

        def read(prompt=""):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        capsys.readouterr()
        inference.interactive_mode(*inference.load_model(folders[which], "cpu"))
        return capsys.readouterr().out

    return run


def test_the_session_reads_a_passage_of_several_lines_and_answers_questions(talk, tmp_path):
    out = talk("天地玄黃", "宇宙（甲成乙）洪荒", "日月盈昃", "", "天？", "top 1", "地？", "context")
    assert "讀了文章，19 個字" in out and out.count("🔎 甲成乙") == 2 and out.count("  2. ") == 1
    assert "天地玄黃\n宇宙（甲成乙）洪荒\n日月盈昃" in out and out.rstrip().endswith("再見！")
    (tmp_path / "我的 文章.txt").write_text("日月（甲寒乙）暑往", encoding="utf-8")
    out = talk(
        "file 我的 文章.txt",
        "天？",
        "context 天地（甲秋乙）冬藏",
        "天？",
        "context new",
        "玄黃（甲閏乙）",
        "",
        "天？",
    )
    assert all(f"🔎 {text}" in out for text in ("甲寒乙", "甲秋乙", "甲閏乙"))


def test_rubbish_never_ends_the_session(talk):
    rubbish = [
        "", "/foo", "qa", "file", "file nope", "file .", "top", "top 0", "top 999", "help", "context",
        "😀" * 500, "天" * 9000, "\ud800", "context new", CONTEXT, "", "\x1b[31m？", "top 20", "天？",
        "context \ud800", "文章",
    ]  # fmt: skip
    out = talk(*rubbish, "天？", "q")
    assert out.rstrip().endswith("再見！") and "Traceback" not in out and "\x1b" not in out
    assert out.count("🔎") >= 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_is_answered_question_by_question_and_measured_where_it_has_answers(run, suffix, tmp_path):
    rows = make_spans(9, seed=8)
    source = write_json(tmp_path / "x.json", nested(rows))
    code, out, err = run("span", "--input", source, "--output", f"o{suffix}", "--top_k", 2)
    assert code == 0 and "F1 " in out and "9 題有正解" in out and "9 列，答了 9 列" in err
    if suffix == ".parquet":
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(tmp_path / "o.parquet").to_pylist()
    elif suffix == ".csv":
        found = list(csv.DictReader((tmp_path / "o.csv").open(encoding="utf-8-sig")))
    else:
        found = [json.loads(line) for line in (tmp_path / "o.jsonl").open(encoding="utf-8")]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for record, row in zip(found, rows, strict=True):
        place = slice(int(record["start"]), int(record["end"]))
        assert row["context"][place] == record["answer"] and not record["error"]
        assert record["title"] == row["title"]


def test_rows_that_cannot_be_answered_say_why_and_the_others_are_answered(run, tmp_path):
    rows = [
        {"文章": CONTEXT, "問題": "天？", "答案": "甲成乙", "備註": "甲"},
        {"文章": "", "問題": "天？", "答案": "x"}, {"文章": CONTEXT, "問題": "天" * 80, "答案": "甲成乙"},
        {"文章": CONTEXT, "問題": "天？", "答案": "不在"},
        {"文章": CONTEXT, "問題": " ", "答案": ""},
    ]  # fmt: skip
    source = write_rows(tmp_path / "x.jsonl", rows)
    code, out, _ = run("span", "--input", source, "--output", "o.jsonl")
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").open(encoding="utf-8")]
    assert code == 0 and [bool(row["error"]) for row in found] == [False, True, True, False, True]
    assert found[0]["備註"] == "甲" and found[0]["f1"] == 1 and found[3]["f1"] is None
    assert "1 題有正解" in out and "1 題沒有可用的正解" in out
    bare = write_csv(tmp_path / "y.csv", [[CONTEXT, "天？"]], ("context", "question"))
    code, out, _ = run("span", "--input", bare, "--output", "p.csv")
    assert code == 0 and "F1" not in out


def test_an_exam_gives_the_same_figures_as_its_predictions(run, tmp_path):
    source = write_json(tmp_path / "x.json", nested(make_spans(24, seed=9, unanswerable=6)))
    code, out, _ = run("none", "--exam", source, "--report", "r")
    results = json.loads((tmp_path / "r" / "results.json").read_text(encoding="utf-8"))["metrics"]["all"]
    records = [json.loads(line) for line in (tmp_path / "r" / "predictions.jsonl").open(encoding="utf-8")]
    assert code == 0 and len(records) == results["n"] == 24
    assert sum(record["f1"] for record in records) / 24 == pytest.approx(results["f1"])
    assert results["no_answer"]["n"] == 4 and "random_sentence" in results["baselines"]
    assert "F1" in out and "規則：CMRC 2018" in out
    code, _, err = run("span", "--exam", write_csv(tmp_path / "q.csv", [["天？", "1", "2", "A"]],
                                                   ("question", "A", "B", "answer")))  # fmt: skip
    assert code == 2 and "抽取式問答模型" in err


def test_inspection_counts_questions_articles_lengths_and_bad_rows(tmp_path, capsys):
    rows = make_spans(12, unanswerable=4)
    for row in rows:
        row["context"] += "天" * 40
    data = nested(rows)
    source = write_json(tmp_path / "x.json", data)
    assert inference.main(["--inspect", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == 12 and found["splits"]["all"]["articles"] == 4
    assert found["splits"]["all"]["unanswerable"] == 3 and found["same_within"] == []
    data["data"][0]["paragraphs"][0]["qas"] *= 2
    data["data"][1]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "沒有", "answer_start": 0}]
    write_json(source, data)
    assert inference.main(["--inspect", str(source)]) == 2
    out = capsys.readouterr().out
    assert "文章問答" in out and "用不了的列" in out and "不在文章裡" in out and "q0 = " in out
