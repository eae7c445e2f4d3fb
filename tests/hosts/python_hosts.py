"""Hosts whose code is ours from the socket on, as parameters of tests: names of their fixtures."""

from __future__ import annotations

import psutil
import pytest

from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment

PYTHON_HOSTS = [
    "asgi_server",
    pytest.param("ray_server", marks=pytest.mark.slow),
]  # Ray takes a while to start


def server_process(deployment: Deployment) -> psutil.Process:
    """The process that the supervisor has started."""
    state = lifecycle.running(deployment.logs.parent)
    assert state is not None
    assert state.frontend is not None
    return psutil.Process(state.frontend.pid)


def working(deployment: Deployment) -> list[psutil.Process]:
    """All processes that meet or compute requests."""
    server = server_process(deployment)
    if deployment.engine == "asgi":
        return [server, *server.children()]
    family = server.children(recursive=True)
    return [server, *(process for process in family if is_rays(process) or is_worker(process))]


def is_rays(process: psutil.Process) -> bool:
    """Whether it is a replica, or Ray's proxy."""
    return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(
        ("ray::ServeReplica", "ray::ProxyActor")
    )


def is_worker(process: psutil.Process) -> bool:
    """Whether it is the process of an endpoint."""
    return "dropserve.serving.http.worker" in process.cmdline()
