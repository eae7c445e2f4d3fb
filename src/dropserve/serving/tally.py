"""What an endpoint has done, for Prometheus: requests, rows, samples, seconds, refusals, and how sure it was.

Counted in the worker, handed over as sums. TorchServe takes figures as lines on the worker's output (its
documentation, docs/metrics.md), so one line a request would cost more than the answer: once a second there.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from typing import Any

from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.serving.query import Answer

# Upper bounds of the histogram of predictive entropy, in nats.
BOUNDS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
ENTROPY = "dropserve_predictive_entropy_nats"
FIGURES: dict[str, tuple[str, ...]] = {
    "dropserve_requests_total": ("endpoint", "version"),
    "dropserve_rows_total": ("endpoint", "version"),
    "dropserve_samples_total": ("endpoint", "version"),
    "dropserve_seconds_total": ("endpoint", "version"),
    "dropserve_rejected_total": ("endpoint", "version", "reason"),
    "dropserve_failed_total": ("endpoint", "version"),
    "dropserve_strange_rows_total": ("endpoint", "version"),
    f"{ENTROPY}_bucket": ("endpoint", "version", "le"),
    f"{ENTROPY}_sum": ("endpoint", "version"),
    f"{ENTROPY}_count": ("endpoint", "version"),
}
Sums = dict[tuple[str, ...], float]
_REQUESTS, _ROWS = ("dropserve_requests_total",), ("dropserve_rows_total",)
_SAMPLES, _SECONDS = ("dropserve_samples_total",), ("dropserve_seconds_total",)
_STRANGE = ("dropserve_strange_rows_total",)
_ENTROPY_SUM, _ENTROPY_COUNT = (f"{ENTROPY}_sum",), (f"{ENTROPY}_count",)
_log = logging.getLogger("dropserve.metrics")


class Tally:
    """Sums since the last time they were handed over.

    Args:
        endpoint: as it is registered.
        version: of the model.
    """

    def __init__(self, endpoint: str, version: int) -> None:
        self._labels = (endpoint, str(version))
        self._lock = threading.Lock()
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._buckets = [0] * (len(BOUNDS) + 1)

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        rows = len(next(iter(answer.values.values())))
        taken = strange = 0
        if answer.settings is not None:
            taken = rows * answer.settings.samples if answer.samples is None else int(answer.samples.sum())
        entropies: list[float] = []
        for statistics in (answer.statistics or {}).values():
            if isinstance(statistics, ClassificationStatistics):
                entropies = statistics.predictive_entropy.tolist()
        calibrated = answer.calibrated
        if calibrated is not None and calibrated.detected is not None:
            strange = int(calibrated.detected.flags.sum())
        with self._lock:
            sums = self._sums
            sums[_REQUESTS] += 1
            sums[_ROWS] += rows
            if taken:
                sums[_SAMPLES] += taken
            if strange:
                sums[_STRANGE] += strange
            if entropies:
                sums[_ENTROPY_SUM] += sum(entropies)
                sums[_ENTROPY_COUNT] += rows
            for entropy in entropies:
                self._buckets[bisect_left(BOUNDS, entropy)] += 1

    def worked(self, seconds: float) -> None:
        """Count time spent computing answers."""
        with self._lock:
            self._sums[_SECONDS] += seconds

    def rejected(self, reason: str) -> None:
        """Count a request that was at fault."""
        self._add("dropserve_rejected_total", 1, reason)

    def failed(self) -> None:
        """Count a request that failed although it was not at fault."""
        self._add("dropserve_failed_total", 1)

    def _add(self, name: str, value: float, *labels: str) -> None:
        with self._lock:
            self._sums[name, *labels] += value

    def take(self) -> Sums:
        """The sums, by name and labels (``FIGURES``); counting begins anew."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
            buckets, self._buckets = self._buckets, [0] * len(self._buckets)
        if any(buckets):  # cumulative, as histograms are told to Prometheus
            for bound, count in zip([*BOUNDS, "+Inf"], accumulate(buckets), strict=True):
                sums[f"{ENTROPY}_bucket", str(bound)] = count
        return {(name, *self._labels, *labels): value for (name, *labels), value in sums.items()}

    def drain(self) -> list[str]:
        """The sums as TorchServe's metric lines; counting begins anew."""
        host, now = socket.gethostname(), int(time.time())
        return [
            _line(name, value, dict(zip(FIGURES[name], labels, strict=True)), host, now)
            for (name, *labels), value in self.take().items()
        ]

    def hand_over(self) -> None:
        """Write the lines to the worker's output, where TorchServe reads them."""
        for line in self.drain():
            _log.info(line)


def start_reporting(tally: Tally, seconds: float = 1.0) -> None:
    """Hand over from a thread of its own, as long as the process lives."""
    _log.setLevel(logging.INFO)

    def run() -> None:
        while True:
            time.sleep(seconds)
            tally.hand_over()

    threading.Thread(target=run, name="dropserve-metrics", daemon=True).start()


def metrics_config(shipped: dict[str, Any]) -> dict[str, Any]:
    """TorchServe's metrics configuration with ours in place of its per-model ones.

    Args:
        shipped: the content of ``ts/configs/metrics.yaml``.
    """
    own = [{"name": name, "unit": "Count", "dimensions": list(labels)} for name, labels in FIGURES.items()]
    return {"ts_metrics": shipped["ts_metrics"], "model_metrics": {"counter": own}}


def _line(name: str, value: float, labels: dict[str, str], host: str, now: int) -> str:
    # TorchServe's pattern knows digits, '-', ',', '.' and 'e' in a value: no plus sign.
    number = f"{value:.0f}" if float(value).is_integer() else f"{value:.9f}"
    told = ",".join(f"{key}:{label}" for key, label in labels.items())
    return f"[METRICS]{name}.Count:{number}|#{told}|#type:COUNTER|#hostname:{host},{now}"
