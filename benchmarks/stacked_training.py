"""How much faster are many trainings as one batched model than one after the other?

    python benchmarks/stacked_training.py [--epochs 40] [--repeats 3] [--json PATH]

20 splits x 4 dropout rates of an MLP 8-50-50-1 on a table of 1,000 rows (900 to train), batches of 100,
AdamW. Five ways, taking turns: as one stack; the same through `torch.func`, as a stack of any other module
would be; a plain PyTorch loop, one member after the other; the same loop with the optimiser's fused steps;
and Lightning, as `dropserve train` runs it (fused too), one after the other. Those that go one after the
other get one thread, which is faster than two for networks of this size. Seconds of the clock and of the
processor; ratios of both.

Equal results are checked on four members in float64: the same batches and masks through torch's own modules,
autograd and optimiser.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dropserve.dropout.calls import DropoutCall
from dropserve.dropout.mode import DropoutMode
from dropserve.training.fit import fit
from dropserve.training.learner import Batches
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import Prepared, prepare
from dropserve.training.seeding import seeded
from dropserve.training.stack import Member, Rows, StackSettings, squared_error, train_stack
from dropserve.training.stack import train as stacking
from dropserve.training.stack.group import mask_rows
from dropserve.training.stack.masks import training_mask
from dropserve.training.stack.module import StackedModule

SPLITS, RATES = 20, (0.005, 0.01, 0.05, 0.1)
ROWS, FEATURES, BATCH, WIDTH = 1000, 8, 100, 50
MODELS = Path(__file__).resolve().parents[1] / "training/models.py"


def build(p: float = 0.1) -> nn.Module:
    """The network."""
    return nn.Sequential(
        *(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Dropout(p)),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(p)),
        nn.Linear(WIDTH, 1),
    )


def members(dtype: torch.dtype) -> list[Member]:
    """All that are to be trained."""
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, FEATURES))
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * random.standard_normal(ROWS)
    found: list[Member] = []
    for split in range(SPLITS):
        train = random.permutation(ROWS)[: ROWS * 9 // 10]
        rows = Rows(torch.tensor(x[train], dtype=dtype), torch.tensor(y[train], dtype=dtype))
        found += [Member(rows, seed=split, rate=rate, learning_rate=3e-3) for rate in RATES]
    return found


def plain(member: Member, settings: StackSettings, *, fused: bool | None = None) -> nn.Module:
    """One member in a loop as it would be written for one network."""
    with seeded(member.seed):
        model = build(member.rate)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=member.learning_rate, weight_decay=member.weight_decay, fused=fused
        )
        batches = Batches(member.train.features, member.train.target, settings.batch_size, member.seed)
        for _ in range(settings.epochs):
            for rows, target in batches:
                optimiser.zero_grad()
                nn.functional.mse_loss(model(rows)[:, 0], target).backward()
                optimiser.step()
    return model


class Given(DropoutMode):
    """torch's dropout replaced by the masks of a member."""

    def __init__(self, member: Member, rows: int) -> None:
        super().__init__()
        self.member, self.rows, self.step, self.site = member, rows, 0, 0

    def on_dropout(self, call: DropoutCall) -> Tensor:
        """The next site's mask."""
        shape = (self.rows, *call.input.shape[1:])
        mask = training_mask(self.member.seed, self.site, self.step, shape, self.member.rate)
        self.site += 1
        return call.input * torch.from_numpy(mask[: len(call.input)])


def difference(epochs: int) -> float:
    """The greatest relative difference of any weight between stacked and separate training, in float64."""
    chosen = members(torch.float64)[:: SPLITS * len(RATES) // 4 + 1]
    settings = StackSettings(epochs, BATCH, dtype=torch.float64)
    stack = train_stack(build, chosen, squared_error, settings)
    worst = 0.0
    for place, member in enumerate(chosen):
        with seeded(member.seed):
            model = build(member.rate).double()
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=member.learning_rate, weight_decay=member.weight_decay
        )
        batches = Batches(member.train.features, member.train.target, settings.batch_size, member.seed)
        mode = Given(member, mask_rows(len(member.train), settings.batch_size))
        for _ in range(settings.epochs):
            for rows, target in batches:
                optimiser.zero_grad()
                mode.site = 0
                with mode:
                    output = model(rows)
                nn.functional.mse_loss(output[:, 0], target).backward()
                optimiser.step()
                mode.step += 1
        found = stack.state(place)
        for name, value in model.state_dict().items():
            worst = max(worst, float((value - found[name]).abs().max() / value.abs().max()))
    return worst


