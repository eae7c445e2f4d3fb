"""Calibrates a version's Monte Carlo answers on the held-out rows of its run, with the exported graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.statistics import softmax
from dropserve.errors import DropserveError
from dropserve.manifest import RunManifest
from dropserve.store import Stored
from dropserve.uncertainty.fitting import calibrate_classifier, calibrate_regressor
from dropserve.uncertainty.metrics import ece
from dropserve.uncertainty.record import Calibration

from .artefacts import HEAD, TRUNK, Artefacts
from .comparison import Array
from .onnx import OnnxProgram

VALIDATION, TARGET = "validation.npz", "target"
MOST_ROWS = 5000  # coverage is then within 0.9 points of what was asked, 19 times of 20
_MOST_NUMBERS = 2**26  # of all samples


def calibrate(run: Stored[RunManifest], artefacts: Artefacts) -> tuple[dict[str, JsonValue] | None, str]:
    """Sample the held-out rows as a server would at its default settings, and calibrate on that.

    The rows decided when training stopped, so they are not quite as fresh as the theory of conformal
    prediction wants them; the more rows, the less that matters.

    Args:
        run: verified; its ``validation.npz`` holds the inputs by name and ``target``.
        artefacts: the graphs.

    Returns:
        What stands in the manifest under ``calibration`` (None if nothing could be calibrated), and a line
        for people that says what came of it, or why nothing did.
    """
    manifest = run.manifest
    if not artefacts.sites or manifest.task == "raw":
        return None, "not calibrated: only the Monte Carlo answers of classifiers and regressors are"
    if VALIDATION not in manifest.files:
        return None, f"not calibrated: the run has no held-out rows ({VALIDATION})"
    with np.load(run.path(VALIDATION), allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    missing = [name for name in (*(s.name for s in artefacts.signature.inputs), TARGET) if name not in held]
    if missing:
        return None, f"not calibrated: {VALIDATION} lacks {', '.join(missing)}"
    try:
        record, line = _fit(manifest.task == "classification", artefacts, held)
    except DropserveError as error:
        return None, f"not calibrated: {error}"
    return record.to_json(), f"calibrated on {record.rows} held-out rows: {line}"


def _fit(classes: bool, artefacts: Artefacts, held: Mapping[str, Array]) -> tuple[Calibration, str]:
    settings, specs = Settings(), artefacts.signature.inputs
    per_row = settings.samples * int(np.prod(artefacts.signature.outputs[0].sized()))
    count = min(len(held[TARGET]), MOST_ROWS, max(1, _MOST_NUMBERS // per_row))
    chosen = np.sort(np.random.default_rng(0).permutation(len(held[TARGET]))[:count])
    inputs = {spec.name: held[spec.name][chosen].astype(spec.numpy_dtype) for spec in specs}
    target = held[TARGET][chosen]
    head = OnnxProgram(artefacts.paths[HEAD])
    engine = MonteCarlo(
        artefacts.sites,
        head,
        OnnxProgram(artefacts.paths[TRUNK]) if TRUNK in artefacts.paths else None,
        head_inputs=set(head.inputs) - {spec.name for spec in artefacts.masks},
        specs=specs,
    )
    (samples,) = engine.samples(inputs, settings).values()
    flat = samples.reshape(settings.samples, count, -1)
    if classes:
        record = calibrate_classifier(flat, target, inputs, settings=settings, sites=artefacts.sites)
        mean = softmax(flat).mean(axis=0)
        return record, _classifier_line(record, mean, target)
    target = target.reshape(count, -1).astype(np.float64)
    record = calibrate_regressor(flat, target, settings=settings, sites=artefacts.sites)
    return record, _regressor_line(record)


def _classifier_line(record: Calibration, mean: Array, labels: Array) -> str:
    found = record.temperature
    assert found is not None  # noqa: S101  # for the type checker
    error = ece(found.probabilities(mean), labels)
    line = (
        f"temperature {found.value:.3f}, likelihood loss {found.nll_before:.4f} -> {found.nll_after:.4f}, "
        f"calibration error {ece(mean, labels):.4f} -> {error:.4f}"
    )
    return f"{line} (the {found.end} end of the range searched)" if found.end else line


def _regressor_line(record: Calibration) -> str:
    noise = ", ".join(f"{p.variance**0.5:.4g}" for p in record.precision)
    ends = [p.end for p in record.precision if p.end]
    line = f"standard deviation of the noise {noise}"
    return f"{line} (tau at the {ends[0]} end of the range searched)" if ends else line
