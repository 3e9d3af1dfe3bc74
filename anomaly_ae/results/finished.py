"""Scores of a finished run as what a threshold is set on: normal images, labelled anomalies, verdicts of people."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomaly_ae.calibration import CalibrationScores, calibration_scores
from anomaly_ae.errors import DataError
from anomaly_ae.files import holds
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.manifest.table import read_table
from anomaly_ae.metrics import rate
from anomaly_ae.metrics.checks import groups_if_any
from anomaly_ae.metrics.intervals import clopper_pearson
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Decision
from anomaly_ae.results.review import images_sha256
from anomaly_ae.results.rows import counted_rows
from anomaly_ae.results.tables import (
    FAILURE_COLUMNS,
    SCORE_COLUMNS,
    Row,
    read_csv,
    read_json,
    read_rows,
    reading,
    refuse_other_images,
)
from anomaly_ae.threshold import Threshold, parse_rate, percent_text
from anomaly_ae.words import n_of

UNSELECTED = (
    "This holds only if the images are an unselected sample: everything that came by, not rejects, complaints or "
    "images that somebody picked."
)
SURE = 0.998
"""Confidence of both intervals that are compared to call rejects too many: each end is passed once in 1000 cases."""

NO_GROUPS = "the calibration images came in groups and these images name none: images that belong together"


@dataclass(frozen=True, slots=True, eq=False)
class FinishedScores:
    """What a finished run gives to a calibration.

    Attributes
    ----------
    normal, anomalous : CalibrationScores or None
        None where there is no such image.
    n_unlabelled, n_rejected : int
        How many of the normal images are only taken as normal, and how many the model had not decided normal.
    too_many : str
        What to say where more of the normal images had been rejected than the threshold of the run explains, or "".
    n_groups : int
        Groups of the normal images.
    hashes : dict of str to list of str
        SHA-256 of the files of the images, by "calibration" and "labelled".
    statistics : dict of str to list of float
        Plain numbers of the normal images, such as their mean grey; empty where the run does not hold them.
    images_sha256 : str
        Of all images of the run.
    """

    normal: CalibrationScores | None
    anomalous: CalibrationScores | None
    n_unlabelled: int
    n_rejected: int
    too_many: str
    n_groups: int
    hashes: Mapping[str, list[str]]
    statistics: Mapping[str, list[float]]
    images_sha256: str

    @property
    def n_normal(self) -> int:
        """Number of normal images."""
        return 0 if self.normal is None else len(self.normal.image)

    @property
    def n_anomalous(self) -> int:
        """Number of labelled anomalies."""
        return 0 if self.anomalous is None else len(self.anomalous.image)

    def lines(self) -> list[str]:
        """Say what was taken for what, and on what condition it holds."""
        lines = [
            f"{n_of(self.n_normal, 'image')} taken as normal ({self.n_unlabelled} without a label, {self.n_rejected} "
            f"had been rejected or sent for review), {self.n_anomalous} anomalous"
        ]
        if self.n_unlabelled:
            lines.append("Defects among the images without a label raise the threshold: verdicts.csv can name them.")
        return [*lines, *([self.too_many] if self.too_many else []), UNSELECTED]


def finished_scores(path: Path, weights_sha256: str, verdicts: Path | None = None) -> FinishedScores:
    """Read ``scores.csv`` of a run, with what people said of its images, for a calibration without images.

    What is not labelled anomalous counts as normal; a verdict stands above a label. Images of a unit with an anomalous
    image, or with one that could not be inspected, are no calibration images.

    Parameters
    ----------
    path : Path
        ``scores.csv``, or the folder of the run.
    weights_sha256 : str
        Of the model: scores of other weights are refused.
    verdicts : Path or None
        A table with the columns ``id`` and ``verdict``: normal or anomalous; empty says nothing.

    Raises
    ------
    DataError
        No such table, one outside of its run, scores of another model, images that `fit` has learned, or nothing but
        rejected images.
    """
    path = path / "scores.csv" if holds(path.is_dir) else path
    rows = _scored(path, weights_sha256)
    plain = _plain_numbers(path.parent, rows)
    rows = rows if verdicts is None else with_verdicts(rows, verdicts)
    incomplete = _failed_units(path.parent / "failures.csv")
    left_out = {row["unit"] for row in rows if _is_suspect(row)} | incomplete
    normal = [row for row in rows if row["unit"] not in left_out]
    _refuse_rejects(normal, path)
    return FinishedScores(
        normal=_calibration(normal) if normal else None,
        anomalous=anomalous_scores(rows, incomplete),
        n_unlabelled=sum(not row["label"] for row in normal),
        n_rejected=sum(row["decision"] != Decision.NORMAL for row in normal),
        too_many=_too_many_rejects(normal, path.parent / "run.json"),
        n_groups=len({row["group"] for row in normal}),
        hashes={
            "calibration": [row["image_sha256"] for row in normal],
            "labelled": [row["image_sha256"] for row in rows if row["label"] == ANOMALOUS_LABEL],
        },
        statistics=_statistics(plain, normal),
        images_sha256=images_sha256(rows),
    )


def anomalous_scores(rows: Sequence[Row], incomplete: Collection[str] = ()) -> CalibrationScores | None:
    """Return the scores of anomalous images, and of anomalous units; None where no image is labelled so.

    Parameters
    ----------
    incomplete : collection of str
        Units that were not inspected as a whole: their score is not known.
    """
    images = [row for row in rows if row["label"] == ANOMALOUS_LABEL]
    if not images:
        return None
    names = {row["unit"] for row in rows if _is_suspect(row)}.difference(incomplete)
    whole = _calibration([row for row in rows if row["unit"] in names] or images)  # part of a unit scores too low: safe
    return replace(_calibration(images), unit=whole.unit, unit_group=whole.unit_group)


def with_verdicts(rows: Sequence[Row], path: Path) -> list[Row]:
    """Return the rows with the labels that people gave them.

    Raises
    ------
    DataError
        An image that is not in the run, two verdicts on one image, or a verdict of another name.
    """
    known, said = {row["id"] for row in rows}, dict[str, str]()
    for number, cells in read_table(path, ("id",)):
        line = {column.lower(): text for column, text in cells.items()}
        if "verdict" not in line:
            raise DataError(f"{path} has no column 'verdict'", "it says what people found", "name the column 'verdict'")
        name, verdict = line["id"], line["verdict"].lower()
        if verdict not in {"", NORMAL_LABEL, ANOMALOUS_LABEL}:
            raise DataError(
                f"{path}, line {number}: verdict {verdict[:40]!r}", "unknown", "write normal, anomalous, or nothing"
            )
        if name not in known:
            raise DataError(f"{path}, line {number}: no image {name[:80]!r} in the scores", "", "give its id as there")
        if verdict and said.setdefault(name, verdict) != verdict:
            raise DataError(f"{path}, line {number}: a second, other verdict on {name[:80]!r}", "", "keep one of them")
    return [{**row, "label": said.get(row["id"], row["label"])} for row in rows]


def _scored(path: Path, weights_sha256: str) -> list[Row]:
    """Return the rows of ``scores.csv`` with their numbers, if this model scored them and had not learned them."""
    lines = read_csv(path, SCORE_COLUMNS)
    if not lines:
        raise DataError(f"{path} holds no scores", "", "give scores.csv of a finished run")
    if {line["weights_sha256"] for line in lines} != {weights_sha256}:
        raise DataError(
            f"{path} was scored by another model", "scores of other weights mean something else", "score again with it"
        )
    with reading(path):
        rows: list[Row] = [
            {**line, "score": float(line["score"]), "decision": Decision(int(line["decision"]))} for line in lines
        ]
    info = path.parent / "run.json"
    if not info.exists():
        why = "only run.json beside it says whether the model has learned these images"
        raise DataError(f"{path} stands outside of its run", why, "give the RUN folder, or the scores.csv inside of it")
    n_learned = read_json(info).get("data", {}).get("n_learned", 0)
    if n_learned:
        raise DataError(
            f"{n_learned} of the images of {path} were used in training",
            "the model has learned them, so their scores are too low and the false-alarm rate would be broken",
            "score images that it has not learned",
        )
    return rows


def _failed_units(path: Path) -> set[str]:
    return {line["unit"] for line in read_csv(path, FAILURE_COLUMNS)} if path.exists() else set()


def _refuse_rejects(normal: Sequence[Row], path: Path) -> None:
    """Refuse images that were all rejected: a threshold set on overruled rejects lets nearly everything pass."""
    if normal and not any(row["decision"] == Decision.NORMAL for row in normal):
        raise DataError(
            f"{path} holds no image that was decided normal, only overruled rejects",
            "they are the highest of all normal images, so a threshold set on them lets defects pass",
            "give scores.csv of everything that was inspected, and the verdicts with --verdicts",
        )


def _too_many_rejects(normal: Sequence[Row], info: Path) -> str:
    """Say so where the share of rejects is above all that the promised rate leaves open, by groups if there are any.

    What calibration images make of an asked rate varies with their number, too: no interval of both may overlap.
    """
    stored = (read_json(info).get("threshold") or {}).get("image")
    threshold = Threshold.from_json(stored) if stored else None
    if threshold is None or threshold.rule != "false_alarm_rate" or not normal:
        return ""
    asked, rejected = parse_rate(threshold.rate), [row["decision"] == Decision.ANOMALOUS for row in normal]
    _, intervals = rate(rejected, groups_if_any(row["group"] for row in normal), confidence=SURE)
    n_calibration = threshold.n if threshold.n_groups is None else threshold.n_groups
    if intervals[0].low <= clopper_pearson(float(asked), n_calibration, SURE, "", "").high:
        return ""
    return (
        f"{sum(rejected)} of the {n_of(len(normal), 'image')} taken as normal had been rejected, where the threshold "
        f"promised {percent_text(asked)}: are there defects among them, or was the sample selected?"
    )


def _plain_numbers(run: Path, lines: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the plain numbers of every image from ``scores.jsonl``, where that is there; it has to name the same."""
    path = run / "scores.jsonl"
    if not path.exists():
        return {}
    rows = read_rows(path)
    refuse_other_images(run, rows, [line["id"] for line in lines])
    with reading(path):
        return {row["id"]: row["baselines"] for row in rows}


def _statistics(plain: Mapping[str, Mapping[str, float]], normal: Sequence[Row]) -> dict[str, list[float]]:
    """Return the plain numbers by their name, in the order of the normal images."""
    if not normal or not plain:
        return {}
    kept = [plain[row["id"]] for row in normal]
    return {name: [one[name] for one in kept] for name in kept[0]}


def _is_suspect(row: Row) -> bool:
    return is_suspect(row["label"], row.get("extra", row))  # ``scores.csv`` has the columns of ``extra`` beside its own


def _calibration(rows: Sequence[Row]) -> CalibrationScores:
    scores = [row["score"] for row in rows]  # the largest pixel is the score: pooling max, which the caller makes sure
    units, groups = [row["unit"] for row in rows], [row["group"] for row in rows]
    return calibration_scores(scores, scores, units, groups, counted_rows(rows))
