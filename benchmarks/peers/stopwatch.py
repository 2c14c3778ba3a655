"""What a Trainer needs to be timed: a callback that counts tokens and seconds of the steps alone."""

from __future__ import annotations

import json
import resource
import time

import torch
from transformers import TrainerCallback


class Stopwatch(TrainerCallback):
    """Seconds from the beginning of training to its end, start-up and saving left out, and the first `skip`
    steps, in which a GPU is made ready."""

    def __init__(self, skip: int = 0):
        self.skip = skip
        self.tokens: list[int] = []  # of each batch: one may be made before the step ahead of it is over
        self.padded: list[int] = []

    def watching(self, collator):
        """The collator, counting the tokens that go through it: the real ones, and those with padding."""

        def collate(rows):
            batch = collator(rows)
            self.tokens.append(int(batch["attention_mask"].sum()))
            self.padded.append(batch["attention_mask"].numel())
            return batch

        return collate

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.skip:
            self.began = self._now()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = self._now() - self.began

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the clock would be read before the work is done
        return time.perf_counter()

    def report(self, trainer) -> str:
        """JSON: tokens, padded, seconds, losses by step; peak bytes of the process, and on a GPU."""
        return json.dumps(
            {
                "tokens": sum(self.tokens[self.skip :]),
                "padded": sum(self.padded[self.skip :]),
                "seconds": self.seconds,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "gpu_peak": torch.cuda.max_memory_allocated(),
                "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            }
        )
