"""Which normal images are suspicious? Every one is scored by a model that did not see it; the strangest are shown."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from anomaly_ae.config import Config
from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import FIT_SPLITS, Manifest, make_folds, roles
from anomaly_ae.page import write_page
from anomaly_ae.planting import plant_copies, refuse_unplantable
from anomaly_ae.records import NORMAL_LABEL, Failure, Image, Sample, Score
from anomaly_ae.report.panels import DetailPanels, detail_panels
from anomaly_ae.report.pictures import DETAIL_SIDE_PX, Detail, picture, thumbnail_map
from anomaly_ae.results import write_csv
from anomaly_ae.survey import readable_forms
from anomaly_ae.words import n_of

COLUMNS = ("rank", "id", "path", "frame", "group", "fold", "score", "strangeness", "p_value", "planted")
PLANTED_CONTRAST = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Suspect:
    """A normal image, as a model saw it that was trained on the others.

    Attributes
    ----------
    fold : int
        From 1.
    score : float
        Of the model of this fold; scores of different folds cannot be compared.
    strangeness : float
        (score - median) / (1.4826 median absolute deviation), of the scores of its fold: robust deviations.
    p_value : float
        Share of its fold's images that score at least so high, itself included.
    planted : bool
        A synthetic defect was planted into it, to see whether it is found.
    detail : Detail or None
        Small pictures; of the strangest of every fold alone.
    """

    sample: Sample
    fold: int
    score: float
    strangeness: float
    p_value: float
    planted: bool
    detail: Detail | None


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """All normal images, the strangest first."""

    suspects: tuple[Suspect, ...]
    n_folds: int
    n_left_out: int

    @property
    def n_planted(self) -> int:
        """How many synthetic defects were planted."""
        return sum(suspect.planted for suspect in self.suspects)

    @property
    def n_planted_on_top(self) -> int:
        """How many of as many strangest images are planted ones."""
        return sum(suspect.planted for suspect in self.suspects[: self.n_planted])

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        first = self.suspects[0]
        where = f"{first.strangeness:.1f} robust deviations above the middle of its fold"
        return f"{n_of(len(self.suspects), 'normal image')} ranked; the strangest is {first.sample.id}, {where}"

    def lines(self) -> list[str]:
        """Say in words what was found, and how."""
        lines = [self.sentence]
        if self.n_planted:
            lines.append(
                f"self-check: of the {self.n_planted} strangest images {self.n_planted_on_top} are planted ones, "
                f"of {self.n_planted} planted; images that were strange before count against it"
            )
        lines.append(f"every image was scored by a model trained on the other folds ({self.n_folds} folds, by group)")
        if self.n_left_out:
            lines.append(f"left out, unreadable or of another kind: {n_of(self.n_left_out, 'image')}, named above")
        return [*lines, "look at the top, down to where nothing strange is left; an image is no fault by its rank"]


def audit(
    manifest: Manifest,
    config: Config,
    n_folds: int = 5,
    n_shown: int = 30,
    planted_share: float = 0.0,
    device: str = "auto",
    listener: Listener | None = None,
) -> Audit:
    """Rank the normal images by how strange they are to models that were trained without them.

    Parameters
    ----------
    manifest : Manifest
        Its rows labelled normal, and those that `fit` would take; their splits are not asked.
    config : Config
        Of every model; its seed is that of the folds, too.
    n_folds : int
        At least 2; a group is never divided.
    n_shown : int
        How many get small pictures.
    planted_share : float
        Self-check: so many images, drawn at random, get a synthetic defect first.

    Raises
    ------
    DataError
        Too few images or groups.
    UsageError
        A configuration for volumes.
    """
    refuse_unplantable(config, "audit")
    listener = listener or Listener()
    normals = [
        replace(sample, label=NORMAL_LABEL, split="", mask=None)
        for sample, role in zip(manifest.samples, roles(manifest.samples), strict=True)
        if sample.label == NORMAL_LABEL or (role in FIT_SPLITS and not sample.label)
    ]
    forms = readable_forms(normals, listener, " of the audit")
    readable = [sample for sample in normals if sample.id in forms]
    suspects: list[Suspect] = []
    with tempfile.TemporaryDirectory() as work:
        planted = _planted(readable, planted_share, Path(work), config.seed)
        rows = tuple(planted.get(sample.id, sample) for sample in readable)
        for fold, one in enumerate(make_folds(replace(manifest, samples=rows), n_folds, config.seed), start=1):
            detector = fit(one, config, device=device, listener=listener.named(f"fold {fold} of {n_folds}").quiet())
            suspects += _suspects(detector, one.select(split="test"), fold, n_shown, planted.keys(), listener)
    if not suspects:
        raise DataError("no normal image could be scored", "see the lines above", "check the images")
    ranked = sorted(suspects, key=lambda suspect: -suspect.strangeness)
    return Audit(tuple(ranked), n_folds, len(normals) - len(ranked))


def strangeness(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return how far each score lies above the median, in robust deviations.

    The median absolute deviation times 1.4826 estimates the standard deviation of normally distributed scores
    (Hampel 1974, JASA 69:383), and a few strange images do not widen it. Where it is 0, the standard deviation is
    taken.

    >>> strangeness([1.0, 2.0, 3.0, 4.0, 100.0]).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    """
    values = np.asarray(scores, np.float64)
    distance = values - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(distance))) or float(values.std()) or 1.0
    return np.asarray(distance / spread)


