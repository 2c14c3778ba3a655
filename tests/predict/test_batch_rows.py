"""Whole files: every row answered once, whatever happens; bad rows said with their reasons."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
from conftest import (
    ROOT,
    command,
    environment,
    free_port,
    make_model_dir,
    peak_memory,
    random_text,
    run_process,
    write_csv,
    write_rows,
)

import inference
from finetune.data.tables import read_table
from finetune.predict.batch_file import Journal
from finetune.runtime import locks
from finetune.runtime.file_types import SUFFIXES

SCRIPT = ROOT / "inference.py"
LETTERS = "ABCDEFGHIJ"


def rows_of(count: int, seed=0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "id": f"第{number}題",
            "question": random_text(rng, 3, 25) + "？",
            **dict(zip("ABCD", (random_text(rng, 1, 5) for _ in "ABCD"), strict=True)),
        }
        for number in range(1, count + 1)
    ]


def read_rows(path) -> list[dict]:
    """By readers of the tests' own."""
    if path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))
        return [
            {**row, "row": int(row["row"]), "scores": json.loads(row["scores"] or "null")} for row in rows
        ]
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return [{**row, "scores": row["scores"] and dict(row["scores"])} for row in rows]
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def answer(model_dir, capsys):
    def run(source, output, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        words = ["--model_path", model_dir, "--cpu", "--input", source, "--output", output, *more]
        code = inference.main(list(map(str, words)))
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_in_and_out_gives_the_same_answers(answer, tmp_path, loaded, suffix):
    rows = rows_of(9)
    source = write_rows(tmp_path / f"q{suffix}", rows)
    for other in SUFFIXES:
        code, err = answer(source, tmp_path / f"a{other}")
        assert code == 0 and "9 列，答了 9 列" in err
        found = read_rows(tmp_path / f"a{other}")
        assert [row["row"] for row in found] == list(range(1, 10))
        for asked, row in zip(rows, found, strict=True):
            options = {letter: asked[letter] for letter in "ABCD"}
            ranked = inference.qa_inference(*loaded[:2], asked["question"], options, "cpu", top_k=4)
            assert (row["answer"], row["answer_text"]) == ranked[0][:2]
            assert (row["id"], row["question"]) == (asked["id"], asked["question"])
            assert row["scores"] == pytest.approx({label: s for label, _, s in ranked}, abs=1e-4)
            assert not row["error"]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_prompts_with_blanks_work_the_same_way(answer, tmp_path, loaded):
    prompts = ["天[MASK]玄", "沒有空格", "天[MASK][MASK]", " ", "天" * 300]
    source = write_rows(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in prompts])
    code, err = answer(source, tmp_path / "a.jsonl", "--top_k", "3")
    found = read_rows(tmp_path / "a.jsonl")
    assert code == 0 and "答了 3 列，2 列答不了" in err
    for row in found[:2]:
        assert row["words"] == inference.predict_mask(*loaded[:2], row["prompt"], "cpu", 3)
        assert row["word"] == row["words"][0] and len(row["scores"]) == 3
        assert max(row["scores"]) < 0  # nats, as those of words
    assert len(found[2]["word"]) == 2
    assert "空的" in found[3]["error"] and "最多 128 個" in found[4]["error"]
    code, _ = answer(source, tmp_path / "b.csv", "--candidates", "地,玄黃")
    with (tmp_path / "b.csv").open(encoding="utf-8-sig", newline="") as stream:
        ranked = [json.loads(row["words"] or "[]") for row in csv.DictReader(stream)]
    assert [sorted(words) for words in ranked[:3]] == [sorted(["地", "玄黃"])] * 3


MEANT = (
    "[mask]",
    "【MASK】",
    "［MASK］",
    "<mask>",
    "＿＿",
    "____",
    "（　）",
    "( )",
    "[ MASK ]",
    "[MASK",
    "[Mask]",
)


