"""The study: for each number of training rows and each seed, the same net at every rate, as one stack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import DataError, UsageError
from dropserve.training.data import INPUT, Dataset, fit_scaling
from dropserve.training.overfit.measure import Kind, averaged, co_adaptation, scores
from dropserve.training.run import Prepared
from dropserve.training.stack import Member, Rows, Stack, stacked_net, train_stack
from dropserve.training.stack.recipe import check_stackable, part_rows, stack_losses, stack_settings
from dropserve.training.whole_files import read_json, write_whole

RATES = (0.0, 0.2, 0.3, 0.4, 0.5)
_METHOD = 1  # raised whenever the same settings would give other results


@dataclass(frozen=True)
class Cell:
    """One trained member.

    Scores are accuracy, or RMSE in the target's unit; losses are those of the recipe, dropout off.

    Attributes:
        rows: training rows.
        seed: of the subset, the weights, the batches and the masks.
        rate: the greatest rate of any site; the others keep the recipe's proportions.
        train_score: at the last epoch.
        train_loss: at the last epoch.
        last_validation_loss: at the last epoch.
        last_test_score: at the last epoch.
        validation_score: at the best epoch, by validation loss.
        test_score: at the best epoch.
        averaged_score: test, at the best epoch, by the mean over samples with dropout on.
        co_adaptation: mean absolute correlation of hidden units, test rows, best epoch.
        best_epoch: from 1.
    """

    rows: int
    seed: int
    rate: float
    train_score: float
    train_loss: float
    last_validation_loss: float
    last_test_score: float
    validation_score: float
    test_score: float
    averaged_score: float
    co_adaptation: float
    best_epoch: int

    @property
    def gap(self) -> float:
        """Validation loss less training loss at the last epoch: how far it overfits if nothing stops it."""
        return self.last_validation_loss - self.train_loss


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        sizes: numbers of training rows, ascending.
        seeds: how many.
        rates: of dropout, 0 among them.
    """

    sizes: tuple[int, ...]
    seeds: int
    rates: tuple[float, ...] = RATES

    @classmethod
    def of(cls, dataset: Dataset, small: int | None, seeds: int, rates: Sequence[float] = RATES) -> Plan:
        """A small training set and all of it.

        Args:
            dataset: of the recipe.
            small: training rows of the small set; a tenth by default, at least 50 and two of each class.
            seeds: how many, at least 2.
            rates: at which to train; 0 is added.

        Raises:
            UsageError: for numbers out of range.
        """
        every = len(dataset.split.train)
        least = max(50, 2 * len(dataset.table.labels))
        wanted = min(every, max(least, every // 10)) if small is None else small
        problems: list[str] = []
        if not 10 <= wanted <= every:
            problems.append(f"--small {wanted}: expected 10 to {every}, the training rows")
        if seeds < 2:
            problems.append(f"--seeds {seeds}: expected at least 2, as error bars need a spread")
        if not rates or not all(0 <= rate < 1 for rate in rates):
            problems.append(f"--rates {list(rates)}: expected numbers from 0 to below 1")
        if problems:
            raise UsageError("; ".join(problems))
        return cls(tuple(sorted({wanted, every})), seeds, tuple(sorted({0.0, *rates})))


def run(
    prepared: Prepared, plan: Plan, folder: Path, *, told: Callable[[float], None] | None = None
) -> list[Cell]:
    """Train and measure what is not done yet.

    Args:
        prepared: a recipe with its data and model.
        plan: what to train.
        folder: of the results of each size and seed, which are not done again.
        told: called now and then with the share of all epochs that is done.

    Raises:
        UsageError: if the recipe augments, or its net has no dropout.
        DataError: if a result cannot be read.
    """
    recipe = prepared.file.recipe
    check_stackable(recipe)
    proportions = _proportions(prepared)
    tell, cells = told or _ignore, list[Cell]()
    units = [(size, seed) for size in plan.sizes for seed in range(plan.seeds)]
    weight = sum(size for size, _ in units)
    before = 0
    for size, seed in units:
        path = folder / f"{_identity(prepared, plan)}-{size}-{seed}.json"
        found = read_json(path)
        if found is None:

            def share(done: float, size: int = size, before: int = before) -> None:
                tell((before + size * done) / weight)

            unit = _unit(prepared, size, seed, plan.rates, proportions, share)
            write_whole(path, [asdict(cell) for cell in unit])
        else:
            try:
                unit = [Cell(**each) for each in found]
            except TypeError as error:
                raise DataError(f"{path}: not a result of this study ({error}); remove it") from error
        cells += unit
        before += size
        tell(before / weight)
    return cells


def _ignore(_: float) -> None:
    """Nobody watches."""


def _identity(prepared: Prepared, plan: Plan) -> str:
    identity: dict[str, Any] = {
        "method": _METHOD,
        **prepared.content,
        "rates": plan.rates,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _proportions(prepared: Prepared) -> tuple[float, ...]:
    """Each site's rate over the greatest: what is dropped less in the recipe is dropped less in the study."""
    dataset = prepared.dataset
    rows = part_rows(dataset, dataset.split.train[:4])
    own = stacked_net(prepared.build(), rows.features).rates
    if not own or not max(own):
        raise UsageError(
            f"{prepared.file.path}: {type(prepared.model).__name__} has no dropout above 0 to study; give it "
            "a rate in [model.arguments]"
        )
    return tuple(rate / max(own) for rate in own)


def subset(dataset: Dataset, size: int, seed: int, scaling: str) -> Dataset:
    """The dataset with fewer training rows, classes in proportion, scaled by those rows alone."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  # a second to import

    train = dataset.split.train
    if size == len(train):
        return dataset
    labels = dataset.table.target[train] if dataset.table.labels else None
    if labels is not None and min(size, len(train) - size) < len(dataset.table.labels):
        labels = None  # too few rows to have each class in proportion
    chosen: NDArray[np.int64] = np.sort(
        train_test_split(train, train_size=size, stratify=labels, random_state=seed)[0]  # type: ignore[arg-type]
    )
    # Vocabularies and what fills gaps stay those of all training rows.
    columns = dataset.preprocessing.columns.get(INPUT, ())
    fitted = fit_scaling(dataset.table, chosen, scaling, columns)
    pair = dataset.preprocessing.heteroscedastic
    preprocessing = fitted.model_copy(update={"heteroscedastic": pair}) if pair else fitted
    return replace(dataset, split=replace(dataset.split, train=chosen), preprocessing=preprocessing)


def _unit(
    prepared: Prepared,
    size: int,
    seed: int,
    rates: Sequence[float],
    proportions: Sequence[float],
    told: Callable[[float], None],
) -> list[Cell]:
    """All rates on one training set."""
    recipe = prepared.file.recipe
    dataset = subset(prepared.dataset, size, seed, recipe.data.scaling)
    train, validation, test = (
        part_rows(dataset, rows)
        for rows in (dataset.split.train, dataset.split.validation, dataset.split.test)
    )
    settings, (loss, judged) = stack_settings(recipe), stack_losses(recipe)
    members = [
        Member(
            train,
            seed=seed,
            validation=validation,
            rate=tuple(rate * each for each in proportions),
            learning_rate=recipe.optimiser.learning_rate,
            weight_decay=recipe.optimiser.weight_decay,
        )
        for rate in rates
    ]
    total, done = len(members) * settings.epochs, 0

    def count(epochs: int) -> None:
        nonlocal done
        done += epochs
        told(done / total)

    stack = train_stack(prepared.build, members, loss, settings, validation_loss=judged, on_epoch=count)
    target = dataset.preprocessing.target
    kind = Kind(recipe.task == "classification", judged, target.scale[0] if target else 1.0)
    return _cells(prepared, stack, (train, validation, test), kind, size, seed, rates)


def _cells(
    prepared: Prepared,
    stack: Stack,
    parts: tuple[Rows, Rows, Rows],
    kind: Kind,
    size: int,
    seed: int,
    rates: Sequence[float],
) -> list[Cell]:
    train, validation, test = parts
    ended = stack.ended
    learnt, last, late = (scores(ended, rows, kind) for rows in (train, validation, test))
    chosen, tested = (scores(stack, rows, kind) for rows in (validation, test))
    mean = averaged(stack, test, kind, seed=seed)
    cells: list[Cell] = []
    for place, rate in enumerate(rates):
        model = prepared.build()
        model.load_state_dict(stack.state(place))
        cells.append(
            Cell(
                rows=size,
                seed=seed,
                rate=rate,
                train_score=learnt[place][0],
                train_loss=learnt[place][1],
                last_validation_loss=last[place][1],
                last_test_score=late[place][0],
                validation_score=chosen[place][0],
                test_score=tested[place][0],
                averaged_score=mean[place],
                co_adaptation=co_adaptation(model, test.features),
                best_epoch=stack.outcomes[place].best_epoch,
            )
        )
    return cells
