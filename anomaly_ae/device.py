"""What the work runs on: a GPU or the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from anomaly_ae.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to work on: ``auto`` takes a GPU when there is one.

    Raises
    ------
    UsageError
        The named device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        usable = ", ".join(["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        fix = f"usable here: {usable}; others need a torch that is built for them"
        raise UsageError(f"no device '{name}' here", "torch cannot use it", fix) from error
    return device


def describe_device(device: torch.device) -> str:
    """Say what the work runs on, and what a GPU that torch cannot use would need."""
    if device.type == "cuda":
        return f"the GPU ({torch.cuda.get_device_name(device)})"
    hint = ""
    if torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
        hint = "; there is an NVIDIA GPU, but this torch is built for the CPU only (docs/how-to/offline.md)"
    return f"the CPU ({torch.get_num_threads()} threads{hint})"
