"""Masked language modelling of texts: tokens are masked, and the model restores them.

As in BERT (arXiv:1810.04805, section 3.1); for adapting a model to a domain see arXiv:2004.10964.

Every draw comes from a generator that the caller seeds by what is drawn for (seed, epoch, row), so a resumed
run masks the same tokens and validation masks the same ones each time.

Chinese is written without spaces, and masks made for spaced text go wrong on it. transformers'
`DataCollatorForLanguageModeling(whole_word_mask=True)` starts a word where a token does not touch the one
before: a Chinese sentence is one word to it, and is masked from end to end or not at all. It also makes
every chosen token [MASK], whatever `mask_replace_prob` says. Here the words are given
(`segmentation.token_words`).
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from finetune.cli.train_args import MASKINGS
from finetune.data.cleaning import Text
from finetune.data.segmentation import token_words
from finetune.objectives.batching import Example
from finetune.prompts.exam import boundary_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK_RATE = 0.15
KEEP_MASK, TO_RANDOM = 0.8, 0.1  # the rest stays as it is (BERT, arXiv:1810.04805, section 3.1)
SPAN_END, SPAN_LIMIT = 0.2, 10  # SpanBERT, arXiv:1907.10529, section 3.1: p and the longest length


@dataclass(frozen=True)
class MaskingConfig:
    """Masking settings.

    Args:
        masking: one of train_args.MASKINGS (`token`, `word`, `span`), or `answer` for `ExamObjective`.
        rate: share of a row's tokens, in (0, 1].
        all_masked: every chosen token becomes [MASK] (arXiv:2202.08005 finds it no worse); else BERT's 80 %
            [MASK], 10 % another token, 10 % unchanged.
    """

    masking: str = "word"
    rate: float = MASK_RATE
    all_masked: bool = False

    def __str__(self) -> str:
        """Return the settings as checkpoints keep them."""
        return f"masking={self.masking!r}, rate={self.rate}, all_masked={self.all_masked}"

    def for_checking(self) -> MaskingConfig:
        """Return the settings of validation, whatever the rate in training: 15 %, each one [MASK]."""
        return MaskingConfig(self.masking, MASK_RATE, all_masked=True)


WORD_MASKING = MaskingConfig()


def ordinary_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that are not special, to draw replacements from."""
    special = set(tokenizer.all_special_ids)
    return [token for token in sorted(tokenizer.get_vocab().values()) if token not in special]


class MaskedLMObjective:
    """Masked language modelling of texts, a row each; a longer one is cut between words.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows to train or validate on.
        max_length: longest row, in tokens, special ones included.
        seed: fixes every draw. The same (seed, epoch, row) gives the same masks, in any process, at any time.
        masking_config: how tokens are masked.
    """

    name = "mlm"
    packed = False
    truncated = 0
    rejected_by_template: Sequence[str] = ()
    remarks: Mapping[str, int] = {}
    baseline_loss = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Text],
        max_length: int,
        seed: int,
        masking_config: MaskingConfig,
    ):
        self.tokenizer, self.seed, self.masking_config = tokenizer, seed, masking_config
        self.rows, self.too_long = list(rows), list[str]()
        self.start, self.end = boundary_tokens(tokenizer)
        self.special, self.vocab = set(tokenizer.all_special_ids), ordinary_token_ids(tokenizer)
        self.pieces: list[tuple[array, array]] = []  # token ids, and of each token the number of its word
        room = max_length - 2
        for row in rows:
            ids = tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            # characters masked one by one need no words
            words = [[at] for at in range(len(ids))]
            if masking_config.masking != "token":
                words = token_words(tokenizer, row.text)
            self.pieces += self._cut(ids, words, room)
        self.lengths = [len(ids) + 2 for ids, _ in self.pieces]

    def _cut(
        self, ids: list[int], words: Sequence[Sequence[int]], room: int
    ) -> Iterator[tuple[array, array]]:
        """Yield pieces of whole words, at most `room` tokens each. A word longer than that is cut."""
        held: list[Sequence[int]] = []
        count = 0
        for word in words:
            for part in (word[at : at + room] for at in range(0, len(word), room)):
                if count + len(part) > room:
                    yield from self._piece(ids, held)
                    held, count = [], 0
                held.append(part)
                count += len(part)
        yield from self._piece(ids, held)

    def _piece(self, ids: list[int], words: Sequence[Sequence[int]]) -> Iterator[tuple[array, array]]:
        """Yield token ids and word numbers of these words, unless all of them are special tokens."""
        places = [(at, number) for number, word in enumerate(words) for at in word]
        places.sort()
        piece = array("l", [ids[at] for at, _ in places])
        if any(token not in self.special for token in piece):
            yield piece, array("l", [number for _, number in places])

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Return every piece once."""
        return [("mlm", index) for index in range(len(self.pieces))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one piece with some of it masked. A constant `epoch` gives the same masks each time."""
        tokens, numbers = self.pieces[index]
        ids = (self.start, *tokens, self.end)
        words = [[at + 1 for at, _ in word] for _, word in groupby(enumerate(numbers), lambda pair: pair[1])]
        rng = random.Random(f"mlm:{self.seed}:{epoch}:{index}")
        units = maskable_units(words, ids, self.special)
        mask_id = self.tokenizer.mask_token_id
        seen, chosen = apply_mask(ids, units, mask_id, self.vocab, rng, self.masking_config)
        return Example(seen, chosen, tuple(ids[at] for at in chosen), row=f"{index}", by_token=True)


