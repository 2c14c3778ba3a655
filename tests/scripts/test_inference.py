"""Using a model: Python functions, one-shot, the terminal."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import inference
from finetune.runtime.console import MODEL_FOLDER
from finetune.runtime.errors import UserError

QUESTION = "天地玄黃宇宙？"
OPTIONS = {"A": "地", "B": "玄黃", "C": "日月"}


@pytest.fixture
def run_inference(model_dir, capsys):
    """Runs inference.main on the tiny model; returns (exit code, stdout, stderr)."""

    def run(*argv: str):
        code = inference.main(["--model_path", str(model_dir), "--cpu", *argv])
        return code, *capsys.readouterr()

    return run


def test_a_blank_is_filled_with_the_words_the_fill_mask_pipeline_gives(loaded):
    from transformers import pipeline

    model, tokenizer, device = loaded
    reference = pipeline("fill-mask", model=model, tokenizer=tokenizer, device=-1)
    words = set(tokenizer.all_special_tokens)
    for prompt in ("天地玄[MASK]。", "[MASK]地", "dna與[MASK]天"):
        expected = [
            row["token_str"].replace(" ", "")
            for row in reference(prompt, top_k=30)
            if row["token_str"] not in words
        ]
        got = inference.predict_mask(model, tokenizer, prompt, device, top_k=10)
        assert [word.replace(" ", "") for word in got] == expected[:10]


def test_a_prompt_without_a_blank_gets_one_at_its_end_and_of_several_the_first_is_filled(loaded):
    model, tokenizer, device = loaded
    with_mask = inference.predict_mask(model, tokenizer, "天地[MASK]", device, 3)
    assert inference.predict_mask(model, tokenizer, "天地", device, 3) == with_mask and len(with_mask) == 3
    assert len(inference.predict_mask(model, tokenizer, "天[MASK]玄[MASK]", device)) == 5


def test_a_prompt_that_is_too_long_is_refused(loaded):
    model, tokenizer, device = loaded
    with pytest.raises(UserError, match="最多 128 個"):
        inference.predict_mask(model, tokenizer, "天" * 200, device)


@pytest.mark.parametrize("method", ["letter", "joint", "pll"])
def test_answers_come_best_first_with_label_text_and_score(loaded, method):
    ranked = inference.qa_inference(*loaded[:2], QUESTION, OPTIONS, loaded[2], scoring=method)
    assert {(label, text) for label, text, _ in ranked} == set(OPTIONS.items())
    scores = [score for *_, score in ranked]
    assert scores == sorted(scores, reverse=True) and max(scores) <= 0
    assert (
        inference.qa_inference(*loaded[:2], QUESTION, OPTIONS, loaded[2], top_k=1, scoring=method)
        == ranked[:1]
    )


def test_a_blank_is_called_mask_whatever_the_tokenizer_calls_it():
    from types import SimpleNamespace

    from finetune.predict.fill_mask import read_blanks

    class Angled(SimpleNamespace):
        def __call__(self, text, **_):
            return {"input_ids": [ord(c) for c in text]}

    tokenizer = Angled(
        mask_token="<mask>", mask_token_id=9, cls_token_id=None, bos_token_id=1, sep_token_id=2
    )
    tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id = 1, 2, 3
    read = read_blanks(tokenizer, "天[MASK]地<mask>", 50)
    assert read.ids == (1, ord("天"), 9, ord("地"), 9, 2) and read.positions == (2, 4)


def test_a_model_is_scored_the_way_its_run_card_says(train, tmp_path, loaded):
    assert train("--objective", "answer", "--max_steps", 2) == 0
    model, tokenizer, device = inference.load_model(tmp_path / MODEL_FOLDER, "cpu")
    assert model.run_card.scoring == "letter"
    auto, letter, pll = (
        inference.qa_inference(model, tokenizer, QUESTION, OPTIONS, device, scoring=s)
        for s in ("auto", "letter", "pll")
    )
    assert auto == letter != pll
    assert inference.qa_inference(*loaded[:2], QUESTION, OPTIONS, "cpu") == inference.qa_inference(
        *loaded[:2], QUESTION, OPTIONS, "cpu", scoring="pll"
    )


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A:地球 B:木星 C:火星", {"A": "地球", "B": "木星", "C": "火星"}),
        ("A：地 球 B：a b: c  C:", None),
        ("A：地 球 B：x: y C:9:30", {"A": "地 球", "B": "x: y", "C": "9:30"}),
        ("a:甲, b:乙", {"A": "甲", "B": "乙"}),
        ("（A）：甲（B）：乙", {"A": "甲", "B": "乙"}),
        ("1:甲 2:乙 10:丙", {"1": "甲", "2": "乙 10:丙"}),
        ("A:地球\nB:木星", {"A": "地球", "B": "木星"}),
        ("A:甲 D:乙 B:丙", {"A": "甲 D:乙", "B": "丙"}),
        ("A. 東京 B. 首爾 3.5 C、河內", {"A": "東京", "B": "首爾 3.5", "C": "河內"}),
        ("1.5 2.5", None),
        ("A:f(b) B:g(x)", {"A": "f(b)", "B": "g(x)"}),
        ("1:Fe(2) 2:Cu", {"1": "Fe(2)", "2": "Cu"}),
        ("A:維生素(B) B:維生素(C)", {"A": "維生素(B)", "B": "維生素(C)"}),
        ("(A) 甲 (b) 乙 (B) 丙", {"A": "甲 (b) 乙", "B": "丙"}),
        ("A:甲", None),
        ("甲 乙", None),
        ("", None),
    ],
)  # fmt: skip
def test_options_are_read_as_people_type_them(text, options):
    if options is None:
        with pytest.raises(UserError, match="A:地球"):
            inference.parse_options(text)
    else:
        assert inference.parse_options(text) == options


def test_one_shot_prints_prompt_and_ranking(run_inference):
    code, out, _ = run_inference("--prompt", "天地[MASK]黃", "--top_k", "3")
    lines = out.splitlines()
    assert code == 0 and lines[:3] == ["問題: 天地[MASK]黃", "", "預測結果（Top 3）:"]
    assert [line[:5] for line in lines[3:]] == ["  1. ", "  2. ", "  3. "]
    code, out, _ = run_inference("--question", QUESTION, "--options", "A:地 B:玄黃 C:日月")
    assert code == 0 and out.count("分數: ") == 3


def test_what_the_model_cannot_read_and_a_blank_that_was_added_are_said(run_inference):
    code, out, err = run_inference("--prompt", "龘地[MASK]")
    assert code == 0 and "不認得：龘" in err and "加在句尾" not in err
    assert "不認得" not in out
    assert "加在句尾" in run_inference("--prompt", "天地")[2]
    assert "空格要寫成 [MASK]" in run_inference("--prompt", "天[mask]地")[2]
    assert "不認得：龘" in run_inference("--question", "天？", "--options", "A:龘 B:地")[2]


def test_json_is_one_object_a_line_and_nothing_else_on_stdout(run_inference):
    code, out, _ = run_inference(
        "--prompt", "天[MASK]", "--question", QUESTION, "--options", "A:地 B:玄", "--json"
    )
    prompt, question = map(json.loads, out.splitlines())
    assert code == 0 and len(prompt["predictions"]) == 5 and question["answer"] in "AB"
    assert question["scores"].keys() == {"A", "B"}
    code, out, _ = run_inference(
        "--question", QUESTION, "--options", "A:地 B:玄", "--json", "--answer_format", "index"
    )
    assert json.loads(out)["answer"] == "AB".index(question["answer"])


def test_the_terminal_answers_and_a_wrong_entry_never_ends_it(loaded, monkeypatch, capsys):
    entries = iter(
        [
            "天地[MASK]",
            "",
            "qa",
            QUESTION,
            "A:地 B:玄 黃",
            "qa",
            "",
            "A:地 B:玄",
            "qa",
            "x",
            "rubbish",
            "天" * 300,
            "\x00😀",
            "QUIT",
        ]
    )
    asked = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or next(entries))
    inference.interactive_mode(*loaded)
    out = capsys.readouterr().out
    assert asked[0] == "💬 請輸入問題: " and "❓ 問題: " in asked and "選項: " in asked
    assert "🔮 預測結果（Top 5）:" in out and "🎯 預測結果（按可能性排序）:" in out
    assert out.count("(分數: ") == 2 and out.count("⚠️") == 3
    assert out.rstrip().endswith("👋 再見！")


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_ctrl_d_and_ctrl_c_say_goodbye(loaded, monkeypatch, capsys, end):
    def ends(_):
        raise end

    monkeypatch.setattr(builtins, "input", ends)
    inference.interactive_mode(*loaded)
    assert "👋 再見！" in capsys.readouterr().out


@pytest.mark.slow
def test_it_works_from_another_folder_without_datasets_or_deepspeed(tmp_path, model_dir):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import importlib.machinery
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        gone = name.split(".")[0] in ("datasets", "deepspeed", "accelerate", "peft")
        return None if gone else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
from inference import load_model, predict_mask, qa_inference
model, tokenizer, device = load_model({str(model_dir)!r}, "cpu")
print(len(predict_mask(model, tokenizer, "天[MASK]", device)), len(qa_inference(model, tokenizer, "天？",
{{"A": "地", "B": "玄"}}, device)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["5", "2"], done.stderr


@pytest.mark.slow
def test_scoring_a_question_loads_no_training_code(model_dir):
    code = """
