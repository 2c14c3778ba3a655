"""Metrics of a classifier: every figure against plain loops over counts, and what is said of it."""

from __future__ import annotations

import json
import math
import random
import warnings

import pytest
import statsmodels.stats.proportion

from finetune.evaluation import metrics
from finetune.evaluation.classification import compute_metrics, prediction_counts
from finetune.reports import classification as classification_report
from finetune.reports.classification import (
    CHOSEN_BY,
    LISTED,
    NONE,
    confusion,
    confusions,
    label_verdict,
    mistakes,
    notes,
    verdict,
)
from finetune.reports.templates import escaped, table

NAMES = ["正面", "中立", "負面", "無關"]
SETS = {"validation": "驗證", "held_back": "保留", "test": "測試"}


def one_hot(answers, k=4, sure=0.7):
    """Rows of which the answers are the largest."""
    return [[sure if i == answer else (1 - sure) / (k - 1) for i in range(k)] for answer in answers]


def guessed(count=200, k=4, seed=0, multi=False, present=None):
    """Truth and probabilities by chance, half of them pulled to the truth."""
    rng, truth, rows = random.Random(seed), [], []
    for _ in range(count):
        there = present if present is not None else range(k)
        truth.append(tuple(i for i in there if rng.random() < 0.4) if multi else (rng.choice(list(there)),))
        row = [rng.random() for _ in range(k)]
        if rng.random() < 0.5:
            row = [0.1 * value + 0.85 * (i in truth[-1]) for i, value in enumerate(row)]
        rows.append(row if multi else [value / sum(row) for value in row])
    return truth, rows


def counted(truth, rows, k, multi):
    """True positives, false positives, false negatives of each class, by loops; and the answers."""
    answers = []
    for row in rows:
        answers.append({i for i, p in enumerate(row) if p >= 0.5} if multi else {row.index(max(row))})
    tp, fp, fn = [0] * k, [0] * k, [0] * k
    for there, given in zip(truth, answers, strict=True):
        for i in range(k):
            tp[i] += i in there and i in given
            fp[i] += i not in there and i in given
            fn[i] += i in there and i not in given
    return tp, fp, fn, answers


def over(part, whole):
    return part / whole if whole else 0.0


def f1_of(tp, fp, fn):
    return over(2 * tp, 2 * tp + fp + fn)


