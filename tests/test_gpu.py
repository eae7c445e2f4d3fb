"""On a CUDA device: training ends as on a CPU, dropout is off, masks are the same, files know no GPU.

`make test-gpu` runs it; the other targets leave it out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dropserve import cli
from dropserve.dropout.masks import draw
from dropserve.dropout.program import masked_program
from dropserve.dropout.sites import find_sites
from dropserve.errors import ModelSourceError, TrainingError, UsageError
from dropserve.export.archive import Stage
from dropserve.export.audit import generators
from dropserve.export.pipeline import Report, export_run
from dropserve.export.settings import read_settings
from dropserve.export.subject import Subject
from dropserve.manifest import RunManifest
from dropserve.model import build_served, load_class
from dropserve.project import packaged_stages
from dropserve.signature import parse_input
from dropserve.store import Store, Stored
from dropserve.training.augment import augmented
from dropserve.training.hardware import Hardware, choose_hardware
from dropserve.training.import_model import import_model
from dropserve.training.learner import Epoch
from dropserve.training.overfit.study import Plan
from dropserve.training.overfit.study import run as run_study
from dropserve.training.recipe import AugmentationTable, TrainingTable
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import Prepared, Silent, checkpoint_of, prepare, train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from heart_networks import Cnn, Mlp, Recurrent, Residual, Selu, Transformer, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason=f"torch {torch.__version__} sees no CUDA device"
    ),
]

RECIPES = packaged_stages() / "training/recipes"
WAYS = {
    "32": {"training.device": "cuda", "training.precision": "32"},
    "auto": {"training.device": "auto"},
    "16-mixed": {"training.device": "cuda", "training.precision": "16-mixed"},
}
ROUNDING = 1e-5  # of the scale of what is compared: float32 sums in another order
NETWORKS = {
    "mlp": (Mlp, "10"),
    "cnn": (Cnn, "1,8,8"),
    "residual": (Residual, "3,6,6"),
    "transformer": (Transformer, "5,16"),
    "transformer-second": (partial(Transformer, batch_first=False), "12,16"),
    "lstm": (Recurrent, "12,8"),
    "gru-both-ways": (partial(Recurrent, cell=nn.GRU, bidirectional=True), "5,8"),
    "selu": (Selu, "10"),
}


@pytest.fixture(autouse=True)
def _whole_floats() -> Iterator[None]:
    """Convolutions in float32, not in TF32, which is another question than where they run."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def close(found: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=tolerance * scale)


def prepared(recipe: str | Path, **overrides: Any) -> Prepared:
    path = RECIPES / f"{recipe}.toml" if isinstance(recipe, str) else recipe
    return prepare(load_recipe(path, overrides))


def weights(run: Stored[RunManifest]) -> dict[str, Tensor]:
    return load_file(run.path("weights.safetensors"))


def same_bits(first: Stored[RunManifest], second: Stored[RunManifest]) -> None:
    assert first.path("weights.safetensors").read_bytes() == second.path("weights.safetensors").read_bytes()
    assert first.manifest.metrics == second.manifest.metrics


# Training


def test_auto_is_the_gpu_and_bfloat16_where_it_is_made_for_it() -> None:
    brain = torch.cuda.get_device_capability() >= (8, 0)
    found = choose_hardware(TrainingTable())
    assert found == Hardware("cuda", 1, "bf16-mixed" if brain else "32")
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=f"devices: got {count + 1}; allowed on cuda here: 1 to {count}"):
        choose_hardware(TrainingTable(devices=count + 1))


