"""Laws that hold for every task whose rows are measured one by one: classify, tag, span and seq2seq.

A run that goes on, rows cut otherwise, two ranks, ZeRO, adapters, frozen layers, bad rows, strangers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_same_weights, losses, make_model_dir, random_text
from encoder_decoders import save
from forked import run_ranks
from safetensors.torch import load_file

import fine_tuning_llm
import inference

NAME = "my_bert_finetuned_model_hf_format"
STILL = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # with dropout ranks draw differently


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled_rows(rng: random.Random, count: int) -> list[dict]:
    return [{"text": random_text(rng, 4, 20), "label": rng.choice("甲乙丙")} for _ in range(count)]


def tagged_rows(rng: random.Random, count: int) -> list[dict]:
    rows = []
    for _ in range(count):
        before, name, after = random_text(rng, 1, 8), random_text(rng, 2, 3), random_text(rng, 1, 8)
        entity = {"start": len(before), "end": len(before + name), "label": rng.choice(["人", "地"])}
        rows.append({"text": before + name + after, "entities": [entity]})
    return rows


def asked_rows(rng: random.Random, count: int) -> list[dict]:
    rows = []
    for _ in range(count):
        before, answer, after = random_text(rng, 3, 12), random_text(rng, 2, 4), random_text(rng, 3, 12)
        rows.append({
            "context": before + "，" + answer + "。" + after, "question": random_text(rng, 3, 6) + "？",
            "answer": answer, "answer_start": len(before) + 1,
        })  # fmt: skip
    return rows


def paired_rows(rng: random.Random, count: int) -> list[dict]:
    rows = []
    for _ in range(count):
        text = random_text(rng, 4, 12)
        rows.append({"input": text, "output": text[::-1]})
    return rows


def make_t5_dir(folder: Path, **changes) -> Path:
    return save(folder, "t5", **{"dropout_rate": 0.1, **changes})


@dataclass(frozen=True)
class World:
    """What a task trains on in these tests.

    Attributes:
        rows: makes so many rows.
        spoil: a row that the task cannot use, and a word of the reason.
        use: (model, tokenizer, device, row) -> what inference.py makes of a row.
        make: writes its base model into a folder.
        still: settings of a base without dropout.
    """

    rows: Callable[[random.Random, int], list[dict]]
    spoil: tuple[dict, str]
    use: Callable
    make: Callable[..., Path] = make_model_dir
    still: tuple[tuple[str, float], ...] = tuple(STILL.items())


WORLDS = {
    "classify": World(
        labelled_rows, ({"text": "", "label": "甲"}, "text 是空的"),
        lambda model, tokenizer, device, row: inference.classify(model, tokenizer, [row["text"]], device),
    ),
    "tag": World(
        tagged_rows,
        (
            {"text": "天地玄黃", "entities": [{"start": 0, "end": 3, "label": "人"},
             {"start": 2, "end": 4, "label": "人"}]}, "交錯",
        ),
        lambda model, tokenizer, device, row: inference.tag(model, tokenizer, [row["text"]], device),
    ),
    "span": World(
        asked_rows, ({"context": "天地玄黃", "question": "？", "answer": "宇宙", "answer_start": 0}, "宇宙"),
        lambda model, tokenizer, device, row: inference.answer_span(
            model, tokenizer, row["context"], row["question"], device
        ),
    ),
    "seq2seq": World(
        paired_rows, ({"input": "天地", "output": ""}, "output 是空的"),
        lambda model, tokenizer, device, row: inference.generate_text(
            model, tokenizer, [row["input"]], device, max_new_tokens=8
        ),
        make_t5_dir, (("dropout_rate", 0.0),),
    ),
}  # fmt: skip
every_task = pytest.mark.parametrize("task", list(WORLDS))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Bases by task, with dropout and without, made once."""
    made: dict = {}

    def base(task: str, still: bool = False) -> Path:
        world = WORLDS[task]
        key = world.make, still
        if key not in made:
            folder = tmp_path_factory.mktemp("bases") / world.make.__name__
            made[key] = world.make(folder, **(dict(world.still) if still else {}))
        return made[key]

    return base


