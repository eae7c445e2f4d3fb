"""The same client twice: one waits, one awaits."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import httpx
from numpy.typing import ArrayLike

from dropserve.client.asking import Asking, Request, Settings, trusted
from dropserve.client.results import Answer, read_answer
from dropserve.client.tensors import Tensors, unpack


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
        self, model: str, instances: Any, *, mc: bool = False, **settings: Unpack[Settings]
    ) -> Answer:
        """Ask for predictions, over V1.

        Args:
            model: the model's name.
            instances: rows: nested lists, an array [B, ...], or one mapping a row: of the columns of a table
                (a pandas DataFrame is a row each) or of several inputs. None is a missing value. An image is
                the bytes of a PNG or JPEG file, or its ``Path``: alone, or as one of the rows.
            mc: ask the Monte Carlo endpoint, for uncertainty.
            **settings: Monte Carlo settings: samples, seed, scheme, coverage, tolerance.

        Raises:
            RequestError: if the server refuses the request; the message is the server's.
            ServerError: if the server is down, too busy, or does not serve the model.
            UsageError: if the arguments cannot make a request.
        """
        request = self.request(model, instances, mc=mc, settings=settings)
        return self.answer(request, self._send(request), lambda response: read_answer(response.json()))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        mc: bool = False,
        outputs: Sequence[str] = (),
        id: str | None = None,  # noqa: A002  # the protocol's word
        **settings: Unpack[Settings],
    ) -> Tensors:
        """Ask over the Open Inference Protocol V2, with binary tensors: arrays there and back, bit for bit.

        Args:
            model: the model's name.
            inputs: for the name of each input [B, ...] in the dtype of the model. A table with categories has
                an input for each column: numbers (NaN for a missing one), or texts (None).
            mc: ask the Monte Carlo endpoint; statistics are outputs of their own.
            outputs: names of the outputs wanted; all by default.
            id: echoed.
            **settings: Monte Carlo settings.

        Raises:
            RequestError, ServerError, UsageError: as :meth:`predict`.
        """
        request = self.tensors(model, inputs, mc=mc, outputs=outputs, identity=id, settings=settings)
        return self.answer(request, self._send(request), unpack)

    def _send(self, request: Request) -> httpx.Response:
        for attempt in itertools.count():
            try:
                response = self._http.post(request.path, content=request.body, headers=request.headers)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.unreachable(error) from error
            pause = self.pause(attempt, response)
            if pause is None:
                return response
            time.sleep(pause)
        raise AssertionError  # counting never ends

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
        self, model: str, instances: Any, *, mc: bool = False, **settings: Unpack[Settings]
    ) -> Answer:
        """As :meth:`Client.predict`."""
        request = self.request(model, instances, mc=mc, settings=settings)
        response = await self._send(request)
        return self.answer(request, response, lambda found: read_answer(found.json()))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        mc: bool = False,
        outputs: Sequence[str] = (),
        id: str | None = None,  # noqa: A002  # the protocol's word
        **settings: Unpack[Settings],
    ) -> Tensors:
        """As :meth:`Client.infer`."""
        request = self.tensors(model, inputs, mc=mc, outputs=outputs, identity=id, settings=settings)
        return self.answer(request, await self._send(request), unpack)

    async def _send(self, request: Request) -> httpx.Response:
        for attempt in itertools.count():
            try:
                response = await self._http.post(request.path, content=request.body, headers=request.headers)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.unreachable(error) from error
            pause = self.pause(attempt, response)
            if pause is None:
                return response
            await asyncio.sleep(pause)
        raise AssertionError  # counting never ends

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
