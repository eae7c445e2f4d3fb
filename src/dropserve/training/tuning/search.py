"""Optuna's study: proposals in groups, each group trained as one stack, kept in a journal as they end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dropserve.dropout.student import mean_interval
from dropserve.errors import TrainingError, UsageError
from dropserve.training.run import Prepared
from dropserve.training.stack import Member, train_stack
from dropserve.training.stack.recipe import check_stackable, part_rows, stack_losses, stack_settings
from dropserve.training.tuning.space import Space
from dropserve.uncertainty.quantiles import pack, unpack

if TYPE_CHECKING:
    import optuna

_METHOD = 2  # raised whenever former trials would mean something else


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: from 0; 0 is the recipe as it stands.
        values: the tuned rates, ``learning_rate`` and ``weight_decay`` by name.
        loss: the lowest validation loss of its epochs.
        rows: the loss of each validation row at that epoch.
    """

    number: int
    values: dict[str, float]
    loss: float
    rows: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        trials: that gave a loss, in their order.
        space: what was searched.
    """

    trials: tuple[Trial, ...]
    space: Space

    @property
    def best(self) -> Trial:
        """The trial with the lowest validation loss."""
        return min(self.trials, key=lambda trial: trial.loss)

    @property
    def own(self) -> Trial | None:
        """The recipe's own values; None if they gave no loss."""
        return next((trial for trial in self.trials if trial.number == 0), None)

    @property
    def without(self) -> Trial | None:
        """The best trial without dropout; None if none gave a loss."""
        none = [t for t in self.trials if not any(t.values[name] for name in self.space.names)]
        return min(none, key=lambda trial: trial.loss, default=None)

    def behind(self, trial: Trial) -> tuple[float, float] | None:
        """How far a trial's loss lies above the best: mean over rows and half its paired 95% interval.

        None for the best itself. The rows chose the best, so the interval is a little too kind to it.
        """
        best = self.best
        if trial is best or len(trial.rows) != len(best.rows):
            return None
        return mean_interval(np.subtract(trial.rows, best.rows))

    @property
    def verdict(self) -> str:
        """Whether the validation rows tell the best trial from one without dropout."""
        without = self.without
        if without is None:
            return "No trial without dropout gave a loss: whether dropout helps was not measured."
        found = self.behind(without)
        if found is None:
            return "The best trial has no dropout: p = 0 is the best of these trials."
        mean, half = found
        told = f"Without dropout (trial {without.number}) the loss is {mean:.3g} ± {half:.2g} above the best"
        if mean <= half:
            return f"{told}: p = 0 lies within noise of the best (95%, paired by row)."
        return f"{told}: dropout clearly helps on these rows (95%, paired by row)."


def tune(
    prepared: Prepared,
    space: Space,
    folder: Path,
    *,
    trials: int,
    at_once: int = 8,
    told: Callable[[int], None] | None = None,
) -> Tuned:
    """Search until so many trials have ended, those of former calls included.

    The first is the recipe as it stands, the second the same without dropout, and the last the best of the
    others without dropout, so that what dropout is worth is measured at learning rates that suit either.

    Args:
        prepared: a recipe with its data and model; its test rows are not touched.
        space: what to search.
        folder: of the journal.
        trials: how many in all.
        at_once: how many are proposed and trained together.
        told: called with the number of trials that have ended.

    Raises:
        UsageError: for fewer than two trials, or a recipe that augments.
        TrainingError: if no trial gave a finite loss.
    """
    import optuna  # noqa: PLC0415  # a second to import

    check_stackable(prepared.file.recipe)
    if trials < 2 or at_once < 1:
        raise UsageError(
            f"trials {trials}, at once {at_once}: expected at least 2 trials (the recipe as it stands, and "
            "the same without dropout) and 1 at once"
        )
    study = _open(prepared, space, folder)
    states = optuna.trial.TrialState
    while (ended := len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL)))) < trials:
        if told:
            told(ended)
        left = trials - ended
        if left == 1 and ended > 1:
            _ask_without_dropout(study, space)
        asked = [
            study.ask() for _ in range(min(at_once, left - 1 if left > 1 and ended + left > 2 else left))
        ]
        values = [_suggest(trial, space) for trial in asked]
        for trial, rows in zip(asked, _losses(prepared, space, values), strict=True):
            if rows:
                trial.set_user_attr("rows", pack(rows))
                study.tell(trial, float(np.mean(rows)))
            else:
                study.tell(trial, state=states.FAIL)
    if told:
        told(ended)
    found = tuple(
        Trial(trial.number, dict(trial.params), float(trial.value), unpack(trial.user_attrs["rows"]))
        for trial in study.get_trials(deepcopy=False, states=(states.COMPLETE,))
        if trial.value is not None
    )
    if not found:
        raise TrainingError(f"none of {ended} trials gave a finite validation loss; mend the recipe first")
    return Tuned(found, space)