import sys, inference
assert inference.main(sys.argv[1:]) == 0
heavy = ("datasets", "deepspeed", "finetune.training", "finetune.objectives")
sys.exit(sum(name.startswith(heavy) for name in sys.modules))
"""
    words = ["--model_path", str(model_dir), "--cpu", "--question", "天？", "--options", "A:地 B:玄"]
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True).returncode == 0


def test_half_precision_answers_like_full_precision(run_inference):
    words = ["--question", QUESTION, "--options", "A:地 B:玄黃", "--json"]
    full, half = (json.loads(run_inference(*words, "--precision", p)[1])["scores"] for p in ("fp32", "bf16"))
    assert full == pytest.approx(half, abs=0.05)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--prompt", " "], "--prompt 是空的"),
        (["--question", "天？"], "要一起給"),
        (["--options", "A:地 B:玄"], "要一起給"),
        (["--question", "天？", "--options", "地 玄"], "--options"),
        (["--prompt", "天", "--top_k", "0"], "--top_k"),
        (["--prompt", "天", "--precision", "fp16"], "fp16"),
    ],
)
def test_bad_flags_are_said_with_the_way_out(run_inference, argv, says):
    code, out, err = run_inference(*argv)
    assert code == 2 and says in err and not out and "Traceback" not in err


# ---- models that cannot be used ----------------------------------------------------------------------------


def refused(path, capsys) -> str:
    assert inference.main(["--model_path", str(path), "--cpu", "--prompt", "天"]) == 2
    seen = capsys.readouterr()
    assert not seen.out and "Traceback" not in seen.err and seen.err.count("✗") == 1
    return seen.err


def test_a_folder_that_is_no_model_is_refused_with_its_reason(tmp_path, model_dir, capsys):
    import shutil

    assert "沒有這個資料夾" in refused(tmp_path / "nothing", capsys)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty", capsys)
    bare = tmp_path / "bare"
    shutil.copytree(model_dir, bare)
    (bare / "model.safetensors").unlink()
    assert "沒有 model.safetensors" in refused(bare, capsys)
    (bare / "pytorch_model.bin").write_bytes(b"x")
    assert "pickle" in refused(bare, capsys)
    (bare / "model.safetensors").write_bytes(b"rubbish" * 10)
    assert "不完整，或不是 safetensors" in refused(bare, capsys)
    shutil.copy(model_dir / "model.safetensors", bare)
    (bare / "config.json").write_text("{")
    assert "config.json 讀不懂" in refused(bare, capsys)


def test_a_causal_model_is_refused_for_a_masked_task(tmp_path, train, capsys, model_dir):
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=32)).save_pretrained(
        tmp_path / "gpt2"
    )
    shutil.copy(model_dir / "tokenizer.json", tmp_path / "gpt2")
    assert train("--model_name_or_path", tmp_path / "gpt2") == 2
    err = capsys.readouterr().err
    assert "gpt2 模型" in err and "不是填空用的遮罩語言模型" in err
    assert not (tmp_path / "my_bert_finetuned_model_hf_format").exists()


def test_a_head_that_was_never_trained_does_not_pass_silently(tmp_path, model_dir, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model_dir, tmp_path / "headless")
    file = tmp_path / "headless/model.safetensors"
    save_file(
        {k: v for k, v in load_file(file).items() if not k.startswith("cls.")},
        file,
        metadata={"format": "pt"},
    )
    assert "輸出層會是隨機初始化" in refused(tmp_path / "headless", capsys)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, model_dir, capsys):
    import shutil

    shutil.copytree(model_dir, tmp_path / "odd")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "odd" / name).unlink()
    assert "沒有 tokenizer" in refused(tmp_path / "odd", capsys)


def test_the_tokenizer_is_repaired_when_its_vocabulary_has_no_capitals_and_the_repair_is_saved(
    train, tmp_path, model_dir
):
    from transformers import AutoTokenizer

    asked = "DNA與ATP"
    shipped = AutoTokenizer.from_pretrained(model_dir)
    assert shipped.unk_token_id in shipped(asked)["input_ids"]
    assert train("--max_steps", 1, "--exam_limit", 2) == 0
    folder = Path(MODEL_FOLDER)
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.unk_token_id not in saved(asked)["input_ids"]
    assert (folder / "vocab.txt").read_text().splitlines() == (
        model_dir / "vocab.txt"
    ).read_text().splitlines()
