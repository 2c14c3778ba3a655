"""Exams that are known by name: from a hub on 127.0.0.1 through the real client, in the layouts they have."""

from __future__ import annotations

import json
import zipfile
from collections import Counter

import pytest
import yaml
from conftest import write_csv, write_rows
from loopback_hub import COMMIT, LoopbackHub, use_in_process

import inference
from finetune.cli.inference_checks import parse_args
from finetune.cli.train_args import parse_args as parse_training_args
from finetune.data.exam import read_exam
from finetune.data.known_exams import KNOWN
from finetune.data.splits import split_exam
from finetune.data.subjects import SUBJECTS, category_of, chinese_name
from finetune.evaluation import metrics
from finetune.predict.exam import select_split
from finetune.runtime.errors import UserError

LETTERS = "ABCDEFGHIJ"
CMMLU, CEVAL, MMLU, MMLU_PRO = (KNOWN[name].revision for name in ("cmmlu", "ceval", "mmlu", "mmlu-pro"))


def row(stem: str, options=4, answer="B", **more) -> dict:
    """A question with its options in columns of their own."""
    return {"question": stem, **{LETTERS[i]: f"{stem}選{i}" for i in range(options)}, "answer": answer} | more


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves {name: folder or {revision: folder}} to the client of this process."""
    servers = []

    def start(datasets: dict) -> LoopbackHub:
        servers.append(LoopbackHub({}, datasets).__enter__())
        use_in_process(servers[-1], monkeypatch, tmp_path / "cache")
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def stems(exam) -> dict[str, list[str]]:
    return {split: [question.stem for question in part] for split, part in exam.questions.items()}


def test_tmlu_has_up_to_six_options_and_those_that_are_missing_are_no_options(tmp_path, serve):
    rows = [
        row("天", 6, "F", id=1, metadata={"source": "AST"}),
        row("地", 4, "D", E=None, F=None),
        row("玄", 5, "E", F=""),
    ]
    write_rows(tmp_path / "h/AST_biology_test.jsonl", rows)
    write_rows(tmp_path / "h/AST_biology_dev.jsonl", [row("黃", 4, "C", E=None, F=None)])
    serve({"miulab/tmlu": tmp_path / "h"})
    exam = read_exam("tmlu")
    assert [(len(q.options), q.answer) for q in exam.questions["test"]] == [(6, 5), (4, 3), (5, 4)]
    assert stems(exam) == {"train": ["黃"], "test": ["天", "地", "玄"]}
    assert {q.subject for q in exam.questions["test"]} == {"AST_biology"}
    assert stems(read_exam("miulab/TMLU")) == stems(exam)  # the hub does not tell cases apart either


def test_a_set_that_is_no_longer_public_is_said_to_be_so(serve):
    serve({})
    with pytest.raises(UserError, match="2026 年 8 月起不再公開"):
        read_exam("tmlu", flag="--exam")


def test_of_tceval_only_the_subjects_of_tmmluplus_are_fetched_and_they_are_those_of_tmmluplus(
    tmp_path, serve, capsys
):
    folder, configs = tmp_path / "h", []
    for config in ("tmmluplus-physics", "tmmluplus-taxation", "penguin_table", "drcd"):
        for split in ("dev", "test"):
            write_rows(folder / config / f"{split}-00000-of-00001.parquet", [row(config + split)])
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in ("dev", "test")]
        configs.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    hub = serve({"MediaTek-Research/TCEval-v2": folder})
    exam = read_exam("tceval")
    assert {q.subject for q in exam.questions["test"]} == {"physics", "taxation"} <= set(SUBJECTS)
    assert stems(exam)["train"] == ["tmmluplus-physicsdev", "tmmluplus-taxationdev"]
    assert not any("drcd" in path or "penguin" in path for path in hub.asked)
    capsys.readouterr()
    for copy in (folder, folder / "README.md"):  # a copy of one's own, then without its card
        assert stems(read_exam(str(folder))) == stems(exam), copy
        assert "略過 drcd、penguin_table：不是這份題庫的選擇題" in capsys.readouterr().err
        (folder / "README.md").unlink(missing_ok=True)
    assert len(read_exam("tceval", subjects="物理").questions["test"]) == 1


@pytest.mark.parametrize("name", ["tw-legal", "lianghsun/tw-legal-benchmark-v1", "tw-emergency"])
def test_a_benchmark_whose_only_split_is_train_is_tested_on_it_and_that_is_said(
    tmp_path, serve, capsys, name
):
    write_csv(tmp_path / "l/benchmark.csv", [["天？", "地", "玄", "黃", "宇", "A"]] * 3)
    write_rows(tmp_path / "e/tw_ed_exam.jsonl", [row("急", 5, "E"), row("診", 5, "A"), row("室", 5)])
    serve({KNOWN["tw-legal"].repository: tmp_path / "l", KNOWN["tw-emergency"].repository: tmp_path / "e"})
    exam = read_exam(name, flag="--exam")
    assert "只有 train 這一部分，它就是測驗題" in capsys.readouterr().err
    split, rows = select_split(exam, "test")
    assert (split, len(rows)) == ("train", 3) and select_split(exam, "train") == (split, rows)
    assert {len(q.options) for q in rows} == {5 if name == "tw-emergency" else 4}
    read_exam(name)
    assert "訓練過就不能再拿它評測" in capsys.readouterr().err


def test_such_a_benchmark_is_evaluated_by_its_short_name_alone(
    tmp_path, serve, monkeypatch, capsys, model_dir
):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "l/benchmark.csv", [["天？", "地", "玄", "黃", "宇", "A"]] * 3)
    serve({KNOWN["tw-legal"].repository: tmp_path / "l"})
    words = ["--model_path", model_dir, "--cpu", "--exam", "tw-legal", "--skip_option_only"]
    assert inference.main([*map(str, words), "--scoring", "letter"]) == 0
    results = json.loads((tmp_path / "report_tw-legal/results.json").read_text())
    assert results["train"]["model"]["n"] == 3 and "它就是測驗題" in capsys.readouterr().out
    origin = results["facts"]["題庫"]
    assert origin == f"lianghsun/tw-legal-benchmark-v1 main ({COMMIT[:12]})"


def test_formosa_is_read_as_its_card_says(tmp_path, serve):
    names, folder = ("geography", "history"), tmp_path / "h"
    for name in names:
        write_rows(folder / f"holdout/{name}.json", [row(name)])
        write_csv(folder / f"holdout/{name}.csv", [[name, "甲", "乙", "丙", "丁", "B"]])
    configs = [
        {"config_name": name, "data_files": [{"split": "test", "path": f"holdout/{name}.json"}]}
        for name in names
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    serve({"lianghsun/Formosa-bench": folder})
    exam = read_exam("formosa")
    assert stems(exam) == {"test": ["geography", "history"]}
    assert [q.subject for q in exam.questions["test"]] == [*names]


@pytest.mark.parametrize("name", ["cmmlu", "lmlmcat/cmmlu", "haonan-li/cmmlu"])
def test_cmmlu_is_read_from_the_one_zip_it_is_kept_in(tmp_path, serve, name):
    folder = tmp_path / "h"
    folder.mkdir()
    with zipfile.ZipFile(folder / "cmmlu_v1_0_1.zip", "w") as packed:
        for split in ("dev", "test"):
            text = f",Question,A,B,C,D,Answer\n0,{split}天,甲,乙,丙,丁,D\n"
            packed.writestr(f"{split}/agronomy.csv", text)
        packed.writestr("../outside.csv", text)
        packed.writestr("__MACOSX/test/._agronomy.csv", "\0")
    (folder / "cmmlu.py").write_text("raise SystemExit('a loading script must never run')")
    serve({"lmlmcat/cmmlu": {CMMLU: folder}})
    exam = read_exam(name)
    assert stems(exam)["train"] == ["dev天"] and stems(exam)["test"] == ["test天"]
    assert (exam.questions["test"][0].subject, exam.questions["test"][0].answer) == ("agronomy", 3)
    assert exam.origin == f"lmlmcat/cmmlu ({CMMLU[:12]})"
    assert not (tmp_path / "outside.csv").exists()


@pytest.mark.parametrize("content", [b"PK\x03\x04 half", b"no zip"])
def test_a_broken_zip_is_said(tmp_path, serve, content):
    (tmp_path / "h").mkdir()
    (tmp_path / "h/cmmlu_v1_0_1.zip").write_bytes(content)
    serve({"lmlmcat/cmmlu": {CMMLU: tmp_path / "h"}})
    with pytest.raises(UserError, match="cmmlu_v1_0_1.zip 不是 zip，或檔案不完整"):
        read_exam("cmmlu")


def test_of_ceval_the_test_rows_have_no_key_and_the_validation_rows_do(tmp_path, serve):
    for split, answer in (("dev", "A"), ("val", "C"), ("test", "")):
        file = tmp_path / f"h/accountant/{split}-00000-of-00001.parquet"
        write_rows(file, [{"id": 0, **row(split, answer=answer), "explanation": ""}])
    serve({"ceval/ceval-exam": {CEVAL: tmp_path / "h"}})
    exam = read_exam("ceval")
    assert stems(exam) == {"train": ["dev"], "validation": ["val"]}
    assert [q.stem for q in exam.keyless["test"]] == ["test"] and select_split(exam, "test") == ("test", [])


def mmlu_row(subject: str, number: int) -> dict:
    choices = [f"{subject}{number}{x}" for x in "ABCD"]
    return {"question": f"{subject} {number}", "subject": subject, "choices": choices, "answer": number % 4}


def mmlu(folder):
    """MMLU's layout: a folder a subject, the same rows in `all`, rows of others in auxiliary_train."""
    subjects = ("anatomy", "virology")
    for split, numbers in (("dev", [1, 2]), ("validation", [3]), ("test", [1, 3, 5])):
        file = f"{split}-00000-of-00001.parquet"
        rows = {subject: [mmlu_row(subject, n) for n in numbers] for subject in subjects}
        for subject in subjects:
            write_rows(folder / subject / file, rows[subject])
        write_rows(folder / "all" / file, sum(rows.values(), []))
    auxiliary = [mmlu_row("", n) for n in range(4)]
    write_rows(folder / "all/auxiliary_train-00000-of-00001.parquet", auxiliary)
    write_rows(
        folder / "auxiliary_train/train-00000-of-00001.parquet", [{"train": each} for each in auxiliary]
    )
    splits = ("test", "validation", "dev")
    names = {name: [(s, f"{name}/{s}-*") for s in splits] for name in (*subjects, "all")}
    names["all"] += [("auxiliary_train", "all/auxiliary_train-*")]
    names["auxiliary_train"] = [("train", "auxiliary_train/train-*")]
    configs = [
        {"config_name": name, "data_files": [{"split": s, "path": p} for s, p in files]}
        for name, files in names.items()
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


def test_of_mmlu_no_row_counts_twice_and_the_auxiliary_rows_are_neither_fetched_nor_trained_on(
    tmp_path, serve, capsys
):
    folder = mmlu(tmp_path / "h")
    hub = serve({"cais/mmlu": {MMLU: folder}})
    exam = read_exam("mmlu")
    assert not any("auxiliary" in path or "/all/" in path for path in hub.asked)
    assert Counter(map(len, stems(exam).values())) == {4: 1, 2: 1, 6: 1}
    # without a 0 in the key of these rows: MMLU's integers count from 0, which the name alone tells
    assert {q.answer for q in exam.questions["test"]} == {1, 3}
    trained = split_exam(exam, (0.7, 0.25, 0.05), "fit", 0)
    assert {q.subject for q in (*trained.fit, *trained.validation)} == {"anatomy", "virology"}
    for card in (True, False):  # a copy of one's own
        own = read_exam(str(folder), answers_from="0")
        assert sorted(stems(own)["test"]) == sorted(stems(exam)["test"]), card
        assert sorted(stems(own)["train"]) == sorted(stems(exam)["train"]), card
        assert "略過 " in (said := capsys.readouterr().err) and "auxiliary_train" in said
        (folder / "README.md").unlink(missing_ok=True)


def test_mmlu_pro_has_a_list_of_up_to_ten_options_and_its_category_is_the_subject(tmp_path, serve):
    def question(number: int, count: int) -> dict:
        return {
            "question_id": number, "question": f"Q{number}", "options": [f"o{i}" for i in range(count)],
            "answer": LETTERS[count - 1], "answer_index": count - 1, "cot_content": "", "category": "math",
            "src": "x",
        }  # fmt: skip

    write_rows(tmp_path / "h/data/test-00000-of-00001.parquet", [question(70, 10), question(71, 3)])
    write_rows(tmp_path / "h/data/validation-00000-of-00001.parquet", [question(0, 4)])
    serve({"TIGER-Lab/MMLU-Pro": {MMLU_PRO: tmp_path / "h"}})
    exam = read_exam("mmlu-pro")
    assert [(len(q.options), q.answer, q.subject) for q in exam.questions["test"]] == [
        (10, 9, "math"), (3, 2, "math"),
    ]  # fmt: skip
    assert stems(exam) == {"test": ["Q70", "Q71"], "validation": ["Q0"]}
    assert exam.questions["test"][0].id == "70"


@pytest.mark.parametrize(
    "options",
    [
        {"A": "甲", "B": "乙", "C": "丙", "D": None},
        [{"label": x, "text": text} for x, text in zip("ABC", "甲乙丙", strict=True)],
        {"text": [*"甲乙丙"], "label": [*"ABC"]},
    ],
)
def test_options_may_be_a_struct_or_a_list_of_structs_in_nested_parquet(tmp_path, options):
    rows = [{"question": "天？", "options": options, "answer": "C"}]
    for config in ("one", "two"):
        write_rows(tmp_path / f"data/{config}/test-00000-of-00001.parquet", rows)
    read = read_exam(str(tmp_path)).questions["test"]
    assert [(q.options, q.answer, q.subject) for q in read] == [
        (("甲", "乙", "丙"), 2, x) for x in ("one", "two")
    ]


def test_each_name_has_its_revision_and_only_a_given_one_replaces_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = {"ikala/tmmluplus": "v1.1", "tmlu": "main", "mmlu": MMLU, "someone/else": "main"}
    expected |= {exam.repository: exam.revision for exam in KNOWN.values()}
    for name, revision in expected.items():
        assert parse_args(["--exam", name]).revision == revision
        assert parse_args(["--exam", name, "--revision", "v1.0"]).revision == "v1.0"
        assert parse_training_args(["--dataset", name])[0].revision == revision
        assert parse_training_args(["--dataset", name, "--revision", "v1.1"])[0].revision == "v1.1"
    assert parse_args(["--inspect", "ceval"]).revision == CEVAL
    assert parse_training_args([])[0].revision == "v1.1"


def test_a_file_or_folder_of_the_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "mmlu/physics_test.jsonl", [row("自己的")])
    assert stems(read_exam("mmlu")) == {"test": ["自己的"]}


def test_linear_algebra_has_a_name_and_a_category_and_no_part_in_macro_4():
    assert (chinese_name("linear_algebra"), category_of("linear_algebra")) == ("線代", "STEM")
    assert "linear_algebra" not in SUBJECTS and len(SUBJECTS) == 66
    figures = {name: {"accuracy": 0.5, "n": 10, "right": 5} for name in SUBJECTS}
    beyond = figures | {"linear_algebra": {"accuracy": 1.0, "n": 10, "right": 10}}
    assert metrics.macro_4(beyond) == metrics.macro_4(figures)
    assert metrics.macro_4(beyond)["subjects"] == 66
    assert metrics.by_category(beyond)["STEM"]["subjects"] == 15
