"""The wheel alone, away from the source tree, does what the checkout does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from anomaly_ae.synthetic import make_dataset

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (both are in the extra 'dev')"
        pytest.fail(reason) if os.environ.get("ANOMALY_AE_REQUIRE_TOOLS") else pytest.skip(reason)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel and nothing else; the packages it needs come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, folder: Path, *arguments: str) -> str:
    """Run Python on the unpacked wheel; ``-P`` keeps the current folder out of the import path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_the_package_and_its_files_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"anomaly_ae-{PROJECT['version']}.dist-info/"
    package = {name for name in names if not name.startswith(info)}
    in_tree = {path for path in (ROOT / "anomaly_ae").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    presets = {f"anomaly_ae/configs/{path.name}" for path in (ROOT / "configs").glob("*.toml")}
    assert presets
    assert package == presets | {path.relative_to(ROOT).as_posix() for path in in_tree}
    assert f"{info}licenses/LICENSE" in names


def test_wheel_says_the_same_as_pyproject(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"anomaly_ae-{PROJECT['version']}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode("utf-8")
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Requires-Python: {PROJECT['requires-python']}" in metadata
    assert "anomaly-ae = anomaly_ae.cli:main" in archive.read(f"{info}/entry_points.txt").decode("utf-8")


def test_fit_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "parts", n_train=40, n_test_normal=4, n_per_defect=1, size_px=64)
    fit = ("-m", "anomaly_ae", "fit", "parts", "--preset", "smoke", "--out", "m.safetensors")
    run_installed(installed, tmp_path, *fit)
    assert (tmp_path / "m.safetensors").stat().st_size > 0
    run_installed(installed, tmp_path, "-m", "anomaly_ae", "score", "m.safetensors", "parts/test", "--out", "run")
    n_images = len(list((tmp_path / "parts" / "test").rglob("*.png")))
    lines = (tmp_path / "run" / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + n_images


def test_modules_and_presets_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json, anomaly_ae, anomaly_ae.config as c\n"
        "paths = [anomaly_ae.__file__, *(str(c.preset_path(name)) for name in c.PRESETS)]\n"
        "[c.load_config(name) for name in c.PRESETS]\n"
        "print(json.dumps(paths))"
    )
    paths = [Path(text) for text in json.loads(run_installed(installed, tmp_path, "-c", code))]
    assert all(path.is_relative_to(installed) for path in paths)
