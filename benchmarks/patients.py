"""Slices and patients of a finished model, beside smoothed intensity, with intervals over patients.

    python benchmarks/patients.py MODEL DATA.csv [--out FILE.md] [--device auto]

MODEL is a model file, or a cell of the bench that holds one. The patient is the column `group`. Where every patient has
a lesion somewhere, as in brain_lgg_flair, no normal patient is there to tell a patient from: then a patient is measured
by itself, tumour slices against the slices without, and tumour pixels against the other pixels of the same patient.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from bench.measures import Inspected, inspected_images
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_ae.detector import Detector
from anomaly_ae.evaluation import RunOptions, evaluate
from anomaly_ae.files import write_text
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import load_manifest
from anomaly_ae.records import ANOMALOUS_LABEL, Sample

N_DRAWS, SEED = 2000, 0
SMOOTH_SIDE_PX, SIGMA_PX, N_BRIGHTEST = 128, 1.5, 80
Floats = npt.NDArray[np.float64]


class Slice(NamedTuple):
    """One test image: patient, truth, and score and map (H, W) of each method."""

    patient: str
    is_anomalous: bool
    mask: npt.NDArray[np.bool_]
    scores: dict[str, float]
    maps: dict[str, npt.NDArray[np.float32]]


def main() -> None:
    """Score, measure and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    model = asked.model / "model.safetensors" if asked.model.is_dir() else asked.model
    manifest = load_manifest(asked.data)
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / "run"
        evaluate(Detector.load(model, asked.device), manifest, run, RunOptions(heatmaps="none", maps=True))
        by_id = {sample.id: sample for sample in manifest.samples}
        slices = [slice_of(one, by_id[one.row["id"]]) for one in inspected_images(manifest, run)]
    text = table(slices)
    if asked.out:
        write_text(asked.out, text)
    print(text)


def slice_of(one: Inspected, sample: Sample) -> Slice:
    """Return the score and the map of the model, and those of smoothed intensity."""
    grey = read_sample(sample).pixels[0].astype(np.float32)
    small, full = smoothed(grey)
    brightest = float(np.sort(small, axis=None)[-N_BRIGHTEST:].mean())
    mask = np.zeros(grey.shape, np.bool_) if one.mask is None else one.mask
    return Slice(
        patient=sample.group,
        is_anomalous=one.row["label"] == ANOMALOUS_LABEL,
        mask=mask,
        scores={"anomaly_ae": float(one.row["score"]), "smoothed intensity": brightest},
        maps={"anomaly_ae": tifffile.imread(one.map_path), "smoothed intensity": full},
    )


