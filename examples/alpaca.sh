#!/usr/bin/env bash
# Alpaca tuning of Qwen2.5-0.5B with the loss on the responses alone, then one question answered three ways.
#
#   bash examples/alpaca.sh                  # tatsu-lab/alpaca from the hub
#   bash examples/alpaca.sh my_alpaca.csv    # rows of your own: instruction,input,output
#
# BASE names another base model, MORE holds more flags of the training.
set -euo pipefail
rows=${1:-tatsu-lab/alpaca}
[ ! -e "$rows" ] || rows=$(realpath "$rows")
read -ra more <<< "${MORE:-}"
cd "$(dirname "$0")/.."

python fine_tuning_llm.py --task sft --model_name_or_path "${BASE:-Qwen/Qwen2.5-0.5B}" --dataset "$rows" \
    --num_epochs 3 --learning_rate 1e-5 --train_batch_size 16 --max_length 1024 --seed 9527 \
    --save_dir alpaca/checkpoints --output_dir alpaca/model "${more[@]}"

ask="Give three tips for staying healthy."
python inference.py --model_path alpaca/model --prompt "$ask"
python inference.py --model_path alpaca/model --prompt "$ask" --do_sample --temperature 0.7 --top_p 0.9 --seed 9527
python inference.py --model_path alpaca/model --prompt "$ask" --num_beams 4 --length_penalty 1.0
