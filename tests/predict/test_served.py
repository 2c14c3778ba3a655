"""A model behind an OpenAI-compatible server, by the flags of a local one, while the server fails."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment, random_text, write_csv
from loopback_openai import LoopbackServer, make_letter_model

import inference
from finetune.evaluation.evaluator import compute_metrics, letter, run_exam
from finetune.predict import causal
from finetune.predict.asking import asking_of
from finetune.predict.causal import CausalLMPredictor
from finetune.runtime.journal import Journal
from finetune.runtime.openai_client import Patience

STORM = ["busy", "down", "cut", "garbage", "proxy", (500, "worker died"), (429, "wait", ("Retry-After", "x"))]
LONG = random_text(random.Random(0), 900, 900)  # more than 512 tokens
SHORT = ("--max_new_tokens", "4")
KEY = "sk-secret-0123456789"


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    return make_letter_model(tmp_path_factory.mktemp("served") / "letters")


@pytest.fixture(scope="module")
def local(letters) -> CausalLMPredictor:
    return CausalLMPredictor(*inference.load_model(letters, "cpu"))


@pytest.fixture
def server(letters, monkeypatch):
    monkeypatch.setattr(Patience, "pause", lambda self, failures: 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with LoopbackServer(letters) as running:
        yield running


@pytest.fixture
def exam(tmp_path) -> Path:
    rng = random.Random(5)
    rows = [
        [random_text(rng, 6, 30) + "？", *(random_text(rng, 1, 6) for _ in range(4)), rng.choice("ABCD")]
        for _ in range(6)
    ]
    return write_csv(tmp_path / "exam.csv", rows)


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """Runs inference.main on the server; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv, url: str = "") -> tuple[int, str, str]:
        capsys.readouterr()
        code = inference.main(["--model_path", url or server.url, *map(str, argv)])
        told = capsys.readouterr()
        assert "Traceback" not in told.err or "--debug" in argv
        return code, told.out, told.err

    return run


def records(folder: Path) -> list[dict]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# ---- figures -----------------------------------------------------------------------------------------------

WAYS = {
    "raw loglikelihood": ["--protocol", "lm-eval"],
    "raw letter": ["--prompt_format", "raw", "--orders", "1"],
    "chat letter": ["--orders", "cyclic"],
    "letter+prior": ["--scoring", "prior"],
    "generate": ["--scoring", "generate", "--max_new_tokens", "8", "--stop", "D"],
}


@pytest.mark.parametrize("way", WAYS)
def test_figures_through_a_failing_server_are_those_of_the_model_itself(run, server, local, exam, way):
    server.faults = [fault for one in STORM * 2 for fault in (one, "")]
    code, _, err = run("--exam", exam, "--report", "r", "--skip_option_only", *WAYS[way])
    assert code == 0 and "個請求重試過才有回答" in err
    rows = records(exam.parent / "r")

    flags = inference.parse_args(["--exam", str(exam), *WAYS[way]])
    from finetune.data.exam import read_exam

    questions = read_exam(str(exam)).questions[""]
    local.ask(asking_of(flags, True), {}, flags.decoding or inference.decoding_of(flags))
    method = local.method(flags.scoring)
    wanted = run_exam(local.score, questions, method, "1" if method == "generate" else flags.orders)
    assert [row["id"] for row in rows] == [question.id for question in questions]
    assert [row["prediction"] for row in rows] == [letter(chosen) for chosen in wanted.predictions]
    if method == "generate":
        assert [row["reply"] for row in rows] == [wanted.scores.replies[at] for at in range(6)]
    else:
        for row, scores in zip(rows, wanted.scores, strict=True):
            assert row["scores"] == pytest.approx(scores, abs=1e-4)
    figures = results(exam.parent / "r")["all"]
    assert figures["model"]["accuracy"] == compute_metrics(wanted)["model"]["accuracy"]
    assert len(set(server.answered)) == len(server.answered)  # nothing that was answered was asked twice


@pytest.mark.parametrize("echo", ["token", "ignored", "refused"])
def test_where_a_server_does_not_echo_the_next_tokens_give_the_same_log_likelihoods(
    run, server, local, exam, echo
):
    assert run("--exam", exam, "--report", "full", "--skip_option_only", "--protocol", "lm-eval")[0] == 0
    server.echo, server.usage = echo, False
    assert run("--exam", exam, "--report", "r", "--skip_option_only", "--protocol", "lm-eval")[0] == 0
    for row, same in zip(records(exam.parent / "r"), records(exam.parent / "full"), strict=True):
        listed = [value for value in row["scores"] if value in same["scores"]]
        assert row["prediction"] == same["prediction"] or "skipped" in row
        assert listed == row["scores"] or echo != "token"


