"""Does gradient mode change an answer: exporters and training run with it on, a server with it off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.export.edge_rows import PATTERNS

from . import locate
from .differ import ROUNDING, Difference, compare, widened
from .history import RANDOM
from .outcome import Examination, Outcome, failed, passed, skipped
from .places import Place
from .probe import ForwardError, OutputError, Tensors

REAL_ROWS = 64
_BRANCH = (
    "do not branch on torch.is_grad_enabled(), torch.is_inference_mode_enabled() or requires_grad in forward"
)
_MODES = {"with gradients on": {"grad": True}, "under torch.inference_mode()": {"inference": True}}
_NESTING = "in eval mode without gradients torch takes its nested-tensor path on padded rows"
NESTED = "build it as nn.TransformerEncoder(..., enable_nested_tensor=False)"
_FUSED = (
    "torch's fused attention, which it takes in eval mode without gradients alone, has another answer for "
    "these rows; call torch.backends.mha.set_fastpath_enabled(False), or let no output rest on padding"
)


def gradient_mode(exam: Examination) -> Outcome:
    """Outputs agree with gradients on, off, and in inference mode, on ordinary, padded and edge rows."""
    if exam.observation.random:
        return skipped(RANDOM)
    exact = dict.fromkeys(_MODES, True)
    worst, runs, refused = Difference(), 0, ""
    spare = exam.unused()  # a cache that inference mode fills can have no gradient later
    for name, batch in _batches(exam):
        ordinary = not name
        try:
            expected = exam.observation.outputs if ordinary else exam.probe(batch)
        except (ForwardError, OutputError):  # a model may refuse what is not ordinary
            continue
        for mode, options in _MODES.items():
            probe = spare if "inference" in options else exam.probe
            try:
                got = probe(batch, **options)
            except (ForwardError, OutputError) as error:
                refused = refused or f"the forward does not run {mode}: {error}" if ordinary else refused
                exact[mode] = exact[mode] and not ordinary
                continue
            runs += 1
            difference = compare(expected, got, finite=not ordinary)
            if not difference.within(exam.settings.tolerance):
                difference = _in_double(exam, batch, options, difference, finite=not ordinary)
            if not difference.within(exam.settings.tolerance):
                return _different(exam, name, batch, mode, difference, expected)
            worst = max(worst, difference, key=lambda found: found.relative)
    if not exact["with gradients on"]:
        return skipped(refused)
    modes = "on, off and in inference mode" if all(exact.values()) else "on and off"
    return passed(f"gradients {modes} agree in {runs} runs of ordinary, padded and edge rows: {worst.size}")


def _batches(exam: Examination) -> Iterator[tuple[str, Tensors]]:
    """The usual batch first, without a name."""
    yield "", exam.inputs
    if exam.subject.rows is not None:
        count = len(next(iter(exam.subject.rows.values())))
        yield "held-out", exam.subject.batch(min(count, REAL_ROWS), seed=22)
    yield from exam.subject.edge_batches(len(PATTERNS))
    if "missing" in exam.subject.kinds:
        yield "missing", exam.subject.batch(len(PATTERNS), seed=23, kind="missing")


def _in_double(
    exam: Examination, batch: Tensors, options: dict[str, bool], difference: Difference, *, finite: bool
) -> Difference:
    """The difference in float64 where it all but vanishes there: then it is rounding."""
    if difference.shape or exam.double is None:
        return difference
    try:
        wide = widened(batch)
        exact = compare(exam.double(wide), exam.double(wide, **options), finite=finite)
    except (ForwardError, OutputError):
        return difference
    return exact if exact.relative < ROUNDING * difference.relative else difference


def _different(
    exam: Examination, name: str, batch: Tensors, mode: str, difference: Difference, expected: Tensors
) -> Outcome:
    rows = f"{mode}, on {name} rows, " if name else f"{mode}, "
    fused = fused_attention(exam, batch, expected)
    if fused is not None:
        return failed(f"{rows}{difference}; {fused[0]}", *fused[1:])
    options = _MODES[mode]
    one = locate.recorded(exam.probe, batch)
    other = locate.recorded(exam.unused(), batch, **options)
    where = locate.first_new_value if "inference" in options else locate.first_divergence
    return failed(f"{rows}{difference}", _BRANCH, where(exam.probe, one, other))


def fused_attention(exam: Examination, batch: Tensors, expected: Tensors) -> tuple[str, str, Place] | None:
    """If the answer is another without torch's fused attention: why, what to do, and the module's place."""
    try:
        with no_fused_attention():
            slow = exam.probe(batch)
    except (ForwardError, OutputError):
        return None
    if compare(expected, slow, finite=True).within(exam.settings.tolerance):
        return None
    places: list[tuple[Place, bool]] = []

    def note(module: nn.Module, _args: object) -> None:
        if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer | nn.MultiheadAttention):
            nests = isinstance(module, nn.TransformerEncoder) and bool(
                getattr(module, "use_nested_tensor", module.enable_nested_tensor)
            )
            placer = exam.probe.placer
            place = replace(placer.here(), path=placer.name(module), kind=type(module).__name__)
            places.append((place, nests))

    handles = [module.register_forward_pre_hook(note) for module in exam.probe.module.modules()]
    try:
        exam.probe(batch)
    except (ForwardError, OutputError):
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not places:
        return None
    place, nests = next((found for found in places if found[1]), places[0])
    return (_NESTING, NESTED, place) if nests else ("by torch's fused attention", _FUSED, place)
