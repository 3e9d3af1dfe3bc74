"""What a threshold could do at best on these very images: PG, PB, and the false-alarm rate at 95 % sensitivity.

The thresholds are chosen on the images that are measured: such figures compare detectors, and promise nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.metrics.checks import FloatVector, IntVector, LabelledScores, labelled_scores
from anomaly_ae.metrics.curves import ScoreCounts, count_by_score, from_the_top
from anomaly_ae.metrics.intervals import clopper_pearson, group_bootstrap, percentile_interval, widened
from anomaly_ae.records import Interval, Metric

SHARES = (Fraction(1, 100), Fraction(5, 100))
CHOSEN_HERE = "the threshold is chosen on these images"
N_BEYOND = 3
"""So many images (groups) must lie beyond the threshold by its share: else no data tell where it would be."""


def normals_passed(counts: ScoreCounts, missed: Fraction) -> float:
    """PG: the largest share of normals below a threshold that misses at most this share of the anomalous.

    Baitieva et al. 2025 ("Beyond Academic Benchmarks", CVPR workshop VAND): normal parts that can be passed unseen.
    """
    n_false, n_normal = _fewest_flagged(counts, missed)
    return (n_normal - n_false) / n_normal


def anomalous_caught(counts: ScoreCounts, flagged: Fraction) -> float:
    """PB: the largest share of the anomalous at or above a threshold that flags at most this share of normals."""
    n_false, n_hits = from_the_top(counts.normal), from_the_top(counts.anomalous)
    n_thresholds = int(np.searchsorted(n_false, math.floor(int(n_false[-1]) * flagged), side="right"))
    return float(n_hits[n_thresholds - 1] / n_hits[-1]) if n_thresholds else 0.0


def fpr_at_95_sensitivity(counts: ScoreCounts) -> float:
    """Smallest share of normals flagged by a threshold that finds at least 95 % of the anomalous: 1 - PG at 5 %."""
    n_false, n_normal = _fewest_flagged(counts, Fraction(5, 100))
    return n_false / n_normal


def _fewest_flagged(counts: ScoreCounts, missed: Fraction) -> tuple[float, float]:
    """Return how many normals the highest threshold flags that misses at most this share, and how many there are."""
    n_false, n_hits = from_the_top(counts.normal), from_the_top(counts.anomalous)
    n_needed = n_hits[-1] - math.floor(int(n_hits[-1]) * missed)
    return float(n_false[np.searchsorted(n_hits, n_needed)]), float(n_false[-1])


def sorting_figures(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: Iterable[Hashable] | None = None,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
    unit: str = "image",
) -> dict[str, Any]:
    """Return PG and PB at 1 % and 5 %, and the false-alarm rate at 95 % sensitivity.

    Parameters
    ----------
    labels, scores, groups, n_bootstrap, seed, unit
        As in `anomaly_ae.metrics.roc_auc`.

    Returns
    -------
    dict
        ``{"fpr_at_95_sensitivity": Metric, "pg": {"0.01": Metric, "0.05": Metric}, "pb": {...}}``, with 95 %
        percentile intervals of a bootstrap (of whole groups first), widened to Clopper-Pearson's where they are few.
        Where the class that sets the threshold has fewer than 3 beyond it (300 images at 1 %, 60 at 5 %) there is none:
        a bootstrap knows no score beyond the last, and held the truth in 14 to 81 % of simulated sets.

    Raises
    ------
    DataError
        Labels, scores or groups that do not fit together.
    """
    data = labelled_scores(labels, scores, groups)
    if not data.n_normal or not data.n_anomalous:
        missing = "anomalous" if data.n_normal else "normal"
        reason = f"no {missing} {unit}s: both classes are needed"
        return _named([Metric(None, data.n_normal, data.n_anomalous, reason=reason)] * 5)
    values = _values(count_by_score(data)[1])
    levels = [] if data.groups is None else [("group", data.groups)]
    levels.append((unit, np.arange(len(data.scores))))
    by_level = [_intervals(data, values, codes, (n_bootstrap, seed), of) for of, codes in levels]
    return _named([_figure(data, value, own) for value, *own in zip(values.tolist(), *by_level, strict=True)])


def _figure(data: LabelledScores, value: float, found: Sequence[Interval | str]) -> Metric:
    """Return a figure with its intervals; texts among these say why there is none.

    Without the first, that by groups where there are any, that by images would be too narrow and is not given.
    """
    intervals = () if isinstance(found[0], str) else tuple(one for one in found if isinstance(one, Interval))
    reasons = [CHOSEN_HERE, *(one for one in found if isinstance(one, str))]
    return Metric(value, data.n_normal, data.n_anomalous, intervals, "; ".join(reasons))


def _values(counts: ScoreCounts) -> FloatVector:
    passed = [normals_passed(counts, share) for share in SHARES]
    caught = [anomalous_caught(counts, share) for share in SHARES]
    return np.array([fpr_at_95_sensitivity(counts), *passed, *caught])


def _intervals(
    data: LabelledScores, values: FloatVector, codes: IntVector, options: tuple[int, int], of: str
) -> list[Interval | str]:
    """Return an interval for each of the `_values`, or why there is none.

    The anomalous set the threshold of the first three, which are shares of normals; the normals that of the others.
    """
    n_draws, seed = options
    drawn = group_bootstrap(data, codes, _values, n_draws, seed).reshape(-1, len(values))
    n_normal, n_anomalous = (len(np.unique(codes[data.labels == label])) for label in (False, True))
    setting = ("anomalous", n_anomalous, n_normal), ("normal", n_normal, n_anomalous)
    found: list[Interval | str] = []
    for i, (value, share) in enumerate(zip(values.tolist(), (SHARES[-1], *SHARES, *SHARES), strict=True)):
        name, n_setting, n_of_share = setting[i > len(SHARES)]
        if n_setting * share < N_BEYOND:
            found.append(f"no interval by {of}s: it needs {math.ceil(N_BEYOND / share)} {name} ones")
            continue
        exact = clopper_pearson(value, n_of_share, 0.95, "Clopper-Pearson", of)
        estimated = percentile_interval(drawn[:, i], n_draws, 0.95, of)
        found.append(widened(estimated, exact, min(n_normal, n_anomalous), value))
    return found


def _named(figures: list[Metric]) -> dict[str, Any]:
    names = [f"{float(share):g}" for share in SHARES]
    passed, caught = figures[1 : 1 + len(names)], figures[1 + len(names) :]
    return {
        "fpr_at_95_sensitivity": figures[0],
        "pg": dict(zip(names, passed, strict=True)),
        "pb": dict(zip(names, caught, strict=True)),
    }
