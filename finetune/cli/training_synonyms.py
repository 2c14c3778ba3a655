"""Meaning of other tools' flags for fine_tuning_llm.py, see cli/synonyms.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from finetune.cli.synonyms import (
    BOTH,
    MANY,
    NO,
    SWITCH,
    YES,
    Meaning,
    Rule,
    alias,
    fixed_to,
    for_names,
    ignored,
    mapped,
    number,
    rejected,
    switch,
)
from finetune.runtime.errors import nearest


def _accumulation(value: str, given: Mapping[str, str]) -> Meaning:
    times = number(value)
    if times == 1 or value.lower() in ("auto", *NO):
        return Meaning()
    micro = next(
        (given[name] for name in ("micro_batch_size", *MICRO.split()) if given.get(name, "").isdecimal()), "8"
    )
    total = f"{int(micro) * int(times)}" if times and times >= 1 else "…"
    return Meaning(
        refusal="這裡給的是每步的批次大小，累積幾次自己算出來；"
        f"請改成 --train_batch_size {total} --micro_batch_size {micro}（多個 rank 時再乘上 rank 數）"
    )


def _resume(value: str, given: Mapping[str, str]) -> Meaning:
    if value.lower() in NO:
        return Meaning()
    if value.lower() in ("latest", "last", "auto", *YES):
        return Meaning((("resume", "true"),))
    path = Path(value)
    if re.fullmatch(r"checkpoint-\d+", path.name):
        return Meaning(
            refusal=f"這是別的程式的檢查點，不能接續；要從它的權重開始微調，請用 --model_name_or_path {value}"
        )
    if re.fullmatch(r"step\d+", path.name):
        return Meaning((("load_dir", str(path.parent)), ("ckpt_id", path.name)))
    return Meaning((("load_dir", value),))


def _lora(value: str, given: Mapping[str, str]) -> Meaning:
    low = value.lower()
    if low in ("full", *NO) and low != "1":
        return Meaning()
    if low not in ("lora", "qlora", *YES):
        return Meaning(
            refusal="這裡有的是 LoRA（--lora_rank）、只訓練部分層（--freeze、--train_only）與訓練全部權重"
        )
    quantize = (("load_in_4bit", "true"),) if low == "qlora" else ()
    if given.keys() & {"lora_rank", *RANK.split()}:
        return Meaning(unless_given=quantize)
    return Meaning(refusal="請給 LoRA 的 rank，例如 --lora_rank 16" + (" --load_in_4bit" if quantize else ""))


def _warmup(value: str, given: Mapping[str, str]) -> Meaning:
    wanted, steps = number(value), number(given.get("max_steps", ""))
    if wanted is not None and 0 <= wanted < 1:
        return Meaning((("warmup_ratio", value),))
    share = f"{min(1.0, wanted / steps):.4g}" if wanted and steps and steps > 0 else "0.1"
    return Meaning(refusal=f"暖身以佔總步數的比例計：--warmup_ratio {share}")


def _validation(value: str, given: Mapping[str, str]) -> Meaning:
    size = number(value)
    if size is None or value.lower() in NO:
        return Meaning() if value.lower() in NO else Meaning(refusal="請用 --split_ratio 0.9,0.1,0")
    share = size / 100 if 1 <= size < 100 else size
    if not 0 < share < 1:
        return Meaning(refusal="驗證資料以比例計：--split_ratio 訓練,驗證,保留，例如 0.9,0.1,0")
    return Meaning(refusal=f"請改成 --split_ratio {1 - share:.4g},{share:.4g},0（訓練、驗證、保留）")


def _deepspeed(value: str, given: Mapping[str, str]) -> Meaning:
    if value.lower() in NO:
        return Meaning()
    use = (("engine", "deepspeed"),)
    return Meaning((), use) if value.lower() in YES else Meaning((("deepspeed_config", value),), use)


def _evaluates(value: str, given: Mapping[str, str]) -> Meaning:
    trains = "do_train" in given and given["do_train"].lower() not in NO
    if trains or value.lower() in NO:
        return Meaning()  # every run validates and evaluates
    return Meaning(refusal="這支腳本一定會訓練；只評測請用 inference.py --model_path 模型 --exam 題庫")


def _trains(value: str, given: Mapping[str, str]) -> Meaning:
    return Meaning() if value.lower() in YES else Meaning(remark="沒有用到：這支腳本一定會訓練")


def _saving(value: str, given: Mapping[str, str]) -> Meaning:
    if value.lower() in NO:
        return Meaning((("save_interval", "0"),))
    if value.lower() == "steps":
        return Meaning()
    return Meaning(remark="沒有用到：檢查點每 --save_interval 步存一個，每輪最好的模型另存在 best/")


def _bits(value: str, given: Mapping[str, str]) -> Meaning:
    if value.lower() in NO:
        return Meaning()
    if number(value) == 4:
        return Meaning((("load_in_4bit", "true"),))
    return Meaning(refusal="量化的底模只有 4 位元：--load_in_4bit")


def _targets(value: str, given: Mapping[str, str]) -> Meaning:
    all_linear = value.lower() in ("all", "all-linear", "all_linear", *YES)
    return Meaning((("lora_target_modules", "auto" if all_linear else value),))


def _template(value: str, given: Mapping[str, str]) -> Meaning:
    similar = nearest(value.lower(), ("chat", "plain"))  # a typo of ours is refused later, with both names
    if similar and value.lower() != "chatml":  # LLaMA-Factory's
        return Meaning((("template", value),))
    return Meaning(remark="沒有用到：對話樣板取自 tokenizer（--template chat）")


def _save_steps(value: str, given: Mapping[str, str]) -> Meaning:
    if 0 < (number(value) or 0) < 1:
        return Meaning(refusal="請給步數，例如 --save_interval 100")
    return Meaning((("save_interval", value),))


MICRO = "per_device_train_batch_size per_gpu_train_batch_size micro_batch micro_bsz train_micro_batch_size_per_gpu"
RANK = "lora_r lora_dim lora_attention_dim"
TASKS = {
    "pt": "cpt", "pretrain": "cpt", "pretraining": "cpt", "clm": "cpt", "causal_lm": "cpt", "causal-lm": "cpt",
    "classification": "classify", "text-classification": "classify", "text_classification": "classify",
    "sequence-classification": "classify", "sequence_classification": "classify", "seq_cls": "classify",
    "fill-mask": "mlm", "masked_lm": "mlm", "masked-lm": "mlm", "multiple-choice": "exam", "mcq": "exam",
    "multiple_choice": "exam", "instruction": "sft",
    **dict.fromkeys(("ner", "pos", "token-classification", "token_classification", "tagging", "chunk", "cws"), "tag"),
    **dict.fromkeys(("qa", "squad", "mrc", "question-answering", "question_answering", "extractive-qa"), "span"),
    **dict.fromkeys(("summarization", "translation", "seq2seq_lm", "text2text-generation", "t5"), "seq2seq"),
}  # fmt: skip
ONE_FOLDER = "請把它與訓練資料放進同一個資料夾，由檔名分辨（train、validation、test），再給 --dataset 那個資料夾；或由 --split_ratio 切出來"
LAUNCHER = "這是啟動器的旗標，寫在腳本名稱之前：deepspeed --num_gpus=2 fine_tuning_llm.py …，或 torchrun --nproc_per_node 2 fine_tuning_llm.py …"
OTHER_SCRIPT = "這是 inference.py 的旗標；fine_tuning_llm.py 只訓練"
NO_UPLOAD = "這個工具不上傳；訓練完可用 hf upload 帳號/名稱 模型資料夾"
TRAINING = {
    **BOTH,
    **for_names(alias("learning_rate"), "lr peak_lr max_lr"),
    **for_names(alias("num_epochs"), "epochs epoch num_train_epochs n_epochs max_epochs num_epoch"),
    **for_names(mapped("max_steps", {"-1": "0", "none": "0"}), "max_steps max_train_steps num_steps train_steps total_steps max_iters"),
    **for_names(alias("dataset"), "train_file train_data train_path data_path data dataset_name dataset_path data_file train_dataset "
            "dataset_name_or_path train_files data_files"),
    **for_names(alias("dataset_config_name"), "dataset_config subset"),
    **for_names(rejected(ONE_FOLDER), "validation_file eval_file val_file valid_file dev_file eval_dataset val_data eval_data "
            "validation_data test_file test_data test_dataset test_path val_path"),
    **for_names(Rule(_validation), "val_size val_set_size validation_split_percentage val_ratio validation_split eval_split test_size"),
    **for_names(rejected("請直接給檔案、資料夾或 hub 名稱：--dataset 路徑"), "dataset_dir datasets test_datasets data_dir pretraining_dataset"),
    **for_names(alias("train_batch_size", "讀作 --train_batch_size：每步的批次大小，所有 rank 合計"),
            "batch_size batch global_batch_size total_batch_size bs"),
    **for_names(alias("micro_batch_size", "讀作 --micro_batch_size：每個 rank 一次前向傳播的列數；每步的批次大小另由 --train_batch_size 決定"), MICRO),
    **for_names(ignored("驗證的批次大小與訓練相同"), "per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size val_batch_size"),
    **for_names(Rule(_accumulation), "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches grad_accum "
            "grad_accum_steps accumulation_steps"),
    "auto_find_batch_size": switch("auto_micro_batch"),
    **for_names(Rule(_save_steps), "save_steps save_every checkpointing_steps save_freq ckpt_interval"),
    **for_names(Rule(_saving), "save_strategy"),
    "save_total": alias("save_total_limit"),
    **for_names(ignored("每輪驗證一次"), "eval_steps eval_interval eval_every evaluation_strategy eval_strategy eval_delay eval_on_start "
            "evals_per_epoch eval_accumulation_steps"),
    **for_names(ignored("每一步都記在 --output_dir 旁的 train_log.jsonl"),
            "logging_steps log_interval log_every log_steps logging_strategy logging_first_step logging_dir log_dir logging_nan_inf_filter"),
    "load_best_model_at_end": ignored("存下的一定是驗證成績最好的模型"),
    **for_names(ignored("以驗證成績挑最好的模型"), "metric_for_best_model greater_is_better"),
    **for_names(Rule(_resume), "resume_from_checkpoint resume_from resume_checkpoint ckpt_path auto_resume_from_checkpoints"),
    **for_names(Rule(_lora, SWITCH), "use_lora lora use_peft peft"),
    **for_names(Rule(_lora), "finetuning_type adapter peft_type finetune_type"),
    **for_names(alias("lora_rank"), RANK),
    **for_names(Rule(_targets, MANY), "lora_target lora_modules target_modules lora_target_modules lora_target_linear"),
    **for_names(fixed_to(("none",), "LoRA 只加在線性層"), "lora_bias bias"),
    **for_names(rejected("LoRA 之外不能另外訓練別的層；要訓練全部權重請不要加 --lora_rank"), "modules_to_save lora_modules_to_save additional_target"),
    **for_names(rejected("這裡只有一般的 LoRA"), "use_dora use_rslora pissa_init loraplus_lr_ratio use_galore use_badam"),
    **for_names(alias("max_length"), "max_seq_length max_seq_len cutoff_len max_len seq_len seq_length block_size sequence_len "
            "model_max_length max_sequence_length max_source_length maxlen"),
    **for_names(alias("model_name_or_path"), "m model_name base_model pretrained_model_name_or_path pretrained_model model_path model_id model_dir"),
    **for_names(ignored("模型的類別由 config.json 決定"), "model_type tokenizer_type"),
    **for_names(rejected("tokenizer 與設定要和模型放在同一個資料夾"), "tokenizer tokenizer_name tokenizer_name_or_path config_name base_model_config"),
    **for_names(alias("output_dir"), "o output out output_path out_dir save_path model_save_path"),
    **for_names(alias("save_dir"), "checkpoint_dir ckpt_dir checkpoints_dir checkpoint_path"),
    "overwrite_output_dir": ignored("--output_dir 裡若是這支程式存的模型，會整個換掉"),
    "do_train": Rule(_trains, SWITCH),
    "activation_checkpointing": switch("gradient_checkpointing"),
    **for_names(fixed_to(("none", "null", "{}"), "學習率一律先暖身，再線性降到 0"), "lr_scheduler_kwargs"),
    **for_names(Rule(_evaluates, SWITCH), "do_eval do_predict do_test eval_only predict_only"),
    **for_names(Rule(_warmup), "warmup_steps num_warmup_steps lr_warmup_steps"),
    **for_names(alias("warmup_ratio"), "warmup warmup_proportion"),
    **for_names(fixed_to(("linear", "linear_with_warmup", "auto"), "學習率一律先暖身，再線性降到 0（linear）；請刪掉這個旗標"),
            "lr_scheduler_type lr_scheduler scheduler scheduler_type lr_schedule lr_decay_style"),
    **for_names(fixed_to(("0", "none", "null"), "學習率線性降到 0"), "min_lr min_lr_ratio cosine_min_lr_ratio"),
    **for_names(fixed_to(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "auto"), "最佳化器一律是 AdamW；請刪掉這個旗標"),
            "optim optimizer optimizer_type"),
    "adam_beta1": fixed_to(("0.9",), "AdamW 的 beta1 一律是 0.9"),
    "adam_beta2": fixed_to(("0.999",), "AdamW 的 beta2 一律是 0.999"),
    **for_names(fixed_to(("1e-8",), "AdamW 的 epsilon 一律是 1e-8"), "adam_epsilon adam_eps"),
    **for_names(fixed_to((*NO,), "這裡沒有這一項"), "label_smoothing_factor label_smoothing neftune_noise_alpha"),
    "wd": alias("weight_decay"),
    **for_names(alias("max_grad_norm"), "gradient_clip gradient_clipping clip_grad grad_clip clip_grad_norm gradient_clip_val max_norm"),
    **for_names(ignored("資料的順序也由 --seed 決定"), "data_seed dataloader_seed"),
    **for_names(Rule(_deepspeed), "deepspeed ds_config deepspeed_config_file"),
    **for_names(rejected("寫在 --deepspeed_config 的 zero_optimization.stage"), "zero_stage offload"),
    **for_names(rejected("切分權重用 DeepSpeed：--deepspeed_config"), "fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap tensor_parallel_size"),
    **for_names(rejected("量化的底模只有 4 位元：--load_in_4bit"), "load_in_8bit use_8bit int8"),
    **for_names(Rule(_bits), "quantization_bit bits quant_bits quantization"),
    **for_names(switch("load_in_4bit"), "use_4bit qlora use_qlora"),
    **for_names(mapped("task", {**TASKS, "sft": "sft", "cpt": "cpt"}, "這裡有的是 --task exam、mlm、classify、tag、span、seq2seq、cpt、sft；"
                  "沒有 dpo、rm、ppo、kto"), "stage training_stage"),
    "task": mapped("task", TASKS),
    "template": Rule(_template),
    **for_names(ignored("對話樣板取自 tokenizer"), "chat_template prompt_template conversation_template"),
    "use_wandb": switch("report_to", "wandb"),
    "use_tensorboard": switch("report_to", "tensorboard"),
    **for_names(ignored("這些由追蹤工具自己的環境變數設定"), "run_name wandb_project wandb_entity wandb_run_id wandb_watch wandb_name "
            "wandb_log_model wandb_run_name project_name"),
    **for_names(rejected(NO_UPLOAD), "push_to_hub hub_model_id push_to_hub_model_id"),
    **for_names(rejected(LAUNCHER), "num_gpus n_gpu ngpus nproc_per_node num_processes nnodes num_nodes master_port "
            "master_addr hostfile include num_machines"),
    **for_names(rejected("要少用資料請先裁檔案；訓練後評測幾題用 --exam_limit"), "max_samples max_train_samples max_eval_samples "
            "max_predict_samples limit"),
    **for_names(alias("early_stopping_patience"), "patience early_stop early_stopping"),
    **for_names(alias("mask_rate"), "mlm_probability mask_prob mlm_prob masking_ratio mask_ratio"),
    **for_names(switch("masking", "word"), "wwm whole_word_mask whole_word_masking"),
    **for_names(alias("text_column"), "text_field text_column_name dataset_text_field text_key context_column"),
    **for_names(alias("label_column"), "label_field label_column_name label_key summary_column answer_column"),
    "doc_stride": alias("stride"),
    **for_names(alias("prefix"), "source_prefix"),
    **for_names(alias("max_target_length"), "val_max_target_length generation_max_length max_output_length"),
    **for_names(ignored("有沒有答案由資料看出來"), "version_2_with_negative null_score_diff_threshold"),
    **for_names(ignored("一個詞的標記記在它的第一個 token；各類的成績一定會列出來"), "label_all_tokens return_entity_level_metrics"),
    **for_names(ignored("補齊的 token 不算損失"), "ignore_pad_token_for_loss"),
    **for_names(rejected("tgt_lang 寫在 tokenizer_config.json"), "source_lang target_lang forced_bos_token"),
    **for_names(ignored("有幾類由資料數出來"), "num_labels num_classes"),
    "class_weight": switch("class_weights"),
    "train_on_inputs": switch("train_on_prompt"),
    "freeze_layers": alias("freeze"),
    **for_names(rejected(OTHER_SCRIPT), "prompt text query question options input exam report top_k top_p temperature do_sample "
            "num_beams max_new_tokens interactive"),
    **for_names(ignored(), "ddp_timeout ddp_find_unused_parameters ddp_backend ddp_bucket_cap_mb plot_loss include_num_input_tokens_seen "
            "include_tokens_per_second include_inputs_for_metrics remove_unused_columns pad_to_max_length group_by_length "
            "save_safetensors save_only_model save_on_each_node full_determinism skip_memory_metrics prediction_loss_only "
            "gradient_checkpointing_kwargs dataset_prepared_path sample_packing eval_sample_packing pad_to_sequence_len packing "
            "strict enable_liger_kernel unsloth use_unsloth predict_with_generate streaming buffer_size saves_per_epoch "
            "hub_strategy hub_private_repo hub_revision optim_args optim_target_modules activation_checkpointing_kwargs "
            "torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config torch_empty_cache_steps log_on_each_node "
            "log_level_replica project trackio_space_id trackio_bucket_id trackio_static_space_id eval_do_concat_batches "
            "eval_use_gather_object include_for_metrics batch_eval_metrics enable_jit_checkpoint ignore_data_skip "
            "restore_callback_states_from_checkpoint parallelism_config dataloader_persistent_workers "
            "dataloader_multiprocessing_context dataloader_in_order label_names train_sampling_strategy ddp_broadcast_buffers "
            "ddp_static_graph length_column_name past_index accelerator_config average_tokens_across_devices neat_packing "
            "special_tokens hub_always_push line_by_line s2_attention shuffle_merged_datasets bf16_backend half_precision_backend "
            "use_mps_device"),
}  # fmt: skip
