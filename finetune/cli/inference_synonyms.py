"""Meaning of other tools' flags for inference.py, see cli/synonyms.py."""

from __future__ import annotations

from collections.abc import Mapping

from finetune.cli.synonyms import BOTH, Meaning, Rule, alias, for_names, ignored, number, rejected, switch

ADAPTER = "LoRA 的資料夾直接給 --model_path，底模它自己記得"
TRAINS = "這是 fine_tuning_llm.py 的旗標；inference.py 不訓練"


def _replies(value: str, given: Mapping[str, str]) -> Meaning:
    if number(value) == 1:
        return Meaning()
    return Meaning(refusal="填空與分類列出幾名用 --top_k；因果模型一題只寫一個回答")


USING = {
    **BOTH,
    **for_names(alias("model_path"), "m model model_name model_name_or_path base_model pretrained pretrained_model checkpoint "
            "checkpoint_path ckpt model_id model_dir pretrained_model_name_or_path"),
    **for_names(rejected(ADAPTER), "adapter lora lora_path adapter_path adapter_name_or_path peft_model lora_weights lora_model"),
    **for_names(alias("prompt"), "p text query sentence input_text message user_prompt"),
    **for_names(alias("options"), "choices option"),
    **for_names(alias("input"), "i prompt_file input_file input_path file data_path test_file data_file predict_file question_file questions"),
    **for_names(rejected("題庫用 --exam，要逐列作答的檔案用 --input"), "dataset dataset_name data"),
    **for_names(alias("output"), "o out output_file output_path save_path result_file out_file"),
    **for_names(rejected("答案檔用 --output 檔名，評測報告用 --report 資料夾"), "output_dir save_dir"),
    **for_names(alias("top_k"), "topk k num_predictions"),
    **for_names(Rule(_replies), "n num_return_sequences num_samples best_of"),
    **for_names(alias("max_new_tokens"), "max_tokens max_gen_len max_output_tokens max_generated_tokens"),
    **for_names(alias("temperature"), "temp"),
    **for_names(alias("top_p"), "topp nucleus"),
    **for_names(alias("num_beams"), "beam beams beam_size beam_width num_beam"),
    **for_names(alias("repetition_penalty"), "repeat_penalty rep_penalty"),
    **for_names(switch("do_sample"), "sample sampling"),
    **for_names(ignored(), "greedy stream interactive chat predict_with_generate do_predict do_eval"),
    **for_names(alias("batch_size"), "bs batch per_device_eval_batch_size eval_batch_size per_gpu_eval_batch_size"),
    **for_names(alias("exam_limit"), "limit max_samples max_eval_samples"),
    **for_names(alias("pooling"), "pooling_mode pooling_strategy"),
    **for_names(switch("hidden_states"), "output_hidden_states"),
    **for_names(alias("text_column"), "text_field text_column_name"),
    **for_names(rejected("評測用哪一份題庫，請用 --exam 路徑或 hub 名稱"), "tasks benchmark eval_dataset"),
    **for_names(rejected("模型是哪一種由它的資料夾決定，不必說"), "task model_type task_type"),
    **for_names(rejected("推論不量化；請用 --precision bf16"), "load_in_8bit load_in_4bit quantization quantization_bit"),
    **for_names(rejected("對話樣板取自 tokenizer"), "template chat_template"),
    **for_names(alias("host"), "server_name bind bind_address"),
    **for_names(alias("port"), "server_port"),
    **for_names(rejected("沒有公開的轉址；網頁用 --serve 開在這台機器上，要給別人用請看 docs/serve.md"), "share"),
    **for_names(rejected(TRAINS), "learning_rate lr num_epochs epochs train_batch_size micro_batch_size objective demo resume load_dir "
            "ckpt_id lora_rank deepspeed_config deepspeed train_file num_train_epochs per_device_train_batch_size"),
}  # fmt: skip
