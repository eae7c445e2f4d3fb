"""What a recipe says about how weights are changed, and what ``tune`` measured when it wrote the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class OptimiserTable(BaseModel):
    """``[optimiser]``: one of torch's, and how its learning rate changes.

    Attributes:
        momentum: of ``sgd``; the others ignore it.
        schedule: ``cosine`` lowers the learning rate to zero over the epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="one of adamw, adam, sgd")
    learning_rate: float = Field(1e-3, gt=0, description="a number above 0")
    weight_decay: float = Field(0.01, ge=0, description="a number, 0 or more")
    momentum: float = Field(0.9, ge=0, lt=1, description="a number from 0 to below 1")
    schedule: Literal["constant", "cosine"] = Field("constant", description="constant or cosine")


class TunedTable(BaseModel):
    """``[tuned]``: what ``tune`` measured when it chose this recipe's dropout rates.

    Attributes:
        trials: 0 if the recipe was not tuned.
        rows: validation rows.
        rates: that it chose, by argument of the model.
        gain: mean over rows of the loss without dropout less the loss at these rates; None if one has none.
        half: half the width of its 95% interval, paired by row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    trials: int = Field(0, ge=0, description="a whole number, 0 or more")
    rows: int = Field(0, ge=0, description="a whole number, 0 or more")
    rates: dict[str, float] = Field({}, description="a table of dropout rates by argument of the model")
    gain: float | None = Field(None, description="a number")
    half: float | None = Field(None, ge=0, description="a number, 0 or more")

    def measured(self, arguments: Mapping[str, JsonValue]) -> bool:
        """Whether a model with these arguments has the rates that tune chose."""
        return bool(self.trials) and all(arguments.get(name) == rate for name, rate in self.rates.items())
