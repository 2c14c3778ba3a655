"""Models with a head of their own in use: classifiers and multiple-choice heads."""

from __future__ import annotations

import builtins
import csv
import json
import random
import shutil

import pyarrow.parquet
import pytest
import torch
from conftest import make_causal_dir, random_text, write_csv

import inference
from finetune.models.run_card import RunCard
from finetune.predict.batch_file import Journal
from finetune.predict.classifier import ClassifierPredictor
from finetune.runtime.errors import UserError

NAMES = ("正面", "負面", "中立", "NA", "007", "無")
QUESTION = "天地玄黃宇宙？"


@pytest.fixture(autouse=True)
def own_history(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def make_head(folder, source, head: str, names=NAMES, multi=False, card=None, **changes):
    """A model with a random head of transformers, beside the tokenizer of `source`."""
    import transformers

    shutil.copytree(source, folder)
    config = transformers.AutoConfig.from_pretrained(source, **{"initializer_range": 0.3, **changes})
    config.architectures = None
    if head == "AutoModelForSequenceClassification":
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        if len(names) > 1:
            config.problem_type = "multi_label_classification" if multi else "single_label_classification"
    torch.manual_seed(1)
    getattr(transformers, head).from_config(config).save_pretrained(folder)
    if card is not None:
        card.write(folder)
    return folder


def trained_card(**more) -> RunCard:
    return RunCard(task="classify", scoring="", max_length=48, **more)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_dir):
    """Folders by what is in them."""
    home = tmp_path_factory.mktemp("heads")
    sorts, chooses = "AutoModelForSequenceClassification", "AutoModelForMultipleChoice"
    return {
        "single": make_head(home / "single", model_dir, sorts, card=trained_card()),
        "multi": make_head(home / "multi", model_dir, sorts, multi=True, card=trained_card()),
        "choice": make_head(home / "choice", model_dir, chooses, card=RunCard(scoring="choice")),
        "masked": model_dir,
    }


@pytest.fixture(scope="module")
def models(folders):
    """(model, tokenizer, device) of each."""
    return {name: inference.load_model(folder, "cpu") for name, folder in folders.items()}


