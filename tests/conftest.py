"""What several test files share: small embedded data, and a detector fitted on it once per session.

Nobody writes into the shared folder or changes the shared detector; a test that must, copies.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# The same examples in every run, and no complaint where a machine is busy.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")

# On images of 64 px a second thread costs more than it gains. Also for subprocesses; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from anomaly_ae.detector import Detector
    from anomaly_ae.manifest import Manifest


@pytest.fixture(scope="session", autouse=True)
def private_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Salt and key file of the patients in the tests; never those of whoever runs them."""
    folder = tmp_path_factory.mktemp("private")
    os.environ["ANOMALY_AE_PRIVATE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def part_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 normal parts to fit on in 16 lots, 15 normal ones and 6 x 4 defects to test on; 64 px, 8 bit."""
    from anomaly_ae.synthetic import make_dataset

    folder = tmp_path_factory.mktemp("embedded") / "part"
    return make_dataset(folder, "part", n_train=80, n_test_normal=15, n_per_defect=4, size_px=64)


@pytest.fixture(scope="session")
def part_manifest(part_folder: Path) -> Manifest:
    """The manifest of `part_folder`."""
    from anomaly_ae.manifest import load_manifest

    return load_manifest(part_folder)


@pytest.fixture(scope="session")
def smoke_detector(part_manifest: Manifest) -> Detector:
    """A detector of the smoke preset: everything in it is real but its figures. On the CPU."""
    from anomaly_ae.config import load_config
    from anomaly_ae.fitting import fit

    return fit(part_manifest, load_config("smoke"), device="cpu")


@pytest.fixture(scope="session")
def smoke_model_file(smoke_detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same detector in its file."""
    path = tmp_path_factory.mktemp("model") / "smoke.safetensors"
    smoke_detector.save(path)
    return path
