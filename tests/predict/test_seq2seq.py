"""An encoder-decoder trained by the command, and used in every way: prompt, file, exam, session, Python."""

from __future__ import annotations

import io
import json
import random

import pytest
from conftest import random_text, write_rows
from encoder_decoders import save

import fine_tuning_llm
import inference

pytestmark = pytest.mark.slow


def swapped(text: str) -> str:
    return text[::-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, base): a BART trained for some steps on reversed texts, with a prefix; and its T5 sister."""
    folder = tmp_path_factory.mktemp("seq2seq")
    rng = random.Random(0)
    sources = [random_text(rng, 3, 5) for _ in range(60)]
    write_rows(folder / "pairs.jsonl", [{"input": text, "output": swapped(text)} for text in sources])
    base = save(folder / "base", "bart", spread=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = fine_tuning_llm.main(
            ["--task", "seq2seq", "--dataset", "pairs.jsonl", "--model_name_or_path", str(base), "--cpu",
             "--max_length", "32", "--max_target_length", "9", "--max_steps", "4", "--prefix", "題目：",
             "--exam_limit", "4", "--output_dir", "out/model", "--save_dir", "ck", "--engine", "torch"]
        )  # fmt: skip
    assert code == 0
    return folder


@pytest.fixture
def folders(world):
    return {"tuned": world / "out" / "model"}


def test_what_is_saved_is_what_transformers_generates(world):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = world / "out" / "model"
    model, tokenizer, device = inference.load_model(folder, "cpu")
    ours = inference.generate_text(model, tokenizer, ["天地玄黃", "日月"], device, max_new_tokens=9)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert theirs.config.fine_tuned_as == "seq2seq" and theirs.generation_config.max_length == 10
    reader = AutoTokenizer.from_pretrained(folder)
    ids = reader(["題目：天地玄黃", "題目：日月"], padding=True, return_tensors="pt")
    written = theirs.generate(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
    texts = reader.batch_decode(written, skip_special_tokens=True)
    assert [text.replace(" ", "") for text in texts] == [text.replace(" ", "") for text in ours]


def test_the_report_compares_with_the_base_and_with_copying(world):
    card = json.loads((world / "out" / "model" / "run_card.json").read_text(encoding="utf-8"))
    metrics = card["metrics"]["held_back"]
    assert (
        metrics["n"] == 4
        and {*metrics["baselines"]} == {"lead", "copy"}
        and "rougeL" in metrics["difference"]
    )
    page = (world / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "ROUGE-L" in page and "照抄輸入" in page and "微調前" in page


def test_a_prompt_a_file_and_an_exam(run, world):
    code, out, _ = run("tuned", "--prompt", "天地", "--json", "--num_beams", 2)
    record = json.loads(out)
    assert code == 0 and {*record} == {"prompt", "response", "truncated"}
    rows = [
        {"id": "a", "input": "天地", "output": "地天", "note": "甲"},
        {"id": "b", "input": "", "output": "x"},
    ]
    write_rows(world / "in.jsonl", rows)
    code, out, err = run("tuned", "--input", world / "in.jsonl", "--output", world / "o.jsonl", "--overwrite")
    written = [json.loads(line) for line in (world / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert code == 0 and written[0]["target"] == "地天" and written[0]["note"] == "甲"
    assert written[1]["response"] is None and written[1]["error"] == "input 是空的"
    assert "ROUGE-L" in out + err
    flags = ("--exam", world / "pairs.jsonl", "--exam_limit", 5, "--report", world / "rep")
    code, out, err = run("tuned", *flags, "--compare_with", "base")
    assert code == 0 and "微調前" in out
    predictions = (world / "rep" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 5 and "untuned_response" in json.loads(predictions[0])


def test_a_session_survives_whatever_is_typed(run, monkeypatch):
    lines = "天地\n\nhelp\nbeams 2\nbeams x\nsample maybe\ntemperature 9\ntokens 3\nqa\n/foo\n日月\nq\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, _ = run("tuned")
    assert code == 0 and out.count("🤖") == 3 and "beams x" in out and "👋" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--question", "天", "--options", "A:地 B:玄"), "文字轉換模型"),
        (("--prompt", "天", "--system_prompt", "地"), "--system_prompt"),
        (("--prompt", "天", "--candidates", "地"), "--candidates"),
    ],
)
def test_what_it_cannot_do_is_refused(run, flags, said):
    code, out, err = run("tuned", *flags)
    assert code == 2 and said in out + err


def test_pairs_are_inspected(run, world, capsys):
    code = inference.main(["--inspect", str(world / "pairs.jsonl")])
    out = capsys.readouterr().out
    assert code == 0 and "輸入欄 input" in out and "輸入相同、輸出不同" in out


def test_translations_are_inspected_in_the_direction_that_the_columns_name(tmp_path, capsys):
    rows = [{"translation": {"en": f"I have {n} cats.", "zh": f"我有 {n} 隻貓。"}} for n in range(4)]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code = inference.main(["--inspect", str(file), "--text_column", "en", "--label_column", "zh"])
    out = capsys.readouterr().out
    assert code == 0 and "4 列" in out and "輸入欄 en，輸出欄 zh" in out


@pytest.mark.nightly  # T5 is in tests/training/test_task_laws.py
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_adapter_beside_its_base_writes_as_the_merged_model(world, tmp_path, monkeypatch, family):
    base = save(tmp_path / "base", family, spread=0.1)
    texts = []
    for merge in ([], ["--no_merge"]):
        folder = tmp_path / ("apart" if merge else "merged")
        folder.mkdir()
        monkeypatch.chdir(folder)
        code = fine_tuning_llm.main(
            ["--task", "seq2seq", "--dataset", str(world / "pairs.jsonl"), "--model_name_or_path", str(base),
             "--cpu", "--max_length", "32", "--max_target_length", "9", "--max_steps", "2",
             "--lora_rank", "2", "--lora_dropout", "0", "--exam_limit", "1", "--engine", "torch",
             "--output_dir", "out/model", "--save_dir", "ck", *merge]
        )  # fmt: skip
        assert code == 0
        model, tokenizer, device = inference.load_model(folder / "out" / "model", "cpu")
        texts.append(inference.generate_text(model, tokenizer, ["天地玄黃"], device, max_new_tokens=8))
    assert texts[0] == texts[1]