@dataclass
class Trained:
    """Digits, on the CPU and in three ways on the GPU."""

    store: Store
    cpu: Stored[RunManifest]
    done: dict[str, Stored[RunManifest]] = field(default_factory=dict[str, Stored[RunManifest]])

    def on_gpu(self, way: str) -> Stored[RunManifest]:
        if way not in self.done:
            self.done[way], _ = train(prepared("digits", **WAYS[way]), self.store)
        return self.done[way]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    store = Store(tmp_path_factory.mktemp("digits") / "model_store")
    run, _ = train(prepared("digits", **{"training.device": "cpu"}), store)
    return Trained(store, run)


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_digits_as_on_a_cpu(digits: Trained, way: str) -> None:
    """Of 270 test rows; three points are more than two standard errors. gpu_training.py has several seeds."""
    run = digits.on_gpu(way)
    accuracy, expected = (each.manifest.metrics["test_accuracy"] for each in (run, digits.cpu))
    assert accuracy == pytest.approx(expected, abs=0.03)
    assert accuracy > 0.95
    precision = {"32": "", "16-mixed": ", 16-mixed"}.get(way, str(choose_hardware(TrainingTable()))[4:])
    assert run.manifest.built_with["hardware"] == f"cuda{precision}"
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}


@pytest.mark.parametrize("way", WAYS)
def test_what_it_learned_is_exported_with_the_parity_of_any_run(digits: Trained, way: str) -> None:
    stages = packaged_stages()
    stage = Stage(stages / "serving/handler.py", stages / "serving/model-config.yaml")
    report = Report()
    settings = read_settings(stages / "export/checks.toml")
    version = export_run(digits.store, digits.on_gpu(way), settings, stage, report)
    assert {check.verdict for check in version.manifest.checks} <= {"passed", "skipped"}
    assert max(figures["max"] for figures in report.parity.values()) < ROUNDING
    rows = torch.from_numpy(np.load(digits.cpu.path("validation.npz"))["input"])
    script = torch.jit.load(version.path("model.ts"))
    assert {tensor.device.type for tensor in script.state_dict().values()} <= {"cpu"}, "the file knows no GPU"
    with torch.inference_mode():
        (expected,) = script(rows)
        moved = torch.jit.load(version.path("model.ts")).to("cuda")
        close(moved(rows.cuda())[0], expected)


def test_a_command_trains_and_exports_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["train", "tutorial", "--device", "cuda", "--epochs", "3"], ["export", "tutorial"]):
        monkeypatch.setattr(sys, "argv", ["dropserve", *words])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code, capsys.readouterr()
    assert "on cuda" in capsys.readouterr().out
    assert Store(tmp_path / "model_store").version("tutorial").manifest.version == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["digits-cnn", "cafes", "diabetes", "tutorial", "csv"])
def test_every_shipped_recipe_trains_and_twice_to_the_same_bits(
    tmp_path: Path, recipe: str, way: str
) -> None:
    changed = WAYS[way] | {"training.epochs": 3}
    if recipe == "diabetes":
        changed |= {"training.noise": "heteroscedastic", "model.arguments.outputs": 2}
    first, second = (train(prepared(recipe, **changed), Store(tmp_path))[0] for _ in range(2))
    same_bits(first, second)


class Interrupts(Silent):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_epoch(self, row: Epoch) -> None:
        if row.number == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["digits", "digits-cnn"])
