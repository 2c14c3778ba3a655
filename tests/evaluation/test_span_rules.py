"""EM and F1: equal to scripts written here from the published ones, on random and odd answers."""

from __future__ import annotations

import collections
import random
import re
import string

import numpy
import pytest
from nltk import word_tokenize

from finetune.data.span_rows import Answer, SpanRow
from finetune.evaluation.bootstrap import cluster_interval
from finetune.evaluation.span_baselines import most_shared_sentence, random_sentence, sentences
from finetune.evaluation.span_metrics import add_span_baselines, compute_span_metrics, span_samples
from finetune.evaluation.span_rules import RULES, rule_for

# ---- cmrc2018_evaluate.py (v5), as published ---------------------------------------------------------------

SP_CHAR = [*"-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』", "……"]


def mixed_segmentation(in_str):
    segs_out, temp_str = [], ""
    for char in in_str.lower().strip():
        if char in SP_CHAR:
            continue
        if re.search("[\u4e00-\u9fa5]", char):
            if temp_str:
                segs_out.extend(word_tokenize(temp_str, preserve_line=True))
                temp_str = ""
            segs_out.append(char)
        else:
            temp_str += char
    if temp_str:
        segs_out.extend(word_tokenize(temp_str, preserve_line=True))
    return segs_out


def remove_punctuation(in_str):
    return "".join(char for char in in_str.lower().strip() if char not in SP_CHAR)


def find_lcs(s1, s2):
    m = [[0 for _ in range(len(s2) + 1)] for _ in range(len(s1) + 1)]
    mmax = 0
    for i in range(len(s1)):
        for j in range(len(s2)):
            if s1[i] == s2[j]:
                m[i + 1][j + 1] = m[i][j] + 1
                mmax = max(mmax, m[i + 1][j + 1])
    return mmax


def cmrc_f1(answers, prediction):
    scores = []
    for ans in answers:
        ans_segs, prediction_segs = mixed_segmentation(ans), mixed_segmentation(prediction)
        lcs_len = find_lcs(ans_segs, prediction_segs)
        if lcs_len == 0:
            scores.append(0)
            continue
        precision, recall = lcs_len / len(prediction_segs), lcs_len / len(ans_segs)
        scores.append((2 * precision * recall) / (precision + recall))
    return max(scores)


def cmrc_em(answers, prediction):
    return int(any(remove_punctuation(ans) == remove_punctuation(prediction) for ans in answers))


# ---- evaluate-v2.0.py, as published ------------------------------------------------------------------------


def normalize_answer(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", s).split())


def squad_f1(a_gold, a_pred):
    gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def squad(answers, prediction):
    gold_answers = [a for a in answers if normalize_answer(a)] or [""]
    exact = max(int(normalize_answer(a) == normalize_answer(prediction)) for a in gold_answers)
    return exact, max(squad_f1(a, prediction) for a in gold_answers)


CHINESE = [
    "台北", "臺", "2018年", "１２", "3.5%", "iPhone 7", "don't", "《", "》", "·", "，", "。", " ", "ABC",
    "abc", "😀", "𠮷", "…", "……", "-", "(", ")", "、", "cannot", "1,000", "\n", "U.S.", '"', "年",
]  # fmt: skip
ENGLISH = [
    "the", "The", "a", "An", "cat", "cats", "U.S.", "U.S", "3.5", "$5", " ", "  ", "-", "don't", "dont", "é",
    ",", ".", "台北", "New", "York", "theatre", "\t",
]  # fmt: skip


def test_em_and_f1_are_those_of_the_published_scripts():
    rng = random.Random(0)
    for words, name in ((CHINESE, "cmrc2018"), (ENGLISH, "squad")):
        rule, glue = RULES[name], "" if name == "cmrc2018" else " "
        for _ in range(1500):
            texts = [glue.join(rng.choice(words) for _ in range(rng.randint(1, 6))) for _ in range(3)]
            said, golds = texts[0], texts[1 : rng.randint(2, 3)]
            if rng.random() < 0.3:
                said = rng.choice(golds)[rng.randint(0, 2) :]
            found = rule.exact_match(said, golds), rule.overlap(said, golds)
            wanted = (
                (cmrc_em(golds, said), cmrc_f1(golds, said)) if name == "cmrc2018" else squad(golds, said)
            )
            assert found == pytest.approx(wanted), (name, said, golds)


@pytest.mark.parametrize("name", RULES)
def test_no_answer_is_right_where_there_is_none_and_nowhere_else(name):
    rule = RULES[name]
    assert (rule.exact_match("", []), rule.overlap("", [])) == (1, 1)
    assert (rule.exact_match("台北 x", []), rule.overlap("台北 x", [])) == (0, 0)
    assert (rule.exact_match("", ["台北 x"]), rule.overlap("", ["台北 x"])) == (0, 0)


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["首都在哪？", "iPhone 是哪一家的？"], "cmrc2018"),
        (["Where is 台北?", "Who?"], "squad"),
        ([], "squad"),
    ],
)
def test_the_rule_follows_the_language(texts, name):
    assert rule_for(texts).name == name


