"""ROUGE and chrF of written texts, against slow loops and the libraries' own."""

from __future__ import annotations

import random
import string
from collections import Counter

import pytest
from conftest import HAN

from finetune.evaluation.text_overlap import (
    ROUGE,
    compare,
    compute_metrics,
    lead,
    row_figures,
    summary_figures,
    tokens,
)

LETTERS = string.ascii_letters + string.digits + " .,-_'\"“”é\n" * 3


def slow_rouge(target: str, output: str) -> dict[str, float]:
    """ROUGE over characters, by the definitions (Lin 2004, sections 2 and 3)."""

    def f1(overlap, wanted, written):
        if not overlap:
            return 0.0
        precision, recall = overlap / written, overlap / wanted
        return 2 * precision * recall / (precision + recall)

    found = {}
    for size in (1, 2):
        a, b = (Counter(text[i : i + size] for i in range(len(text) - size + 1)) for text in (target, output))
        found[f"rouge{size}"] = f1(sum((a & b).values()), sum(a.values()), sum(b.values()))
    longest = [[0] * (len(output) + 1) for _ in range(len(target) + 1)]
    for i, x in enumerate(target):
        for j, y in enumerate(output):
            longest[i + 1][j + 1] = longest[i][j] + 1 if x == y else max(longest[i][j + 1], longest[i + 1][j])
    found["rougeL"] = f1(longest[-1][-1], len(target), len(output))
    return found


def some(rng: random.Random, letters: str, most: int) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(0, most)))


def test_rouge_of_chinese_is_that_of_characters():
    rng = random.Random(0)
    for _ in range(100):
        target, output = some(rng, HAN[:12] + "𠮷々", 20), some(rng, HAN[:12] + "𠮷々", 20)
        figures = row_figures(target, output)
        assert {name: figures[name] for name in ROUGE} == pytest.approx(slow_rouge(target, output))


def test_rouge_of_english_is_that_of_the_library():
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(list(ROUGE)), random.Random(0)
    for _ in range(100):
        target = some(rng, LETTERS, 60)
        output = some(rng, LETTERS, 30) + target[: rng.randint(0, 30)]
        theirs, ours = scorer.score(target, output), row_figures(target, output)
        assert all(ours[name] == pytest.approx(theirs[name].fmeasure) for name in ROUGE)


def test_tokens_of_mixed_texts():
    assert tokens("Covid-19 爆發，ＡＢ１２！ Привет") == ["covid", "19", "爆", "發", "ab12", "привет"]


def test_chrf_and_bleu_are_those_of_sacrebleu():
    import sacrebleu

    rng = random.Random(1)
    targets = [some(rng, HAN[:20], 20) + "。" for _ in range(20)]
    outputs = [text[: rng.randint(0, len(text))] + some(rng, HAN[:20], 5) for text in targets]
    figures = summary_figures(targets, outputs)
    assert figures["chrf"] * 100 == pytest.approx(sacrebleu.corpus_chrf(outputs, [targets]).score)
    rows = [sacrebleu.sentence_chrf(b, [a]).score for a, b in zip(targets, outputs, strict=True)]
    assert figures["chrf_rows"] * 100 == pytest.approx(sum(rows) / len(rows))
    assert figures["bleu_tokenize"] == "zh"
    assert figures["bleu"] * 100 == pytest.approx(
        sacrebleu.corpus_bleu(outputs, [targets], tokenize="zh").score
    )


def test_intervals_hold_the_mean_and_a_paired_difference_is_narrower_than_two_means():
    rng = random.Random(2)
    targets = [some(rng, HAN, 20) + "天" for _ in range(60)]
    outputs = [text[: len(text) // 2 + 1] for text in targets]
    better, worse = (
        summary_figures(targets, outputs),
        summary_figures(targets, [text[:-1] for text in outputs]),
    )
    low, high = better["rougeL_interval_95"]
    assert low < better["rougeL"] < high
    gap = compare(better, worse)["rougeL"]
    assert gap["difference"] == pytest.approx(better["rougeL"] - worse["rougeL"])
    wide = sum(of["rougeL_interval_95"][1] - of["rougeL_interval_95"][0] for of in (better, worse))
    assert gap["difference_interval_95"][0] > 0
    assert gap["difference_interval_95"][1] - gap["difference_interval_95"][0] < wide


def test_rules_copy_the_beginning_and_the_whole_of_the_source():
    assert lead("今天好。明天更好！後天？", 4) == "今天好。"
    assert lead("今天好。明天更好！後天？", 5) == "今天好。明天更好！"
    assert lead("No end", 99) == "No end" and lead("A b. C d.", 3) == "A b."
    metrics = compute_metrics(["今天好。明天"], ["今天好"], ["今天好"], ["x"])
    assert metrics["exact"]["accuracy"] == 1 and metrics["rougeL"] == 1 and metrics["untuned"]["rougeL"] == 0
    assert metrics["baselines"]["lead"]["rougeL"] == 1
    assert metrics["baselines"]["copy"]["rougeL"] == pytest.approx(2 * 0.6 / 1.6)
    assert metrics["difference"]["rougeL"]["difference"] == 1
    assert [line["label"] for line in metrics["samples"][0]["lines"]] == ["輸入", "正解", "微調前", "微調後"]
