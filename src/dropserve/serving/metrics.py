"""``/metrics``: what TorchServe shows of our endpoints, under the same names, and how long the queues are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dropserve.serving.deployment import Endpoint
from dropserve.serving.tally import BOUNDS, ENTROPY, FIGURES, Sums

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BOUNDS = [*map(str, BOUNDS), "+Inf"]
_HELP = {
    "dropserve_requests_total": "Requests answered.",
    "dropserve_rows_total": "Rows answered.",
    "dropserve_samples_total": "Monte Carlo samples drawn.",
    "dropserve_seconds_total": "Seconds spent computing.",
    "dropserve_rejected_total": "Requests refused because they were at fault, by reason.",
    "dropserve_failed_total": "Requests that failed although they were not at fault.",
    "dropserve_strange_rows_total": "Rows unlike the data that the model was calibrated on.",
}


class Busy(Protocol):
    """How busy an endpoint is."""

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        ...

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        ...


class Counted(Protocol):
    """What has metrics."""

    @property
    def endpoint(self) -> Endpoint:
        """Whose they are."""
        ...

    @property
    def stats(self) -> Busy:
        """How busy it is."""
        ...

    def drain(self) -> Sums:
        """What was done since the last call."""
        ...


class MetricsCollector(Collector):
    """What the endpoints have done since the server started.

    Args:
        endpoints: whom to ask.
    """

    def __init__(self, endpoints: Sequence[Counted]) -> None:
        self._endpoints = endpoints
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._untold: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        self._collect()
        return generate_latest(self._registry)

    def drain(self) -> Sums:
        """What was done since the last call."""
        self._collect()
        drained, self._untold = self._untold, defaultdict(float)
        return drained

    def _collect(self) -> None:
        for each in self._endpoints:
            for key, value in each.drain().items():
                self._sums[key] += value
                self._untold[key] += value

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for."""
        for name, about in _HELP.items():
            yield self._counter(name, about)
        yield self._entropies()
        waiting = GaugeMetricFamily(
            "dropserve_waiting_requests", "Requests without an answer yet.", labels=["endpoint", "version"]
        )
        restarts = CounterMetricFamily(
            "dropserve_worker_restarts",
            "How often a worker had to be started again.",
            labels=["endpoint", "version"],
        )
        for each in self._endpoints:
            waiting.add_metric(_labels(each), each.stats.waiting)
            restarts.add_metric(_labels(each), each.stats.restarts)
        yield waiting
        yield restarts

    def _counter(self, name: str, about: str) -> Metric:
        labels = FIGURES[name]
        found = CounterMetricFamily(name.removesuffix("_total"), about, labels=labels)
        if len(labels) == 2:
            for each in self._endpoints:  # a figure that nothing was added to is 0, not absent
                found.add_metric(_labels(each), self._sums.get((name, *_labels(each)), 0.0))
            return found
        for (key, *values), value in sorted(self._sums.items()):
            if key == name:
                found.add_metric(values, value)
        return found

    def _entropies(self) -> Metric:
        about = "Predictive entropy of the rows of Monte Carlo answers of classifiers, in nats."
        found = HistogramMetricFamily(ENTROPY, about, labels=["endpoint", "version"])
        for each in self._endpoints:
            if (f"{ENTROPY}_count", *_labels(each)) in self._sums:
                counts = [(b, self._sums[f"{ENTROPY}_bucket", *_labels(each), b]) for b in _BOUNDS]
                total = self._sums[f"{ENTROPY}_sum", *_labels(each)]
                found.add_metric(_labels(each), buckets=counts, sum_value=total)
        return found


def _labels(each: Counted) -> list[str]:
    return [each.endpoint.name, str(each.endpoint.version)]
