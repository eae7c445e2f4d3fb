"""The same client twice: one waits, one awaits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Self

import httpx

from dropserve.client.asking import Asking, trusted
from dropserve.client.results import Answer


class Client(Asking):
    """Asks a dropserve server.

    Args:
        url: where it is; this machine's port 8080 (or ``DROPSERVE_PORT``) by default.
        timeout: seconds to wait for an answer.
        retries: how often to ask again when the server is too busy (503), after 0.1, 0.2, 0.4 s, ...
        token: lets requests in where the server asks for one; ``DROPSERVE_TOKEN`` by default.
        certificates: a file with the certificates to trust, for HTTPS; the system's by default.
        transport: an httpx transport, for tests and proxies.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        token: str | None = None,
        certificates: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, retries, token)
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            transport=transport,
            headers=self.headers,
            verify=trusted(self.url, certificates),
        )

    def predict(
        self,
        model: str,
        instances: Any,
        *,
        mc: bool = False,
        samples: int | None = None,
        seed: int | None = None,
        scheme: str | None = None,
        coverage: int | None = None,
    ) -> Answer:
        """Ask for predictions.

        Args:
            model: the model's name.
            instances: rows: nested lists, an array [B, ...], or one mapping a row for several inputs.
            mc: ask the Monte Carlo endpoint, for uncertainty.
            samples: Monte Carlo samples; the server's default otherwise.
            seed: of the masks; the same seed gives the same answer. -1 lets the server draw one.
            scheme: ``balanced`` or ``iid``.
            coverage: how often prediction sets and intervals shall hold the truth, in parts per thousand.

        Raises:
            RequestError: if the server refuses the request; the message is the server's.
            ServerError: if the server is down, too busy, or does not serve the model.
            UsageError: if the arguments cannot make a request.
        """
        path, body = self.request(
            model, instances, mc=mc, samples=samples, seed=seed, scheme=scheme, coverage=coverage
        )
        attempt = 0
        while True:
            try:
                response = self._http.post(path, content=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.unreachable(error) from error
            pause = self.pause(attempt, response)
            if pause is None:
                return self.answer(path, response)
            time.sleep(pause)
            attempt += 1

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Asking):
    """The same for asyncio: ``async with AsyncClient() as client: await client.predict(...)``."""

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        token: str | None = None,
        certificates: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, retries, token)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=timeout,
            transport=transport,
            headers=self.headers,
            verify=trusted(self.url, certificates),
        )

    async def predict(
        self,
        model: str,
        instances: Any,
        *,
        mc: bool = False,
        samples: int | None = None,
        seed: int | None = None,
        scheme: str | None = None,
        coverage: int | None = None,
    ) -> Answer:
        """As :meth:`Client.predict`."""
        path, body = self.request(
            model, instances, mc=mc, samples=samples, seed=seed, scheme=scheme, coverage=coverage
        )
        attempt = 0
        while True:
            try:
                response = await self._http.post(path, content=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.unreachable(error) from error
            pause = self.pause(attempt, response)
            if pause is None:
                return self.answer(path, response)
            await asyncio.sleep(pause)
            attempt += 1

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
