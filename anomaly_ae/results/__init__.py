"""The tables and figures of a RUN, from its rows: works on saved scores, without images, model or torch.

The format of every file: docs/reference/results.md.
"""

from anomaly_ae.results.deciding import Redecided, redecide, regions_note
from anomaly_ae.results.figures import baseline_figures, figures, groups_if_any, run_metrics
from anomaly_ae.results.rows import decide_rows, score_row, unit_rows
from anomaly_ae.results.tables import (
    FAILURE_COLUMNS,
    FORMAT,
    SCORE_COLUMNS,
    UNIT_COLUMNS,
    Row,
    read_json,
    read_rows,
    write_json,
    write_tables,
)

__all__ = [
    "FAILURE_COLUMNS",
    "FORMAT",
    "SCORE_COLUMNS",
    "UNIT_COLUMNS",
    "Redecided",
    "Row",
    "baseline_figures",
    "decide_rows",
    "figures",
    "groups_if_any",
    "read_json",
    "read_rows",
    "redecide",
    "regions_note",
    "run_metrics",
    "score_row",
    "unit_rows",
    "write_json",
    "write_tables",
]
