"""Which operators are random: torch's tags and flags against what its generator does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn

from dropserve.export.audit.operators import find_operator, is_random
from dropserve.export.audit.optrace import record
from dropserve.export.audit.probe import Probe
from dropserve.export.subject import Subject
from dropserve.signature import parse_input

Call = Callable[[torch.Tensor], torch.Tensor]

CALLS: dict[str, Call] = {
    "dropout on": lambda x: F.dropout(x, 0.5),
    "dropout off": lambda x: F.dropout(x, 0.5, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "alpha on": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "alpha off": F.alpha_dropout,
    "features on": lambda x: F.dropout1d(x, 0.5),
    "rrelu on": lambda x: F.rrelu(x, training=True),
    "rrelu off": F.rrelu,
    "attention on": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "attention off": lambda x: F.scaled_dot_product_attention(x, x, x),
    "heads off": lambda x: F.scaled_dot_product_attention(*x[:, None].expand(3, -1, 2, -1, -1)),
    "native dropout on": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "native dropout off": lambda x: torch.native_dropout(x, 0.5, False)[0],
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli in place": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "rand_like": torch.rand_like,
    "randn": lambda x: x + torch.randn(4),
    "randint": lambda x: x + torch.randint(3, (4,)),
    "randperm": lambda x: x[:, torch.randperm(3)],
    "multinomial": lambda x: torch.multinomial(x[0].softmax(1), 2).float(),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "gumbel": F.gumbel_softmax,
    "fractional pool": lambda x: F.fractional_max_pool2d(x, 2, output_size=1),
    "linear": lambda x: F.linear(x, torch.ones(2, 4)),
    "softmax": lambda x: x.softmax(-1),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "sort": lambda x: x.sort().values,
    "empty": lambda x: torch.zeros_like(torch.empty(3)) + x[0, 0, 0],
}


class Calling(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_is_random_if_and_only_if_the_generator_moves(name: str) -> None:
    probe = Probe(Subject("model", Calling(CALLS[name]), (parse_input("3,4"),)))
    inputs = {"input": torch.linspace(-1, 1, 24).reshape(2, 3, 4)}
    before = torch.get_rng_state()
    trace = record(probe, inputs)
    moved = not torch.equal(before, torch.get_rng_state())
    assert any(operation.random for operation in trace.operations) is moved


@pytest.mark.parametrize("train", [False, True])
def test_recurrent_layers_are_random_only_in_train_mode(train: bool) -> None:
    layer = nn.LSTM(4, 4, num_layers=2, dropout=0.5).train(train)
    probe = Probe(Subject("model", Calling(lambda x: layer(x)[0]), (parse_input("3,4"),)))
    trace = record(probe, {"input": torch.zeros(2, 3, 4)})
    assert any(operation.random for operation in trace.operations) is train


def test_an_argument_that_is_computed_counts_as_on() -> None:
    operator = find_operator("aten::dropout", "")
    assert is_random(operator, (torch.zeros(1), 0.5, object()), {})
    assert not is_random(operator, (torch.zeros(1), 0.5, False), {})
    assert not is_random(operator, (torch.zeros(1), 0.0, True), {})
    assert find_operator("aten::no_such_operator", "") is None
    assert find_operator("nobody::dropout", "") is None


def test_a_trace_names_what_feeds_the_output_and_what_python_reads() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        x.sum()  # goes nowhere
        scale = float(x.max())
        return x.exp() * scale

    probe = Probe(Subject("model", Calling(call), (parse_input("3,4"),)))
    trace = record(probe, {"input": torch.full((2, 3, 4), 2.0)}, values=True)
    names = [operation.name for operation in trace.operations]
    assert "aten.sum.default" in names
    assert names.index("aten.sum.default") not in trace.feeding
    assert names.index("aten.exp.default") in trace.feeding
    assert [operation.read for operation in trace.operations if operation.is_read] == [2.0]
    assert torch.equal(
        trace.operations[names.index("aten.exp.default")].values[0], torch.full((2, 3, 4), 2.0).exp()
    )
