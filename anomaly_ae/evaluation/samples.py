"""Which rows of a manifest figures are computed on."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.manifest import Manifest
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.records import Sample


def test_samples(manifest: Manifest) -> tuple[Sample, ...]:
    """Return the rows that figures are computed on.

    Slices without a label of an anomalous volume are among them: nobody knows which show it, but the patient counts.
    """
    labelled = [s for s in manifest.samples if s.label or is_suspect(s.label, s.extra)]
    has_splits = any(s.split for s in labelled)
    samples = tuple(s for s in labelled if s.split == "test" or not has_splits)
    if not samples:
        raise DataError(
            f"no labelled test images in {manifest.place}",
            "figures need images that are known to be normal or anomalous",
            "give a folder with test/good and test/<defect>, or a CSV with label and split; or use score",
        )
    return samples


def refuse_unknown_columns(samples: Sequence[Sample], columns: Sequence[str]) -> None:
    """Raise `UsageError` for a column that the manifest does not have."""
    known = sorted({name for sample in samples for name in sample.extra})
    for column in columns:
        if column == "defect":
            raise UsageError("--by defect", "every run has the figures of each kind of defect anyway", "leave it out")
        if column not in known:
            fix = f"its own columns: {', '.join(known) or 'none'}"
            raise UsageError(f"no column '{column}' of your own in the manifest", "", fix)
