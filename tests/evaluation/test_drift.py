"""Drift: figures beside scipy and statsmodels, how often a band is wrong, and what few requests may say."""

from __future__ import annotations

import numpy
import pytest
from scipy.stats import chi2_contingency, ks_2samp
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from finetune.evaluation.answer_comparison import holm
from finetune.evaluation.drift import (
    CHANGED,
    FEW,
    FEWEST,
    STEADY,
    UNCLEAR,
    compare,
    compare_answers,
    compare_numbers,
    compare_shares,
)
from finetune.evaluation.request_features import ANSWER, FeatureSample


def drawn(seed: int, n: int, shift: float = 0.0) -> numpy.ndarray:
    return numpy.random.default_rng(seed).normal(shift, 1, n)


def answers(shares: list[float], n: int, seed: int) -> FeatureSample:
    counts = numpy.random.default_rng(seed).multinomial(n, shares).tolist()
    return FeatureSample(n, {}, dict(zip("甲乙丙丁", counts, strict=False)), n)


def both(numbers: numpy.ndarray, shares: list[float], seed: int) -> FeatureSample:
    sample = answers(shares, len(numbers), seed)
    sample.numbers = {"confidence": sorted(numbers.tolist())}
    return sample


@pytest.mark.parametrize("after", [drawn(2, 80, 0.4), drawn(2, 700, 0.1), numpy.zeros(50)])
def test_the_distance_and_its_p_value_are_those_of_scipy_and_the_means_those_of_statsmodels(after):
    before = drawn(1, 120)
    figures = compare_numbers(before.tolist(), after.tolist())
    expected = ks_2samp(before, after)
    assert figures["distance"] == pytest.approx(expected.statistic)
    assert figures["p_value"] == pytest.approx(expected.pvalue, abs=5e-3)
    means = CompareMeans(DescrStatsW(after), DescrStatsW(before))
    low, high = means.tconfint_diff(usevar="unequal")
    assert figures["difference"] == pytest.approx(after.mean() - before.mean())
    assert figures["difference_interval_95"] == pytest.approx([low, high])


def test_the_interval_of_two_shares_is_newcombes():
    for before, m, after, n in ((12, 80, 30, 90), (0, 50, 7, 60), (40, 40, 38, 45)):
        ours = compare_shares(before, m, after, n)["difference_interval_95"]
        theirs = confint_proportions_2indep(after, n, before, m, method="newcomb", compare="diff")
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_the_distance_of_answers_is_half_the_sum_of_differences_and_its_p_value_near_that_of_chi_square():
    before, after = answers([0.5, 0.3, 0.2], 150, 1), answers([0.4, 0.3, 0.3], 130, 2)
    figures = compare_answers(before, after)
    table = [[sample.answers[name] for name in "甲乙丙"] for sample in (before, after)]
    shares = [numpy.array(row) / sum(row) for row in table]
    assert figures["distance"] == pytest.approx(numpy.abs(shares[0] - shares[1]).sum() / 2)
    assert figures["p_value"] == pytest.approx(chi2_contingency(table).pvalue, abs=0.1)


def test_answers_that_may_stand_together_differ_by_the_one_that_differs_most():
    before = FeatureSample(100, {}, {"人": 80, "地": 10}, 100, exclusive=False)
    after = FeatureSample(100, {}, {"人": 78, "地": 45, "書": 5}, 100, exclusive=False)
    figures = compare_answers(before, after)
    assert figures["distance"] == pytest.approx(0.35) and figures["p_value"] < 0.001
    assert figures["answers"]["書"]["reference"] == 0


@pytest.mark.nightly
def test_without_drift_a_band_leaves_zero_out_in_one_comparison_of_twenty_and_hardly_one_raises_an_alarm():
    """60 comparisons: more than 8 of them is 1 in 100 at a rate of 5 %, more than 2 at one of 0.7 %."""
    left_out, significant, alarms = {"confidence": 0, ANSWER: 0}, 0, 0
    for seed in range(60):
        before = both(drawn(2 * seed, 90), [0.5, 0.3, 0.2], 7000 + seed)
        figures = compare(before, both(drawn(2 * seed + 1, 60), [0.5, 0.3, 0.2], 9000 + seed), 0.1)
        alarms += figures["state"] == CHANGED
        significant += any(one["p_holm"] < 0.05 for one in figures["features"].values())
        for name, one in figures["features"].items():
            left_out[name] += one["distance_interval_95"][0] > 0
    assert max(left_out.values()) <= 8 and significant <= 8 and alarms <= 2


@pytest.mark.slow
def test_a_drift_of_a_standard_deviation_or_of_half_the_answers_is_seen_in_a_hundred_requests():
    """Their distances are 0.38 (normal distributions a deviation apart) and 0.5."""
    seen, covered = {"confidence": 0, ANSWER: 0}, 0
    for seed in range(10):
        before = both(drawn(2 * seed, 200), [0.6, 0.3, 0.1], 7000 + seed)
        figures = compare(before, both(drawn(2 * seed + 1, 100, 1.0), [0.1, 0.3, 0.6], 9000 + seed), 0.1)
        for name in figures["changed"]:
            seen[name] += 1
        low, high = figures["features"]["confidence"]["distance_interval_95"]
        covered += low <= 0.3829 <= high
    assert min(seen.values()) >= 9 and covered >= 8


def test_few_requests_raise_no_alarm_however_different_they_are():
    before = both(drawn(1, 500), [1, 0], 1)
    few = both(drawn(2, FEWEST - 1, 9.0), [0, 1], 2)
    figures = compare(before, few, 0.1)
    assert figures["state"] == FEW and not figures["changed"]
    assert {one["state"] for one in figures["features"].values()} == {FEW}
    assert compare(before, both(drawn(2, FEWEST, 9.0), [0, 1], 2), 0.1)["state"] == CHANGED


def test_where_a_difference_is_uncertain_the_number_of_requests_is_named_that_would_make_it_certain():
    before = both(drawn(1, 4000), [0.5, 0.5], 1)
    unclear = compare(before, both(drawn(2, 100), [0.5, 0.5], 2), 0.1)
    assert unclear["state"] == UNCLEAR
    needed = max(one["needed"] for one in unclear["features"].values())
    enough = compare(before, both(drawn(3, needed), [0.5, 0.5], 3), 0.1)
    assert max(one["margin"] for one in enough["features"].values()) == pytest.approx(0.1, rel=0.15)
    small = compare(both(drawn(1, 40), [0.5, 0.5], 1), both(drawn(2, 99), [0.5, 0.5], 2), 0.1)
    assert small["features"]["confidence"]["needed"] is None  # the reference is too small for any number


def test_the_p_values_are_corrected_for_the_number_of_features():
    figures = compare(both(drawn(1, 60), [0.5, 0.5], 1), both(drawn(2, 60, 0.4), [0.3, 0.7], 2), 0.1)
    raw = {name: one["p_value"] for name, one in figures["features"].items()}
    assert {name: one["p_holm"] for name, one in figures["features"].items()} == holm(raw)


def test_only_what_both_samples_have_is_compared():
    before = FeatureSample(50, {"tokens": [1.0] * 50, "unknown": [0.0] * 50})
    figures = compare(before, both(drawn(1, 50), [1, 0], 1), 0.1)
    assert figures["features"] == {} and figures["state"] == FEW
    same = compare(before, before, 0.1)
    assert {*same["features"]} == {"tokens", "unknown"} and same["state"] == STEADY
