"""Finds anomalies in images with an autoencoder trained on normal images only.

>>> from anomaly_ae import Detector
>>> Detector.load("no.safetensors")
Traceback (most recent call last):
anomaly_ae.errors.ModelFileError: cannot read no.safetensors: No such file or directory (check the path)

Heavy packages are loaded on first use (PEP 562): ``import anomaly_ae`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.version import __version__

if TYPE_CHECKING:
    from anomaly_ae.config import Config, load_config
    from anomaly_ae.detector import Detector
    from anomaly_ae.evaluation import RunOptions, evaluate, score
    from anomaly_ae.fitting import calibrate, fit
    from anomaly_ae.listener import Listener
    from anomaly_ae.manifest import Manifest, load_manifest, scan
    from anomaly_ae.readers import read_image
    from anomaly_ae.records import Decision, Failure, Image, Region, Sample, Score

_HOME = {
    "Config": "config",
    "Decision": "records",
    "Detector": "detector",
    "Failure": "records",
    "Image": "records",
    "Listener": "listener",
    "Manifest": "manifest",
    "Region": "records",
    "RunOptions": "evaluation",
    "Sample": "records",
    "Score": "records",
    "calibrate": "fitting",
    "evaluate": "evaluation",
    "fit": "fitting",
    "load_config": "config",
    "load_manifest": "manifest",
    "read_image": "readers",
    "scan": "manifest",
    "score": "evaluation",
}

__all__ = [
    "AnomalyAEError",
    "Config",
    "Decision",
    "Detector",
    "Failure",
    "Image",
    "Listener",
    "Manifest",
    "Region",
    "RunOptions",
    "Sample",
    "Score",
    "__version__",
    "calibrate",
    "evaluate",
    "fit",
    "load_config",
    "load_manifest",
    "read_image",
    "scan",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'anomaly_ae' has no attribute '{name}'")
    return getattr(importlib.import_module(f"anomaly_ae.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
