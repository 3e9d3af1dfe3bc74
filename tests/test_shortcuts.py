"""What separates the classes without looking for a defect."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_ae.records import Image
from anomaly_ae.shortcuts import FEWEST, grey_statistics, properties, separations, shortcut_warnings


def area(labels: list[bool], values: list[float]) -> float:
    pairs = list(itertools.product(
        [v for v, label in zip(values, labels, strict=True) if label],
        [v for v, label in zip(values, labels, strict=True) if not label],
    ))  # fmt: skip
    return sum((bad > good) + 0.5 * (bad == good) for bad, good in pairs) / len(pairs)


def leave_pair_out(labels: list[bool], words: list[str]) -> float:
    """Every pair judged by the share of anomalous images with the same word, among the other images."""
    places = range(len(labels))
    wins = []
    for i, j in itertools.product([p for p in places if labels[p]], [p for p in places if not labels[p]]):
        shares = []
        for k in (i, j):
            alike = [labels[p] for p in places if words[p] == words[k] and p not in {i, j}]
            listed = sum(word == words[k] for word in words) > 1
            shares.append(np.mean(alike) if alike else np.mean(labels) if not listed else None)
        wins.append(0.5 if words[i] == words[j] else (shares[0] > shares[1]) + 0.5 * (shares[0] == shares[1]))
    return float(np.mean(wins))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), min_size=2, max_size=30))
def test_words_are_judged_by_the_other_images(rows: list[tuple[bool, str]]) -> None:
    labels, words = [label for label, _ in rows], [word for _, word in rows]
    found = separations(labels, [{}] * len(rows), [{"station": word} for word in words])
    if min(sum(labels), len(labels) - sum(labels)) < FEWEST:
        assert found == {}
    else:
        assert found["column station"] == pytest.approx(max(0.5, leave_pair_out(labels, words)))


def test_a_word_that_occurs_once_tells_nothing_and_one_that_tells_is_found() -> None:
    labels = [i % 2 == 0 for i in range(40)]
    columns = [
        {"serial": f"x{i}", "station": "AB"[i % 2], "day": "mon", "shift": str(i % 2), "slot": f"{i % 8}"}
        for i in range(40)
    ]
    found = separations(labels, [{}] * 40, columns)
    assert found["column serial"] == found["column day"] == 0.5
    assert found["column station"] == 1.0
    assert found["column shift"] == 0.0, "numbers have a direction"
    assert found["column slot"] == 1.0, "as words: every second slot is anomalous, in no order"


def test_numbers_are_compared_and_missing_ones_left_out() -> None:
    labels = [True] * 6 + [False] * 5
    values = [3.0, None, 1.5, 4.0, 2.0, 5.0, 1.0, 3.0, 2.0, 2.5, 1.0]
    known = [i for i, v in enumerate(values) if v is not None]
    wanted = area([labels[i] for i in known], [values[i] for i in known])  # type: ignore[misc]
    found = separations(labels, [{"mean grey": v, "spacing": None} for v in values])
    assert found == {"mean grey": pytest.approx(wanted)}


def test_a_word_of_one_group_tells_nothing() -> None:
    labels = [i < 30 for i in range(60)]
    columns = [{"serial": f"x{i // 3}", "camera": "AB"[i < 30]} for i in range(60)]
    found = separations(labels, [{}] * 60, columns, [f"part {i // 3}" for i in range(60)])
    assert found == {"column serial": 0.5, "column camera": 1.0}


def test_a_few_images_of_a_class_say_nothing() -> None:
    for n, names in ((FEWEST - 1, []), (FEWEST, ["mean grey", "column station"])):
        labels = [i < n for i in range(40)]
        columns = [{"station": "AB"[label]} for label in labels]
        assert list(separations(labels, [{"mean grey": float(label)} for label in labels], columns)) == names


def test_properties_of_an_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (2, 30, 40)).astype(np.uint16)
    valid = np.zeros((30, 40), bool)
    valid[4:20, 5:30] = True
    found = properties(Image(pixels, valid, spacing_mm=(0.5, 2.0)), 1234)
    inside = pixels[:, valid].astype(float)
    assert found["mean grey"] == pytest.approx(inside.mean())
    assert found["deviation"] == pytest.approx(inside.std())
    steps = np.abs(np.diff(pixels.astype(float), axis=-1)).mean()
    assert found["sharpness"] == pytest.approx(steps / inside.std())
    assert (found["image size"], found["file size"], found["spacing"]) == (1200, 1234, 1.0)


def test_nothing_valid_and_no_spacing_is_unknown() -> None:
    image = Image(np.ones((1, 4, 4)), np.zeros((4, 4), bool))
    found = properties(image, 5)
    assert [found[name] for name in ("mean grey", "deviation", "sharpness", "spacing")] == [None] * 4
    assert grey_statistics(Image(np.ones((1, 4, 4))))[1:] == (0.0, 0.0)


def test_the_strongest_is_named_first_with_its_direction() -> None:
    texts = shortcut_warnings({"file size": 0.19, "mean grey": 0.99, "sharpness": 0.8, "column day": 0.85, "x": None})
    assert texts == [
        "mean grey alone separates the classes: 0.99 (anomalous is higher)",
        "column day alone separates the classes: 0.85",
        "file size alone separates the classes: 0.81 (anomalous is lower)",
    ]
