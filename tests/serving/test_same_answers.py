"""The same request gets the same bytes, whichever host is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from python_hosts import PYTHON_HOSTS
from same_requests import requests
from wire import Request, send

from dropserve.serving.deployment import Deployment

PROCESSES = "batchSize: 12\nplace: process\n"


@pytest.mark.parametrize("host", PYTHON_HOSTS)
@pytest.mark.parametrize("request_", requests(), ids=lambda request: f"{request.kind} {request.path}")
def test_torchserve_and_hosts_in_python_give_the_same_bytes(
    server: Deployment, host: str, request: pytest.FixtureRequest, request_: Request
) -> None:
    there, here = send(server.url, request_), send(request.getfixturevalue(host).url, request_)
    assert here == there
    assert json.loads(here.text)


def test_a_deterministic_model_in_a_process_of_its_own_too(
    asgi_server: Deployment, processes: Deployment
) -> None:
    """Where it is computed changes nothing."""
    for request in requests():
        assert send(processes.url, request) == send(asgi_server.url, request), request


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, shared_versions: Any, run_server: Any) -> Any:
    folder = tmp_path_factory.mktemp("processes")
    with run_server(folder, shared_versions, PROCESSES, engine="asgi") as deployment:
        yield deployment
