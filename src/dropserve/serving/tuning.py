"""What an operator may set: ``serving/model-config.yaml`` and ``serving/config.properties``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropserve.errors import UsageError

# TorchServe ignores a key that it does not know, so a slip of the pen would change nothing and say nothing.
_NUMBERS = frozenset({
    "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "jobQueueSize", "responseTimeout",
    "startupTimeout", "maxRetryTimeoutInSec", "clientTimeoutInMills",
})  # fmt: skip
_SECTION = "monteCarlo"
_KEYS = _NUMBERS | {"handler", "place", _SECTION}
_PLACES = ("auto", "server", "process")
_HARMFUL = {
    "asyncCommunication": "with it, requests in flight on a worker that dies are never answered",
    "continuousBatching": "our handler answers whole requests",
    "sequenceBatching": "our handler keeps no state between requests",
    "useVenv": "workers run in the environment of dropserve",
}
_DECIDED = {
    "inference_address": "--port",
    "management_address": "it is private, for readiness alone",
    "metrics_address": "--metrics-port",
    "metrics_config": "our own figures stand in it",
    "grpc_inference_port": "its answers drop parameters, so it is not offered",
    "grpc_management_port": "it is not offered",
    "load_models": "dropserve serve NAME...",
    "models": "serving/model-config.yaml",
    "model_store": "served archives are verified first",
    "enable_model_api": "it would let anyone load code",
    "allowed_urls": "models come from the model store alone",
    "install_py_dep_per_model": "archives install nothing",
    "token_expiration_min": "tokens last as long as the server",
    "disable_token_authorization": "off on loopback, on elsewhere",
    "enable_envvars_config": "settings come from this file alone",
    "decode_input_request": "our codec reads the bytes",
    "service_envelope": "envelopes read only the first request of a batch",
    "default_service_handler": "serving/handler.py",
}


def endpoint_config(path: Path, *, monte_carlo: bool) -> dict[str, Any]:
    """What ``model-config.yaml`` says of one endpoint: its general part, overridden by its own.

    Raises:
        UsageError: naming the file, the key, the value and what is allowed.
    """
    import yaml  # noqa: PLC0415  # hosts only

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys such as batchSize: 16")
    general: dict[str, Any] = {str(key): value for key, value in content.items()}
    own = general.pop(_SECTION, None) or {}
    _check(path, general, _KEYS - {_SECTION})
    _check(path, own, _KEYS - {_SECTION}, f"{_SECTION}.")
    if not monte_carlo:
        return general
    handler = {**(general.get("handler") or {}), **(own.get("handler") or {})}
    return {**general, **own, "handler": handler}


def _check(path: Path, section: Mapping[str, Any], known: frozenset[str], prefix: str = "") -> None:
    for key, value in section.items():
        if key in _HARMFUL:
            raise UsageError(f"{path}: {prefix}{key}: {_HARMFUL[key]}; remove it")
        if key not in known:
            raise UsageError(f"{path}: unknown key {prefix}{key}; expected {', '.join(sorted(known))}")
        if key in _NUMBERS and (type(value) is not int or value < 1):
            raise UsageError(f"{path}: {prefix}{key}: {value!r}; expected a whole number of at least 1")
        if key == "place" and value not in _PLACES:
            raise UsageError(f"{path}: {prefix}place: {value!r}; expected {', '.join(_PLACES)}")
    fewest, most = section.get("minWorkers", 1), section.get("maxWorkers", section.get("minWorkers", 1))
    if fewest != most:
        raise UsageError(
            f"{path}: {prefix}minWorkers {fewest} and {prefix}maxWorkers {most} differ; TorchServe "
            "never adds workers by itself, so make them equal"
        )


@dataclass(frozen=True)
class Properties:
    """``config.properties`` as far as an operator may set it.

    Attributes:
        values: by key.
        vm: arguments of the Java virtual machine.
    """

    values: dict[str, str]
    vm: tuple[str, ...]

    @property
    def has_certificate(self) -> bool:
        """Whether TLS has a certificate that clients can be given."""
        return "keystore" in self.values or {"certificate_file", "private_key_file"} <= set(self.values)

    @property
    def longest_answer(self) -> int:
        """Bytes that an answer may have; TorchServe's frame around it needs some room."""
        return int(self.values.get("max_response_size", "6553500")) - 65_536


def read_properties(path: Path) -> Properties:
    """Read the file.

    Raises:
        UsageError: for a line without ``=``, or a key that ``dropserve serve`` decides itself.
    """
    values: dict[str, str] = {}
    for number, raw in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#!":
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise UsageError(f"{path}:{number}: {line!r} is not KEY=VALUE")
        if key in _DECIDED:
            raise UsageError(f"{path}:{number}: {key} is not set here: {_DECIDED[key]}")
        values[key] = value
    for key in ("max_request_size", "max_response_size"):
        if not re.fullmatch(r"\d{6,10}", values.get(key, "6553500")):
            raise UsageError(f"{path}: {key}={values[key]}; expected bytes, from 100000 up")
    return Properties(values, tuple(values.pop("vmargs", "").split()))


def escape(value: str) -> str:
    """A value as Java's property files want it: ASCII, backslashes doubled."""
    text = value.replace("\\", "\\\\")
    return "".join(c if 31 < ord(c) < 127 else "".join(f"\\u{u:04x}" for u in _utf16(c)) for c in text)


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
