"""Constrained decoding: no impossible sequence, and the likeliest of the others."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from finetune.data.tag_schemes import TagSet, fault, tag_names
from finetune.evaluation import viterbi
from finetune.evaluation.viterbi import decode

SETS = {
    "BIO": {"B": "B", "I": "I"}, "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BMES": {"B": "B", "I": "M", "E": "E", "S": "S"}, "plain": {},
}  # fmt: skip


def tags_of(name: str, labels=("甲", "乙"), outside=True) -> TagSet:
    return TagSet(tuple(tag_names(labels, SETS[name], outside)))


def logits(rng, lengths, k, scale=3.0):
    return [np.log(rng.dirichlet(np.ones(k) / scale, size=n) + 1e-12) for n in lengths]


def is_legal(tags: TagSet, path) -> bool:
    return (
        tags.begins[path[0]]
        and tags.ends[path[-1]]
        and all(tags.allows(a, b) for a, b in zip(path, path[1:], strict=False))
    )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("outside", [True, False])
def test_no_decoded_sequence_is_impossible(name, outside):
    rng, tags = np.random.default_rng(0), tags_of(name, ("a", "b", "c"), outside)
    rows = logits(rng, rng.integers(1, 60, 150), len(tags.names))
    for row, path in zip(rows, decode(rows, tags), strict=True):
        assert len(path) == len(row) and is_legal(tags, path)
        if not tags.plain:
            scheme = "BIO" if name == "BIO" else "BIOES"
            assert fault([tags.tags[tag] for tag in path], scheme) is None
            assert tags.encode(tags.decode(path), len(path)) == path


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("outside", [True, False])
def test_the_decoded_sequence_is_the_likeliest_that_brute_force_finds(name, outside):
    rng, tags = np.random.default_rng(1), tags_of(name, outside=outside)
    k = len(tags.names)
    rows = logits(rng, [1, 2, 3, 3, 4, 4, 1, 2] if k < 9 else [1, 2, 3, 3, 3, 1, 2], k)
    for row, path in zip(rows, decode(rows, tags), strict=True):
        every = (path for path in product(range(k), repeat=len(row)) if is_legal(tags, path))
        best = max(sum(row[at, tag] for at, tag in enumerate(path)) for path in every)
        assert sum(row[at, tag] for at, tag in enumerate(path)) == pytest.approx(best)


def test_rows_of_all_lengths_are_decoded_together_as_alone(monkeypatch):
    rng, tags = np.random.default_rng(2), tags_of("BIOES")
    rows = logits(rng, [5, 0, 1, 30, 7, 0, 2], len(tags.names))
    alone = [decode([row], tags)[0] for row in rows]
    assert decode(rows, tags) == alone and alone[1] == []
    monkeypatch.setattr(viterbi, "LARGEST", 100)
    assert decode(rows, tags) == alone


def test_three_hundred_labels_take_no_square_of_their_number():
    rng, tags = np.random.default_rng(3), tags_of("BIO", [f"類 {n}" for n in range(300)])
    rows = logits(rng, [40] * 50, len(tags.names))
    assert all(is_legal(tags, path) for path in decode(rows, tags))


def test_a_tag_set_that_allows_nothing_gets_the_likeliest_tags():
    tags = TagSet(("B-a", "E-a"))
    row = np.log(np.array([[0.9, 0.1]]))
    assert decode([row], tags) == [[0]]  # one unit, and no S
    assert decode([np.repeat(row, 2, 0)], tags) == [[0, 1]]
