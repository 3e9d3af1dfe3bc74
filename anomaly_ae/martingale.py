"""Has something changed? A conformal test martingale: evidence against "nothing has changed", counted as it comes.

Vovk, Nouretdinov & Gammerman 2003 ("Testing exchangeability on-line", ICML); Vovk et al. 2021 ("Retrain or not retrain:
conformal test martingales for change-point detection", COPA). Why this test: docs/decisions/0010.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

JUMP = 0.01
"""Share of the capital that is dealt out anew before every bet: who was wrong for long can still win later."""

_MIN_P = 1e-12  # the bet on both ends is infinite at 0 and 1


def online_p_values(reference: Sequence[float], values: Iterable[float], generator: np.random.Generator) -> Floats:
    """Return the rank of each value among all that came before it and itself, as a share.

    p = (#{earlier > v} + U (#{earlier = v} + 1)) / (#earlier + 1), U uniform in [0, 1): ties are broken at random.
    When reference and values are exchangeable (in any order equally likely), these are independent and uniform,
    exactly and however small the reference is. p-values against the reference alone would not be independent.

    Parameters
    ----------
    reference : sequence of float
        What came first; its order does not matter.
    values : iterable of float
        In the order of time.
    generator : numpy.random.Generator

    Returns
    -------
    float64 array, (n_values,)
        In [0, 1); near 0 where a value is higher than all before.
    """
    seen = sorted(reference)
    p_values = []
    for value in values:
        n_below, n_up_to = bisect_left(seen, value), bisect_right(seen, value)
        n_above, n_equal = len(seen) - n_up_to, n_up_to - n_below
        p_values.append((n_above + generator.random() * (n_equal + 1)) / (len(seen) + 1))
        insort(seen, value)
    return np.array(p_values, np.float64)


def log10_evidence(p_values: npt.ArrayLike) -> Floats:
    """Return the logarithm of the capital of a gambler who bets against uniform p-values, after every bet.

    The capital starts at 1. While nothing changes it is a martingale: the chance that it ever reaches 1 / a is at
    most a (Ville 1939). It is dealt evenly to the gamblers of `bets`, with a `JUMP` from each to all before every bet.

    Parameters
    ----------
    p_values : array, (n,)
        As from `online_p_values`.

    Returns
    -------
    float64 array, (n,)
    """
    stakes = bets(p_values)  # (n, n_bets)
    shares = np.full(stakes.shape[1], 1 / stakes.shape[1])
    logs = np.empty(len(stakes))
    for i, stake in enumerate(stakes):
        won = ((1 - JUMP) * shares + JUMP * shares.mean()) * stake  # the shares sum to 1
        logs[i] = np.log10(won.sum())
        shares = won / won.sum()
    return np.asarray(logs.cumsum())


def bets(p_values: npt.ArrayLike) -> Floats:
    """Return what each gambler makes of one coin: densities on [0, 1], so that on average none wins or loses.

    They bet on nothing; on low values, weakly and strongly; on high values, weakly and strongly; on both ends; on
    the middle.

    Returns
    -------
    float64 array, (n, 7)
    """
    p = np.clip(np.asarray(p_values, np.float64), _MIN_P, 1 - _MIN_P)
    low, high = p, 1 - p  # a low value has a p near 1
    columns = [
        np.ones_like(p),
        *(2 * low, 4 * low**3),
        *(2 * high, 4 * high**3),
        1 / (np.pi * np.sqrt(low * high)),
        6 * low * high,
    ]
    return np.stack(columns, axis=-1)
