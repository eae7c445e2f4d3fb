"""What an export knows when it writes its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.engine import Settings
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.store import Stored

Array = NDArray[np.generic]
LEAST = 100
MOST_NUMBERS = 5_000_000  # of all samples


@dataclass(frozen=True)
class HeldOut:
    """What the exported graphs answered to rows that were not trained on.

    Attributes:
        inputs: for the name of each input [B, ...], as a request would bring them.
        target: what is true [B] or [B, ...].
        plain: the deterministic answer [B, ...]: logits or values.
        samples: Monte Carlo answers [T, B, ...]; None without dropout sites.
        settings: how the samples were made.
        available: rows in the run, of which B were taken.
        noise: variance that a heteroscedastic head gives to each sample [T, B, 1]; None without one.
        plain_noise: the same of the deterministic answer [B, 1].
        nearest: what the graph that compares rows with training rows gave [B] or [B, columns]; None without.
        compared: the same for training rows that the graph does not hold, for the score ``auto``.
    """

    inputs: Mapping[str, Array]
    target: Array
    plain: Array
    samples: Array | None
    settings: Settings
    available: int
    noise: Array | None = None
    plain_noise: Array | None = None
    nearest: Array | None = None
    compared: Array | None = None

    @property
    def rows(self) -> int:
        """B."""
        return len(self.target)

    def thinned(self) -> HeldOut:
        """The same, but for so few rows, evenly spaced, that a page is written within a second or two."""
        numbers = self.settings.samples * max(1, int(np.prod(self.plain.shape[1:])))
        most = max(LEAST, MOST_NUMBERS // numbers)
        if self.rows <= most:
            return self
        kept = np.linspace(0, self.rows - 1, most).round().astype(np.intp)
        return replace(
            self,
            inputs={name: array[kept] for name, array in self.inputs.items()},
            target=self.target[kept],
            plain=self.plain[kept],
            samples=None if self.samples is None else self.samples[:, kept],
            noise=None if self.noise is None else self.noise[:, kept],
            plain_noise=None if self.plain_noise is None else self.plain_noise[kept],
            nearest=None if self.nearest is None else self.nearest[kept],
        )


@dataclass(frozen=True)
class Evidence:
    """All that a report is written from.

    Attributes:
        run: what was exported, verified.
        manifest: of the version that will be published; its ``files`` are not filled in yet.
        folder: of the version, with its graphs.
        held: answers to held-out rows, or why there are none.
        calibrated: a line that says what calibration found, or why there is none.
        parity: figures of the parity checks, by name.
        notes: what the exporters had to say.
        seconds: how long each step took.
        tested: the same for test rows; None where the run kept none.
    """

    run: Stored[RunManifest]
    manifest: VersionManifest
    folder: Path
    held: HeldOut | str
    calibrated: str
    parity: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]
    seconds: Mapping[str, float]
    tested: HeldOut | None = None
