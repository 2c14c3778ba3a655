"""A causal model in use: letters, replies, whole files, the terminal, adapters."""

import builtins
import csv
import json
import random
import shlex
import shutil
import sys
from itertools import permutations

import pytest
import torch
from conftest import make_causal_dir, make_exam_dir, random_text, write_csv

import inference
from finetune.data.instructions import parse_instruction
from finetune.data.question import LETTERS, Question
from finetune.data.tables import read_table
from finetune.models.generation import Decoding
from finetune.models.lora import Lora, attach, save_adapter
from finetune.models.run_card import RunCard
from finetune.models.source_checks import ADAPTER, ADAPTER_WEIGHTS
from finetune.models.streaming import Reply, ReplyStream
from finetune.predict.batch_file import Journal
from finetune.predict.causal import CausalLMPredictor
from finetune.runtime.console import plain
from finetune.runtime.errors import UserError

PASSAGES = ("ID", "文章", "問題", "選項1", "選項2", "選項3", "選項4")
SHORT = ("--max_new_tokens", "8")
CUT_SHORT = "（到了 tokens 3 的上限，沒寫完；要更長就輸入 tokens 6）"


@pytest.fixture(scope="module")
def qwen(qwen_dir):
    return inference.load_model(qwen_dir, "cpu")


@pytest.fixture(scope="module")
def llama(llama_dir):
    return inference.load_model(llama_dir, "cpu")


@pytest.fixture(params=["qwen", "llama"])
def loaded(request):
    """(model, tokenizer, device) with a chat template, then without."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def run(qwen_dir, capsys, monkeypatch, tmp_path):
    """Runs `inference.main` on the model with a chat template; returns code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def go(*words, model=qwen_dir) -> tuple[int, str, str]:
        capsys.readouterr()
        code = inference.main(["--model_path", str(model), "--cpu", *map(str, words)])
        return code, *capsys.readouterr()

    return go


def questions_of(count: int, options: int = 4, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)
    return [
        Question(
            random_text(rng, 5, 60) + "？",
            tuple(random_text(rng, 1, 6) for _ in range(options)),
            rng.randrange(options),
            id=str(number),
        )
        for number in range(count)
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def passages(path, count=5):
    rows = [
        [f"a{number}", f"{question.stem}。", "何者？", *question.options]
        for number, question in enumerate(questions_of(count), 1)
    ]
    return write_csv(path, rows, header=PASSAGES)


def first_han(text: str) -> str:
    """The first Chinese character of a text, after others."""
    return next(char for char in text[1:] if "一" <= char < "\ufffd" and char != text[0])


def scripted(monkeypatch, *replies: str) -> None:
    """Models say these, in turn and over again."""
    said = iter(replies * 99)

    def reply(self, prompts, decoding, on_done=None):
        if on_done:
            on_done(len(prompts))
        return [
            text if isinstance(text, Reply) else Reply(text) for _, text in zip(prompts, said, strict=False)
        ]

    monkeypatch.setattr(CausalLMPredictor, "generate", reply)


# ---- letters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders", ["1", "cyclic", "all"])
def test_letter_scores_are_those_of_a_plain_loop(loaded, orders):
    """One forward pass of the bare model for each order, log-softmax over the letters, the mean."""
    model, tokenizer, _ = loaded
    predictor = CausalLMPredictor(*loaded)
    rows = [*questions_of(3, 3), *questions_of(2, 4, seed=1)]
    scores = predictor.score(rows, "letter", orders)
    for question, found in zip(rows, scores, strict=True):
        count = len(question.options)
        shown = {
            "1": [tuple(range(count))],
            "cyclic": [(*range(by, count), *range(by)) for by in range(count)],
            "all": list(permutations(range(count))),
        }[orders]
        total = [0.0] * count
        for order in shown:
            lines = [f"{LETTERS[place]}. {question.options[i]}" for place, i in enumerate(order)]
            asked = "\n".join(["以下是單選題，請只回答正確選項的字母。", "", question.stem, *lines])
            if tokenizer.chat_template:
                messages, space = [{"role": "user", "content": asked}], ""
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            else:
                text, space = f"User: {asked}\nAssistant:", " "
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            letters = [tokenizer(text + space + letter)["input_ids"][len(ids)] for letter in LETTERS[:count]]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            logs = logits[letters].log_softmax(-1).tolist()
            for place, option in enumerate(order):
                total[option] += logs[place] / len(shown)
        assert found == pytest.approx(total, abs=1e-5)


def test_one_question_is_answered_like_a_file_and_an_exam(run, qwen, tmp_path):
    question = questions_of(1)[0]
    options = dict(zip("ABCD", question.options, strict=True))
    ranked = inference.qa_inference(*qwen[:2], question.stem, options, "cpu", top_k=4)
    words = " ".join(f"{letter}:{text}" for letter, text in options.items())
    code, out, _ = run("--question", question.stem, "--options", words, "--json")
    assert code == 0 and json.loads(out)["answer"] == ranked[0][0]
    write_lines(tmp_path / "q.jsonl", [{"question": question.stem, **options}])
    assert run("--input", "q.jsonl", "--output", "a.jsonl")[0] == 0
    found = read_lines(tmp_path / "a.jsonl")[0]
    assert found["answer"] == ranked[0][0]
    assert found["scores"] == pytest.approx({label: score for label, _, score in ranked}, abs=1e-5)


def test_a_question_that_is_too_long_is_cut_and_one_whose_options_are_is_refused(run):
    code, _, err = run("--question", "天" * 3000, "--options", "A:地 B:玄")
    assert code == 0
    code, _, err = run("--question", "天", "--options", f"A:{'地' * 600} B:玄")
    assert code == 2 and "選項本身就超過 512 個 token" in err


# ---- replies that name a letter ----------------------------------------------------------------------------


def test_a_reply_that_cannot_be_read_counts_as_wrong_in_an_exam_and_is_reported(run, tmp_path, monkeypatch):
    rows = [[f"{question.stem}", *question.options, "A"] for question in questions_of(4)]
    write_csv(tmp_path / "exam.csv", rows)
    replies = ["A", "我不知道", "抱歉，我無法回答", "(A) 對"]
    scripted(monkeypatch, *replies)
    more = "--scoring", "generate", "--skip_option_only", "--report", "r"
    code, out, _ = run("--exam", "exam.csv", *more)
    assert code == 0 and "另有 2 題讀不出答案（看不出 1、拒答 1）" in out and "4 題答對 2 題" in out
    told = read_lines(tmp_path / "r/predictions.jsonl")
    assert [row["prediction"] for row in told] == ["A", None, None, "A"]
    assert [row["reply"] for row in told] == replies
    assert [row["outcome"] for row in told] == ["answered", "unreadable", "refused", "answered"]
    for page in ("report.md", "index.html"):
        shown = (tmp_path / "r" / page).read_text(encoding="utf-8").replace("\u00a0", " ")
        assert "全部算錯是 50.0 %，只看讀得出的 100.0 %，實際在 50.0 %–100.0 % 之間" in shown
    assert "另有 2 題讀不出答案" in (tmp_path / "r/report.md").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))
    (figures,) = [value for value in results.values() if isinstance(value, dict) and "outcomes" in value]
    assert figures["outcomes"]["unreadable"] == figures["outcomes"]["refused"] == 1
    assert figures["outcomes"]["bounds"] == [0.5, 1.0] and figures["skipped"] == 0


