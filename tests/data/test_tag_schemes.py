"""Schemes of tags: spans to tags and back, and which tags may follow which."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from finetune.data.tag_schemes import SCHEMES, Tag, TagSet, fault, parse_tag, spans_of, style_of, tag_names

LABELS = ["PER", "地 名", "a-b"]
LETTERS = {
    "BIO": {"B": "B", "I": "I"}, "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BMES": {"B": "B", "I": "M", "E": "E", "S": "S"}, "BMEWO": {"B": "B", "I": "M", "E": "E", "S": "W"},
    "BILOU": {"B": "B", "I": "I", "E": "L", "S": "U"}, "plain": {},
}  # fmt: skip


def random_spans(rng: random.Random, count: int, labels, gaps: bool) -> list[tuple[int, int, str]]:
    spans, at = [], 0
    while at < count:
        at += rng.randint(0, 3) if gaps else 0
        end = min(count, at + rng.randint(1, 4))
        if at < end:
            spans.append((at, end, rng.choice(labels)))
        at = end
    return spans


def tag_sets(outside: bool = True) -> list[TagSet]:
    return [TagSet(tuple(tag_names(LABELS, letters, outside))) for letters in LETTERS.values()]


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.parametrize("outside", [True, False])
def test_spans_become_tags_and_the_same_spans_again(name, outside):
    rng = random.Random(name)
    tags = TagSet(tuple(tag_names(LABELS, LETTERS[name], outside)))
    assert tags.labels == tuple(LABELS) and tags.plain == (name == "plain")
    for _ in range(300):
        spans = random_spans(rng, 12, LABELS, gaps=outside)
        if name == "plain":  # a run of one tag is one span
            spans = [span for at, span in enumerate(spans) if not at or spans[at - 1][2] != span[2]]
            if not outside and sum(end - start for start, end, _ in spans) < 12:
                continue
        written = tags.encode(spans, 12)
        assert tags.decode(written) == spans
        sequence = [None, *written]
        assert tags.begins[sequence[1]] and tags.ends[written[-1]]
        assert all(tags.allows(a, b) for a, b in zip(written, written[1:], strict=False))


def test_spans_without_a_type_are_letters_alone():
    tags = TagSet(tuple(tag_names(["_"], LETTERS["BMES"], False)))
    assert tags.names == ("B", "M", "E", "S")
    assert tags.decode(tags.encode([(0, 1, "_"), (1, 4, "_"), (4, 6, "_")], 6)) == [
        (0, 1, "_"), (1, 4, "_"), (4, 6, "_"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["BIO", "BIOES", "BMES", "BILOU", "BMEWO"])
def test_a_tag_may_follow_another_exactly_where_the_scheme_says_so(name):
    tags = TagSet(tuple(tag_names(["甲", "乙"], LETTERS[name], True)))
    scheme = "BIO" if name == "BIO" else "BIOES"
    for length in (1, 2, 3):
        for sequence in product(range(len(tags.names)), repeat=length):
            legal = tags.begins[sequence[0]] and tags.ends[sequence[-1]]
            legal &= all(tags.allows(a, b) for a, b in zip(sequence, sequence[1:], strict=False))
            assert legal == (fault([tags.tags[tag] for tag in sequence], scheme) is None), sequence


@pytest.mark.parametrize("name", ["BIO", "IOB1", "BIOES"])
def test_legal_tags_have_the_spans_that_seqeval_finds(name):
    rng = random.Random(1)
    alphabet = ["O", *(f"{letter}-{label}" for letter in "BIES" for label in ("PER", "LOC"))]
    checked = 0
    for _ in range(20_000):
        names = [rng.choice(alphabet) for _ in range(rng.randint(1, 6))]
        parsed = [parse_tag(tag, "prefix") for tag in names]
        if fault(parsed, name) is None:
            checked += 1
            wanted = [(start, end + 1, label) for label, start, end in get_entities(names)]
            assert spans_of(parsed) == wanted, names
    assert checked > 300


def test_illegal_tags_are_read_as_seqeval_reads_them_by_default():
    rng = random.Random(2)
    alphabet = ["O", "B-a", "I-a", "B-b", "I-b"]
    for _ in range(3000):
        names = [rng.choice(alphabet) for _ in range(rng.randint(1, 7))]
        wanted = [(start, end + 1, label) for label, start, end in get_entities(names)]
        assert spans_of([parse_tag(tag, "prefix") for tag in names]) == wanted, names


@pytest.mark.parametrize(
    ("names", "style"),
    [
        (["O", "B-PER", "I-PER"], "prefix"), (["O", "B_PER", "I_PER"], "prefix"),
        (["PER-B", "PER-I", "O"], "suffix"),
        (["B", "M", "E", "S"], "letter"), (["NN", "VV", "O"], "plain"), (["O", "PER", "LOC"], "plain"),
        (["S-BAR", "X"], "plain"), (["O"], "plain"),
    ],
)  # fmt: skip
def test_how_tags_are_written_is_found_by_all_of_them(names, style):
    assert style_of(Counter(names)) == style


def test_a_model_whose_tags_have_no_beginnings_begins_spans_with_any():
    tags = TagSet(("O", "I-PER", "I-LOC"))
    assert tags.decode(tags.encode([(0, 2, "PER"), (2, 3, "LOC")], 4)) == [(0, 2, "PER"), (2, 3, "LOC")]
    assert all(tags.begins) and all(tags.ends)


def test_the_first_fault_is_found():
    tags = [Tag("B", "a"), Tag("I", "b"), Tag("O", "")]
    assert fault(tags, "BIO") == 1 and fault(tags[:1], "BIO") is None
    assert fault(tags[:1], "BIOES") == 0
    assert [fault([Tag("E", "a")], scheme) for scheme in SCHEMES] == [0, 0, 0]