def test_what_is_meant_for_a_blank_and_is_none_is_an_error_that_names_the_right_form(
    answer, tmp_path, loaded, capsys
):
    prompts = [f"天地{meant}。" for meant in MEANT] + ["天[MASK]與[mask]", "天地[MASK]（ ）", "天地"]
    source = write_rows(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in prompts])
    code, err = answer(source, tmp_path / "a.jsonl")
    *wrong, right, added = read_rows(tmp_path / "a.jsonl")
    assert code == 0 and f"{len(MEANT) + 1} 列答不了" in err and "第 14 列的句子沒有 [MASK]" in err
    for meant, row in zip((*MEANT, "[mask]"), wrong, strict=True):
        assert row["error"].startswith(meant) and "空格要寫成 [MASK]" in row["error"] and not row["word"]
    assert right["word"] and added["word"]
    for call in (inference.predict_mask, inference.predict_words):
        capsys.readouterr()
        assert call(*loaded[:2], "天地（　）。", "cpu") and "不是空格" in capsys.readouterr().err
        assert call(*loaded[:2], "天地", "cpu") and "不是空格" not in capsys.readouterr().err


def test_options_that_the_model_cannot_tell_apart_are_marked_in_every_answer(
    answer, tmp_path, loaded, capsys
):
    asked = {"question": "天？", "A": "😀", "B": "😭", "C": "😡"}
    source = write_rows(tmp_path / "q.jsonl", [asked, rows_of(1)[0]])
    for suffix in (".jsonl", ".csv"):
        answer(source, tmp_path / f"a{suffix}", "--scoring", "letter")
    tied, plain = read_rows(tmp_path / "a.jsonl")
    assert (tied["answer"], tied["tied"], plain["tied"]) == ("A", ["A", "B", "C"], None)
    assert json.loads(read_rows(tmp_path / "a.csv")[0]["tied"]) == ["A", "B", "C"]
    ranked = inference.qa_inference(*loaded[:2], "天？", {"甲": "😀", "乙": "😭"}, "cpu")
    assert ranked.tied == ("甲", "乙") and ranked[0][0] == "甲"
    capsys.readouterr()
    words = ["--model_path", loaded[0].name_or_path, "--cpu", "--question", "天？", "--options", "A:😀 B:😭"]
    assert inference.main(words) == 0 and "A、B 並列最高分" in capsys.readouterr().out
    assert inference.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tied"] == ["A", "B"]


def test_a_file_is_answered_as_the_rows_are_meant_in_training(answer, tmp_path):
    borne = {"題目": "天？", "選項": "(A) 地 (B) 玄", "答案": 2}
    columns = {"題目": "天？", "A": "A. 地", "B": "B. 玄", "答案": "2"}
    for name, row in (("a", borne), ("b", columns)):
        source = write_rows(tmp_path / f"{name}.jsonl", [row, row])
        code, err = answer(source, tmp_path / f"{name}.out.jsonl", "--answer_format", "index")
        found = read_rows(tmp_path / f"{name}.out.jsonl")[0]
        assert (
            code == 0
            and "的讀法" in err
            and found["answer_text"] in ("地", "玄")
            and found["question"] == "天？"
        )
        assert found["answer"] in (1, 2)  # as the file's own answers count


BAD = [
    ("沒有選項", {"question": "天？"}, "0 個選項"),
    ("一個選項", {"question": "天？", "A": "地"}, "1 個選項"),
    ("十一個", {"question": "天？", "choices": list("地玄黃宇宙洪荒日月盈昃")}, "11 個選項"),
    ("只有空白", {"question": " \t\u3000", "A": "地", "B": "玄"}, "question 是空的"),
    ("空選項", {"question": "天？", "A": "地", "B": " ", "C": "玄"}, "選項 B 是空的"),
    ("不是文字", {"question": ["天"], "A": "地", "B": "玄"}, "應該是文字"),
    ("選項太長", {"question": "天？", "A": "地" * 200, "B": "玄"}, "超過"),
]
GOOD = [
    {"question": "天？😀🀄", "A": "👨‍👩‍👧", "B": "地"},
    {"question": "天地玄黃" * 5000, "A": "地", "B": "玄"},
    {"question": "天\u0000？", "A": "NA", "B": "1.0", "answer": "不存在的答案"},
]


@pytest.mark.parametrize("name", ["q.jsonl", "q.json"])
def test_a_row_that_cannot_be_answered_has_its_reason_and_the_others_are_answered(answer, tmp_path, name):
    rows = [row for _, row, _ in BAD] + GOOD
    source = write_rows(tmp_path / name, rows)
    code, err = answer(source, tmp_path / "a.jsonl")
    found = read_rows(tmp_path / "a.jsonl")
    assert code == 0 and f"答了 {len(GOOD)} 列，{len(BAD)} 列答不了" in err and "Traceback" not in err
    for (_, _, reason), row in zip(BAD, found[: len(BAD)], strict=True):
        assert reason in row["error"] and row["answer"] is None
    assert all(row["answer"] in "AB" and row["error"] is None for row in found[len(BAD) :])
    assert answer(source, tmp_path / "b.jsonl", "--strict")[0] == 2
    assert read_rows(tmp_path / "b.jsonl") == found