def test_a_reply_cut_at_its_limit_and_one_that_declines_are_told_apart_with_the_way_out(
    run, tmp_path, monkeypatch
):
    asked = ("--question", "天？", "--options", "A:地 B:玄", "--scoring", "generate")
    scripted(monkeypatch, Reply("首先，答案是", truncated=True), "抱歉，我無法回答")
    code, _, err = run(*asked)
    assert code == 2 and "截斷" in err and "--max_new_tokens" in err
    code, _, err = run(*asked)
    assert code == 2 and "拒答" in err and "--scoring letter" in err
    write_lines(tmp_path / "q.jsonl", [{"question": "天？", "A": "地", "B": "玄"}] * 2)
    assert run("--input", "q.jsonl", "--output", "a.jsonl", "--scoring", "generate")[0] == 0
    first, second = read_lines(tmp_path / "a.jsonl")
    assert "--max_new_tokens" in first["error"] and "拒答" in second["error"]


def test_a_thought_that_the_template_opened_and_the_reply_never_closed_is_no_answer(qwen, monkeypatch):
    predictor, question = CausalLMPredictor(*qwen), questions_of(1)[0]
    opened = predictor.tokenizer("<think>\n", add_special_tokens=False)["input_ids"]
    whole = predictor.prompts.reply_prompt
    monkeypatch.setattr(predictor.prompts, "reply_prompt", lambda *a, **k: ([*whole(*a, **k)[0], *opened], 0))
    scripted(monkeypatch, "B", "想 A</think>B")
    assert predictor.score([question], "generate", "1").outcomes == {0: "unreadable"}
    assert predictor.score([question], "generate", "1") == [[-1.0, 0.0, -1.0, -1.0]]


def test_a_reply_that_cannot_be_read_is_no_answer_to_a_question_or_a_row(run, tmp_path, monkeypatch):
    scripted(monkeypatch, "B", "我不知道")
    code, out, _ = run("--question", "天？", "--options", "A:地 B:玄", "--scoring", "generate", "--json")
    assert code == 0 and json.loads(out)["answer"] == "B"
    code, out, err = run("--question", "天？", "--options", "A:地 B:玄", "--scoring", "generate")
    assert code == 2 and "我不知道" in err and "--scoring letter" in err and not out
    write_lines(tmp_path / "q.jsonl", [{"question": "天？", "A": "地", "B": "玄"}] * 2)
    assert run("--input", "q.jsonl", "--output", "a.jsonl", "--scoring", "generate")[0] == 0
    first, second = read_lines(tmp_path / "a.jsonl")
    assert (first["answer"], first["response"], first["error"]) == ("B", "B", None)
    assert (second["answer"], second["response"]) == (None, "我不知道")
    assert "看不出選了哪一個" in second["error"]


def test_scoring_by_generation_prompts_the_model_where_its_reply_begins(qwen, monkeypatch):
    question, asked = questions_of(1)[0], []
    monkeypatch.setattr(
        CausalLMPredictor, "generate", lambda self, prompts, *more: asked.extend(prompts) or [Reply("C")]
    )
    predictor = CausalLMPredictor(*qwen)
    scores = predictor.score([question], "generate", "1")
    assert scores == [[-1.0, -1.0, 0.0, -1.0]]
    messages = predictor.prompts.writer.messages(question, range(4), question.stem)
    assert asked == [predictor.chat.prompt(messages)]


@pytest.mark.parametrize("method", ["pll", "joint", "pmi", "first"])
def test_a_method_that_fills_blanks_is_refused_with_those_there_are(run, method):
    code, _, err = run("--question", "天？", "--options", "A:地 B:玄", "--scoring", method)
    assert (
        code == 2 and f"--scoring {method}" in err and "letter、letter+prior、loglikelihood、generate" in err
    )


def test_an_exam_is_written_into_a_report_like_any(run, tmp_path):
    make_exam_dir(tmp_path / "exam", subjects=("physics",), test=3)
    code, out, err = run("--exam", "exam", "--report", "r")
    assert code == 0 and "題答對" in out and (tmp_path / "r/index.html").exists()


# ---- whole files -------------------------------------------------------------------------------------------


