"""What every client does but waiting: the request as bytes, and what a response means."""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from numpy.typing import ArrayLike

from dropserve.client.tensors import pack
from dropserve.errors import RequestError, ServerError, UsageError
from dropserve.images import kind_of

SUFFIX = "-mc"
T = TypeVar("T")


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


class Settings(TypedDict, total=False):
    """Monte Carlo settings of a request; the server's defaults for what is not given.

    Attributes:
        samples: how many; with a tolerance, the most.
        seed: of the masks; the same seed gives the same answer. -1 lets the server draw one.
        scheme: ``balanced`` or ``iid``.
        coverage: how often prediction sets and intervals shall hold the truth, a fraction such as 0.9.
        tolerance: Monte Carlo error at which each row may stop, a fraction such as 0.01.
    """

    samples: int | None
    seed: int | None
    scheme: str | None
    coverage: float | None
    tolerance: float | None


@dataclass(frozen=True)
class Request:
    """What goes over the wire."""

    path: str
    body: bytes
    headers: dict[str, str]


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

    def request(self, model: str, instances: Any, *, mc: bool, settings: Settings) -> Request:
        """A V1 request, or one image as the body.

        Raises:
            UsageError: if the arguments cannot make one.
        """
        if isinstance(instances, bytes | bytearray | Path):
            return self._image(model, instances, _parameters(model, mc=mc, settings=settings), mc=mc)
        rows = _rows(instances)
        parameters = _parameters(model, mc=mc, settings=settings)
        document = {"instances": rows} | ({"parameters": parameters} if parameters else {})
        try:
            body = json.dumps(document, allow_nan=False, default=_as_json).encode()
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"instances cannot be sent as JSON: {error}; expected rows of finite numbers or texts, None "
                "for a gap"
            ) from error
        return Request(f"/predictions/{_endpoint(model, mc=mc)}", body, {})

    def _image(
        self, model: str, image: bytes | bytearray | Path, parameters: Mapping[str, Any], *, mc: bool
    ) -> Request:
        body = _content(image)
        kind = kind_of(body)
        headers = {"content-type": f"image/{kind.lower()}" if kind else "application/octet-stream"}
        headers |= {name.replace("_", "-"): str(value) for name, value in parameters.items()}
        return Request(f"/predictions/{_endpoint(model, mc=mc)}", body, headers)

    def tensors(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        mc: bool,
        outputs: Sequence[str],
        identity: str | None,
        settings: Settings,
    ) -> Request:
        """A V2 request with binary tensors.

        Raises:
            UsageError: if the arguments cannot make one.
        """
        body, headers = pack(inputs, _parameters(model, mc=mc, settings=settings), outputs, identity)
        return Request(f"/v2/models/{_endpoint(model, mc=mc)}/infer", body, headers)

    def pause(self, attempt: int, response: httpx.Response) -> float | None:
        """Seconds to wait before asking again; None to make do with this response."""
        return 0.1 * 2**attempt if response.status_code == 503 and attempt < self._retries else None

    def answer(self, request: Request, response: httpx.Response, read: Callable[[httpx.Response], T]) -> T:
        """What a response means.

        Raises:
            RequestError: for 4xx; the message is the server's.
            ServerError: for anything else that is no answer.
        """
        if response.status_code != 200:
            self._refuse(request.path.split("/")[3 if request.path.startswith("/v2") else 2], response)
        try:
            return read(response)
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
        if status == 401 or (status == 400 and "Token Authorization" in text):
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


def _endpoint(model: str, *, mc: bool) -> str:
    return quote(f"{model}{SUFFIX}" if mc and not model.endswith(SUFFIX) else model, safe="")


def _parameters(model: str, *, mc: bool, settings: Settings) -> dict[str, Any]:
    if unknown := set(settings) - set(Settings.__annotations__):
        raise UsageError(f"{min(unknown)}: expected {', '.join(Settings.__annotations__)}")
    given = {f"mc_{name}": value for name, value in settings.items() if value is not None}
    if given and not (mc or model.endswith(SUFFIX)):
        raise UsageError(
            f"{', '.join(given)}: only Monte Carlo takes settings; add mc=True (--mc on the command line)"
        )
    return given


def _error_text(response: httpx.Response) -> str:
    try:
        document = response.json()
        return str(document.get("error") or document.get("message") or document)
    except (ValueError, AttributeError):
        return response.text[:300] or response.reason_phrase


def _rows(instances: Any) -> Any:
    """Instances as JSON has them: arrays as lists, a pandas DataFrame as an object for each row."""
    if hasattr(instances, "to_dict") and hasattr(instances, "columns"):
        whole = instances.astype(object)
        return whole.where(whole.notna(), None).to_dict("records")
    return instances.tolist() if hasattr(instances, "tolist") else instances


def _content(image: bytes | bytearray | Path) -> bytes:
    """The bytes of an image.

    Raises:
        UsageError: if its file cannot be read, or is empty.
    """
    try:
        content = image.read_bytes() if isinstance(image, Path) else bytes(image)
    except OSError as error:
        raise UsageError(f"{image} cannot be read: {error.strerror}") from error
    if not content:
        raise UsageError(
            f"{image if isinstance(image, Path) else 'the image'} is empty; expected an image file"
        )
    return content


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | Path):
        return {"b64": base64.b64encode(_content(value)).decode()}
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a number")