@pytest.fixture
def run(train, tmp_path, bases):
    """Runs a task of its own rows in tmp_path; returns the exit code."""

    def run(task: str, *flags, still: bool = False, count: int = 40, rows: list[dict] | None = None) -> int:
        data = tmp_path / f"{task}.jsonl"
        if rows is not None or not data.exists():
            made = WORLDS[task].rows(random.Random(1), count) if rows is None else rows
            write_jsonl(data, made)
        words = ["--task", task, "--dataset", data, "--model", bases(task, still), "--learning_rate", 1e-3]
        return train(*words, "--train_batch_size", 8, "--max_length", 64, *flags)

    return run


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def learnt_weights(folder: Path) -> dict:
    """Weights but those whose gradient is rounding alone: a softmax over tokens ignores such a bias."""
    ignored = ("attention.self.key.bias", "layer.1.output.LayerNorm.bias", "qa_outputs.bias")
    return {name: value for name, value in weights(folder).items() if not name.endswith(ignored)}


def test_every_task_is_in_these_laws_or_has_laws_of_its_own():
    from finetune.training.tasks import TASKS

    assert {*TASKS} == {*WORLDS, "exam", "mlm", "cpt", "sft"}


@pytest.mark.slow
@every_task
def test_a_run_that_goes_on_ends_with_the_same_weights_bit_for_bit(run, tmp_path, monkeypatch, task):
    from test_checkpoints import stop_at

    words = ["--max_steps", 6, "--save_interval", 2]
    assert run(task, *words, "--output_dir", "whole/model", "--save_dir", "whole/ck") == 0
    cut = ["--output_dir", "cut/model", "--save_dir", "cut/ck"]
    with monkeypatch.context() as patch:
        stop_at(patch, step=3)
        assert run(task, *words, *cut) == 143
    assert run(task, *words, *cut, "--resume") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert_same_weights(weights(tmp_path / "whole/model"), weights(tmp_path / "cut/model"), atol=0, rtol=0)


@pytest.mark.slow
@every_task
def test_rows_one_by_one_are_the_same_step_as_four_at_a_time(run, tmp_path, task):
    for micro in (1, 4):
        more = ["--micro_batch_size", micro, "--output_dir", f"m{micro}/model", "--save_dir", f"m{micro}/ck"]
        assert run(task, "--max_steps", 3, *more, still=True) == 0
    assert losses(tmp_path / "m1") == pytest.approx(losses(tmp_path / "m4"), rel=1e-5)
    first, second = (learnt_weights(tmp_path / name / "model") for name in ("m1", "m4"))
    assert_same_weights(first, second, atol=2e-5, rtol=1e-3)


def on_ranks(folder: Path, task: str, base: Path, data: Path, *flags, ranks: int = 2) -> list[float]:
    words = [
        "--task",
        task,
        "--dataset",
        data,
        "--model",
        base,
        "--cpu",
        "--max_steps",
        4,
        "--max_length",
        64,
    ]
    words += ["--learning_rate", 1e-3, "--train_batch_size", 8, *flags]
    folder.mkdir(exist_ok=True)
    done = run_ranks(folder, ROOT / "fine_tuning_llm.py", *words, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", [pytest.param("classify", marks=pytest.mark.nightly), *list(WORLDS)[1:]])
def test_two_ranks_train_as_one_does_and_measure_the_same(run, tmp_path, bases, task):
    assert run(task, "--max_steps", 4, "--engine", "torch", still=True) == 0
    base, data = bases(task, still=True), tmp_path / f"{task}.jsonl"
    two = on_ranks(tmp_path / "two", task, base, data, "--engine", "torch")
    assert losses(tmp_path) == pytest.approx(two, rel=1e-4)
    cards = [json.loads((at / NAME / "run_card.json").read_text()) for at in (tmp_path, tmp_path / "two")]
    one, other = (card["labels"] or card["metrics"] for card in cards)
    assert one.keys() == other.keys() == {"held_back", "validation"}
    assert one["held_back"]["n"] == other["held_back"]["n"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*(pytest.param(one, marks=pytest.mark.nightly) for one in (0, 1, 2)), 3])
