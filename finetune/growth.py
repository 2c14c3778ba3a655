"""What a causal model gained: its loss on texts or replies it was not taught, before and after, and a few
answers side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from .causal import Continuation
from .decoding import Decoding, generate
from .exams import Question
from .logits import BlankLogits
from .objectives import token_losses
from .perplexity import perplexity

SAMPLES = 3
OPENING = 24  # tokens of a text that a model goes on from
WRITTEN = 64  # tokens it writes


@dataclass
class Growth:
    """By set (`validation`, `held_back`): figures of the `tuned` and the `untuned` model. `samples`: prompt,
    what was wanted, what each model wrote."""

    sets: dict[str, dict[str, dict]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, who: str, model: nn.Module, lesson, world, size: int) -> None:
        """Measures a model (`tuned` or `untuned`) that is on the device. All ranks call it.

        Args:
            size: rows of one forward pass.
        """
        model.eval()
        for name, objective in (("validation", lesson.check), ("held_back", lesson.keep)):
            if not objective.lengths:
                continue
            blanks = BlankLogits(model, lesson.packed)

            def losses(batch, blanks=blanks):
                return token_losses(
                    blanks(batch.input_ids, batch.attention_mask, batch.rows, batch.cols), batch
                )

            loss, tokens = lesson.loss_on(objective, losses, world, size)
            found = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
            if isinstance(objective, Continuation):  # to compare models whose tokenizers differ
                found["bits_per_character"] = loss * tokens / math.log(2) / max(1, objective.characters)
            self.sets.setdefault(name, {})[who] = found
        if world.is_main:
            self._write(who, model, lesson)

    def _write(self, who: str, model: nn.Module, lesson) -> None:
        rows = [row for row in lesson.check.rows if not isinstance(row, Question)][:SAMPLES]
        if not rows:
            return
        asked, wanted, shown = zip(*(_opening(lesson, row) for row in rows), strict=True)
        decoding = Decoding(max_new_tokens=WRITTEN)
        written = generate(model, lesson.tokenizer, list(asked), decoding, ends=lesson.ends)
        if not self.samples:
            self.samples = [{"prompt": a, "wanted": b} for a, b in zip(shown, wanted, strict=True)]
        for sample, text in zip(self.samples, written, strict=True):
            sample[who] = text

    def as_dict(self) -> dict:
        return {"sets": self.sets, "samples": self.samples}


def _opening(lesson, row) -> tuple[list[int], str, str]:
    """What a model is given of a row, what it should say, and the former as text."""
    tokenizer = lesson.tokenizer
    if isinstance(lesson.check, Continuation):
        ids = tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        opening = ids[: min(OPENING, max(1, len(ids) // 2))]
        rest = tokenizer.decode(ids[len(opening) : len(opening) + WRITTEN])
        return [*lesson.check.start, *opening], rest, tokenizer.decode(opening)
    *asked, reply = row.messages
    ids = lesson.prompts.chat.prompt(asked)[-max(1, lesson.max_length - WRITTEN) :]
    return ids, reply["content"], asked[-1]["content"]