def test_a_letter_that_is_not_listed_is_scored_by_an_echo(run, server, exam):
    told = []
    for top in (20, 3):  # of four letters, one is not among three tokens
        server.top = top
        code, _, err = run("--exam", exam, "--report", f"r{top}", "--prompt_format", "raw", "--orders", "1")
        assert code == 0
        told.append([row["scores"] for row in records(exam.parent / f"r{top}")])
    assert "改以 echo 逐一計分" in err
    for whole, echoed in zip(*told, strict=True):
        assert echoed == pytest.approx(whole, abs=1e-4)


def test_without_log_probabilities_auto_reads_replies_and_letter_is_refused(run, server, exam):
    server.logprobs = False
    code, _, err = run("--exam", exam, "--report", "r", "--max_new_tokens", "4", "--stop", "D")
    assert code == 0 and "不給 logprobs" in err and "--scoring auto 改用 generate" in err
    assert results(exam.parent / "r")["protocol"]["scoring"] == "generate"
    code, _, err = run("--exam", exam, "--report", "s", "--scoring", "letter")
    assert code == 2 and "--scoring letter" in err and "請改用 --scoring generate" in err


def test_a_question_that_the_server_refuses_is_skipped_with_its_reason(run, server, tmp_path):
    exam = write_csv(tmp_path / "exam.csv", [["天？", *"甲乙丙丁", "A"], [LONG, *"甲乙丙丁", "B"]])
    assert run("--exam", exam, "--report", "r", "--skip_option_only")[0] == 0
    short, long = records(tmp_path / "r")
    assert short["prediction"] and long["prediction"] is None
    assert "maximum context length is 512" in long["skipped"]


def test_refused_cut_and_thinking_replies_are_told_apart(run, server, tmp_path):
    exam = write_csv(tmp_path / "exam.csv", [["天？", *"甲乙丙丁", "A"]])
    ask = ("--exam", exam, "--report", "r", "--skip_option_only", "--scoring", "generate", *SHORT)
    for change, outcome in (
        ({"finish_reason": "content_filter", "message": {"content": None}}, "refused"),
        ({"finish_reason": "stop", "message": {"content": None, "refusal": "不行"}}, "refused"),
        ({"finish_reason": "length", "message": {"content": "", "reasoning": "A"}}, "truncated"),
        ({"finish_reason": "stop", "message": {"content": "答案是 A", "reasoning_content": "B"}}, "answered"),
        ({"finish_reason": "stop", "message": {"content": [{"type": "text", "text": "A"}]}}, "answered"),
    ):
        server.changes = change
        assert run(*ask)[0] == 0
        assert records(tmp_path / "r")[0]["outcome"] == outcome


def test_evidence_says_where_the_model_runs_and_that_its_precision_is_not_known(run, server, exam):
    code, _, err = run("--exam", exam, "--report", "r", "--skip_option_only", "--orders", "1")
    told = results(exam.parent / "r")
    assert code == 0 and told["environment"]["precision"] == "unknown (server)"
    assert told["environment"]["url"] == server.url and told["environment"]["served_model"] == "tiny"
    assert told["environment"]["server_entry"] == {"id": "tiny", "owned_by": "tests", "max_model_len": 512}
    assert json.loads(told["prompt"]["text"])[-1]["role"] == "user" and told["prompt"]["tokens"] == 0
    assert server.most_at_once <= 8


# ---- a run that ends early ---------------------------------------------------------------------------------


def stopping_after(monkeypatch, count: int) -> None:
    """A Ctrl-C comes once so many answers are on the disk."""
    add, left = Journal.add, [count]

    def stopped(self, rows):
        add(self, rows)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stopped)


def test_after_a_ctrl_c_the_same_command_asks_only_what_is_missing(run, server, exam, monkeypatch):
    ask = ("--exam", exam, "--report", "r", "--skip_option_only", "--concurrency", "1")
    with monkeypatch.context() as patch:
        stopping_after(patch, 9)
        code, _, err = run(*ask)
    assert code == 130 and "同一個指令會接著做" in err
    assert sorted(os.listdir("r")) == ["answers.part.jsonl"]
    code, _, err = run(*ask, "--scoring", "generate")
    assert code == 2 and "scoring" in err and "換一個 --report" in err
    code, _, err = run(*ask)
    assert code == 0 and "已有 9 個回答" in err
    assert not (exam.parent / "r/answers.part.jsonl").exists() and (exam.parent / "r/index.html").exists()
    probes = 2  # what the server can do is asked at each start
    assert len(server.asked) - probes <= 6 * 4 + 1  # one may have been under way


