"""Advice about dropout before training, by the tutorial's rules; it never stops a training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dropserve.training.dropout_watch import Meeting, Place, Watched, watch
from dropserve.training.operations import HOMOGENEOUS
from dropserve.training.recipe_optimiser import TunedTable

Rule = Literal["no-dropout", "never-runs", "on-output", "before-batchnorm", "before-activation", "rate"]
LOWEST, HIGHEST = 0.2, 0.5  # the rates the tutorial recommends
USUAL_IN_ATTENTION = 0.05  # transformers use 0.1 (Vaswani et al. 2017)
_ORDER: tuple[Rule, ...] = get_args(Rule)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Advice:
    """One thing to think about.

    Attributes:
        rule: which of the rules.
        where: the module's path, with file and line of the call where known.
        why: what is wrong with it.
        change: what to do instead.
    """

    rule: Rule
    where: str
    why: str
    change: str


def advise(model: nn.Module, *inputs: Tensor) -> tuple[Advice, ...]:
    """Run a copy of a model on a few rows, in training mode, and judge its dropout.

    Args:
        model: any module; it, and the random state, stay as they are.
        inputs: its inputs, at least two rows.

    Returns:
        what to think about, the most serious first; empty if there is nothing.
    """
    try:
        watched = watch(model, inputs)
    except Exception as error:  # noqa: BLE001  # a model that cannot be watched can still be trained
        why = f"the model could not be watched ({type(error).__name__}: {error})"
        return (Advice("no-dropout", type(model).__name__, why, "nothing; there is no advice for it"),)
    met = [_judge(meeting) for meeting in watched.meetings]
    found = dict.fromkeys([*_missing(model, watched), *met, *_rates(watched)])  # once each
    return tuple(sorted(found, key=lambda advice: _ORDER.index(advice.rule)))


def heed(advice: tuple[Advice, ...], tuned: TunedTable) -> tuple[Advice, ...]:
    """The same where ``tune`` chose the rates: a measurement goes before a rule of thumb.

    Where it could not tell the rates from no dropout, that is said instead.
    """
    others = tuple(each for each in advice if each.rule != "rate")
    if tuned.gain is None or tuned.half is None or abs(tuned.gain) > tuned.half:
        return others
    rates = ", ".join(f"{name} = {rate:g}" for name, rate in tuned.rates.items())
    why = (
        f"tune chose it from {tuned.trials} trials; without dropout the loss on {tuned.rows} validation rows "
        f"changes by {tuned.gain:+.3g} ± {tuned.half:.2g}: p = 0 lies within noise of it (95%)"
    )
    change = "nothing; dropout is then worth its uncertainty rather than its regularisation"
    return (*others, Advice("rate", rates, why, change))


def _judge(meeting: Meeting) -> Advice:
    where = str(meeting.place)
    match meeting.what:
        case "activation":
            why = f"it comes before {meeting.shown} ({meeting.at}): {_meaning(meeting)}"
            return Advice("before-activation", where, why, f"put the dropout after {meeting.shown}")
        case "batch-norm":
            through = " through a linear layer" if meeting.through_weights else ""
            return Advice(
                "before-batchnorm",
                where,
                f"it feeds {meeting.shown} ({meeting.at}){through}, which learns a variance with dropout on "
                "that is too large with dropout off",
                "put dropout after the last BatchNorm (Li et al. 2018, arXiv:1801.05134)",
            )
        case "output":
            return Advice(
                "on-output",
                where,
                "it drops the model's own answer: in training, outputs are zero whatever the model knows",
                "end the model with the layer before it",
            )


def _meaning(meeting: Meeting) -> str:
    """What an activation makes of a dropped unit."""
    name, shown = meeting.operation, meeting.shown
    if name in HOMOGENEOUS:
        return f"harmless there, as {shown} keeps zeros, but not with other activations"
    if "softm" in name:
        return "a logit of 0 is a vote like any other, not silence"
    function = getattr(torch, name, None) or getattr(functional, name, None)
    at_zero = float(function(torch.zeros(()))) if function and name not in {"threshold", "glu"} else 0.0
    if at_zero:
        return f"{shown}(0) is {at_zero:.2g}, so a dropped unit is not silent"
    return f"{shown} bends the factor 1/(1-p) that keeps the mean right"


def _rates(watched: Watched) -> Iterable[Advice]:
    usual: dict[str, Place] = {}
    for place in {each.path: each for each in watched.places}.values():
        if LOWEST <= place.p <= HIGHEST:
            continue
        if watched.attention and USUAL_IN_ATTENTION <= place.p < LOWEST:
            usual[str(place)] = place
            continue
        if place.p == 0:
            why = "p = 0 drops nothing"
        elif place.p < LOWEST:
            why = f"p = {place.p:g} regularises little, and gives little uncertainty"
        elif place.p < 1:
            why = f"p = {place.p:g} drops more than half of the units: slow to learn, and prone to underfit"
        else:
            why = "p = 1 drops everything"
        yield Advice(
            "rate",
            str(place),
            why,
            f"rule of thumb: p from {LOWEST:g} to {HIGHEST:g}; a rate that tune measured goes first",
        )
    if usual:  # said once, however many layers there are
        rates = ", ".join(f"{p:g}" for p in sorted({place.p for place in usual.values()}))
        where = next(iter(usual)) + (f" and {len(usual) - 1} more" if len(usual) > 1 else "")
        why = f"p = {rates}: usual in transformers, low elsewhere ({LOWEST:g} to {HIGHEST:g})"
        yield Advice("rate", where, why, "nothing, unless the model overfits")


def _missing(model: nn.Module, watched: Watched) -> Iterable[Advice]:
    ran = {place.path for place in watched.places}
    for path, module in model.named_modules():
        if isinstance(module, _DROPOUTS) and path not in ran:
            yield Advice(
                "never-runs", path, "it is defined, but forward never calls it", "call it, or remove it"
            )
    if not watched.places and not watched.random:
        yield Advice(
            "no-dropout",
            type(model).__name__,
            "no dropout runs in this model: nothing to regularise it, and no uncertainty to serve",
            f"add nn.Dropout after an activation, p from {LOWEST:g} to {HIGHEST:g}",
        )
