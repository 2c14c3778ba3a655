"""trainer_default with what its documentation recommends for speed: bf16, rows of like length together, the
fused optimizer. torch.compile is left out where it does not pay: see NOTES.md.

python benchmarks/peers/trainer_tuned.py MODEL TEXTS ROWS_A_STEP [MORE [SKIP]]

MORE: TrainingArguments as JSON. SKIP: steps at the beginning that are not timed.
"""

from __future__ import annotations

import json
import sys

import trainer_default

TUNED = {
    "bf16": True,
    "use_cpu": True,
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
}

if __name__ == "__main__":
    model, texts, batch, *rest = sys.argv[1:]
    more, *skip = rest or ["{}"]
    trainer_default.main(model, texts, batch, json.dumps({**TUNED, **json.loads(more)}), *skip)