def reference(folder, text: str, pair: str | None = None, max_length: int = 48) -> list[float]:
    """The probabilities of the classes by transformers alone, of one row without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, do_lower_case=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer(text, pair, return_tensors="pt", truncation=True, max_length=max_length)
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    multi = model.config.problem_type == "multi_label_classification"
    return (logits.sigmoid() if multi else logits.softmax(-1)).tolist()


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng, 1, 60) for _ in range(count)]


# ---- classifying -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("which", ["single", "multi"])
def test_probabilities_are_those_of_transformers_whatever_stands_beside_a_text(folders, models, which):
    model, tokenizer, device = models[which]
    texts = [*some_texts(20), "DNA與ATP"]
    pairs = list(zip(some_texts(9, 1), some_texts(9, 2), strict=True))
    found = inference.classify(model, tokenizer, [*texts, *pairs], device)
    expected = [reference(folders[which], text) for text in texts]
    expected += [reference(folders[which], *pair) for pair in pairs]
    for ranked, shares in zip(found, expected, strict=True):
        assert dict(ranked) == pytest.approx(dict(zip(NAMES, shares, strict=True)), abs=1e-5)
        assert [share for _, share in ranked] == sorted((share for _, share in ranked), reverse=True)
    sums = [sum(share for _, share in ranked) for ranked in found]
    assert (sums == pytest.approx([1.0] * len(sums))) == (which == "single")
    swapped = inference.classify(model, tokenizer, [pair[::-1] for pair in pairs], device)
    assert all(dict(one) != dict(other) for one, other in zip(found[len(texts) :], swapped, strict=True))


def test_a_decoder_whose_padding_is_its_end_of_text_sorts_alike_alone_and_in_a_batch(tmp_path):
    from transformers import AutoTokenizer

    source = make_causal_dir(tmp_path / "llama", "llama", chat=False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(source)
    folder = make_head(
        tmp_path / "sorts", source, "AutoModelForSequenceClassification", pad_token_id=tokenizer.eos_token_id
    )
    model, tokenizer, device = inference.load_model(folder, "cpu")
    texts = some_texts(12)
    found = inference.classify(model, tokenizer, texts, device)
    for text, ranked in zip(texts, found, strict=True):
        with torch.no_grad():
            shares = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist()
        assert dict(ranked) == pytest.approx(dict(zip(NAMES, shares, strict=True)), abs=1e-5)


def test_labels_come_best_first_as_many_as_wanted_and_equal_ones_in_their_order(models):
    model, tokenizer, device = models["single"]
    (everything,) = inference.classify(model, tokenizer, ["天地"], device)
    assert {label for label, _ in everything} == {*NAMES}
    assert inference.classify(model, tokenizer, ["天地"], device, top_k=2) == [everything[:2]]
    assert inference.classify(model, tokenizer, [], device) == []
    saved = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    for parameter in model.classifier.parameters():
        parameter.data.zero_()
    try:
        (even,) = inference.classify(model, tokenizer, ["天地"], device)
    finally:
        model.classifier.load_state_dict(saved)
    assert even == [(name, pytest.approx(1 / len(NAMES))) for name in NAMES]


def test_a_text_with_special_words_is_only_text(models):
    model, tokenizer, device = models["single"]
    written, obeyed = "天[SEP]地", tokenizer("天[SEP]地", return_tensors="pt")
    with torch.no_grad():
        wrong = model(**obeyed).logits[0].softmax(-1).tolist()
    assert [share for _, share in inference.classify(model, tokenizer, [written], device)[0]] != sorted(
        wrong, reverse=True
    )


def test_a_text_that_is_too_long_loses_its_end_and_that_is_said_once(folders, models, capsys):
    predictor = ClassifierPredictor(*models["single"])
    long = "".join(some_texts(9, 4)) * 5
    assert predictor.max_length == 48 < predictor.longest == 128
    first, second = predictor.classify([long])[0], predictor.classify([long, "天"])[0]
    cut = dict(predictor.classify([long[:46]])[0])
    assert dict(first) == pytest.approx(cut, abs=1e-6) and dict(second) == pytest.approx(cut, abs=1e-6)
    assert capsys.readouterr().err.count("超過 48 個 token") == 1
    shares = reference(folders["single"], long)
    assert dict(first) == pytest.approx(dict(zip(NAMES, shares, strict=True)), abs=1e-5)


def test_a_card_longer_than_the_model_can_read_is_no_longer_than_the_model(tmp_path, model_dir):
    card = RunCard(task="classify", scoring="", max_length=4096)
    folder = make_head(tmp_path / "m", model_dir, "AutoModelForSequenceClassification", card=card)
    assert ClassifierPredictor(*inference.load_model(folder, "cpu")).max_length == 128


def test_what_a_multi_label_text_has_is_what_is_likelier_than_not(models):
    for which, shares in (("single", [0.4, 0.3]), ("multi", [0.7, 0.5, 0.49]), ("multi", [0.2, 0.1])):
        ranked = list(zip(NAMES, shares, strict=False))
        expected = ["正面"] if which == "single" else [name for name, share in ranked if share >= 0.5]
        assert ClassifierPredictor(*models[which]).chosen_labels(ranked) == expected


def test_what_is_no_list_of_texts_is_refused(models):
    model, tokenizer, device = models["single"]
    for texts in ("天地", ("天", "地"), [1], [None], [("天", "地", "玄")], [("天", 1)], ["\ud800"]):
        with pytest.raises(UserError):
            inference.classify(model, tokenizer, texts, device)


def test_a_head_that_gives_one_number_is_no_classifier(tmp_path, model_dir):
    folder = make_head(tmp_path / "m", model_dir, "AutoModelForSequenceClassification", names=("分數",))
    with pytest.raises(UserError, match="迴歸"):
        inference.classify(*inference.load_model(folder, "cpu")[:2], ["天"], "cpu")


# ---- one text ----------------------------------------------------------------------------------------------


def test_one_shot_prints_the_text_and_the_ranking(run, models):
    code, out, _ = run("single", "--prompt", "天地玄黃")
    ranked = inference.classify(*models["single"][:2], ["天地玄黃"], "cpu")[0]
    lines = [f"  {place}. {label} (機率: {share:.4f})" for place, (label, share) in enumerate(ranked, 1)]
    assert code == 0 and out.splitlines() == ["文字: 天地玄黃", "", "分類（Top 5）:", *lines[:5]]
    code, out, _ = run("single", "--prompt", "天地", "--pair", "玄黃", "--top_k", 99)
    assert code == 0 and out.splitlines()[:4] == ["文字: 天地", "第二句: 玄黃", "", "分類（Top 6）:"]


def test_a_multi_label_model_marks_what_the_text_has(run, models):
    code, out, _ = run("multi", "--prompt", "天地玄黃")
    ranked = inference.classify(*models["multi"][:2], ["天地玄黃"], "cpu")[0]
    has = [label for label, share in ranked if share >= 0.5]
    assert code == 0 and 0 < len(has) < 5
    lines = out.splitlines()[3:8]
    assert [line.endswith(" ✓") for line in lines] == [share >= 0.5 for _, share in ranked[:5]]
    assert out.splitlines()[-1] == f"  ✓ 機率 0.5 以上的標籤：{'、'.join(has)}"


@pytest.mark.parametrize("which", ["single", "multi"])
def test_json_is_one_object_with_every_label_or_as_many_as_wanted(run, models, which):
    code, out, _ = run(which, "--prompt", "天地", "--pair", "玄", "--json")
    found = json.loads(out)
    ranked = inference.classify(*models[which][:2], [("天地", "玄")], "cpu")[0]
    key = "label" if which == "single" else "labels"
    assert code == 0 and list(found) == ["text", "pair", key, "probabilities"]
    assert found["probabilities"] == pytest.approx(dict(ranked), abs=1e-6)
    assert found[key] == (ranked[0][0] if which == "single" else [n for n, share in ranked if share >= 0.5])
    code, out, _ = run(which, "--prompt", "天地", "--json", "--top_k", 2)
    assert "pair" not in json.loads(out) and len(json.loads(out)["probabilities"]) == 2


def test_characters_the_model_does_not_know_are_said(run):
    assert "不認得：龘" in run("single", "--prompt", "龘地")[2]


# ---- files -------------------------------------------------------------------------------------------------


def read_csv(path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_a_file_of_texts_becomes_a_file_of_labels_in_every_format(run, tmp_path, models, suffix):
    texts = [*some_texts(70), '他說"好",第一行\n第二行', "NA"]
    write_csv(
        tmp_path / "x.csv", [[f"n{i}", t, "正面"] for i, t in enumerate(texts)], ("id", "text", "label")
    )
    output = tmp_path / f"y{suffix}"
    code, _, err = run("single", "--input", "x.csv", "--output", output)
    assert code == 0 and "72 列，答了 72 列" in err
    if suffix in (".csv", ".tsv"):
        with output.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="," if suffix == ".csv" else "\t"))
        rows = [
            {**row, "row": int(row["row"]), "probabilities": json.loads(row["probabilities"])} for row in rows
        ]
    elif suffix == ".parquet":
        rows = pyarrow.parquet.read_table(output).to_pylist()
        rows = [{**row, "probabilities": dict(row["probabilities"])} for row in rows]
    else:
        text = output.read_text(encoding="utf-8")
        rows = json.loads(text) if suffix == ".json" else list(map(json.loads, text.splitlines()))
    found = inference.classify(*models["single"][:2], texts, "cpu")
    assert [row["row"] for row in rows] == list(range(1, 73))
    for number, (row, text, ranked) in enumerate(zip(rows, texts, found, strict=True)):
        assert list(row) == ["row", "id", "text", "label", "probabilities", "error", "true_label"]
        assert row["true_label"] == "正面"
        assert (row["id"], row["text"], row["label"]) == (f"n{number}", text, ranked[0][0])
        assert row["probabilities"] == pytest.approx(dict(ranked), abs=1e-4) and not row["error"]


def test_pairs_and_several_labels_have_columns_of_their_own(run, tmp_path, models):
    pairs = list(zip(some_texts(5, 1), some_texts(5, 2), strict=True))
    write_csv(tmp_path / "x.csv", pairs, ("premise", "hypothesis"))
    assert run("multi", "--input", "x.csv", "--output", "y.jsonl")[0] == 0
    rows = list(map(json.loads, (tmp_path / "y.jsonl").read_text().splitlines()))
    found = inference.classify(*models["multi"][:2], pairs, "cpu")
    for row, pair, ranked in zip(rows, pairs, found, strict=True):
        kept = ["premise", "hypothesis"]
        assert list(row) == ["row", "id", "text", "pair", "labels", "probabilities", "error", *kept]
        assert (row["text"], row["pair"]) == pair
        assert row["labels"] == [label for label, share in ranked if share >= 0.5]
        assert row["probabilities"] == pytest.approx(dict(ranked), abs=1e-4)
    assert run("multi", "--input", "x.csv", "--output", "y.csv")[0] == 0
    assert [json.loads(row["labels"]) for row in read_csv(tmp_path / "y.csv")] == [r["labels"] for r in rows]
    assert run("multi", "--input", "x.csv", "--output", "z.parquet")[0] == 0
    read = pyarrow.parquet.read_table(tmp_path / "z.parquet").to_pylist()
    assert [row["labels"] for row in read] == [row["labels"] for row in rows]


def test_the_columns_are_those_named_then_those_trained_on_then_the_obvious_ones(
    run, tmp_path, folders, capsys
):
    header = ("甲", "乙", "text", "question")
    write_csv(tmp_path / "x.csv", [["天", "地", "玄", "黃"]], header)
    trained_card(flags={"text_column": "乙,甲"}).write(folders["single"])
    try:
        for more, expected in (((), ("地", "天")), (("--text_column", "甲"), ("天",))):
            assert run("single", "--input", "x.csv", "--output", "y.jsonl", "--overwrite", *more)[0] == 0
            row = json.loads((tmp_path / "y.jsonl").read_text())
            assert tuple(row[name] for name in ("text", "pair") if name in row) == expected
    finally:
        trained_card().write(folders["single"])
    for columns, expected in (
        (header, ("text",)), (("question", "x"), ("question",)), (("question1", "question2"),) * 2,
        (("Sentence1", "text_b", "SENTENCE2"), ("Sentence1", "SENTENCE2")), (("標題", "內容"), ("內容",)),
    ):  # fmt: skip
        write_csv(tmp_path / "x.csv", [[f"天{name}" for name in columns]], columns)
        assert run("single", "--input", "x.csv", "--output", "y.jsonl", "--overwrite")[0] == 0
        row = json.loads((tmp_path / "y.jsonl").read_text())
        shown = tuple(row[name] for name in ("text", "pair") if name in row)
        assert shown == tuple(f"天{name}" for name in expected)


@pytest.mark.parametrize(
    ("header", "more", "says"),
    [
        (("a", "b"), (), "看不出哪一欄是文字，有的是 a、b"),
        (("text", "review"), (), "text、review 都像文字欄"),
        (("text", "sentence1", "sentence2"), (), "sentence1,sentence2、text 都像文字欄"),
        (("text", "b"), ("--text_column", "texts"), "是不是 text？"),
        (("text", "b"), ("--text_column", "甲"), "有的是 text、b"),
        (("text", "b"), ("--text_column", "text,b,c"), "最多兩欄"),
    ],
)
def test_columns_that_cannot_be_detected_are_asked_for(run, tmp_path, header, more, says):
    write_csv(tmp_path / "x.csv", [["天"] * len(header)], header)
    code, _, err = run("single", "--input", "x.csv", "--output", "y.jsonl", *more)
    assert code == 2 and says in err and "--text_column" in err and not (tmp_path / "y.jsonl").exists()


def test_rows_that_cannot_be_read_have_their_reason_and_the_others_are_sorted(run, tmp_path):
    bad = [
        ({"text": " \u3000"}, "text 是空的"), ({"text": None}, "text 是空的"), ({"x": "天"}, "沒有 text 欄"),
        ({"text": ["天"]}, "應該是文字"), (["天"], "應該是一個物件"), ({"text": "\ud800"}, "UTF-8"),
    ]  # fmt: skip
    good = [{"text": "天"}, {"text": 7}, {"text": "天\x00😀"}, {"id": 3, "text": "天地" * 999}]
    lines = [json.dumps(row) for row in [good[0], *(row for row, _ in bad), *good[1:]]]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "{rubbish"]), encoding="utf-8")
    code, _, err = run("single", "--input", "x.jsonl", "--output", "y.jsonl")
    rows = list(map(json.loads, (tmp_path / "y.jsonl").read_text().splitlines()))
    assert code == 0 and f"答了 {len(good)} 列，{len(bad) + 1} 列答不了" in err
    assert err.count("超過 48 個 token") == 1 and "Traceback" not in err
    for (_, reason), row in zip(bad, rows[1 : 1 + len(bad)], strict=True):
        assert reason in row["error"] and row["label"] is None and row["probabilities"] is None
    assert "不是 JSON" in rows[-1]["error"]
    assert all(row["label"] in NAMES for row in [rows[0], *rows[1 + len(bad) : -1]])
    assert run("single", "--input", "x.jsonl", "--output", "z.jsonl", "--strict")[0] == 2


def test_a_file_without_a_row_is_refused(run, tmp_path):
    for name, content, says in (("a.csv", b"", "空的檔案"), ("b.jsonl", b"rubbish\n", "不是 JSON")):
        (tmp_path / name).write_bytes(content)
        code, _, err = run("single", "--input", name, "--output", "y.csv")
        assert code == 2 and says in err and not list(tmp_path.glob("y.csv*"))


def test_a_killed_run_goes_on_to_the_same_file_and_one_of_another_kind_is_refused(run, tmp_path, monkeypatch):
    write_csv(tmp_path / "x.csv", [[t, t] for t in some_texts(9)], ("text", "other"))
    same = "single", "--input", "x.csv", "--batch_size", 2
    run(*same, "--output", "whole.jsonl")
    rounds, add = [], Journal.add

    def two_rounds(journal, records):
        if len(rounds) == 2:
            journal.stream.close()
            raise KeyboardInterrupt
        rounds.append(add(journal, records))

    monkeypatch.setattr(Journal, "add", two_rounds)
    assert run(*same, "--output", "y.jsonl")[0] == 130
    monkeypatch.setattr(Journal, "add", add)
    assert "text_column 不同" in run(*same, "--output", "y.jsonl", "--text_column", "other")[2]
    assert "top_k 不同" in run(*same, "--output", "y.jsonl", "--top_k", 5)[2]
    assert "model 不同" in run("multi", *same[1:], "--output", "y.jsonl")[2]
    code, _, err = run(*same, "--output", "y.jsonl")
    assert code == 0 and "已答 4/9 列" in err
    assert (tmp_path / "y.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# ---- the terminal ------------------------------------------------------------------------------------------


def test_a_model_warns_of_single_texts_where_it_was_trained_on_pairs_and_the_other_way_round(run, folders):
    one, two = ("--prompt", "天"), ("--prompt", "天", "--pair", "地")
    try:
        for columns, strange, usual, kind in (("a,b", one, two, "句對"), ("a", two, one, "一段文字")):
            trained_card(flags={"text_column": columns}).write(folders["single"])
            assert f"這個模型是以{kind}訓練的" in run("single", *strange)[2]
            assert "這個模型是以" not in run("single", *usual)[2]
    finally:
        trained_card().write(folders["single"])


@pytest.fixture
def run_repl(models, monkeypatch, capsys):
    """Types the entries given to a model; returns what the terminal said."""

    def run(which: str, *entries: str, end="q") -> str:
        waiting = iter([*entries, end])

        def typed(prompt=""):
            print(prompt)
            entry = next(waiting)
            if entry is None:
                raise EOFError
            return entry

        monkeypatch.setattr(builtins, "input", typed)
        inference.interactive_mode(*models[which])
        assert next(waiting, "over") == "over", "it ended before the last entry"
        out = capsys.readouterr().out
        assert out.rstrip().endswith("👋 再見！")
        return out

    return run


def test_an_entry_is_sorted_and_two_with_bars_between_them_are_a_pair(run_repl, models):
    out = run_repl("single", "天地", "天 ||| 地", "top 2", "天地", "help", end=None)
    assert "文字分類：正面、負面、中立、NA、007、無" in out and out.count("💬 請輸入文字: ") == 6
    alone, pair, two = out.split("🔮 分類")[1:]
    ranked = inference.classify(*models["single"][:2], ["天地", ("天", "地")], "cpu")
    for said, row, count in ((alone, ranked[0], 5), (pair, ranked[1], 5), (two, ranked[0], 2)):
        lines = [f"  {i}. {label} (機率: {share:.4f})" for i, (label, share) in enumerate(row[:count], 1)]
        assert said.splitlines()[: count + 1] == [f"（Top {count}）:", *lines]
    assert "現在 2，標籤共 6 個" in two and "甲 ||| 乙" in two and "⚠️" not in out


def test_what_is_a_command_elsewhere_is_a_text(run_repl):
    assert run_repl("single", "words 2", "method joint", "orders all").count("🔮") == 3


def test_a_multi_label_terminal_marks_what_the_text_has(run_repl):
    out = run_repl("multi", "天地", "help")
    assert "多標籤分類：正面、" in out and "✓ 機率 0.5 以上的標籤：" in out and "✓ 是機率" in out


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("qa", "不會答選擇題"), ("top x", "應為 1 到 1000"), ("天|||", "一對句子寫成"),
        ("|||", "一對句子寫成"), ("天|||地|||玄", "一對句子寫成"), ("\ud800", "不是 UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_explained_and_the_next_one_is_sorted(run_repl, entry, says):
    out = run_repl("single", entry, "", "天")
    assert says in out and out.count("⚠️") == 1 and out.count("🔮") == 1


def test_rubbish_never_ends_it(run_repl):
    rng = random.Random(2)
    alphabet = "天地ＡAb12:：[]()|, \t \x00\x1b\u202e\ud800😀[MASK]" + "qa top help "
    entries = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(100)]
    entries += ["天" * 3000, "||||||", "top", "[SEP]"]
    typed = [entry for entry in entries if entry.strip().lower() not in ("q", "qa", "quit", "exit")]
    run_repl("single", *typed)
    run_repl("choice", *typed)


# ---- multiple-choice heads ---------------------------------------------------------------------------------


def expected_of(folder, question: str, options: list[str]) -> list[float]:
    """The probabilities of the options by transformers alone, all of a question in one pass."""
    from transformers import AutoModelForMultipleChoice, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, do_lower_case=True)
    model = AutoModelForMultipleChoice.from_pretrained(folder).eval()
    template = RunCard().template.plain
    asked = [template.replace("{stem}", question).replace("{blank}", option) for option in options]
    inputs = tokenizer(asked, return_tensors="pt", padding=True)
    inputs = {name: inputs[name][None] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**inputs).logits[0].softmax(-1).tolist()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_choice_head_answers_with_the_softmax_of_transformers(models, folders, count):
    options = dict(zip("ABCDE", some_texts(count, count), strict=False))
    found = inference.qa_inference(*models["choice"][:2], QUESTION, options, "cpu", top_k=9)
    shares = dict(zip(options, expected_of(folders["choice"], QUESTION, list(options.values())), strict=True))
    got = {label: torch.tensor(score).exp().item() for label, _, score in found}
    assert got == pytest.approx(shares, abs=1e-5)
    assert [label for label, *_ in found] == sorted(shares, key=lambda label: -shares[label])


def test_a_choice_head_answers_once_in_files_and_in_the_terminal(run, run_repl, models, tmp_path):
    options = {"A": "地", "B": "玄黃", "C": "日月"}
    best, *_ = inference.qa_inference(*models["choice"][:2], QUESTION, options, "cpu")
    code, out, _ = run("choice", "--question", QUESTION, "--options", "A:地 B:玄黃 C:日月")
    assert code == 0 and f"  1. {best[0]}: {best[1]} (分數: {best[2]:.4f})" in out
    write_csv(tmp_path / "q.csv", [[QUESTION, *options.values()]], ("question", *options))
    assert run("choice", "--input", "q.csv", "--output", "a.jsonl")[0] == 0
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["answer"] == best[0] and max(row["scores"].values()) == pytest.approx(best[2], abs=1e-5)
    out = run_repl("choice", "天地", "qa", QUESTION, "A:地 B:玄黃 C:日月", "help")
    assert f"  1. {best[0]}: {best[1]} (分數: {best[2]:.4f})" in out
    assert "只答選擇題" in out and out.count("⚠️") == 1 and "[MASK]" not in out


def test_a_choice_head_is_evaluated_on_an_exam_and_is_not_compared_with_a_base_that_has_none(
    run, exam_dir, model_dir
):
    words = ["--exam", exam_dir, "--exam_limit", 9, "--report", "r"]
    code, out, err = run("choice", *words)
    assert code == 0 and "9 題" in out and "Traceback" not in err
    code, out, err = run("choice", *words, "--compare_with", model_dir)
    assert code == 2 and "沒有選擇題的輸出層" in err and "9 題" not in out + err  # at once


def test_a_masked_model_with_the_card_of_another_head_is_scored_in_its_own_way(tmp_path, model_dir, models):
    options = {"A": "地", "B": "玄黃"}
    plain = inference.qa_inference(*models["masked"][:2], QUESTION, options, "cpu")
    shutil.copytree(model_dir, tmp_path / "m")
    trained_card().write(tmp_path / "m")
    model, tokenizer, device = inference.load_model(tmp_path / "m", "cpu")
    assert inference.qa_inference(model, tokenizer, QUESTION, options, device) == plain
    RunCard(scoring="choice").write(tmp_path / "m")
    model, tokenizer, device = inference.load_model(tmp_path / "m", "cpu")
    with pytest.raises(UserError, match="沒有選擇題的輸出層"):
        inference.qa_inference(model, tokenizer, QUESTION, options, device)


# ---- wrong uses --------------------------------------------------------------------------------------------

ASKED = ("--question", "天？", "--options", "A:地 B:玄")


@pytest.mark.parametrize(
    ("which", "argv", "says"),
    [
        ("single", ("--prompt", "天", "--word_length", 2), ("--word_length", "分類模型，只會分類")),
        ("single", ("--prompt", "天", "--candidates", "地,玄"), ("--candidates 用於填空的遮罩模型",)),
        ("single", ("--prompt", "天", "--scoring", "pll"), ("--scoring 用於",)),
        ("single", ("--prompt", "天", "--orders", "1"), ("--orders 用於",)),
        ("single", ("--prompt", "天", "--do_sample", "--seed", 9), ("--do_sample、--seed",)),
        ("single", ASKED, ("--question 用於", "--options 用於", "選擇題模型；")),
        ("single", ("--prompt", "天", "--top_k", 0), ("--top_k 0",)),
        ("single", ("--prompt", " "), ("--prompt 是空的",)),
        ("single", ("--prompt", "天", "--pair", " "), ("--pair 是空的",)),
        ("single", ("--pair", "天"), ("--pair 要與 --prompt 一起給",)),
        ("single", ("--prompt", "天", "--text_column", "x"), ("--text_column 要與 --input、",)),
        ("single", ("--prompt", "\ud800"), ("不是 UTF-8",)),
        ("masked", ("--prompt", "天", "--pair", "地"), ("--pair 用於分類模型", "是填空的遮罩模型")),
        ("choice", ("--prompt", "天"), ("--prompt", "是選擇題模型，只答選擇題")),
        ("choice", ("--pair", "天", "--prompt", "天"), ("--pair 用於分類模型",)),
        ("choice", (*ASKED, "--scoring", "pll"), ("--scoring pll", "請用 auto")),
        ("choice", (*ASKED, "--orders", "all"), ("--orders 用於",)),
        ("choice", ("--scoring", "letter"), ("--scoring letter",)),
    ],
)  # fmt: skip
def test_a_flag_for_another_kind_of_model_is_said(run, which, argv, says):
    code, out, err = run(which, *argv)
    assert code == 2 and not out and "Traceback" not in err
    assert all(part in err for part in says), err


def test_a_file_or_an_exam_for_another_kind_of_model_is_refused(run, tmp_path, exam_dir, folders):
    write_csv(tmp_path / "t.csv", [["天"]], ("text",))
    write_csv(tmp_path / "p.csv", [["天"]], ("prompt",))
    named, compared = ("--text_column", "text"), ("--compare_with", folders["single"])
    for which, argv, says in (
        ("single", ("--exam", exam_dir), "是分類模型，只會分類：--exam 要有標籤的文字"),
        ("single", ("--inspect", exam_dir), "不答選擇題"),
        ("masked", ("--exam", exam_dir, *compared), "不會答選擇題"),
        ("masked", ("--input", "t.csv", "--output", "y.csv", *named), "--text_column 用於分類"),
        ("choice", ("--input", "p.csv", "--output", "y.csv"), "只答選擇題"),
    ):
        code, out, err = run(which, *argv)
        assert code == 2 and says in err and not out and "Traceback" not in err, err
    assert not list(tmp_path.glob("y.csv*"))


def test_a_function_for_another_kind_of_model_says_which_one_to_call(models):
    masked, single, choice = models["masked"], models["single"], models["choice"]
    for call, more, model, says in (
        (inference.classify, (["天"],), masked, "遮罩模型，不會分類；請用 predict_mask"),
        (inference.classify, (["天"],), choice, "選擇題模型，不會分類；請用 qa_inference"),
        (inference.predict_mask, ("天",), single, "分類模型，不會填 .MASK.；請用 classify"),
        (inference.predict_words, ("天",), choice, "選擇題模型，不會填 .MASK.；請用 qa_inference"),
        (inference.generate_text, (["天"],), single, "分類模型，不會生成文字；請用 classify"),
        (inference.qa_inference, ("天？", {"A": "地", "B": "玄"}), single, "不會答選擇題；請用 classify"),
    ):
        with pytest.raises(UserError, match=says):
            call(model[0], model[1], *more, model[2])
