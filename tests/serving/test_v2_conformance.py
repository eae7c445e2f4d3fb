"""Every demand of the V2 REST specification, on every host that serves the whole of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from v2_conformance import CHECKS, Check, Host

HOSTS = ("asgi_server",)
MODELS = ("mlp", "mlp-mc")


@pytest.fixture(scope="module", params=[(host, model) for host in HOSTS for model in MODELS], ids="-".join)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    name, model = request.param
    with httpx.Client(base_url=request.getfixturevalue(name).url) as http:
        yield Host(http, model)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_v2(host: Host, check: Check) -> None:
    check(host)
