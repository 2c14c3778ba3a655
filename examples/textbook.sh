#!/usr/bin/env bash
# A textbook's page on a laptop, without a network: load a pretrained model, fine-tune all of its layers, some, none
# but the head, and LoRA; which parameters each trained, and how many held-out rows each then labels rightly.
#
#   bash examples/textbook.sh            # two or three minutes on two cores
#
# The base is a tiny model, pre-trained here on the demo's sentences. BASE names another one (bert-base-chinese, whose
# layers are 0 to 11: SOME=embeddings,0-9), DATA labelled texts of your own (columns text, label), MORE holds more flags.
set -euo pipefail
data=${DATA:-}
[ -z "$data" ] || data=$(realpath "$data")
read -ra more <<< "${MORE:-}"
cd "$(dirname "$0")/.."
mkdir -p textbook

# 1. A pretrained model.
base=${BASE:-textbook/base/model}
[ -n "${BASE:-}" ] || python fine_tuning_llm.py --demo --task mlm --num_epochs 6 \
    --save_dir textbook/base/checkpoints --output_dir textbook/base/model "${more[@]}"
[ -n "$data" ] || python -c "from finetune.demo import builtin; builtin.write_labels('textbook/things.csv')"

# 2. A new head on it; all layers, some, none but the head, LoRA.
tune() {
    python fine_tuning_llm.py --task classify --dataset "${data:-textbook/things.csv}" --model_name_or_path "$base" \
        --num_epochs 8 --max_length 64 --seed 42 --save_dir "textbook/$1/checkpoints" \
        --output_dir "textbook/$1/model" "${@:2}" "${more[@]}"
}
tune all --learning_rate "${RATE:-1e-3}"
tune some --learning_rate "${RATE:-1e-3}" --freeze "${SOME:-embeddings,0-1}"
tune none --learning_rate "${RATE:-1e-3}" --freeze all_but_head
tune lora --learning_rate "${RATE:-3e-3}" --lora_rank 8

# 3. The five figures, and what came of it.
python inference.py --model_path textbook/lora/model --draw textbook/figures
for name in all some none lora; do
    python -c "
import json, sys
card = json.load(open(f'textbook/{sys.argv[1]}/model/run_card.json', encoding='utf-8'))
found = card['labels']['held_back']
trained, whole = card['parameters']['trained'], card['parameters']['all']
print(f'{sys.argv[1]:5} {trained:>10,} of {whole:,} parameters trained, {found[\"accuracy\"]:.1%} of {found[\"n\"]} held-out rows')
" "$name"
done
