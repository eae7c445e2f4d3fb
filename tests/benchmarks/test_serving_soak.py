"""A leak that is planted in a real server is found, and found to be as large as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from growth import Verdict, trend
from served import NAME, prepare
from serving_soak import Watch, as_figures, watch

LEAKING = Path(__file__).parent / "leaking" / "handler.py"


def watched(seconds: float, growth: float) -> Watch:
    """A run of two answers a second in which the plain worker grows evenly, MiB an hour."""
    from load import Figures

    moments = np.arange(seconds)
    figures = {
        name: Figures(1000, 1000.0, {}, {"p50": 1.0}, [["x" * 1000]], 0, 1000) for name in ("plain", "mc")
    }
    still = np.full(len(moments), 100.0 * 2**20)
    memory = {"frontend": still * 2, NAME: still + growth * moments / 3600 * 2**20, f"{NAME}-mc": still}
    return Watch(figures, moments, memory, same=True, engine="torchserve")


def test_a_long_run_tells_flat_from_growing() -> None:
    assert as_figures(watched(600, 0.0), 10)["workers_flat"] is True
    assert as_figures(watched(600, 4.0), 10)["workers_flat"] is False  # one answer of a thousand is 3.43
    assert as_figures(watched(600, 2.0), 10)["workers_flat"] is True


def test_a_short_run_says_that_it_cannot_tell() -> None:
    figures = as_figures(watched(90, 0.0), 1.5)
    assert "workers_flat" not in figures
    assert "1.5 minutes are too short" in figures["not_run"]["workers_flat"]


@pytest.mark.slow
def test_a_planted_leak_is_found(tmp_path: Path) -> None:
    """Every other answer is kept: 500 times the bar, and a little more, since Python's bytes have a head."""
    found = watch(prepare(tmp_path, LEAKING), tmp_path, 25.0, "torchserve")
    assert found.same
    assert sum(sum(figures.errors.values()) for figures in found.figures.values()) == 0
    late = found.seconds > 8
    for name in (NAME, f"{NAME}-mc"):
        grown = trend(found.seconds[late], found.memory[name][late])
        assert grown.against(found.bar(name)) == Verdict.GROWS
        assert 0.8 < grown.slope / (500 * found.bar(name)) < 1.6
