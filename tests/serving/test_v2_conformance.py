"""Every demand of the V2 REST specification, on every host that serves the whole of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from python_hosts import PYTHON_HOSTS
from v2_conformance import CHECKS, Check, Host

from dropserve.serving.deployment import Deployment

MODELS = ("mlp", "mlp-mc")


@pytest.fixture(scope="module", params=PYTHON_HOSTS)
def deployment(request: pytest.FixtureRequest) -> Deployment:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=MODELS)
def host(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[Host]:
    with httpx.Client(base_url=deployment.url) as http:
        yield Host(http, request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_v2(host: Host, check: Check) -> None:
    check(host)
