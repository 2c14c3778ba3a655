"""Bad input: exit 2, one clear message, nothing written or overwritten."""

from __future__ import annotations

import shutil

import pytest
from conftest import write_csv

GOOD = ["天地玄黃？", "地", "玄", "黃", "宇", "A"]


def tree(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--subjects", "phisics"], "是不是 physics"),
        (["--max_step", "3"], "--max_step，是不是 --max_steps"),
        (["--dataset", "missing.csv"], "沒有這個檔案或資料夾"),
        (["--dataset", "no_option.csv"], "沒有對應的選項"),
        (["--dataset", "empty.csv"], "空的檔案"),
        (["--dataset", "bare"], "空的資料夾"),
        (["--model", "./missing"], "沒有這個資料夾"),
        (["--model", "bare"], "config.json"),
        (["--model", "above"], "是不是 above/model？"),
        (["--model", "weightless"], "沒有權重"),
        (["--load_dir", "bare", "--ckpt_id", "step9"], "沒有這個檢查點"),
        (["--ckpt_id", "step9"], "--load_dir"),
        (["--train_batch_size", "10", "--micro_batch_size", "3"], "9、12"),
        (["--precision", "fp16"], "fp16"),
        (["--output_dir", "no_option.csv"], "是一個檔案"),
        (["--max_length", "16"], "沒有一題放得下"),
        (["--demo", "--subjects", "physics"], "--demo"),
        (["--config", "missing.yaml"], "--config"),
        (["--config"], "--config 後面少了值"),
        (["--output_dir", "."], "目前的資料夾在裡面"),
        (["--output_dir", "photos"], "不是這支程式存的模型"),
        (["--output_dir", "runs", "--save_dir", "runs/checkpoints"], "--save_dir在裡面"),
        (["--dataset", "photos/cat.jpg"], "不認得 .jpg 檔"),
    ],
)
def test_bad_input_ends_with_2_one_message_and_nothing_written(
    train, tmp_path, model_dir, capsys, argv, says
):
    write_csv(tmp_path / "no_option.csv", [GOOD, [*GOOD[:5], "E"]])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "bare").mkdir()
    shutil.copytree(model_dir, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(tmp_path / "weightless", tmp_path / "above/model")
    (tmp_path / "my_bert_finetuned_model_hf_format").mkdir()
    (tmp_path / "my_bert_finetuned_model_hf_format/model.safetensors").write_text("the former model")
    (tmp_path / "my_bert_finetuned_model_hf_format/run_card.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    before = tree(tmp_path)
    assert train(*argv, base="--demo" not in argv) == 2
    seen = capsys.readouterr()
    assert says in seen.err and seen.err.count("✗") == 1 and "Traceback" not in seen.err and not seen.out
    assert tree(tmp_path) == before


def test_from_scratch_needs_no_weights_and_says_that_they_are_random(train, tmp_path, model_dir, capsys):
    bare = shutil.copytree(model_dir, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    assert train("--model", bare, "--from_scratch", "--max_steps", 1, "--exam_limit", 2) == 0
    assert "從頭建立（隨機初始化）" in capsys.readouterr().err


def test_problems_of_flags_data_and_model_come_together(train, tmp_path, capsys):
    write_csv(tmp_path / "bad.csv", [GOOD, [*GOOD[:5], "E"]])
    assert train("--model", "./missing", "--dataset", "bad.csv", "--ckpt_id", "step1") == 2
    seen = capsys.readouterr().err
    assert all(words in seen for words in ("有 4 個問題", "./missing", "bad.csv:3", "--ckpt_id"))


def test_bad_rows_are_left_out_on_request_and_said(train, tmp_path, capsys):
    rows = [[f"{'天' * n}？", "地", "玄", "黃", "宇", "A"] for n in range(1, 20)]
    write_csv(tmp_path / "some.csv", [*rows, [*GOOD[:5], "Z"]])
    words = ["--dataset", "some.csv", "--on_bad_rows", "skip", "--max_steps", 1]
    assert train(*words) == 0
    seen = capsys.readouterr().err
    assert "19 題" in seen and "略過 1 列" in seen and "some.csv:21" in seen
