"""The page of a study: self-contained, escaped, and its plots where they should be."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from anomaly_ae.errors import OutputError
from anomaly_ae.files import refuse_folder
from anomaly_ae.page import figure, heat_map, line_plot, table, write_page

EVIL = "<script>alert('x')</script>&\""


def page_text(tmp_path: Path, body: list[Markup]) -> str:
    write_page(tmp_path / "page.html", EVIL, EVIL, [EVIL], body)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"href", "src"}]
        assert not any(name == "style" or name.startswith("on") for name, _ in attrs), "the policy would refuse it"


def test_page_is_escaped_and_loads_nothing(tmp_path: Path) -> None:
    x = np.arange(3.0)
    plots = [
        figure(line_plot(EVIL, (EVIL, EVIL), [(EVIL, x, x)], (EVIL, 1.5)), EVIL),
        figure(heat_map(EVIL, (EVIL, EVIL), [EVIL], [EVIL], [[(0.5, EVIL, EVIL)]]), EVIL),
        table([EVIL, EVIL], [[EVIL, EVIL]]),
    ]
    text = page_text(tmp_path, plots)
    tags = Tags(text)
    assert "script" not in tags.names
    assert {"svg", "polyline", "rect", "table"} <= set(tags.names)
    assert all(address.startswith("data:") for address in tags.addresses)
    assert "default-src &#39;none&#39;" in text
    assert "Research use; not a medical device." in text


def test_line_plot_puts_higher_values_higher_and_the_limit_between() -> None:
    svg = line_plot("t", ("x", "y"), [("a", np.array([1.0, 2, 3]), np.array([0.0, 5, 10]))], ("limit", 5.0))
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]  # type: ignore[index]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] > points[1][1] > points[2][1]
    limit = float(re.search(r'class="limit-line"[^>]* y1="([\d.]+)"', svg)[1])  # type: ignore[index]
    assert limit == pytest.approx(points[1][1], abs=0.11)


def test_plot_of_one_value_has_room() -> None:
    assert "nan" not in line_plot("t", ("x", "y"), [("a", np.array([1.0]), np.array([2.0]))], None)


def test_heat_map_has_its_first_row_at_the_bottom_and_dark_for_much() -> None:
    svg = heat_map(
        "t", ("x", "y"), ["l", "r"], ["low", "high"], [[(0, "a", ""), (0, "b", "")], [(0, "c", ""), (1, "d", "")]]
    )
    place = {m[2]: float(m[1]) for m in re.finditer(r'y="([\d.]+)"[^>]*>(\w+)</text>', svg)}
    assert place["high"] < place["low"]
    assert place["c"] == place["d"] < place["a"] == place["b"]
    fills = re.findall(r"rgb\((\d+),", svg)
    assert fills.count("38") == 1


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    refuse_folder(tmp_path / "new", overwrite=False)
    refuse_folder(tmp_path, overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="exists already"):
        refuse_folder(tmp_path, overwrite=False)
    refuse_folder(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        refuse_folder(tmp_path / "file", overwrite=True)
