"""Masked programs: against the deterministic model, torch's own train mode, vmap, TorchScript and ONNX."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import nn

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.mode import DropoutMode
from dropserve.dropout.outputs import flatten_outputs
from dropserve.dropout.program import masked_program
from dropserve.errors import BatchAxisError, DropoutError, UnmaskableError
from dropserve.export.onnx import OnnxProgram, export_onnx
from dropserve.export.torchscript import export_torchscript
from dropserve.signature import TensorSpec, parse_input

SIZES = (1, 2, 3, 17)
NETWORK_NAMES = (
    "mlp", "cnn", "residual", "transformer-5", "transformer-second-12", "lstm-12", "lstm-second-5",
    "gru-both-ways", "selu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def close(found, expected, tolerance=1e-5):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def by_hand(program, rows, seed=0):
    """One sample for each row."""
    return program.sample_masks(1, rows, seed=seed)


@pytest.mark.parametrize("rows", SIZES)
def test_identity_masks_give_the_deterministic_model(network, program, rows):
    x = network.rows(rows)
    (found,) = program(x, *program.identity_masks(rows))
    expected = network.module(x)
    opaque = (nn.MultiheadAttention, nn.RNNBase)
    if any(isinstance(part, opaque) for part in network.module.modules()):
        close(
            found, expected, 1e-6
        )  # attention and layouts between layers round otherwise than fused kernels
    else:
        assert torch.equal(found, expected)


class TorchNoise(DropoutMode):
    """Lets torch draw, and notes what it drew as scale and shift."""

    def __init__(self):
        super().__init__()
        self.noise = []

    def on_dropout(self, call):
        state = torch.get_rng_state()
        drawn = []
        for value in (torch.zeros_like(call.input), torch.ones_like(call.input)):
            torch.set_rng_state(state)
            drawn.append(getattr(F, call.kind)(value, call.p, training=True))
        torch.set_rng_state(state)
        self.noise.append((drawn[1] - drawn[0], drawn[0]))
        return getattr(F, call.kind)(call.input, call.p, training=True)


def train_mode(module):
    """Train mode with normalisation in eval."""
    trained = copy.deepcopy(module).train()
    for part in trained.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return trained


def test_under_torch_s_own_noise_it_gives_torch_s_own_train_mode(network, program):
    """The very numbers that torch draws, put in as masks: sample by sample the same answer."""
    rows = 4
    x = network.rows(rows)
    mode = TorchNoise()
    with torch.random.fork_rng(), mode:
        torch.manual_seed(3)
        train_mode(network.module)(x)
    masks = []
    for (scale, shift), site in zip(mode.noise, program.sites, strict=True):
        axis = next(d for d, size in enumerate(scale.shape) if size == rows)  # no other axis has 4
        parts = [scale] if site.shift is None else [scale, shift]
        for part in parts:
            mask = part.movedim(axis, 0)
            for d, size in enumerate(site.shape, 1):
                mask = mask.narrow(d, 0, size)
            masks.append(mask)
    (found,) = program(x, *masks)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = train_mode(network.module)(x)  # fused, without any mode of ours
    if isinstance(getattr(network.module, "rnn", None), nn.Module):
        # The fused layers draw in their own layout, so only the explicit form can be compared.
        with torch.random.fork_rng(), TorchNoise():
            torch.manual_seed(3)
            expected = train_mode(network.module)(x)
    close(found, expected)
    assert not torch.allclose(found, network.module(x))


def test_every_site_alone_changes_the_output(network, program):
    x = network.rows(8)
    (plain,) = program(x, *program.identity_masks(8))
    drawn, identity = by_hand(program, 8), program.identity_masks(8)
    for site in program.sites:
        own = {site.scale, site.shift}
        masks = [
            d if name in own else i for name, d, i in zip(program.mask_names, drawn, identity, strict=True)
        ]
        (changed,) = program(x, *masks)
        assert (changed - plain).abs().max() > 1e-4 * plain.abs().max(), site.name


def test_rows_and_masks_go_together_as_vmap_has_it(network, program):
    x, masks = network.rows(6), by_hand(program, 6)

    def one(row, *own):
        return program(row[None], *(mask[None] for mask in own))[0][0]

    (found,) = program(x, *masks)
    if isinstance(getattr(network.module, "rnn", None), nn.Module):  # vmap has no rule for recurrent layers
        expected = torch.stack([one(*tensors) for tensors in zip(x, *masks, strict=True)])
    else:
        expected = torch.func.vmap(one)(x, *masks)
    close(found, expected)


def test_each_unit_is_zero_or_scaled_and_inference_is_the_identity():
    net = nn.Sequential(nn.Dropout(0.2))
    program = masked_program(net, [parse_input("1000")])
    x = torch.rand(1, 1000) + 1
    (dropped,) = program(x, *by_hand(program, 1))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.8)
    assert 0.1 < 1 - kept.float().mean() < 0.3
    assert torch.equal(program(x, *program.identity_masks(1))[0], x)


def test_torchscript_agrees_at_every_size(network, program, tmp_path):
    export_torchscript(program, list(program.example()), tmp_path / "p.ts")
    script = torch.jit.load(tmp_path / "p.ts")
    for rows in SIZES:
        tensors = (network.rows(rows, seed=rows), *by_hand(program, rows))
        close(script(*tensors)[0], program(*tensors)[0])


def specs(program):
    masks = [
        TensorSpec(name=name, shape=site.shape)
        for site in program.sites
        for name in (site.scale, site.shift)
        if name is not None
    ]
    return (*program.inputs, *masks)


def exported(program, path, opset=18):
    every = specs(program)
    examples = dict(zip((spec.name for spec in every), program.example(), strict=True))
    export_onnx(program, every, program.output_names, examples, path, opset=opset)
    return OnnxProgram(path)


FAST = ("mlp", "transformer-second-12", "lstm-second-5")


@pytest.mark.parametrize(
    "network",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETWORK_NAMES],
    indirect=True,
)
def test_onnx_agrees_at_every_size(network, program, tmp_path):
    onnx = exported(program, tmp_path / "p.onnx")
    for rows in SIZES:
        tensors = (network.rows(rows, seed=rows), *by_hand(program, rows))
        names = (*program.input_names, *program.mask_names)
        found = onnx({name: t.numpy() for name, t in zip(names, tensors, strict=True)})
        close(torch.from_numpy(found["output"]), program(*tensors)[0])


class Padded(nn.Module):
    """Any length up to 12: attention, a recurrent layer and a half-length branch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2)
        self.rnn = nn.GRU(8, 8, 2, dropout=0.2)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        h = x.transpose(0, 1)  # [L, N, 8]
        h = h + self.rnn(self.attention(h))[0]
        halves = self.drop(F.avg_pool1d(h.permute(1, 2, 0), 2))  # [N, 8, L // 2]
        return h.transpose(0, 1), halves


