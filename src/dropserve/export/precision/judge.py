"""What a lower precision costs, measured on held-out rows against the float32 graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.export.artefacts import HEAD, MASKED, MODEL, TRUNK, Artefacts
from dropserve.export.comparison import Array
from dropserve.export.onnx import OnnxProgram
from dropserve.export.settings import Bounds, ExportSettings
from dropserve.manifest import CheckRecord, Task

from .accuracy import Accuracy, judge_accuracy
from .apart import Apart, scales_of
from .exact import masks_stay_exact
from .independence import rows_are_independent
from .rows import Held, Rows, batches, cut, identity, lengths_of, variants

PARITY, MONTE_CARLO = "precision-parity", "precision-monte-carlo"
IDENTITY, STATISTICS = "precision-identity-masks", "precision-statistics"
ACCURACY, ROWS, MASKS = "precision-accuracy", "precision-rows", "precision-masks"
NAMES = (PARITY, MONTE_CARLO, IDENTITY, STATISTICS, ACCURACY, ROWS, MASKS)
"""What ``waive`` in ``export/checks.toml`` may hold of this module."""

SEED = 20_27
_SAMPLES = 8
_MOST_ROWS = 128  # of the comparisons sample by sample
_MOST_ANSWERED = 500  # rows that get a Monte Carlo answer, which takes 50 samples
_MOST_NUMBERS = 2**22  # of all samples of a comparison
_REMEDY = (
    "fp16 strays far less than int8, and fp32 not at all: export with --precision {other}; or allow more "
    "with [{precision}] largest, typical and accuracy in export/checks.toml"
)


@dataclass
class Judgement:
    """Verdicts for people, figures for ``export.json``."""

    checks: list[CheckRecord] = field(default_factory=list[CheckRecord])
    figures: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


def judge(
    reference: Artefacts,
    lowered: Artefacts,
    held: Held,
    settings: ExportSettings,
    task: Task,
    *,
    heteroscedastic: bool = False,
) -> Judgement:
    """Compare the graphs of a lower precision with the float32 graphs.

    Args:
        reference: the float32 graphs.
        lowered: the others, which will be served.
        held: the rows; those that set no scales judge.
        settings: precision, bounds, batch sizes and waivers.
        task: what the outputs mean.
        heteroscedastic: whether a regressor gives log variances beside its values, [N, 2].
    """
    return _Bench(reference, lowered, held, settings).run(task, 1 if heteroscedastic else None)


class _Bench:
    def __init__(
        self, reference: Artefacts, lowered: Artefacts, held: Held, settings: ExportSettings
    ) -> None:
        self.reference, self.lowered, self.held, self.settings = reference, lowered, held, settings
        self.bounds: Bounds = settings.bounds
        self.judgement = Judgement()
        self.plain = [OnnxProgram(made.paths[MODEL]) for made in (reference, lowered)]
        self.expected = _joined([self.plain[0](fed) for fed in batches(held.judging)])
        self.scales = scales_of(self.expected)

    def run(self, task: Task, values: int | None) -> Judgement:
        """Every check, in order; accuracy is that of the first so many values of an answer, or of all."""
        self._parity()
        answers = {"dropout off": (self._answers(self.plain[0]), self._answers(self.plain[1]))}
        if self.reference.sites:
            self._monte_carlo()
            self._identity()
            answers["Monte Carlo mean"] = self._statistics(task)
        if values is not None:
            answers = {kind: (a[:, :values], b[:, :values]) for kind, (a, b) in answers.items()}
        found = judge_accuracy(task, answers, self.held.judging.target, self.bounds)
        self._accuracy(found)
        self._record(ROWS, *rows_are_independent(self.lowered, self.held.judging))
        if self.reference.sites:
            self._record(MASKS, *masks_stay_exact(self.lowered))
        return self.judgement

    def _answers(self, program: OnnxProgram) -> Array:
        return next(iter(_joined([program(fed) for fed in batches(self.held.judging)]).values()))

    def _parity(self) -> None:
        apart = Apart(self.bounds)
        judging = self.held.judging
        for lengths in variants(self.reference.signature, judging):
            rows = cut(self.reference.signature, judging, lengths)
            for size in (*self.settings.batch_sizes, len(rows)):
                fed = dict(rows.take(slice(size)).inputs)
                wanted, got = (program(fed) for program in self.plain)
                apart.add(wanted, got, self.scales, f"batch {size}{_words(lengths)}")
        self._conclude(PARITY, apart, f"{self._rows(len(judging))}, dropout off, at several batch sizes")

    def _monte_carlo(self) -> None:
        apart = Apart(self.bounds)
        rows = self._few(_SAMPLES)
        settings = Settings(samples=_SAMPLES, seed=SEED)
        for lengths in variants(self.reference.signature, rows):
            fed = dict(cut(self.reference.signature, rows, lengths).inputs)
            wanted, got = (engine_of(made).samples(fed, settings) for made in (self.reference, self.lowered))
            apart.add(wanted, got, scales_of(wanted), f"{_SAMPLES} samples{_words(lengths)}")
            if MASKED in self.lowered.paths:
                one = MonteCarlo(self.lowered.sites, OnnxProgram(self.lowered.paths[MASKED]),
                                 specs=self.lowered.signature.inputs)  # fmt: skip
                apart.add(wanted, one.samples(fed, settings), scales_of(wanted), f"{MASKED}{_words(lengths)}")
        self._conclude(
            MONTE_CARLO, apart, f"{self._rows(len(rows))} under {_SAMPLES} masks, sample by sample"
        )

    def _identity(self) -> None:
        apart = Apart(self.bounds)
        head = OnnxProgram(self.lowered.paths[HEAD])
        trunk = OnnxProgram(self.lowered.paths[TRUNK]) if TRUNK in self.lowered.paths else None
        for fed in batches(self.held.judging):
            count = len(next(iter(fed.values())))
            masks = identity(self.lowered, count, lengths_of(self.lowered.signature, fed))
            got = head({**fed, **(trunk(fed) if trunk else {}), **masks})
            apart.add(self.plain[0](fed), got, self.scales, "identity masks")
        self._conclude(
            IDENTITY, apart, f"{self._rows(len(self.held.judging))} under masks that change nothing, against "
            "the fp32 model without dropout"
        )  # fmt: skip

    def _statistics(self, task: Task) -> tuple[Array, Array]:
        """Mean and deviation over samples; gives the predictive means of both."""
        settings = Settings(seed=SEED)
        rows = self._few(settings.samples, most=_MOST_ANSWERED)
        pair = [
            engine_of(made).samples(dict(rows.inputs), settings) for made in (self.reference, self.lowered)
        ]
        apart = Apart(self.bounds)
        scales = scales_of(pair[0])
        for word, statistic in (("mean", np.mean), ("standard deviation", np.std)):
            wanted, got = (_statistic(samples, statistic) for samples in pair)
            apart.add(wanted, got, scales, f"{word} over {settings.samples} samples")
        what = f"mean and standard deviation over {settings.samples} samples of {self._rows(len(rows))}"
        self._conclude(STATISTICS, apart, what)
        first, last = (next(iter(samples.values())).astype(np.float64) for samples in pair)
        if task == "classification":
            first, last = _softmax(first), _softmax(last)
        return first.mean(axis=0), last.mean(axis=0)

    def _few(self, samples: int, most: int = _MOST_ROWS) -> Rows:
        numbers = samples * sum(int(np.prod(spec.sized())) for spec in self.reference.signature.outputs)
        return self.held.judging.take(slice(max(1, min(most, _MOST_NUMBERS // max(1, numbers)))))

    def _rows(self, count: int) -> str:
        kind = "held-out" if self.held.real else "drawn"
        return f"{count} {kind} row{'' if count == 1 else 's'}"

    def _accuracy(self, found: Accuracy) -> None:
        self.judgement.figures[ACCURACY] = {"runs": len(found.pairs), "problem": found.problem or None,
                                            "detail": found.words, **found.figures}  # fmt: skip
        if not self.held.real:
            found.skipped = "not judged: the run has no held-out rows"
        if found.skipped:
            record = CheckRecord(name=ACCURACY, verdict="skipped", evidence=found.skipped)
            self.judgement.checks.append(record)
            return
        self._record(ACCURACY, found.problem, found.words)

    def _conclude(self, name: str, apart: Apart, what: str) -> None:
        self.judgement.figures[name] = apart.figures()
        self._record(name, apart.conclude(), f"{apart.words()}: {what}")

    def _record(self, name: str, problem: str, words: str) -> None:
        precision = self.settings.precision
        if not problem:
            self.judgement.checks.append(CheckRecord(name=name, verdict="passed", evidence=words))
            return
        verdict = "waived" if self.settings.waived(name) else "failed"
        remedy = _REMEDY.format(precision=precision, other="fp16" if precision == "int8" else "fp32")
        evidence = f"{problem}; {words}" if words else problem
        self.judgement.checks.append(
            CheckRecord(name=name, verdict=verdict, evidence=evidence, remedy=remedy)
        )


def engine_of(made: Artefacts) -> MonteCarlo:
    """Trunk and head as a server runs them."""
    head = OnnxProgram(made.paths[HEAD])
    return MonteCarlo(
        made.sites,
        head,
        OnnxProgram(made.paths[TRUNK]) if TRUNK in made.paths else None,
        head_inputs=set(head.inputs) - {spec.name for spec in made.masks},
        specs=made.signature.inputs,
        steady=False,
    )


def _words(lengths: Mapping[str, int]) -> str:
    return "".join(f", {name} {size}" for name, size in lengths.items())


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _statistic(samples: Mapping[str, Array], statistic: Callable[..., Any]) -> dict[str, Array]:
    return {name: statistic(array.astype(np.float64), axis=0) for name, array in samples.items()}


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