def test_a_csv_of_choices_has_the_two_columns_that_competitions_take(run, tmp_path):
    passages(tmp_path / "q.csv")
    assert run("--input", "q.csv", "--output", "a.csv")[0] == 0
    raw = (tmp_path / "a.csv").read_bytes()
    assert raw.startswith(b"ID,Answer\r\n")  # no BOM
    letters = dict(csv.reader(raw.decode().splitlines()))
    assert list(letters) == ["ID", *(f"a{number}" for number in range(1, 6))]
    assert run("--input", "q.csv", "--output", "i.csv", "--answer_format", "index")[0] == 0
    indices = dict(csv.reader((tmp_path / "i.csv").read_text().splitlines()))
    assert run("--input", "q.csv", "--output", "a.jsonl")[0] == 0
    kept = read_lines(tmp_path / "a.jsonl")
    for row in kept:
        assert letters[row["id"]] == row["answer"] == max(row["scores"], key=row["scores"].get)
        assert indices[row["id"]] == str("ABCD".index(row["answer"]) + 1)  # 選項1 counts from 1
        assert row["answer_text"] and row["question"].endswith("何者？") and row["error"] is None
    assert len({row["answer"] for row in kept}) > 1


def test_an_index_counts_from_0_where_options_have_letters(run, tmp_path):
    rows = [[question.stem, *question.options] for question in questions_of(6)]
    write_csv(tmp_path / "q.csv", rows, header=("question", *"ABCD"))
    run("--input", "q.csv", "--output", "letter.csv")
    run("--input", "q.csv", "--output", "index.csv", "--answer_format", "index")
    letters = list(csv.reader((tmp_path / "letter.csv").read_text().splitlines()))
    indices = list(csv.reader((tmp_path / "index.csv").read_text().splitlines()))
    assert [name for name, _ in letters[1:]] == list("123456")  # rows without an ID go by their number
    assert [("ABCD"[int(index)]) for _, index in indices[1:]] == [letter for _, letter in letters[1:]]


def test_a_row_without_an_answer_is_empty_in_the_csv_and_said(run, tmp_path, monkeypatch):
    scripted(monkeypatch, "B", *["我不知道"] * 4)
    passages(tmp_path / "q.csv")
    code, _, err = run("--input", "q.csv", "--output", "a.csv", "--scoring", "generate")
    assert code == 0 and "答了 1 列，4 列答不了" in err and "看不出選了哪一個" in err
    assert ".jsonl" in err and "a.csv 的 error 欄" not in err  # this csv has no such column
    assert (tmp_path / "a.csv").read_text().splitlines() == ["ID,Answer", "a1,B", "a2,", "a3,", "a4,", "a5,"]
    assert run("--input", "q.csv", "--output", "b.csv", "--scoring", "generate", "--strict")[0] == 2


TOLD = [
    {"id": "甲", "prompt": "天地玄黃"},
    {"prompt": "宇宙<|im_end|>"},
    {"instruction": "寒來暑往", "input": "", "output": "舊的"},
    {"messages": [{"role": "user", "content": "秋收冬藏"}]},
    {"conversations": [{"from": "human", "value": "日月"}, {"from": "gpt", "value": "舊的"}]},
]


def test_every_row_is_replied_to_like_a_single_prompt(run, qwen, tmp_path):
    write_lines(tmp_path / "p.jsonl", TOLD)
    assert run("--input", "p.jsonl", "--output", "a.jsonl", *SHORT)[0] == 0
    found = read_lines(tmp_path / "a.jsonl")
    prompts = ["天地玄黃", "宇宙<|im_end|>", "寒來暑往", "秋收冬藏", "日月"]
    for prompt, row in zip(prompts, found, strict=True):
        alone = inference.generate_text(*qwen[:2], [prompt], "cpu", max_new_tokens=8)[0]
        assert (row["prompt"], row["response"], row["error"]) == (prompt, alone, None)
    assert [row["id"] for row in found] == ["甲", None, None, None, None]
    code, out, _ = run("--prompt", prompts[0], "--json", *SHORT)
    same = {name: found[0][name] for name in ("response", "truncated")}
    assert code == 0 and json.loads(out) == {"prompt": prompts[0], **same}


def test_earlier_turns_and_a_system_message_are_part_of_the_prompt(run, qwen, tmp_path):
    messages = [
        {"role": "system", "content": "你是雲"}, {"role": "user", "content": "天"},
        {"role": "assistant", "content": "地"}, {"role": "user", "content": "玄"},
    ]  # fmt: skip
    write_lines(tmp_path / "p.jsonl", [{"messages": messages}])
    run("--input", "p.jsonl", "--output", "a.jsonl", *SHORT)
    model, tokenizer, _ = qwen
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    new = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    wanted = tokenizer.decode(new, skip_special_tokens=True).strip()
    assert read_lines(tmp_path / "a.jsonl")[0]["response"] == wanted


def test_a_system_prompt_stands_before_a_prompt_and_before_rows_without_one_of_their_own(run, qwen, tmp_path):
    system = {"role": "system", "content": "你是雲"}
    asked = [{"messages": [system, {"role": "user", "content": text}]} for text in ("天地", "玄黃")]
    own = {"messages": [{"role": "system", "content": "你是雨"}, {"role": "user", "content": "玄黃"}]}
    write_lines(tmp_path / "with.jsonl", [*asked, own])
    write_lines(tmp_path / "p.jsonl", [{"prompt": "天地"}, {"instruction": "玄黃"}, own])
    run("--input", "with.jsonl", "--output", "a.jsonl", *SHORT)
    given = "--system_prompt", "你是雲"
    assert run("--input", "p.jsonl", "--output", "b.jsonl", *SHORT, *given)[0] == 0
    expected = read_lines(tmp_path / "a.jsonl")
    assert read_lines(tmp_path / "b.jsonl") == expected
    assert expected[0]["prompt"] == "天地"
    out = run("--prompt", "天地", "--json", *SHORT, *given)[1]
    reply = inference.generate_text(*qwen[:2], ["天地"], "cpu", system_prompt="你是雲", max_new_tokens=8)[0]
    assert json.loads(out)["response"] == expected[0]["response"] == reply
    assert reply != inference.generate_text(*qwen[:2], ["天地"], "cpu", max_new_tokens=8)[0]


