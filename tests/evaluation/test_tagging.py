"""Metrics of spans: those of seqeval, with an interval and a baseline."""

from __future__ import annotations

import random

import numpy as np
import pytest
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2, IOBES

from finetune.data.tag_schemes import TagSet, tag_names
from finetune.data.tagged import TaggedRow
from finetune.data.text_units import Span, text_units
from finetune.evaluation.bootstrap import f1_difference_interval, f1_interval
from finetune.evaluation.tagging import MostFrequentTag, Tagging, compute_metrics, gold_tags, text_spans
from finetune.models.unit_tokens import EncodedText

BIO = TagSet(tuple(tag_names(["LOC", "ORG", "PER"], {"B": "B", "I": "I"}, True)))
BIOES = TagSet(tuple(tag_names(["LOC", "ORG", "PER"], {"B": "B", "I": "I", "E": "E", "S": "S"}, True)))


def some_rows(rng: random.Random, count: int, labels) -> list[TaggedRow]:
    rows = []
    for number in range(count):
        text = "".join(rng.choice("天地玄黃宇宙洪荒") for _ in range(rng.randint(1, 15)))
        spans, at = [], rng.randint(0, 3)
        while at < len(text):
            end = min(len(text), at + rng.randint(1, 3))
            spans.append(Span(at, end, rng.choice(labels)))
            at = end + rng.randint(0, 4)
        rows.append(TaggedRow(text, tuple(spans), f"r{number}"))
    return rows


def predicted(rng: random.Random, row: TaggedRow, tags: TagSet, labels) -> list[int]:
    """The gold with some spans changed."""
    spans = [
        Span(span.start, span.end, rng.choice(labels) if rng.random() < 0.3 else span.label)
        for span in row.spans
        if rng.random() < 0.8
    ]
    return tags.encode(spans, len(row.text))


def measured(rows, paths, tags):
    encoded = [EncodedText(text_units(row.text), ()) for row in rows]
    taggings = [Tagging(path, np.ones(len(path)), np.zeros(len(path))) for path in paths]
    return compute_metrics(rows, encoded, taggings, tags), encoded, taggings


@pytest.mark.parametrize(("tags", "scheme"), [(BIO, IOB2), (BIOES, IOBES)])
def test_the_figures_are_seqevals_by_default_and_in_strict_mode(tags, scheme):
    rng = random.Random(3)
    rows = some_rows(rng, 200, ["LOC", "PER"])  # no ORG in the gold
    paths = [predicted(rng, row, tags, ["LOC", "ORG", "PER"]) for row in rows]
    found, _, _ = measured(rows, paths, tags)
    gold, said = (
        [[tags.names[tag] for tag in path] for path in one]
        for one in ([tags.encode(row.spans, len(row.text)) for row in rows], paths)
    )
    for mode in ({}, {"mode": "strict", "scheme": scheme}):
        options = {**mode, "zero_division": 0}
        report = seqeval.classification_report(gold, said, output_dict=True, **options)
        for name in ("precision", "recall", "f1"):
            key = "f1-score" if name == "f1" else name
            assert found[name] == pytest.approx(report["micro avg"][key])
            assert found[f"macro_{name}"] == pytest.approx(report["macro avg"][key])
            for label in ("LOC", "ORG", "PER"):
                assert found["per_label"][label][name] == pytest.approx(report[label][key])
        assert found["gold"] == report["micro avg"]["support"]
    assert found["tag_accuracy"] == pytest.approx(seqeval.accuracy_score(gold, said))
    assert found["n"] == 200 and found["interval_95"][0] < found["f1"] < found["interval_95"][1]


def test_the_interval_is_that_of_rows_drawn_again_one_by_one():
    rng = random.Random(4)
    counts = [
        (min(a, b, rng.randint(0, 4)), a, b)
        for a, b in ((rng.randint(0, 4), rng.randint(0, 4)) for _ in range(80))
    ]
    slow = []
    for _ in range(1500):
        sums = [sum(column) for column in zip(*rng.choices(counts, k=80), strict=True)]
        slow.append(2 * sums[0] / (sums[1] + sums[2]))
    assert f1_interval(counts) == pytest.approx(np.percentile(slow, (2.5, 97.5)).tolist(), abs=0.02)
    assert f1_interval(counts) == f1_interval(counts)
    assert f1_difference_interval(counts, counts) == [0, 0]
    assert f1_interval([(0, 0, 0)] * 5) == [0, 0]


