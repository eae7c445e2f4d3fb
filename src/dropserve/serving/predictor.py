"""Answers a batch of independent requests from a verified version of the model store."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dropserve.dropout.engine import MonteCarlo, Prepared, Settings
from dropserve.errors import NotInStoreError, RequestError, ServerError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving.calibrated import Calibrator
from dropserve.serving.graphs import Backend
from dropserve.serving.instances import read_instances
from dropserve.serving.loading import GraphFiles
from dropserve.serving.outcome import (
    Outcome,
    plain_outcome,
    refuse_overflow,
    sampled,
    sampled_until,
    take_rows,
)
from dropserve.serving.query import Answer, Array, Float, Query
from dropserve.serving.tables import table_reader
from dropserve.store import Stored

EXAMPLE = "example.json"
_EARLY = "with mc_tolerance rows stop at different numbers of samples; calibration rests on a fixed number"
_GROUP_NUMBERS = 2**24  # numbers that the samples of one Monte Carlo run may hold


class Predictor:
    """A loaded version.

    Rows of all deterministic requests share one run. Rows of all Monte Carlo requests share the run of the
    trunk, and those with equal settings the run of the head. Neither changes an answer: on onnxruntime to
    the last bit (``dropout.rows``), on TorchScript to rounding.

    Args:
        version: its folder may be the store's, or an unpacked archive that holds one endpoint's files.
        backend: ``onnx`` or ``torchscript``.
        threads: cores for this process: cores / workers.

    Attributes:
        manifest: the version's.
        has_plain: whether the deterministic graph is there.
        has_monte_carlo: whether the masked graph is there.

    Raises:
        ServerError: if no graph is there for this backend, or one cannot be loaded.
        CorruptStoreError: if the calibration is of another format.
        MissingExtraError: if the backend's library is not installed.
    """

    def __init__(
        self, version: Stored[VersionManifest], *, backend: Backend = "onnx", threads: int = 1
    ) -> None:
        self.manifest = version.manifest
        self._version = version
        files = GraphFiles(version, backend, threads)
        self._plain = files.plain()
        self._monte_carlo = files.monte_carlo()
        self._calibrator = Calibrator(version.manifest, nearest := files.nearest())
        self.has_plain = self._plain is not None
        self.has_monte_carlo = self._monte_carlo is not None
        if not (self.has_plain or self.has_monte_carlo):
            raise files.none_found()
        if self.has_monte_carlo and self._calibrator.needs_nearest and nearest is None:
            raise files.none_found()
        outputs = self.manifest.signature.outputs
        if self.manifest.task != "raw" and len(outputs) != 1:
            raise ServerError(
                f"{self.manifest.name} has {len(outputs)} outputs; expected one for {self.manifest.task}"
            )

    def example(self) -> bytes:
        """A V1 request with the example row that came with the version.

        Raises:
            ServerError: if there is none, or it does not fit the signature.
        """
        try:
            instances = json.loads(self._version.path(EXAMPLE).read_bytes())["instances"][:1]
            self._read(instances)
        except (NotInStoreError, ValueError, KeyError, TypeError, RequestError) as error:
            raise ServerError(
                f"{self._version.folder}: {EXAMPLE} holds no row that fits the model: {error}"
            ) from error
        return json.dumps({"instances": instances}).encode()

    def _read(self, instances: Any) -> dict[str, Array]:
        table = table_reader(self.manifest)
        if table is None:
            return read_instances(instances, self.manifest.signature)
        return {table.spec.name: table.read(instances)}

    def answer(self, queries: Sequence[Query]) -> list[Answer | Exception]:
        """Answer each request.

        Args:
            queries: any mixture of settings and lengths.

        Returns:
            In the same order, an answer, or what was wrong with that request alone:
            :class:`RequestError` where the request is at fault, another exception where the model is.
        """
        if len(queries) == 1:
            return self._answer_group(list(queries))
        results: dict[int, Answer | Exception] = {}
        for group in _groups(queries):
            results |= zip(group, self._answer_group([queries[i] for i in group]), strict=True)
        return [results[index] for index in range(len(queries))]

    def _answer_group(self, queries: list[Query]) -> list[Answer | Exception]:
        try:
            return self._run(queries)
        except Exception as error:  # noqa: BLE001  # whatever it was, one request must not cost the others
            if len(queries) > 1:
                return [self._answer_group([query])[0] for query in queries]
            return [self._blame(queries[0], error)]

    def _blame(self, query: Query, error: Exception) -> Exception:
        """Whether the request or the model is at fault: the example row, which is good, decides."""
        if isinstance(error, UsageError):
            return RequestError(str(error), reason="settings")
        try:
            instances = json.loads(self.example())["instances"]
            self._run([query._replace(inputs=self._read(instances))])
        except Exception:  # noqa: BLE001  # the model fails on its own example
            return error
        text = " ".join(str(error).split())[:300]
        return RequestError(f"the model cannot compute with these values: {text}", reason="model")

    def _run(self, queries: list[Query]) -> list[Answer | Exception]:
        """Answer requests whose rows fit together; all of them share the run of the trunk."""
        inputs, rows = queries[0].inputs, [slice(0, queries[0].rows)]
        if len(queries) > 1:
            inputs = {n: np.concatenate([query.inputs[n] for query in queries]) for n in inputs}
            counts = [query.rows for query in queries]
            ends = itertools.accumulate(counts)
            rows = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
        if queries[0].settings is None:
            return _plain_answers(self._run_plain(inputs), rows)
        if self._monte_carlo is None:
            raise ServerError(f"{self.manifest.name} has no Monte Carlo graph here")
        prepared = self._monte_carlo.prepare(inputs)
        answers: dict[int, Answer | Exception] = {}
        for members in _alike(queries):
            own, fed = prepared, inputs
            if len(members) < len(queries):
                index = np.concatenate([np.arange(rows[i].start, rows[i].stop) for i in members])
                own, fed = prepared.take(index), {name: array[index] for name, array in inputs.items()}
            outcome, reason = self._sample(queries[members[0]], self._monte_carlo, own, fed)
            first = 0
            for i in members:
                part = slice(first, first + rows[i].stop - rows[i].start)
                first = part.stop
                answers[i] = _answer(queries[i], outcome, part, reason)
        return [answers[index] for index in range(len(queries))]

    def _sample(
        self, query: Query, engine: MonteCarlo, prepared: Prepared, inputs: Mapping[str, Array]
    ) -> tuple[Outcome, str | None]:
        """The outcome with the settings of a query, and why it is not calibrated if it is not."""
        settings = query.settings or Settings()
        if query.tolerance is not None:
            return sampled_until(engine, prepared, settings, self.manifest, query.tolerance), _EARLY
        outcome = sampled(engine, prepared, inputs, settings, self.manifest, self._calibrator)
        return outcome, self._calibrator.reason(settings)

    def _run_plain(self, inputs: Mapping[str, Array]) -> Outcome:
        if self._plain is None:
            raise ServerError(f"{self.manifest.name} has no deterministic graph here")
        return plain_outcome(self._plain(dict(inputs)), self.manifest)


def _plain_answers(outcome: Outcome, parts: Sequence[slice]) -> list[Answer | Exception]:
    """The rows of each request, or why they are no answer."""
    finite = outcome.finite or all(
        np.isfinite(array).all() for array in (*outcome.values.values(), *outcome.noise.values())
    )
    if finite and len(parts) == 1:
        return [Answer(outcome.values, noise=outcome.noise)]
    answers: list[Answer | Exception] = []
    for rows in parts:
        values = {name: array[rows] for name, array in outcome.values.items()}
        noise = {name: array[rows] for name, array in outcome.noise.items()}
        problem = None if finite else _overflow(values, noise)
        answers.append(problem or Answer(values, noise=noise))
    return answers


def _overflow(*records: Mapping[str, Float]) -> RequestError | None:
    try:
        for record in records:
            refuse_overflow(record)
    except RequestError as error:
        return error
    return None


def _answer(query: Query, outcome: Outcome, rows: slice, reason: str | None) -> Answer | Exception:
    """The rows of one Monte Carlo request, or why they are no answer."""
    values = {name: array[rows] for name, array in outcome.values.items()}
    noise = {name: array[rows] for name, array in outcome.noise.items()}
    problem = None if outcome.finite else _overflow(values, noise)
    return problem or Answer(
        values,
        {name: take_rows(statistics, rows) for name, statistics in outcome.statistics.items()},
        query.settings,
        outcome.calibrated and outcome.calibrated.take(rows),
        reason,
        query.coverage,
        query.tolerance,
        None if outcome.samples is None else outcome.samples[rows],
        noise,
    )


def _alike(queries: Sequence[Query]) -> Iterable[list[int]]:
    """Indices of requests with equal settings."""
    first = queries[0]
    if all(query.settings is first.settings and query.tolerance is None for query in queries):
        return [list(range(len(queries)))]  # what nobody has said otherwise is one object
    together: dict[tuple[Settings | None, float | None], list[int]] = {}
    for index, query in enumerate(queries):
        together.setdefault((query.settings, query.tolerance), []).append(index)
    return together.values()


def _groups(queries: Sequence[Query]) -> Iterator[list[int]]:
    """Indices of requests whose rows fit together: of one kind, of equal lengths, within a bound."""
    groups: dict[object, list[int]] = {}
    for index, query in enumerate(queries):
        shapes = tuple((name, array.shape[1:]) for name, array in query.inputs.items())
        groups.setdefault((query.settings is None, shapes), []).append(index)
    for group in groups.values():
        part: list[int] = []
        total = 0
        for index in group:
            size = _numbers(queries[index])
            if part and total + size > _GROUP_NUMBERS:
                yield part
                part, total = [], 0
            part.append(index)
            total += size
        yield part


def _numbers(query: Query) -> int:
    fed = sum(array.size for array in query.inputs.values())
    return fed * (query.settings.samples if query.settings else 1)