def test_rows_in_another_encoding_are_said_one_by_one(answer, tmp_path):
    header, line = "question,A,B\n", "天地？,地,玄\n"
    mixed = b"\xef\xbb\xbf" + (header + line).encode() + line.encode("big5") + line.encode()
    (tmp_path / "mixed.csv").write_bytes(mixed)
    code, err = answer(tmp_path / "mixed.csv", tmp_path / "a.csv")
    found = read_rows(tmp_path / "a.csv")
    assert code == 0 and [bool(row["error"]) for row in found] == [False, True, False]
    assert "Big5 讀成「天地" in found[1]["error"] and "答了 2 列，1 列答不了" in err
    (tmp_path / "torn.csv").write_text(header + line + "天？,地\n" + line, encoding="utf-8")
    answer(tmp_path / "torn.csv", tmp_path / "b.csv")
    assert "標題列是 3 欄" in read_rows(tmp_path / "b.csv")[1]["error"]
    lines = [json.dumps(rows_of(1)[0]), "{rubbish", json.dumps(rows_of(1)[0])]
    (tmp_path / "torn.jsonl").write_text("\n".join(lines), encoding="utf-8")
    answer(tmp_path / "torn.jsonl", tmp_path / "c.jsonl")
    assert "不是 JSON" in read_rows(tmp_path / "c.jsonl")[1]["error"]


def test_a_row_with_a_stray_quote_does_not_take_the_others_with_it(answer, tmp_path):
    good = "天？,地,玄\n"
    (tmp_path / "q.csv").write_text("question,A,B\n" + good + '"天"？,地,玄\n' + good * 3, encoding="utf-8")
    answer(tmp_path / "q.csv", tmp_path / "a.jsonl")
    found = read_rows(tmp_path / "a.jsonl")
    assert [bool(row["error"]) for row in found] == [False, True, False, False, False]


def test_a_file_that_begins_with_rows_of_another_encoding_is_answered_from_the_first_that_is_not(
    answer, tmp_path
):
    line = "天？,地,玄\n"
    (tmp_path / "q.csv").write_bytes(b"question,A,B\n" + line.encode("big5") * 6 + line.encode() * 2)
    code, err = answer(tmp_path / "q.csv", tmp_path / "a.csv")
    assert code == 0 and "答了 2 列，6 列答不了" in err