def test_interrupted_it_goes_on_to_the_bits_of_one_that_nobody_disturbed(
    tmp_path: Path, recipe: str, way: str
) -> None:
    ready = prepared(recipe, **WAYS[way], **{"training.epochs": 6})
    undisturbed, _ = train(ready, Store(tmp_path / "undisturbed"))
    checkpoint = checkpoint_of(ready, tmp_path / "checkpoints")
    on_cpu = prepared(recipe, **{"training.device": "cpu", "training.epochs": 6})
    assert checkpoint_of(on_cpu, tmp_path / "checkpoints").path != checkpoint.path
    for after in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            train(ready, Store(tmp_path / "resumed"), Interrupts(after), checkpoint)
        progress = checkpoint.read()
        assert progress is not None
        assert len(progress.curve) == after - 1, "the interrupted epoch is done again"
        torch.rand(7, device="cuda")  # another process would stand elsewhere
    resumed, _ = train(ready, Store(tmp_path / "resumed"), checkpoint=checkpoint)
    same_bits(undisturbed, resumed)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_generator_of_the_caller_moves(tmp_path: Path, device: str) -> None:
    torch.cuda.manual_seed(5)
    torch.rand(3, device="cuda")
    before = torch.cuda.get_rng_state()
    run, _ = train(prepared("tutorial", **{"training.device": device, "training.epochs": 2}), Store(tmp_path))
    find_sites(build_served(run), run.manifest.signature.inputs)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_nothing_on_the_cpu_begins_to_use_the_gpu(tmp_path: Path) -> None:
    """A process that only exports or trains on the CPU takes no memory of the GPU."""
    code = f"""
from pathlib import Path
import torch
from dropserve.store import Store
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare, train
changed = {{"training.device": "cpu", "training.epochs": 1}}
train(prepare(load_recipe(Path({str(RECIPES / "tutorial.toml")!r}), changed)), Store(Path({str(tmp_path)!r})))
print(torch.cuda.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_augmentation_draws_the_same_on_every_device() -> None:
    rows, table = torch.rand(40, 3, 9, 7), AugmentationTable(flip=True, shift=2)
    on_cpu, on_gpu = (
        augmented(each, table, torch.Generator().manual_seed(1)) for each in (rows, rows.cuda())
    )
    assert torch.equal(on_cpu, on_gpu.cpu())
    assert not torch.equal(on_cpu, rows)


NET = """
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self, fault):
        super().__init__(4, 3)
        self.fault = fault
        if fault == "moved":
            self.cuda()

    def forward(self, x):
        if self.fault == "mixed":
            x = x + torch.ones(4)
        if self.fault == "large" and x.is_cuda:
            x = x + torch.empty(2**40, device=x.device)[:4]
        if self.fault == "rounds":
            assert not x.is_cuda or not torch.backends.cudnn.allow_tf32
        return super().forward(x)