def test_a_system_prompt_belongs_to_the_run_that_goes_on(run, tmp_path, monkeypatch):
    write_lines(tmp_path / "p.jsonl", [{"prompt": "天"}, {"prompt": "地"}])
    given, add = ("--input", "p.jsonl", "--output", "a.jsonl", "--batch_size", "1", *SHORT), Journal.add

    def one_round(journal, records):
        add(journal, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", one_round)
    assert run(*given, "--system_prompt", "你是雲")[0] == 130
    monkeypatch.setattr(Journal, "add", add)
    code, _, err = run(*given, "--system_prompt", "你是雨")
    assert code == 2 and "system_prompt 不同" in err
    assert run(*given)[0] == 2
    assert run(*given, "--system_prompt", "你是雲")[0] == 0


def test_a_system_prompt_without_a_place_is_refused_or_merged_and_said(
    run, qwen_dir, llama_dir, model_dir, tmp_path
):
    write_lines(tmp_path / "p.jsonl", [{"prompt": "天"}])
    for job in (("--prompt", "天"), ("--input", "p.jsonl", "--output", "a.jsonl"), ()):
        code, _, err = run(*job, "--system_prompt", "你是雲", model=llama_dir)
        assert code == 2 and "--system_prompt '你是雲'：這個模型沒有對話樣板" in err
    code, _, err = run("--prompt", "天[MASK]", "--system_prompt", "你是雲", model=model_dir)
    assert code == 2 and "--system_prompt 用於因果模型" in err
    code, _, err = run("--prompt", "天", "--system_prompt", " ")
    assert code == 2 and "--system_prompt 是空的" in err
    question = "--question", "天？", "--options", "A:地 B:玄"
    plain = run(*question)[1]
    code, out, err = run(*question, "--system_prompt", "你是雲")
    assert code == 0 and out != plain and "沒有作用" not in err
    folder = shutil.copytree(qwen_dir, tmp_path / "narrow")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    code, out, err = run("--prompt", "天", "--system_prompt", "你是雲", "--json", *SHORT, model=folder)
    assert code == 0 and "沒有 system 的位置：併入下一句使用者的話" in err
    merged = run("--prompt", "你是雲\n\n天", "--json", *SHORT, model=folder)[1]
    assert json.loads(out)["response"] == json.loads(merged)["response"]


def test_replies_of_a_file_tell_which_were_cut_short(run, tmp_path):
    prompts = ["天地玄黃", "宇宙", "寒來"]
    write_lines(tmp_path / "p.jsonl", [*({"prompt": prompt} for prompt in prompts), {"prompt": " "}])
    run("--input", "p.jsonl", "--output", "free.jsonl", *SHORT)
    stop = first_han(read_lines(tmp_path / "free.jsonl")[0]["response"])
    given = "--input", "p.jsonl", *SHORT, "--stop", stop
    code, out, _ = run(*given, "--output", "a.jsonl", "--json")
    found = read_lines(tmp_path / "a.jsonl")
    cut_short = [stop not in row["response"] for row in read_lines(tmp_path / "free.jsonl")[:3]]
    assert [row["truncated"] for row in found] == [*cut_short, None] and cut_short[0] is False
    assert not any(stop in row["response"] for row in found[:3])
    assert code == 0 and json.loads(out)["truncated"] == sum(cut_short) > 0
    out = run(*given, "--output", "a.csv")[1]
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as stream:
        words = [row["truncated"] for row in csv.DictReader(stream)]
    assert words == [*("true" if cut else "false" for cut in cut_short), ""]
    assert f"{sum(cut_short)} 列的回答沒寫完（truncated）：到了 --max_new_tokens 8" in out
    assert run(*given, "--output", "a.parquet")[0] == 0
    assert [row["truncated"] for _, row in read_table(tmp_path / "a.parquet")] == [*cut_short, None]


def test_rows_that_cannot_be_replied_to_have_their_reasons(run, tmp_path):
    bad = [
        ({"prompt": " "}, "prompt 是空的"),
        ({"prompt": "天" * 600}, "這個模型連同回答最多 512 個"),
        ({"prompt": "\ud800"}, "不是合法的 UTF-8"),
        ({"instruction": ""}, "instruction 是空的"),
        ({"messages": [{"role": "alien", "content": "天"}]}, "不認得角色 'alien'"),
        ({"instruction": "天", "history": 5}, "history 應該是一串"),
        ({"other": "天"}, "沒有 prompt 欄"),
    ]
    text = "\n".join(
        json.dumps(row) for row in [{"prompt": "天"}, *(row for row, _ in bad), {"prompt": "地"}]
    )
    (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
    code, _, err = run("--input", "p.jsonl", "--output", "a.jsonl", *SHORT)
    assert code == 0 and f"答了 2 列，{len(bad)} 列答不了" in err
    found = read_lines(tmp_path / "a.jsonl")
    assert found[0]["response"] and found[-1]["response"]
    for (_, reason), row in zip(bad, found[1:-1], strict=True):
        assert reason in row["error"] and row["response"] is None


@pytest.mark.parametrize("more", [(), ("--do_sample", "--seed", "5")])
def test_a_killed_run_of_replies_goes_on_to_the_same_file(run, tmp_path, monkeypatch, more):
    rng = random.Random(4)
    write_lines(tmp_path / "p.jsonl", [{"prompt": random_text(rng, 2, 12)} for _ in range(9)])
    same = "--input", "p.jsonl", *SHORT, "--batch_size", "2", *more
    run(*same, "--output", "whole.jsonl")
    rounds, add = [], Journal.add

    def two_rounds(journal, records):
        if len(rounds) == 2:
            journal.stream.write(b'{"row": 5, "torn')  # the machine goes off in the middle of a line
            journal.stream.flush()
            journal.stream.close()
            raise KeyboardInterrupt
        rounds.append(len(records))
        add(journal, records)

    monkeypatch.setattr(Journal, "add", two_rounds)
    code, _, err = run(*same, "--output", "a.jsonl")
    assert code == 130 and "同一個指令會接著做" in err and not (tmp_path / "a.jsonl").exists()
    monkeypatch.setattr(Journal, "add", add)
    code, _, err = run(*same, "--output", "a.jsonl", "--repetition_penalty", "2")
    assert code == 2 and "decoding 不同" in err
    code, _, err = run(*same, "--output", "a.jsonl")
    assert code == 0 and "已答 4/9 列" in err
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "a.jsonl.part").exists()


def test_a_masked_model_is_refused_for_replies(run, model_dir, tmp_path):
    write_lines(tmp_path / "p.jsonl", [{"instruction": "天"}])
    code, _, err = run("--input", "p.jsonl", "--output", "a.jsonl", model=model_dir)
    assert code == 2 and "要由因果模型回答" in err


# ---- flags -------------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_context_is_refused_with_its_length(run):
    code, out, err = run("--prompt", "天" * 600)
    assert code == 2 and "最多 512 個" in err and "Traceback" not in err and "🤖" not in out


@pytest.mark.parametrize("flag", [("--word_length", "2"), ("--candidates", "好,壞")])
def test_flags_of_filling_are_refused_by_a_model_that_writes(run, flag):
    code, _, err = run("--prompt", "天", *flag)
    assert code == 2 and f"{flag[0]} 用於填空的遮罩模型" in err


@pytest.mark.parametrize(
    "flag",
    [("--max_new_tokens", "5"), ("--do_sample",), ("--temperature", "0.5"), ("--top_p", "0.9"),
     ("--repetition_penalty", "2"), ("--num_beams", "2"), ("--seed", "1"), ("--early_stopping",)],
)  # fmt: skip
def test_flags_of_writing_are_refused_by_a_model_that_fills_blanks(run, model_dir, flag):
    code, _, err = run("--prompt", "天[MASK]", *flag, model=model_dir)
    assert code == 2 and f"{flag[0]} 用於因果模型" in err
    code, _, err = run("--prompt", "天[MASK]", "--top_k", "0", model=model_dir)
    assert code == 2 and "--top_k 0" in err


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        (("--prompt", "天", *SHORT, "--temperature", "0.5"), "--temperature"),
        (("--prompt", "天", *SHORT, "--top_p", "0.5", "--seed", "1"), "--top_p、--seed"),
        (("--prompt", "天", *SHORT, "--top_k", "3"), "--top_k"),
        (("--prompt", "天", *SHORT, "--min_p", "0.1"), "--min_p"),
        (("--prompt", "天", *SHORT, "--length_penalty", "2"), "--length_penalty"),
        (
            ("--question", "天？", "--options", "A:地 B:玄", "--do_sample", *SHORT),
            "--max_new_tokens、--do_sample",
        ),
    ],
)
def test_flags_without_effect_are_said(run, flags, idle):
    code, _, err = run(*flags)
    assert code == 0 and f"⚠️ {idle} 沒有作用" in err and err.count("⚠️") == 1