def smoothed(grey: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the image smoothed at 128 px, and that on its own grid again."""
    factors = [SMOOTH_SIDE_PX / length for length in grey.shape]
    small = ndimage.gaussian_filter(ndimage.zoom(grey, factors, order=1, grid_mode=True, mode="nearest"), SIGMA_PX)
    back = [length / side for length, side in zip(grey.shape, small.shape, strict=True)]
    return small, ndimage.zoom(small, back, order=1, grid_mode=True, mode="nearest")


def table(slices: Sequence[Slice]) -> str:
    """Return all figures of both methods and their differences."""
    patients: defaultdict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        patients[one.patient].append(one)
    groups = list(patients.values())
    n_anomalous = sum(one.is_anomalous for one in slices)
    n_ill = sum(any(one.is_anomalous for one in own) for own in groups)
    lines = [
        f"{len(slices)} slices, {n_anomalous} of them anomalous, of {len(groups)} patients, {n_ill} with a lesion.",
        f"95 % intervals: {N_DRAWS} draws of whole patients, seed {SEED}; differences are of the same draws.",
        "",
        "| figure | n | anomaly_ae | smoothed intensity | difference |",
        "| --- | --- | --- | --- | --- |",
        *(line(name, measure(groups)) for name, measure in FIGURES.items()),
    ]
    return "\n".join(lines) + "\n"


class Measured(NamedTuple):
    """A figure of both methods, and of both in every draw of patients, (draws,)."""

    n: str
    values: dict[str, float]
    draws: dict[str, Floats]


def line(name: str, found: Measured) -> str:
    """Return one line of the table."""
    ours, theirs = found.values.values()
    our_draws, their_draws = found.draws.values()
    cells = (
        with_interval(ours, our_draws),
        with_interval(theirs, their_draws),
        with_interval(ours - theirs, our_draws - their_draws, sign="+"),
    )
    return f"| {name} | {found.n} | {' | '.join(cells)} |"


def with_interval(value: float, draws: Floats, sign: str = "") -> str:
    """Return a value and the middle 95 % of its draws."""
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def drawn(groups: Sequence[list[Slice]]) -> list[npt.NDArray[np.intp]]:
    """Return the patients of every draw, the same for all figures."""
    generator = np.random.default_rng(SEED)
    return [generator.integers(len(groups), size=len(groups)) for _ in range(N_DRAWS)]


def over_slices(figure: Callable[[Any, Any], float], groups: Sequence[list[Slice]]) -> Measured:
    """Measure all slices together."""
    labels = [np.array([one.is_anomalous for one in own]) for own in groups]
    values, draws = {}, {}
    for method in groups[0][0].scores:
        scores = [np.array([one.scores[method] for one in own]) for own in groups]
        values[method] = figure(np.concatenate(labels), np.concatenate(scores))
        draws[method] = np.array([
            figure(np.concatenate([labels[g] for g in chosen]), np.concatenate([scores[g] for g in chosen]))
            for chosen in drawn(groups)
        ])  # fmt: skip
    return Measured(f"{sum(map(len, groups))} slices", values, draws)


def over_pixels(groups: Sequence[list[Slice]]) -> Measured:
    """Measure the average precision of all pixels together, on 4,096 steps of equal numbers of pixels."""
    values, draws = {}, {}
    for method in groups[0][0].maps:
        edges = steps([one.maps[method] for own in groups for one in own])
        counts = np.array([pixel_counts(own, method, edges) for own in groups])  # (patients, 2, steps)
        values[method] = precision_of(counts.sum(axis=0))
        draws[method] = np.array([precision_of(counts[chosen].sum(axis=0)) for chosen in drawn(groups)])
    return Measured(f"{sum(map(len, groups))} slices", values, draws)


def steps(maps: Sequence[npt.NDArray[np.float32]]) -> Floats:
    """Return where the values of maps are cut into steps."""
    some = np.concatenate([one.ravel()[::7] for one in maps])
    return np.unique(np.quantile(some, np.linspace(0, 1, 4097)[1:-1]))


def pixel_counts(own: Sequence[Slice], method: str, edges: Floats) -> Floats:
    """Return how many normal and anomalous pixels lie in each step, (2, steps)."""
    found = np.zeros((2, len(edges) + 1))
    for one in own:
        position = np.searchsorted(edges, one.maps[method].ravel(), side="right")
        for is_anomalous in (0, 1):
            found[is_anomalous] += np.bincount(position[one.mask.ravel() == is_anomalous], minlength=found.shape[1])
    return found


def precision_of(counts: Floats) -> float:
    """Return the average precision of counts (2, steps); not a number where there is nothing to find."""
    normal, anomalous = counts[:, ::-1].cumsum(axis=1)  # at least so anomalous
    precision = anomalous / np.maximum(normal + anomalous, 1)
    recall_steps = np.diff(anomalous, prepend=0)
    return float((precision * recall_steps).sum() / anomalous[-1]) if anomalous[-1] else float("nan")


def per_patient(of_one: Callable[[list[Slice], str], float], groups: Sequence[list[Slice]]) -> Measured:
    """Measure each patient by itself; the figure is the mean over patients that have it."""
    values, draws = {}, {}
    for method in groups[0][0].scores:
        own = np.array([of_one(group, method) for group in groups])
        values[method] = float(np.nanmean(own))
        draws[method] = np.array([np.nanmean(own[chosen]) for chosen in drawn(groups)])
    return Measured(f"{int(np.isfinite(own).sum())} patients", values, draws)


def own_roc_auc(own: list[Slice], method: str) -> float:
    """Tumour slices of a patient against the others of the same patient; not a number without both."""
    labels = [one.is_anomalous for one in own]
    return roc_auc_score(labels, [one.scores[method] for one in own]) if len(set(labels)) == 2 else float("nan")


def top_is_anomalous(own: list[Slice], method: str) -> float:
    """Whether the slice with the highest score has the lesion; not a number where all have, or none."""
    if len({one.is_anomalous for one in own}) < 2:
        return float("nan")
    return float(max(own, key=lambda one: one.scores[method]).is_anomalous)


def own_precision(own: list[Slice], method: str) -> float:
    """Average precision of the pixels of one patient."""
    edges = steps([one.maps[method] for one in own])
    return precision_of(pixel_counts(own, method, edges))


FIGURES: Mapping[str, Callable[[Sequence[list[Slice]]], Measured]] = {
    "per slice: ROC-AUC": partial(over_slices, roc_auc_score),
    "per slice: average precision": partial(over_slices, average_precision_score),
    "pixels of all slices: average precision": over_pixels,
    "per patient: ROC-AUC of the own slices, mean": partial(per_patient, own_roc_auc),
    "per patient: the highest slice has the lesion, share": partial(per_patient, top_is_anomalous),
    "per patient: average precision of the own pixels, mean": partial(per_patient, own_precision),
}

if __name__ == "__main__":
    main()
