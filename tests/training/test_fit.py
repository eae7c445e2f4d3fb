"""Training: repeatable, quiet, equal to a loop written by hand, and keeping the best weights."""

from __future__ import annotations

import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from dropserve.errors import TrainingError, UsageError
from dropserve.model import build_served, load_class
from dropserve.store import Store
from dropserve.training.data import Dataset, load_dataset
from dropserve.training.fit import Fitted, fit
from dropserve.training.hardware import choose_device
from dropserve.training.learner import Batches, Epoch
from dropserve.training.recipe import Recipe
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare, train
from dropserve.training.seeding import seeded

HERE = Path()


class Normed(nn.Module):
    """BatchNorm and dropout in few weights."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def ready(content: dict[str, Any], **training: Any) -> tuple[Recipe, Dataset]:
    overrides = {f"training.{key}": value for key, value in training.items()}
    recipe = check_recipe(content, HERE / "recipe.toml", overrides)
    return recipe, load_dataset(recipe, HERE)


def run(content: dict[str, Any], **training: Any) -> Fitted:
    recipe, dataset = ready(content, **training)
    return fit(Normed, dataset, recipe)


def weights(fitted: Fitted) -> list[torch.Tensor]:
    return list(fitted.model.state_dict().values())


def test_the_same_recipe_gives_the_same_weights_to_the_bit(recipe: dict[str, Any]) -> None:
    first, second, other = run(recipe), run(recipe), run(recipe, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    numbers = [[(r.train_loss, r.validation_loss, r.score) for r in each.curve] for each in (first, second)]
    assert numbers[0] == numbers[1]
    assert not all(torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))


def test_no_generator_of_the_caller_moves(recipe: dict[str, Any]) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the very generator that must not move
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002  # as above
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # as above
    torch.manual_seed(1)
    run(recipe, epochs=2)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002  # as above


def test_on_a_cpu_no_gpu_is_touched(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose GPU is full."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("init", "_lazy_init", "get_rng_state", "get_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, full)
    assert str(run(recipe, epochs=2, device="cpu").hardware) == "cpu"


def test_a_loop_by_hand_learns_the_same(recipe: dict[str, Any]) -> None:
    settings, dataset = ready(recipe | {"optimiser": {"learning_rate": 0.01, "schedule": "cosine"}})
    ours = fit(Normed, dataset, settings)
    x, y, split = torch.from_numpy(dataset.features), torch.from_numpy(dataset.target), dataset.split
    losses = []
    with seeded(0):
        model = Normed()
        # Fused, as ours: the gradient of a bias before BatchNorm is rounding alone, which Adam scales up.
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 8)
        order = torch.Generator().manual_seed(0)
        for _ in range(8):
            model.train()
            for batch in torch.randperm(len(split.train), generator=order).split(16):
                rows = split.train[batch]
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
            schedule.step()
            with torch.no_grad():
                output = model.eval()(x[split.validation])
            losses.append(nn.functional.cross_entropy(output, y[split.validation]).item())
    assert [row.validation_loss for row in ours.curve] == pytest.approx(losses, rel=1e-6)


def test_the_weights_are_those_of_the_best_epoch(recipe: dict[str, Any]) -> None:
    recipe["optimiser"]["learning_rate"] = 0.3  # so rough that the last epoch is not the best
    settings, dataset = ready(recipe)
    fitted = fit(Normed, dataset, settings)
    best = min(fitted.curve, key=lambda row: row.validation_loss)
    assert fitted.best == best
    assert best.number < len(fitted.curve)
    rows = dataset.split.validation
    with torch.no_grad():
        output = fitted.model(torch.from_numpy(dataset.features[rows]))
    target = torch.from_numpy(dataset.target[rows])
    assert nn.functional.cross_entropy(output, target).item() == pytest.approx(best.validation_loss, rel=1e-6)
    assert (output.argmax(1) == target).float().mean().item() == pytest.approx(best.score)
    assert not fitted.model.training


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_complex_parameters_learn_too(recipe: dict[str, Any], name: str) -> None:
    class Waves(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward((x * self.phase).real)

    settings, dataset = ready(recipe | {"optimiser": {"name": name}})
    before, fitted = torch.ones(4, dtype=torch.complex64), fit(Waves, dataset, settings)
    assert not torch.equal(fitted.model.state_dict()["phase"], before)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_best_epoch_may_be_that_of_the_best_score(recipe: dict[str, Any], task: str) -> None:
    if task == "regression":
        recipe |= {"task": "regression", "data": {"source": "make_regression", "samples": 200, "features": 4,
                   "informative": 2, "noise": 5.0}}  # fmt: skip
        recipe["training"] |= {"noise": "heteroscedastic"}
    recipe["optimiser"]["learning_rate"] = 0.1
    recipe["training"] |= {"monitor": "score", "patience": 9, "epochs": 60}
    settings, dataset = ready(recipe)
    fitted = fit(lambda: Normed(2 if task == "regression" else 3), dataset, settings)
    sign = -1 if task == "classification" else 1
    best = min(fitted.curve, key=lambda row: sign * row.score)  # the first, where several are as good
    assert fitted.best == best
    assert best != min(fitted.curve, key=lambda row: row.validation_loss), "the case is chosen to differ"
    assert fitted.stopped_early
    assert len(fitted.curve) == best.number + 9
    rows = dataset.split.validation
    with torch.no_grad():
        output = fitted.model(torch.from_numpy(dataset.features[rows]))
    target = torch.from_numpy(dataset.target[rows])
    if task == "classification":
        assert (output.argmax(1) == target).float().mean().item() == pytest.approx(best.score)
    else:
        scale = dataset.preprocessing.target
        assert scale is not None
        rmse = (output[:, 0] - target).square().mean().sqrt().item() * scale.scale[0]
        assert rmse == pytest.approx(best.score, rel=1e-4)


def test_the_last_epoch_may_be_kept_whatever_it_is(recipe: dict[str, Any]) -> None:
    recipe["optimiser"]["learning_rate"] = 0.3
    recipe["training"] |= {"monitor": "nothing", "patience": 0}
    settings, dataset = ready(recipe)
    fitted = fit(Normed, dataset, settings)
    last = fitted.curve[-1]
    assert fitted.best == last
    assert len(fitted.curve) == settings.training.epochs
    assert last.validation_loss > min(row.validation_loss for row in fitted.curve)
    rows = dataset.split.validation
    with torch.no_grad():
        output = fitted.model(torch.from_numpy(dataset.features[rows]))
    target = torch.from_numpy(dataset.target[rows])
    assert nn.functional.cross_entropy(output, target).item() == pytest.approx(last.validation_loss, rel=1e-6)


def test_a_last_epoch_without_a_loss_is_not_replaced_in_silence(recipe: dict[str, Any]) -> None:
    class Breaks(Normed):
        forwards = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.forwards += not self.training
            return super().forward(x) * (float("nan") if self.forwards > 2 and not self.training else 1.0)

    settings, dataset = ready(recipe, epochs=4, monitor="nothing", patience=0)
    with pytest.raises(TrainingError, match=r"loss was nan in the last epoch, .*monitor = .nothing. keeps"):
        fit(Breaks, dataset, settings)


def test_early_stopping_waits_exactly_its_patience(recipe: dict[str, Any]) -> None:
    recipe["optimiser"]["learning_rate"] = 0.3
    fitted = run(recipe, epochs=200, patience=4)
    assert fitted.stopped_early
    assert len(fitted.curve) == fitted.best.number + 4
    assert len(run(recipe, epochs=20, patience=0).curve) == 20


def test_regression_tells_rmse_in_the_targets_unit(recipe: dict[str, Any]) -> None:
    recipe |= {"task": "regression", "data": {"source": "make_regression", "samples": 200, "features": 4,
               "informative": 2, "noise": 5.0}}  # fmt: skip
    settings, dataset = ready(recipe)
    fitted = fit(lambda: Normed(1), dataset, settings)
    rows = dataset.split.validation
    target = dataset.preprocessing.target
    assert target is not None
    with torch.no_grad():
        standardised = fitted.model(torch.from_numpy(dataset.features[rows]))[:, 0].numpy()
    predicted = standardised * target.scale[0] + target.mean[0]
    rmse = np.sqrt(np.mean((predicted - dataset.table.target[rows]) ** 2))
    assert fitted.best.score == pytest.approx(rmse, rel=1e-4)


def test_a_heteroscedastic_regressor_scores_its_values_and_stops_by_its_likelihood(
    recipe: dict[str, Any],
) -> None:
    recipe |= {"task": "regression", "data": {"source": "make_regression", "samples": 200, "features": 4,
               "informative": 2, "noise": 5.0}}  # fmt: skip
    recipe["training"] |= {"noise": "heteroscedastic"}
    settings, dataset = ready(recipe)
    fitted = fit(lambda: Normed(2), dataset, settings)
    rows, target = dataset.split.validation, dataset.preprocessing.target
    assert target is not None
    with torch.no_grad():
        mean, log_variance = fitted.model(torch.from_numpy(dataset.features[rows])).numpy().T
    rmse = np.sqrt(np.mean(np.square(mean - dataset.target[rows]))) * target.scale[0]
    assert fitted.best.score == pytest.approx(rmse, rel=1e-4)
    loss = -norm.logpdf(dataset.target[rows], mean, np.exp(log_variance / 2)).mean()
    assert fitted.best.validation_loss == pytest.approx(loss, rel=1e-4)


def test_a_regressor_may_answer_without_its_last_axis(recipe: dict[str, Any]) -> None:
    class Flat(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)[:, 0]

    recipe |= {"task": "regression", "data": {"source": "make_regression", "samples": 100, "features": 4,
               "informative": 2}}  # fmt: skip
    settings, dataset = ready(recipe)
    flat, column = fit(lambda: Flat(1), dataset, settings), fit(lambda: Normed(1), dataset, settings)
    assert [row.validation_loss for row in flat.curve] == [row.validation_loss for row in column.curve]


def test_training_writes_no_file_and_says_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(recipe, epochs=2)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_whoever_watches_is_told_every_epoch(recipe: dict[str, Any]) -> None:
    settings, dataset = ready(recipe)
    rows: list[Epoch] = []
    fitted = fit(Normed, dataset, settings, on_epoch=rows.append)
    assert tuple(rows) == fitted.curve
    assert [row.number for row in rows] == list(range(1, 9))


def test_a_loss_that_is_no_number_says_what_to_change(recipe: dict[str, Any]) -> None:
    recipe["optimiser"] = {"name": "sgd", "learning_rate": 1e30}
    with pytest.raises(TrainingError, match=r"loss was nan .*lower optimiser.learning_rate \(now 1e\+30\)"):
        run(recipe)


def test_ctrl_c_is_an_interrupt_and_ctrl_c_still_works_afterwards(recipe: dict[str, Any]) -> None:
    def press(_: Epoch) -> None:
        signal.raise_signal(signal.SIGINT)

    settings, dataset = ready(recipe)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(Normed, dataset, settings, on_epoch=press)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_to_end_is_no_success(recipe: dict[str, Any]) -> None:
    settings, dataset = ready(recipe)
    with pytest.raises(SystemExit) as caught:
        fit(Normed, dataset, settings, on_epoch=lambda _: signal.raise_signal(signal.SIGTERM))
    assert caught.value.code == 143


def test_an_error_in_the_model_is_not_swallowed(recipe: dict[str, Any]) -> None:
    class Breaks(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) == 16:
                raise ZeroDivisionError("in the middle")
            return self.layers(x)

    settings, dataset = ready(recipe)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        fit(Breaks, dataset, settings)


def test_mixed_precision_keeps_weights_and_scores_in_32_bits(recipe: dict[str, Any]) -> None:
    seen: set[torch.dtype] = set()

    class Watched(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output = self.layers(x)
            seen.add(output.dtype)
            return output

    settings, dataset = ready(recipe, precision="bf16-mixed", epochs=30)
    mixed = fit(Watched, dataset, settings)
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in weights(mixed) if weight.is_floating_point()} == {torch.float32}
    assert mixed.hardware.precision == "bf16-mixed"
    whole = run(recipe, epochs=30)
    assert abs(mixed.best.score - whole.best.score) < 0.1
    assert mixed.best.validation_loss == pytest.approx(whole.best.validation_loss, abs=0.05)
    assert mixed.best.validation_loss != whole.best.validation_loss


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(UsageError, match=r"device: got 'cuda'.*allowed: auto, cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"


@given(count=st.integers(2, 200), size=st.integers(2, 40), seed=st.integers(0, 99))
def test_each_row_comes_once_an_epoch_and_never_alone(count: int, size: int, seed: int) -> None:
    rows = torch.arange(count)
    batches = Batches(rows, rows * 2, size, seed)
    epochs = [list(batches), list(batches)]
    for epoch in epochs:
        assert len(epoch) == len(batches)
        assert sorted(torch.cat([x for x, _ in epoch]).tolist()) == list(range(count))
        assert all(torch.equal(x * 2, y) for x, y in epoch)
        assert all(2 <= len(x) <= size + 1 for x, _ in epoch)
    if count > 20:
        assert not torch.equal(*(torch.cat([x for x, _ in epoch]) for epoch in epochs))


def test_a_last_batch_of_one_row_does_not_stop_batchnorm(recipe: dict[str, Any]) -> None:
    rows = len(ready(recipe)[1].split.train)
    assert rows % 21 == 1
    assert run(recipe, batch_size=21, epochs=2).curve


def test_a_model_that_works_in_place_on_its_input_harms_no_row(recipe: dict[str, Any]) -> None:
    class InPlace(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x.mul_(2))

    class Copying(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x * 2)

    settings, dataset = ready(recipe)
    before = dataset.features.copy()
    curves = [
        [row.validation_loss for row in fit(net, dataset, settings).curve] for net in (InPlace, Copying)
    ]
    assert curves[0] == curves[1]
    np.testing.assert_array_equal(dataset.features, before)


def test_a_model_with_lazy_layers_is_trained_like_any_other(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.LazyLinear(8), nn.ReLU(), nn.Dropout(0.3), nn.LazyLinear(3))\n"
    )
    recipe["model"] = {"class": "net.py:Net"}
    file = RecipeFile(tmp_path / "recipe.toml", check_recipe(recipe, tmp_path / "recipe.toml"))
    run, fitted = train(prepare(file), Store(tmp_path / "store"))
    assert fitted.curve[-1].train_loss < 0.8 * fitted.curve[0].train_loss
    again = build_served(run).model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in fitted.model.state_dict().items())


def test_shipped_models_are_seeded_from_their_first_weight(recipe: dict[str, Any]) -> None:
    settings, dataset = ready(recipe)
    source = load_class(settings.model.spec)
    torch.manual_seed(123)
    first = fit(lambda: source.build(settings.model.arguments), dataset, settings)
    torch.manual_seed(456)
    second = fit(lambda: source.build(settings.model.arguments), dataset, settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
