#!/usr/bin/env bash
# A model of Taiwanese Hokkien (台語) in two stages, then its answers to questions it has not seen.
#
#   bash examples/taigi.sh taigi_texts.json reading_train.csv questions.csv
#
#   taigi_texts.json   [{"title": …, "paragraphs": [ … ]}, …]
#   reading_train.csv  ID,文章,問題,選項1,選項2,選項3,選項4,正確答案 (1 to 4)
#   questions.csv      the same without 正確答案
#
# Needs the hub and one GPU with 80 GB; with 24 GB: MORE=--load_in_4bit (pip install -r requirements-4bit.txt).
# Merging is done in full precision on the CPU and takes 55 GB of memory for 13 billion weights.
# BASE names another base model, MORE holds flags for both stages.
set -euo pipefail
[ $# = 3 ] || { echo "usage: bash examples/taigi.sh taigi_texts.json reading_train.csv questions.csv" >&2; exit 2; }
texts=$(realpath "$1") reading=$(realpath "$2") questions=$(realpath "$3")
read -ra more <<< "${MORE:-}"
cd "$(dirname "$0")/.."

# 1. Continued pre-training (CPT), LoRA rank 64, merged at the end.
python fine_tuning_llm.py --task cpt --model_name_or_path "${BASE:-Bohanlu/Taigi-Llama-2-13B}" --dataset "$texts" \
    --lora_rank 64 --lora_alpha 128 --lora_dropout 0.05 --learning_rate 2e-4 --max_steps 1000 \
    --train_batch_size 16 --micro_batch_size 4 --max_length 2048 --gradient_checkpointing --seed 9527 \
    --save_dir taigi/cpt/checkpoints --output_dir taigi/cpt/model "${more[@]}"

# 2. Supervised fine-tuning (SFT) on reading comprehension, LoRA rank 16, from the merged model.
python fine_tuning_llm.py --task sft --model_name_or_path taigi/cpt/model --dataset "$reading" --template plain \
    --lora_rank 16 --lora_alpha 32 --lora_dropout 0.1 --learning_rate 1e-5 --max_steps 100 \
    --train_batch_size 16 --micro_batch_size 4 --max_length 2048 --gradient_checkpointing --seed 9527 \
    --save_dir taigi/sft/checkpoints --output_dir taigi/sft/model "${more[@]}"

# 3. Answers: ID,Answer.
python inference.py --model_path taigi/sft/model --input "$questions" --output taigi/answers.csv \
    --answer_format index --overwrite
