"""Does the model run, and does it return what can be served: batched tensors without NaN."""

from __future__ import annotations

from . import locate
from .outcome import BATCH, Examination, Outcome, failed, passed, skipped
from .probe import ForwardError, OutputError


def forward_runs(exam: Examination) -> Outcome:
    """The eval-mode forward runs without an exception on an ordinary batch."""
    error = exam.observation.error
    asked = ", ".join(f"{BATCH}x{spec}" for spec in exam.subject.inputs)
    if isinstance(error, ForwardError):
        return failed(
            f"the forward raised {error} (inputs {asked})",
            "make forward accept these inputs, or give the shapes and dtypes that it expects",
            error.place,
        )
    return passed(f"{exam.observation.forwards} forwards of {BATCH} rows ({asked})")


def outputs_are_batched(exam: Examination) -> Outcome:
    """Outputs are tensors, and axis 0 of each is the batch."""
    seen = exam.observation
    if isinstance(seen.error, OutputError):
        return failed(
            f"the forward returned something else than tensors: {seen.error}",
            "return a tensor, or a tuple, list or dict of tensors",
            exam.probe.placer.root_place(),
        )
    more = exam.subject.batch(BATCH + 2, seed=1)
    wrong = {name: list(t.shape) for name, t in seen.outputs.items() if t.ndim == 0 or t.shape[0] != BATCH}
    if wrong:
        name, shape = next(iter(wrong.items()))
        return failed(
            f"{name} has shape {shape} for a batch of {BATCH} rows; its axis 0 must be the batch",
            "return one row of output for each row of input",
            locate.losing_the_batch(exam.probe, exam.inputs, more),
        )
    try:
        larger = exam.probe(more)
    except (ForwardError, OutputError):  # batch-sizes judges that
        larger = seen.outputs
    sizes = {n: (list(t.shape), list(larger[n].shape)) for n, t in seen.outputs.items() if n in larger}
    grown = next((name for name, (few, many) in sizes.items() if few[1:] != many[1:]), None)
    if grown is not None:
        few, many = sizes[grown]
        return failed(
            f"{grown} has shape {few} for {BATCH} rows and {many} for {BATCH + 2}: another axis than 0 grows",
            "compute each row from that row alone; a comparison of all rows with all is no answer to one",
            locate.growing_twice(exam.probe, exam.inputs, more),
        )
    shapes = ", ".join(f"{name}{list(t.shape)}" for name, t in seen.outputs.items())
    return passed(f"{shapes} for a batch of {BATCH}")


def finite_outputs(exam: Examination) -> Outcome:
    """Ordinary input gives no NaN."""
    outputs = exam.observation.outputs
    counts = {name: int(t.isnan().sum()) for name, t in outputs.items() if t.is_floating_point()}
    if any(counts.values()):
        name = max(counts, key=lambda key: counts[key])
        kind = exam.subject.kinds[0]
        return failed(
            f"{counts[name]} of {outputs[name].numel()} values of {name} are NaN on ordinary input ({kind})",
            "find the operation that makes them: a logarithm or root of a negative number, 0/0, inf-inf, "
            "or weights that training left as NaN",
            locate.first_nan(exam.probe, exam.inputs),
        )
    if not counts:
        return skipped("no output is a floating-point tensor")
    endless = sum(int(t.isinf().sum()) for t in outputs.values() if t.is_floating_point())
    note = f"; {endless} are infinite" if endless else ""
    return passed(f"no NaN in {sum(outputs[name].numel() for name in counts)} values{note}")
