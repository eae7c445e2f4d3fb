"""How an export is judged: what stands in ``export/checks.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dropserve.errors import RecipeError

Format = Literal["onnx", "torchscript"]


class ExportSettings(BaseModel):
    """Tolerances, formats and waivers of an export.

    Attributes:
        tolerance: greatest difference from the eager model, as a share of the output's scale.
        batch_sizes: sizes at which every graph is compared with the eager model.
        opset: operator set of the ONNX files.
        formats: what to write; ``onnx`` is always among them.
        waive: names of checks whose failure does not stop an export.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tolerance: float = Field(default=1e-5, gt=0, le=0.01)
    batch_sizes: tuple[int, ...] = Field(default=(1, 2, 3, 17), min_length=2)
    opset: int = Field(default=18, ge=18, le=23)
    formats: tuple[Format, ...] = ("onnx", "torchscript")
    waive: tuple[str, ...] = ()

    @field_validator("batch_sizes")
    @classmethod
    def _sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 1 or len(set(sizes)) < 2:
            raise ValueError("give at least two different sizes of 1 or more, such as [1, 2, 3, 17]")
        return tuple(dict.fromkeys(sizes))

    @field_validator("formats")
    @classmethod
    def _formats(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if "onnx" not in formats:
            raise ValueError('"onnx" must be among them: it is what serves by default')
        return tuple(dict.fromkeys(formats))

    def waived(self, check: str) -> bool:
        """Whether the failure of a check is accepted."""
        return check in self.waive


def read_settings(path: Path) -> ExportSettings:
    """Read ``checks.toml``.

    Raises:
        RecipeError: with every problem of the file at once, each naming the key, the value and what is
            allowed.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror or error}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"is not TOML: {error}"]) from error
    try:
        return ExportSettings.model_validate(content)
    except ValidationError as error:
        raise RecipeError(str(path), [_problem(part) for part in error.errors()]) from error


def _problem(part: object) -> str:
    details: dict[str, object] = dict(part)  # type: ignore[call-overload]  # pydantic's ErrorDetails is a dict
    location: tuple[object, ...] = details["loc"]  # type: ignore[assignment]  # always a tuple
    key = ".".join(map(str, location))
    if details["type"] == "extra_forbidden":
        known = ", ".join(ExportSettings.model_fields)
        return f"{key}: there is no such key; the keys are {known}"
    return f"{key} = {details['input']!r}: {str(details['msg']).removeprefix('Value error, ')}"
