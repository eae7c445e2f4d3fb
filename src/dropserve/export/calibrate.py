"""Calibrates a version's Monte Carlo answers on the held-out rows of its run, with the exported graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.errors import DropserveError, ExportError
from dropserve.manifest import RunManifest
from dropserve.report.evidence import HeldOut
from dropserve.store import Stored
from dropserve.uncertainty.choices import Choices
from dropserve.uncertainty.distances import fit_parts
from dropserve.uncertainty.fitting import calibrate_classifier, calibrate_regressor
from dropserve.uncertainty.ood import AUTO, GRAPHS, OodThreshold, graph_score
from dropserve.uncertainty.record import Calibration
from dropserve.uncertainty.regression import split_head

from .artefacts import HEAD, MODEL, TRUNK, Artefacts, example_batch
from .comparison import Array
from .familiarity import Familiarity, apart, require_comparable
from .nearest import NEAREST, write_nearest, write_program
from .onnx import OnnxProgram
from .settings import ExportSettings
from .subject import Subject

VALIDATION, CALIBRATION, REFERENCE = "validation.npz", "calibration.npz", "reference.npz"
TEST = "test.npz"
TARGET = "target"
MOST_ROWS = 5000  # coverage is then within 0.9 points of what was asked, 19 times of 20
_MOST_NUMBERS = 2**26  # of all samples
_PASS = 256  # rows of the deterministic graph at a time


def with_nearest(
    run: Stored[RunManifest], subject: Subject, artefacts: Artefacts, settings: ExportSettings
) -> Artefacts:
    """The same with the graph that compares rows with training rows, where samples can be drawn.

    Where the score is ``auto`` and the run kept no training rows, or its rows cannot be compared, there is
    no such graph, and a note says why.

    Raises:
        ExportError: if the recipe chose ``nearest``, and the run kept no training rows or the model's hidden
            layers cannot be compared.
    """
    chosen = Choices.of(run.manifest.recipe).ood_score
    if not artefacts.sites or chosen not in GRAPHS:
        return artefacts
    if chosen == AUTO:
        if run.manifest.task == "raw" or REFERENCE not in run.manifest.files:
            return artefacts
        try:
            bank, _ = apart(_reference(run, artefacts))
            require_comparable(subject, bank)
            (spec,) = subject.inputs
            program = Familiarity(subject, bank[spec.name])
            written = write_program(program, subject, example_batch(subject), settings, artefacts.folder)
        except ExportError as error:
            (artefacts.folder / NEAREST).unlink(missing_ok=True)
            note = f"rows are not compared with training rows: {error}"
            return replace(artefacts, notes=(*artefacts.notes, note))
        return replace(artefacts, paths={**artefacts.paths, **written})
    if REFERENCE not in run.manifest.files:
        raise ExportError(f"the run has no training rows to compare with ({REFERENCE}); train again")
    rows = _reference(run, artefacts)
    written = write_nearest(subject, rows, example_batch(subject), settings, artefacts.folder)
    return replace(artefacts, paths={**artefacts.paths, **written})


def _reference(run: Stored[RunManifest], artefacts: Artefacts) -> dict[str, Array]:
    """Training rows that the run kept, by the name of the input."""
    with np.load(run.path(REFERENCE), allow_pickle=False) as arrays:
        return {s.name: arrays[s.name].astype(s.numpy_dtype) for s in artefacts.signature.inputs}


def held_out(run: Stored[RunManifest], artefacts: Artefacts) -> HeldOut | str:
    """Ask the exported graphs about the held-out rows, as a server would at its default settings.

    Args:
        run: verified; its ``calibration.npz``, or ``validation.npz`` where no rows were set aside to
            calibrate, holds the inputs by name and ``target``.
        artefacts: the graphs.

    Returns:
        The answers to at most ``MOST_ROWS`` rows, or why there are none.
    """
    file = next((name for name in (CALIBRATION, VALIDATION) if name in run.manifest.files), None)
    if file is None:
        return f"the run has no held-out rows ({VALIDATION})"
    with np.load(run.path(file), allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    missing = [name for name in (*(s.name for s in artefacts.signature.inputs), TARGET) if name not in held]
    if missing:
        return f"{file} lacks {', '.join(missing)}"
    if len(artefacts.signature.outputs) != 1:
        return f"the model has {len(artefacts.signature.outputs)} outputs, and one target cannot judge them"
    try:
        found = _ask(artefacts, held)
        if NEAREST in artefacts.paths and Choices.of(run.manifest.recipe).ood_score == AUTO:
            _, others = apart(_reference(run, artefacts))
            rows = len(next(iter(others.values())))
            found = replace(found, compared=_in_passes(OnnxProgram(artefacts.paths[NEAREST]), others, rows))
        return _parted(found) if run.manifest.preprocessing.heteroscedastic else found
    except DropserveError as error:
        return str(error)


def ask_test_rows(run: Stored[RunManifest], artefacts: Artefacts) -> HeldOut | None:
    """Ask the exported graphs about the test rows whose inputs the run kept, as :func:`held_out` does.

    They calibrate nothing: the report tells on them how often sets and intervals hold the truth.
    """
    names = [spec.name for spec in artefacts.signature.inputs]
    if TEST not in run.manifest.files or len(artefacts.signature.outputs) != 1:
        return None
    with np.load(run.path(TEST), allow_pickle=False) as arrays:
        if not all(name in arrays for name in names):
            return None
        held = {name: arrays[name] for name in names}
        rows = len(held[names[0]])
        held[TARGET] = arrays[TARGET][:rows]
    if not rows:
        return None
    try:
        found = _ask(artefacts, held)
        return _parted(found) if run.manifest.preprocessing.heteroscedastic else found
    except DropserveError:
        return None  # said of the held-out rows, which went through the same graphs before


def _ask(artefacts: Artefacts, held: Mapping[str, Array]) -> HeldOut:
    settings, specs = Settings(), artefacts.signature.inputs
    per_row = settings.samples * int(np.prod(artefacts.signature.outputs[0].sized()))
    available = len(held[TARGET])
    count = min(available, MOST_ROWS, max(1, _MOST_NUMBERS // per_row))
    chosen = np.sort(np.random.default_rng(0).permutation(available)[:count])
    inputs = {spec.name: held[spec.name][chosen].astype(spec.numpy_dtype) for spec in specs}
    plain = _in_passes(OnnxProgram(artefacts.paths[MODEL]), inputs, count)
    samples = _sample(artefacts, inputs, settings) if artefacts.sites else None
    found = HeldOut(inputs, held[TARGET][chosen], plain, samples, settings, available)
    if NEAREST not in artefacts.paths:
        return found
    nearest = _in_passes(OnnxProgram(artefacts.paths[NEAREST]), inputs, count)
    return replace(found, nearest=nearest.astype(np.float64))


def _in_passes(program: OnnxProgram, inputs: Mapping[str, Array], count: int) -> Array:
    """The one output of a program for all rows."""
    parts = [
        next(iter(program({name: array[at : at + _PASS] for name, array in inputs.items()}).values()))
        for at in range(0, count, _PASS)
    ]
    return np.concatenate(parts)


def _parted(held: HeldOut) -> HeldOut:
    """The same, values and variances of a heteroscedastic head apart."""
    plain, plain_noise = (part[..., None] for part in split_head(held.plain))
    if held.samples is None:
        return replace(held, plain=plain, plain_noise=plain_noise)
    samples, noise = (part[..., None] for part in split_head(held.samples))
    return replace(held, plain=plain, samples=samples, noise=noise, plain_noise=plain_noise)


def _sample(artefacts: Artefacts, inputs: Mapping[str, Array], settings: Settings) -> Array:
    head = OnnxProgram(artefacts.paths[HEAD])
    engine = MonteCarlo(
        artefacts.sites,
        head,
        OnnxProgram(artefacts.paths[TRUNK]) if TRUNK in artefacts.paths else None,
        head_inputs=set(head.inputs) - {spec.name for spec in artefacts.masks},
        specs=artefacts.signature.inputs,
    )
    (samples,) = engine.samples(dict(inputs), settings).values()
    return samples


def calibrate(
    run: Stored[RunManifest], artefacts: Artefacts, held: HeldOut | str | None = None
) -> tuple[dict[str, JsonValue] | None, str]:
    """Calibrate on what the graphs answer to held-out rows.

    Where the run set no rows aside for this, the validation rows calibrate. They chose the epoch, so they are
    not quite as fresh as the theory of conformal prediction wants them. The loss is small in practice (Liang
    et al., "Conformal inference is (almost) free for neural networks trained with early stopping", ICML
    2023); the line says which rows they were.

    Args:
        run: verified.
        artefacts: the graphs.
        held: what :func:`held_out` gave; it is asked for if left out.

    Returns:
        What stands in the manifest under ``calibration`` (None if nothing could be calibrated), and a line
        for people that says what came of it, or why nothing did.
    """
    manifest = run.manifest
    if not artefacts.sites or manifest.task == "raw":
        return None, "not calibrated: only the Monte Carlo answers of classifiers and regressors are"
    held = held_out(run, artefacts) if held is None else held
    if isinstance(held, str):
        return None, f"not calibrated: {held}"
    try:
        record, line = _fit(manifest.task == "classification", artefacts, held, Choices.of(manifest.recipe))
    except DropserveError as error:
        return None, f"not calibrated: {error}"
    return record.to_json(), f"calibrated on {record.rows} held-out rows{which(run)}: {line}"


def which(run: Stored[RunManifest]) -> str:
    """What else the rows of a calibration had decided, in brackets; nothing if they decided nothing."""
    if CALIBRATION in run.manifest.files:
        return " set aside for it"
    return " (which also chose the epoch)" if run.manifest.recipe else ""


def _fit(classes: bool, artefacts: Artefacts, held: HeldOut, choices: Choices) -> tuple[Calibration, str]:
    settings, sites, samples = held.settings, artefacts.sites, held.samples
    assert samples is not None  # noqa: S101  # for the type checker: there are sites
    flat = samples.reshape(settings.samples, held.rows, -1)
    score, parts = choices.ood_score, ()
    if score == AUTO:
        score = AUTO if held.compared is not None else "predictive_entropy"
        parts = () if held.compared is None else fit_parts(held.compared, choices.false_alarms)
    if classes:
        record = calibrate_classifier(
            flat,
            held.target,
            held.inputs,
            settings=settings,
            sites=sites,
            method=choices.sets,
            class_conditional=choices.class_conditional,
            score=score,
            false_alarms=choices.false_alarms,
            nearest=held.nearest,
            parts=parts,
            plain=held.plain.reshape(held.rows, -1),
        )
        return record, _classifier_line(record)
    target = held.target.reshape(held.rows, -1).astype(np.float64)
    record = calibrate_regressor(
        flat, target, settings=settings, sites=sites, variances=held.noise, method=choices.intervals
    )
    if score in GRAPHS and held.nearest is not None:
        values = graph_score(score, held.nearest, parts)
        ood = OodThreshold.fit(values, score=score, false_alarms=choices.false_alarms, parts=parts)
        record = replace(record, ood=ood)
    return record, _regressor_line(record)


def _classifier_line(record: Calibration) -> str:
    found, before, after = record.temperature, record.before, record.after
    assert found is not None  # noqa: S101  # for the type checker
    line = f"temperature {found.value:.3f}"
    if before is not None and after is not None:
        line += (
            f"; cross-validated: likelihood loss {before.nll:.4f} -> {after.nll:.4f}, calibration error "
            f"{before.ece:.4f} -> {after.ece:.4f} (bins of equal mass: {before.ece_mass:.4f} -> "
            f"{after.ece_mass:.4f})"
        )
    return _noted(line, record)


def _regressor_line(record: Calibration) -> str:
    assert record.scaling is not None  # noqa: S101  # for the type checker
    line = f"deviations times {', '.join(f'{factor:.3f}' for factor in record.scaling.factors)}, noise by row"
    if record.precision:
        noise = ", ".join(f"{p.variance**0.5:.4g}" for p in record.precision)
        line = f"standard deviation of the noise {noise}"
    return _noted(line, record)


def _noted(line: str, record: Calibration) -> str:
    """The line, the out-of-distribution score, and what so few rows mean for it."""
    score = [] if record.ood is None else [f"out of distribution by {record.ood.score}"]
    return "; ".join([line, *score, *record.notes()])
