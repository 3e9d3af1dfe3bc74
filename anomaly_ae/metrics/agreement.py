"""Agreement of decisions beyond chance: kappa of two raters, and of many."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError
from anomaly_ae.metrics.checks import BoolVector, FloatVector


def cohen_kappa(first: npt.ArrayLike, other: npt.ArrayLike) -> float | None:
    """Agreement of two raters on the same things.

    Cohen 1960 (Educ. Psychol. Meas. 20:37): (found - expected) / (1 - expected), where `expected` is the agreement of
    independent raters who give every answer as often as these two did.

    Parameters
    ----------
    first, other : bool arrays, (n,)
        The two answers about every thing.

    Returns
    -------
    float or None
        At most 1; None where both always give one and the same answer, so that nothing but agreement is expected.

    >>> cohen_kappa([True, True, False, False], [True, False, False, False])
    0.5
    """
    a, b = np.asarray(first, bool), np.asarray(other, bool)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise DataError(f"answers of shapes {a.shape} and {b.shape}", "kappa needs pairs")
    share_a, share_b = float(a.mean()), float(b.mean())
    expected = share_a * share_b + (1 - share_a) * (1 - share_b)
    return None if expected == 1.0 else (float((a == b).mean()) - expected) / (1 - expected)


def fleiss_kappa(counts: npt.ArrayLike) -> float | None:
    """Agreement of several raters, not always the same ones.

    Fleiss 1971 (Psychol. Bull. 76:378).

    Parameters
    ----------
    counts : int array, (n_things, n_answers)
        How many raters gave each answer about each thing; every thing has the same number of raters, at least 2.

    Returns
    -------
    float or None
        At most 1; None where only one answer was ever given.

    >>> fleiss_kappa([[2, 0], [0, 2], [1, 1], [2, 0]])
    0.4666666666666667
    """
    table = np.asarray(counts, np.float64)
    n_raters = table.sum(axis=1)
    if table.ndim != 2 or not len(table) or np.ptp(n_raters) != 0 or n_raters[0] < 2:
        raise DataError(f"a table of shape {table.shape}", "every thing needs the same number of raters, at least 2")
    m = float(n_raters[0])
    found = float(((table**2).sum(axis=1) - m).mean() / (m * (m - 1)))
    expected = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return None if expected == 1.0 else (found - expected) / (1 - expected)


def answer_counts(flagged: BoolVector) -> npt.NDArray[np.int64]:
    """Return the table that `fleiss_kappa` takes: (n_things, n_raters) of yes and no becomes (n_things, 2)."""
    n_yes = flagged.sum(axis=1)
    return np.stack([n_yes, flagged.shape[1] - n_yes], axis=1).astype(np.int64)


def part_draws(
    statistic: Callable[[npt.NDArray[np.intp]], float | None], n_parts: int, n_draws: int, seed: int
) -> FloatVector:
    """Return a statistic of sets of whole parts, drawn with replacement; draws without a value are left out.

    Parameters
    ----------
    statistic : function of an index array, (n_parts,)
        The figure for the parts with these numbers.
    """
    rng = np.random.default_rng(seed)
    values = (statistic(rng.integers(n_parts, size=n_parts)) for _ in range(n_draws))
    return np.array([value for value in values if value is not None], np.float64)
