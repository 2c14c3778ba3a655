"""Which tokens are hidden from the model. Every draw comes from a generator that the caller seeds by what
is drawn for (seed, epoch, row), so a resumed run hides the same tokens and validation hides the same ones
each time.

Masks are per token: for unsegmented Chinese a token is a character. (transformers' `whole_word_mask=True`
takes a sentence without spaces for one word, and masks all of it or nothing.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence

MASK_RATE = 0.15
KEEP_MASK, TO_RANDOM = 0.8, 0.1  # the rest stays as it is (BERT, arXiv:1810.04805, section 3.1)


def hide_randomly(
    ids: Sequence[int],
    maskable: Sequence[int],
    mask_id: int,
    vocab: Sequence[int],
    rng: random.Random,
    rate: float = MASK_RATE,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """BERT's masking of a share of the tokens: 80 % [MASK], 10 % another token, 10 % unchanged.

    Args:
        ids: token ids, special ones included.
        maskable: positions that may be hidden (no special token among them).
        vocab: ordinary token ids to draw replacements from.
        rate: share of `maskable`; at least one position is chosen, since a row without a target has no loss.

    Returns:
        the ids as the model sees them, and the chosen positions in order.
    """
    count = max(1, round(rate * len(maskable)))
    chosen = sorted(rng.sample(list(maskable), min(count, len(maskable))))
    seen = list(ids)
    for position in chosen:
        draw = rng.random()
        if draw < KEEP_MASK:
            seen[position] = mask_id
        elif draw < KEEP_MASK + TO_RANDOM:
            seen[position] = vocab[rng.randrange(len(vocab))]
    return tuple(seen), tuple(chosen)