def rows_of(count=40) -> list[SpanRow]:
    return [
        SpanRow(f"第{at}問？", f"甲。答案{at}在這裡。丙。", (Answer(f"答案{at}", 2),), str(at), str(at // 4))
        for at in range(count)
    ]


def test_metrics_are_means_with_intervals_over_articles_beside_the_baselines():
    rows = rows_of()
    texts = [row.texts[0] if int(row.group) % 2 else "甲" for row in rows]
    metrics = compute_span_metrics(rows, texts)
    assert (metrics["n"], metrics["articles"], metrics["exact_match"], metrics["right"]) == (40, 10, 0.5, 20)
    low, high = metrics["exact_match_interval_95"]
    assert 0.15 <= low <= 0.25 and 0.75 <= high <= 0.85  # of 10 articles, not of 40 questions
    add_span_baselines(metrics, rows, texts)
    for name, answer in (
        ("random_sentence", random_sentence),
        ("most_shared_sentence", most_shared_sentence),
    ):
        wanted = numpy.mean([cmrc_f1(row.texts, answer(row)) for row in rows])
        baseline = metrics["baselines"][name]
        assert baseline["f1"] == pytest.approx(wanted)
        assert baseline["f1_difference"] == pytest.approx(metrics["f1"] - wanted)
        low, high = baseline["f1_difference_interval_95"]
        assert low <= baseline["f1_difference"] <= high
    assert compute_span_metrics([], []) == {}


def test_answered_and_unanswerable_questions_are_told_apart():
    rows = [*rows_of(4), SpanRow("無？", "甲。", (), "x", "x"), SpanRow("無？", "乙。", (), "y", "x")]
    metrics = compute_span_metrics(rows, [*[row.texts[0] for row in rows[:3]], "", "", "乙"], True)
    assert metrics["has_answer"] == {"n": 4, "exact_match": 0.75, "f1": 0.75}
    assert metrics["no_answer"] == {"n": 2, "exact_match": 0.5, "f1": 0.5}
    assert metrics["unanswered"] == 2


def test_intervals_of_groups_of_one_are_those_of_rows_and_of_equal_rows_wider():
    rng = numpy.random.default_rng(0)
    values = rng.random((400, 1))
    ((low, high),) = cluster_interval(values, range(400))
    wanted = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.05)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.003)
    ((low, high),) = cluster_interval(numpy.repeat(values, 4, 0), numpy.repeat(numpy.arange(400), 4))
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.05)  # four times the same row tells nothing more
    assert cluster_interval([[0.25], [0.75]], ["x", "x"]) == [[0.5, 0.5]]


def test_sentences_end_at_their_marks_and_lose_no_character():
    text = "甲「乙」。丙！丁？ A cat. It costs 3.5 dollars. 戊"
    assert sentences(text) == ["甲「乙」。", "丙！", "丁？", "A cat.", "It costs 3.5 dollars.", "戊"]
    row = SpanRow("貓在哪裡？", "狗在屋外。貓在屋裡。", ())
    assert most_shared_sentence(row) == "貓在屋裡。"
    assert random_sentence(row) == random_sentence(row) in sentences(row.context)


def test_samples_mark_gold_and_answer_in_the_passage():
    row = SpanRow(
        "何？", "前" * 200 + "台北市" + "中" * 300 + "高雄" + "後" * 200, (Answer("台北市", 200),), "x"
    )
    for place, marks in (
        ((200, 203), {"right": "台北市"}), ((200, 202), {"right": "台北", "missed": "市"}),
        ((503, 505), {"missed": "台北市", "extra": "高雄"}), (None, {"missed": "台北市"}),
    ):  # fmt: skip
        text = "" if place is None else row.context[slice(*place)]
        (sample,) = span_samples([row], [text], [place])
        pieces = sample["lines"][0]["pieces"]
        assert {look: text for text, _, look in pieces if look} == marks
        assert sum(len(text) for text, _, _ in pieces) < 400
