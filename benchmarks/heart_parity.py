"""Are the masked graphs right? Six models, two layouts, two lengths: parity, every site, and the variance.

Parity: the deterministic and the Monte Carlo model in TorchScript and in onnxruntime, as `dropserve export`
writes them (trunk and head apart), against the eager model, at 1, 2, 3 and 17 rows; sample by sample under
the same masks. Effect: one site's own mask drawn, all others left open. Variance: 2,000 samples from the
exported ONNX graphs, iid masks, against 2,000 passes of PyTorch's own train mode (BatchNorm in eval), for
every output of 4 rows. The log of the ratio of two variances has standard deviation
sqrt((kurtosis_1 + kurtosis_2 - 2) / T); a model is outside its sampling error if any of its outputs is, at
0.1% for the model as a whole.

    python benchmarks/heart_parity.py [--samples 2000] [--json PATH]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from heart_networks import NETWORKS, build
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.program import MaskedProgram
from dropserve.export.artefacts import HEAD, MASKED_TS, MODEL, MODEL_TS, TRUNK, Artefacts
from dropserve.export.artefacts import build as export
from dropserve.export.onnx import OnnxProgram
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import parse_input

Array = NDArray[Any]
SIZES = (1, 2, 3, 17)
SAMPLES = 8  # of the comparison sample by sample
ROWS = 4  # of the comparison of variances
LEVEL = 0.001


@dataclass(frozen=True)
class Result:
    """One model: worst errors as a share of the output's scale, effects likewise, worst z of a variance."""

    script: float
    onnx: float
    mc_script: float
    mc_onnx: float
    sites: int
    least_effect: float
    without_effect: int
    outputs: int
    ratio: float
    worst_z: float
    bound: float

    @property
    def worst_error(self) -> float:
        """Of the four comparisons."""
        return max(self.script, self.onnx, self.mc_script, self.mc_onnx)


def error(found: Array, expected: Array) -> float:
    """Greatest difference as a share of the greatest value; infinite where shapes differ or NaN appears."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Exported:
    """The graphs of a model behind numpy dictionaries."""

    def __init__(self, made: Artefacts) -> None:
        assert made.program is not None  # noqa: S101  # all six models have dropout
        self.program: MaskedProgram = made.program
        masks = set(self.program.mask_names)
        head = OnnxProgram(made.paths[HEAD])
        trunk = OnnxProgram(made.paths[TRUNK]) if TRUNK in made.paths else None
        fixed = [name for name in head.inputs if name not in masks]
        self.onnx = MonteCarlo(made.sites, head, trunk, head_inputs=fixed)
        self.script = MonteCarlo(made.sites, self._run(torch.jit.load(made.paths[MASKED_TS])), steady=False)
        self.plain_onnx = OnnxProgram(made.paths[MODEL])
        self.plain_script = torch.jit.load(made.paths[MODEL_TS])

    def _run(self, module: Callable[..., Any]) -> Callable[[dict[str, Array]], dict[str, Array]]:
        names = (*self.program.input_names, *self.program.mask_names)

        def run(fed: dict[str, Array]) -> dict[str, Array]:
            with torch.no_grad():
                return {"output": module(*(torch.from_numpy(fed[name]) for name in names))[0].numpy()}

        return run

    def eager_samples(self, x: Tensor, samples: int) -> Array:
        """A loop over samples in eager mode, all rows under one mask: [T, B, ...]."""
        masks = self.program.sample_masks(1, samples)
        with torch.no_grad():
            passes = [
                self.program(x, *(mask[t : t + 1].expand(len(x), *mask.shape[1:]) for mask in masks))[0]
                for t in range(samples)
            ]
        return torch.stack(passes).numpy()


def parity(exported: Exported, module: nn.Module, rows: Callable[[int], Tensor]) -> list[float]:
    """Worst errors: TorchScript and onnxruntime, deterministic and then Monte Carlo."""
    worst = [0.0] * 4
    for size in SIZES:
        x = rows(size)
        with torch.no_grad():
            expected = module(x).numpy()
            script = exported.plain_script(x)[0].numpy()
        onnx = exported.plain_onnx({"input": x.numpy()})["output"]
        samples = exported.eager_samples(x, SAMPLES)
        settings = Settings(samples=SAMPLES)
        found = [
            error(script, expected),
            error(onnx, expected),
            *(
                error(engine.samples({"input": x.numpy()}, settings)["output"], samples)
                for engine in (exported.script, exported.onnx)
            ),
        ]
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return worst


def effects(program: MaskedProgram, x: Tensor) -> list[float]:
    """For each site, the greatest change of the output when its own mask alone is drawn."""
    identity, drawn = program.identity_masks(len(x)), program.sample_masks(1, len(x))
    found: list[float] = []
    with torch.no_grad():
        plain = program(x, *identity)[0].numpy()
        for site in program.sites:
            own = {site.scale, site.shift}
            pairs = zip(program.mask_names, drawn, identity, strict=True)
            masks = [mask if name in own else rest for name, mask, rest in pairs]
            found.append(error(program(x, *masks)[0].numpy(), plain))
    return found


def variances(exported: Exported, module: nn.Module, x: Tensor, samples: int) -> tuple[Array, Array]:
    """Ratio of the variances, ours over PyTorch's, and its z, for each output."""
    train = copy.deepcopy(module).train()
    for part in train.modules():
        if isinstance(part, _NormBase):
            part.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        theirs = train(x.repeat(samples, *[1] * (x.dim() - 1))).reshape(samples, len(x), -1).double().numpy()
    settings = Settings(samples=samples, scheme="iid")
    ours = exported.onnx.samples({"input": x.numpy()}, settings)["output"].astype(np.float64)
    ours = ours.reshape(samples, len(x), -1)
    ratio = ours.var(axis=0, ddof=1) / theirs.var(axis=0, ddof=1)
    spread = np.sqrt((kurtosis(ours) + kurtosis(theirs) - 2) / samples)
    return ratio, np.log(ratio) / spread


