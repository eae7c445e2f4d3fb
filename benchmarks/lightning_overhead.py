"""What Lightning costs: time per epoch of our fit against a loop written by hand, on the digits recipe.

    python benchmarks/lightning_overhead.py [--epochs 15] [--repeats 7] [--recipe FILE] [--json PATH]

Both run the same batches in the same order through the same model and optimiser, and validate after each
epoch. Repeats alternate, so that a busy moment of the machine hits both; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from dropserve.project import packaged_stages
from dropserve.training.fit import fit
from dropserve.training.learner import Batches, Learner, build_optimiser
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import Prepared, prepare
from dropserve.training.seeding import seeded


def by_hand(prepared: Prepared) -> tuple[float, float]:
    """Seconds per epoch, and the last validation loss."""
    recipe, dataset = prepared.file.recipe, prepared.dataset
    settings, split = recipe.training, dataset.split

    def part(rows: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(dataset.features[rows]), torch.from_numpy(dataset.target[rows])

    train = Batches(*part(split.train), settings.batch_size, settings.seed)
    validation = Batches(*part(split.validation), 1024)
    with seeded(settings.seed):
        model = prepared.build()
        loss = Learner(model, recipe).loss
        optimiser = build_optimiser(recipe.optimiser, model)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
        seconds: list[float] = []
        last = float("nan")
        for _ in range(settings.epochs):
            begin = time.perf_counter()
            model.train()
            for rows, target in train:
                optimiser.zero_grad()
                loss(model(rows), target).backward()
                optimiser.step()
            model.eval()
            with torch.inference_mode():
                total = sum(loss(model(rows), target) * len(rows) for rows, target in validation)
            last = float(total) / len(split.validation)
            schedule.step()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), last


def by_lightning(prepared: Prepared) -> tuple[float, float]:
    """Seconds per epoch, and the last validation loss."""
    fitted = fit(prepared.build, prepared.dataset, prepared.file.recipe)
    return statistics.median(row.seconds for row in fitted.curve), fitted.curve[-1].validation_loss


def main() -> None:
    """Alternate the two, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--recipe", type=Path, default=packaged_stages() / "training/recipes/digits.toml")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    overrides = {"training.epochs": options.epochs, "training.patience": 0, "training.device": "cpu"}
    prepared = prepare(load_recipe(options.recipe, overrides))
    by_lightning(prepared), by_hand(prepared)  # first calls pay for imports and caches
    pairs = [(by_lightning(prepared), by_hand(prepared)) for _ in range(options.repeats)]
    losses = {loss for pair in pairs for _, loss in pair}
    if max(losses) - min(losses) > 1e-6:
        raise SystemExit(f"the two trained differently: validation losses {sorted(losses)}")
    ours = statistics.median(pair[0][0] for pair in pairs)
    hand = statistics.median(pair[1][0] for pair in pairs)
    ratios = sorted(pair[0][0] / pair[1][0] for pair in pairs)
    ratio = statistics.median(ratios)
    batches = -(-len(prepared.dataset.split.train) // prepared.file.recipe.training.batch_size)
    print(f"{batches} batches an epoch, {options.epochs} epochs, {options.repeats} repeats, alternating")
    print(f"{'':<20}{'ms per epoch':>14}")
    print(f"{'Lightning (our fit)':<20}{1e3 * ours:>14.1f}")
    print(f"{'loop by hand':<20}{1e3 * hand:>14.1f}")
    print(f"ratio {ratio:.2f} (repeats from {ratios[0]:.2f} to {ratios[-1]:.2f}); same losses in both")
    if options.json:
        figures = {
            "ratio": ratio,
            "ratio_least": ratios[0],
            "ratio_most": ratios[-1],
            "lightning_ms_per_epoch": 1e3 * ours,
            "by_hand_ms_per_epoch": 1e3 * hand,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
