"""Masked language modelling as transformers' documentation shows it: Trainer and
DataCollatorForLanguageModeling, everything else as it comes. Prints one line of JSON: see stopwatch.py.

python benchmarks/peers/trainer_default.py MODEL TEXTS ROWS_A_STEP [MORE [SKIP]]

MORE: TrainingArguments as JSON. SKIP: steps at the beginning that are not timed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from stopwatch import Stopwatch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)


def main(model: str, texts: str, batch: str, more: str = "{}", skip: str = "0") -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = Path(texts).read_text(encoding="utf-8").split("\n\n")
    rows = [tokenizer(line.strip(), truncation=True, max_length=512) for line in lines]
    stopwatch = Stopwatch(int(skip))
    trainer = Trainer(
        model=AutoModelForMaskedLM.from_pretrained(model),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=int(batch), num_train_epochs=1,
            save_strategy="no", report_to="none", disable_tqdm=True,
            **{"logging_steps": 1, **json.loads(more)},
        ),
        train_dataset=rows,
        data_collator=stopwatch.watching(DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)),
        callbacks=[stopwatch],
    )  # fmt: skip
    trainer.train()
    print(stopwatch.report(trainer))


if __name__ == "__main__":
    main(*sys.argv[1:])