def kurtosis(values: Array) -> Array:
    """The fourth standardised moment over axis 0 (3 for a normal)."""
    return (((values - values.mean(axis=0)) / values.std(axis=0)) ** 4).mean(axis=0)


def measure(make: Callable[[], nn.Module], shape: str, samples: int) -> Result:
    """Export one model and measure it."""
    module, spec = build(make), parse_input(shape)

    def rows(count: int) -> Tensor:
        return torch.randn(count, *spec.sized(), generator=torch.Generator().manual_seed(count))

    with tempfile.TemporaryDirectory() as folder:
        made = export(Subject("model", module, (spec,)), Path(folder), ExportSettings())
        exported = Exported(made)
        script, onnx, mc_script, mc_onnx = parity(exported, module, rows)
        found = effects(exported.program, rows(8))
        ratio, z = variances(exported, module, rows(ROWS), samples)
    return Result(
        script=script,
        onnx=onnx,
        mc_script=mc_script,
        mc_onnx=mc_onnx,
        sites=len(found),
        least_effect=min(found),
        without_effect=sum(effect < 1e-4 for effect in found),
        outputs=z.size,
        ratio=float(np.exp(np.log(ratio).mean())),
        worst_z=float(np.abs(z).max()),
        bound=NormalDist().inv_cdf(1 - LEVEL / z.size / 2),
    )


def main() -> None:
    """Print the table; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "TorchScript", "ONNX", "MC TorchScript", "MC ONNX", "sites", "least effect",
                  "variance ratio", "worst z (bound)", title=f"errors and effects as a share of the output's "
                  f"scale; variances over {arguments.samples} samples")  # fmt: skip
    results: list[Result] = []
    for name, make, shape in NETWORKS:
        r = measure(make, shape, arguments.samples)
        results.append(r)
        errors = (f"{value:.1e}" for value in (r.script, r.onnx, r.mc_script, r.mc_onnx))
        z = f"{r.worst_z:.2f} ({r.bound:.2f})"
        table.add_row(name, *errors, str(r.sites), f"{r.least_effect:.1e}", f"{r.ratio:.3f}", z)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    figures = {
        "worst_relative_error": max(r.worst_error for r in results),
        "sites": sum(r.sites for r in results),
        "sites_without_effect": sum(r.without_effect for r in results),
        "least_effect": min(r.least_effect for r in results),
        "variance_outputs": sum(r.outputs for r in results),
        "variance_mismatches": sum(r.worst_z > r.bound for r in results),
        "variance_worst_z": max(r.worst_z for r in results),
    }
    print("; ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