def write_audit(found: Audit, folder: Path, n_shown: int = 30) -> Path:
    """Write ``audit.csv`` and ``audit.html``; return the path of the page."""
    rows = []
    for rank, s in enumerate(found.suspects, start=1):
        of_sample = (s.sample.id, s.sample.path, s.sample.frame, s.sample.group)
        values = (rank, *of_sample, s.fold, s.score, s.strangeness, s.p_value, int(s.planted))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    write_csv(folder / "audit.csv", COLUMNS, rows)
    shown = [(rank, s) for rank, s in enumerate(found.suspects[:n_shown], start=1) if s.detail]
    panels = detail_panels([s.detail for _, s in shown if s.detail])
    cards = Markup("\n").join(_card(rank, s, p) for (rank, s), p in zip(shown, panels, strict=True))
    page = folder / "audit.html"
    body = [Markup('<div class="cards">\n{}\n</div>').format(cards)]
    write_page(page, "suspicious normal images", found.sentence, found.lines()[1:], body)
    return page


def _planted(samples: Sequence[Sample], share: float, folder: Path, seed: int) -> dict[str, Sample]:
    """Plant plain defects into copies of a share of the images, drawn at random; return their rows by id."""
    if not share:
        return {}
    rng = np.random.default_rng(seed)
    drawn = [samples[i] for i in rng.permutation(len(samples))]
    return plant_copies(drawn, max(1, round(share * len(samples))), (PLANTED_CONTRAST,), folder, rng)


def _suspects(
    detector: Detector,
    samples: Sequence[Sample],
    fold: int,
    n_shown: int,
    planted: Collection[str],
    listener: Listener,
) -> Iterator[Suspect]:
    """Score the images of one fold; only the strangest keep their pictures."""
    scored: list[tuple[Sample, float]] = []
    shown: list[tuple[float, int]] = []  # a heap: score and number of the strangest so far
    details: dict[int, Detail | None] = {}
    for sample, (result, image) in zip(samples, detector.inspect_many(samples), strict=True):
        if isinstance(result, Failure) or image is None:
            listener.say(f"left out of the audit: {getattr(result, 'reason', sample.id)}")
            continue
        heapq.heappush(shown, (result.score, -len(scored)))
        details[len(scored)] = _detail(detector, sample, result, image)
        if len(shown) > n_shown:
            del details[-heapq.heappop(shown)[1]]
        scored.append((sample, result.score))
    scores = np.array([score for _, score in scored])
    far = strangeness(scores) if scored else scores
    for i, (sample, score) in enumerate(scored):
        p_value = float((scores >= score).mean())
        yield Suspect(sample, fold, score, float(far[i]), p_value, sample.id in planted, details.get(i))


def _detail(detector: Detector, sample: Sample, result: Score, image: Image) -> Detail | None:
    if result.anomaly_map is None or result.anomaly_map.ndim != 2:
        return None
    shown = picture(detector.in_unit_range(image), DETAIL_SIDE_PX)
    return Detail(sample.id, shown, thumbnail_map(detector.display(result.anomaly_map), DETAIL_SIDE_PX))


def _card(rank: int, suspect: Suspect, panels: DetailPanels) -> Markup:
    facts = f"{suspect.strangeness:.1f} deviations; p {suspect.p_value:.3f} in fold {suspect.fold}"
    top = Markup('<header><span class="name">{}. {}</span>{}<span class="meta">{}</span></header>').format(
        rank, suspect.sample.id, Markup('<span class="badge">planted</span>') if suspect.planted else "", facts
    )
    contour = Markup('<path class="contour" d="{}"/>').format(panels.contour)
    pictures = (
        _panel(panels, "image", panels.input),
        _panel(panels, "map", panels.map),
        _panel(panels, "map over image", panels.input, panels.overlay, contour),
    )
    return Markup('<article class="card">{}<div class="panels three">{}</div></article>').format(
        top, Markup("").join(pictures)
    )


def _panel(panels: DetailPanels, caption: str, address: str, over: str = "", outline: str = "") -> Markup:
    image = Markup('<image width="{}" height="{}" href="{}"/>')
    layers = [image.format(panels.width, panels.height, one) for one in (address, over) if one]
    form = Markup(
        '<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg><figcaption>{}</figcaption></figure>'
    )
    return form.format(panels.width, panels.height, caption, Markup("").join(layers), outline, caption)
