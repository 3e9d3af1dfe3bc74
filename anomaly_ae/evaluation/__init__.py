"""`score` and `evaluate`: images, or scores of any tool, into a RUN folder with its figures and its report.

==========  =================================================================
`folder`    the folder of a run, whole or not there
`facts`     what is said of a run besides its figures
`result`    what a finished run says on the terminal
`samples`   which rows of a manifest are measured
`run`       samples through the detector into a run
`theirs`    scores and maps of another tool
`scores`    the same run from them, without a model
==========  =================================================================
"""

from anomaly_ae.evaluation.folder import new_folder, refuse_existing
from anomaly_ae.evaluation.result import RunResult
from anomaly_ae.evaluation.run import RunOptions, evaluate, score
from anomaly_ae.evaluation.samples import test_samples
from anomaly_ae.evaluation.scores import evaluate_scores

__all__ = [
    "RunOptions",
    "RunResult",
    "evaluate",
    "evaluate_scores",
    "new_folder",
    "refuse_existing",
    "score",
    "test_samples",
]
