"""Kappa against published tables and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_ae.errors import DataError
from anomaly_ae.metrics.agreement import answer_counts, cohen_kappa, fleiss_kappa, part_draws

# Counts of 14 raters over 5 answers for 10 subjects, a worked example in wide use
# (en.wikipedia.org/wiki/Fleiss'_kappa).
FLEISS_EXAMPLE = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip

# AIAG, Measurement Systems Analysis, 4th ed., chapter III C: cross-tabulations (both 0, only the second 1, only the
# first 1, both 1) of 150 decisions, and the kappa printed below them.
AIAG_TABLES = [
    ((44, 6, 3, 97), 0.86),  # A and B
    ((42, 5, 9, 94), 0.79),  # B and C
    ((43, 7, 8, 92), 0.78),  # A and C
    ((45, 5, 3, 97), 0.88),  # A and the reference
    ((45, 2, 3, 100), 0.92),  # B and the reference
    ((42, 9, 6, 93), 0.77),  # C and the reference
]


@pytest.mark.parametrize(("cells", "printed"), AIAG_TABLES)
def test_cohen_kappa_of_the_aiag_manual(cells: tuple[int, int, int, int], printed: float) -> None:
    one, two = np.repeat([False, False, True, True], cells), np.repeat([False, True, False, True], cells)
    assert cohen_kappa(one, two) == pytest.approx(printed, abs=0.005)


def test_fleiss_kappa_of_the_worked_example() -> None:
    assert fleiss_kappa(FLEISS_EXAMPLE) == pytest.approx(0.210, abs=5e-4)


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50))
def test_cohen_kappa_is_that_of_scikit_learn(rows: list[tuple[bool, bool]]) -> None:
    from sklearn.metrics import cohen_kappa_score

    one, two = zip(*rows, strict=True)
    found = cohen_kappa(one, two)
    if found is None:
        assert len({*one, *two}) == 1
    else:
        assert found == pytest.approx(cohen_kappa_score(one, two))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=30))
def test_fleiss_kappa_by_counting_pairs_of_raters(rows: list[list[bool]]) -> None:
    flagged = np.array(rows)
    alike = np.mean([np.mean([row[i] == row[j] for i in range(3) for j in range(3) if i != j]) for row in flagged])
    share = flagged.mean()
    by_chance = share**2 + (1 - share) ** 2
    found = fleiss_kappa(answer_counts(flagged))
    if found is None:
        assert share in {0.0, 1.0}
    else:
        assert found == pytest.approx((alike - by_chance) / (1 - by_chance))


@pytest.mark.parametrize("table", [[[1, 0]], [[2, 0], [1, 0]]])
def test_fleiss_kappa_refuses_what_is_no_table(table: list[list[int]]) -> None:
    with pytest.raises(DataError):
        fleiss_kappa(table)


def test_cohen_kappa_refuses_what_is_not_paired() -> None:
    with pytest.raises(DataError, match="pairs"):
        cohen_kappa([True], [True, False])


def test_draws_are_of_whole_parts_and_leave_out_what_has_no_value() -> None:
    seen: list[tuple[int, ...]] = []

    def first_part(parts: np.ndarray) -> float | None:
        seen.append(tuple(parts.tolist()))
        return float(parts[0]) if parts[0] else None

    draws = part_draws(first_part, 3, 300, seed=0)
    assert len(seen) == 300
    assert {part for one in seen for part in one} == {0, 1, 2}
    assert len(draws) == sum(one[0] != 0 for one in seen) < 300
