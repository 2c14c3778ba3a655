"""A model whose arithmetic gives NaN: said, never written as a score, never chosen from."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import transformers
from conftest import make_exam_dir, make_model_dir, write_csv
from safetensors.torch import load_file, save_file

import inference
from finetune.runtime.console import as_json
from finetune.runtime.strict_json import dumps

REASON = "模型輸出 NaN 或無限大"


def spoilt(folder, name: str, row: int = -1):
    """Writes NaN into a tensor of a model's folder; of a matrix into one row, or into all."""
    weights = load_file(folder / "model.safetensors")
    weights[name][... if row < 0 else row] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def masked(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "masked")
    return tmp_path / "masked"


@pytest.fixture
def classifier(tmp_path):
    folder = make_model_dir(tmp_path / "classifier")
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def refuses(capsys, *argv) -> None:
    assert inference.main([*map(str, argv), "--cpu"]) == 2
    out, err = capsys.readouterr()
    assert REASON in err and "Traceback" not in err and "NaN" not in out and "nan" not in out


def test_one_question_or_prompt_ends_with_2(masked, classifier, llama_dir, tmp_path, capsys):
    spoilt(masked, "bert.encoder.layer.0.output.dense.bias")
    for more in ([], ["--json"]):
        refuses(capsys, "--model_path", masked, "--prompt", "天[MASK]", *more)
        refuses(capsys, "--model_path", masked, "--prompt", "天[MASK]", "--word_length", 2, *more)
        refuses(capsys, "--model_path", masked, "--prompt", "天[MASK]", "--candidates", "地,玄", *more)
        refuses(capsys, "--model_path", masked, "--question", "天？", "--options", "A:地 B:玄", *more)
    spoilt(classifier, "classifier.bias")
    refuses(capsys, "--model_path", classifier, "--prompt", "天地", "--json")
    shutil.copytree(llama_dir, tmp_path / "llama")
    spoilt(tmp_path / "llama", "model.norm.weight")
    refuses(capsys, "--model_path", tmp_path / "llama", "--prompt", "天地")
    refuses(capsys, "--model_path", tmp_path / "llama", "--question", "天？", "--options", "A:地 B:玄")


@pytest.mark.parametrize("kind", ["classifier", "causal"])
def test_in_a_file_the_row_has_its_error_and_no_other_row_suffers(
    kind, classifier, llama_dir, tmp_path, capsys
):
    folder, column, embeddings = classifier, "text", "bert.embeddings.word_embeddings.weight"
    if kind == "causal":
        folder, column, embeddings = tmp_path / "llama", "prompt", "model.embed_tokens.weight"
        shutil.copytree(llama_dir, folder)
    rows = write_csv(tmp_path / "rows.csv", [["天地"], ["洪荒"], ["日月"]], (column,))

    def answered() -> list[dict]:
        words = ["--model_path", folder, "--input", rows, "--output", tmp_path / "out.jsonl", "--cpu"]
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        more = ["--max_new_tokens", 4] if kind == "causal" else []
        assert inference.main([*map(str, [*words, *more])]) == 0
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line, parse_constant=pytest.fail) for line in lines]

    before = answered()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    spoilt(folder, embeddings, tokenizer("洪荒", add_special_tokens=False)["input_ids"][-1])
    after = answered()
    assert [before[0], before[2]] == [after[0], after[2]] and not before[1]["error"]
    assert REASON in after[1]["error"] and not after[1].get("label") and not after[1].get("response")


def test_an_exam_without_a_number_among_its_answers_has_no_accuracy(masked, tmp_path, capsys):
    spoilt(masked, "bert.encoder.layer.0.output.dense.bias")
    exam = make_exam_dir(tmp_path / "exam", dev=2, val=2, test=3, subjects=("physics",))
    refuses(capsys, "--model_path", masked, "--exam", exam, "--report", tmp_path / "report")


def test_nothing_that_is_no_number_is_written_as_json():
    value = {"loss": math.nan, "rows": [1.5, math.inf, (-math.inf,)], "text": "NaN", "none": None}
    wanted = {"loss": None, "rows": [1.5, None, [None]], "text": "NaN", "none": None}
    for write in (dumps, as_json):
        assert json.loads(write(value), parse_constant=pytest.fail) == wanted