@pytest.mark.parametrize("length", [2, 5, 11, 12])
def test_a_shorter_row_sees_the_masks_of_its_own_positions(length):
    """Masks are drawn at the greatest length: what they drop at a position does not hang on the length."""
    drop = nn.Dropout(0.4)
    program = masked_program(nn.Sequential(drop), [parse_input("L<=12,3")])
    engine = MonteCarlo(program.sites, runner(program), specs=program.inputs)
    long = engine.samples({"input": np.ones((2, 12, 3), np.float32)}, Settings(samples=6))
    short = engine.samples({"input": np.ones((2, length, 3), np.float32)}, Settings(samples=6))
    assert np.array_equal(short["output"], long["output"][:, :, :length])


def runner(program):
    def run(fed):
        names = (*program.input_names, *program.mask_names)
        with torch.no_grad():
            outputs = program(*(torch.from_numpy(np.ascontiguousarray(fed[name])) for name in names))
        return {name: t.numpy() for name, t in zip(program.output_names, outputs, strict=True)}

    return run


@pytest.mark.slow
def test_any_length_in_eager_torchscript_and_onnx(tmp_path):
    torch.manual_seed(0)
    program = masked_program(Padded().eval(), [parse_input("L<=12,8")])
    onnx = exported(program, tmp_path / "p.onnx")
    export_torchscript(program, list(program.example()), tmp_path / "p.ts")
    script = torch.jit.load(tmp_path / "p.ts")

    def run_script(fed):
        names = (*program.input_names, *program.mask_names)
        outputs = script(*(torch.from_numpy(np.ascontiguousarray(fed[name])) for name in names))
        return {name: t.numpy() for name, t in zip(program.output_names, outputs, strict=True)}

    engines = [
        MonteCarlo(program.sites, run, specs=program.inputs) for run in (runner(program), run_script, onnx)
    ]
    for length in (2, 5, 12):
        for rows in (1, 3):
            x = torch.randn(rows, length, 8).numpy()
            eager, *others = [engine.samples({"input": x}, Settings(samples=4)) for engine in engines]
            for name, expected in eager.items():
                assert expected.shape[:2] == (4, rows)
                for other in others:
                    close(torch.from_numpy(other[name]), torch.from_numpy(expected))