@pytest.mark.parametrize("sampling", [(), ("--do_sample", "--seed", "3")])
def test_replies_of_a_local_model_go_on_too_and_are_the_same(
    run, letters, exam, tmp_path, monkeypatch, sampling
):
    monkeypatch.setattr(causal, "ROUND", 2)
    rounds, generate = [], CausalLMPredictor.generate
    ask = ("--exam", exam, "--skip_option_only", "--scoring", "generate", "--max_new_tokens", "4", "--cpu")
    assert run(*ask, *sampling, "--report", "whole", url=str(letters))[0] == 0
    with monkeypatch.context() as patch:
        stopping_after(patch, 2)
        assert run(*ask, *sampling, "--report", "r", url=str(letters))[0] == 130

    def counted(self, prompts, *more):
        rounds.append(len(prompts))
        return generate(self, prompts, *more)

    monkeypatch.setattr(CausalLMPredictor, "generate", counted)
    assert run(*ask, *sampling, "--report", "r", url=str(letters))[0] == 0
    assert rounds == [2] and records(tmp_path / "r") == records(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_loses_no_answer_and_asks_none_twice(run, server, exam, tmp_path):
    ask = ["--exam", str(exam), "--report", "r", "--skip_option_only", "--concurrency", "3"]
    server.stalls_after, server.patience = 12, 60
    script = [sys.executable, str(ROOT / "inference.py"), "--model_path", server.url, *ask]
    process = subprocess.Popen(script, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / "r/answers.part.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and len(server.asked) < 15:  # three wait for an answer
        time.sleep(0.02)
    while time.monotonic() < deadline and part.read_bytes().count(b"\n") < len(server.answered):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(server.answered)
    server.stalls_after = 1 << 30
    part.write_bytes(part.read_bytes() + b'{"key": "torn')
    code, _, err = run(*ask)
    assert code == 0 and f"已有 {before - 1} 個回答" in err  # the first is what the server can do
    questions = [body for body in server.answered if "logprobs" in body]
    assert len(server.answered) == 6 * 4 + 2 and len(set(questions)) == len(questions) - 1
    assert all(row["prediction"] for row in records(tmp_path / "r"))


# ---- what is wrong -----------------------------------------------------------------------------------------


def test_the_key_reaches_the_server_and_nothing_else(run, server, exam, tmp_path, monkeypatch):
    server.key = KEY
    code, out, err = run("--exam", exam, "--report", "r")
    assert code == 2 and "OPENAI_API_KEY" in err and "401" in err
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "9")
    told = run("--exam", exam, "--report", "r", "--debug")
    assert told[0] == 2 and "Traceback" in told[2] and KEY not in str(told)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert server.headers.get("Authorization") == f"Bearer {KEY}9"
    server.faults = ["", "", (400, f"key {KEY} may not"), (403, f"{KEY} expired")]
    told = run("--exam", exam, "--report", "r", "--concurrency", "1", "--debug")
    assert told[0] == 2 and "403" in told[2] and KEY not in str(told)
    told = run("--exam", exam, "--report", "r", "--skip_option_only")
    assert told[0] == 0 and KEY not in str(told)
    for file in (tmp_path / "r").iterdir():
        assert KEY.encode() not in file.read_bytes()
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: y")
    told = run("--prompt", "天", "--debug")
    assert told[0] == 2 and "OPENAI_API_KEY" in told[2] and KEY not in str(told)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model_path", "http://me:pass123@127.0.0.1:9/v1"], "帳號或密碼"),
        (["--model_path", "https://host/v1?key=pass123"], "? 或 #"),
        (["--model_path", "http:///v1"], "不是伺服器的網址"),
        (["--model_path", "http://h:99999/v1"], "不是伺服器的網址"),
        (["--model_path", "http://h/v1/chat/completions"], "請只寫到 /chat/completions 之前"),
        (["--model_path", "m", "--concurrency", "2"], "--concurrency 用於伺服器上的模型"),
        (["--model_path", "http://h/v1", "--num_beams", "2"], "--num_beams：伺服器不會"),
        (["--model_path", "http://h/v1", "--inspect", "demo"], "沒有 tokenizer 可看長度"),
    ],
)
def test_a_wrong_address_or_flag_is_refused_before_anything_is_sent(run, argv, said, capsys):
    more = [] if "--inspect" in argv else ["--prompt", "天"]
    assert inference.main([*argv, *more]) == 2
    told = capsys.readouterr().err
    assert said in told and "pass123" not in told


