"""Would more normal images help? The ROC-AUC of models that learned from a tenth, a quarter, half and all of them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_ae.config import Config
from anomaly_ae.errors import AnomalyAEError, DataError
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import FIT_SPLITS, MIN_NORMALS, Manifest, make_folds, roles
from anomaly_ae.manifest.splits import by_group
from anomaly_ae.metrics import roc_auc
from anomaly_ae.metrics.checks import BoolVector, FloatVector, LabelledScores, groups_if_any
from anomaly_ae.metrics.curves import area_under_roc
from anomaly_ae.metrics.intervals import N_FEW, group_bootstrap
from anomaly_ae.metrics.paired import Difference, bootstrap_difference, delong_difference, placements
from anomaly_ae.page import figure, line_plot, table, write_page
from anomaly_ae.planting import plant_copies, refuse_unplantable
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Metric, Sample
from anomaly_ae.report.words import ratio
from anomaly_ae.results import write_csv
from anomaly_ae.survey import readable_forms
from anomaly_ae.words import n_of

COLUMNS = ("n_normals", "roc_auc", "low", "high")
SHARES = (0.1, 0.25, 0.5, 1.0)
WORTH_IT = 0.01
"""A gain of the ROC-AUC that is surely smaller than this is none."""

PLANTED_CONTRASTS = (0.1, 0.2, 0.4)
N_HELD_OUT = 5  # one part in so many, where there is no test set
MIN_GROUPS = 3  # train, validation, calibration
N_DRAWS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A model that learned from a part of the normal images."""

    n_normals: int
    roc_auc: Metric


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points of rising numbers of normal images, each part holding the one before.

    Attributes
    ----------
    gain : Difference
        ROC-AUC of the last point less that of the one before, on the same test images.
    n_independent : int
        Test images, or groups of them, in the smaller class.
    is_planted : bool
        The anomalous test images are normal ones with synthetic defects.
    n_left_out : int
        Images that could not be read, and test images that could not be scored.
    """

    points: tuple[Point, ...]
    gain: Difference
    n_independent: int
    is_planted: bool
    n_left_out: int = 0

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        before, last = self.points[-2:]
        step = f"from {before.n_normals} to {last.n_normals} normal images"
        value, interval = self.gain.value or 0.0, self.gain.interval
        if interval is None:
            what = f"{step} the ROC-AUC went by {value:+.3f} ({self.gain.reason})"
            if value == 0 and self.n_independent >= N_FEW:
                return f"more normal images would hardly help: {what}"
            return f"whether more normal images would help cannot be told: {what}; more test images would tell"
        found = f"{step} the ROC-AUC went by {value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        if interval.low > 0:
            return f"more normal images would probably help: {found}"
        if interval.high < WORTH_IT:
            return f"more normal images would hardly help: {found}"
        return f"whether more normal images would help cannot be told: {found}; more test images would tell"

    def lines(self) -> list[str]:
        """Say in words what was found, and on what."""
        metric = self.points[-1].roc_auc
        of = f"{n_of(metric.n_normal, 'normal image')} and {metric.n_anomalous} anomalous"
        failed = f"left out, unreadable or of another kind: {n_of(self.n_left_out, 'image')}, named above"
        kind = "normal ones with synthetic defects, as there is no labelled test set" if self.is_planted else "labelled"
        interval = self.gain.interval
        independent = f"; that of the gain takes {interval.unit}s as independent" if interval else ""
        return [
            self.sentence,
            *(f"  {point.n_normals} normal images: ROC-AUC {_with_interval(point.roc_auc)}" for point in self.points),
            f"test: {of} ({kind}); 95 % intervals{independent}",
            *([failed] if self.n_left_out else []),
            "one training each: what another seed would change is not in the intervals",
        ]


def learning_curve(
    manifest: Manifest,
    config: Config,
    shares: Sequence[float] = SHARES,
    device: str = "auto",
    listener: Listener | None = None,
) -> Curve:
    """Train on rising shares of the normal images, and measure each model on the same test images.

    Without a test set with both labels, a fifth of the groups is held out, and copies of its images with synthetic
    defects are the anomalous ones.

    Parameters
    ----------
    shares : sequence of float
        In (0, 1]. Shares of too few images to fit on are passed over.

    Raises
    ------
    DataError
        Fewer than two shares can be fitted.
    UsageError
        A configuration for volumes.
    """
    refuse_unplantable(config, "curve")
    listener = listener or Listener()
    used = _used(manifest)
    forms = readable_forms(used, listener, " of the curve")
    readable = replace(manifest, samples=tuple(s for s in used if s.id in forms))
    with tempfile.TemporaryDirectory() as work:
        train, test, is_planted = _train_and_test(readable, config.seed, Path(work))
        labels = np.array([sample.label == ANOMALOUS_LABEL for sample in test])
        parts = _parts(train, shares, config.seed)
        scores = []
        for step, part in enumerate(parts, start=1):
            rows = replace(manifest, samples=(*part, *test))
            scores.append(_scores(rows, config, device, listener.named(f"model {step} of {len(parts)}")))
    kept = np.flatnonzero(np.isfinite(np.stack(scores)).all(axis=0))
    labels, scores = labels[kept], [one[kept] for one in scores]
    groups = groups_if_any(test[i].group for i in kept)
    points = tuple(Point(len(p), roc_auc(labels, one, groups)) for p, one in zip(parts, scores, strict=True))
    gain, n_independent = _gain(labels, scores[-2], scores[-1], groups, config.seed)
    n_left_out = len(used) - len(forms) + len(test) - len(kept)
    return Curve(points, gain, n_independent, is_planted, n_left_out)


def write_curve(found: Curve, folder: Path) -> Path:
    """Write ``curve.csv`` and ``curve.html``; return the path of the page."""
    rows = [(p.n_normals, p.roc_auc.value, *_interval(p.roc_auc)) for p in found.points]
    write_csv(folder / "curve.csv", COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    n_normals, value, low, high = np.array(rows, np.float64).T
    curves = [("ROC-AUC", n_normals, value), ("95 %, low", n_normals, low), ("95 %, high", n_normals, high)]
    curves = [curve for curve in curves if np.isfinite(curve[2]).all()]
    plot = line_plot("ROC-AUC by number of normal images", ("normal images to fit on", "ROC-AUC"), curves, None)
    lines = [(str(p.n_normals), _with_interval(p.roc_auc)) for p in found.points]
    page = folder / "curve.html"
    body = [figure(plot, "Fitted on parts that hold each other."), table(("normal images", "ROC-AUC"), lines)]
    write_page(page, "learning curve", found.sentence, found.lines()[1 + len(found.points) :], body)
    return page


def _used(manifest: Manifest) -> list[Sample]:
    """Return the rows to fit on and the labelled test rows, each with its role as its split."""
    of_role = zip(manifest.samples, roles(manifest.samples), strict=True)
    return [replace(s, split=role) for s, role in of_role if role in FIT_SPLITS or (role == "test" and s.label)]


def _train_and_test(manifest: Manifest, seed: int, work: Path) -> tuple[list[Sample], list[Sample], bool]:
    """Return rows to fit on, rows to measure on, and whether their anomalous ones are planted."""
    test = [s for s in manifest.samples if s.split == "test" and s.label]
    of_role = zip(manifest.samples, roles(manifest.samples), strict=True)
    train = [replace(s, split="train") for s, role in of_role if role in FIT_SPLITS]
    n_of_label = Counter(s.label for s in test)
    if len(n_of_label) == 2:
        if min(n_of_label.values()) < 2:
            what = f"test images: {n_of_label[NORMAL_LABEL]} normal, {n_of_label[ANOMALOUS_LABEL]} anomalous"
            raise DataError(what, "one image of a class tells nothing of a difference", "add test images")
        return train, test, False
    fold = make_folds(replace(manifest, samples=tuple(train)), N_HELD_OUT, seed)[0]
    normal = [replace(s, label=NORMAL_LABEL) for s in fold.select(split="test")]
    copies = plant_copies(normal, len(normal), PLANTED_CONTRASTS, work, np.random.default_rng(seed))
    if not copies:
        raise DataError(
            "no test images", "there are no labelled ones, and no defect could be planted", "add anomalous test images"
        )
    planted = [
        replace(s, id=f"planted {s.id}", unit=f"planted {s.unit}", label=ANOMALOUS_LABEL) for s in copies.values()
    ]
    return list(fold.select(split="train")), [*normal, *planted], True


def _parts(train: Sequence[Sample], shares: Sequence[float], seed: int) -> list[list[Sample]]:
    """Return rising parts of whole groups, in one random order, that are large enough to fit on."""
    members = by_group(train)
    names = list(members)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    sizes = np.cumsum([len(members[name]) for name in order])
    n_groups = sorted({int(np.searchsorted(sizes, share * len(train) - 1e-9)) + 1 for share in shares})
    parts = [[s for name in order[:n] for s in members[name]] for n in n_groups if n >= MIN_GROUPS]
    parts = [part for part in parts if len(part) >= MIN_NORMALS]
    if len(parts) < 2:
        raise DataError(
            f"{len(train)} normal images in {n_of(len(names), 'group')} are too few for a curve",
            f"two of its parts must have {MIN_NORMALS} images in {MIN_GROUPS} groups",
            "add normal images, or give larger shares",
        )
    return parts


def _scores(rows: Manifest, config: Config, device: str, listener: Listener) -> npt.NDArray[np.float64]:
    """Fit on the rows for training; return the scores of those for testing, NaN for what cannot be scored."""
    detector = fit(rows, config, device=device, listener=listener.quiet())
    scores = []
    for _, result in detector.measure_many(rows.select(split="test")):
        if isinstance(result, AnomalyAEError):
            listener.say(f"left out of the curve: {result}")
        scores.append(np.nan if isinstance(result, AnomalyAEError) else result[0])
    return np.array(scores)


def _gain(
    labels: BoolVector, before: FloatVector, last: FloatVector, groups: Sequence[str] | None, seed: int
) -> tuple[Difference, int]:
    """Return what the last step brought, and how many images or groups of the smaller class say so."""
    codes = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_independent = min(len(np.unique(codes[among])) for among in (labels, ~labels))
    placed_before, placed_last = (placements(labels, one) for one in (before, last))
    if groups is None:
        return delong_difference(labels, placed_before, placed_last, 0.95, "image"), n_independent
    value = float((placed_last - placed_before)[labels].mean())
    of_both = [group_bootstrap(LabelledScores(labels, s), codes, area_under_roc, N_DRAWS, seed) for s in (before, last)]
    draws, nothing = of_both[1] - of_both[0], "no group makes a difference"
    return bootstrap_difference(value, draws, N_DRAWS, n_independent, 0.95, "group", nothing), n_independent


def _interval(metric: Metric) -> tuple[float | None, float | None]:
    return (metric.intervals[0].low, metric.intervals[0].high) if metric.intervals else (None, None)


def _with_interval(metric: Metric) -> str:
    low, high = _interval(metric)
    return f"{ratio(metric.value)} [{ratio(low)}, {ratio(high)}]"
