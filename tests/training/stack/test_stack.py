"""A member of a stack ends where it would end alone, by ``torch.optim`` in a plain loop and by ``fit``."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropserve.errors import UnmaskableError, UsageError
from dropserve.training.fit import fit
from dropserve.training.learner import Batches, build_optimiser
from dropserve.training.recipe import OptimiserTable
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare
from dropserve.training.seeding import seeded
from dropserve.training.stack import (
    Member,
    Rows,
    StackSettings,
    cross_entropy,
    squared_error,
    stacked_net,
    train_stack,
)
from dropserve.training.stack.chain import chain
from dropserve.training.stack.group import mask_rows
from dropserve.training.stack.masks import MaskStream, training_mask
from dropserve.training.stack.mlp import StackedMLP
from dropserve.training.stack.module import StackedModule

FEATURES = 5


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(FEATURES, 12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(12, 9, bias=False),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(9, 1),
    )


class Convolutions(nn.Module):
    """What no chain is: a skip connection, BatchNorm, Dropout2d, functional dropout, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        # A bias before BatchNorm has no slope but rounding, which Adam would blow up to full steps.
        self.first = nn.Conv1d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Conv1d(4, 4, 3, padding=1)
        self.frozen = nn.Linear(4 * FEATURES, 8).requires_grad_(requires_grad=False)
        self.last = nn.Linear(8, 1)
        self.drop = nn.Dropout2d(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x[:, None])))
        h = h + self.drop(self.second(h)[..., None])[..., 0]
        h = nn.functional.dropout(torch.tanh(self.frozen(h.flatten(1))), 0.2, self.training)
        return self.last(h)


