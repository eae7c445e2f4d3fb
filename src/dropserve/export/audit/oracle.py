"""Monte Carlo by masks against torch's own dropout: the same mean and the same spread."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from dropserve.dropout.masks import draw
from dropserve.dropout.mode import no_fused_attention
from dropserve.model import set_mode

from .masked_rows import affordable
from .observe import change, state_of
from .outcome import Examination, Outcome, failed, passed, skipped
from .probe import ForwardError, OutputError, Probe, Tensors

_SAMPLES = 256
_SAMPLES_OF_A_SLOW_MODEL = 64
_FEWEST = 20
_SLOW = 0.02  # seconds for one row
_SIGMAS = 6.0


def training_dropout(exam: Examination) -> Outcome:
    """Mean and variance over mask samples are those of torch's own dropout in train mode."""
    program, probe = exam.program, train_mode(exam)
    if program is None or probe is None:
        return skipped("not judged: the model cannot be copied, or changes itself in train mode")
    row = exam.subject.batch(1, seed=9)
    start = time.perf_counter()
    exam.probe(row)
    wanted = _SAMPLES if time.perf_counter() - start < _SLOW else _SAMPLES_OF_A_SLOW_MODEL
    count = min(wanted, affordable(program.sites))
    if count < _FEWEST:
        return skipped(f"not judged: {count} samples are all that fit, too few to compare distributions")
    rows = {name: tensor.expand(count, *tensor.shape[1:]).clone() for name, tensor in row.items()}
    torch.manual_seed(16)
    try:
        with no_fused_attention():
            expected = probe(rows)
    except (ForwardError, OutputError) as error:
        return skipped(f"not judged: the model does not run in train mode: {error}")
    drawn = draw(program.sites, count, seed=17, scheme="iid")
    masks = (torch.tensor(drawn[name]) for name in program.mask_names)
    with torch.no_grad():
        outputs = program(*rows.values(), *masks)
    got = dict(zip(program.output_names, outputs, strict=True))
    shared = [
        n for n in got if n in expected and got[n].shape == expected[n].shape and got[n].is_floating_point()
    ]
    if not shared:
        return skipped("not judged: outputs in train mode are others than in eval mode")
    worst = max((distance(expected[name], got[name]), name) for name in shared)
    evidence = (
        f"{count} samples of each: mean and variance within {worst[0]:.1f} standard errors ({worst[1]})"
    )
    if worst[0] <= _SIGMAS:
        return passed(evidence)
    return failed(
        f"{count} samples of each: {worst[1]} is {worst[0]:.1f} standard errors apart",
        "report this: the masks do not draw what torch's dropout draws here",
        program.sites[0].where,
    )


def train_mode(exam: Examination) -> Probe | None:
    """A copy in train mode, but for the modules that would change themselves (BatchNorm, spectral norm)."""
    if exam.fresh is None:
        return None
    model = set_mode(copy.deepcopy(exam.fresh), training=True)
    batch = exam.subject.batch(2, seed=10)
    for _ in range(4):
        before = {name: tensor.clone() for name, tensor in state_of(model).items()}
        try:
            Probe(exam.subject, model)(batch)
        except (ForwardError, OutputError):
            return None
        changed = change(before, state_of(model))
        if not changed:
            return Probe(exam.subject, model)
        _restore(model, before)
        for name in changed:
            model.get_submodule(name.rpartition(".")[0]).eval()
    return None


def distance(expected: torch.Tensor, got: torch.Tensor) -> float:
    """How many standard errors two samples of a distribution are apart, in mean and in variance.

    Args:
        expected: [samples, ...].
        got: [samples, ...].
    """
    a, b = (t.double().reshape(len(t), -1) for t in (expected, got))
    finite = a.isfinite().all(0) & b.isfinite().all(0)
    a, b = a[:, finite], b[:, finite]
    scale = a.abs().max().item() if a.numel() else 0.0
    spread = (a.var(0) + b.var(0)) / len(a)
    noise = (1e-6 * scale) ** 2  # rounding of float32
    mean = ((a.mean(0) - b.mean(0)).abs() / (spread + noise).sqrt()).nan_to_num(0)
    # The variance of all outputs together, each in its own unit; its error from the samples themselves.
    unit = (a.var(0) + b.var(0)).sqrt() + 1e-6 * scale
    squares = [(((t - t.mean(0)) / unit) ** 2).sum(1) for t in (a, b)]
    error = (squares[0].var() + squares[1].var()) / len(a)
    gap = (squares[0].mean() - squares[1].mean()).abs() / (error + 1e-12).sqrt()
    return max(float(mean.max()) if mean.numel() else 0.0, float(gap))


def _restore(model: nn.Module, before: Tensors) -> None:
    now = state_of(model)
    with torch.no_grad():
        for name, value in before.items():
            now[name].copy_(value)