def test_a_span_that_ends_inside_a_unit_is_trained_whole_and_counts_as_wrong():
    row = TaggedRow("天COVID地", (Span(1, 4, "PER"),))
    gold, exact = gold_tags(row, text_units(row.text), BIO)
    assert not exact and [BIO.names[tag] for tag in gold] == ["O", "B-PER", "O"]
    found, _, _ = measured([row], [gold], BIO)
    assert (found["right"], found["predicted"], found["gold"]) == (0, 1, 1) and found["inexpressible"] == 1
    assert gold_tags(TaggedRow("天", (Span(0, 1, "PER"),)), [], BIO) == ([], False)  # no token shows it


def test_the_baseline_gives_each_unit_its_commonest_tag_and_decodes_it_as_the_model_is():
    train = [
        TaggedRow("天地玄", (Span(0, 2, "PER"),)), TaggedRow("天地玄", (Span(0, 2, "PER"),)),
        TaggedRow("黃地", (Span(1, 2, "LOC"),)),
    ]  # fmt: skip
    encoded = [EncodedText(text_units(row.text), ()) for row in train]
    rule = MostFrequentTag(train, encoded, BIO)
    rows = [TaggedRow("天地宇", (Span(0, 2, "PER"),)), TaggedRow("地黃", ())]
    metrics, parts, taggings = measured(rows, [BIO.encode((), 3), BIO.encode((), 2)], BIO)
    rule.add_to(metrics, rows, parts, taggings)
    # 天 B-PER, 地 I-PER, 宇 unknown: O, the commonest; 地 at the start cannot be I-PER
    assert metrics["baseline"]["f1"] > 0 and metrics["baseline"]["right"] == 1
    assert metrics["baseline"]["difference"] == pytest.approx(metrics["f1"] - metrics["baseline"]["f1"])
    low, high = metrics["baseline"]["difference_interval_95"]
    assert low <= metrics["baseline"]["difference"] <= high


def test_plain_tags_are_counted_by_token():
    tags = TagSet(("NN", "VV", "O"))
    row = TaggedRow(
        "New York runs x",
        (Span(0, 3, "NN"), Span(4, 8, "NN"), Span(9, 13, "VV")),
        "",
        ((0, 3), (4, 8), (9, 13), (14, 15)),
    )
    path = [tags.names.index(name) for name in ("NN", "VV", "VV", "O")]
    found, _, _ = measured([row], [path], tags)
    assert (found["right"], found["predicted"], found["gold"]) == (2, 3, 3)
    assert found["tag_accuracy"] == 3 / 4 and found["plain"]


def test_words_that_stand_apart_are_spans_of_their_own_where_every_unit_has_a_tag():
    units = text_units("New York U.S.")
    spans = [span for span, _ in text_spans("New York U.S.", units, [0] * len(units), TagSet(("NN", "VV")))]
    assert spans == [(0, 3, "NN"), (4, 8, "NN"), (9, 13, "NN")]
    spans = [span for span, _ in text_spans("New York U.S.", units, [0] * len(units), TagSet(("PER", "O")))]
    assert spans == [(0, 13, "PER")]


def test_samples_mark_what_is_right_missed_and_extra():
    row = TaggedRow("王小明住台北", (Span(0, 3, "PER"), Span(4, 6, "LOC")), "r1")
    right = TaggedRow("王小明", (Span(0, 3, "PER"),), "r2")
    paths = [BIO.encode([(0, 3, "PER"), (3, 5, "ORG")], 6), BIO.encode([(0, 3, "PER")], 3)]
    found, _, _ = measured([right, row], paths[::-1], BIO)
    first, second = found["samples"]
    assert first["title"] == "r1" and second["title"] == "r2"
    gold, said = (line["pieces"] for line in first["lines"])
    assert gold == [["王小明", "PER", "right"], ["住", "", ""], ["台北", "LOC", "missed"]]
    assert said == [["王小明", "PER", "right"], ["住台", "ORG", "extra"], ["北", "", ""]]
