"""Judging saved runs, without images, model or torch.

============  =========================================================================================
`runs`        a saved run, and what is decided in it: images or units
`tables`      one table as text, Markdown, LaTeX, and as CSV
`pairing`     runs that differ in their seed alone as one row; the images that all runs share
`measuring`   figures of every variant, with paired differences to the first
`pixels`      figures of pixels, with paired differences from counts per image
`comparing`   figures side by side, and which images changed sides
`gates`       demands on sensitivity and false-alarm rate, met or not
`golden`      images whose decision is known beforehand
`junit`       the outcome of gates and golden images for a pipeline
`msa`         repeatability and reproducibility of decisions and scores
============  =========================================================================================
"""

from anomaly_ae.judging.comparing import Comparison, compare_runs
from anomaly_ae.judging.gates import Outcome, check_gates
from anomaly_ae.judging.golden import check_golden
from anomaly_ae.judging.junit import write_junit
from anomaly_ae.judging.msa import MeasurementStudy, study_run
from anomaly_ae.judging.runs import SavedRun, load_run
from anomaly_ae.judging.tables import targets

__all__ = [
    "Comparison",
    "MeasurementStudy",
    "Outcome",
    "SavedRun",
    "check_gates",
    "check_golden",
    "compare_runs",
    "load_run",
    "study_run",
    "targets",
    "write_junit",
]
