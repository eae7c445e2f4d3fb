"""Ray Serve as `dropserve serve --engine ray` starts it: replicas, manners on the machine, settings."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import yaml
from cluster import Cluster
from prometheus_client.parser import text_string_to_metric_families
from python_hosts import server_process
from same_requests import requests
from wire import send

from dropserve.errors import MissingExtraError, StoreError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment
from dropserve.serving.ray import launch
from dropserve.serving.ray.app import build
from dropserve.serving.ray.launch import DEPLOYMENT, RayHost, Scaling, read_scaling
from dropserve.serving.ray.pinned import PinnedVersions
from dropserve.serving.ray.server import put_aside
from dropserve.serving.runtime import cores
from dropserve.store import Stored

Version = Stored[VersionManifest]
ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "serving" / "deploy" / "ray-serve.yaml"
TOLD = 4.0  # seconds after which Ray's exporter has what every replica has done
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]


def family(deployment: Deployment) -> list[psutil.Process]:
    server = server_process(deployment)
    return [server, *server.children(recursive=True)]


# --- replicas ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_replica_answers_and_rays_exporter_has_the_metrics_of_all(ray_server: Deployment) -> None:
    def counted() -> float:
        text = httpx.get(f"http://127.0.0.1:{ray_server.metrics_port}/metrics").text
        name, labels = "ray_dropserve_requests_total", {"endpoint": "mlp", "version": "1"}
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    title = "ray::ServeReplica:dropserve:dropserve"
    replicas = [p for p in family(ray_server) if p.cmdline() and p.cmdline()[0].startswith(title)]
    assert len(replicas) == 2
    time.sleep(TOLD)
    before, worked = counted(), [sum(p.cpu_times()[:2]) for p in replicas]
    with httpx.Client(base_url=ray_server.url) as http, ThreadPoolExecutor(16) as pool:
        body = {"instances": [ROW]}
        found = pool.map(lambda _: http.post("/predictions/mlp", json=body).content, range(600))
        assert len(set(found)) == 1, "the same bytes, whoever answers"
    spent = [sum(p.cpu_times()[:2]) - was for p, was in zip(replicas, worked, strict=True)]
    assert min(spent) > 0.1 * max(spent), "both have worked"
    time.sleep(TOLD)
    assert counted() - before == 600


# --- manners ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_listener_is_on_loopback_but_the_replicas_own_which_asks_for_rays_token(
    ray_server: Deployment,
) -> None:
    """Ray opens a port of each replica on all addresses (in 2.60; no setting changes that)."""
    listening = [
        (process.cmdline()[0].partition(" ")[0], connection.laddr.ip, connection.laddr.port)
        for process in family(ray_server)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    open_to_all = [
        (name, port)
        for name, ip, port in listening
        if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback
    ]
    assert {name.partition(":dropserve")[0] for name, _ in open_to_all} <= {"ray::ServeReplica"}
    for _, port in open_to_all:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.slow
def test_nothing_is_left_and_nothing_of_others_is_touched(
    tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    """Another Ray of this machine, and what Ray keeps in the user's home, are as they were."""
    home = tmp_path / "home"
    home.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    with Cluster(other) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        theirs = {p.pid for node in range(2) for p in cluster.processes(node)}
        with run_server(tmp_path, [mlp_version], engine="ray") as deployment:
            answer = httpx.post(f"{deployment.url}/predictions/mlp-mc", json={"instances": [ROW]})
            assert answer.status_code == 200
            ours = family(deployment)
            assert not theirs & {process.pid for process in ours}
        assert [process for process in ours if process.is_running()] == []
        assert marked(deployment) == []
        assert not deployment.folder.exists()
        assert not deployment.scratch.exists()
        assert not [path for path in home.rglob("*") if "ray" in path.name]
        assert theirs <= {p.pid for node in range(2) for p in cluster.processes(node)}


@pytest.mark.slow
def test_replicas_grow_under_load_and_nothing_outlives_a_server_that_is_killed_with_its_supervisor(
    tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    scaling = yaml.safe_load(SHIPPED.read_text())
    (options,) = scaling["applications"][0]["deployments"]
    del options["num_replicas"]
    options["autoscaling_config"] = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 1,
        "look_back_period_s": 12,
    }
    options["ray_actor_options"] = {"num_cpus": 0.5}
    (tmp_path / "ray-serve.yaml").write_text(yaml.safe_dump(scaling))
    starting = run_server(tmp_path, [mlp_version], engine="ray", scaling=tmp_path / "ray-serve.yaml")
    deployment = starting.__enter__()
    title, deadline = "ray::ServeReplica:dropserve:dropserve", time.monotonic() + 60
    body = {"instances": [ROW] * 200, "parameters": {"mc_samples": 200}}
    with httpx.Client(base_url=deployment.url, timeout=60) as http, ThreadPoolExecutor(24) as pool:
        while (
            len([p for p in family(deployment) if p.cmdline()[:1] and p.cmdline()[0].startswith(title)]) < 2
        ):
            assert time.monotonic() < deadline, "it has not grown"
            found = pool.map(lambda _: http.post("/predictions/mlp-mc", json=body).status_code, range(48))
            assert set(found) == {200}
    state = lifecycle.running(tmp_path / ".run")
    assert state is not None
    assert state.frontend is not None
    psutil.Process(state.supervisor.pid).kill()
    psutil.Process(state.frontend.pid).kill()
    while state.supervisor.alive or state.frontend.alive:  # a process with many threads dies for a while
        assert time.monotonic() < deadline + 60
        time.sleep(0.05)
    assert lifecycle.stop(tmp_path / ".run") is None, "nothing ran any more"
    assert marked(deployment) == []
    assert not deployment.folder.exists()
    assert not deployment.scratch.exists()


