"""What every client does but waiting: the request as bytes, and what a response means."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import httpx

from dropserve.client.results import Answer, read_answer
from dropserve.errors import RequestError, ServerError, UsageError

SUFFIX = "-mc"


def default_url() -> str:
    """The server of this machine: port 8080, or ``DROPSERVE_PORT``."""
    return f"http://127.0.0.1:{os.environ.get('DROPSERVE_PORT') or 8080}"


def trusted(url: str, certificates: Path | None) -> ssl.SSLContext | bool:
    """What to check certificates against.

    Raises:
        UsageError: if the file cannot be read.
    """
    if not url.startswith("https:"):
        return False  # nothing to check, and loading the system's certificates takes its time
    if certificates is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(certificates))
    except OSError as error:
        raise UsageError(f"{certificates} cannot be read as certificates: {error}") from error


class Asking:
    """What both clients share: all but the waiting."""

    def __init__(self, url: str | None, retries: int, token: str | None) -> None:
        self.url = (url or default_url()).rstrip("/")
        self.headers = {"content-type": "application/json"}
        if token := token or os.environ.get("DROPSERVE_TOKEN"):
            self.headers["authorization"] = f"Bearer {token}"
        if retries < 0:
            raise UsageError(f"retries {retries}: expected 0 or more")
        self._retries = retries

    def request(
        self,
        model: str,
        instances: Any,
        *,
        mc: bool,
        samples: int | None,
        seed: int | None,
        scheme: str | None,
        coverage: int | None = None,
    ) -> tuple[str, bytes]:
        """The path and the body of a request.

        Raises:
            UsageError: if the arguments cannot make one.
        """
        given = {"mc_samples": samples, "mc_seed": seed, "mc_scheme": scheme, "mc_coverage": coverage}
        parameters = {name: value for name, value in given.items() if value is not None}
        if parameters and not (mc or model.endswith(SUFFIX)):
            raise UsageError(f"{', '.join(parameters)}: only Monte Carlo takes settings; add mc=True")
        rows = instances.tolist() if hasattr(instances, "tolist") else instances
        document = {"instances": rows} | ({"parameters": parameters} if parameters else {})
        try:
            body = json.dumps(document, allow_nan=False, default=_as_list).encode()
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"instances cannot be sent as JSON: {error}; expected rows of finite numbers"
            ) from error
        endpoint = f"{model}{SUFFIX}" if mc and not model.endswith(SUFFIX) else model
        return f"/predictions/{quote(endpoint, safe='')}", body

    def pause(self, attempt: int, response: httpx.Response) -> float | None:
        """Seconds to wait before asking again; None to make do with this response."""
        return 0.1 * 2**attempt if response.status_code == 503 and attempt < self._retries else None

    def answer(self, path: str, response: httpx.Response) -> Answer:
        """What a response means.

        Raises:
            RequestError: for 4xx; the message is the server's.
            ServerError: for anything else that is no answer.
        """
        if response.status_code != 200:
            self._refuse(path.rpartition("/")[2], response)
        try:
            return read_answer(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(
                f"{self.url} answered, but not as dropserve does ({error}): {response.text[:200]}"
            ) from error

    def _refuse(self, endpoint: str, response: httpx.Response) -> NoReturn:
        text = _error_text(response)
        status = response.status_code
        if status == 404 and endpoint.endswith(SUFFIX):
            raise ServerError(
                f"{self.url} serves no {endpoint}: its model has no dropout, was served with "
                f"--no-mc, or is not served at all ({text})"
            )
        if status == 404:
            raise ServerError(f"{self.url} serves no {endpoint}. Start it with: dropserve serve {endpoint}")
        if status == 400 and "Token Authorization" in text:
            raise ServerError(
                f"{self.url} lets nobody in without its token: give token=..., or DROPSERVE_TOKEN"
            )
        if 400 <= status < 500:
            raise RequestError(text, status=status, reason="refused")
        raise ServerError(f"{self.url} answered {status}: {text}")

    def unreachable(self, error: Exception) -> ServerError:
        """What to say when there was no response at all."""
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{self.url} did not answer in time ({type(error).__name__})")
        return ServerError(f"nothing answers at {self.url} ({error}). Start a server with: dropserve serve")


def _error_text(response: httpx.Response) -> str:
    try:
        document = response.json()
        return str(document.get("error") or document.get("message") or document)
    except (ValueError, AttributeError):
        return response.text[:300] or response.reason_phrase


def _as_list(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a number")
