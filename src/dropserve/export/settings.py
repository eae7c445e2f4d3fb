"""How an export is judged: what stands in ``export/checks.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dropserve.errors import RecipeError
from dropserve.manifest import Precision

Format = Literal["onnx", "torchscript", "masked-onnx"]
Wish = Literal["if-possible", "always", "never"]
SINGLE_FILE = 2**31 - 2**20  # protobuf's own limit, with room for the graph


class Bounds(BaseModel):
    """What a lower precision may cost, measured on held-out rows against the fp32 graphs.

    Attributes:
        largest: greatest difference of any output of any row, as a share of the output's scale.
        typical: root mean square of all differences, as a share of the output's scale.
        accuracy: classification: share of rows that may be lost; regression: by how much of itself the root
            mean square error may grow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    largest: float = Field(default=0.01, gt=0, le=1)
    typical: float = Field(default=0.002, gt=0, le=1)
    accuracy: float = Field(default=0.005, ge=0, le=1)


class Int8Bounds(Bounds):
    """The same for int8: values beyond those seen in calibration are cut off, so single rows may stray."""

    largest: float = Field(default=0.25, gt=0, le=1)
    typical: float = Field(default=0.03, gt=0, le=1)
    accuracy: float = Field(default=0.01, ge=0, le=1)


class ExportSettings(BaseModel):
    """Tolerances, formats and waivers of an export.

    Attributes:
        tolerance: greatest difference from the eager model, as a share of the output's scale.
        batch_sizes: sizes at which every graph is compared with the eager model.
        opset: operator set of the ONNX files.
        formats: what to write; ``onnx`` is always among them.
        precision: of the ONNX files that are served.
        fp16, int8: what that precision may cost.
        torch_export: whether to write ``.pt2`` files too; with ``always``, a refusal fails the export.
        single_file_bytes: above this, the weights of an ONNX file stand in a second file beside it.
        waive: names of checks whose failure does not stop an export.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tolerance: float = Field(default=1e-5, gt=0, le=0.01)
    batch_sizes: tuple[int, ...] = Field(default=(1, 2, 3, 17), min_length=2)
    opset: int = Field(default=18, ge=18, le=23)
    formats: tuple[Format, ...] = ("onnx", "torchscript")
    precision: Precision = "fp32"
    fp16: Bounds = Bounds()
    int8: Int8Bounds = Int8Bounds()
    torch_export: Wish = "if-possible"
    single_file_bytes: int = Field(default=SINGLE_FILE, ge=0, le=SINGLE_FILE)
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

    @model_validator(mode="after")
    def _one_precision(self) -> ExportSettings:
        if self.precision != "fp32" and self.torch_export == "always":
            raise ValueError(
                f'torch_export = "always" asks for fp32, and precision is {self.precision!r}: choose one'
            )
        return self

    @property
    def bounds(self) -> Bounds:
        """What the chosen precision may cost."""
        return self.int8 if self.precision == "int8" else self.fp16

    def waived(self, check: str) -> bool:
        """Whether the failure of a check is accepted."""
        return check in self.waive


def read_settings(path: Path, options: Mapping[str, str | int | None] | None = None) -> ExportSettings:
    """Read ``checks.toml``.

    Args:
        path: the file.
        options: what the command line says, in place of the file's values where it is not None.

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
    content |= {name: value for name, value in (options or {}).items() if value is not None}
    try:
        return ExportSettings.model_validate(content)
    except ValidationError as error:
        raise RecipeError(str(path), [_problem(part) for part in error.errors()]) from error


def _problem(part: object) -> str:
    details: dict[str, object] = dict(part)  # type: ignore[call-overload]  # pydantic's ErrorDetails is a dict
    location: tuple[object, ...] = details["loc"]  # type: ignore[assignment]  # always a tuple
    key = ".".join(map(str, location))
    if not key:
        return str(details["msg"]).removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        fields = ExportSettings if len(location) == 1 else Bounds
        known = ", ".join(fields.model_fields)
        return f"{key}: there is no such key; the keys are {known}"
    return f"{key} = {details['input']!r}: {str(details['msg']).removeprefix('Value error, ')}"
