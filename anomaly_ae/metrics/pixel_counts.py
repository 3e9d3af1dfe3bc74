"""Pixels counted at every score, the figures of such counts, and a table of counts per image to draw intervals from.

The figures are exact where every masked score has a slot of its own (`pixels`). The table has a few hundred levels
instead, so that it is small enough to be kept: its figures are near the exact ones, and intervals take from it only how
much a figure moves when images are drawn anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly_ae.metrics.checks import FloatVector, IntVector
from anomaly_ae.metrics.curves import ScoreCounts, area_under_roc, from_the_top, step_area_under_pr
from anomaly_ae.metrics.paired import expanded_percentiles
from anomaly_ae.metrics.sorting import fpr_at_95_sensitivity
from anomaly_ae.records import Interval

N_LEVELS = 256
"""Levels that part the masked pixels equally, and as many that part the regions."""

PRO_LIMITS = (0.3, 0.05)
_N_AT_ONCE = 100  # draws that one matrix product computes

Counts2D = npt.NDArray[np.int32]


class PixelCounts(NamedTuple):
    """What lies at each score or between two, ascending; each (S,).

    `normal` and `masked` count valid pixels outside and under the masks. `overlap` is what the masked pixels weigh when
    each region weighs 1 in all.
    """

    normal: npt.NDArray[Any]
    masked: npt.NDArray[Any]
    overlap: FloatVector


@dataclass(frozen=True, slots=True, eq=False)
class PixelTable:
    """Counts of each of N images below the lowest of K levels, and from each level to below the next.

    Attributes
    ----------
    levels : float32 array, (K,)
        Scores of masked pixels, ascending, the lowest of them first.
    normal, masked : int32 arrays, (N, K + 1)
        Valid pixels outside and under the masks.
    overlap : float32 array, (N, K + 1)
        Shares of regions: a row sums to the number of regions of the image.
    """

    levels: npt.NDArray[np.float32]
    normal: Counts2D
    masked: Counts2D
    overlap: npt.NDArray[np.float32]

    def of(self, order: npt.ArrayLike) -> PixelTable:
        """Return the table with its images in another order."""
        chosen = np.asarray(order)
        return PixelTable(self.levels, self.normal[chosen], self.masked[chosen], self.overlap[chosen])

    def values(self, pro_limits: Sequence[float] = PRO_LIMITS) -> dict[str, float]:
        """Return the figures of all images, as near as the levels are: see `figure_values`."""
        counts = PixelCounts(
            self.normal.sum(0, np.int64), self.masked.sum(0, np.int64), self.overlap.sum(0, np.float64)
        )
        return figure_values(counts, pro_limits)

    def draws(
        self, groups: Sequence[Hashable], n_draws: int, seed: int, pro_limits: Sequence[float] = PRO_LIMITS
    ) -> dict[str, FloatVector]:
        """Return the figures of sets made of whole groups, drawn with replacement.

        Draws without a masked pixel, or without another one, are dropped: fewer than `n_draws` values may come back.
        One seed draws the same groups for every table of the same groups.

        Parameters
        ----------
        groups : sequence of hashable, length N
            What belongs together.
        """
        _, codes = np.unique(np.asarray(groups), return_inverse=True)
        found = [figure_values(counts, pro_limits) for counts in self._drawn(codes, n_draws, seed)]
        return {name: np.array([one[name] for one in found]) for name in (found[0] if found else ())}

    def n_masked_groups(self, groups: Sequence[Hashable]) -> int:
        """How many groups hold a masked pixel."""
        return len({group for group, n in zip(groups, self.masked.sum(1), strict=True) if n})

    def _drawn(self, codes: IntVector, n_draws: int, seed: int) -> Iterator[PixelCounts]:
        rng, n_groups = np.random.default_rng(seed), int(codes.max()) + 1
        parts = [_sum_by(codes, n_groups, part) for part in (self.normal, self.masked, self.overlap)]  # (G, K + 1)
        for start in range(0, n_draws, _N_AT_ONCE):
            times = np.array([
                np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
                for _ in range(start, min(start + _N_AT_ONCE, n_draws))
            ], np.float64)  # fmt: skip
            for drawn in zip(*(times @ part for part in parts), strict=True):
                counts = PixelCounts(*drawn)
                if counts.normal.any() and counts.masked.any():
                    yield counts


def _sum_by(codes: IntVector, n_groups: int, part: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    summed = np.zeros((n_groups, part.shape[1]))
    np.add.at(summed, codes, part)
    return summed


def levels_of(
    distinct: npt.NDArray[np.float32], n_pixels: IntVector, overlap: FloatVector, n_levels: int = N_LEVELS
) -> npt.NDArray[np.float32]:
    """Return the levels of a table: those that part the masked pixels, and those that part the regions, equally.

    Between two levels lies less than 1 / `n_levels` of the masked pixels, those at the lower level aside, however many
    have one score: a step-wise average precision is off by less than that times the way its precision goes up and down.

    Parameters
    ----------
    distinct : float32 array, (D,)
        Scores of masked pixels, ascending.
    n_pixels, overlap : arrays, (D,)
        Masked pixels at each, and what they weigh when each region weighs 1.
    """
    shares = np.arange(n_levels) / n_levels
    chosen = []
    for mass in (n_pixels, overlap):
        summed = np.cumsum(mass, dtype=np.float64)
        chosen.append(np.searchsorted(summed / summed[-1], shares, side="right"))
    levels: npt.NDArray[np.float32] = distinct[np.unique(np.minimum(np.concatenate(chosen), len(distinct) - 1))]
    return levels


def figure_values(counts: PixelCounts, pro_limits: Sequence[float]) -> dict[str, float]:
    """Return ROC-AUC, average precision, FPR at 95 % sensitivity, oracle Dice, and ``au_pro_LIMIT`` of each limit."""
    by_score = ScoreCounts(counts.normal, counts.masked)
    fpr, pro = _pro_curve(counts.normal, counts.overlap)
    return {
        "roc_auc": area_under_roc(by_score),
        "average_precision": step_area_under_pr(by_score),
        "fpr_at_95_sensitivity": fpr_at_95_sensitivity(by_score),
        "oracle_dice": _best_dice(by_score),
        **{f"au_pro_{limit:g}": _normalised_area(fpr, pro, limit) for limit in pro_limits},
    }


def figure_intervals(
    exact: Mapping[str, float],
    table: PixelTable,
    groups: Sequence[Hashable],
    unit: str,
    *,
    confidence: float = 0.95,
    n_draws: int = 1000,
    seed: int = 0,
    pro_limits: Sequence[float] = PRO_LIMITS,
) -> dict[str, Interval | None]:
    """Return an interval of each figure from a bootstrap of whole groups; None where the draws cannot tell.

    The draws are made of the table and then moved by what its figure lacks to the exact one.

    Parameters
    ----------
    exact : mapping of str to float
        As `figure_values` names them.
    """
    near, draws = table.values(pro_limits), table.draws(groups, n_draws, seed, pro_limits)
    n_groups = table.n_masked_groups(groups)
    found: dict[str, Interval | None] = {}
    for name, value in exact.items():
        moved = draws[name] + (value - near[name]) if draws else np.empty(0)
        is_enough = len(moved) >= n_draws / 2
        drawn = expanded_percentiles(moved, n_groups, confidence, unit) if is_enough else None
        found[name] = None if drawn is None else _inside(drawn, value)
    return found


def _inside(drawn: Interval, value: float) -> Interval:
    """Cut an interval to [0, 1], and let it hold the value."""
    low, high = max(0.0, min(drawn.low, value)), min(1.0, max(drawn.high, value))
    return replace(drawn, low=low, high=high)


def _best_dice(counts: ScoreCounts) -> float:
    """Return the largest Dice coefficient of all pixels at any threshold: an oracle, for it looked at the masks."""
    n_hits, n_flagged = from_the_top(counts.anomalous), from_the_top(counts.anomalous + counts.normal)
    return float((2 * n_hits / (n_flagged + n_hits[-1])).max())


def _pro_curve(normal: npt.NDArray[Any], overlap: FloatVector) -> tuple[FloatVector, FloatVector]:
    """Return false-positive rate and per-region overlap, (S + 1,) each, from (0, 0) on.

    Between two masked scores the overlap stays and the rate grows: a slot of a gap gives a level piece, and a
    slot of a score gives the straight piece between the thresholds just above it and at it.
    """
    n_false = np.concatenate([[0], from_the_top(normal)])
    found = np.concatenate([[0.0], from_the_top(overlap)])
    return n_false / n_false[-1], found / found[-1]  # the weights of all pixels sum to the number of regions


def _normalised_area(fpr: FloatVector, pro: FloatVector, limit: float) -> float:
    """Area under the curve up to the limit, cut on the straight line between two points, over the limit."""
    n_inside = int(np.searchsorted(fpr, limit, side="right"))
    rate = np.append(fpr[:n_inside], limit)
    overlap = np.append(pro[:n_inside], np.interp(limit, fpr, pro))
    area = np.sum(np.diff(rate) * (overlap[1:] + overlap[:-1]) / 2)
    return float(area / limit)