def test_several_inputs_whole_numbers_and_a_dict_of_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.drop = nn.Dropout(0.1)

        def forward(self, words, x):
            h = self.drop(self.embed(words)).mean(1) + x
            return {"a": h, "b": (x, h.sum(1), None)}

    inputs = [TensorSpec(name="words", dtype="int64", shape=(7,)), TensorSpec(name="x", shape=(8,))]
    module = Two().eval()
    program = masked_program(module, inputs, {"words": torch.randint(0, 50, (4, 7)), "x": torch.randn(4, 8)})
    assert program.output_names == ("a", "b_0", "b_1")
    words, x = torch.randint(0, 50, (5, 7)), torch.randn(5, 8)
    expected = flatten_outputs(module(words, x))
    for name, found in zip(program.output_names, program(words, x, *program.identity_masks(5)), strict=True):
        assert torch.equal(found, expected[name])


@pytest.mark.parametrize("fold", ["outer", "inner"])
def test_rows_folded_with_steps_get_each_their_own_mask(fold):
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):  # [N, 5, 4]
            h = x if fold == "outer" else x.transpose(0, 1)
            h = self.drop(h.reshape(-1, 4)).reshape(h.shape)
            return h if fold == "outer" else h.transpose(0, 1)

    program = masked_program(Folded(), [parse_input("5,4")])
    x, (mask,) = torch.rand(6, 5, 4) + 1, by_hand(program, 6)
    assert torch.equal(program(x, mask)[0], x * mask)


def test_inplace_dropout_and_train_only_dropout_take_their_masks():
    class Net(nn.Module):
        def forward(self, x):
            h = x * 1
            F.dropout(h, 0.5, training=self.training, inplace=True)
            if self.training:
                h = F.dropout(h, 0.2)
            return h

    program = masked_program(Net(), [parse_input("6")])
    x, masks = torch.rand(4, 6) + 1, by_hand(program, 4)
    assert torch.equal(program(x, *masks)[0], x * masks[0] * masks[1])
    program.train()
    program.eval()  # exporters do so: nothing of it may reach the model inside
    assert torch.equal(program(x, *masks)[0], x * masks[0] * masks[1])


def test_a_model_without_dropout_is_a_program_without_masks():
    net = nn.Sequential(nn.Linear(4, 2))
    program = masked_program(net, [parse_input("4")])
    assert program.mask_names == ()
    x = torch.randn(3, 4)
    assert torch.equal(program(x)[0], net(x))


def test_a_path_that_depends_on_the_data_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Dropout(0.1)

        def forward(self, x):
            return self.a(x) if x.sum() < 100 else self.a(self.a(x))

    program = masked_program(Net(), [parse_input("4")])
    with pytest.raises(UnmaskableError, match="depends on the data"):
        program(torch.ones(3, 4) * 1000, *program.identity_masks(3))
    with pytest.raises(UnmaskableError, match="expected 1 inputs"):
        program(torch.ones(3, 4))