def test_one_reply_that_was_cut_short_says_so_apart_from_its_text(run):
    code, out, err = run("--prompt", "天地玄黃", *SHORT)
    whole = out.split("回答: ")[1]
    stop = first_han(whole)
    assert code == 0 and err == "（到了 --max_new_tokens 8 的上限，沒寫完；要更長就加大它）\n"
    assert json.loads(run("--prompt", "天地玄黃", *SHORT, "--json")[1])["truncated"] is True
    code, out, err = run("--prompt", "天地玄黃", *SHORT, "--stop", stop, "\\n")
    assert code == 0 and out.split("回答: ")[1] == whole[: whole.index(stop)] + "\n" and not err
    assert json.loads(run("--prompt", "天地玄黃", "--stop", stop, "--json")[1])["truncated"] is False


def test_a_reply_that_must_be_longer_than_it_may_be_is_refused_before_a_model_is_loaded(run, tmp_path):
    code, _, err = run("--prompt", "天", *SHORT, "--min_new_tokens", "9", model=tmp_path / "none")
    assert code == 2 and "--min_new_tokens 9 大於 --max_new_tokens 8" in err and "none" not in err


def test_flags_of_writing_without_effect_on_a_file_of_questions_are_said(run, tmp_path):
    passages(tmp_path / "q.csv", 1)
    code, _, err = run("--input", "q.csv", "--output", "a.csv", "--do_sample")
    assert code == 0 and "⚠️ --do_sample 沒有作用：選擇題不使用文字生成的旗標" in err


def test_flags_that_have_an_effect_are_not_warned_of(run):
    sampled = "--do_sample", "--seed", "1", "--top_k", "9", "--top_p", "0.9", "--temperature", "0.8"
    for flags in (sampled, ("--num_beams", "2", "--length_penalty", "2", "--early_stopping")):
        code, out, err = run("--prompt", "天", *SHORT, *flags)
        assert code == 0 and out and "⚠️" not in err
    first, again = (run("--prompt", "天", "--json", *SHORT, *sampled)[1] for _ in range(2))
    assert first == again


def test_a_question_that_is_no_text_is_refused_and_not_a_crash(run):
    for words in (("--question", "\udc80", "--options", "A:地 B:玄"), ("--prompt", "\udc80")):
        code, _, err = run(*words)
        assert code == 2 and "不是 UTF-8" in err


def test_a_look_at_data_tells_what_a_causal_model_would_make_of_it(run, tmp_path, capsys):
    rows = [[stem, "地", "玄", "黃", "宇", "A"] for stem in ("天？", "月" * 900)]
    write_csv(tmp_path / "exam.csv", rows)
    code, out, _ = run("--inspect", "exam.csv", "--json")
    found = json.loads(out)["model"]
    assert code == 0 and len(found["shortened"]) == 1 and not found["skipped"]
    assert inference.main(["--inspect", "exam.csv"]) == 0 and "2 題" in capsys.readouterr().out


# ---- from Python -------------------------------------------------------------------------------------------


def test_a_causal_model_fills_no_blank_and_a_masked_one_writes_nothing(qwen, model_dir):
    with pytest.raises(UserError, match="因果模型，不會填"):
        inference.predict_mask(*qwen[:2], "天[MASK]", "cpu")
    with pytest.raises(UserError, match="因果模型，不會填"):
        inference.predict_words(*qwen[:2], "天[MASK]", "cpu")
    model, tokenizer, _ = inference.load_model(model_dir, "cpu")
    with pytest.raises(UserError, match="遮罩模型，不會生成"):
        inference.generate_text(model, tokenizer, ["天"], "cpu")


