"""--task cpt and sft, end to end: continued pre-training, instruction tuning, both in turn, resuming."""

import csv
import json
import math
import shutil

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_weights,
    causal_weights,
    losses,
    make_causal_dir,
    read_log,
    write_alpaca,
    write_csv,
    write_reading,
    write_texts,
)
from forked import run_ranks

MODEL = "my_bert_finetuned_model_hf_format"


def card(folder):
    return json.loads((folder / "run_card.json").read_text(encoding="utf-8"))


# ---- the two workloads -------------------------------------------------------------------------------------


@pytest.fixture
def taigi(train_causal, tmp_path):
    """Both stages of a Taigi model: CPT with LoRA on texts, merged, then SFT with LoRA on reading
    comprehension."""
    base = make_causal_dir(tmp_path / "base", "llama", chat=False)
    texts, reading = write_texts(tmp_path / "taigi.json"), write_reading(tmp_path / "reading.csv")
    first = [
        "--lora_rank", 8, "--lora_alpha", 16, "--lora_dropout", 0.05, "--learning_rate", 1e-2,
        "--max_steps", 12, "--train_batch_size", 16, "--micro_batch_size", 4, "--max_length", 128,
        "--split_ratio", "0.8,0.2,0",
    ]  # fmt: skip
    assert (
        train_causal("cpt", texts, *first, "--output_dir", "cpt/model", "--save_dir", "cpt/ck", model=base)
        == 0
    )
    second = [
        "--lora_rank", 4, "--lora_alpha", 8, "--lora_dropout", 0.1, "--learning_rate", 1e-2, "--max_steps", 6,
        "--template", "plain", "--max_length", 256, "--split_ratio", "0.7,0.3,0",
    ]  # fmt: skip
    assert (
        train_causal(
            "sft", reading, *second, "--output_dir", "m/model", "--save_dir", "m/ck", model="cpt/model"
        )
        == 0
    )
    return tmp_path


