"""Means with intervals, and tests of paired differences, over the cases of an evaluation."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np

RESAMPLES = 2000
SEED = 1234


@dataclass(frozen=True)
class Summary:
    """A metric over cases: ``defined`` values (``infinite`` of them not in the mean), and the mean's 95 % interval."""

    defined: int
    infinite: int
    mean: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first where both are finite; ``p`` of Wilcoxon's two-sided test, ``p_holm`` corrected by table."""

    pairs: int
    left_out: int
    higher: int
    equal: int
    lower: int
    first_mean: float
    second_mean: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of the values that are defined and finite; nan if there is none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def summarise(values: Sequence[float]) -> Summary:
    """The summary of a metric's values over cases, nan and inf among them."""
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    finite = known[np.isfinite(known)]
    if not finite.size:
        return Summary(known.size, known.size, *(math.nan,) * 4)
    low, high = bootstrap_interval(tuple(finite.tolist()))
    # The median is of all defined values: an infinite distance is the worst of them, not an unknown one.
    return Summary(known.size, known.size - finite.size, float(finite.mean()), float(np.median(known)), low, high)


@lru_cache(maxsize=4096)
def bootstrap_interval(values: tuple[float, ...]) -> tuple[float, float]:
    """95 % percentile interval of the mean from resampled cases; the same values give the same interval."""
    if len(values) < 2:
        return math.nan, math.nan
    random = np.random.default_rng(SEED)
    means = [random.choice(values, (RESAMPLES // 10, len(values))).mean(axis=1) for _ in range(10)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two values per case; both sequences name the same cases in the same order."""
    from scipy.stats import wilcoxon

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = ~(np.isnan(a) & np.isnan(b))
    usable = np.isfinite(a) & np.isfinite(b)
    a, b = a[usable], b[usable]
    left_out = int(known.sum() - usable.sum())
    if not a.size:
        return PairedDifference(0, left_out, 0, 0, 0, *(math.nan,) * 6)
    change = b - a
    higher, equal, lower = (int((np.sign(change) == sign).sum()) for sign in (1, 0, -1))
    means = float(a.mean()), float(b.mean()), float(change.mean())
    interval = bootstrap_interval(tuple(change.tolist()))
    p = 1.0 if len(change) > 1 else math.nan
    if len(change) > 1 and change.any():
        p = float(wilcoxon(change, zero_method="wilcox").pvalue)
    return PairedDifference(len(change), left_out, higher, equal, lower, *means, *interval, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of several p-values; nan stays nan."""
    known = [(p, index) for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected
