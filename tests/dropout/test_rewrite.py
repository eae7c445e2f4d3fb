"""Explicit forms against the functions of torch that they stand for."""

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import nn

from dropserve.dropout.attention import scaled_dot_product_attention
from dropserve.dropout.calls import noise_shape, parse_dropout
from dropserve.dropout.mode import DropoutMode
from dropserve.errors import UnmaskableError


class Through(DropoutMode):
    """Lets everything through and counts."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_dropout(self, call):
        self.calls.append(call)
        return call.input


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def masks(kind, rows, heads, length, source):
    if kind == "none":
        return None
    if kind == "bool":
        return torch.rand(length, source) > 0.3
    if kind == "blind":
        mask = torch.rand(length, source) > 0.3
        mask[0] = False
        return mask
    return torch.randn(rows, heads, length, source)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "blind"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_equals_torch_s(kind, scale):
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, 4, 7, 8), torch.randn(3, 4, 7, 6)
    mask = masks(kind, 3, 4, 5, 7)
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    with Through() as mode:
        found = F.scaled_dot_product_attention(q, k, v, mask, 0.2, scale=scale)
    close(found, expected)
    assert [tuple(call.input.shape) for call in mode.calls] == [(3, 4, 5, 7)]


@pytest.mark.parametrize(("length", "source"), [(5, 5), (4, 6)])
def test_causal_and_grouped_attention_equal_torch_s(length, source):
    q, k, v = torch.randn(3, 4, length, 8), torch.randn(3, 2, source, 8), torch.randn(3, 2, source, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    with Through():
        close(scaled_dot_product_attention(q, k, v, None, 0.2, is_causal=True, enable_gqa=True), expected)


def test_attention_without_dropout_is_left_alone():
    q = torch.randn(2, 3, 4)
    with Through() as mode:
        F.scaled_dot_product_attention(q, q, q)
        nn.MultiheadAttention(4, 2)(q, q, q)
    assert not mode.calls


LAYERS = [
    {"batch_first": True},
    {"batch_first": False, "bias": False},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 10},
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("attn_mask", ["none", "shared", "per head"])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
def test_multi_head_attention_equals_torch_s(layer, attn_mask, padding, weights):
    attention = nn.MultiheadAttention(8, 2, dropout=0.3, **layer).eval()
    rows, length, source = 3, 5, 5 if "kdim" not in layer else 7
    q = torch.randn(rows, length, 8)
    k, v = torch.randn(rows, source, layer.get("kdim", 8)), torch.randn(rows, source, layer.get("vdim", 8))
    if not layer.get("batch_first"):
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    mask = {
        "none": None,
        "shared": torch.rand(length, source) > 0.8,
        "per head": torch.randn(rows * 2, length, source),
    }[attn_mask]
    ignored = torch.zeros(rows, source, dtype=torch.bool)
    ignored[1, 3:] = True
    options = {"attn_mask": mask, "key_padding_mask": ignored if padding else None, **weights}
    if mask is not None and padding and mask.dtype != torch.bool:  # torch wants one dtype
        options["key_padding_mask"] = torch.zeros(rows, source).masked_fill(ignored, float("-inf"))
    expected, expected_weights = attention(q, k, v, **options)
    with Through() as mode:
        found, found_weights = attention(q, k, v, **options)
    close(found, expected)
    if expected_weights is None:
        assert found_weights is None
    else:
        close(found_weights, expected_weights)
    (call,) = mode.calls
    assert call.input.shape[:2] == (rows, 2)
    assert call.p == 0.3


def test_attention_that_cannot_be_opened_says_what_to_do():
    attention = nn.MultiheadAttention(8, 2, dropout=0.3)
    q = torch.randn(5, 8)
    with Through(), pytest.raises(UnmaskableError, match="Give batched inputs"):
        attention(q, q, q)


CELLS = list(itertools.product([nn.LSTM, nn.GRU, nn.RNN], [True, False], [True, False], [True, False]))


@pytest.mark.parametrize(("cell", "bidirectional", "batch_first", "bias"), CELLS)
def test_recurrent_layers_one_by_one_are_exactly_the_fused_ones(cell, bidirectional, batch_first, bias):
    rnn = cell(4, 6, 3, dropout=0.3, bidirectional=bidirectional, batch_first=batch_first, bias=bias).eval()
    x = torch.randn(5, 5, 4)
    state = torch.randn(3 * (2 if bidirectional else 1), 5, 6)
    for given in ((x,), (x, (state, state + 1) if cell is nn.LSTM else state)):
        expected, expected_state = rnn(*given)
        with Through() as mode:
            found, found_state = rnn(*given)
        assert torch.equal(found, expected)
        for a, b in _pairs(found_state, expected_state):
            assert torch.equal(a, b)
        assert [call.p for call in mode.calls] == [0.3, 0.3]


def _pairs(a, b):
    return zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projected_lstms_are_exact_too():
    rnn = nn.LSTM(4, 6, 2, dropout=0.3, proj_size=3, bidirectional=True).eval()
    x = torch.randn(5, 3, 4)
    expected, _ = rnn(x)
    with Through() as mode:
        found, _ = rnn(x)
    assert torch.equal(found, expected)
    assert len(mode.calls) == 1


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_packed_sequences_are_refused_with_what_to_do(cell):
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 4), [5, 4, 2])
    with Through(), pytest.raises(UnmaskableError, match="Run it on the padded tensor"):
        cell(4, 6, 2, dropout=0.3)(packed)


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM])
def test_one_layer_or_no_dropout_is_left_alone(cell):
    with Through() as mode:
        cell(4, 6, 2)(torch.randn(5, 3, 4))
    assert not mode.calls


FUNCTIONS = [
    (F.dropout, (4, 5, 6)),
    (F.dropout1d, (40, 6)),
    (F.dropout1d, (4, 50, 6)),
    (F.dropout2d, (4, 50, 6, 6)),
    (F.dropout3d, (40, 3, 4, 5)),
    (F.dropout3d, (4, 20, 3, 4, 5)),
    (F.alpha_dropout, (4, 5, 6)),
    (F.feature_alpha_dropout, (4, 50, 6)),
    (torch.feature_dropout, (4, 50, 6)),
    (torch.feature_dropout, (40, 50)),
]


@pytest.mark.parametrize(("function", "shape"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", None))
def test_units_that_fall_together_in_torch_share_a_mask_unit(function, shape):
    """Over the axes where our noise has size 1 torch's output is constant, and over no others."""
    call = parse_dropout(function, (torch.ones(shape), 0.5, True), {})
    noise = noise_shape(call.kind, shape)
    dropped = function(torch.ones(shape), 0.5, True)
    for axis, (size, units) in enumerate(zip(shape, noise, strict=True)):
        constant = bool((dropped == dropped.narrow(axis, 0, 1)).all())
        assert constant == (units == 1)
        assert units in {1, size}


@pytest.mark.parametrize(
    ("function", "arguments", "active"),
    [
        (F.dropout, {}, True),
        (F.dropout, {"training": False}, False),
        (F.alpha_dropout, {}, False),
        (F.feature_alpha_dropout, {"training": True}, True),
        (torch.dropout, {"p": 0.5, "train": True}, True),
        (torch.alpha_dropout_, {"p": 0.5, "train": False}, False),
    ],
)
def test_defaults_and_names_of_each_function_are_read_as_torch_reads_them(function, arguments, active):
    call = parse_dropout(function, (torch.ones(2, 2),), arguments)
    assert (call.p, call.active) == (0.5, active)
    assert call.inplace == (function is torch.alpha_dropout_)
