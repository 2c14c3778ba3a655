"""What a language model gained: its loss on texts or replies it was not taught, before and after, and a few
answers side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from finetune.data.question import Question
from finetune.models.forward import forward_of
from finetune.models.generation import Decoding, generate
from finetune.objectives.causal_lm import Continuation
from finetune.objectives.masked_lm import Restoration
from finetune.objectives.preview import shown
from finetune.prompts.exam import read_back
from finetune.reports.perplexity import perplexity

SAMPLES = 3
OPENING = 24  # tokens of a text that a model goes on from
WRITTEN = 64  # tokens it writes


@dataclass
class Growth:
    """By set (`validation`, `held_back`): figures of the `tuned` and the `untuned` model. `samples`: prompt,
    what was wanted, what each model wrote."""

    sets: dict[str, dict[str, dict]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, who: str, model: nn.Module, lesson, world, tokens: int) -> None:
        """Measures a model (`tuned` or `untuned`) that is on the device. All ranks call it.

        Args:
            tokens: of one forward pass, with padding.
        """
        model.eval()
        for name, objective in (("validation", lesson.check), ("held_back", lesson.keep)):
            if not objective.lengths:
                continue
            measured = lesson.measure(objective, forward_of(model, lesson.packed).eval(), world, tokens)
            loss, tokens = measured.loss, measured.mass
            found = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
            if isinstance(objective, Continuation):  # to compare models whose tokenizers differ
                found["bits_per_character"] = loss * tokens / math.log(2) / max(1, objective.characters)
            if isinstance(objective, Restoration):
                found["restored"] = measured.accuracy
            self.sets.setdefault(name, {})[who] = found
        if world.is_main:
            self._write(who, model, lesson)

    def _write(self, who: str, model: nn.Module, lesson) -> None:
        if isinstance(lesson.check, Restoration):
            return self._restore(who, model, lesson)
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

    @torch.no_grad()
    def _restore(self, who: str, model: nn.Module, lesson) -> None:
        """What the model puts where words are hidden, each by itself."""
        forward, tokenizer = forward_of(model).eval(), lesson.tokenizer
        device = next(model.parameters()).device
        entries = lesson.check.epoch(0)[:SAMPLES]
        for number, entry in enumerate(entries):
            example = lesson.check.example(*entry, 0)
            ids = torch.tensor([example.ids], device=device)
            cols = torch.tensor(example.positions, device=device)
            said = forward(ids, torch.ones_like(ids), torch.zeros_like(cols), cols).argmax(-1).tolist()
            if number == len(self.samples):
                hidden = read_back(tokenizer, example.ids[1:-1])
                self.samples.append({"prompt": hidden, "wanted": shown(tokenizer, example)})
            self.samples[number][who] = shown(tokenizer, replace(example, targets=tuple(said)))

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
