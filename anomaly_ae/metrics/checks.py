"""Validated input of the metrics."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError

BoolVector = npt.NDArray[np.bool_]
FloatVector = npt.NDArray[np.float64]
IntVector = npt.NDArray[np.int64]


class LabelledScores(NamedTuple):
    """A test set: labels (n,) with True = anomalous, scores (n,), and group numbers (n,) from 0, or None."""

    labels: BoolVector
    scores: FloatVector
    groups: IntVector | None = None

    @property
    def n_normal(self) -> int:
        """Number of normal images."""
        return int(np.count_nonzero(~self.labels))

    @property
    def n_anomalous(self) -> int:
        """Number of anomalous images."""
        return int(np.count_nonzero(self.labels))


def labelled_scores(
    labels: npt.ArrayLike, scores: npt.ArrayLike, groups: Iterable[Hashable] | None = None
) -> LabelledScores:
    """Check labels, scores and groups against each other.

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous.
    scores : array, (n,)
        Raw scores; taken as float64.
    groups : iterable of hashable, length n, or None
        What belongs together (a patient, a part, a lot).

    Raises
    ------
    DataError
        A wrong shape or dtype, unequal lengths, or a score that is not finite.
    """
    checked_labels = bool_vector(labels, "labels")
    checked_scores = _score_vector(scores)
    n_labels, n_scores = len(checked_labels), len(checked_scores)
    if n_labels != n_scores:
        raise DataError(f"{n_labels} labels but {n_scores} scores", "each image needs one of both")
    return LabelledScores(checked_labels, checked_scores, group_numbers(groups, n_scores))


def bool_vector(values: npt.ArrayLike, name: str) -> BoolVector:
    """Return `values` as a bool array (n,); anything that is not bool is refused: 0 and 1 may be codes."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype != np.bool_ and array.size):
        raise DataError(
            f"{name} of shape {array.shape} and dtype {array.dtype}",
            "a 1-D bool array is needed, True = anomalous",
            "compare with the anomalous label first, e.g. labels == 'anomalous'",
        )
    return array.astype(np.bool_)


def groups_if_any(groups: Iterable[object]) -> list[str] | None:
    """Return the groups where at least two members share one, else None: then each is taken as independent.

    >>> groups_if_any(["a", "b", "a"]), groups_if_any(["a", "b"])
    (['a', 'b', 'a'], None)
    """
    names = [str(group) for group in groups]
    return names if len(set(names)) < len(names) else None


def group_numbers(groups: Iterable[Hashable] | None, n: int) -> IntVector | None:
    """Number the groups from 0 in order of appearance; (n,) or None."""
    if groups is None:
        return None
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    if len(codes) != n:
        raise DataError(f"{len(codes)} groups but {n} values", "each image needs the name of its group")
    return codes


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence {confidence:g}", "it lies between 0 and 1", "0.95 is usual")


def _score_vector(scores: npt.ArrayLike) -> FloatVector:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"scores of shape {array.shape}", "one number per image is needed: a 1-D array")
    n_bad = int(np.count_nonzero(~np.isfinite(array)))
    if n_bad:
        raise DataError(
            f"{n_bad} of {len(array)} scores are NaN or infinite",
            "such scores have no rank",
            "report these images as not inspected, and leave them out of the figures",
        )
    return array