def journal_of(prepared: Prepared, space: Space, folder: Path) -> Path:
    """The file of this very search: another recipe, data, source or space has another."""
    identity: dict[str, Any] = {
        "method": _METHOD,
        **prepared.content,
        "names": space.names,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder / f"{prepared.file.recipe.name}-{digest[:12]}.journal"


def _open(prepared: Prepared, space: Space, folder: Path) -> optuna.Study:
    import optuna  # noqa: PLC0415  # as above
    from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415  # as above

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = journal_of(prepared, space, folder)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    sampler = optuna.samplers.TPESampler(
        seed=prepared.file.recipe.training.seed, multivariate=True, constant_liar=True
    )
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))),
        study_name="tune",
        direction="minimize",
        sampler=sampler,
        load_if_exists=True,
    )
    if fresh:
        own = space.own(prepared.file.recipe.optimiser)
        study.enqueue_trial(own)
        study.enqueue_trial(own | dict.fromkeys(space.names, 0.0))  # without dropout
    else:
        _go_on(study, sampler)
    return study


def _go_on(study: optuna.Study, sampler: optuna.samplers.BaseSampler) -> None:
    """Put back what was running when the former process ended, and let the sampler draw new numbers."""
    import optuna  # noqa: PLC0415  # as above

    sampler.reseed_rng()
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
        if trial.params:
            study.enqueue_trial(trial.params)


def _ask_without_dropout(study: optuna.Study, space: Space) -> None:
    """Let the next trial be the best one without dropout, unless that has been tried."""
    import optuna  # noqa: PLC0415  # as above

    ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if ended:
        best = min(ended, key=lambda trial: trial.value if trial.value is not None else math.inf)
        wanted = dict(best.params) | dict.fromkeys(space.names, 0.0)
        if all(trial.params != wanted for trial in study.get_trials(deepcopy=False)):
            study.enqueue_trial(wanted)


def _suggest(trial: optuna.Trial, space: Space) -> dict[str, float]:
    values = {name: trial.suggest_float(name, 0.0, space.highest) for name in space.names}
    values["learning_rate"] = trial.suggest_float("learning_rate", *space.learning, log=True)
    values["weight_decay"] = trial.suggest_float("weight_decay", *space.decay, log=True)
    return values


def _losses(prepared: Prepared, space: Space, values: list[dict[str, float]]) -> list[tuple[float, ...]]:
    """Losses of the validation rows where their mean was lowest; none where it never was a finite number.

    All are trained as one stack from the recipe's seed.
    """
    recipe, dataset = prepared.file.recipe, prepared.dataset
    train, validation = (part_rows(dataset, rows) for rows in (dataset.split.train, dataset.split.validation))
    members = [
        Member(
            train,
            seed=recipe.training.seed,
            validation=validation,
            rate=space.site_rates(each),
            learning_rate=each["learning_rate"],
            weight_decay=each["weight_decay"],
        )
        for each in values
    ]
    loss, judged = stack_losses(recipe)
    stack = train_stack(
        lambda: prepared.source.build(space.template),
        members,
        loss,
        stack_settings(recipe),
        validation_loss=judged,
    )
    return [tuple(outcome.row_losses) for outcome in stack.outcomes]
