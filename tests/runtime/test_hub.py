"""The hub path: the real client libraries against a loopback server, and against nothing at all."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time

import pytest
import yaml
from conftest import ROOT, free_port, losses, make_exam_dir, run_process
from forked import run_bare, run_ranks
from loopback_hub import COMMIT, LoopbackHub

from finetune.data.subjects import SUBJECTS

SCRIPT = [sys.executable, ROOT / "fine_tuning_llm.py"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The 66 subjects as they lie on the hub: below data/, beside a README and a script."""
    folder = tmp_path_factory.mktemp("tmmluplus")
    make_exam_dir(folder / "data", dev=2, val=2, test=2, subjects=SUBJECTS)
    splits = {"train": "dev", "validation": "val", "test": "test"}
    configs = [
        {
            "config_name": subject,
            "data_files": [{"split": s, "path": f"data/{subject}_{splits[s]}.csv"} for s in splits],
        }
        for subject in SUBJECTS
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# TMMLU+\n")
    (folder / "tmmluplus.py").write_text("raise SystemExit('a loading script must never run')\n")
    return folder


def environment(url: str, home, **more: str) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }


@pytest.mark.slow
def test_with_no_flag_but_the_steps_it_downloads_trains_and_then_runs_from_the_cache(
    tmp_path, model_dir, dataset
):
    with LoopbackHub({"bert-base-chinese": model_dir}, {"ikala/tmmluplus": dataset}) as hub:
        env = environment(hub.url, tmp_path / "home")
        first = run_bare([*SCRIPT, "--cpu", "--max_steps", 2], tmp_path, **env)
        assert first.returncode == 0, first.stderr[-2000:]
        assert f"ikala/tmmluplus v1.1 ({COMMIT[:12]})" in first.stderr and "66 科" in first.stderr
        assert len(losses(tmp_path)) == 2
        listings = [path for path in hub.asked if path.startswith("/api/datasets/")]
        assert len(listings) <= 2, listings  # one snapshot, not 66 builders
        assert not any("tmmluplus.py" in path for path in hub.asked)
    again = run_bare([*SCRIPT, "--cpu", "--max_steps", 2, "--seed", 1], tmp_path, **env)  # the hub is gone
    assert again.returncode == 0, again.stderr[-2000:]
    assert "只用本機快取" in again.stderr


@pytest.mark.slow
def test_the_whole_set_takes_ten_seconds_from_a_loopback_hub_and_two_and_two_requests_from_the_cache(
    tmp_path, dataset
):
    """By the clock, or where other processes have the cores by the processor's time; libraries are loaded."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import datasets, huggingface_hub
from finetune.data.exam import read_exam
start, used = time.perf_counter(), time.process_time()
exam = read_exam("ikala/tmmluplus", "v1.1")
print(len(exam), min(time.perf_counter() - start, time.process_time() - used))
"""
    with LoopbackHub({}, {"ikala/tmmluplus": dataset}) as hub:
        env = environment(hub.url, tmp_path)
        for limit, requests in ((10, 3 * 2 * 66 + 20), (2, 2)):  # a file takes two: its head, its text
            before = len(hub.asked)
            done = run_process([sys.executable, "-c", code], tmp_path, **env)
            count, seconds = done.stdout.split()
            assert int(count) == 66 * 6 and float(seconds) < limit, done.stdout
            assert len(hub.asked) - before <= requests, hub.asked[before:]


