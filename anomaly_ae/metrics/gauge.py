"""Gauge repeatability and reproducibility of a number: variance components of a crossed study.

References
----------
AIAG: Measurement Systems Analysis, 4th ed. 2010, chapter III B (ANOVA method).
Montgomery & Runger 1993 (Quality Engineering 6:289): the two-way random model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError

# AIAG asks for a high risk here, so that an interaction that is there is not pooled away.
POOLING_RISK = 0.25

ROUNDING = 1e-12
"""Deviations that are smaller than this share of the largest value come from calculating: they are none."""


@dataclass(frozen=True, slots=True)
class GaugeStudy:
    """Variances of one number, measured on parts by appraisers, several times each.

    Attributes
    ----------
    repeatability : float
        Variance of the same part measured again by the same appraiser.
    df_repeatability : int
        Degrees of freedom it was estimated with.
    appraiser, interaction : float
        Variance between appraisers, and what depends on both part and appraiser; 0 where estimated below 0, and
        with one appraiser.
    part : float
        Variance between parts; 0 where estimated below 0.
    p_interaction : float or None
        p-value of no interaction; None with one appraiser or where nothing varies.
    pooled : bool
        The interaction was counted as repeatability: its p-value was above 0.25.
    """

    repeatability: float
    df_repeatability: int
    appraiser: float
    interaction: float
    part: float
    p_interaction: float | None
    pooled: bool

    @property
    def reproducibility(self) -> float:
        """Variance of the same part measured by another appraiser, without that of repeating."""
        return self.appraiser + self.interaction

    @property
    def gauge(self) -> float:
        """Variance of repeatability and reproducibility together."""
        return self.repeatability + self.reproducibility

    @property
    def total(self) -> float:
        """Variance of all."""
        return self.gauge + self.part

    @property
    def n_distinct_categories(self) -> int | None:
        """How many classes of parts the number can tell apart: 1.41 part / gauge, cut to a whole number (AIAG)."""
        return None if self.gauge == 0.0 else int(1.41 * math.sqrt(self.part / self.gauge))


def gauge_study(values: npt.ArrayLike) -> GaugeStudy:
    """Variance components by the analysis of variance of a crossed, balanced study.

    Parameters
    ----------
    values : array, (n_parts, n_appraisers, n_trials)
        At least 2 parts and 2 trials. With one appraiser the model is one-way: parts and repeats.

    Raises
    ------
    DataError
        Too few parts or trials, or a value that is not finite.
    """
    y = np.asarray(values, np.float64)
    if y.ndim != 3 or y.shape[0] < 2 or y.shape[1] < 1 or y.shape[2] < 2 or not np.isfinite(y).all():
        raise DataError(
            f"no variance components from values of shape {y.shape}",
            "at least 2 parts, and 2 repeats of each by every appraiser, all finite, are needed",
        )
    return _one_way(y) if y.shape[1] == 1 else _two_way(y)


def _one_way(y: npt.NDArray[np.float64]) -> GaugeStudy:
    n, _, r = y.shape
    cell = y.mean(axis=2, keepdims=True)
    df = n * (r - 1)
    error = _sum_of_squares(y - cell, y) / df
    parts = r * _sum_of_squares(cell - y.mean(), y) / (n - 1)
    return GaugeStudy(error, df, 0.0, 0.0, max(0.0, (parts - error) / r), None, False)


def _two_way(y: npt.NDArray[np.float64]) -> GaugeStudy:
    n, a, r = y.shape
    cell, part, who = y.mean(axis=2), y.mean(axis=(1, 2)), y.mean(axis=(0, 2))
    df_both, df_error = (n - 1) * (a - 1), n * a * (r - 1)
    ms_part = a * r * _sum_of_squares(part - y.mean(), y) / (n - 1)
    ms_who = n * r * _sum_of_squares(who - y.mean(), y) / (a - 1)
    ss_both = r * _sum_of_squares(cell - part[:, None] - who + y.mean(), y)
    ss_error = _sum_of_squares(y - cell[:, :, None], y)
    p = _p_of_f(ss_both / df_both, ss_error / df_error, df_both, df_error)
    if p is None or p > POOLING_RISK:
        df = df_both + df_error
        error = (ss_both + ss_error) / df
        between, interaction = error, 0.0
    else:
        df, error, between = df_error, ss_error / df_error, ss_both / df_both
        interaction = max(0.0, (between - error) / r)
    return GaugeStudy(
        repeatability=error,
        df_repeatability=df,
        appraiser=max(0.0, (ms_who - between) / (n * r)),
        interaction=interaction,
        part=max(0.0, (ms_part - between) / (a * r)),
        p_interaction=p,
        pooled=p is None or p > POOLING_RISK,
    )


def _sum_of_squares(deviations: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    """Return the sum; exactly 0 for deviations of values that are equal but for rounding, e.g. from their mean."""
    if np.abs(deviations).max() <= ROUNDING * np.abs(values).max():
        return 0.0
    return float((deviations**2).sum())


def _p_of_f(numerator: float, denominator: float, df_1: int, df_2: int) -> float | None:
    from scipy.special import fdtrc

    if denominator == 0.0:
        return None if numerator == 0.0 else 0.0
    return float(fdtrc(df_1, df_2, numerator / denominator))


def variance_interval(variance: float, df: int, confidence: float) -> tuple[float, float]:
    """Interval of a variance that was estimated with `df` degrees of freedom, for normal deviations (chi-square)."""
    from scipy.special import chdtri

    tail = (1.0 - confidence) / 2
    return variance * df / float(chdtri(df, tail)), variance * df / float(chdtri(df, 1.0 - tail))
