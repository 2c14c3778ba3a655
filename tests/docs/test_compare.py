"""docs/compare.md: each of its commands runs, against a hub and a server of the tests' own."""

import json
import re
import shlex
import subprocess

import pytest
from conftest import ROOT, make_exam_dir, write_rows
from loopback_hub import LoopbackHub, use_in_process
from loopback_openai import LoopbackServer
from test_docs import LINK, LONGEST, OF_THIS_MACHINE, both, page, text_of
from test_readme import commands

import inference
from finetune.data.known_exams import known_exam
from finetune.prompts.protocol import PROTOCOLS

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
OF_SERVER = "http://127.0.0.1:8000/v1"


def test_both_languages_hold_the_same_commands_and_every_protocol():
    english, chinese = both("compare")
    assert commands(english) == commands(chinese) and len(commands(english)[1]) >= 10
    for name in PROTOCOLS:
        assert f"--protocol {name}" in text_of(english) and f"--protocol {name}" in text_of(chinese)
    for one in (english, chinese):
        assert len(text_of(one).splitlines()) <= LONGEST and not OF_THIS_MACHINE.search(text_of(one))
        for link in LINK.findall(text_of(one)):
            assert link.startswith("https://") or (ROOT / "docs" / link).is_file(), link


@pytest.mark.slow
def test_every_command_runs_in_its_order(tmp_path, monkeypatch, qwen_dir, capsys):
    exams = {}
    for revision in ("v1.0", "v1.1"):
        exams[revision] = tmp_path / "hub" / revision
        make_exam_dir(exams[revision] / "data", dev=5, val=1, test=3, subjects=("physics", "trade"))
    options = list("甲乙丙丁戊己庚辛壬癸")
    row = {"options": options, "answer": "J", "answer_index": 9, "category": "math"}
    pro = [{"question": f"第 {number} 題？", **row} for number in range(3)]
    for split in ("test", "validation"):
        (tmp_path / "hub/pro/data").mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / f"hub/pro/data/{split}-00000-of-00001.parquet", pro)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    datasets = {
        "ikala/tmmluplus": {**exams, "main": exams["v1.1"]},
        "TIGER-Lab/MMLU-Pro": {known_exam("mmlu-pro").revision: tmp_path / "hub/pro"},
    }
    ran = 0
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (
        LoopbackHub({MODEL: qwen_dir}, datasets) as hub,
        LoopbackServer(qwen_dir, names=["my-model"]) as server,
    ):
        use_in_process(hub, monkeypatch, tmp_path / "cache")
        for line in commands(page("compare"))[1]:
            if not line.startswith("python "):
                subprocess.run(["bash", "-c", line], check=True)
                continue
            words = shlex.split(line.removeprefix("python inference.py ").replace(OF_SERVER, server.url))
            words += ["--cpu"] * (OF_SERVER not in line)
            words += ["--max_new_tokens", "16"] * any(name in line for name in ("ievals", "twinkle-box"))
            code = inference.main(words)
            err = capsys.readouterr().err
            assert code == 0, f"{line}\n{err[-3000:]}"
            folder = re.search(r"--report (\S+)", line)
            assert (tmp_path / "run" / folder[1] / "index.html").exists()
            ran += 1
    assert ran >= 12
    results = json.loads((tmp_path / "run/report_lm_eval/results.json").read_text(encoding="utf-8"))
    assert results["protocol"]["num_fewshot"] == 5
    assert results["data"]["source"].startswith("ikala/tmmluplus v1.1 (")
