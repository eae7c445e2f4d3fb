"""The training stage from end to end: a checked recipe in, a published run out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from dropserve.columns import request_row
from dropserve.manifest import ImageRecord, RunManifest, built_with
from dropserve.model import ModelClass, ServedModel, load_class, set_mode
from dropserve.signature import Signature, TensorSpec
from dropserve.store import Store, Stored
from dropserve.training.advice import Advice, advise, heed
from dropserve.training.augment import check_augmentation
from dropserve.training.checkpoint import Checkpoint
from dropserve.training.crew import crew
from dropserve.training.curve import write_curve_csv, write_curve_png
from dropserve.training.data import INPUT, Dataset, load_dataset
from dropserve.training.evaluate import evaluate, predict
from dropserve.training.fit import Fitted, fit
from dropserve.training.hardware import Hardware, choose_hardware
from dropserve.training.images import image_record
from dropserve.training.learner import Epoch
from dropserve.training.probe import probe
from dropserve.training.recipe import ImagesData, Recipe
from dropserve.training.recipe_file import RecipeFile
from dropserve.training.run_folder import (
    CALIBRATION,
    RECIPE,
    REFERENCE,
    TEST,
    VALIDATION,
    plain,
    write_instances,
    write_json,
    write_source,
    write_weights,
)
from dropserve.training.seeding import seeded

_TESTED = 5000  # test rows whose answers the report shows
_ASKED = 1000  # of these, the first, whose Monte Carlo answers it judges: their inputs are kept too
_REFERENCES = 5000  # training rows that requests are compared with


@dataclass(frozen=True)
class Prepared:
    """Everything before the first step, checked against each other.

    Attributes:
        model: an untrained module, with the weights that training will begin from.
        hardware: what training will run on.
        advice: about its dropout.
    """

    file: RecipeFile
    dataset: Dataset
    source: ModelClass
    model: nn.Module
    signature: Signature
    hardware: Hardware
    advice: tuple[Advice, ...]

    @property
    def model_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the bare module: rows as they are trained on, categories one-hot."""
        (spec,) = self.signature.inputs
        return (spec.model_copy(update={"shape": self.dataset.features.shape[1:]}),)

    @property
    def content(self) -> dict[str, Any]:
        """Recipe, and hashes of data, split and source: what decides on results, for those who keep them."""
        return {
            "recipe": self.file.recipe.resolved(),
            "data": self.dataset.table.sha256,
            "split": self.dataset.split.sha256,
            "source": self.source.sha256,
        }

    def build(self) -> nn.Module:
        """Another untrained module."""
        return self.source.build(self.file.recipe.model.arguments)


class Watcher(Protocol):
    """Who is told how training goes."""

    def on_progress(self, epochs: float) -> None:
        """So many epochs are done, a fraction of the running one included."""

    def on_epoch(self, row: Epoch) -> None:
        """An epoch has ended."""


class Silent:
    """A watcher that says nothing."""

    def on_progress(self, epochs: float) -> None:
        """Say nothing."""

    def on_epoch(self, row: Epoch) -> None:
        """Say nothing."""


def prepare(file: RecipeFile) -> Prepared:
    """Load data and model, and try one small batch.

    Raises:
        DataError: if the data cannot be learned from.
        RecipeError: if the recipe's augmentation does not fit the rows.
        ModelSourceError: if the model cannot be built or fails on a batch.
        TrainingError: if the model's output does not fit the target.
        UsageError: if the device is not there.
    """
    recipe = file.recipe
    hardware = choose_hardware(recipe.training)
    dataset = load_dataset(recipe, file.folder)
    check_augmentation(recipe, dataset.features.shape[1:])
    source = load_class(recipe.model.spec, file.folder)
    with seeded(recipe.training.seed):
        model = source.build(recipe.model.arguments)
        signature = probe(model, dataset)
    advice = advise(model, torch.from_numpy(dataset.features[dataset.split.train[:4]]))
    if recipe.tuned.measured(recipe.model.arguments):
        advice = heed(advice, recipe.tuned)
    return Prepared(file, dataset, source, model, signature, hardware, advice)


def checkpoint_of(prepared: Prepared, folder: Path) -> Checkpoint:
    """Where this very training would go on; another recipe, data, source or version has another file.

    Args:
        prepared: what is to be trained.
        folder: where checkpoints are kept.
    """
    identity = {
        **prepared.content,
        "hardware": str(prepared.hardware),
        "built_with": built_with(),
    }
    return Checkpoint(folder, prepared.file.recipe.name, identity)


