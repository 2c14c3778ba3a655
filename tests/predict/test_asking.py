"""How the models of an exam are asked: protocols, examples, formats, and what a report says of it."""

import hashlib
import json

import pytest
import torch
from conftest import make_causal_dir, make_exam_dir, make_model_dir

import inference
from finetune.data.exam import read_exam
from finetune.prompts.protocol import load_protocol
from finetune.prompts.question_writer import Asking, QuestionWriter, choose_examples

SUBJECTS = ("physics", "accounting")


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    """Two subjects of 12 questions; physics has 4 dev rows, accounting 2."""
    folder = tmp_path_factory.mktemp("exam")
    make_exam_dir(folder, dev=4, val=2, test=6, subjects=SUBJECTS)
    dev = folder / "accounting_dev.csv"
    dev.write_text("".join(dev.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    return folder


@pytest.fixture
def ask(exam, tmp_path, monkeypatch, capsys):
    """Runs --exam; returns (exit code, results.json, records of predictions.jsonl, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(model, *more):
        words = ["--model_path", model, "--cpu", "--exam", exam, "--report", "r", "--skip_option_only", *more]
        code = inference.main([*map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        path = tmp_path / "r/results.json"
        if not path.exists():
            return code, {}, [], out, err
        lines = (tmp_path / "r/predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return code, json.loads(path.read_text(encoding="utf-8")), [*map(json.loads, lines)], out, err

    return run


def log_likelihood(model, tokenizer, text: str, answer: str) -> float:
    """log P(answer | text) in nats, a token at a time, as lm-eval's `_encode_pair` splits them."""
    before = text.rstrip()
    context = tokenizer(before)["input_ids"]
    whole = tokenizer(text + answer)["input_ids"]
    total = 0.0
    for at in range(len(context), len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([whole[:at]])).logits[0, -1]
        total += logits.double().log_softmax(-1)[whole[at]].item()
    return total


@pytest.mark.parametrize(
    ("form", "shots", "multiturn"),
    [("raw", 0, True), ("raw", 2, True), ("chat", 2, True), ("chat", 1, False)],
)
def test_scores_of_lm_eval_are_the_log_likelihoods_of_its_continuations(
    ask, exam, qwen_dir, form, shots, multiturn
):
    flags = ["--protocol", "lm-eval", "--prompt_format", form, "--num_fewshot", shots, "--log_prompts"]
    code, results, records, _, err = ask(qwen_dir, *flags, "--fewshot_as_multiturn", multiturn)
    assert code == 0 and results["test"]["method"] == "loglikelihood" and results["test"]["orders"] == "1"
    model, tokenizer, _ = inference.load_model(qwen_dir, "cpu")
    questions = read_exam(str(exam)).questions
    asking = Asking(load_protocol("lm-eval"), form, multiturn=multiturn, num_fewshot=shots)
    writer = QuestionWriter(asking, choose_examples(questions["train"], shots))
    for question, record in list(zip(questions["test"], records, strict=True))[::3]:
        text = writer.text(question, range(4))
        if form == "chat":
            messages = writer.messages(question, range(4))
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert record["prompt"] == text
        expected = [log_likelihood(model, tokenizer, text, writer.answer(place)) for place in range(4)]
        assert record["scores"] == pytest.approx(expected, abs=1e-4)


def test_a_protocol_says_its_own_figure_and_how_it_differs_from_what_is_published(ask, qwen_dir, tmp_path):
    code, results, _, out, _ = ask(qwen_dir, "--protocol", "lm-eval", "--num_fewshot", 3)
    differing = results["protocol"]["differences"]
    assert code == 0 and "每題平均（micro），這裡 0." in out and "不是公布的 lm-eval 成績" in out
    assert any("題庫是" in line for line in differing) and "1 科的示範不到 3 題" in differing
    page = (tmp_path / "r/index.html").read_text(encoding="utf-8")
    assert "怎麼問的" in page and "Answer:" in page and "不是公布的 lm-eval 成績" in page
    assert results["protocol"]["format"] == "raw" and results["data"]["rows"] == 12
    assert results["environment"]["precision"] == "fp32" and "torch" in results["environment"]["versions"]


def test_the_prompt_in_the_report_has_the_hash_of_its_token_ids(ask, qwen_dir):
    _, results, records, _, _ = ask(qwen_dir, "--protocol", "lm-eval", "--log_prompts")
    _, tokenizer, _ = inference.load_model(qwen_dir, "cpu")
    prompt = results["prompt"]
    assert prompt["text"] == records[0]["prompt"] and prompt["id"] == records[0]["id"]
    ids = tokenizer(prompt["text"])["input_ids"]
    assert prompt["tokens"] == len(ids)
    assert prompt["token_ids_sha256"] == hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def test_our_own_prompt_is_said_not_to_be_comparable_and_logs_no_prompt_unasked(ask, qwen_dir):
    code, results, records, out, _ = ask(qwen_dir)
    assert code == 0 and results["protocol"]["name"] == "ours" and "prompt" not in records[0]
    assert "同公布的成績，問法" not in out  # two subjects have no macro-4
    assert results["prompt"]["text"].startswith("<|im_start|>") and "可以並列" not in out


def test_subjects_with_fewer_examples_are_named(ask, qwen_dir):
    code, _, _, _, err = ask(qwen_dir, "--protocol", "lm-eval", "--num_fewshot", 3)
    assert code == 0 and "1 科的示範不到 3 題（accounting 2 題）" in err


def test_a_masked_model_is_shown_examples_before_its_blank(ask, exam, tmp_path):
    long = make_model_dir(tmp_path / "long", max_position_embeddings=512)
    code, results, records, _, _ = ask(
        long, "--num_fewshot", 1, "--scoring", "letter", "--log_prompts", "--orders", "1"
    )
    assert code == 0 and results["protocol"]["format"] == "masked"
    first = read_exam(str(exam)).questions["train"][0]
    text = records[0]["prompt"].replace(" ", "")
    assert text.count("題目") == 2 and text.count("[MASK]") == 1
    assert text.index(first.stem[:4]) < text.index("[MASK]") and results["protocol"]["num_fewshot"] == 1


def test_examples_for_which_a_masked_model_has_no_room_are_refused_with_the_count(ask, exam, tmp_path):
    short = make_model_dir(tmp_path / "short", max_position_embeddings=160)
    code, _, _, _, err = ask(short, "--num_fewshot", 4, "--scoring", "letter")
    assert (
        code == 2 and "--num_fewshot 4：12 題中有" in err and ("最多 --num_fewshot" in err or "放不下" in err)
    )


def test_another_protocol_is_refused_for_a_model_that_does_not_write(ask, model_dir):
    code, _, _, _, err = ask(model_dir, "--protocol", "lm-eval")
    assert code == 2 and "--protocol lm-eval" in err and "--protocol ours" in err


def test_flags_of_asking_without_an_exam_are_refused(model_dir, capsys):
    code = inference.main(["--model_path", str(model_dir), "--prompt", "天", "--num_fewshot", "2"])
    assert code == 2 and "--num_fewshot 要與 --exam 一起給" in capsys.readouterr().err


def test_arguments_reach_the_chat_template(ask, tmp_path):
    folder = make_causal_dir(tmp_path / "thinks")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.get("chat_template") or (folder / "chat_template.jinja").read_text()
    template += "{% if not enable_thinking | default(true) %}<quiet>{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    flags = ["--protocol", "lm-eval", "--prompt_format", "chat", "--log_prompts", "--exam_limit", "2"]
    _, results, records, _, _ = ask(folder, *flags, "--chat_template_kwargs", "enable_thinking=false")
    assert results["protocol"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert records[0]["prompt"].endswith("<quiet>")
    _, _, records, _, _ = ask(folder, *flags)
    assert not records[0]["prompt"].endswith("<quiet>")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chat_template_kwargs", "tokenize=true"], "tokenize 由程式決定"),
        (["--chat_template_kwargs", "thinking"], "名稱=值"),
        (["--chat_template_kwargs", "a=1", "a=2"], "a 給了兩次"),
        (["--chat_template_kwargs", "self=1", "a=1", "a=2"], "self 由程式決定"),
        (["--chat_template_kwargs", "a=!!binary aGk="], "名稱=值"),
        (["--chat_template_kwargs", "a=!!set {x}"], "名稱=值"),
        (["--chat_template_kwargs", "a=.nan"], "名稱=值"),
        (["--chat_template_kwargs", "a=&x [*x]"], "名稱=值"),
        (["--protocol", "no.yaml"], "沒有這個檔案"),
        (["--protocol", "twinkle-logit", "--prompt_format", "chat"], "只有 raw"),
        (["--fewshot_as_multiturn", "maybe"], "true 或 false"),
    ],
)
def test_wrong_values_of_the_flags_of_asking_are_refused_before_a_model_is_loaded(ask, words, said):
    code, _, _, _, err = ask("no-model", *words)
    assert code == 2 and said in err and "no-model" not in err


def test_arguments_of_the_template_are_kept_as_they_were_written(ask, qwen_dir):
    words = ["day=2026-01-02", "nested={a: [1, '二']}", "text='x'", "off=no", "empty="]
    code, results, _, _, _ = ask(qwen_dir, "--exam_limit", 1, "--chat_template_kwargs", *words)
    expected = {"day": "2026-01-02", "nested": {"a": [1, "二"]}, "text": "x", "off": False, "empty": None}
    assert code == 0 and results["protocol"]["chat_template_kwargs"] == expected


def test_an_argument_that_breaks_the_template_is_named_as_what_to_change(ask, qwen_dir):
    code, _, _, _, err = ask(qwen_dir, "--chat_template_kwargs", "tools=7")
    assert code == 2 and "去掉 --chat_template_kwargs" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt_format", "raw", "--chat_template_kwargs", "a=1"], "--chat_template_kwargs 沒有作用"),
        (["--fewshot_as_multiturn"], "--fewshot_as_multiturn 沒有作用：這次沒有示範"),
        (["--protocol", "lm-eval", "--fewshot_as_multiturn", "--num_fewshot", "1"], "這次直接接在文字後面"),
    ],
)
def test_flags_of_conversations_that_have_no_effect_are_said(ask, qwen_dir, words, said):
    code, _, _, _, err = ask(qwen_dir, "--exam_limit", 1, *words)
    assert code == 0 and err.count("沒有作用") == 1 and said in err


