"""What Prometheus is told: sums that add up, in lines that TorchServe reads."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from dropserve.dropout.engine import Settings
from dropserve.manifest import VersionManifest
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Answer, Query
from dropserve.serving.tally import BOUNDS, Tally, metrics_config
from dropserve.store import Stored

# TorchServe 0.12.0, org.pytorch.serve.metrics.Metric
LINE = re.compile(
    r"\[METRICS]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
Figures = dict[tuple[str, ...], float]


def read(tally: Tally) -> Figures:
    found: Figures = {}
    for line in tally.drain():
        match = LINE.fullmatch(line)
        assert match, line
        labels = [pair.split(":")[1] for pair in match[4].split(",")]
        assert labels[:2] == ["mlp-mc", "3"]
        found[match[1], *labels[2:]] = float(match[3])
    return found


@pytest.fixture(scope="module")
def answer(mlp_version: Stored[VersionManifest]) -> Answer:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * 3
    (found,) = Predictor(mlp_version).answer([Query({"input": x}, Settings(20))])
    assert isinstance(found, Answer)
    return found


def test_sums_add_up_and_are_handed_over_once(answer: Answer) -> None:
    tally = Tally("mlp-mc", 3)
    for _ in range(3):
        tally.answered(answer)
    tally.worked(0.25)
    tally.worked(1e-7)
    for reason in ("shape", "json", "shape"):
        tally.rejected(reason)
    tally.failed()
    found = read(tally)
    assert found["dropserve_requests_total",] == 3
    assert found["dropserve_rows_total",] == 120
    assert found["dropserve_samples_total",] == 2400
    assert found["dropserve_seconds_total",] == pytest.approx(0.2500001)
    assert found["dropserve_rejected_total", "shape"] == 2
    assert found["dropserve_rejected_total", "json"] == 1
    assert found["dropserve_failed_total",] == 1
    assert read(tally) == {}


def test_the_histogram_of_entropies_is_cumulative(answer: Answer) -> None:
    tally = Tally("mlp-mc", 3)
    tally.answered(answer)
    found = read(tally)
    assert answer.statistics is not None
    entropy = answer.statistics["output"].predictive_entropy  # type: ignore[union-attr]  # a classifier's
    name = "dropserve_predictive_entropy_nats"
    for bound in BOUNDS:
        assert found[f"{name}_bucket", str(bound)] == (entropy <= bound).sum()
    assert found[f"{name}_bucket", "+Inf"] == found[f"{name}_count",] == 40
    assert found[f"{name}_sum",] == pytest.approx(entropy.sum())
    assert 0 < found[f"{name}_bucket", "0.5"] < 40, "the buckets tell these rows apart"


def test_every_figure_is_known_to_torchserve(answer: Answer) -> None:
    config = metrics_config({"ts_metrics": {"counter": []}, "model_metrics": {"gauge": []}})
    known = {entry["name"]: entry["dimensions"] for entry in config["model_metrics"]["counter"]}
    tally = Tally("mlp-mc", 3)
    tally.answered(answer)
    tally.rejected("json")
    for line in tally.drain():
        match = LINE.fullmatch(line)
        assert match
        assert [pair.split(":")[0] for pair in match[4].split(",")] == known[match[1]]


def figure(text: str, name: str, **labels: str) -> float:
    """The value of one series in Prometheus's text format."""
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def test_a_real_server_shows_them(server: Any) -> None:
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    names = {
        ("dropserve_rows_total", "mlp-mc", ""): 2,
        ("dropserve_samples_total", "mlp-mc", ""): 60,
        ("dropserve_rejected_total", "mlp-mc", "json"): 1,
        ("dropserve_predictive_entropy_nats_count", "mlp-mc", ""): 2,
    }

    def read_all() -> list[float]:
        text = httpx.get(url).text
        return [
            figure(text, name, endpoint=endpoint, **({"reason": reason} if reason else {}))
            for name, endpoint, reason in names
        ]

    time.sleep(1.2)
    before = read_all()
    ask = f"{server.url}/predictions/mlp-mc"
    assert (
        httpx.post(ask, json={"instances": [ROW, ROW], "parameters": {"mc_samples": 30}}).status_code == 200
    )
    assert httpx.post(ask, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    warm = httpx.post(ask, json={"instances": [ROW]}, headers={"x-dropserve-warm": "1"})
    assert warm.status_code == 200
    deadline = time.monotonic() + 15
    expected = [b + more for b, more in zip(before, names.values(), strict=True)]
    while read_all() != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    assert read_all() == expected


def test_the_dashboard_shows_figures_that_there_are() -> None:
    import ts

    text = (Path(__file__).parents[2] / "serving" / "deploy" / "grafana.json").read_text("utf-8")
    config = metrics_config(
        yaml.safe_load((Path(ts.__file__).parent / "configs" / "metrics.yaml").read_text())
    )
    known = {
        entry["name"]
        for section in config.values()
        if isinstance(section, dict)
        for entries in section.values()
        for entry in entries
    }
    panels = json.loads(text)["panels"]
    shown = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(?:dropserve|ts|Requests)_?\w*(?=[{\[])", target["expr"])
    }
    assert shown <= known, shown - known
    assert {name for name in known if name.startswith("dropserve")} <= shown, (
        "each figure is on the dashboard"
    )