@pytest.mark.parametrize(
    "task", [pytest.param("classify", marks=pytest.mark.nightly), "tag",
             pytest.param("span", marks=pytest.mark.nightly), "seq2seq"],
)  # fmt: skip
def test_zero_trains_what_plain_pytorch_does(run, tmp_path, bases, task, stage):
    assert run(task, "--max_steps", 4, "--engine", "torch", still=True) == 0
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {"stage": stage, "stage3_param_persistence_threshold": 0}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    flags = ["--engine", "deepspeed", "--deepspeed_config", tmp_path / "ds.json"]
    base, data = bases(task, still=True), tmp_path / f"{task}.jsonl"
    zero = on_ranks(tmp_path / "zero", task, base, data, *flags)
    assert losses(tmp_path) == pytest.approx(zero, rel=1e-3)
    first, second = learnt_weights(tmp_path / NAME), learnt_weights(tmp_path / "zero" / NAME)
    assert_same_weights(first, second, atol=2e-4, rtol=1e-2)


@pytest.mark.slow
@every_task
def test_an_adapter_merged_or_apart_gives_the_same_outputs(run, tmp_path, task):
    lora = ["--lora_rank", 4, "--max_steps", 3]
    assert run(task, *lora, "--output_dir", "together/model", "--save_dir", "together/ck") == 0
    apart = ["--no_merge", "--output_dir", "apart/model", "--save_dir", "apart/ck"]
    assert run(task, *lora, *apart) == 0
    row = WORLDS[task].rows(random.Random(2), 1)[0]
    outputs = []
    for name in ("together", "apart"):
        model, tokenizer, device = inference.load_model(tmp_path / name / "model", "cpu")
        outputs.append(WORLDS[task].use(model, tokenizer, device, row))
    assert rounded(outputs[0]) == rounded(outputs[1])


def rounded(value):
    """The value with its numbers to three decimals."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.slow
@every_task
def test_what_is_frozen_stays_bit_identical_and_the_head_moves(run, tmp_path, bases, task):
    freeze = "embeddings,encoder" if task == "seq2seq" else "embeddings,0"
    assert run(task, "--freeze", freeze, "--max_steps", 4) == 0
    before, after = weights(bases(task)), weights(tmp_path / NAME)
    frozen = {name for name in before if _is_frozen(name, task)} & {*after}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    moved = [name for name in {*before} & {*after} - frozen if not torch.equal(before[name], after[name])]
    assert moved


def _is_frozen(name: str, task: str) -> bool:
    if task == "seq2seq":
        return name.startswith(("shared.", "encoder.block"))
    return ".embeddings." in name or ".layer.0." in name


@every_task
def test_bad_rows_are_all_named_before_anything_is_trained_and_left_out_on_request(
    run, tmp_path, capfd, task
):
    good = WORLDS[task].rows(random.Random(3), 20)
    bad, reason = WORLDS[task].spoil
    rows = [*good[:4], bad, *good[4:], bad]
    assert run(task, "--max_steps", 1, rows=rows) == 2
    said = capfd.readouterr().err
    assert f"{task}.jsonl:5" in said and f"{task}.jsonl:22" in said and reason in said
    assert not (tmp_path / NAME).exists() and not (tmp_path / "checkpoints").exists()
    assert run(task, "--max_steps", 1, "--on_bad_rows", "skip", rows=rows) == 0


@every_task
def test_a_task_without_data_says_what_it_needs(capfd, bases, task):
    assert fine_tuning_llm.main(["--task", task, "--model", str(bases(task))]) == 2
    assert f"--task {task} 要用 --dataset" in capfd.readouterr().err


@pytest.mark.slow
@every_task
def test_a_strangers_weights_in_a_pickle_are_refused(run, bases, tmp_path, capfd, task, train):
    folder = tmp_path / "stranger"
    folder.mkdir()
    for file in bases(task).iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(weights(bases(task)), folder / "pytorch_model.bin")
    data = write_jsonl(tmp_path / "x.jsonl", WORLDS[task].rows(random.Random(1), 20))
    assert train("--task", task, "--dataset", data, "--model", folder, "--max_steps", 1) == 2
    assert "pickle" in capfd.readouterr().err
