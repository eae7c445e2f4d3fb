"""Monte Carlo settings as they travel in ``parameters``, and their bounds."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import SCHEMES, SEED_LIMIT
from dropserve.errors import RequestError, UsageError
from dropserve.serving.instances import describe, quote, whole
from dropserve.serving.query import COVERAGE, Answer

NAMES = ("mc_samples", "mc_seed", "mc_scheme", "mc_coverage", "mc_tolerance")
PREFIX = "mc_"
SUFFIX = "-mc"
_NUMBER = re.compile(r"-?(?=.{1,24}$)(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
_PERCENT = 101  # a whole number up to 100 might be a percentage, or 1 a whole
_ROUNDING = 1e-3  # thousandths: a fraction that was 32-bit once is still the same one
_HEADER = "mc-"  # proxies drop names with underscores
_MOST_NUMBERS = 2**26  # of the samples of one request: 256 MiB of float32


@dataclass(frozen=True)
class Limits:
    """What one request may ask for: the ``handler`` section of ``serving/model-config.yaml``.

    Attributes:
        mc_samples: samples when a request does not say.
        max_mc_samples: the most samples.
        max_mc_passes: the most rows x samples.
        max_image_pixels: the most pixels of all images of a request, as sent or, if that is more, as resized.
    """

    mc_samples: int = 50
    max_mc_samples: int = 1000
    max_mc_passes: int = 200_000
    max_image_pixels: int = 2**24

    def __post_init__(self) -> None:
        """Refuse bounds that no request could meet.

        Raises:
            UsageError: naming the key.
        """
        for key, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 2:
                raise UsageError(f"{key}: {value!r}; expected a whole number of at least 2")
        if self.mc_samples > self.max_mc_samples:
            raise UsageError(f"mc_samples: {self.mc_samples} is above max_mc_samples ({self.max_mc_samples})")


def read_settings(parameters: Mapping[str, Any], limits: Limits) -> Settings:
    """Settings of a request to a Monte Carlo endpoint.

    Args:
        parameters: its parameters that begin with ``mc_``.
        limits: defaults and bounds.

    Raises:
        RequestError: for an unknown name, or a value out of range.
    """
    for name in parameters:
        if name not in NAMES:
            _refuse(f"unknown parameter {quote(name)}; expected {', '.join(NAMES)}")
    usual = limits.max_mc_samples if "mc_tolerance" in parameters else limits.mc_samples
    samples = _whole(parameters, "mc_samples", usual, 2, limits.max_mc_samples)
    seed = _whole(parameters, "mc_seed", 0, -1, SEED_LIMIT - 1)
    scheme = parameters.get("mc_scheme", SCHEMES[0])
    if scheme not in SCHEMES:
        _refuse(f"mc_scheme is {describe(scheme)}; expected one of {', '.join(SCHEMES)}")
    if seed == -1:
        seed = secrets.randbelow(SEED_LIMIT)
    return Settings(samples=samples, seed=seed, scheme=scheme)


def header_settings(headers: Mapping[str, str]) -> dict[str, Any]:
    """Monte Carlo settings of a request whose body has no room for them: ``mc-samples: 100``.

    Args:
        headers: with names in lower case.

    Returns:
        As they would stand in ``parameters``: ``mc_samples``.

    Raises:
        RequestError: for an unknown name.
    """
    found: dict[str, Any] = {}
    for header, text in headers.items():
        if not header.startswith(_HEADER):
            continue
        name = header.replace("-", "_")
        if name not in NAMES:
            known = ", ".join(known.replace("_", "-") for known in NAMES)
            _refuse(f"unknown header {quote(header)}; expected {known}")
        found[name] = read_number(text)
    return found


def read_number(text: str) -> int | float | str:
    """The number that a text writes in decimal, as JSON would have it; other texts as they are."""
    if not _NUMBER.fullmatch(stripped := text.strip()):
        return text
    return int(stripped) if stripped.removeprefix("-").isdigit() else float(stripped)


def read_coverage(parameters: Mapping[str, Any]) -> int:
    """How often sets and intervals shall hold the truth, in parts per thousand.

    Calibration keeps an order statistic for each thousandth, so what lies between two is rounded up: the
    guarantee of the higher holds for it. The answer echoes which it was.

    Raises:
        RequestError: for a value out of range.
    """
    if "mc_coverage" not in parameters:
        return COVERAGE
    share = _fraction(parameters, "mc_coverage", least=_PERCENT, such_as=0.9)
    return max(1, math.ceil(share * 1000 - _ROUNDING))


def read_tolerance(parameters: Mapping[str, Any]) -> float | None:
    """The Monte Carlo error at which a row may stop, a fraction; None runs all samples.

    Raises:
        RequestError: for a value out of range.
    """
    if "mc_tolerance" not in parameters:
        return None
    return _fraction(parameters, "mc_tolerance", least=1, such_as=0.01)


def check_size(settings: Settings, rows: int, numbers: int, limits: Limits) -> None:
    """Refuse a request that would hold a worker for too long.

    Args:
        settings: its samples.
        rows: its rows.
        numbers: numbers that the outputs hold for one row.
        limits: its bounds.

    Raises:
        RequestError: saying how many samples or rows would be allowed.
    """
    passes = rows * settings.samples
    most = min(limits.max_mc_passes, _MOST_NUMBERS // max(1, numbers))
    if passes > most:
        fewer = max(1, most // settings.samples)
        _refuse(
            f"{rows} instances x {settings.samples} samples = {passes} passes; expected at most {most} in "
            f"one request. Ask for fewer samples, or send at most {fewer} instances at once",
            reason="too_large",
        )


def effective(answer: Answer) -> dict[str, int | float | str]:
    """The settings of a Monte Carlo answer as they are echoed; none for a deterministic one."""
    settings = answer.settings
    if settings is None:
        return {}
    found: dict[str, int | float | str] = {
        "mc_samples": settings.samples,
        "mc_seed": settings.seed,
        "mc_scheme": settings.scheme,
        "mc_coverage": answer.coverage / 1000,
    }
    return found if answer.tolerance is None else {**found, "mc_tolerance": answer.tolerance}


def _whole(parameters: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = whole(parameters.get(name, default))
    if type(value) is not int or not least <= value <= most:
        _refuse(f"{name} is {describe(value)}; expected a whole number from {least} to {most}")
    return value


def _fraction(parameters: Mapping[str, Any], name: str, *, least: int, such_as: float) -> float:
    """A fraction, also where it came in whole thousandths, as was once the only way.

    Args:
        parameters: of the request.
        name: of the parameter.
        least: thousandths from which a whole number is taken: 99 might be meant in percent.
        such_as: an example for messages.
    """
    value = parameters[name]
    thousandths = value if value == 1 else whole(value)  # 1.0 might mean all, or a thousandth
    if type(thousandths) is int and least <= thousandths <= 999:
        return thousandths / 1000
    if type(value) is not float or not 0 < value <= 0.999:
        _refuse(
            f"{name} is {describe(value)}; expected a fraction above 0, at most 0.999, such as {such_as} "
            f"(or a whole number of thousandths from {least} to 999)"
        )
    return value


def _refuse(message: str, reason: str = "parameters") -> NoReturn:
    raise RequestError(message, reason=reason)