def test_what_the_server_lacks_is_named_with_what_it_has(run, server):
    code, _, err = run("--prompt", "天", "--served_model", "tiiny")
    assert code == 2 and "伺服器上的模型是 tiny" in err and "是不是 tiny？" in err
    server.names = ["one", "two"]
    code, _, err = run("--prompt", "天")
    assert code == 2 and "有 2 個模型：one、two" in err and "--served_model" in err
    code, _, err = run("--prompt", "天", url=server.url.removesuffix("/v1") + "/v2")
    assert code == 2 and "沒有列出任何模型" in err
    server.names, server.faults = ["tiny"], [(302, "", ("Location", "http://elsewhere/v1"))]
    code, _, err = run("--prompt", "天")
    assert code == 2 and "金鑰不會跟過去" in err and "http://elsewhere/v1" in err


def test_a_server_that_is_not_there_is_an_error_of_the_run_with_the_way_out(run):
    from conftest import free_port

    code, _, err = run("--prompt", "天", url=f"http://127.0.0.1:{free_port()}/v1")
    assert code == 1 and "試了 3 次都沒有回答（連不上" in err and "請確認伺服器開著" in err


# ---- other uses --------------------------------------------------------------------------------------------


def test_prompts_questions_and_files_are_answered_as_by_the_model_itself(run, server, local, tmp_path):
    short = ("--max_new_tokens", "5")
    wanted = local.generate([local.encode("天地玄黃")], inference.decoding_of(
        inference.parse_args(["--prompt", "天", *short])))[0]  # fmt: skip
    code, out, err = run("--prompt", "天地玄黃", *short)
    assert code == 0 and f"回答: {wanted}\n" in out and "沒寫完" in err
    record = json.loads(run("--prompt", "天地玄黃", "--json", *short)[1])
    assert record == {"prompt": "天地玄黃", "response": wanted, "truncated": True}
    code, out, _ = run("--question", "天？", "--options", "A:地 B:玄 C:黃", "--json")
    found = json.loads(out)["scores"]
    for label, _, score in local.rank("天？", {"A": "地", "B": "玄", "C": "黃"}, 3):
        assert found[label] == pytest.approx(score, abs=1e-4)
    lines = [
        {"prompt": "天地玄黃"},
        {"prompt": LONG},
        {"messages": [{"role": "user", "content": "天地玄黃"}]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    server.faults = STORM[:4]
    assert run("--input", "p.jsonl", "--output", "a.jsonl", *short)[0] == 0
    first, second, third = map(json.loads, (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["response"] == third["response"] == wanted and first["truncated"]
    assert second["response"] is None and "maximum context length" in second["error"]
    (tmp_path / "q.jsonl").write_text('{"question": "天？", "A": "地", "B": "玄"}\n' * 2, encoding="utf-8")
    assert run("--input", "q.jsonl", "--output", "b.jsonl")[0] == 0
    assert '"answer": null' not in (tmp_path / "b.jsonl").read_text(encoding="utf-8")


def test_options_of_decoding_go_along_and_those_beyond_the_interface_only_when_given(run, server):
    assert run("--prompt", "天", "--max_new_tokens", "3")[0] == 0
    _, body = server.asked[-1]
    assert body.keys() == {"model", "messages", "max_tokens", "temperature", "stream"}
    assert body["temperature"] == 0
    more = ["--do_sample", "--temperature", "0.7", "--top_p", "0.9", "--seed", "7", "--top_k", "0"]
    more += ["--min_p", "0.05", "--repetition_penalty", "1.1", "--stop", "。", "--system_prompt", "簡短"]
    assert run("--prompt", "天", "--max_new_tokens", "3", *more, "--json")[0] == 0
    _, body = server.asked[-1]
    assert body["messages"][0] == {"role": "system", "content": "簡短"}
    expected = {"temperature": 0.7, "top_p": 0.9, "seed": 7, "top_k": -1, "min_p": 0.05, "stop": ["。"]}
    assert expected.items() <= body.items() and body["repetition_penalty"] == 1.1


def test_a_server_that_wants_another_name_for_the_limit_gets_it(run, server):
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.faults = [(400, said), (400, "the end")]
    code, _, err = run("--prompt", "天", "--json")
    assert code == 2 and "the end" in err and "max_completion_tokens" in server.asked[-1][1]


def test_a_conversation_in_the_terminal_is_streamed_and_remembered(run, server, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("天地\ntokens 3\n玄黃\nqa\n天？\nA:地 B:玄\nq\n"))
    server.faults = ["busy"]
    code, out, _ = run("--max_new_tokens", "4")
    assert code == 0 and out.count("🤖 ") >= 3 and "1. " in out and "出了錯" not in out
    bodies = [body for _, body in server.asked if body.get("stream")]
    assert [len(body["messages"]) for body in bodies] == [1, 1, 3] and bodies[-1]["max_tokens"] == 3