def apply_mask(
    ids: Sequence[int],
    units: Sequence[Sequence[int]],
    mask_id: int,
    vocab: Sequence[int],
    rng: random.Random,
    config: MaskingConfig = WORD_MASKING,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Mask a share of a row's tokens, one by one, by whole words, or by spans of whole words.

    Every word of a row has the same chance, long or short. That chance is `rate`, so the expected number of
    masked tokens is exactly b = rate × maskable tokens, unless the row holds a unit (word, or span) of more
    than b tokens: then nothing may be drawn, and since a row without a target has no loss, one unit is
    masked all the same. With units of sizes s₁ … sₘ that adds Σ max(0, sᵢ − b) / m tokens; of single tokens
    only rows shorter than 1 / rate have more masked than their share.

    What becomes of a chosen token is drawn for each token alone, in words and spans too, as google-research/
    bert does in whole word masking (SpanBERT draws it once a span).

    Args:
        ids: token ids, special ones included.
        units: positions that are masked together (words), in the order of the row; no special token among
            them, see `maskable_units`.
        mask_id: id of [MASK].
        vocab: ordinary token ids to draw replacements from.
        rng: what every draw comes from.
        config: by which units, which share of their tokens (`rate`), and what becomes of them.

    Returns:
        the ids as the model sees them, and the chosen positions in order.

    Raises:
        ValueError: no unit, or a masking that is not known.
    """
    masking, rate = config.masking, config.rate
    if masking not in MASKINGS:
        raise ValueError(f"masking {masking!r} is none of {MASKINGS}")
    if not units:
        raise ValueError("a row without a token that may be hidden")
    if masking == "token":
        units = [[position] for unit in units for position in unit]
    elif masking == "span":
        units = _spans(units, rate, rng)
    chosen = sorted(_drawn(units, rate, rng))
    seen = list(ids)
    for position in chosen:
        draw = 0.0 if config.all_masked else rng.random()
        if draw < KEEP_MASK:
            seen[position] = mask_id
        elif draw < KEEP_MASK + TO_RANDOM:
            seen[position] = vocab[rng.randrange(len(vocab))]
    return tuple(seen), tuple(chosen)


def maskable_units(
    words: Sequence[Sequence[int]], ids: Sequence[int], special: Collection[int]
) -> list[Sequence[int]]:
    """Return the words (positions in `ids`) that may be masked: those without a special token.

    [UNK] is a special token: as a target it is worthless, and masking the rest of its word would half-mask
    that word. Where every word holds one, the single tokens that are not special; [] if there are none.
    """
    whole = [word for word in words if all(ids[position] not in special for position in word)]
    return whole or [[position] for word in words for position in word if ids[position] not in special]


def _drawn(units: Sequence[Sequence[int]], rate: float, rng: random.Random) -> list[int]:
    """Return the positions of units drawn at `rate` of their tokens.

    The units lie in random order around a circle as long as their tokens. An arc of `rate` of it, laid down
    at random, takes those that begin on it: each with probability `rate`, together within one unit of the
    arc's length. (Taking units until the budget is full would pass over long words.)
    """
    order = list(units)
    rng.shuffle(order)
    around = sum(map(len, order))
    arc, at = rng.random() * around, 0
    taken: list[int] = []
    for unit in order:
        if (at - arc) % around < rate * around:
            taken += unit
        at += len(unit)
    return taken or list(order[0])


def _spans(words: Sequence[Sequence[int]], rate: float, rng: random.Random) -> list[list[int]]:
    """Cut the row end to end into spans: words are added until a span has the length drawn for it.

    Lengths are SpanBERT's, geometric with p = 0.2 and at most 10 (3.8 on average), but counted in tokens,
    since a Chinese token is a character, and at most the row's budget, so that a short row is not swamped.
    No span goes on over a gap. As the spans drawn are parts of the row, none meets another and every token
    has the same chance; starts drawn one by one would mask the ends of a row less than its middle.
    """
    longest = max(1, min(SPAN_LIMIT, int(rate * sum(map(len, words)))))
    weights = [(1 - SPAN_END) ** length for length in range(longest)]
    spans: list[list[int]] = []
    wanted = 0
    for word in words:
        if wanted <= 0 or word[0] != spans[-1][-1] + 1:
            spans.append([])
            wanted = rng.choices(range(1, longest + 1), weights)[0]
        spans[-1] += word
        wanted -= len(word)
    return spans