def test_outputs_without_rows_on_axis_0_and_rows_that_mix_after_the_dropout_are_refused():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Dropout(0.1)

        def forward(self, x):
            return self.a(x).mean(0)

    class Mix(Mean):
        def forward(self, x):
            h = self.a(x)
            return h - h.mean(0, keepdim=True)

    with pytest.raises(BatchAxisError, match="rows on axis 0"):
        masked_program(Mean(), [parse_input("4")])
    with pytest.raises(BatchAxisError, match="another answer alone"):
        masked_program(Mix(), [parse_input("4")])


@pytest.mark.parametrize("value", [3.0, {"a": "text"}, None, {"a": (torch.ones(1),), "a_0": torch.ones(1)}])
def test_outputs_that_are_no_tensors_or_share_a_name_are_refused(value):
    with pytest.raises(DropoutError, match=r"returns|called"):
        flatten_outputs(value)


@pytest.mark.slow
def test_the_variance_over_samples_is_that_of_train_mode(network, program):
    """Per output, 4,000 samples of each: the log of a variance ratio has sd sqrt(2 (k + 1) / T)."""
    samples = 4000
    x = network.rows(1).expand(samples, *network.inputs[0].sized())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch_s = train_mode(network.module)(x)
    engine = MonteCarlo(program.sites, runner(program))
    settings = Settings(samples=samples, scheme="iid")
    ours = torch.from_numpy(engine.samples({"input": x[:1].numpy()}, settings)["output"][:, 0])
    centred = (torch_s - torch_s.mean(0)) / torch_s.std(0)
    kurtosis = centred.pow(4).mean(0)
    sd = ((kurtosis - 1) * 2 / samples).sqrt()
    z = (ours.var(0) / torch_s.var(0)).log() / sd
    assert z.abs().max() < 4
    difference = (ours.mean(0) - torch_s.mean(0)) / (torch_s.var(0) * 2 / samples).sqrt()
    assert difference.abs().max() < 4


class AddsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x):
        kept = x[:, :4]  # a view of what is written
        return self.out(self.drop(x.add_(1))) + kept.sum(1, keepdim=True)


class ReadsLater(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.out = nn.Dropout(0.2, inplace=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.drop(x)) + x.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("module", "rate"),
    [
        (nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(8, 3)), 0.2),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 3)), 0.2),
        (nn.Sequential(nn.Dropout(0.3, inplace=True), nn.ReLU(inplace=True), nn.Linear(8, 3)), 0.3),
        (nn.Sequential(nn.AlphaDropout(0.2, inplace=True), nn.Linear(8, 3)), 0.2),
        (AddsInPlace(), 0.2),
        (ReadsLater(), 0.2),
    ],
    ids=["dropout", "relu", "both", "alpha", "add_", "reads-later"],
)
def test_a_model_that_writes_into_its_rows_is_masked_and_the_rows_stay(module, rate, tmp_path):
    inputs = (parse_input("8", name="input"),)
    program = masked_program(module.eval(), inputs)
    assert [site.p for site in program.sites] == [rate]
    x = torch.randn(5, 8)
    masks = by_hand(program, 5)
    before = x.clone()
    first, second = program(x, *masks)[0], program(x, *masks)[0]
    assert torch.equal(x, before)
    assert torch.equal(first, second)
    close(program(x, *program.identity_masks(5))[0], module.eval()(x.clone()))
    torch.manual_seed(3)
    drawn = module.train()(x.clone())
    torch.manual_seed(3)
    with TorchNoise() as noise:
        module(x.clone())
    module.eval()
    close(program(x, *noise.noise[0][: len(program.mask_names)])[0], drawn)
    if not isinstance(module, ReadsLater):  # the graph of the hardest of them is enough
        return
    onnx = exported(program, tmp_path / "m.onnx")
    feeds = {"input": x.numpy(), **dict(zip(program.mask_names, (m.numpy() for m in masks), strict=True))}
    close(torch.from_numpy(onnx(feeds)["output"]), first)
    export_torchscript(program, program.example(), tmp_path / "m.ts")
    script = torch.jit.load(tmp_path / "m.ts")
    close(script(x, *masks)[0], first)
    assert torch.equal(x, before)