def recipe(member: Member, epochs: int, folder: Path) -> Prepared:
    """The same member as a recipe: its rows in a file, with a few to validate on as a recipe wants them."""
    rows = np.concatenate([member.train.features.numpy(), member.train.target.numpy()[:, None]], axis=1)
    file = folder / "rows.npz"
    np.savez(file, x=rows[:, :-1], y=rows[:, -1])
    content = {
        "name": "stacked",
        "task": "regression",
        "model": {
            "class": f"{MODELS}:MLP",
            "arguments": {
                "inputs": FEATURES,
                "outputs": 1,
                "hidden": [WIDTH, WIDTH],
                "dropout": member.rate,
            },
        },
        "data": {"source": "npz", "file": str(file), "scaling": "none"},
        "split": {"validation": 0.005, "test": 0.005},
        "training": {"epochs": epochs, "batch_size": BATCH, "patience": 0, "device": "cpu"},
        "optimiser": {"learning_rate": 3e-3},
    }
    return prepare(RecipeFile(file, check_recipe(content, file)))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    """Take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = take_turns(options.epochs, options.repeats, options.workers)
    worst = difference(options.epochs)
    print(
        f"{SPLITS * len(RATES)} members, {options.epochs} epochs of {ROWS * 9 // 10 // BATCH} batches of "
        f"{BATCH}; medians of {options.repeats}; {options.workers} threads for the stack"
    )
    print(f"{'':<22}{'seconds':>9}{'processor':>11}{'ratio':>8}{'of processor':>14}")
    ours = times["stacked"]
    for name, (clock, processor) in times.items():
        ratios = f"{clock / ours[0]:>8.1f}{processor / ours[1]:>14.1f}"
        print(f"{name:<22}{clock:>9.2f}{processor:>11.2f}{ratios}")
    print(f"equal results: weights differ by {worst:.1e} at most (four members, float64)")
    if options.json:
        figures = {
            "over_plain": times["plain loop"][0] / ours[0],
            "over_plain_fused": times["plain loop, fused"][0] / ours[0],
            "over_lightning": times["Lightning"][0] / ours[0],
            "over_plain_processor": times["plain loop"][1] / ours[1],
            "over_lightning_processor": times["Lightning"][1] / ours[1],
            "torch_func_over_by_hand": times["stacked, torch.func"][1] / ours[1],
            "worst_difference": worst,
            "stacked_seconds": ours[0],
            "plain_seconds": times["plain loop"][0],
            "lightning_seconds": times["Lightning"][0],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


def take_turns(epochs: int, repeats: int, workers: int) -> dict[str, tuple[float, float]]:
    """Median seconds, of the clock and of the processor, of each way."""
    settings, every = StackSettings(epochs, BATCH), members(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        prepared = [recipe(member, epochs, Path(folder)) for member in every[: len(RATES)]]

    def stacked(net: Callable[..., Any] = stacking.stacked_net) -> None:
        stacking.stacked_net = net
        train_stack(build, every, squared_error, settings, workers=workers)

    def one_by_one(*, fused: bool | None = None) -> None:
        for member in every:
            plain(member, settings, fused=fused)

    def by_lightning() -> None:
        for place in range(len(every)):  # every split has as many rows: the time is the same
            each = prepared[place % len(prepared)]
            fit(each.build, each.dataset, each.file.recipe)

    own = stacking.stacked_net
    ways: dict[str, Callable[[], None]] = {
        "stacked": lambda: stacked(own),
        "stacked, torch.func": lambda: stacked(StackedModule),
        "plain loop": one_by_one,
        "plain loop, fused": lambda: one_by_one(fused=True),
        "Lightning": by_lightning,
    }
    first = StackSettings(1, BATCH)  # first calls pay for imports and caches
    train_stack(build, every[:2], squared_error, first)
    plain(every[0], first)
    fit(prepared[0].build, prepared[0].dataset, prepared[0].file.recipe)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            times[name].append(timed(work))
    stacking.stacked_net = own
    return {
        name: (statistics.median(each[0] for each in found), statistics.median(each[1] for each in found))
        for name, found in times.items()
    }


if __name__ == "__main__":
    main()
