"""Flags and messages of both scripts."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import fine_tuning_llm
import inference


@pytest.mark.slow
@pytest.mark.parametrize("script", ["fine_tuning_llm.py", "inference.py"])
def test_help_answers_in_half_a_second(script):
    """By the clock, or where other processes have the cores by the time of the processor."""
    seconds = []
    for _ in range(5):
        start, used = time.perf_counter(), os.times()
        shown = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
        )
        spent = os.times()
        cpu = spent.children_user + spent.children_system - used.children_user - used.children_system
        seconds.append(min(time.perf_counter() - start, cpu))
    assert min(seconds) < 0.5  # a busy machine only adds
    assert "--cpu" in shown.stdout


@pytest.mark.parametrize("script", ["fine_tuning_llm", "inference"])
def test_nothing_heavy_is_imported_before_the_flags_are_read(script):
    heavy = "torch transformers datasets deepspeed scipy matplotlib"
    code = f"import sys, {script}; sys.exit(any(name in sys.modules for name in '{heavy}'.split()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_all_problems_of_the_flags_are_reported_at_once_with_value_and_way_out(capsys):
    code = fine_tuning_llm.main(
        ["--num_epohcs", "3", "--train_batch_size", "zero", "--split_ratio", "1,2", "--objective", "foo"]
    )
    seen = capsys.readouterr().err
    assert code == 2
    for words in (
        "--num_epohcs，是不是 --num_epochs",
        "--train_batch_size 是 'zero'",
        "--split_ratio 是 '1,2'",
        "--objective 是 'foo'",
    ):
        assert words in seen
    assert "Traceback" not in seen


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "1e"])
def test_a_learning_rate_that_is_no_positive_number_is_refused(value, capsys):
    assert fine_tuning_llm.main([f"--learning_rate={value}"]) == 2
    assert "--learning_rate" in capsys.readouterr().err


@pytest.mark.slow
def test_hyphens_and_underscores_are_the_same(train, capsys):
    assert train("--dry-run", "--max-steps", "7") == 0
    assert '"total_steps": 7' in capsys.readouterr().out


def test_flags_win_over_the_config_file(train, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("max_steps: 5\nlearning-rate: 1e-4\ncpu: true\n")
    assert train("--dry_run", "--config", "run.yaml", "--max_steps", "7") == 0
    shown = capsys.readouterr().out
    assert '"total_steps": 7' in shown and '"learning_rate": 0.0001' in shown


def test_a_second_name_of_a_flag_is_known_in_the_config_file_too(
    train, tmp_path, model_dir, exam_dir, capsys
):
    (tmp_path / "run.yaml").write_text(f"model: {model_dir}\ndataset: {exam_dir}\n")
    assert train("--dry_run", "--cpu", "--config", "run.yaml", base=False) == 0
    assert f'"model_name_or_path": "{model_dir}"' in capsys.readouterr().out


def test_an_unknown_key_in_the_config_file_is_named_with_its_neighbour(train, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("max_step: 5\nseed: -3\n")
    assert train("--config", "run.yaml") == 2
    seen = capsys.readouterr().err
    assert "'max_step'，是不是 max_steps" in seen and "--seed 是 '-3'" in seen


def test_a_flag_without_its_value_is_said_in_chinese(capsys):
    assert inference.main(["--prompt"]) == 2
    assert "--prompt 後面少了值" in capsys.readouterr().err


def test_what_goes_wrong_inside_is_one_line_and_a_traceback_only_on_request(monkeypatch, capsys):
    def broken(*_):
        raise ValueError("這裡壞了")

    monkeypatch.setattr(inference, "predict", broken)
    assert inference.main(["--prompt", "天"]) == 1
    seen = capsys.readouterr().err
    assert "這裡壞了" in seen and "Traceback" not in seen
    assert inference.main(["--prompt", "天", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", None])
def test_a_ranks_exit_code_is_its_own_whatever_aborts_as_the_interpreter_ends(rank):
    """As gloo's threads do now and then: here a handler of C's own exit() that always does."""
    code = (
        "import atexit, ctypes; from finetune.runtime import console; c = ctypes.CDLL(None);"
        "c.__cxa_atexit(ctypes.cast(c.abort, ctypes.c_void_p), None, None);"
        "atexit.register(print, 'waited at exit'); print('printed'); console.exit_process(7)"
    )
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    env |= {"RANK": rank} if rank else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["printed", "waited at exit", ""]
    assert done.returncode == (
        7 if rank else -signal.SIGABRT
    )  # the second shows that the abort is a real one


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--objective", "cloze", "--exam_orders", "cyclic"], "--exam_orders cyclic 沒有作用"),
        (["--demo", "--task", "mlm", "--min_chars", "9"], "--min_chars"),
    ],
)
def test_flags_that_would_be_passed_over_are_refused(train, capfd, flags, says):
    assert train(*flags, base="--demo" not in flags) == 2
    assert says in capfd.readouterr().err
