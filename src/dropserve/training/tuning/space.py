"""Which arguments of a model set which dropout rates, and what values are tried."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dropserve.errors import UsageError
from dropserve.model import ModelClass
from dropserve.training.recipe import OptimiserTable
from dropserve.training.run import Prepared
from dropserve.training.stack import stacked_net
from dropserve.training.stack.recipe import part_rows

_HIGHEST = 0.7
_LEARNING = {"sgd": (1e-3, 1.0)}
_DECAY = {"adamw": (1e-4, 1.0)}


@dataclass(frozen=True)
class RateArgument:
    """An argument of the model's constructor that sets the rate of some dropout sites.

    Attributes:
        name: of the argument.
        own: its value in the recipe, or its default.
        sites: the places of those sites, in the order in which they run.
    """

    name: str
    own: float
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """What is tuned.

    Attributes:
        arguments: that set dropout rates.
        shared: whether one rate is tuned for all, each keeping its share of the greatest; else one for each.
        template: arguments of a model in which every site runs.
        sites: rates of the dropout sites of that model.
        highest: rate that is tried.
        learning: bounds of the learning rate.
        decay: bounds of the weight decay.
    """

    arguments: tuple[RateArgument, ...]
    shared: bool
    template: dict[str, Any]
    sites: tuple[float, ...]
    highest: float
    learning: tuple[float, float]
    decay: tuple[float, float]

    @property
    def names(self) -> tuple[str, ...]:
        """What each tuned rate is called."""
        return ("p",) if self.shared else tuple(f"p_{each.name}" for each in self.arguments)

    def rates(self, values: Mapping[str, float]) -> dict[str, float]:
        """The value of each argument for tuned rates by name."""
        if not self.shared:
            return {each.name: values[f"p_{each.name}"] for each in self.arguments}
        greatest = max(each.own for each in self.arguments)
        share = {each.name: each.own / greatest if greatest else 1.0 for each in self.arguments}
        return {name: values["p"] * part for name, part in share.items()}

    def site_rates(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """The rate of each site; sites that no argument sets keep their own."""
        found, rates = list(self.sites), self.rates(values)
        for each in self.arguments:
            for site in each.sites:
                found[site] = rates[each.name]
        return tuple(found)

    def own(self, optimiser: OptimiserTable) -> dict[str, float]:
        """The recipe's own values."""
        if self.shared:
            rates = {"p": max(each.own for each in self.arguments)}
        else:
            rates = {f"p_{each.name}": each.own for each in self.arguments}
        return rates | {
            "learning_rate": optimiser.learning_rate,
            # The scale is a logarithm's: for no decay at all stands the least.
            "weight_decay": max(optimiser.weight_decay, self.decay[0]),
        }


def find_space(prepared: Prepared, *, shared: bool) -> Space:
    """Find the arguments that set dropout rates, by building the model with a rate of its own for each.

    Raises:
        UsageError: if no argument does.
    """
    recipe = prepared.file.recipe
    candidates = _candidates(prepared.source, recipe.model.arguments)
    marks = {name: round(0.11 + 0.013 * place, 6) for place, name in enumerate(candidates)}
    template = dict(recipe.model.arguments) | {
        name: mark for name, mark in marks.items() if _sites(prepared, name, mark, recipe.model.arguments)
    }
    rates = _rates(prepared, template)
    arguments = tuple(
        RateArgument(name, candidates[name], sites)
        for name, mark in marks.items()
        if name in template
        and (sites := tuple(place for place, rate in enumerate(rates) if abs(rate - mark) < 1e-9))
    )
    if not arguments:
        raise UsageError(
            f"{recipe.model.spec}: no argument of its constructor sets a dropout rate, so no recipe could "
            "say what was found; give it one, such as def __init__(self, ..., p: float = 0.5)"
        )
    name = recipe.optimiser.name
    return Space(
        arguments,
        shared,
        template,
        rates,
        max(_HIGHEST, *(each.own for each in arguments)),
        _widened(_LEARNING.get(name, (1e-4, 3e-2)), recipe.optimiser.learning_rate),
        _widened(_DECAY.get(name, (1e-7, 1e-2)), recipe.optimiser.weight_decay),
    )


def _candidates(source: ModelClass, given: Mapping[str, Any]) -> dict[str, float]:
    """Arguments that could be rates: numbers from 0 to below 1, given or by default."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(source.cls).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    } | dict(given)
    return {
        name: float(value)
        for name, value in known.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    }


def _sites(prepared: Prepared, name: str, mark: float, given: Mapping[str, Any]) -> bool:
    """Whether a model with this argument at this value has a site of that rate."""
    try:
        rates = _rates(prepared, {**given, name: mark})
    except Exception:  # noqa: BLE001  # a constructor may refuse a value that is no rate to it
        return False
    return any(abs(rate - mark) < 1e-9 for rate in rates)


def _rates(prepared: Prepared, arguments: Mapping[str, Any]) -> tuple[float, ...]:
    model: nn.Module = prepared.source.build(dict(arguments))
    dataset = prepared.dataset
    return stacked_net(model, part_rows(dataset, dataset.split.train[:4]).features).rates


def _widened(bounds: tuple[float, float], own: float) -> tuple[float, float]:
    """Bounds that hold the recipe's own value, unless it is 0."""
    return (min(bounds[0], own), max(bounds[1], own)) if own else bounds
