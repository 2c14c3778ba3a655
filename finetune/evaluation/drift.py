"""Drift: how far the features of requests lie from those of a reference, and how sure that is.

Numbers are compared by the two-sample Kolmogorov–Smirnov distance D, the largest difference of their
cumulative shares; answers by the total variation distance, half the sum of the differences of their shares
(where a request may have several, the largest difference of a share). Both are 0 to 1: the share of requests
that would have to be others.

The distance of two samples is never 0, even of the same source. Its interval is therefore no percentile
interval of a bootstrap, which would not reach down to 0: it is the distance ± the 95 % quantile of how far
the bootstrap moves the difference of the two distributions in the same norm, a confidence band of the whole
difference (van der Vaart and Wellner 1996, section 3.7; Efron and Tibshirani 1993, chapter 13).

A feature has changed where the lower end exceeds the bound and the test says so after Holm's correction for
the number of features: few requests raise no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from finetune.evaluation.answer_comparison import holm
from finetune.evaluation.metrics import SIGNIFICANT, wilson
from finetune.evaluation.request_features import ANSWER, FeatureSample

BOOTSTRAPS = 1_000  # resamples of a band: its width then varies by some hundredths
CELLS = 512  # places at which a band is looked at: between two of them lies a 512th of the values
FEWEST = 30  # requests, or rows of the reference, below which nothing is said
LEVEL = 0.95
CHANGED, STEADY, UNCLEAR, FEW = "changed", "steady", "unclear", "few"  # states of a feature, and of all


def compare(reference: FeatureSample, now: FeatureSample, bound: float) -> dict[str, Any]:
    """Compare two samples, feature by feature, as values of JSON.

    Args:
        reference: what is usual.
        now: the requests to look at.
        bound: distance up to which a difference is nothing to speak of.

    Returns:
        `features`, by name those that both have, the answers as ANSWER: see `compare_numbers` and
        `compare_answers`, and `p_holm`, `state` (CHANGED; STEADY: surely within the bound; UNCLEAR; FEW) and
        `needed`, requests for a margin as small as the bound (None where the reference is too small for it);
        `changed`, their names; `state` of the whole.
    """
    figures = {
        name: compare_numbers(reference.numbers[name], now.numbers[name])
        for name in reference.numbers
        if name in now.numbers
    }
    if reference.answered and now.answered and reference.exclusive == now.exclusive:
        figures[ANSWER] = compare_answers(reference, now)
    adjusted = holm({name: one["p_value"] for name, one in figures.items()})
    for name, one in figures.items():
        one["p_holm"] = adjusted[name]
        one["state"] = _state(one, bound)
        one["needed"] = _needed(one, bound)
    states = [one["state"] for one in figures.values()]
    whole = next((state for state in (CHANGED, FEW, UNCLEAR) if state in states), STEADY if states else FEW)
    changed = [name for name, one in figures.items() if one["state"] == CHANGED]
    return {"bound": bound, "state": whole, "changed": changed, "features": figures}


def _state(figures: Mapping[str, Any], bound: float) -> str:
    low, high = figures["distance_interval_95"]
    if min(figures["n_reference"], figures["n"]) < FEWEST:
        return FEW
    if low > bound and figures["p_holm"] < SIGNIFICANT:
        return CHANGED
    return STEADY if high <= bound else UNCLEAR


def _needed(figures: Mapping[str, Any], bound: float) -> int | None:
    """Return how many requests make the margin as small as the bound; it shrinks with √(1/n + 1/m)."""
    n, m, margin = figures["n"], figures["n_reference"], figures["margin"]
    if not bound or not margin:
        return None
    room = (bound / margin) ** 2 * (1 / n + 1 / m) - 1 / m
    return math.ceil(1 / room) if room > 0 else None


# ---- numbers -----------------------------------------------------------------------------------------------


def compare_numbers(reference: Sequence[float], now: Sequence[float]) -> dict[str, Any]:
    """Compare two samples of a number.

    Returns:
        `n_reference`, `n`, `reference` and `now` (mean and quantiles); `distance` and `p_value` of the
        two-sample Kolmogorov–Smirnov test (scipy), `distance_interval_95` and its half width `margin`;
        `difference` of the means, now − reference, and `difference_interval_95` (Welch 1947), None where a
        sample has a single value.
    """
    from scipy.stats import ks_2samp

    before, after = (numpy.asarray(values, dtype=numpy.float64) for values in (reference, now))
    exact = max(len(before), len(after)) < CELLS  # else the asymptotic p-value, as scipy would choose beyond
    tested = ks_2samp(before, after, method="exact" if exact else "asymp")
    margin = ks_margin(before, after)
    distance = float(tested.statistic)
    return {
        "n_reference": len(before), "n": len(after), "reference": summary(before), "now": summary(after),
        "distance": distance, "distance_interval_95": _around(distance, margin), "margin": margin,
        "p_value": float(tested.pvalue), "difference": float(after.mean() - before.mean()),
        "difference_interval_95": _welch(before, after),
    }  # fmt: skip


def summary(values: numpy.ndarray) -> dict[str, float]:
    """Return mean and quantiles of a sample."""
    names = ("p5", "p25", "median", "p75", "p95")
    quantiles = numpy.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {"mean": float(values.mean()), **dict(zip(names, quantiles.tolist(), strict=True))}


def ks_margin(reference: numpy.ndarray, now: numpy.ndarray) -> float:
    """Return how far the difference of two cumulative distributions may be off anywhere, with 95 %."""
    pooled = numpy.concatenate([reference, now])
    cells = numpy.unique(pooled)
    if len(cells) > CELLS:
        cells = numpy.unique(numpy.quantile(pooled, numpy.linspace(0, 1, CELLS + 1)[1:], method="higher"))
    rng = numpy.random.default_rng(0)
    moved = numpy.zeros((BOOTSTRAPS, len(cells)))
    for sign, values in ((1, now), (-1, reference)):
        counts = numpy.bincount(numpy.searchsorted(cells, values), minlength=len(cells))
        drawn = rng.multinomial(len(values), counts / len(values), BOOTSTRAPS)
        moved += sign * (drawn - counts) / len(values)
    return float(numpy.quantile(numpy.abs(moved.cumsum(axis=1)).max(axis=1), LEVEL))


def _around(distance: float, margin: float) -> list[float]:
    return [max(0.0, distance - margin), min(1.0, distance + margin)]


def _welch(reference: numpy.ndarray, now: numpy.ndarray) -> list[float] | None:
    """Return Welch's interval of the difference of the means; None where a sample has one value alone.

    scipy's warns of samples whose values are all alike, which shares of [UNK] often are.
    """
    from scipy.stats import t

    if min(len(reference), len(now)) < 2:
        return None
    variances = numpy.array([sample.var(ddof=1) / len(sample) for sample in (reference, now)])
    difference, total = float(now.mean() - reference.mean()), float(variances.sum())
    if not total:
        return [difference, difference]
    freedom = total**2 / float((variances**2 / [len(reference) - 1, len(now) - 1]).sum())
    spread = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total)
    return [difference - spread, difference + spread]


# ---- answers -----------------------------------------------------------------------------------------------


def compare_answers(reference: FeatureSample, now: FeatureSample) -> dict[str, Any]:
    """Compare the answers of two samples.

    Returns:
        `n_reference`, `n`; `distance` with `distance_interval_95` and `margin`; `p_value` by a permutation
        of the requests (of answers that may stand together each by itself); `answers`, by name, the
        commonest first: `reference` and `now` (shares with Wilson's `…_interval_95`), `difference`, now −
        reference, and `difference_interval_95` (Newcombe 1998, method 10).
    """
    names = list(dict.fromkeys([*reference.answers, *now.answers]))
    before, after = (
        numpy.array([sample.answers.get(name, 0) for name in names], dtype=numpy.int64)
        for sample in (reference, now)
    )
    m, n, exclusive = reference.answered, now.answered, reference.exclusive
    distance = float(_distance(after / n - before / m, exclusive))
    rng = numpy.random.default_rng(0)
    moved = _resampled(rng, after, n, exclusive) - _resampled(rng, before, m, exclusive)
    moved -= after / n - before / m
    margin = float(numpy.quantile(_distance(moved, exclusive), LEVEL))
    pooled, drawn = before + after, None
    if exclusive:
        drawn = rng.multivariate_hypergeometric(pooled, n, BOOTSTRAPS)
    else:
        drawn = rng.hypergeometric(pooled, n + m - pooled, n, (BOOTSTRAPS, len(names)))
    under_none = _distance(drawn / n - (pooled - drawn) / m, exclusive)
    as_far = int((under_none >= distance - 1e-12).sum())
    order = sorted(range(len(names)), key=lambda at: -int(pooled[at]))
    return {
        "n_reference": m, "n": n, "distance": distance, "distance_interval_95": _around(distance, margin),
        "margin": margin, "p_value": (1 + as_far) / (1 + BOOTSTRAPS), "exclusive": exclusive,
        "answers": {names[at]: compare_shares(int(before[at]), m, int(after[at]), n) for at in order},
    }  # fmt: skip


def compare_shares(before: int, m: int, after: int, n: int) -> dict[str, Any]:
    """Compare two shares: before of m and after of n; see `compare_answers`.

    The interval of the difference joins the ends of Wilson's of both shares (R. G. Newcombe, Statistics in
    Medicine 17, 1998, pages 873–890, method 10).
    """
    p, q = after / n, before / m
    (low, high), (low_before, high_before) = wilson(after, n), wilson(before, m)
    return {
        "reference": q, "reference_interval_95": [low_before, high_before],
        "now": p, "now_interval_95": [low, high], "difference": p - q,
        "difference_interval_95": [
            p - q - math.hypot(p - low, high_before - q), p - q + math.hypot(high - p, q - low_before)
        ],
    }  # fmt: skip


def _distance(differences: numpy.ndarray, exclusive: bool) -> numpy.ndarray:
    """Return the distance of shares whose differences stand along the last axis."""
    sizes = numpy.abs(differences)
    return sizes.sum(axis=-1) / 2 if exclusive else sizes.max(axis=-1, initial=0.0)


def _resampled(rng: numpy.random.Generator, counts: numpy.ndarray, n: int, exclusive: bool) -> numpy.ndarray:
    """Return shares (BOOTSTRAPS, K) of requests that are drawn anew.

    Of answers that may stand together each is drawn by itself: the largest of independent deviations is, for
    normal ones, never the smaller one (Šidák 1967).
    """
    if exclusive:
        return rng.multinomial(n, counts / n, BOOTSTRAPS) / n
    return rng.binomial(n, counts / n, (BOOTSTRAPS, len(counts))) / n
