"""The tables and figures of a RUN, from its rows: works on saved scores, without images, model or torch.

The format of every file: docs/reference/results.md.
"""

from anomaly_ae.results.beside import DEFECT_RATES, shortcut_figures
from anomaly_ae.results.deciding import Redecided, redecide, regions_note
from anomaly_ae.results.figures import figures, run_metrics
from anomaly_ae.results.finished import NO_GROUPS, FinishedScores, anomalous_scores, finished_scores
from anomaly_ae.results.pixels import (
    PixelFigures,
    no_pixel_figures,
    pixel_figures,
    read_pixel_counts,
    write_pixels,
)
from anomaly_ae.results.review import chosen_on_these, figure_line, images_sha256, limit_lines, review_lines
from anomaly_ae.results.rows import decide_rows, failure_row, score_row, unit_label, unit_rows
from anomaly_ae.results.tables import (
    FAILURE_COLUMNS,
    FORMAT,
    SCORE_COLUMNS,
    UNIT_COLUMNS,
    Row,
    read_json,
    read_rows,
    read_scores,
    write_csv,
    write_json,
    write_tables,
)

__all__ = [
    "DEFECT_RATES",
    "FAILURE_COLUMNS",
    "FORMAT",
    "NO_GROUPS",
    "SCORE_COLUMNS",
    "UNIT_COLUMNS",
    "FinishedScores",
    "PixelFigures",
    "Redecided",
    "Row",
    "anomalous_scores",
    "chosen_on_these",
    "decide_rows",
    "failure_row",
    "figure_line",
    "figures",
    "finished_scores",
    "images_sha256",
    "limit_lines",
    "no_pixel_figures",
    "pixel_figures",
    "read_json",
    "read_pixel_counts",
    "read_rows",
    "read_scores",
    "redecide",
    "regions_note",
    "review_lines",
    "run_metrics",
    "score_row",
    "shortcut_figures",
    "unit_label",
    "unit_rows",
    "write_csv",
    "write_json",
    "write_pixels",
    "write_tables",
]
