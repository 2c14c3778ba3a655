"""Flags of other tools: read as ours, said to change nothing, or answered with the flag that does it."""

from __future__ import annotations

import ast
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from finetune.cli import inference_checks, train_args
from finetune.cli.inference_synonyms import USING
from finetune.cli.synonyms import Rule
from finetune.cli.training_synonyms import TRAINING
from finetune.runtime.errors import UserError, nearest


def trained(line: str) -> dict:
    return vars(train_args.parse_args(shlex.split(line))[0])


def used(line: str) -> dict:
    return vars(inference_checks.parse_args(shlex.split(line)))


def refused(read, line: str) -> str:
    with pytest.raises(UserError) as caught:
        read(line)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--lr 1e-4", {"learning_rate": 1e-4}),
        ("-lr 1e-4 --LR=1e-4", {"learning_rate": 1e-4}),
        ("--epochs 3 --num_train_epochs 3.0", {"num_epochs": 3}),
        ("--train_file a.csv", {"dataset": "a.csv"}),
        ("--dataset_name a/b", {"dataset": "a/b"}),
        ("--data_path a.csv --max_seq_length 64", {"dataset": "a.csv", "max_length": 64}),
        ("--cutoff_len 64 --model x", {"max_length": 64, "model_name_or_path": "x"}),
        ("--base_model x --output o --checkpoint_dir c", {"model_name_or_path": "x", "output_dir": "o", "save_dir": "c"}),
        ("--save_steps 500 --save_strategy steps", {"save_interval": 500}),
        ("--save_strategy no", {"save_interval": 0}),
        ("--fp16 True --bf16 False", {"precision": "fp16"}),
        ("--bf16", {"precision": "bf16"}),
        ("--mixed_precision bf16", {"precision": "bf16"}),
        ("--precision float16", {"precision": "fp16"}),
        ("--no_cuda", {"cpu": True}),
        ("--use_cpu true --device cpu", {"cpu": True}),
        ("--use_cpu false --no_cuda False", {"cpu": False}),
        ("--cpu True --gradient_checkpointing false", {"cpu": True, "gradient_checkpointing": False}),
        ("--resume_from_checkpoint true", {"resume": True}),
        ("--resume_from_checkpoint a/step100", {"load_dir": "a", "ckpt_id": "step100"}),
        ("--use_lora --lora_r 8 --lora_target q_proj v_proj", {"lora_rank": 8, "lora_target_modules": "q_proj,v_proj"}),
        ("--finetuning_type lora --lora_rank 8 --lora_target all", {"lora_rank": 8, "lora_target_modules": "auto"}),
        ("--stage sft --dataset x.json", {"task": "sft"}),
        ("--stage pt --dataset x.json", {"task": "cpt"}),
        ("--quantization_bit 4 --lora_rank 8", {"load_in_4bit": True}),
        ("--warmup_steps 0", {"warmup_ratio": 0.0}),
        ("--warmup_steps 0.05 --max_steps -1", {"warmup_ratio": 0.05, "max_steps": 0}),
        ("--deepspeed ds.json", {"deepspeed_config": "ds.json", "engine": "deepspeed"}),
        ("--deepspeed --deepspeed_config ds.json --engine torch", {"deepspeed_config": "ds.json", "engine": "torch"}),
        ("--do_train --do_eval --overwrite_output_dir --optim adamw_torch --lr_scheduler_type linear", {"seed": 42}),
        ("--adam_beta1 0.90 --adam_epsilon 1e-08 --gradient_accumulation_steps 1", {"seed": 42}),
        ("--mlm_probability 0.3 --wwm", {"mask_rate": 0.3, "masking": "word"}),
        ("--local-rank=0 --max-grad-norm 2", {"local_rank": 0, "max_grad_norm": 2.0}),
        ("--trust_remote_code False --push_to_hub false --load_in_8bit false", {"seed": 42}),
    ],
)  # fmt: skip
def test_a_flag_of_another_tool_means_ours(theirs, ours):
    read = trained(theirs)
    assert {name: read[name] for name in ours} == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--model x --text 天 --topk 3", {"model_path": "x", "prompt": "天", "top_k": 3}),
        ("--model_name_or_path x --query 天 -k 3", {"model_path": "x", "prompt": "天", "top_k": 3}),
        ("-m x -p 天 --num_return_sequences 1", {"model_path": "x", "prompt": "天"}),
        ("--prompt 天 --max_tokens 9 --do_sample True --temp 0.5", {"max_new_tokens": 9, "do_sample": True}),
        ("--prompt 天 --device cpu --dtype bfloat16", {"cpu": True, "precision": "bf16"}),
    ],
)
def test_the_using_script_knows_such_flags_too(theirs, ours):
    read = used(theirs)
    assert {name: read[name] for name in ours} == ours


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--per_device_train_batch_size 4 --gradient_accumulation_steps 8", "--train_batch_size 32 --micro_batch_size 4"),
        ("--validation_file v.csv", "--split_ratio"),
        ("--val_size 0.1", "--split_ratio 0.9,0.1,0"),
        ("--validation_split_percentage 5", "--split_ratio 0.95,0.05,0"),
        ("--warmup_steps 50 --max_steps 1000", "--warmup_ratio 0.05"),
        ("--lr_scheduler_type cosine", "linear"),
        ("--optim adafactor", "AdamW"),
        ("--use_lora", "--lora_rank 16"),
        ("--load_in_8bit", "--load_in_4bit"),
        ("--quantization_bit 8", "--load_in_4bit"),
        ("--stage dpo", "沒有 dpo"),
        ("--trust_remote_code", "從不執行"),
        ("--push_to_hub --hub_token x", "HF_TOKEN"),
        ("--resume_from_checkpoint out/checkpoint-500", "--model_name_or_path out/checkpoint-500"),
        ("--do_eval", "inference.py"),
        ("--num_gpus 2", "deepspeed --num_gpus=2"),
        ("--device cuda:1", "CUDA_VISIBLE_DEVICES"),
        ("--prompt 天", "inference.py"),
        ("--lr 1 --learning_rate 2", "值卻不同：1、2"),
        ("--fp16 --bf16", "值卻不同：fp16、bf16"),
        ("—lr 1", "兩個減號"),
        ("lr=1", "兩個減號"),
        ("--no_cuda maybe", "'maybe'"),
        ("--epochs --cpu", "--epochs 後面少了值"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_so_is_answered_with_what_to_do(line, words):
    assert words in refused(trained, line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--dataset x", "--exam"), ("--lora_path x", "--model_path"), ("--n 3", "--top_k"),
        ("--output_dir x", "--report"), ("--learning_rate 1", "fine_tuning_llm.py"), ("--share", "--serve"),
    ],
)  # fmt: skip
def test_the_using_script_answers_too(line, words):
    assert words in refused(used, line)


