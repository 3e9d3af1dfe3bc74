"""Read a whole data set once, and say what is there."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from anomaly_ae.config import SplitConfig
from anomaly_ae.errors import DataError
from anomaly_ae.manifest.checks import (
    Refusal,
    Row,
    cut_for_fit,
    duplicates_across_splits,
    mask_problems,
    n_duplicates_within_splits,
    odd_masks,
    refusals,
    shortcuts,
    warnings,
    with_roles,
)
from anomaly_ae.manifest.facts import Inspected, inspect_all
from anomaly_ae.manifest.table import SPLITS, Manifest
from anomaly_ae.records import ANOMALOUS_LABEL
from anomaly_ae.shortcuts import shortcut_warnings
from anomaly_ae.words import n_of, times

_N_LISTED = 10
_N_UNREADABLE = 100  # more of them, as each is lost; but not the ten thousand of a wrong folder
_N_SIZES = 4


class Count(NamedTuple):
    """One line of the table of counts."""

    split: str
    label: str
    defect: str
    n_images: int
    n_units: int
    n_groups: int


class Calibration(NamedTuple):
    """What sets the threshold: n of n_all readable normal groups (or images, where each is its own group).

    ``share`` is the one that was cut off, 0 where the manifest itself names the calibration rows.
    """

    n: int
    n_all: int
    of: str
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class ScanReport:
    """What a data set holds, and what would make results false.

    Attributes
    ----------
    counts : tuple of Count
        Images, units and groups per split, label and defect.
    group_sizes : Counter
        Images per group.
    n_samples, n_readable : int
        Rows, and rows whose image could be read.
    n_normals, n_normal_groups : mapping of split to int
        Readable images that are not anomalous per use, and their groups; "train" also holds the rows without
        a split that `fit` takes.
    calibration : Calibration or None
        The part of the normals that `fit` sets thresholds with; None where it has nothing to cut.
    unreadable : tuple of (path, reason)
    duplicates : tuple of (id, id)
        Rows of different splits with the same pixels.
    n_duplicates_within : int
        Rows that repeat the pixels of another row of their split.
    mask_problems : tuple of (mask path, problem)
    odd_masks : tuple of (mask path, problem)
    n_masks, n_anomalous_without_mask : int
    sizes, channels, depths : Counter
        Readable images per spatial shape, number of channels and bit depth.
    n_grey_rgb : int
        Grey images that are saved as RGB; they count as grey.
    shortcuts : mapping of str to float
        Area under the ROC curve of properties that are not the defect; 0.5 = they say nothing.
    notes, warnings : tuple of str
    refusals : tuple of (what, why, fix)
        What makes results false; empty when the data set can be used.
    """

    layout: str
    counts: tuple[Count, ...]
    group_sizes: Counter[str]
    n_samples: int
    n_readable: int
    n_normals: Mapping[str, int]
    n_normal_groups: Mapping[str, int]
    calibration: Calibration | None
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, str], ...]
    n_duplicates_within: int
    mask_problems: tuple[tuple[str, str], ...]
    odd_masks: tuple[tuple[str, str], ...]
    n_masks: int
    n_anomalous_without_mask: int
    sizes: Counter[tuple[int, ...]]
    channels: Counter[int]
    depths: Counter[str]
    n_grey_rgb: int
    shortcuts: Mapping[str, float]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    def lines(self) -> list[str]:
        """Return the report as plain text, one finding a line."""
        return [
            f"layout: {self.layout}; {n_of(self.n_samples, 'image')}, {self.n_readable:,} readable",
            *_table(self.counts),
            _group_line(self.group_sizes),
            *_image_lines(self),
            *_listed("unreadable", self.unreadable, _N_UNREADABLE),
            *_listed("same pixels", self.duplicates),
            *_listed("mask", self.mask_problems),
            *_listed("mask", self.odd_masks),
            *_shortcut_lines(self.shortcuts),
            *(f"note: {note}" for note in self.notes),
            *(f"warning: {warning}" for warning in self.warnings),
            *(f"REFUSED: {what}: {why} ({fix})" for what, why, fix in self.refusals),
        ]

    def raise_if_refused(self) -> None:
        """Raise the first refusal as a `DataError`, with the number of further ones."""
        if self.refusals:
            what, why, fix = self.refusals[0]
            n_more = len(self.refusals) - 1
            raise DataError(what, why, fix + (f"; `scan` names {n_more} more problems" if n_more else ""))


def scan(
    manifest: Manifest, progress: Callable[[int, int], None] | None = None, folds: Sequence[Manifest] = ()
) -> ScanReport:
    """Read every image and mask of a manifest once and report what is there.

    Only statistics are kept, never the images. Nothing is changed, and nothing is raised for bad data: see
    `ScanReport.refusals`.

    Parameters
    ----------
    manifest : Manifest
    progress : callable, optional
        Called as ``progress(n_done, n_total)``.
    folds : sequence of Manifest
        What `make_folds` made of it. Their splits are those that will be used, so refusals are about them.
    """
    inspected = inspect_all(manifest.samples, progress)
    rows = with_roles(inspected)
    samples = [row.one.sample for row in rows]
    facts = [row.one.facts for row in rows if row.one.facts is not None]
    uses = [_with_splits_of(fold, inspected) for fold in folds] or [rows]
    pairs = duplicates_across_splits(rows)
    areas = shortcuts(rows)
    n_normals, n_normal_groups = _normals(rows)
    anomalous = [sample for sample in samples if sample.label == ANOMALOUS_LABEL]
    return ScanReport(
        layout=manifest.layout,
        counts=_counts(rows),
        group_sizes=Counter(sample.group for sample in samples),
        n_samples=len(rows),
        n_readable=len(facts),
        n_normals=n_normals,
        n_normal_groups=n_normal_groups,
        calibration=_calibration(uses[0]),
        unreadable=tuple((row.one.sample.id, row.one.reason) for row in rows if row.one.facts is None),
        duplicates=tuple(pairs),
        n_duplicates_within=n_duplicates_within_splits(rows),
        mask_problems=tuple(mask_problems(rows)),
        odd_masks=tuple(odd_masks(rows)),
        n_masks=sum(sample.mask is not None for sample in samples),
        n_anomalous_without_mask=sum(sample.mask is None for sample in anomalous),
        sizes=Counter(one.shape for one in facts),
        channels=Counter(one.n_channels for one in facts),
        depths=Counter(one.depth for one in facts),
        n_grey_rgb=sum(one.was_grey_rgb for one in facts),
        shortcuts=areas,
        notes=manifest.all_notes,
        warnings=(*manifest.warnings, *warnings(rows), *shortcut_warnings(areas)),
        refusals=_all_refusals(uses),
    )


def _with_splits_of(fold: Manifest, inspected: Sequence[Inspected]) -> list[Row]:
    """The same images, used as a fold says; nothing is read again."""
    return with_roles([replace(one, sample=s) for one, s in zip(inspected, fold.samples, strict=True)])


def _all_refusals(uses: Iterable[Sequence[Row]]) -> tuple[Refusal, ...]:
    found = (refusal for rows in uses for refusal in refusals(rows, duplicates_across_splits(rows)))
    return tuple(dict.fromkeys(found))


def _counts(rows: Sequence[Row]) -> tuple[Count, ...]:
    kinds: defaultdict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.one.sample.split, row.one.sample.label, row.one.sample.defect].append(row)
    return tuple(
        Count(*kind, len(same), len({r.one.sample.unit for r in same}), len({r.one.sample.group for r in same}))
        for kind, same in sorted(kinds.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0]))
    )


def _normals(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, int]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.one.facts is not None and row.one.sample.label != ANOMALOUS_LABEL:
            groups[row.role].append(row.one.sample.group)
    n_normals = {role: len(names) for role, names in groups.items()}
    return n_normals, {role: len(set(names)) for role, names in groups.items()}


def _calibration(rows: Sequence[Row]) -> Calibration | None:
    try:
        parts = cut_for_fit(rows)
    except DataError:
        return None  # a refusal says why
    readable = {row.one.sample.id: row.one.sample.group for row in rows if row.one.facts is not None}
    groups = {name: [readable[s.id] for s in part if s.id in readable] for name, part in parts.items()}
    part, everything = groups["calibration"], [group for names in groups.values() for group in names]
    if not part:
        return None
    is_cut = not any(row.role == "calibration" for row in rows)
    share = SplitConfig().calibration_share if is_cut else 0.0
    if len(set(everything)) == len(everything):
        return Calibration(len(part), len(everything), "images", share)
    return Calibration(len(set(part)), len(set(everything)), "groups", share)


def _table(counts: Iterable[Count]) -> list[str]:
    cells = [("split", "label", "defect", "images", "units", "groups")]
    cells += [
        (c.split or "-", c.label or "-", c.defect or "-", str(c.n_images), str(c.n_units), str(c.n_groups))
        for c in counts
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    return ["  " + "  ".join(map(_padded, row, widths, range(6))) for row in cells]


def _padded(cell: str, width: int, column: int) -> str:
    """Words to the left, numbers to the right."""
    return cell.ljust(width) if column < 3 else cell.rjust(width)


def _group_line(sizes: Counter[str]) -> str:
    if not sizes:
        return "groups: none"
    smallest, largest = min(sizes.values()), max(sizes.values())
    if largest == 1:
        return f"groups: {len(sizes)}, one image each (images are taken as independent)"
    name = max(sizes, key=lambda group: sizes[group])
    return f"groups: {len(sizes)}, with {smallest} to {largest} images each (largest: group {name!r})"


def _image_lines(report: ScanReport) -> list[str]:
    grey_rgb = f" (grey saved as RGB: {report.n_grey_rgb})" if report.n_grey_rgb else ""
    without = f", anomalous images without: {report.n_anomalous_without_mask}" if report.n_masks else ""
    return [
        f"size (rows first): {_sizes(report.sizes)}",
        f"channels: {_kinds(report.channels)}{grey_rgb}",
        f"bit depth: {_kinds(report.depths)}",
        f"masks: {report.n_masks}{without}",
        f"same pixels: {len(report.duplicates)} across splits, {report.n_duplicates_within} within a split",
    ]


def _sizes(sizes: Counter[tuple[int, ...]]) -> str:
    if len(sizes) <= _N_SIZES:
        return _kinds(Counter({_px(shape): n for shape, n in sizes.items()}))
    by_area = sorted(sizes, key=math.prod)
    return f"{len(sizes)} different, from {_px(by_area[0])} to {_px(by_area[-1])}"


def _px(shape: tuple[int, ...]) -> str:
    return f"{times(shape)} px"


def _kinds(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{value}: {n_of(n, 'image')}" for value, n in counts.most_common()) or "none"


def _listed(title: str, pairs: Sequence[tuple[str, str]], limit: int = _N_LISTED) -> list[str]:
    shown = [f"{title}: {first}: {second}" for first, second in pairs[:limit]]
    rest = len(pairs) - len(shown)
    return [*shown, f"{title}: and {rest} more"] if rest else shown


def _shortcut_lines(areas: Mapping[str, float]) -> list[str]:
    if not areas:
        return []
    figures = ", ".join(f"{name} {area:.2f}" for name, area in areas.items())
    return [f"what is not the defect, as ROC-AUC (0.50 = says nothing): {figures}"]