@pytest.mark.slow
def test_a_taigi_model_is_pre_trained_merged_tuned_and_answers_into_a_csv(taigi, capsys):
    import inference

    grown = card(taigi / "cpt/model")["growth"]["sets"]["validation"]
    assert grown["tuned"]["perplexity"] < 0.8 * grown["untuned"]["perplexity"]
    assert not (taigi / "cpt/model/adapter_config.json").exists()
    argv = ["--model_path", taigi / "m/model", "--input", taigi / "reading.csv", "--cpu"]
    argv += ["--output", taigi / "answers.csv", "--answer_format", "index"]
    assert inference.main(list(map(str, argv))) == 0
    rows = list(csv.DictReader((taigi / "answers.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["ID", "Answer"] and [row["ID"] for row in rows] == [str(n) for n in range(1, 25)]
    assert {row["Answer"] for row in rows} <= set("1234")


@pytest.mark.slow
def test_the_card_says_which_weights_each_stage_began_from(taigi):
    import hashlib

    def sha(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    stages = card(taigi / "m/model")["lineage"]
    assert [stage["stage"] for stage in stages] == ["base", "cpt", "sft"]
    folders = ("base", "cpt/model", "m/model")
    assert [stage["sha256"] for stage in stages] == [sha(taigi / f / "model.safetensors") for f in folders]
    assert stages[1]["lora"]["rank"] == 8 and stages[2]["lora"]["alpha"] == 8 and stages[1]["seed"] == 9527
    assert "base " in (taigi / "m/model/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_weights_that_changed_between_two_stages_are_noticed(taigi, train_causal, capsys):
    from safetensors.torch import load_file, save_file

    path = taigi / "cpt/model/model.safetensors"
    changed = {name: tensor + 0.01 for name, tensor in load_file(path).items()}
    save_file(changed, path, metadata={"format": "pt"})
    capsys.readouterr()
    more = ["--template", "plain", "--max_steps", 1, "--output_dir", "again/model", "--save_dir", "again/ck"]
    assert train_causal("sft", taigi / "reading.csv", *more, model="cpt/model") == 0
    assert "來歷記為中斷" in capsys.readouterr().err
    assert [stage["stage"] for stage in card(taigi / "again/model")["lineage"]] == ["base", "sft"]


@pytest.mark.slow
def test_a_model_tuned_on_alpaca_writes_its_training_replies_greedily_and_by_beam_search_and_samples(
    train_causal, tmp_path, capsys
):
    import inference

    rows = write_alpaca(tmp_path / "alpaca.csv", 6)
    trained_on = list(csv.DictReader(rows.open(encoding="utf-8")))
    flags = ["--num_epochs", 80, "--learning_rate", 2e-2, "--train_batch_size", 6, "--split_ratio", "1,0,0"]
    assert train_causal("sft", rows, *flags) == 0
    ways = {
        "greedy": [], "beam": ["--num_beams", "4", "--length_penalty", "0.5"],
        "sampled": ["--do_sample", "--seed", "1", "--temperature", "0.7", "--top_p", "0.9"],
    }  # fmt: skip
    for name, how in ways.items():
        argv = ["--model_path", MODEL, "--cpu", "--input", str(rows), "--output", f"{name}.jsonl", *how]
        assert inference.main([*argv, "--max_new_tokens", "60"]) == 0
        lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        said = [json.loads(line)["response"] for line in lines]
        right = sum(a == row["output"] for a, row in zip(said, trained_on, strict=True))
        assert right == 6 or (name == "sampled" and right > 2 and all(said))


# ---- one step, however it is cut ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora_rank", 4, "--lora_dropout", 0]])
@pytest.mark.parametrize("task", ["cpt", "sft"])
def test_eight_rows_one_by_one_are_four_times_two(train_causal, tmp_path, task, lora):
    data = write_texts(tmp_path / "t.json") if task == "cpt" else write_alpaca(tmp_path / "t.csv")
    found = []
    for micro in (1, 2):
        more = [
            "--train_batch_size",
            8,
            "--micro_batch_size",
            micro,
            "--max_steps",
            4,
            "--learning_rate",
            1e-3,
        ]
        more += ["--max_length", 96, "--output_dir", f"m{micro}/model", "--save_dir", f"m{micro}/ck"]
        assert train_causal(task, data, *more, *lora) == 0
        found.append((losses(tmp_path / f"m{micro}"), causal_weights(tmp_path / f"m{micro}/model")))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert_same_weights(found[0][1], found[1][1], atol=2e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora_rank", 4]])
def test_a_run_that_goes_on_ends_with_the_same_weights_bit_for_bit(train_causal, tmp_path, lora, monkeypatch):
    from test_checkpoints import stop_at

    data = write_alpaca(tmp_path / "a.csv")
    common = ["--train_batch_size", 4, "--max_steps", 8, "--learning_rate", 1e-3, *lora]

    def run(name, *more):
        return train_causal(
            "sft", data, *common, "--output_dir", f"{name}/model", "--save_dir", f"{name}/ck", *more
        )

    assert run("whole") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step=3)
        assert run("cut") == 143
    assert run("cut", "--resume") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert_same_weights(
        causal_weights(tmp_path / "whole/model"), causal_weights(tmp_path / "cut/model"), atol=0, rtol=0
    )


@pytest.mark.slow
def test_gradient_checkpointing_computes_each_layer_twice_and_changes_nothing(
    train_causal, tmp_path, monkeypatch
):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    data, passes, forward = write_alpaca(tmp_path / "a.csv"), [], Qwen2MLP.forward

    def counted(self, hidden):
        passes[-1] += torch.is_grad_enabled()
        return forward(self, hidden)

    monkeypatch.setattr(Qwen2MLP, "forward", counted)
    for name, more in (("with", ["--gradient_checkpointing"]), ("without", [])):
        passes.append(0)
        more += ["--output_dir", f"{name}/model", "--save_dir", f"{name}/ck", "--max_steps", 3]
        assert (
            train_causal("sft", data, "--lora_rank", 4, "--lora_dropout", 0, "--learning_rate", 1e-2, *more)
            == 0
        )
    assert passes[0] == 2 * passes[1] > 0
    assert_same_weights(
        causal_weights(tmp_path / "with/model"),
        causal_weights(tmp_path / "without/model"),
        atol=1e-6,
        rtol=1e-4,
    )


# ---- several processes -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.nightly), 3])
@pytest.mark.parametrize(
    "lora", [pytest.param([], marks=pytest.mark.nightly), ["--lora_rank", 4, "--lora_dropout", 0]]
)
def test_zero_on_two_processes_trains_what_one_process_does_and_saves_for_transformers_and_peft(
    tmp_path, qwen_dir, stage, lora
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = write_alpaca(tmp_path / "a.csv")
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {"stage": stage}
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "ds.json").write_text(json.dumps(config))
    common = [
        ROOT / "fine_tuning_llm.py", "--task", "sft", "--dataset", data, "--model_name_or_path", qwen_dir,
        "--cpu", "--train_batch_size", 8, "--max_steps", 4, "--learning_rate", 1e-3, *lora,
    ]  # fmt: skip
    zero = ["--engine", "deepspeed", "--deepspeed_config", tmp_path / "ds.json"]
    for name, ranks, more in (("one", 0, []), ("two", 2, zero)):
        more = [*more, "--output_dir", f"{name}/model", "--save_dir", f"{name}/ck"]
        done = run_ranks(tmp_path, *common, *more, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    found = [causal_weights(tmp_path / name / "model") for name in ("one", "two")]
    assert_same_weights(*found, atol=1e-4, rtol=1e-2)
    if lora:
        base = AutoModelForCausalLM.from_pretrained(qwen_dir)
        apart = PeftModel.from_pretrained(base, tmp_path / "two/ck/best").eval()
        together = AutoModelForCausalLM.from_pretrained(tmp_path / "two/model").eval()
        ids = torch.arange(100, 130)[None]
        torch.testing.assert_close(together(ids).logits, apart(input_ids=ids).logits, atol=1e-3, rtol=0)


# ---- what can be wrong -------------------------------------------------------------------------------------


def test_a_masked_model_cannot_be_trained_on_replies_nor_a_causal_one_on_blanks(
    train_causal, train, tmp_path, model_dir, qwen_dir, capsys
):
    assert train_causal("sft", write_alpaca(tmp_path / "a.csv"), model=model_dir) == 2
    said = capsys.readouterr().err
    assert "bert 模型" in said and "因果語言模型" in said and "--task exam" in said
    assert train("--model_name_or_path", qwen_dir) == 2
    assert "不是填空用的遮罩語言模型" in capsys.readouterr().err


def test_without_a_chat_template_the_plain_one_must_be_asked_for(train_causal, tmp_path, llama_dir, capsys):
    data = write_alpaca(tmp_path / "a.csv")
    assert train_causal("sft", data, model=llama_dir) == 2
    assert "沒有對話樣板" in (said := capsys.readouterr().err) and "--template plain" in said
    assert train_causal("sft", data, "--template", "plain", "--max_steps", 1, model=llama_dir) == 0


def test_rows_without_output_are_all_named_or_skipped(train_causal, tmp_path, capsys):
    rows = [["天", "", "地"], ["玄", "", ""], ["", "", "黃"], *[["宇", str(n), "宙"] for n in range(20)]]
    data = write_csv(tmp_path / "a.csv", rows, ("instruction", "input", "output"))
    assert train_causal("sft", data) == 2
    said = capsys.readouterr().err
    assert f"{data}:3" in said and f"{data}:4" in said and "output" in said
    assert train_causal("sft", data, "--on_bad_rows", "skip", "--max_steps", 1) == 0


def test_prompts_longer_than_the_context_are_counted_and_all_of_them_is_an_error(
    train_causal, tmp_path, capsys
):
    long = ["天地玄黃" * 300, "", "地"]
    short = [[f"宇{n}", "", "宙"] for n in range(6)]
    names = ("instruction", "input", "output")
    assert (
        train_causal(
            "sft",
            write_csv(tmp_path / "a.csv", [long, *short], names),
            "--max_steps",
            1,
            "--split_ratio",
            "1,0,0",
        )
        == 0
    )
    assert "1 列提示本身就放不下" in capsys.readouterr().err
    assert train_causal("sft", write_csv(tmp_path / "b.csv", [long], names), "--split_ratio", "1,0,0") == 2
    assert "沒有一列放得下" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--lora_rank", 4, "--lora_target_modules", "q_prj"], "是不是 q_proj？"),
        (["--lora_rank", 4, "--lora_target_modules", "lm_head"], "同一組權重"),
        (["--lora_alpha", 4], "--lora_alpha 要與 --lora_rank 一起給"),
        (["--min_chars", 4], "--min_chars 只用於 --task cpt"),
        (["--demo"], "--demo 只用於 --task exam"),
        (["--template", "plian"], "chat、plain 其中之一"),
    ],
)
def test_flags_that_make_no_sense_end_with_2_and_a_way_out(train_causal, tmp_path, capsys, flags, said):
    assert train_causal("sft", write_alpaca(tmp_path / "a.csv"), *flags) == 2
    assert said in capsys.readouterr().err


def test_texts_need_a_source_and_inspect_shows_them_without_a_model(train_causal, tmp_path, capsys):
    import inference

    assert train_causal("cpt", "") == 2
    assert "--dataset" in capsys.readouterr().err
    assert train_causal("cpt", write_texts(tmp_path / "t.json"), "--inspect") == 0
    shown = capsys.readouterr().out
    assert "段落編號：刪去" in shown and not (tmp_path / MODEL).exists()
    assert inference.main(["--inspect", str(tmp_path / "t.json")]) == 0
    assert capsys.readouterr().out == shown


# ---- what is left ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_validation_is_measured_before_training_and_after_every_epoch(train_causal, tmp_path):
    data = write_alpaca(tmp_path / "a.csv", 40)
    assert (
        train_causal("sft", data, "--num_epochs", 2, "--split_ratio", "0.6,0.2,0.2", "--learning_rate", 1e-2)
        == 0
    )
    epochs = [entry for entry in read_log(tmp_path) if "epoch" in entry]
    assert [math.exp(e["validation_loss"]) for e in epochs] == pytest.approx(
        [e["validation_perplexity"] for e in epochs]
    )
    flat = json.loads((tmp_path / MODEL / "all_results.json").read_text())
    assert flat["validation_loss"] == pytest.approx(min(e["validation_loss"] for e in epochs), rel=1e-4)
    assert flat["untuned_validation_loss"] > flat["validation_loss"]
    assert flat["held_back_perplexity"] < flat["untuned_held_back_perplexity"]
    for name in ("report.md", "index.html"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "訓練報告" in text and "困惑度" in text and "寫出來的文字" in text
    curve = json.loads((tmp_path / "report/results.json").read_text())["growth"]["sets"]
    assert curve["validation"]["tuned"]["perplexity"] == pytest.approx(flat["validation_perplexity"])


@pytest.mark.slow
def test_a_loss_is_enough_to_stop_early(train_causal, tmp_path, capsys):
    data = write_alpaca(tmp_path / "a.csv", 12)
    flags = [
        "--num_epochs",
        40,
        "--early_stopping_patience",
        2,
        "--split_ratio",
        "0.5,0.5,0",
        "--learning_rate",
        3e-2,
    ]
    assert train_causal("sft", data, *flags) == 0
    epochs = [entry for entry in read_log(tmp_path) if "epoch" in entry]
    best = min(range(len(epochs)), key=lambda i: epochs[i]["validation_loss"])
    assert len(epochs) == best + 3 < 40 and "提早結束" in capsys.readouterr().err


@pytest.mark.slow
def test_a_causal_model_trained_on_questions_ends_in_the_same_report_as_any_exam(
    train_causal, tmp_path, exam_dir, capsys
):
    assert train_causal("sft", exam_dir, "--max_steps", 2, "--exam_limit", 6) == 0
    assert "正式測驗" in capsys.readouterr().out
    for name in ("index.html", "report.md", "predictions.jsonl"):
        assert (tmp_path / "report" / name).exists()
    saved = card(tmp_path / MODEL)
    assert saved["results"]["test"]["model"]["n"] == 6 and len(saved["fingerprints"]) > 20
    shutil.rmtree(tmp_path / "report")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora_rank", 8]])
def test_bf16_trains_nearly_as_fp32_does(train_causal, tmp_path, lora):
    data = write_alpaca(tmp_path / "a.csv")
    for precision in ("fp32", "bf16"):
        more = [
            "--precision",
            precision,
            "--output_dir",
            f"{precision}/model",
            "--save_dir",
            f"{precision}/ck",
        ]
        assert train_causal("sft", data, "--max_steps", 12, "--learning_rate", 2e-2, *lora, *more) == 0
    found = [losses(tmp_path / precision) for precision in ("fp32", "bf16")]
    fallen = found[0][0] - found[0][-1]
    assert fallen > 1 and found[1] == pytest.approx(found[0], abs=fallen / 10)


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "window"])
def test_a_family_that_cannot_keep_documents_apart_reads_one_a_row(train_causal, tmp_path, kind, capsys):
    more = {
        "gemma2": {"head_dim": 8, "sliding_window": 64}, "bloom": {"n_layer": 2, "n_head": 4},
        "window": {"sliding_window": 16},
    }[kind]  # fmt: skip
    base = make_causal_dir(tmp_path / "base", {"window": "mistral"}.get(kind, kind), chat=False, **more)
    texts = write_texts(tmp_path / "t.json")
    assert train_causal("cpt", texts, "--max_steps", 2, "--max_length", 64, model=base) == 0
    assert "一列一篇" in capsys.readouterr().err


def test_attention_that_ignores_the_mask_is_found_out_before_training(
    train_causal, tmp_path, monkeypatch, capsys
):
    from finetune.models import forward as model_forward

    monkeypatch.setattr(
        model_forward, "document_mask", lambda documents: torch.ones(1, 1, 1, documents.shape[1]).bool()
    )
    assert train_causal("cpt", write_texts(tmp_path / "t.json"), "--max_length", 64) == 2
    assert "隔不開兩篇文字" in capsys.readouterr().err and not (tmp_path / "checkpoints").exists()


def test_eager_attention_in_a_configuration_is_not_obeyed(train_causal, tmp_path, capsys):
    base = make_causal_dir(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    assert (
        train_causal(
            "cpt", write_texts(tmp_path / "t.json"), "--max_steps", 1, "--max_length", 64, model=base
        )
        == 0
    )


def test_a_run_of_one_step_changes_the_model(train_causal, tmp_path, qwen_dir):
    assert (
        train_causal("sft", write_alpaca(tmp_path / "a.csv"), "--max_steps", 1, "--learning_rate", 1e-2) == 0
    )
    before, after = causal_weights(qwen_dir), causal_weights(tmp_path / MODEL)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_short_rows_leave_room_for_samples_in_the_report(train_causal, tmp_path):
    flags = ["--max_length", 40, "--max_steps", 1, "--split_ratio", "0.5,0.5,0"]
    assert train_causal("sft", write_alpaca(tmp_path / "a.csv"), *flags) == 0
    assert card(tmp_path / MODEL)["growth"]["samples"]


def test_questions_about_one_passage_stay_on_one_side(train_causal, tmp_path):
    from finetune.data.exam import read_exam
    from finetune.data.splits import split_exam

    rows = [[str(n), f"文章{n // 3}", f"問{n}", "甲", "乙", "丙", "丁", "1"] for n in range(60)]
    names = ("ID", "文章", "問題", "選項1", "選項2", "選項3", "選項4", "正確答案")
    splits = split_exam(read_exam(str(write_csv(tmp_path / "r.csv", rows, names))), (0.6, 0.3, 0.1), "fit", 0)
    parts = [{q.passage for q in part} for part in (splits.fit, splits.validation, splits.held_out)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert [len(p) for p in (splits.fit, splits.validation, splits.held_out)] == [36, 18, 6]