CASES = {
    "all there": {},
    "two of four there": {"present": [0, 2]},
    "one there": {"present": [1]},
    "two classes": {"k": 2},
    "one row": {"count": 1},
    "several labels": {"multi": True},
    "several labels, two of four there": {"multi": True, "present": [0, 2]},
    "no label at all": {"multi": True, "present": []},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_figure_is_what_plain_loops_over_the_counts_find(case):
    multi, k = case.get("multi", False), case.get("k", 4)
    truth, rows = guessed(**case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compute_metrics(truth, rows, NAMES[:k], multi)
    tp, fp, fn, answers = counted(truth, rows, k, multi)
    n, right = len(truth), sum(set(there) == given for there, given in zip(truth, answers, strict=True))
    assert (found["n"], found["right"], found["accuracy"]) == (n, right, right / n)
    wilson = statsmodels.stats.proportion.proportion_confint(right, n, method="wilson")
    assert found["interval_95"] == pytest.approx(wilson, abs=1e-9)
    precision = [over(tp[i], tp[i] + fp[i]) for i in range(k)]
    recall = [over(tp[i], tp[i] + fn[i]) for i in range(k)]
    f1 = [f1_of(tp[i], fp[i], fn[i]) for i in range(k)]
    for i, (name, row) in enumerate(found["per_class"].items()):
        assert name == NAMES[i] and row["support"] == tp[i] + fn[i]
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx([precision[i], recall[i], f1[i]])
    for what, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[f"macro_{what}"] == pytest.approx(sum(values) / k)  # over all k, absent ones too
    assert found["micro_precision"] == pytest.approx(over(sum(tp), sum(tp) + sum(fp)))
    assert found["micro_recall"] == pytest.approx(over(sum(tp), sum(tp) + sum(fn)))
    assert found["micro_f1"] == pytest.approx(f1_of(sum(tp), sum(fp), sum(fn)))
    counts = {answer: truth.count(answer) for answer in truth}
    common = min(counts, key=lambda answer: (-counts[answer], answer))
    assert found["majority"] == counts[common] / n
    assert found["majority_is"] == "、".join(NAMES[i] for i in common)
    always = counted(truth, [[float(i in common) for i in range(k)]] * n, k, multi)[:3]
    assert found["macro_f1_majority"] == pytest.approx(sum(map(f1_of, *always)) / k)
    json.dumps(found, allow_nan=False)
    assert prediction_counts(found) == [tp[i] + fp[i] for i in range(k)]


@pytest.mark.parametrize("case", ["all there", "two of four there", "one there", "two classes", "one row"])
def test_confusion_mcc_loss_and_calibration_of_single_labels_are_those_of_plain_loops(case):
    k = CASES[case].get("k", 4)
    truth, rows = guessed(**CASES[case])
    found = compute_metrics(truth, rows, NAMES[:k], False)
    matrix = [[0] * k for _ in range(k)]
    for (there,), row in zip(truth, rows, strict=True):
        matrix[there][row.index(max(row))] += 1
    assert found["confusion"] == matrix
    n, right = len(truth), sum(matrix[i][i] for i in range(k))
    true, given = list(map(sum, matrix)), [sum(row[j] for row in matrix) for j in range(k)]
    top = right * n - sum(a * b for a, b in zip(true, given, strict=True))  # Gorodkin 2004, equation 8
    under = (n * n - sum(a * a for a in true)) * (n * n - sum(b * b for b in given))
    assert found["mcc"] == pytest.approx(over(top, math.sqrt(under)))
    loss = sum(-math.log(row[there] / sum(row)) for (there,), row in zip(truth, rows, strict=True)) / n
    assert found["log_loss"] == pytest.approx(loss)
    bins = {}
    for (there,), row in zip(truth, rows, strict=True):
        bins.setdefault(min(14, int(max(row) * 15)), []).append((max(row), row.index(max(row)) == there))
    gaps = [abs(sum(p for p, _ in held) - sum(hit for _, hit in held)) for held in bins.values()]
    assert found["ece"] == pytest.approx(sum(gaps) / n)
    assert found["confidence"] == pytest.approx(sum(map(max, rows)) / n)
    assert found["hamming_loss"] is None and found["multi"] is False


@pytest.mark.parametrize("case", ["several labels", "several labels, two of four there", "no label at all"])
def test_confusion_and_losses_of_several_labels_are_those_of_plain_loops(case):
    truth, rows = guessed(**CASES[case])
    found = compute_metrics(truth, rows, NAMES, True)
    tp, fp, fn, _ = counted(truth, rows, 4, True)
    n = len(truth)
    assert found["confusion"] == [[[n - tp[i] - fp[i] - fn[i], fp[i]], [fn[i], tp[i]]] for i in range(4)]
    assert found["hamming_loss"] == pytest.approx((sum(fp) + sum(fn)) / (4 * n))
    losses = [
        -math.log(p if i in there else 1 - p)
        for there, row in zip(truth, rows, strict=True)
        for i, p in enumerate(row)
    ]
    assert found["log_loss"] == pytest.approx(sum(losses) / len(losses))
    assert found["mcc"] is found["ece"] is found["confidence"] is None


def test_a_class_exactly_as_probable_as_the_threshold_is_answered():
    found = compute_metrics([(0,), (1,)], [[0.5, 0.4999], [0.4999, 0.5]], NAMES[:2], True)
    assert found["accuracy"] == 1.0


def test_a_probability_of_0_for_the_right_class_has_a_finite_loss():
    single = compute_metrics([(0,), (1,)], [[0.0, 1.0], [0.0, 1.0]], NAMES[:2], False)
    several = compute_metrics([(0,), ()], [[0.0, 0.0], [1.0, 0.0]], NAMES[:2], True)
    assert 10 < single["log_loss"] < 40 and 10 < several["log_loss"] < 40
    json.dumps([single, several], allow_nan=False)


@pytest.mark.parametrize("multi", [False, True])
def test_a_probability_that_is_no_number_is_refused(multi):
    with pytest.raises(ValueError, match="NaN"):
        compute_metrics([(0,), (1,)], [[0.5, math.nan], [0.2, 0.8]], NAMES[:2], multi)


def test_rows_that_float32_rounded_are_taken_without_a_warning():
    import numpy

    rows = numpy.random.default_rng(0).dirichlet([1] * 4, 50).astype("float32").tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_metrics([(0,)] * 50, rows, NAMES, False)["n"] == 50


def test_the_calibration_error_is_that_of_exams():
    truth, rows = guessed()
    logs = [[math.log(p) for p in row] for row in rows]
    stated = metrics.calibration(logs, [there for (there,) in truth])
    assert compute_metrics(truth, rows, NAMES, False)["ece"] == pytest.approx(stated["ece"])


def test_without_rows_there_are_no_figures():
    assert compute_metrics([], [], NAMES, False) == {} == compute_metrics([], [], NAMES, True)
    assert verdict({}) == [NONE]


def test_a_class_that_is_nowhere_counts_0_in_the_macro_average_and_that_is_said():
    found = compute_metrics([(0,), (1,), (0,)], one_hot([0, 1, 0]), NAMES, False)
    assert found["accuracy"] == 1.0 and found["macro_f1"] == 0.5 and found["micro_f1"] == 1.0
    said = "".join(notes("test", found))
    assert "這些列裡沒有「負面」「無關」" in said and "算 0" in said


# ---- in words ----------------------------------------------------------------------------------------------


def judged(right: int, wrong: int, common: int) -> dict:
    """Figures of two classes, of which `common` rows of the first."""
    n = right + wrong
    truth = [(int(i >= common),) for i in range(n)]
    answers = [there if i < right else 1 - there for i, (there,) in enumerate(truth)]
    return compute_metrics(truth, one_hot(answers, 2), NAMES[:2], False)


@pytest.mark.parametrize(
    "right, wrong, common, said",
    [
        (90, 10, 60, "100 列答對 90 列（0.900），高於一律答最多的一類「正面」的 0.600。"),
        (65, 35, 60, "100 列答對 65 列（0.650），看不出勝過一律答最多的一類「正面」的 0.600。"),
        (58, 42, 60, "100 列答對 58 列（0.580），看不出勝過一律答最多的一類「正面」的 0.600。"),
        (40, 60, 60, "100 列答對 40 列（0.400），不如一律答最多的一類「正面」的 0.600。"),
    ],
)
def test_the_verdict_is_honest_about_the_commonest_class(right, wrong, common, said):
    found = judged(right, wrong, common)
    assert label_verdict(found) == said
    for name, title in SETS.items():
        lines = verdict({name: found})
        assert lines[0] == f"{title}：{said}"
        low, high = found["interval_95"]
        assert f"{title} 100 列：正確率 {right / 100:.3f}（95 % 區間 {low:.3f}–{high:.3f}）" in lines[1]
        assert f"巨觀 F1 {found['macro_f1']:.3f}、微觀 F1 {found['micro_f1']:.3f}、MCC" in lines[1]
        assert f"一律答最多的一類「正面」：0.600、巨觀 F1 {found['macro_f1_majority']:.3f}" in lines[1]


def test_a_classifier_that_only_ever_answers_one_class_is_reported_as_such():
    found = compute_metrics([(0,), (0,), (1,), (2,)], one_hot([0] * 4), NAMES[:], False)
    assert found["accuracy"] == found["majority"] and found["macro_f1"] == found["macro_f1_majority"]
    assert found["mcc"] == 0.0 and "看不出勝過" in label_verdict(found)
    assert "一次也沒有答過「中立」「負面」" in notes("test", found)


def test_the_two_commonest_confusions_are_named_from_two_errors_on():
    truth = [(0,)] * 9 + [(1,)] * 5 + [(2,)] * 3
    answers = [1] * 7 + [0] * 2 + [2] * 3 + [1] * 2 + [0] + [2] * 2
    found = compute_metrics(truth, one_hot(answers, 3), NAMES[:3], False)
    said = "最常把「正面」認成「中立」：7 次；其次把「中立」認成「負面」：3 次"
    assert mistakes(found) == said and said in notes("test", found)
    assert confusions(found)[2] == ("負面", "正面", 1)
    assert mistakes(judged(99, 1, 60)) == "" == mistakes(judged(100, 0, 60))
    assert mistakes(judged(98, 2, 60)) == "最常把「中立」認成「正面」：2 次"


def test_of_several_labels_it_is_said_what_is_missed_and_what_is_added():
    truth, rows = [(0, 1)] * 5 + [()], [[1, 0, 1]] * 3 + [[1, 1, 0]] * 3
    found = compute_metrics(truth, rows, NAMES[:3], True)
    assert mistakes(found) == "最常漏掉「中立」：3 次；最常多答「負面」：3 次"
    assert label_verdict(found).startswith("6 列裡有 2 列的標籤全對（0.333），")
    line = verdict({"test": found})[1]
    assert "整列全對 0.333" in line and "漢明損失 0.444" in line and "MCC" not in line
    assert "一律答最多的一組「正面、中立」：0.833" in line
    assert mistakes(compute_metrics([(0,)], [[0.1, 0.1]], NAMES[:2], True)) == ""


def test_where_most_rows_have_no_label_giving_none_is_what_must_be_beaten():
    found = compute_metrics([(), (), (), (0,)], [[0.1, 0.1]] * 4, NAMES[:2], True)
    assert found["majority_is"] == "" and found["majority"] == 0.75 == found["accuracy"]
    assert "看不出勝過一律什麼標籤也不給的 0.750" in label_verdict(found)


def test_only_the_set_that_the_best_model_was_chosen_by_is_said_to_be_so():
    found = judged(90, 10, 60)
    told = {name: CHOSEN_BY in notes(name, found) for name in SETS}
    assert told == {"validation": True, "held_back": False, "test": False}


def test_on_the_screen_a_name_stays_on_its_line_and_is_cut():
    names = ["第一行\n第二行\x1b[31m", "長" * 50]
    found = compute_metrics([(0,)] * 3 + [(1,)] * 2, one_hot([1, 1, 0, 0, 0], 2), names, False)
    for line in verdict({"test": found}):
        assert "\n" not in line and "\x1b" not in line and "長" * 21 not in line
    assert "「第一行 第二行 [31m」認成「" + "長" * 19 + "…」" in mistakes(found)


# ---- in tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi", [False, True])
def test_the_table_has_a_row_a_class_with_its_figures(multi):
    truth, rows = guessed(multi=multi)
    found = compute_metrics(truth, rows, NAMES, multi)
    tp, fp, fn, _ = counted(truth, rows, 4, multi)
    lines = table(classification_report.columns(found), classification_report.rows(found)).split("\n")
    assert len(lines) == 6 and {line.count("|") for line in lines} == {9 if multi else 7}
    for i, line in enumerate(lines[2:]):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        expected = [over(tp[i], tp[i] + fp[i]), over(tp[i], tp[i] + fn[i]), f1_of(tp[i], fp[i], fn[i])]
        assert cells[:5] == [NAMES[i], str(tp[i] + fn[i]), *(f"{value:.3f}" for value in expected)]
        assert cells[5:] == [str(tp[i] + fp[i]), *([str(fn[i]), str(fp[i])] if multi else [])]


def test_no_name_breaks_a_table_or_becomes_markup():
    names = ["a|b", "一\n二\r三", "<script>alert(1)</script>", "[x](y) `c` **d** _e_ ~f~ $g$ \\"]
    found = compute_metrics([(i,) for i in range(4)], one_hot(range(4)), names, False)
    classes = (classification_report.columns(found), classification_report.rows(found))
    for head, rows in (classes, confusion(found)):
        lines = table(head, rows).splitlines()
        assert len(lines) == 6 and len({line.count("|") for line in lines}) == 1
        text = "\n".join(lines[2:])
        assert "<" not in text and not set("[]`*_~$\\") & set(text)
    import html

    assert html.unescape(escaped(names[3])) == names[3]


def test_of_more_classes_than_one_reads_across_the_commonest_confusions_are_listed():
    names = [f"類{i}" for i in range(40)]
    truth = [(i,) for i in range(40) for _ in range(i + 1)]
    found = compute_metrics(truth, one_hot([(i + 1) % 40 for (i,) in truth], 40), names, False)
    head, lines = confusion(found)
    assert len(head) == 3 and len(lines) == LISTED and lines[0] == ["類39", "類0", "40"]