def test_values_that_are_no_text_and_half_characters_are_rows_like_any_other(answer, tmp_path):
    import datetime
    import decimal

    rows = [{"id": datetime.date(2026, 1, 2), "question": "天？", "A": "地", "B": "玄"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert answer(tmp_path / "d.parquet", tmp_path / "a.jsonl")[0] == 0
    assert "2026-01-02" in read_rows(tmp_path / "a.jsonl")[0]["id"]
    rows = [{"id": decimal.Decimal("1.50"), "prompt": "天[MASK]"}, {"id": None, "prompt": "地[MASK]"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert answer(tmp_path / "p.parquet", tmp_path / "b.jsonl")[0] == 0
    rows = [
        {"question": "\ud800天？", "A": "地", "B": "玄"},
        {"question": "天？", "A": "地", "B": "玄\udfff"},
    ]
    source = write_rows(tmp_path / "s.jsonl", [*rows, *rows_of(1)])
    code, err = answer(source, tmp_path / "c.csv")
    assert code == 0 and "答了 1 列，2 列答不了" in err and "不是合法的 UTF-8" in err
    source = write_rows(tmp_path / "t.jsonl", [{"prompt": "\ud800[MASK]"}, {"prompt": "天[MASK]"}])
    assert "答了 1 列，1 列答不了" in answer(source, tmp_path / "d.csv")[1]


def test_a_file_that_is_there_is_not_overwritten_unasked(answer, tmp_path):
    source, output = write_rows(tmp_path / "q.csv", rows_of(2)), tmp_path / "a.csv"
    output.write_text("something precious")
    code, err = answer(source, output)
    assert code == 2 and "--overwrite" in err and output.read_text() == "something precious"
    assert answer(source, output, "--overwrite")[0] == 0 and len(read_rows(output)) == 2
    (tmp_path / "b.csv.part").write_text("someone else's file")
    code, err = answer(source, tmp_path / "b.csv")
    assert code == 2 and "不是這支程式留下的" in err
    assert (tmp_path / "b.csv.part").read_text() == "someone else's file"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("q.csv", b"", "空的檔案"),
        ("q.csv", b"body,A,B\nx,1,2\n", "沒有 question、prompt 或 instruction 欄，有的是 body、A、B"),
        ("q.csv", "好,吃\n".encode("gbk"), "不是 UTF-8"),
        ("q.txt", b"x", "是純文字，看不出欄位"),
        ("q.doc", b"x", "是 Word 文件"),
        ("q.jpg", b"x", "不認得 .jpg 檔"),
        ("q.parquet", b"PAR1", "不是 parquet"),
        ("q.json", b"[" * 100_000, "不是 JSON"),
        ("q.json", b"[" * 70 + b"]" * 70, "巢狀超過"),
        ("gone.csv", None, "沒有這個檔案"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_ends_with_2_and_writes_nothing(
    answer, tmp_path, name, content, reason
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    code, err = answer(tmp_path / name, tmp_path / "a.csv")
    assert code == 2 and reason in err and "Traceback" not in err and sorted(tmp_path.iterdir()) == before


def test_a_flag_that_lacks_its_partner_is_said(answer, tmp_path):
    source = write_rows(tmp_path / "q.csv", rows_of(1))
    assert answer(source, source)[0] == 2 and answer(source, tmp_path / "a.txt")[0] == 2
    assert inference.main(["--input", str(source)]) == 2 and inference.main(["--output", "x.csv"]) == 2
    assert inference.main(["--input", str(source), "--output", "x.csv", "--prompt", "天"]) == 2


def test_a_stopped_run_goes_on_and_one_of_another_kind_is_refused(answer, tmp_path, monkeypatch):
    rows = rows_of(40)
    source, output = write_rows(tmp_path / "q.csv", rows), tmp_path / "a.jsonl"
    answer(source, tmp_path / "whole.jsonl", "--batch_size", "5")
    rounds, add = [], Journal.add

    def three_rounds(journal, records):
        if len(rounds) == 3:
            journal.stream.write(b'{"row": 16, "torn')  # the machine goes off in the middle of a line
            journal.stream.flush()
            journal.stream.close()
            raise KeyboardInterrupt
        rounds.append(len(records))
        add(journal, records)

    monkeypatch.setattr(Journal, "add", three_rounds)
    assert answer(source, output, "--batch_size", "5")[0] == 130 and not output.exists()
    monkeypatch.setattr(Journal, "add", add)
    code, err = answer(source, output, "--orders", "1")
    assert code == 2 and "orders 不同" in err
    code, err = answer(source, output, "--batch_size", "5")
    assert code == 0 and "已答 15/40 列" in err
    assert output.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_two_runs_do_not_write_one_file_at_once(answer, tmp_path):
    """The second one names the first, and touches nothing."""
    import socket

    source, output = write_rows(tmp_path / "q.csv", rows_of(3)), tmp_path / "a.jsonl"
    with locks.hold_locks([("x", locks.lock_path(output))]):
        before = sorted(tmp_path.iterdir())
        code, err = answer(source, output)
        assert code == 2 and "--output" in err and f"行程 {os.getpid()}，主機 {socket.gethostname()}" in err
        assert sorted(tmp_path.iterdir()) == before
    assert answer(source, output)[0] == 0 and [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_an_output_that_cannot_be_written_is_named_with_the_way_on_and_nothing_half_is_left(
    answer, tmp_path, monkeypatch, name
):
    source, output = write_rows(tmp_path / "q.csv", rows_of(6)), tmp_path / name
    replace = os.replace

    def full(one, other, **more):
        if str(other) == str(output):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(one, other, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        code, err = answer(source, output, "--batch_size", 3)
    assert code == 1 and f"--output {output} 寫不進去（磁碟滿了" in err and f"{name}.part，同一個指令" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{name}.part", "q.csv"])
    code, err = answer(source, output, "--batch_size", 3)
    assert code == 0 and "已答 6/6 列" in err and len(read_rows(output)) == 6


def test_answers_that_outgrow_the_disk_are_kept_as_far_as_they_went(answer, tmp_path, capsys):
    """A quota of the kernel's on the size of files."""
    source, output = write_rows(tmp_path / "q.csv", rows_of(20)), tmp_path / "a.csv"
    assert answer(source, tmp_path / "whole.csv", "--batch_size", 5)[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        code, err = answer(source, output, "--batch_size", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1 and "a.csv.part 寫不進去（檔案超過了大小的上限" in err and "同一個指令會接著做" in err
    code, err = answer(source, output, "--batch_size", 5)
    assert code == 0 and "已答 5/20 列" in err
    assert output.read_text() == (tmp_path / "whole.csv").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_from_outside_ends_a_file_in_order_and_it_goes_on(answer, tmp_path, monkeypatch, name):
    source, output = write_rows(tmp_path / "q.csv", rows_of(10)), tmp_path / "a.jsonl"
    add = Journal.add

    def ended(journal, records):
        add(journal, records)
        signal.raise_signal(getattr(signal, name))

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # we may run under nohup
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", ended)
        code, err = answer(source, output, "--batch_size", 5)
    signal.signal(signal.SIGHUP, before)
    assert code == 143 and "■ 已中斷；答好的存於" in err and "同一個指令會接著做" in err
    code, err = answer(source, output, "--batch_size", 5)
    assert code == 0 and "已答 5/10 列" in err and len(read_rows(output)) == 10


def test_no_link_is_followed_when_answers_are_written_and_odd_places_are_refused(answer, tmp_path):
    source = write_rows(tmp_path / "q.csv", rows_of(3))
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.jsonl.part").symlink_to(tmp_path / "victim")
    code, err = answer(source, tmp_path / "a.jsonl")
    assert code == 2 and "a.jsonl.part 打不開（是一個連結" in err
    (tmp_path / ".b.jsonl.half").symlink_to(tmp_path / "victim")
    assert answer(source, tmp_path / "b.jsonl")[0] == 0
    (tmp_path / ".c.jsonl.lock").symlink_to(tmp_path / "victim")
    code, err = answer(source, tmp_path / "c.jsonl")
    assert code == 2 and ".c.jsonl.lock 是一個連結" in err
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / "d.jsonl.part").mkdir()
    os.link(source, tmp_path / "same.csv")
    for place, said in (
        ("d.jsonl", "d.jsonl.part 打不開（是一個資料夾"), ("same.csv", "是同一個檔案"),
        ("q.csv/a.jsonl", "q.csv 不能寫入"), ("x" * 249 + ".jsonl", "檔名太長"),
    ):  # fmt: skip
        code, err = answer(source, tmp_path / place)
        assert code == 2 and said in err, (place, err)
    assert answer(source, tmp_path / "new/deep/a.csv")[0] == 0
    assert answer(source, tmp_path / ("天" * 80 + ".jsonl"))[0] == 0


@pytest.mark.parametrize("how", ["appended", "replaced"])
def test_a_file_that_changes_while_it_is_answered_ends_the_run_and_no_answer_is_taken_for_anothers(
    answer, tmp_path, monkeypatch, how
):
    """What is answered stays. With the former content the run goes on and ends as if nothing had happened;
    with the new one it is refused."""
    source, output = write_rows(tmp_path / "q.csv", rows_of(20)), tmp_path / "a.jsonl"
    assert answer(source, tmp_path / "whole.jsonl", "--batch_size", 5)[0] == 0
    former, add, rounds = source.read_bytes(), Journal.add, []

    def changing(journal, records):
        add(journal, records)
        rounds.append(records)
        if len(rounds) == 2:
            changed = former.replace("天".encode(), "地".encode()) + former.splitlines()[-1] + b"\n"
            if how == "replaced":  # as an editor saves it
                (tmp_path / "new").write_bytes(changed)
                (tmp_path / "new").replace(source)
            else:
                source.write_bytes(changed)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", changing)
        code, err = answer(source, output, "--batch_size", 5)
    assert code == 1 and "q.csv 在作答途中變了" in err and not output.exists()
    assert len((tmp_path / "a.jsonl.part").read_text().splitlines()) == 11
    code, err = answer(source, output, "--batch_size", 5)
    assert code == 2 and "input 不同" in err
    source.write_bytes(former)
    code, err = answer(source, output, "--batch_size", 5)
    assert code == 0 and "已答 10/20 列" in err
    assert output.read_text() == (tmp_path / "whole.jsonl").read_text()


@pytest.mark.parametrize(("method", "orders"), [("letter+prior", "1"), ("pmi", "1"), ("letter", "all")])
def test_files_are_answered_by_every_method(answer, tmp_path, method, orders):
    source = write_rows(tmp_path / "q.csv", rows_of(30))
    assert answer(source, tmp_path / "a.jsonl", "--scoring", method, "--orders", orders)[0] == 0
    small = answer(source, tmp_path / "b.jsonl", "--scoring", method, "--orders", orders, "--batch_size", "4")
    assert small[0] == 0
    for one, other in zip(read_rows(tmp_path / "a.jsonl"), read_rows(tmp_path / "b.jsonl"), strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


def test_the_answer_may_be_an_index(answer, tmp_path):
    source = write_rows(tmp_path / "q.csv", rows_of(5))
    answer(source, tmp_path / "a.csv")
    answer(source, tmp_path / "b.csv", "--answer_format", "index")
    letters, indices = (read_rows(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert [LETTERS.index(row["answer"]) for row in letters] == [int(row["answer"]) for row in indices]
    answer(source, tmp_path / "c.jsonl", "--answer_format", "index")
    answer(source, tmp_path / "d.parquet", "--answer_format", "index")
    whole, text = (read_rows(tmp_path / name) for name in ("c.jsonl", "d.parquet"))
    assert [str(row["answer"]) for row in whole] == [row["answer"] for row in text]
    assert all(isinstance(row["answer"], int) for row in whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.nightly)])
def test_several_processes_share_the_rows_and_give_the_same_file(answer, tmp_path, model_dir, launcher):
    source = write_rows(tmp_path / "q.csv", rows_of(60) + [{**rows_of(1)[0], "question": ""}])
    answer(source, tmp_path / "one.jsonl", "--batch_size", "7")
    start = ["torchrun", "--nproc_per_node", "2", "--master_port", free_port()]
    if launcher == "accelerate":  # on CPUs it starts one process, whatever it is asked for
        start = ["accelerate", "launch", "--cpu", "--num_processes", "2"]
    words = ["--model_path", model_dir, "--cpu", "--input", source, "--output", tmp_path / "two.jsonl"]
    done = run_process([*command(*start), SCRIPT, *words, "--batch_size", "7"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()


# ---- 100,000 questions -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_many_questions_are_answered_once_each_in_little_memory_through_kills_at_random(tmp_path, count):
    model = make_model_dir(tmp_path / "m", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    rng = random.Random(4)
    texts = [random_text(rng, 4, 20) for _ in range(997)]
    with (tmp_path / "q.csv").open("w", encoding="utf-8") as stream:
        stream.write("id,question,A,B,C,D\n")
        for number in range(count):
            options = ",".join(texts[(number * 7 + i) % 997][:4] for i in range(4))
            stream.write(f"{number},{texts[number % 997]}{number}？,{options}\n")
    write_csv(tmp_path / "one.csv", [["0", "天？", "地", "玄"]], header=("id", "question", "A", "B"))
    words = [sys.executable, SCRIPT, "--model_path", model, "--cpu", "--scoring", "letter", "--orders", "1"]

    def command_for(name):
        return list(map(str, [*words, "--input", tmp_path / name, "--output", tmp_path / f"{name}.jsonl"]))

    code, alone = peak_memory(command_for("one.csv"), tmp_path)
    assert code == 0
    journal, kills = tmp_path / "q.csv.jsonl.part", 0
    while kills < (4 if count > 10_000 else 1):
        size = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(
            command_for("q.csv"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and (not journal.exists() or journal.stat().st_size <= size + 1000):
            time.sleep(0.05)  # it is at work
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
        kills += 1
    code, peak = peak_memory(command_for("q.csv"), tmp_path)
    assert code == 0
    found = [json.loads(line) for line in (tmp_path / "q.csv.jsonl").open(encoding="utf-8")]
    assert [row["row"] for row in found] == list(range(1, count + 1))
    assert [row["id"] for row in found] == [str(number) for number in range(count)]
    assert all(row["answer"] in "ABCD" and row["error"] is None for row in found)
    assert peak - alone < 300e6, f"{(peak - alone) / 1e6:.0f} MB above a file of one question"


@pytest.mark.slow
def test_a_table_is_read_in_blocks_that_do_not_grow_with_it(tmp_path):
    import tracemalloc

    for suffix in SUFFIXES:
        source = write_rows(tmp_path / f"q{suffix}", rows_of(4000))
        tracemalloc.start()
        assert sum(1 for _ in read_table(source)) == 4000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_500_000, (suffix, peak)