OWN = 'title: 我的\nraw:\n  question: "{stem}\\n{options}\\n答："\n  scoring: generate\n  max_new_tokens: 3\n'


def test_a_protocol_of_ones_own_claims_nothing_of_published_figures(ask, qwen_dir, tmp_path):
    (tmp_path / "lm-eval.yaml").write_text(OWN, encoding="utf-8")
    flags = ["--protocol", "lm-eval.yaml", "--exam_limit", 2]
    code, results, _, out, err = ask(qwen_dir, *flags, "--max_new_tokens", 2, "--do_sample", "--seed", 1)
    asked = results["protocol"]
    assert code == 0 and asked["own"] and asked["name"] == "lm-eval.yaml" and "公布" not in out
    assert asked["decoding"] == {"do_sample": True, "seed": 1}
    assert asked["differences"] == [
        "回答最多 2 個 token（--max_new_tokens），檔案裡寫的是 3 個",
        "生成的方式由 --do_sample、--seed 改過",
        "只抽了 2 題（--exam_limit）",
    ]
    assert "校準用" not in err  # a reply states no confidence: hours on the validation rows for nothing


def test_a_change_of_how_replies_are_generated_is_a_difference(ask, qwen_dir):
    flags = ["--protocol", "ievals", "--exam_limit", 1, "--max_new_tokens", 2]
    _, results, _, _, _ = ask(qwen_dir, *flags, "--repetition_penalty", 1.2)
    said = results["protocol"]["differences"]
    assert "回答最多 2 個 token（--max_new_tokens），公布的是 800 個" in said
    assert "生成的方式由 --repetition_penalty 改過" in said