def test_text_is_what_generate_of_transformers_writes(loaded):
    model, tokenizer, _ = loaded
    found = inference.generate_text(model, tokenizer, ["天地玄黃", "宇宙 x y z"], "cpu", max_new_tokens=9)
    for prompt, text in zip(["天地玄黃", "宇宙 x y z"], found, strict=True):
        if tokenizer.chat_template:
            asked = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        else:
            ids = tokenizer(prompt)["input_ids"]
        new = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0, len(ids) :]
        wanted = tokenizer.decode(new, skip_special_tokens=True)
        assert text == (wanted.strip() if tokenizer.chat_template else wanted)


def test_a_special_token_in_a_text_to_go_on_from_is_not_obeyed(llama):
    predictor = CausalLMPredictor(*llama)
    assert predictor.tokenizer.eos_token_id not in predictor.encode("天<|endoftext|>地")
    assert predictor.tokenizer.decode(predictor.encode("天<|endoftext|>地")) == "天<|endoftext|>地"


# ---- the terminal ------------------------------------------------------------------------------------------


@pytest.fixture
def run_repl(monkeypatch, capsys, tmp_path):
    """Types the entries given; returns what the terminal said."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def go(loaded, *entries: str, system_prompt=None, **decoding) -> str:
        waiting = iter([*entries, "q"])
        monkeypatch.setattr(builtins, "input", lambda prompt="": print(prompt) or next(waiting))
        decoding = Decoding(**{"max_new_tokens": 8, **decoding})
        inference.interactive_mode(*loaded, decoding=decoding, system_prompt=system_prompt)
        assert next(waiting, None) is None, "it ended before the last entry"
        out, go.err = capsys.readouterr()
        return out

    return go


def replies_in(out: str) -> list[str]:
    """Replies: the text after each 🤖, up to the next prompt."""
    return [part.split("\n\n💬")[0] for part in out.split("\n🤖 ")[2:]]  # the first is the greeting's


def test_the_terminal_streams_what_a_single_prompt_is_answered(loaded, run_repl):
    prompts = ["天地玄黃", "寒來 x y", "秋收冬藏"]
    for prompt in prompts:
        wanted = inference.generate_text(*loaded[:2], [prompt], "cpu", max_new_tokens=8)[0]
        assert replies_in(run_repl(loaded, prompt)) == [plain(wanted)]


@pytest.mark.parametrize("pieces", [["  ", "\n", " 天", " ", "地", " \n", " "], ["天"], [], [" "]])
def test_the_stream_of_a_chat_is_the_reply_without_the_white_space_around_it(qwen, monkeypatch, pieces):
    import finetune.predict.causal

    monkeypatch.setattr(finetune.predict.causal.Generator, "stream", lambda *_: ReplyStream(pieces))
    assert "".join(CausalLMPredictor(*qwen).stream([1], None)) == "".join(pieces).strip()


def test_a_reply_has_no_white_space_around_it_and_a_text_that_goes_on_keeps_its_own(qwen, llama, monkeypatch):
    import finetune.predict.causal

    monkeypatch.setattr(
        finetune.predict.causal.Generator, "generate", lambda *_, **more: [Reply("\n 天 地 \n")]
    )
    assert CausalLMPredictor(*qwen).generate([[1]], None) == ["天 地"]
    assert CausalLMPredictor(*llama).generate([[1]], None) == ["\n 天 地 \n"]


def test_a_model_without_a_template_shows_the_white_space_it_goes_on_with(run, llama_dir, monkeypatch):
    import finetune.predict.causal

    monkeypatch.setattr(finetune.predict.causal.Generator, "stream", lambda *_: ReplyStream([" 天", "地"]))
    assert run("--prompt", "玄", model=llama_dir)[1] == "開頭: 玄\n\n續寫:  天地\n"


def test_the_terminal_remembers_the_conversation_and_reset_forgets_it(qwen, run_repl, monkeypatch):
    asked, encode = [], CausalLMPredictor.encode
    monkeypatch.setattr(
        CausalLMPredictor, "encode", lambda self, said: asked.append(said) or encode(self, said)
    )
    out = run_repl(qwen, "天", "地", "help", "reset", "玄", "help")
    first, second, third = asked
    replies = replies_in(out)
    assert first == [{"role": "user", "content": "天"}]
    assert second == [*first, {"role": "assistant", "content": replies[0]}, {"role": "user", "content": "地"}]
    assert third == [{"role": "user", "content": "玄"}]
    assert "現在 2 個來回" in out and "現在 1 個來回" in out and "已清除先前的對話" in out


def test_without_a_template_every_entry_is_a_text_of_its_own(llama, run_repl):
    out = run_repl(llama, "天地", "天地", "help")
    first, second = replies_in(out)
    assert first == second.split("\n💬")[0] and "每次重新開始" in out and "reset" not in out


WRONG = [
    ("天" * 600, "最多 512 個"),
    ("\ud800", "不是 UTF-8"),
    ("sample maybe", "應為 on 或 off"),
    ("sample", "應為 on 或 off"),
    ("temperature hot", "應為 0 到 5 的數"),
    ("temperature nan", "應為 0 到 5 的數"),
    ("temperature -1", "應為 0 到 5 的數"),
    ("tokens 0", "應為 1 到 100000 的整數"),
    ("tokens x", "應為 1 到 100000 的整數"),
    ("method pll", "這是因果模型"),
    ("method letters", "是不是 letter"),
    ("orders 7", "有的是 1、cyclic、all"),
]


@pytest.mark.parametrize(("entry", "says"), WRONG)
def test_a_wrong_entry_is_explained_and_the_next_one_is_taken(qwen, run_repl, entry, says):
    out = run_repl(qwen, entry, "天")
    assert says in out and out.count("⚠️") == 1 and len(replies_in(out)) == 1


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["qa", "天？", "A:地", "", "", ""], "有 1 個選項"),
        (["qa", ""], "沒有題目，取消了"),
        (["qa", "\ud800"], "改成 UTF-8"),
        (["qa", "天？", "A:\udc80 B:玄", "", ""], "改成 UTF-8"),
    ],
)
def test_a_wrong_question_never_ends_it(qwen, run_repl, entries, says):
    out = run_repl(qwen, *entries, "天")
    assert says in out and len(replies_in(out)) == 1


def test_a_reply_that_was_cut_short_names_the_command_that_makes_it_longer(qwen, run_repl):
    run_repl(qwen, "天", max_new_tokens=2)
    assert run_repl.err == "（到了 tokens 2 的上限，沒寫完；要更長就輸入 tokens 4）\n"
    whole = inference.generate_text(*qwen[:2], ["天"], "cpu", max_new_tokens=8)[0]
    stop = first_han(whole)
    out = run_repl(qwen, "天", "help", stop=[stop, "\n"], min_p=0.5)
    assert whole.truncated and replies_in(out)[0] == whole[: whole.index(stop)] and not run_repl.err
    assert f"（--min_p 0.5、--stop {shlex.quote(stop)} '\\n'：開始時給的" in out
    note = CausalLMPredictor(*qwen).truncation_note([1], Decoding(512), "tokens", "")
    assert "沒寫完：提示與回答共 512 個 token" in note and "tokens" not in note


def test_the_system_prompt_is_kept_over_reset_until_it_is_changed(qwen, run_repl, monkeypatch):
    asked, encode = [], CausalLMPredictor.encode
    monkeypatch.setattr(
        CausalLMPredictor, "encode", lambda self, said: asked.append(said) or encode(self, said)
    )
    entries = ["天", "reset", "地", "system", "system 你是{雨}", "help", "玄", "system off", "黃", "/system"]
    out = run_repl(qwen, *entries, system_prompt="你是雲")
    said = [messages for messages in asked if messages[-1]["content"] != "x"]  # x: tried when it is set
    begun = [[message["content"] for message in messages if message["role"] == "system"] for messages in said]
    assert begun == [["你是雲"], ["你是雲"], ["你是{雨}"], []] and [*map(len, said)] == [2, 2, 4, 5]
    assert "系統提示：你是雲\n" in out and "（現在 '你是{雨}'）" in out and "不用系統提示" in out
    assert "系統提示：沒有" in out and out.count("⚠️") == 0


def test_a_text_to_go_on_from_may_begin_with_system_but_there_is_no_system_prompt(llama, run_repl):
    out = run_repl(llama, "System design is", "/system 你是雲", "system")
    assert len(replies_in(out)) == 1 and out.count("沒有對話樣板") == 2 and "system TEXT" not in out
    with pytest.raises(UserError, match="沒有對話樣板"):
        run_repl(llama, system_prompt="你是雲")


def test_a_system_prompt_that_leaves_no_room_is_refused_and_the_last_one_stays(qwen, run_repl):
    out = run_repl(qwen, f"system {'天' * 600}", "system", system_prompt="你是雲")
    assert out.count("⚠️") == 1 and "太長" in out and "系統提示：你是雲" in out


def test_a_question_is_answered_in_the_terminal_and_one_that_cannot_be_read_is_said(
    qwen, run_repl, monkeypatch
):
    out = run_repl(qwen, "method letter", "orders 1", "qa", "天？", "A:地 B:玄")
    assert "🎯 預測結果" in out and "A: 地 (分數: " in out and "⚠️" not in out
    scripted(monkeypatch, "我不知道")
    out = run_repl(qwen, "method generate", "qa", "天？", "A:地 B:玄", "help")
    assert "看不出選了哪一個" in out and out.count("⚠️") == 1 and "現在 generate" in out


def test_what_is_set_in_the_terminal_is_how_the_model_writes(qwen, run_repl, monkeypatch):
    used = []
    monkeypatch.setattr(
        CausalLMPredictor, "stream", lambda self, ids, how: used.append(how) or ReplyStream(["天"])
    )
    run_repl(qwen, "tokens 3", "sample on", "temperature 0.5", "地", "sample off", "地", num_beams=2)
    assert [(how.max_new_tokens, how.samples, how.temperature) for how in used] == [
        (3, True, 0.5),
        (3, False, 0.5),
    ]


def test_a_conversation_that_has_grown_too_long_loses_what_was_said_first(qwen, run_repl, monkeypatch):
    asked, stream = [], CausalLMPredictor.stream
    monkeypatch.setattr(
        CausalLMPredictor, "stream", lambda self, ids, how: asked.append(ids) or stream(self, ids, how)
    )
    first, second = (c * (300 * 8 // len(qwen[1](c * 8)["input_ids"])) for c in "天地")  # 300 tokens each
    out = run_repl(qwen, first, second, "玄" * 3000, "黃", max_new_tokens=2)
    assert len(replies_in(out)) == 3 and out.count("⚠️") == 1  # what does not fit alone is refused
    last = qwen[1].decode(asked[-1])
    assert "天天" not in qwen[1].decode(asked[1]) and "地地" in last and "玄玄" not in last
    assert all(len(ids) < 512 for ids in asked[:2]) and "捨去最早的一個來回" in out


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_went(qwen, run_repl, monkeypatch):
    def stopped(self, ids, decoding):
        yield "天地"
        raise KeyboardInterrupt

    asked, encode = [], CausalLMPredictor.encode
    monkeypatch.setattr(
        CausalLMPredictor, "encode", lambda self, said: asked.append(said) or encode(self, said)
    )
    monkeypatch.setattr(
        CausalLMPredictor, "stream", lambda *words: ReplyStream(stopped(*words), lambda: True)
    )
    out = run_repl(qwen, "玄", "黃")
    assert out.count("天地…（已中止）") == 2 and asked[1][1]["content"] == "天地"
    assert not run_repl.err


def test_a_model_that_says_nothing_is_said_to(qwen, run_repl, monkeypatch):
    monkeypatch.setattr(CausalLMPredictor, "stream", lambda self, ids, decoding: ReplyStream(()))
    assert replies_in(run_repl(qwen, "天")) == ["（模型沒有輸出）"]


def test_rubbish_never_ends_a_conversation(qwen, run_repl):
    rng = random.Random(2)
    alphabet = "天地ＡAb12:：[]()（）,，\t \x00\x1b\u202e😀<|im_end|>" + "reset top tokens method sample "
    entries = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30))) for _ in range(40)]
    rude = ["", "   ", "help me", "?", "h", "reset", "temperature", "tokens of the world"]
    run_repl(
        qwen,
        *rude,
        *(entry for entry in entries if entry.strip().lower() not in ("q", "qa")),
        max_new_tokens=2,
    )


def test_the_end_of_input_says_goodbye(run, monkeypatch, tmp_path, llama_dir):
    from io import StringIO

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for model in ({}, {"model": llama_dir}):
        monkeypatch.setattr(sys, "stdin", StringIO("天\n"))
        code, out, err = run("--max_new_tokens", "3", **model)
        assert code == 0 and out.rstrip().endswith("👋 再見！") and err.splitlines() == [CUT_SHORT]
        assert ("續寫" if model else "對話") in out


# ---- adapters ----------------------------------------------------------------------------------------------


def trained_adapter(folder, base, plain: bool):
    """An adapter that changes what the model says, beside its tokenizer; and the model merged."""
    model, tokenizer, _ = inference.load_model(base, "cpu")
    torch.manual_seed(1)
    if plain:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        view = get_peft_model(model, config)
    else:
        view = attach(model, Lora(4, 8, 0.0), str(base))
    for name, weight in view.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    if plain:
        view.save_pretrained(folder)
    else:
        inside = view.get_base_model().named_parameters()
        save_adapter(folder, view, {name: w for name, w in inside if w.requires_grad})
    tokenizer.save_pretrained(folder)
    return view.merge_and_unload().eval()


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "peft"])
def test_an_adapter_answers_like_the_merged_model(run, qwen, qwen_dir, tmp_path, plain):
    merged = trained_adapter(tmp_path / "lora", qwen_dir, plain)
    prompts = ["天地玄黃", "寒來暑往", "秋收冬藏"]
    wanted = inference.generate_text(merged, qwen[1], prompts, "cpu", max_new_tokens=8)
    assert wanted != inference.generate_text(*qwen[:2], prompts, "cpu", max_new_tokens=8)
    write_lines(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in prompts])
    assert run("--input", "p.jsonl", "--output", "a.jsonl", *SHORT, model=tmp_path / "lora")[0] == 0
    assert [row["response"] for row in read_lines(tmp_path / "a.jsonl")] == wanted
    options = {"A": "地", "B": "玄", "C": "黃"}
    mine = inference.load_model(tmp_path / "lora", "cpu")
    assert {
        label: score for label, _, score in inference.qa_inference(*mine[:2], "天？", options, "cpu")
    } == pytest.approx(
        {label: score for label, _, score in inference.qa_inference(merged, qwen[1], "天？", options, "cpu")},
        abs=1e-4,
    )


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(run, qwen_dir, tmp_path):
    trained_adapter(tmp_path / "lora", qwen_dir, plain=False)
    with_own = run("--prompt", "天", *SHORT, model=tmp_path / "lora")
    for file in (tmp_path / "lora").iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    assert run("--prompt", "天", *SHORT, model=tmp_path / "lora") == with_own


@pytest.mark.parametrize("base", ["gone", "wide", "deep", "shallow", "masked", "no record", "no weights"])
def test_an_adapter_whose_base_is_gone_or_another_model_is_refused(run, qwen_dir, model_dir, tmp_path, base):
    trained_adapter(tmp_path / "lora", qwen_dir, plain=False)
    if base == "wide":
        make_causal_dir(tmp_path / base, hidden_size=64)
    elif base == "deep":
        make_causal_dir(tmp_path / base, num_hidden_layers=3)
    elif base == "shallow":
        make_causal_dir(tmp_path / base, num_hidden_layers=1)
    elif base == "masked":
        shutil.copytree(model_dir, tmp_path / base)
    elif base == "no weights":
        (tmp_path / "lora" / ADAPTER_WEIGHTS).rename(tmp_path / "lora/adapter_model.bin")
    card = tmp_path / "lora" / ADAPTER
    saved = json.loads(card.read_text())
    saved["base_model_name_or_path"] = "" if base == "no record" else str(tmp_path / base)
    card.write_text(json.dumps(saved))
    code, out, err = run("--prompt", "天", *SHORT, model=tmp_path / "lora")
    assert code == 2 and not out and ("沒有記載底模" if base == "no record" else "--model_path") in err
    assert base != "gone" or f"底模 {tmp_path / base} 不見了" in err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1


def test_a_row_as_it_is_prompted_is_the_row_as_it_is_trained_on(qwen):
    """The same functions write both: what training puts before the reply is what a prompt puts there."""
    row = {
        "instruction": "翻譯",
        "input": "天",
        "output": "sky",
        "system": "你是雲",
        "history": [["一", "二"]],
    }
    predictor = CausalLMPredictor(*qwen)
    (training,) = predictor.chat.conversation(parse_instruction(row).messages)
    asked = predictor.encode(parse_instruction(row, need_answer=False).messages)
    assert asked == training.ids[: training.reply_spans[-1].start]


@pytest.mark.parametrize("style", ["chat", "plain", "none"])
def test_a_model_is_prompted_in_the_style_that_its_card_says(qwen_dir, style):
    model, tokenizer, device = inference.load_model(qwen_dir, "cpu")
    model.run_card = RunCard(chat=style)
    wanted = {
        "chat": "<|im_start|>user\n天<|im_end|>\n<|im_start|>assistant\n",
        "plain": "User: 天\nAssistant:",
        "none": "天",
    }[style]
    assert tokenizer.decode(CausalLMPredictor(model, tokenizer, device).encode("天")) == wanted
