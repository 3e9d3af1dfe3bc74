"""Which of many stand for all of them."""

from __future__ import annotations

import numpy as np


def spread_evenly(n: int, n_most: int) -> list[int]:
    """Return at most ``n_most`` of ``n`` places, from the first to the last: neighbours by name are often of one lot.

    >>> spread_evenly(10, 4), spread_evenly(3, 4), spread_evenly(3, 0)
    ([0, 3, 6, 9], [0, 1, 2], [])
    """
    return [int(i) for i in np.linspace(0, n - 1, min(n, n_most)).round()]