def test_a_prompt_that_lost_its_beginning_is_not_said_to_have_a_shorter_stem(ask, tmp_path):
    short = make_causal_dir(tmp_path / "short", max_position_embeddings=48)
    code, _, _, out, _ = ask(short, "--protocol", "lm-eval", "--exam_limit", 2)
    assert code == 0 and "題太長，切掉了提示的開頭" in out


def test_letters_cannot_be_scored_where_the_answer_goes_on_behind_them(ask, qwen_dir):
    code, _, _, _, err = ask(qwen_dir, "--protocol", "twinkle-box", "--scoring", "letter")
    assert code == 2 and "不是單獨一個字母" in err and "--scoring loglikelihood 或 generate" in err


def test_questions_without_a_key_log_their_prompts_and_leave_no_key_to_audit(qwen_dir, tmp_path, capsys):
    (tmp_path / "exam.csv").write_text("question,A,B,answer\n一？,甲,乙,\n二？,甲,乙,\n", encoding="utf-8")
    words = ["--model_path", qwen_dir, "--cpu", "--exam", tmp_path / "exam.csv", "--report", tmp_path / "r"]
    assert inference.main([*map(str, words), "--log_prompts", "--audit_keys"]) == 0
    lines = (tmp_path / "r/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert ["一？" in json.loads(lines[0])["prompt"], "二？" in json.loads(lines[1])["prompt"]] == [True] * 2
    assert "--audit_keys 沒有作用" in capsys.readouterr().err


def test_several_runs_are_recorded_with_the_one_order_that_each_of_them_has(ask, qwen_dir):
    _, results, _, _, _ = ask(qwen_dir, "--exam_limit", 2, "--repeat", 2)
    assert results["protocol"]["orders"] == results["test"]["orders"] == "1"
    _, results, _, _, _ = ask(qwen_dir, "--exam_limit", 2)
    assert results["protocol"]["orders"] == results["test"]["orders"] == "cyclic"


def test_two_models_that_are_asked_in_different_forms_are_said_to_be(ask, qwen_dir, llama_dir):
    flags = ["--protocol", "ievals", "--exam_limit", 1, "--max_new_tokens", 1, "--compare_with", llama_dir]
    _, _, _, out, _ = ask(qwen_dir, *flags)
    assert f"兩個模型的問法不同：{llama_dir} 以 raw 發問，這個模型以 chat" in out
    _, _, _, out, _ = ask(qwen_dir, *flags, "--prompt_format", "raw")
    assert "兩個模型的問法不同" not in out


def test_a_template_without_a_place_for_the_protocols_system_message_is_a_difference(ask, tmp_path):
    folder = make_causal_dir(tmp_path / "narrow")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    flags = ["--protocol", "lm-eval", "--exam_limit", "2"]
    differing = ask(folder, *flags, "--prompt_format", "chat")[1]["protocol"]["differences"]
    assert any("沒有 system 的位置" in line for line in differing)
    assert not any("system" in line for line in ask(folder, *flags)[1]["protocol"]["differences"])


def test_a_length_that_is_given_is_kept_even_where_it_is_the_default_of_prompts(ask, qwen_dir):
    flags = ["--protocol", "ievals", "--exam_limit", "1"]
    for given, length in (([], 800), (["--max_new_tokens", "256"], 256)):
        assert ask(qwen_dir, *flags, *given)[1]["protocol"]["max_new_tokens"] == length


def test_a_chat_form_that_is_asked_for_needs_a_template_under_our_own_protocol_too(ask, llama_dir):
    code, _, _, _, err = ask(llama_dir, "--prompt_format", "chat")
    assert code == 2 and "沒有對話樣板" in err and "--prompt_format raw" in err