"""
FAULTS = {
    "mixed": (
        TrainingError,
        r"cuda: net\.py:14: the model mixes tensors of two devices: .*device=x\.device",
    ),
    "large": (TrainingError, r"cuda: CUDA out of memory.*batch_size.*--device cpu"),
    "moved": (ModelSourceError, r"weight is on cuda:0; .*name no device in its constructor"),
}


def faulty(folder: Path, fault: str) -> Path:
    (folder / "net.py").write_text(NET)
    text = (RECIPES / "csv.toml").read_text().split("[model]", maxsplit=1)[0] + (
        f'[model]\nclass = "net.py:Net"\narguments = {{ fault = "{fault}" }}\n[data]\nsource = "iris"\n'
        '[training]\ndevice = "cuda"\nprecision = "32"\nepochs = 1\n'
    )
    (folder / "net.toml").write_text(text)
    return folder / "net.toml"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_only_a_gpu_refuses_says_what_to_change(tmp_path: Path, fault: str) -> None:
    error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        train(prepared(faulty(tmp_path, fault)), Store(tmp_path))
    torch.cuda.empty_cache()


def test_thirty_two_bits_are_not_rounded_in_convolutions(tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = True
    train(prepared(faulty(tmp_path, "rounds")), Store(tmp_path))
    assert torch.backends.cudnn.allow_tf32


def test_many_trainings_at_once_run_on_the_cpu_or_say_so(tmp_path: Path) -> None:
    auto = prepared("tutorial", **{"training.epochs": 2})
    plan = Plan.of(auto.dataset, None, 2, (0.0, 0.5))
    cells = run_study(auto, plan, tmp_path / "auto")
    on_cpu = run_study(
        prepared("tutorial", **{"training.epochs": 2, "training.device": "cpu"}), plan, tmp_path / "cpu"
    )
    assert cells == on_cpu
    with pytest.raises(UsageError, match=r"training.device = 'cuda': many trainings .*on the CPU"):
        run_study(prepared("tutorial", **WAYS["32"]), plan, tmp_path / "cuda")


# Dropout off, and masks


@pytest.mark.parametrize("way", WAYS)
def test_the_eager_model_answers_on_the_gpu_as_on_the_cpu_and_without_chance(
    digits: Trained, way: str
) -> None:
    served = build_served(digits.on_gpu(way))
    rows = torch.from_numpy(np.load(digits.cpu.path("validation.npz"))["input"])
    with torch.inference_mode():
        expected = served(rows)
        served.cuda()
        state, digest = torch.cuda.get_rng_state(), generators.torch_state()
        answers = [served(rows.cuda()) for _ in range(3)]
        assert all(torch.equal(answers[0], other) for other in answers[1:])
        assert torch.equal(state, torch.cuda.get_rng_state())
        assert digest == generators.torch_state()
        close(answers[0], expected)
        served.train()(rows.cuda())
        assert digest != generators.torch_state(), "the audit sees dropout that a GPU draws"


@contextmanager
def _kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[0]), torch.no_grad():
        yield


# torch's advice on speed: layers of a recurrent net run one by one, each with a part of the weights.
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("name", NETWORKS)
def test_masks_mean_the_same_on_the_gpu(name: str) -> None:
    make, shape = NETWORKS[name]
    module, spec = build(make), parse_input(shape)
    program = masked_program(module, (spec,))
    drawn = draw(program.sites, 20, seed=3)
    rows = torch.randn(20, *spec.sized(), generator=torch.Generator().manual_seed(1))
    masks = [torch.tensor(drawn[name]) for name in program.mask_names]
    with _kept():
        (expected,), plain = program(rows, *masks), module(rows)
        module.cuda()
        close(module(rows.cuda()), plain)
        on_gpu = program.to("cuda")
        torch.cuda.manual_seed(11)
        state = torch.cuda.get_rng_state()
        again = draw(program.sites, 20, seed=3)
        assert all(np.array_equal(drawn[key], again[key]) for key in drawn)
        moved = [mask.cuda() for mask in masks]
        assert all(torch.equal(mask, other.cpu()) for mask, other in zip(masks, moved, strict=True))
        (found,) = on_gpu(rows.cuda(), *moved)
        assert torch.equal(found, on_gpu(rows.cuda(), *moved)[0])
        assert torch.equal(state, torch.cuda.get_rng_state())
        close(found, expected)
        identity = [mask.cuda() for mask in on_gpu.identity_masks(20)]
        close(on_gpu(rows.cuda(), *identity)[0], plain)
        assert not torch.allclose(found.cpu(), plain, atol=1e-3), "the masks do something"


def test_a_model_on_the_gpu_is_told_to_come_to_the_cpu() -> None:
    net, spec = build(Mlp).cuda(), parse_input("10")
    for look in (lambda: Subject("net", net, (spec,)), lambda: masked_program(net, (spec,))):
        with pytest.raises(ModelSourceError, match=r"is on cuda:0; expected a model on the CPU: .*\.cpu\(\)"):
            look()


# Weights that were saved on a GPU


@pytest.mark.parametrize("writer", ["torch.save", "safetensors"])
@pytest.mark.parametrize("visible", [True, False])
def test_weights_saved_on_a_gpu_come_in_where_there_is_none(
    tmp_path: Path, writer: str, *, visible: bool
) -> None:
    models = packaged_stages() / "training/models.py"
    model = load_class(f"{models}:MyModel").build({})
    state = {key: value.cuda() for key, value in model.state_dict().items()}
    file = tmp_path / "weights"
    if writer == "torch.save":
        torch.save({"state_dict": state}, file)
    else:
        save_file(state, file)
    if visible:
        run = import_model(Store(tmp_path / "store"), f"{models}:MyModel", file, ["10"], name="mine").run
    else:
        words = ["import", f"{models}:MyModel", "--weights", str(file), "--input", "10", "--name", "mine"]
        code = "import torch; assert not torch.cuda.is_available()\nfrom dropserve.cli import main\nmain()"
        subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True, capture_output=True,
        )  # fmt: skip
        run = Store(tmp_path / "model_store").run("mine")
    found = weights(run)
    assert all(torch.equal(found[key], value.cpu()) for key, value in state.items())
    assert next(build_served(run).parameters()).device.type == "cpu"