def train(
    prepared: Prepared,
    store: Store,
    watcher: Watcher | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Stored[RunManifest], Fitted]:
    """Fit, with as many processes as the recipe asks for, measure and publish.

    The store is opened for writing before the first step, so that an hour of training does not end at a
    folder that cannot be written.

    Args:
        prepared: what to train.
        store: where the run is published.
        watcher: is told how training goes.
        checkpoint: where an interrupted training went on, and this one will; removed after publishing.

    Raises:
        TrainingError: if training diverged, or another process of the team failed.
        PublishError: if the run or the checkpoint cannot be written.
        KeyboardInterrupt: on Ctrl-C; the store is as it was.
    """
    watcher = watcher or Silent()
    recipe, dataset = prepared.file.recipe, prepared.dataset
    with store.staging(recipe.name, RunManifest) as staging:
        identity = checkpoint_of(prepared, Path()).path.name
        with crew(prepared.file, prepared.hardware.devices, identity, checkpoint) as team:
            fitted = fit(
                prepared.build,
                dataset,
                recipe,
                on_epoch=watcher.on_epoch,
                on_progress=watcher.on_progress,
                checkpoint=checkpoint,
                team=team,
            )
        folder, split, table = staging.folder, dataset.split, dataset.table
        write_weights(folder, fitted.model)
        served = set_mode(
            ServedModel(
                fitted.model,
                dataset.preprocessing,
                {spec.name: spec.sized() for spec in prepared.signature.inputs},
            )
        )
        metrics = {
            **evaluate(served, table, split.validation, "validation"),
            **evaluate(served, table, split.test, "test"),
            "best_epoch": float(fitted.best.number),
        }
        kept = {VALIDATION: split.validation, CALIBRATION: split.calibration}
        if recipe.uncertainty.ood_score in ("auto", "nearest"):
            kept[REFERENCE] = np.sort(np.random.default_rng(0).permutation(split.train)[:_REFERENCES])
        for file, rows in kept.items():
            if len(rows):
                held_out = {INPUT: table.features[rows], "target": table.target[rows]}
                np.savez(folder / file, **held_out)  # type: ignore[arg-type]  # numpy's stub takes a bool for any key
        shown = np.random.default_rng(0).permutation(split.test)[:_TESTED]
        answers: dict[str, Any] = {
            "output": predict(served, table.features[shown]),
            "target": table.target[shown],
        }
        answers[INPUT] = table.features[shown[:_ASKED]]
        np.savez(folder / TEST, **answers)
        columns = dataset.preprocessing.columns.get(INPUT, ())
        first = plain(table.features[split.validation[:1]])
        write_instances(folder, [request_row(row, columns) for row in first])
        write_json(folder / RECIPE, recipe.resolved())
        write_learning_curve(prepared, fitted.curve, fitted.best, staging.folder)
        manifest = RunManifest(
            id=staging.id,
            name=recipe.name,
            task=recipe.task,
            labels=table.labels,
            signature=prepared.signature,
            source=write_source(folder, prepared.source, recipe.model.arguments),
            preprocessing=dataset.preprocessing,
            images=_images(recipe),
            metrics=metrics,
            data=dataset.record(),
            built_with={**built_with(), "hardware": str(prepared.hardware)},
            recipe=recipe.resolved(),
        )
        published = store.publish(staging, manifest)
    if checkpoint:
        checkpoint.discard()
    return published, fitted


def _images(recipe: Recipe) -> dict[str, ImageRecord]:
    return {INPUT: image_record(recipe.data)} if isinstance(recipe.data, ImagesData) else {}


def write_learning_curve(prepared: Prepared, curve: Sequence[Epoch], best: Epoch, folder: Path) -> None:
    """``learning_curve.csv`` and ``learning_curve.png``."""
    recipe = prepared.file.recipe
    write_curve_csv(folder / "learning_curve.csv", curve, recipe.task)
    title = f"{recipe.name}: {type(prepared.model).__name__} on {dataset_title(prepared.dataset)}"
    write_curve_png(
        folder / "learning_curve.png",
        curve,
        best,
        task=recipe.task,
        title=title,
        noise=recipe.training.noise,
    )


def dataset_title(dataset: Dataset) -> str:
    """The data's name without its folders."""
    return dataset.table.name.rpartition("/")[2]