@pytest.mark.slow
def test_a_causal_model_and_its_rows_come_from_the_hub_by_name_and_the_card_knows_the_weights(
    tmp_path, qwen_dir
):
    import hashlib

    import pyarrow
    import pyarrow.parquet

    rows = tmp_path / "alpaca/data"
    rows.mkdir(parents=True)
    columns = {"instruction": ["天地"] * 9, "input": list("玄黃宇宙洪荒日月盈"), "output": ["昃"] * 9}
    pyarrow.parquet.write_table(pyarrow.table(columns), rows / "train-00000-of-00001.parquet")
    with LoopbackHub({"Qwen/Qwen2.5-0.5B": qwen_dir}, {"tatsu-lab/alpaca": rows.parent}) as hub:
        env = environment(hub.url, tmp_path / "home")
        flags = [
            "--task",
            "sft",
            "--dataset",
            "tatsu-lab/alpaca",
            "--cpu",
            "--max_steps",
            2,
            "--lora_rank",
            2,
        ]
        done = run_bare([*SCRIPT, *flags], tmp_path, **env)
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"tatsu-lab/alpaca main ({COMMIT[:12]})" in done.stderr
        assert any("/revision/main" in path for path in hub.asked)
    card = json.loads((tmp_path / "my_bert_finetuned_model_hf_format/run_card.json").read_text())
    weights = (qwen_dir / "model.safetensors").read_bytes()
    base = {"stage": "base", "model": "Qwen/Qwen2.5-0.5B", "sha256": hashlib.sha256(weights).hexdigest()}
    assert card["lineage"][0] == base


@pytest.mark.slow
def test_a_revision_that_is_not_there_is_said(tmp_path, model_dir, dataset):
    with LoopbackHub({"bert-base-chinese": model_dir}, {"ikala/tmmluplus": dataset}) as hub:
        env = environment(hub.url, tmp_path / "home")
        done = run_bare([*SCRIPT, "--cpu", "--revision", "v9", "--max_steps", 1], tmp_path, **env)
    assert done.returncode == 2 and "--revision v9" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["refuses", "hangs", "is not a name"])
