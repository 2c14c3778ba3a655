"""What is taught to a masked language model by texts alone: words are hidden, and it restores them (BERT,
arXiv:1810.04805, section 3.1; for adapting a model to a domain, arXiv:2004.10964)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from finetune.data.corpus import Text
from finetune.data.segmentation import token_words
from finetune.objectives.batching import Example
from finetune.objectives.masking import MASK_RATE, hide_randomly, maskable
from finetune.prompts.exam import ends


@dataclass(frozen=True)
class Hiding:
    """How tokens are hidden.

    Args:
        masking: one of masking.MASKINGS.
        rate: share of a row's tokens.
        all_masked: every hidden token becomes [MASK]; else 80 % do, 10 % become another, 10 % stay.
    """

    masking: str = "word"
    rate: float = MASK_RATE
    all_masked: bool = False

    def for_checking(self) -> Hiding:
        """The one that losses are compared by, whatever the rate in training: 15 %, each one [MASK]."""
        return Hiding(self.masking, MASK_RATE, all_masked=True)


def ordinary(tokenizer) -> list[int]:
    """Ids of the tokens that are not special, to draw replacements from."""
    special = set(tokenizer.all_special_ids)
    return [token for token in sorted(tokenizer.get_vocab().values()) if token not in special]


class Restoration:
    """Texts, a row each; one longer than `max_length` tokens is cut between words.

    Args:
        rows: to be taught.
        max_length: of a row, in tokens, special ones included.
        seed: of every draw. The same (seed, epoch, row) gives the same masks, in any process, at any time.
    """

    name = "mlm"
    shortened = 0
    refused = ()

    def __init__(self, tokenizer, rows: Sequence[Text], max_length: int, seed: int, hiding: Hiding):
        self.tokenizer, self.seed, self.hiding = tokenizer, seed, hiding
        self.rows, self.too_long = list(rows), []
        self.start, self.end = ends(tokenizer)
        self.special, self.vocab = set(tokenizer.all_special_ids), ordinary(tokenizer)
        self.pieces: list[tuple[array, array]] = []  # token ids, and of each token the number of its word
        room = max_length - 2
        for row in rows:
            ids = tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            # characters hidden one by one need no words
            words = [[at] for at in range(len(ids))]
            if hiding.masking != "token":
                words = token_words(tokenizer, row.text)
            self.pieces += self._cut(ids, words, room)
        self.lengths = [len(ids) + 2 for ids, _ in self.pieces]

    def _cut(self, ids: list[int], words: list[list[int]], room: int):
        """Pieces of whole words, at most `room` tokens each. A word longer than that is cut."""
        held: list[list[int]] = []
        count = 0
        for word in words:
            for part in (word[at : at + room] for at in range(0, len(word), room)):
                if count + len(part) > room:
                    yield from self._piece(ids, held)
                    held, count = [], 0
                held.append(part)
                count += len(part)
        yield from self._piece(ids, held)

    def _piece(self, ids: list[int], words: list[list[int]]):
        places = [(at, number) for number, word in enumerate(words) for at in word]
        places.sort()
        piece = array("l", [ids[at] for at, _ in places])
        if any(token not in self.special for token in piece):
            yield piece, array("l", [number for _, number in places])

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Every piece once."""
        return [("mlm", index) for index in range(len(self.pieces))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """One piece with some of it hidden. A constant `epoch` gives the same masks each time."""
        tokens, numbers = self.pieces[index]
        ids = (self.start, *tokens, self.end)
        words = [[at + 1 for at, _ in word] for _, word in groupby(enumerate(numbers), lambda pair: pair[1])]
        rng = random.Random(f"mlm:{self.seed}:{epoch}:{index}")
        how = self.hiding
        seen, chosen = hide_randomly(
            ids, maskable(words, ids, self.special), self.tokenizer.mask_token_id, self.vocab, rng,
            how.rate, how.masking, how.all_masked,
        )  # fmt: skip
        return Example(seen, chosen, tuple(ids[at] for at in chosen), row=f"{index}", by_token=True)
