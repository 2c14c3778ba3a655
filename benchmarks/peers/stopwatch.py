"""What a Trainer needs to be timed: a callback that counts tokens and seconds of the steps alone."""

from __future__ import annotations

import json
import resource
import time

from transformers import TrainerCallback


class Stopwatch(TrainerCallback):
    """Seconds from the beginning of training to its end, start-up and saving left out."""

    def __init__(self):
        self.tokens = 0
        self.padded = 0

    def watching(self, collator):
        """The collator, counting the tokens that go through it: the real ones, and those with padding."""

        def collate(rows):
            batch = collator(rows)
            self.tokens += int(batch["attention_mask"].sum())
            self.padded += batch["attention_mask"].numel()
            return batch

        return collate

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.perf_counter() - self.began

    def report(self, trainer) -> str:
        """JSON: tokens, padded, seconds, peak (bytes, of the process), losses by step."""
        return json.dumps(
            {
                "tokens": self.tokens,
                "padded": self.padded,
                "seconds": self.seconds,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            }
        )