def test_without_network_or_cache_it_ends_in_twenty_seconds_with_three_ways_on(tmp_path, answers):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers == "hangs":
            silent.listen()  # accepts and never answers
        port = silent.getsockname()[1] if answers == "hangs" else free_port()
        url = "http://hub.invalid" if answers == "is not a name" else f"http://127.0.0.1:{port}"
        start = time.perf_counter()
        done = run_bare([*SCRIPT, "--cpu", "--max_steps", 2], tmp_path, **environment(url, tmp_path / "home"))
    assert time.perf_counter() - start < 20
    assert done.returncode == 2
    for words in ("ikala/tmmluplus", "HF_ENDPOINT", "--dataset", "--demo"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == []


@pytest.mark.slow
def test_a_model_that_cannot_be_had_is_said_too(tmp_path, exam_dir):
    url = f"http://127.0.0.1:{free_port()}"
    words = ["--cpu", "--max_steps", 2, "--dataset", exam_dir]
    done = run_bare([*SCRIPT, *words], tmp_path, **environment(url, tmp_path / "home"))
    assert (
        done.returncode == 2
        and "--model_name_or_path bert-base-chinese" in done.stderr
        and "--demo" in done.stderr
    )


@pytest.mark.slow
def test_inference_takes_a_model_from_the_hub_by_name(tmp_path, model_dir):
    words = ["--model_path", "bert-base-chinese", "--cpu", "--prompt", "天[MASK]", "--json"]
    with LoopbackHub({"bert-base-chinese": model_dir}, {}) as hub:
        env = environment(hub.url, tmp_path / "home")
        done = run_bare([sys.executable, ROOT / "inference.py", *words], tmp_path, **env)
    assert done.returncode == 0 and done.stdout.count("probability") == 5, done.stderr[-2000:]


@pytest.mark.slow
def test_an_exam_is_held_on_the_hubs_questions_by_a_model_of_the_hub(tmp_path, model_dir, dataset):
    words = ["--model_path", "bert-base-chinese", "--cpu", "--exam", "ikala/tmmluplus", "--report", "r"]
    command = [sys.executable, ROOT / "inference.py", *words, "--scoring", "joint"]
    with LoopbackHub({"bert-base-chinese": model_dir}, {"ikala/tmmluplus": dataset}) as hub:
        env = environment(hub.url, tmp_path / "home")
        done = run_bare(command, tmp_path, **env)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads((tmp_path / "r/results.json").read_text())
        assert found["test"]["model"]["n"] == 2 * 66 and found["test"]["macro_4"]["subjects"] == 66
        assert f"({COMMIT[:12]})" in found["facts"]["題庫"]
        looked = [sys.executable, ROOT / "inference.py", "--inspect", "ikala/tmmluplus", "--json"]
        seen = run_bare(looked, tmp_path, **env)
        assert seen.returncode == 0 and json.loads(seen.stdout)["rows"] == 6 * 66
    start = time.perf_counter()
    away = run_bare([*command[:-3], "r", "--exam", "someone/else"], tmp_path, **env)
    assert time.perf_counter() - start < 20 and away.returncode == 2
    assert "--exam demo" in away.stderr and "Traceback" not in away.stderr


MOODS = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from loopback_hub import LoopbackHub
from finetune.data import hub_dataset
from finetune.runtime import hub, hub_health
from finetune.runtime.errors import UserError
with LoopbackHub({{}}, {{"some/rows": Path({rows!r})}}) as here:
    import os
    os.environ["HF_ENDPOINT"] = here.url
    assert hub.go_offline_if_unreachable()
    from finetune.runtime import hub_client  # with huggingface_hub, which reads HF_ENDPOINT at its import
    hub_health.PATIENCE = hub_client.WINDOW = 1.5
    hub_client.SECONDS = 1.0
    for here.mood in ("hangs", "drips", "is busy", "sends on", "halves", "floods", "pours", ""):
        hub_health.HEALTH.__init__()
        began = time.monotonic()
        try:
            kind = "models" if here.mood in ("floods", "pours") else "datasets"
            here.repos[kind, "some/rows"] = Path({rows!r})
            if kind == "models":
                assert hub.fetch_small("some/rows") is None
                raise hub.cannot_fetch("模型", "some/rows", "--model_path", "")
            folder, _ = hub_dataset.fetch_dataset("some/rows", "main")
            said = sorted(path.name for path in folder.iterdir())
        except UserError as error:
            said = str(error)
        print([here.mood, time.monotonic() - began, said])
    here.mood = "has no list"
    here.repos["models", "other/rows"] = Path({rows!r})
    print([here.mood, 0, sorted(path.name for path in hub.fetch_small("other/rows").iterdir())])
"""


@pytest.mark.slow
def test_a_hub_that_hangs_drips_floods_or_puts_off_is_left_with_its_reason_and_a_good_one_is_not(tmp_path):
    import ast

    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "a.csv").write_text("question,A,B,answer\n" + "天？,地,玄,A\n" * 2000)
    (rows / "config.json").write_text("{}")
    code = MOODS.format(root=str(ROOT), tests=str(ROOT / "tests"), rows=str(rows))
    words = [sys.executable, "-c", code]
    done = run_process(words, tmp_path, timeout=200, **environment("", tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = {mood: (seconds, said) for mood, seconds, said in map(ast.literal_eval, done.stdout.splitlines())}
    assert "a.csv" in found.pop("")[1]
    assert found.pop("has no list")[1] == ["config.json"]  # what says whether a model brings code of its own
    assert all(seconds < 30 for seconds, _ in found.values()), found  # by the real bounds, 60
    assert "太慢" in found["drips"][1]
    assert all("沒有有效回應" in found[mood][1] for mood in ("hangs", "is busy")), found
    for mood in ("floods", "pours"):
        assert "config.json" in found[mood][1] and "16,777,216" in found[mood][1], found[mood]
    assert all("HF_ENDPOINT" in said for _, said in found.values()), found


@pytest.mark.slow
def test_two_ranks_download_once(tmp_path, model_dir, dataset):
    with LoopbackHub({"bert-base-chinese": model_dir}, {"ikala/tmmluplus": dataset}) as hub:
        env = environment(hub.url, tmp_path / "home")
        words = ["--cpu", "--max_steps", 1, "--exam_limit", 2]
        done = run_ranks(tmp_path, SCRIPT[1], *words, bare=True, **env)
        assert done.returncode == 0, done.stderr[-2000:]
        fetched = [path for path in hub.asked if path.endswith("model.safetensors") and "resolve" in path]
        assert len(fetched) <= 4, fetched  # a HEAD and a GET of rank 0, at most a HEAD of rank 1
    shutil.rmtree(tmp_path / "home")
