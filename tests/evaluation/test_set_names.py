"""Order of the sets wherever they are listed."""

from __future__ import annotations

import re

from test_classification_report import card as classifier_card
from test_html import full

from finetune.evaluation.set_names import ORDER, in_order
from finetune.reports import model_card, perplexity, report
from finetune.reports.classification import verdict
from finetune.reports.html import render


def order_of(text: str, words) -> list[str]:
    """The words by where they first stand."""
    return sorted(words, key=text.index)


def test_the_official_test_comes_first_then_held_out_rows_then_validation():
    found = dict.fromkeys(("validation", "odd", "held_back", "test"), 0)
    assert [*in_order(found)] == [*ORDER, "odd"] == ["test", "held_back", "validation", "odd"]
    told = full()
    assert [*told.results] == ["held_back", "test"] == [*told.exam_sets()][::-1]
    html = render(told)
    assert re.findall(r'data-set="(\w+)"', html) == ["test", "held_back"]
    assert order_of("\n".join(report.verdict(told)), ("正式測驗：", "保留題：")) == ["正式測驗：", "保留題："]
    assert order_of(report.markdown(told, {}), ("## 正式測驗", "## 保留題"))[0] == "## 正式測驗"
    assert [*model_card.FIRST] == [*ORDER]


def test_so_it_does_for_labels_and_texts():
    card = classifier_card()
    assert [*card.labels] == ["validation", "held_back", "test"]
    titles = ["測試", "保留", "驗證"]
    told = report.Report({}, {}, {}, labels=card.labels)
    assert re.findall(r'data-set="(\w+)"', render(told)) == [*ORDER]
    assert order_of(report.markdown(told, {}), [f"## {title}" for title in titles])[0] == "## 測試"
    assert order_of(model_card.model_card(card), [f"### {title}" for title in titles]) == [
        f"### {title}" for title in titles
    ]
    assert [line[:2] for line in verdict(card.labels) if line[2:3] == "："] == titles
    one = {"loss": 1.0, "perplexity": 2.7, "tokens": 9}
    sets = {name: {"tuned": one, "untuned": one} for name in ("validation", "held_back")}
    assert [cells[0] for cells in perplexity.rows({"sets": sets, "samples": []})] == ["保留", "驗證"]