def table(rows: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    return Rows(x, torch.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * noise)


class Masks(torch.overrides.TorchFunctionMode):
    """torch's own dropout replaced by the masks of a member: an oracle with none of the trainer's code."""

    def __init__(self, member: Member, rates: tuple[float, ...], rows: int) -> None:
        super().__init__()
        self.member, self.rates, self.rows, self.step, self.site = member, rates, rows, 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in {nn.functional.dropout, nn.functional.dropout2d}:
            return func(*args, **(kwargs or {}))
        x, training = args[0], args[2] if len(args) > 2 else (kwargs or {})["training"]
        if not training:
            return x
        units = tuple(x.shape[1:]) if func is nn.functional.dropout else (x.shape[1], 1, 1)
        shape = (self.rows, *units)
        mask = training_mask(self.member.seed, self.site, self.step, shape, self.rates[self.site])
        self.site += 1
        return x * torch.from_numpy(mask[: len(x)])


def alone(build: Any, member: Member, rates: tuple[float, ...], settings: StackSettings) -> nn.Module:
    """The same training in a plain loop with torch's own optimiser, modules and autograd."""
    with seeded(member.seed):
        model = build().double()
    name, momentum = settings.optimiser, settings.momentum
    table = OptimiserTable(
        name=name, learning_rate=member.learning_rate, weight_decay=member.weight_decay, momentum=momentum
    )
    optimiser = build_optimiser(table, model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    batches = Batches(member.train.features, member.train.target, settings.batch_size, member.seed)
    model.train()
    masks = Masks(member, rates, mask_rows(len(member.train), settings.batch_size))
    for _ in range(settings.epochs):
        for rows, target in batches:
            optimiser.zero_grad()
            masks.site = 0
            with masks:
                output = model(rows)
            nn.functional.mse_loss(output, target.reshape(output.shape)).backward()
            optimiser.step()
            masks.step += 1
        if settings.schedule == "cosine":
            schedule.step()
    return model


def worst_difference(expected: nn.Module, found: dict[str, Tensor]) -> float:
    state = expected.state_dict()
    assert set(state) == set(found)
    return max(
        float((state[name].double() - found[name].double()).abs().max() / state[name].double().abs().max())
        for name in state
    )


@pytest.mark.parametrize(
    ("optimiser", "schedule"),
    [
        ("adamw", "cosine"),
        pytest.param("adam", "constant", marks=pytest.mark.slow),
        pytest.param("sgd", "cosine", marks=pytest.mark.slow),
    ],
)
def test_each_member_equals_its_own_training_after_2000_steps(optimiser: Any, schedule: Any) -> None:
    shared = table(64, 0)
    members = [
        Member(shared, seed=1, learning_rate=3e-3, weight_decay=0.1),
        Member(shared, seed=2, rate=0.0, learning_rate=1e-2, weight_decay=0.0),
        Member(table(61, 3), seed=3, rate=0.4, learning_rate=1e-3),
        Member(table(65, 4), seed=3, rate=(0.05, 0.3, 0.1)),  # the lone last row joins its neighbours
    ]
    settings = StackSettings(
        epochs=500, batch_size=16, optimiser=optimiser, schedule=schedule, dtype=torch.float64
    )
    stack = train_stack(mlp, members, squared_error, settings)
    assert isinstance(stack.net, StackedMLP)
    for place, member in enumerate(members):
        expected = alone(mlp, member, stack.rates[place], settings)
        assert worst_difference(expected, stack.state(place)) < 1e-10
        assert len(stack.outcomes[place].train_loss) == 500


@pytest.mark.parametrize("epochs", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_module_equals_its_own_training_after_2000_steps(epochs: int) -> None:
    members = [Member(table(32, seed), seed=seed, learning_rate=10.0**-seed) for seed in (2, 3)]
    settings = StackSettings(epochs=epochs, batch_size=16, dtype=torch.float64, schedule="cosine")
    stack = train_stack(Convolutions, members, squared_error, settings)
    assert isinstance(stack.net, StackedModule)
    assert stack.rates[0] == (0.3, 0.2)
    for place, member in enumerate(members):
        expected = alone(Convolutions, member, stack.rates[place], settings)
        assert worst_difference(expected, stack.state(place)) < 1e-10


def test_dropout_changes_what_is_learned() -> None:
    """The comparison above would hold if both sides left dropout out."""
    members = [Member(table(64, 0), seed=1, rate=rate) for rate in (0.0, 0.3)]
    stack = train_stack(
        mlp, members, squared_error, StackSettings(epochs=3, batch_size=16, dtype=torch.float64)
    )
    assert not torch.allclose(stack.parameters[0], stack.parameters[1], rtol=1e-3)


@pytest.mark.parametrize("build", [mlp, Convolutions])
def test_company_changes_nothing(build: Any) -> None:
    members = [Member(table(40, seed), seed=seed, rate=0.1 * seed) for seed in range(1, 4)]
    settings = StackSettings(epochs=4, batch_size=16, dtype=torch.float64)
    together = train_stack(build, members, squared_error, settings, width=3)
    apart = train_stack(build, members, squared_error, settings, width=1, workers=2)
    assert torch.allclose(together.parameters, apart.parameters, rtol=1e-12, atol=1e-14)


def test_the_chain_computes_what_the_module_does() -> None:
    generator = torch.Generator().manual_seed(0)
    models = [mlp().double() for _ in range(3)]
    rows = torch.randn(3, 7, FEATURES, generator=generator, dtype=torch.float64)
    fast = stacked_net(models[0], rows[0])
    general = StackedModule(models[0], rows[0])
    masks = [
        torch.rand((3, 8, *shape), generator=generator, dtype=torch.float64) for shape in fast.site_shapes()
    ]
    assert fast.site_shapes() == general.site_shapes()
    assert fast.rates == general.rates == (0.1, 0.2, 0.5)
    for given in (None, masks):
        outputs = [net.forward(*net.gather(models, torch.float64), rows, given) for net in (fast, general)]
        assert torch.allclose(*outputs, rtol=1e-12)
    expected = torch.stack([model.eval()(x) for model, x in zip(models, rows, strict=True)])
    assert torch.allclose(fast.forward(*fast.gather(models, torch.float64), rows, None), expected)
    for model, net in ((models[1], fast), (models[2], general)):
        place = models.index(model)
        state = net.state(*net.gather(models, torch.float64), place)
        assert set(state) == set(model.state_dict())
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + self.layer(x)


@pytest.mark.parametrize(
    "model",
    [
        Twice(),
        Skip(),
        nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(FEATURES, 4).requires_grad_(requires_grad=False), nn.Linear(4, 1)),
        nn.Sequential(nn.ReLU()),
    ],
)
def test_what_is_no_chain_goes_the_general_way(model: nn.Module) -> None:
    assert chain(model) is None


def prepared_small(recipe: dict[str, Any], **training: Any) -> Any:
    content = copy.deepcopy(recipe)
    content["training"] |= training
    content["model"]["arguments"]["dropout"] = 0.0
    path = Path(__file__)
    return prepare(RecipeFile(path, check_recipe(content, path)))


@pytest.mark.parametrize("patience", [0, 2])
def test_without_dropout_a_member_equals_the_recipes_own_training(
    recipe: dict[str, Any], patience: int
) -> None:
    rate = 0.1 if patience else 0.01
    recipe["optimiser"]["learning_rate"] = rate
    prepared = prepared_small(recipe, patience=patience, epochs=25)
    fitted = fit(prepared.build, prepared.dataset, prepared.file.recipe)
    parts = [
        Rows(
            torch.from_numpy(prepared.dataset.features[rows]), torch.from_numpy(prepared.dataset.target[rows])
        )
        for rows in (prepared.dataset.split.train, prepared.dataset.split.validation)
    ]
    settings = StackSettings(epochs=25, batch_size=16, patience=patience)
    members = [
        Member(parts[0], 0, parts[1], learning_rate=rate),
        Member(parts[0], 5, parts[1], learning_rate=1e-5),  # goes on when the other has stopped
    ]
    stack = train_stack(prepared.build, members, cross_entropy, settings)
    outcome = stack.outcomes[0]
    assert outcome.best_epoch == fitted.best.number
    assert outcome.stopped_early == fitted.stopped_early
    assert outcome.validation_loss == pytest.approx([row.validation_loss for row in fitted.curve], rel=1e-4)
    assert outcome.train_loss == pytest.approx([row.train_loss for row in fitted.curve], rel=1e-4)
    for name, value in fitted.model.state_dict().items():
        assert torch.allclose(value, stack.state(0)[name], atol=1e-4)
    assert len(stack.outcomes[1].validation_loss) == 25
    if patience:
        assert outcome.stopped_early
    logits = stack.predict(parts[1].features)[0]
    assert torch.allclose(logits, fitted.model(parts[1].features), atol=1e-3)


def test_a_member_that_diverges_leaves_the_others_alone() -> None:
    rows, settings = table(40, 1), StackSettings(epochs=6, batch_size=8, optimiser="sgd", dtype=torch.float64)
    good = Member(rows, 1, rows, learning_rate=1e-3)
    wild = Member(rows, 2, rows, learning_rate=1e6)
    stack = train_stack(mlp, [wild, good], squared_error, settings)
    lone = train_stack(mlp, [good], squared_error, settings)
    assert stack.outcomes[0].stopped_early
    assert torch.allclose(stack.parameters[1], lone.parameters[0], rtol=1e-12)


def test_masks_are_those_of_the_rate_and_of_nothing_else() -> None:
    shape = (40, 33)  # no multiple of what one count of the generator gives
    stream = MaskStream([7, 8, 9], [0.25, 0.0, 0.25], site=1, shape=shape, step=5, dtype=torch.float64)
    for step in (5, 6):
        masks = stream.next()
        assert np.array_equal(masks[0], training_mask(7, 1, step, shape, 0.25))
        assert masks[1].eq(1).all()
        assert not torch.equal(masks[0], masks[2])
    draws = np.stack([training_mask(3, 0, step, (100, 50), 0.3) for step in range(200)])
    assert set(np.unique(draws)) == {0.0, draws.max()}
    assert draws.max() == pytest.approx(1 / 0.7, rel=1e-4)
    assert abs(draws.mean() - 1) < 4 * math.sqrt(0.3 / 0.7 / draws.size)
    kept = (draws > 0).reshape(200, -1)
    counts = kept.sum(axis=0)  # each unit's over the steps: binomial
    assert counts.var() == pytest.approx(200 * 0.3 * 0.7, rel=0.1)
    assert abs(np.corrcoef(kept[:-1].ravel(), kept[1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        ([], {}, "nothing to train"),
        ([Member(table(8, 0))], {"batch_size": 1}, "batch_size 1"),
        ([Member(table(8, 0))], {"patience": 3}, "needs validation rows"),
        ([Member(table(8, 0)), Member(table(8, 0), validation=table(8, 1))], {}, "give all, or none"),
        ([Member(table(8, 0), rate=(0.1,))], {}, "expected 3 numbers"),
        ([Member(table(8, 0), rate=1.0)], {}, "from 0 to below 1"),
    ],
)
def test_bad_stacks_are_refused(members: list[Member], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_stack(mlp, members, squared_error, StackSettings(**{"epochs": 1, **settings}))


def test_a_dropout_that_shifts_is_refused() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(4, 1))
    with pytest.raises(UnmaskableError, match="alpha_dropout"):
        train_stack(lambda: model, [Member(table(8, 0))], squared_error, StackSettings(epochs=1))
