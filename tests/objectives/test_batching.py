"""Micro batches: rows of one step by the tokens they take."""

from __future__ import annotations

import random

import pytest

from finetune.objectives.batching import split_by_tokens


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_cut_by_tokens_keeps_its_rows_and_its_limit_and_is_alike_on_every_rank(world):
    rng = random.Random(world)
    lengths = [rng.randint(4, 60) for _ in range(40)] + [500]
    parts = [split_by_tokens(range(41), lengths.__getitem__, rank, world, 200) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    flat = [row for part in parts for micro in part for row in micro if row is not None]
    assert sorted(flat) == list(range(41))
    for micro in (micro for part in parts for micro in part):
        sizes = [lengths[row] for row in micro if row is not None]
        assert len(micro) == 1 or len(micro) * (-(-max(sizes) // 8) * 8) <= 200
