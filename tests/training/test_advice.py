"""Dropout advice: each of the tutorial's rules is found where it is broken, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dropserve.model import load_class
from dropserve.project import packaged_stages
from dropserve.training.advice import Advice, advise
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare

RECIPES = sorted((packaged_stages() / "training/recipes").glob("*.toml"))
X = torch.linspace(-1, 1, 32).reshape(4, 8)


def rules(model: nn.Module, *inputs: torch.Tensor) -> list[tuple[str, str]]:
    """(rule, module path) of each advice."""
    return [(a.rule, a.where.split(" (")[0]) for a in advise(model, *(inputs or (X,)))]


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 3))


class Functional(nn.Module):
    """Dropout that no walk over modules would find."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.first, self.last, self.p = nn.Linear(8, 8), nn.Linear(8, 3), p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.dropout(self.first(x), self.p, self.training)
        return self.last(torch.sigmoid(hidden))


class DefinedInAnotherOrder(nn.Module):
    """Defined as dropout, activation; called the right way round."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.act, self.b = nn.Linear(8, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.drop(self.act(self.a(x))))


class Residual(nn.Module):
    """Dropout on a branch; what the activation sees is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(x + self.drop(self.a(x))))


class ByHand(nn.Module):
    """A dropout of the user's own making."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.a(x))
        return self.b(hidden * torch.bernoulli(torch.full_like(hidden, 0.5)))


class Text(nn.Module):
    """A transformer with the usual p = 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM, inside one fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, dropout=0.3, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x[:, None].expand(-1, 5, -1))[0][:, -1])


class TwoHeads(nn.Module):
    """Two outputs in a dict, dropout on one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = nn.Linear(8, 3), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"plain": self.a(x), "dropped": self.drop(self.a(x)).unsqueeze(1)}


GOOD: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "after the activation": (net(nn.ReLU(), nn.Dropout(0.5)), X),
    "before a linear layer": (net(nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU()), X),
    "after the last BatchNorm": (net(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)), X),
    "before LayerNorm": (net(nn.ReLU(), nn.Dropout(0.3), nn.LayerNorm(8)), X),
    "channels, pooled": (
        nn.Sequential(
            nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(),
            nn.Linear(32, 3),
        ),
        X,
    ),
    "alpha": (net(nn.SELU(), nn.AlphaDropout(0.2)), X),
    "called in another order": (DefinedInAnotherOrder(), X),
    "on a branch": (Residual(), X),
    "by hand": (ByHand(), X),
    "between the layers of an LSTM": (Recurrent(), X),
    "on the input": (nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3)), X),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_models_are_left_in_peace(name: str) -> None:
    model, rows = GOOD[name]
    assert advise(model, rows) == ()


@pytest.mark.parametrize(
    "path", sorted((packaged_stages() / "training/recipes").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_models_are_left_in_peace(path: Path) -> None:
    assert prepare(load_recipe(path)).advice == ()


BROKEN: dict[str, tuple[nn.Module, list[tuple[str, str]]]] = {
    "before ReLU": (net(nn.Dropout(0.3), nn.ReLU()), [("before-activation", "1")]),
    "before GELU, reshaped in between": (
        net(nn.Dropout(0.3), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.GELU()), [("before-activation", "1")]),
    "in place": (net(nn.Dropout(0.3, inplace=True), nn.ReLU(inplace=True)), [("before-activation", "1")]),
    "before BatchNorm": (net(nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(8)), [("before-batchnorm", "2")]),
    "before BatchNorm, a layer in between": (
        net(nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8)), [("before-batchnorm", "2")]),
    "channels before BatchNorm": (
        nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Dropout2d(0.3),
                      nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 3)),
        [("before-batchnorm", "3")]),
    "on the output": (nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.3)), [("on-output", "1")]),
    "on the output, flattened": (
        nn.Sequential(nn.Linear(8, 1), nn.Dropout(0.3), nn.Flatten(0)), [("on-output", "1")]),
    "on one of two outputs": (TwoHeads(), [("on-output", "drop")]),
    "before the final softmax": (
        nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.3), nn.LogSoftmax(1)), [("before-activation", "1")]),
    "too low": (net(nn.ReLU(), nn.Dropout(0.05)), [("rate", "2")]),
    "too high": (net(nn.ReLU(), nn.Dropout(0.8)), [("rate", "2")]),
    "zero": (net(nn.ReLU(), nn.Dropout(0.0)), [("rate", "2")]),
    "none": (net(nn.ReLU()), [("no-dropout", "Sequential")]),
    "functional": (Functional(), [("before-activation", "the model itself")]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_found_with_its_place(name: str) -> None:
    model, expected = BROKEN[name]
    assert rules(model) == expected


@pytest.mark.parametrize("p", [0.0, 0.1, 0.19, 0.2, 0.35, 0.5, 0.51, 0.9])
def test_the_recommended_rates_are_closed_at_both_ends(p: float) -> None:
    assert bool(advise(net(nn.ReLU(), nn.Dropout(p)), X)) == (not 0.2 <= p <= 0.5)


def test_advice_says_where_why_and_what_to_change() -> None:
    (advice,) = advise(Functional(), X)
    line = Functional.forward.__code__.co_firstlineno + 1
    assert advice == Advice(
        rule="before-activation",
        where=f"the model itself (test_advice.py:{line})",
        why=f"it comes before sigmoid (test_advice.py:{line + 1}): sigmoid(0) is 0.5, "
        "so a dropped unit is not silent",
        change="put the dropout after sigmoid",
    )


def test_a_transformers_usual_rate_is_said_once_and_softly() -> None:
    (advice,) = advise(Text(), torch.randint(0, 20, (3, 5)))
    assert advice.rule == "rate"
    assert "usual in transformers" in advice.why
    assert "7 more" in advice.where
    assert advice.change.startswith("nothing")


def test_a_dropout_that_is_never_called_is_named() -> None:
    model = DefinedInAnotherOrder()
    model.spare = nn.Dropout(0.3)
    assert rules(model) == [("never-runs", "spare")]


def test_several_mistakes_come_most_serious_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9), nn.ReLU(), nn.Linear(8, 3), nn.Dropout(0.3))
    assert rules(model) == [("on-output", "4"), ("before-activation", "1"), ("rate", "1")]


def test_looking_changes_nothing() -> None:
    model = net(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    advise(model, X)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model[1]._forward_hooks


class _Stubborn(nn.Module):
    def forward(self, x: Any) -> Any:
        raise RuntimeError(f"not today, {type(x).__name__}")


def test_a_model_that_cannot_be_watched_is_no_error() -> None:
    (advice,) = advise(_Stubborn(), X)
    assert "RuntimeError: not today" in advice.why


def test_a_model_loaded_from_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    source = (
        "import torch.nn.functional as F\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(8, 3)\n"
        "    def forward(self, x):\n        return F.dropout(self.a(x), 0.3, self.training)\n"
    )
    (tmp_path / "net.py").write_text(source)
    (advice,) = advise(load_class("net.py:Net", tmp_path).build({}), X)
    assert (advice.rule, advice.where) == ("on-output", "the model itself (net.py:8)")
