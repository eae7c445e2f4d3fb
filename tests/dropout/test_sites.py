"""Sites: all of them, by name, and an error for all that is random and is none."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.dropout.program import masked_program
from dropserve.dropout.sites import find_sites
from dropserve.errors import BatchAxisError, DropoutError, ModelSourceError, UnmaskableError
from dropserve.manifest import Preprocessing
from dropserve.model import ServedModel
from dropserve.signature import TensorSpec, parse_input


class Net(nn.Module):
    """A linear layer and whatever a test wants done in between."""

    def __init__(self, between, **parts):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.linear(self.between(self, self.linear(x)))


def sites(between, *shape, **parts):
    return find_sites(Net(between, **parts), [parse_input(",".join(map(str, (*shape, 8))))])


def described(found):
    return [(s.name, s.kind, s.p, [str(a) for a in s.shape]) for s in found]


def test_every_site_of_the_six_networks_is_found(network):
    found = find_sites(network.module, network.inputs)
    assert len(found) == network.sites
    assert len({site.name for site in found}) == len(found)
    assert all(site.where.startswith("heart_networks.py:") for site in found)


KINDS = [
    (nn.Dropout(0.1), F.dropout, (4, 8), [4, 8]),
    (nn.Dropout1d(0.1), F.dropout1d, (4, 8), [4, 1]),
    (nn.Dropout2d(0.1), F.dropout2d, (4, 3, 8), [4, 1, 1]),
    (nn.Dropout3d(0.1), F.dropout3d, (4, 2, 3, 8), [4, 1, 1, 1]),
    (nn.AlphaDropout(0.1), F.alpha_dropout, (4, 8), [4, 8]),
    (nn.FeatureAlphaDropout(0.1), F.feature_alpha_dropout, (4, 8), [4, 1]),
]


@pytest.mark.parametrize(("module", "function", "shape", "mask"), KINDS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("inplace", [False, True])
def test_each_kind_as_a_module_and_as_a_function(module, function, shape, mask, inplace):
    kind = function.__name__
    module.inplace = inplace
    lengths = shape[:-1]
    (found,) = sites(lambda m, x: m.drop(x), *lengths, drop=module)
    assert (found.name, found.kind, found.p, list(found.shape)) == ("drop", kind, 0.1, mask)
    assert (found.shift is None) == ("alpha" not in kind)
    (found,) = sites(lambda m, x: function(x, 0.2, m.training, inplace), *lengths)
    assert (found.name, found.kind, found.p, list(found.shape)) == (kind, kind, 0.2, mask)


def test_a_module_called_twice_is_two_sites_and_names_never_meet():
    def between(m, x):
        return F.dropout(m.dropout(m.dropout(x)), 0.2, m.training)

    found = sites(between, dropout=nn.Dropout(0.1))
    assert [site.name for site in found] == ["dropout", "dropout#2", "dropout#3"]
    assert [site.p for site in found] == [0.1, 0.1, 0.2]
    assert len({site.scale for site in found}) == 3


def test_names_are_those_of_the_user_s_model_inside_our_wrapper():
    net = Net(lambda m, x: m.drop(F.dropout(x, 0.2, m.training)), drop=nn.Dropout(0.1))
    wrapped = ServedModel(net, Preprocessing(), {"input": (8,)})
    inputs = [parse_input("8")]
    assert find_sites(wrapped, inputs) == find_sites(net, inputs)
    user = nn.Sequential()
    user.model = nn.Dropout(0.1)  # a user's own submodule of that name keeps it
    assert find_sites(user, inputs)[0].name == "model"


def test_a_rate_of_zero_or_a_dropout_that_is_never_on_is_no_site():
    assert not sites(lambda m, x: m.drop(x), drop=nn.Dropout(0.0))
    assert not sites(lambda _, x: F.dropout(x, 0.5, training=False))
    assert not sites(lambda _, x: x)


def test_dropout_that_runs_in_train_mode_only_is_found():
    def between(m, x):
        if m.training:
            x = m.drop(x)
            return F.dropout(x, 0.2)
        return x

    assert [site.p for site in sites(between, drop=nn.Dropout(0.1))] == [0.1, 0.2]


def test_dropout_with_a_rate_for_train_mode_only_is_found():
    def between(m, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if m.training else 0.0)

    (found,) = sites(between, 3, 5)
    assert (found.name, list(found.shape)) == ("dropout", [3, 5, 5])


def test_dropout_that_eval_does_not_reach_is_found():
    """The audit refuses such a model; here it is a site like any other."""
    hidden = [nn.Dropout(0.1)]
    (found,) = sites(lambda _, x: hidden[0](x))
    assert found.p == 0.1
    (found,) = sites(lambda _, x: F.dropout(x, 0.3))
    assert found.p == 0.3


def test_dropout_on_rows_folded_with_steps_finds_the_order_by_looking():
    def outer(m, x):  # [N, 5, 8] -> [N * 5, 8]
        return m.drop(x.reshape(-1, 8)).reshape(x.shape)

    def inner(m, x):  # [N, 5, 8] -> [5 * N, 8]
        return m.drop(x.transpose(0, 1).reshape(-1, 8)).reshape(5, -1, 8).transpose(0, 1)

    for between in (outer, inner):
        (found,) = sites(between, 5, drop=nn.Dropout(0.1))
        assert list(found.shape) == [5, 8]


def test_a_tensor_that_meets_the_batch_later_needs_an_axis_for_it():
    table = nn.Parameter(torch.randn(5, 8))
    (found,) = sites(lambda m, x: x + m.drop(m.table[None]), 5, drop=nn.Dropout(0.1), table=table)
    assert list(found.shape) == [5, 8]
    with pytest.raises(BatchAxisError, match=r"x\[None\]"):
        sites(lambda m, x: x + m.drop(m.table), 5, drop=nn.Dropout(0.1), table=table)


def test_dropped_weights_cannot_be_masked_by_row():
    with pytest.raises(BatchAxisError, match="no axis follows the number of rows"):
        sites(lambda m, x: F.linear(x, F.dropout(m.linear.weight, 0.1, m.training)))


def test_rows_that_influence_each_other_are_refused():
    with pytest.raises(BatchAxisError, match="exactly one"):
        sites(lambda m, x: m.drop(x @ x.T) @ x, drop=nn.Dropout(0.1))
    with pytest.raises(BatchAxisError, match="influence each other"):
        sites(lambda m, x: m.drop(x - x[:1]), drop=nn.Dropout(0.1))


def test_variable_axes_are_followed_and_others_are_fixed():
    axis = "L<=12"

    def between(m, x):  # [N, L, 8]
        halves = m.pool(x.transpose(1, 2)).transpose(1, 2)  # [N, L // 2, 8]
        return m.a(x) + m.b(halves).mean(1, keepdim=True) + m.c(x.reshape(-1, 8)).reshape(x.shape)

    parts = {"a": nn.Dropout(0.1), "b": nn.Dropout(0.2), "c": nn.Dropout(0.3), "pool": nn.MaxPool1d(2)}
    found = find_sites(Net(between, **parts), [parse_input(f"{axis},8")])
    # The half length is no axis of the inputs: its mask has the greatest length and is cut in the graph.
    assert [[str(a) for a in site.shape] for site in found] == [[axis, "8"], ["6", "8"], [axis, "8"]]


def test_several_inputs_and_whole_numbers():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.drop = nn.Dropout(0.1)

        def forward(self, words, x):
            return {"a": self.drop(self.embed(words)).mean(1) + x, "b": (x, None)}

    inputs = [TensorSpec(name="words", dtype="int64", shape=(7,)), TensorSpec(name="x", shape=(8,))]
    (found,) = find_sites(Two(), inputs)
    assert list(found.shape) == [7, 8]


STRAYS = {
    "bernoulli": (
        lambda m, x: x * torch.bernoulli(torch.full_like(x, 0.5)) if m.training else x,
        "bernoulli",
    ),
    "noise": (lambda m, x: x + 0.1 * torch.rand_like(x) * m.training, "rand_like"),
    "randn by function": (lambda m, x: x + torch.randn(x.shape) if m.training else x, "randn"),
    "rrelu": (lambda m, x: F.rrelu(x, training=m.training), "rrelu"),
    "drop path": (lambda m, x: x * (torch.rand(len(x), 1) > 0.5) if m.training else x, "rand()"),
    "native dropout": (lambda m, x: torch.native_dropout(x, 0.5, m.training)[0], "native_dropout"),
    "numpy": (lambda m, x: x * float(np.random.rand()) if m.training else x, "numpy"),  # noqa: NPY002
    "python": (lambda m, x: x * random.random() if m.training else x, "Python"),
    "gumbel": (lambda m, x: F.gumbel_softmax(x) if m.training else x, "gumbel_softmax"),
    "a generator of its own": (
        lambda m, x: x + torch.randn(x.shape, generator=m.generator) if m.training else x,
        "randn()",
    ),
    "a numpy generator of its own": (
        lambda m, x: x * float(m.numpy_generator.random()) if m.training else x,
        "generator of its own",
    ),
}


@pytest.mark.parametrize("name", STRAYS)
def test_what_is_random_and_no_dropout_is_named(name):
    between, said = STRAYS[name]
    with pytest.raises(UnmaskableError) as caught:
        sites(
            lambda m, x: m.drop(between(m, x)),
            drop=nn.Dropout(0.1),
            generator=torch.Generator(),
            numpy_generator=np.random.default_rng(0),
        )
    assert said in str(caught.value)
    assert "nn.Dropout" in str(caught.value)
    if name in {"bernoulli", "noise", "rrelu", "drop path"}:
        assert "test_sites.py:" in str(caught.value)


def test_the_module_that_draws_is_named():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x

    with pytest.raises(UnmaskableError, match=r"randn_like\(\) at test_sites.py:\d+ in module 'parts.1'"):
        sites(lambda m, x: m.parts(x), parts=nn.Sequential(nn.ReLU(), Noise()))


def test_train_mode_that_does_more_than_drop_is_refused():
    def between(m, x):
        if m.training:
            return F.dropout(x, 0.2) * 2
        return x

    with pytest.raises(UnmaskableError, match="runs in train mode only"):
        sites(between)


def test_a_rate_of_one_and_a_dropout_for_eval_mode_are_refused():
    with pytest.raises(UnmaskableError, match="p=1"):
        sites(lambda m, x: m.drop(x), drop=nn.Dropout(1.0))
    with pytest.raises(UnmaskableError, match="on in eval mode and not in train mode"):
        sites(lambda m, x: F.dropout(x, 0.2, training=not m.training))


def test_a_dropout_for_each_step_of_a_variable_length_is_refused():
    def between(m, x):
        return torch.stack([m.drop(step) for step in x.unbind(1)], dim=1)

    net = Net(between, drop=nn.Dropout(0.1))
    with pytest.raises(UnmaskableError, match="another number of dropouts"):
        find_sites(net, [parse_input("L<=6,8")])
    assert [s.name for s in find_sites(net, [parse_input("3,8")])] == ["drop", "drop#2", "drop#3"]


def test_what_normalisation_does_in_train_mode_is_no_part_of_it():
    found = sites(lambda m, x: m.drop(m.norm(x)), norm=nn.BatchNorm1d(8), drop=nn.Dropout(0.1))
    assert [site.name for site in found] == ["drop"]


def test_power_iteration_in_train_mode_is_no_randomness():
    norm = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    assert len(sites(lambda m, x: m.drop(m.norm(x)), norm=norm, drop=nn.Dropout(0.1))) == 1


def test_nothing_of_the_user_s_is_changed(network):
    module = copy.deepcopy(network.module).train()
    flags = [part.training for part in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    fast = torch.backends.mha.get_fastpath_enabled()
    find_sites(module, network.inputs)
    assert [part.training for part in module.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())
    assert [len(p._forward_hooks) + len(p._forward_pre_hooks) for p in module.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])  # noqa: NPY002
    assert random.getstate() == generators[2]
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_model_elsewhere_than_on_the_cpu_is_told_to_come():
    with pytest.raises(ModelSourceError, match=r"Linear: weight is on meta; .*model\.cpu\(\)"):
        find_sites(nn.Linear(4, 2, device="meta"), [parse_input("4")])


def test_a_model_that_fails_or_cannot_be_copied_says_so():
    with pytest.raises(DropoutError, match=r"fails on inputs of shape \[3, 8\]"):
        sites(lambda m, x: m.missing(x))
    net = Net(lambda m, x: m.drop(x), drop=nn.Dropout(0.1), cached=(nn.Parameter(torch.ones(2)) * 2))
    with pytest.raises(UnmaskableError, match="cannot be copied"):
        find_sites(net, [parse_input("8")])


def test_batch_statistics_need_other_rows_and_are_refused():
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    net = Net(lambda m, x: m.drop(m.norm(x)), norm=norm, drop=nn.Dropout(0.1))
    with pytest.raises(BatchAxisError, match="one alone"):
        masked_program(net, [parse_input("8")])


def test_two_threads_that_keep_fused_attention_off_leave_it_as_it_was() -> None:
    first_in, second_in = threading.Event(), threading.Event()

    def first() -> None:
        with no_fused_attention():
            first_in.set()
            second_in.wait(10)

    def second() -> None:
        first_in.wait(10)
        with no_fused_attention():
            second_in.set()
            threads[0].join()  # the first goes before the second does
            assert not torch.backends.mha.get_fastpath_enabled()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.backends.mha.get_fastpath_enabled()
