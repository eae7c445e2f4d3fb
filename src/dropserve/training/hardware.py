"""What a recipe's device, devices and precision mean on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dropserve.errors import UsageError
from dropserve.training.recipe import TrainingTable


@dataclass(frozen=True)
class Hardware:
    """Where and how a training runs.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        devices: how many of them, each with a process of its own.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.
    """

    device: str
    devices: int = 1
    precision: str = "32"

    def __str__(self) -> str:
        count = "" if self.devices == 1 else f"{self.devices} x "
        return f"{count}{self.device}" + ("" if self.precision == "32" else f", {self.precision}")


def choose_hardware(settings: TrainingTable) -> Hardware:
    """Turn ``auto`` into the best there is, and check the rest.

    Mixed precision helps where matrices have units of their own for it: ``auto`` means bfloat16 on GPUs that
    compute with it (compute capability 8.0 and later), else 32 bits.

    Raises:
        UsageError: if what was asked for is not there.
    """
    device = choose_device(settings.device)
    _check_count(device, settings)
    precision = settings.precision
    if precision == "auto":
        brain = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(device, settings.devices, "bf16-mixed" if brain else "32")
    if precision == "16-mixed" and device == "cpu":
        raise UsageError(
            "training.precision: got '16-mixed', which needs a GPU; allowed on cpu: auto, 32, bf16-mixed"
        )
    return Hardware(device, settings.devices, precision)


def choose_device(wanted: str) -> str:
    """Turn ``auto`` into the best device there is.

    Raises:
        UsageError: if the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        usable = ", ".join(name for name in there if there[name])
        raise UsageError(
            f"device: got {wanted!r}, which torch {torch.__version__} does not see here; "
            f"allowed: auto, {usable}"
        )
    return wanted


def _check_count(device: str, settings: TrainingTable) -> None:
    count = settings.devices
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device)
    if most is not None and count > most:
        raise UsageError(f"training.devices: got {count}; allowed on {device} here: 1 to {most}")