def test_a_secret_on_the_command_line_is_not_shown_again():
    assert "hf_abc" not in refused(trained, "--hub_token hf_abc")


def test_what_is_not_quite_the_same_or_has_no_effect_is_said_in_one_line_each(capsys):
    trained(
        "--per_device_train_batch_size 8 --eval_steps 10 --logging_steps 5 --lr 1e-4 --tf32 True --packing"
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "--tf32、--packing" in lines[3]
    assert "--micro_batch_size" in lines[0] and "每輪驗證一次" in lines[1] and "train_log.jsonl" in lines[2]


LLAMA_FACTORY = """
model_name_or_path: a/b
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: x.json
template: llama3
cutoff_len: 2048
overwrite_cache: true
save_steps: 500
plot_loss: true
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
num_train_epochs: 3.0
lr_scheduler_type: cosine
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
AXOLOTL = """
base_model: a/b
load_in_8bit: false
datasets:
  - path: x
    type: alpaca
val_set_size: 0.1
adapter: lora
lora_model_dir:
sequence_len: 2048
lora_r: 16
lora_target_modules:
  - gate_proj
  - down_proj
bf16: auto
flash_attention: true
"""


def test_a_yaml_file_of_another_tool_is_read_key_by_key(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(LLAMA_FACTORY)
    told = refused(trained, f"--config {file}").splitlines()
    assert len(told) == 3 and "--train_batch_size 8 --micro_batch_size 1" in told[1]
    assert "trust_remote_code" in told[0] and "lr_scheduler_type" in told[2]
    kept = [line for line in LLAMA_FACTORY.splitlines() if not any(
        name in line for name in ("trust", "accumulation", "scheduler"))]  # fmt: skip
    file.write_text("\n".join(kept))
    read = trained(f"--config {file} --lr 5e-5")
    assert (read["task"], read["lora_rank"], read["lora_target_modules"]) == ("sft", 8, "auto")
    assert (read["max_length"], read["precision"], read["num_epochs"]) == (2048, "bf16", 3)
    assert read["micro_batch_size"] == 1 and read["save_interval"] == 500 and read["learning_rate"] == 5e-5
    file.write_text(AXOLOTL)
    told = refused(trained, f"--config {file}").splitlines()
    assert len(told) == 2 and "--dataset 路徑" in told[0] and "--split_ratio 0.9,0.1,0" in told[1]


def test_every_rule_leads_to_flags_that_there_are():
    for rules, parser in ((TRAINING, train_args.build_parser()), (USING, inference_checks.build_parser())):
        options = {option for action in parser._actions for option in action.option_strings}
        for name, rule in rules.items():
            assert isinstance(rule, Rule)
            for value in ("4", "true", "", "lora", "cpu", "a/step3", "0.5"):
                meaning = rule.read(value, {})
                for flag, _ in (*meaning.flags, *meaning.unless_given):
                    assert f"--{flag}" in options, (name, flag)


def test_a_word_that_looks_but_little_like_another_is_no_guess():
    assert nearest("gradient_checkpointing", ["gradient_clipping"]) == []
    assert nearest("--num_epohcs", ["--num_epochs", "--seed"]) == ["--num_epochs"]
    assert "是不是" not in refused(trained, "--foo_bar 3")


def test_every_argument_of_transformers_trainer_is_known(tmp_path):
    """Read from its source: importing it takes seconds."""
    source = Path(find_spec("transformers").origin).parent / "training_args.py"
    (body,) = [
        node.body
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    ]
    names = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    options = {
        option[2:] for action in train_args.build_parser()._actions for option in action.option_strings
    }
    assert len(names) > 80 and not names - TRAINING.keys() - options