def marked(deployment: Deployment) -> list[str]:
    """Processes that were started for it."""
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(DEPLOYMENT) == str(deployment.folder):
                found.append(f"{process.pid} {process.name()}")
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.slow
def test_on_a_cluster_the_same_requests_get_the_same_bytes(
    tmp_path: Path, asgi_server: Deployment, shared_versions: list[Version]
) -> None:
    for version in shared_versions:
        target = tmp_path / "model_store" / version.manifest.name
        target.mkdir(parents=True)
        (target / "1").symlink_to(version.folder)
    with Cluster(tmp_path) as cluster:
        cluster.deploy(models=[version.manifest.name for version in shared_versions], replicas=2)
        for request in requests():
            assert send(cluster.url(0), request) == send(asgi_server.url, request), request
        found = httpx.post(f"{cluster.url(0)}/predictions/mlp", json={"instances": [ROW]})
        assert len(found.headers.get_list("x-request-id")) == 1


# --- settings ---------------------------------------------------------------------------------------------


def test_the_shipped_file_is_one_replica() -> None:
    found = read_scaling(SHIPPED)
    assert (found.replicas, found.processors) == (1, 1)
    assert found.options["ray_actor_options"] == {"num_cpus": 1}


def test_replicas_that_grow_are_bounded_by_the_cores() -> None:
    growing = {"autoscaling_config": {"min_replicas": 2, "max_replicas": 100}}
    assert Scaling(options=growing).replicas == 2
    assert Scaling(options=growing).processors == max(2, cores())
    assert Scaling(options={"num_replicas": "auto"}).replicas == 1
    half = {"num_replicas": 6, "ray_actor_options": {"num_cpus": 0.5}}
    assert Scaling(options=half).processors == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "num_replicas: 1 ",
            "num_replicas: none ",
            'must be an int or "auto", but got: none',
        ),
        ("num_replicas: 1 ", "num_replicas: 0 ", "deployments.0.num_replicas"),
        ("health_check_period_s: 2", "health_check_period_s: -2", "deployments.0.health_check_period_s"),
        ("num_replicas: 1 ", "replicas: 1 ", "unknown key replicas; expected .*num_replicas"),
        ("num_cpus: 1 ", "cpus: 1 ", "unknown key ray_actor_options.cpus; expected .*num_cpus"),
        (
            "- name: dropserve\n        num",
            "- name: mlp\n        num",
            "there is no deployment mlp; there is dropserve",
        ),
        (
            "ray.app:build",
            "ray.app:other",
            "expected one application with import_path: dropserve.serving.ray",
        ),
        ("applications:", "applications: [", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = SHIPPED.read_text()
    assert old in text
    file = tmp_path / "ray-serve.yaml"
    file.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=expected) as raised:
        read_scaling(file)
    assert str(file) in str(raised.value)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed.*dropserve\[ray\]"):
        RayHost()


def test_the_newest_version_is_found_once(mlp_version: Version) -> None:
    store = mlp_version.folder.parents[1]
    found = PinnedVersions.find(store, ["mlp"], None)
    assert found.versions == {"mlp": 1}
    opened = found.open()
    assert [each.endpoint.name for each in opened.endpoints] == ["mlp", "mlp-mc"]
    assert opened.room > 2 * 256, "both queues, and what their workers hold"
    assert opened.own is not None
    opened.remove()
    assert not opened.own.exists()


def test_what_a_cluster_cannot_serve_is_said(tmp_path: Path, mlp_version: Version) -> None:
    store = mlp_version.folder.parents[1]
    with pytest.raises(UsageError, match="there is no such folder here; every node must see it at this path"):
        PinnedVersions.find(tmp_path / "nothing", ["mlp"], None)
    with pytest.raises(StoreError, match="mlp"):
        PinnedVersions.find(store, ["mlp:9"], None)
    with pytest.raises(UsageError, match="expected NAME or NAME:VERSION"):
        PinnedVersions.find(store, ["mlp:new"], None)
    (tmp_path / "token").write_text("short")
    with pytest.raises(UsageError, match="it has 5 characters"):
        PinnedVersions.find(store, ["mlp"], None, token_file=tmp_path / "token")
    with pytest.raises(UsageError, match="model: Extra inputs are not permitted") as raised:
        build({"store": str(store), "model": "mlp", "backend": "jax"})
    assert "backend: Input should be" in str(raised.value), "all at once"


def test_a_full_log_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "model_log.log"
    for number in range(6):
        log.write_text(f"{number}" * 100)
        put_aside(log, most=50, kept=3)
    assert not log.exists()
    assert [p.read_text()[0] for p in sorted(tmp_path.iterdir())] == ["5", "4", "3"]
    log.write_text("short")
    put_aside(log, most=50)
    assert log.read_text() == "short"


def test_other_engines_do_not_import_ray() -> None:
    modules = "sys, dropserve.serving.lifecycle, dropserve.serving.http.server"
    code = f"import {modules}; assert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
