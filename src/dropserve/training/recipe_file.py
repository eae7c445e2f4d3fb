"""Reading a recipe file and checking all of it before anything runs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dropserve.errors import ModelSourceError, RecipeError, UsageError
from dropserve.training.arguments import argument_problems
from dropserve.training.problems import describe, did_you_mean, with_overrides
from dropserve.training.recipe import (
    SOURCE_TASK,
    CsvData,
    DataTable,
    IdxData,
    ImagesData,
    NpzData,
    ParquetData,
    Recipe,
    TrainingTable,
)
from dropserve.training.recipe_columns import ColumnKeys


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that passed every check, and where it stands (paths in it are relative to that)."""

    path: Path
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> RecipeFile:
    """Read a recipe and check it: keys, values, the model's constructor, and that they go together.

    Args:
        path: a TOML file.
        overrides: values for ``table.key``, such as ``{"training.seed": 3}``, that replace the file's.

    Raises:
        RecipeError: with every problem at once.
        UsageError: if the file cannot be read.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path}: not UTF-8 text ({error.reason}, byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(str(path), [f"not TOML: {error}"]) from error
    return RecipeFile(path.resolve(), check_recipe(content, path, overrides))


def check_recipe(
    content: Mapping[str, Any], path: Path, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Check a recipe's content.

    Args:
        content: as TOML parses it.
        path: names the recipe in messages; relative paths start from its folder.
        overrides: as in :func:`load_recipe`.

    Raises:
        RecipeError: with every problem at once.
    """
    content = with_overrides(content, overrides or {})
    folder = path.resolve().parent
    problems: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems += describe(error, Recipe)
    problems += _data_problems(content, folder) + _split_problems(content)
    problems += _training_problems(content)
    problems += _model_problems(content.get("model"), folder)
    if problems or recipe is None:
        raise RecipeError(str(path), problems)
    return recipe


def _data_problems(content: Mapping[str, Any], folder: Path) -> list[str]:
    """What goes wrong between values that are each allowed."""
    try:
        data = TypeAdapter[DataTable](DataTable).validate_python(content.get("data"))
    except ValidationError:
        return []  # reported with the rest of the recipe
    task = content.get("task")
    needed = SOURCE_TASK.get(data.source)
    problems: list[str] = []
    training = content.get("training", {})
    noise = training.get("noise") if isinstance(training, dict) else None
    if noise == "heteroscedastic" and task == "classification":
        problems.append('training.noise: got "heteroscedastic"; that is for task = "regression"')
    if needed and task in ("classification", "regression") and task != needed:
        problems.append(f"task: got {task!r}; data.source = {data.source!r} is for {needed!r}")
    problems += _file_problems(data, folder)
    informative, features = getattr(data, "informative", 0), getattr(data, "features", 0)
    if isinstance(informative, int) and isinstance(features, int) and informative > features:
        problems.append(f"data.informative: got {informative}; allowed: at most data.features ({features})")
    classes = getattr(data, "classes", 0)
    if classes > 2**informative > 1:
        problems.append(
            f"data.classes: got {classes}; allowed: at most 2**data.informative ({2**informative}), "
            "a class for each corner"
        )
    return problems


def _file_problems(data: object, folder: Path) -> list[str]:
    """What is wrong with the files and columns that the recipe names."""
    problems: list[str] = []
    if isinstance(data, IdxData):
        problems += _idx_problems(data)
    if (isinstance(data, ImagesData) or (isinstance(data, IdxData) and data.url is None)) and not (
        folder / data.folder
    ).is_dir():
        problems.append(f"data.folder: got {data.folder!r}; there is no folder {folder / data.folder}")
    if isinstance(data, CsvData | ParquetData | NpzData):
        file = folder / data.file
        if not file.is_file():
            problems.append(f"data.file: got {data.file!r}; there is no file {file}")
    if isinstance(data, CsvData | ParquetData):
        problems += _column_problems(data)
        if data.features and data.target in data.features:
            problems.append(f"data.features: holds the target {data.target!r}; take it out")
        twice = sorted({name for name in data.features or [] if (data.features or []).count(name) > 1})
        if twice:
            problems.append(f"data.features: {', '.join(twice)} stands there twice; name each column once")
    return problems


def _column_problems(data: ColumnKeys) -> list[str]:
    """What the keys about single columns say of columns that are not learned from, or in vain."""
    problems: list[str] = []
    for key, names in (("categorical", data.categorical), ("columns", list(data.columns))):
        if data.target in names:
            problems.append(f"data.{key}: holds the target {data.target!r}; take it out")
        known = data.features
        beside = [] if known is None else [name for name in names if name not in (*known, data.target)]
        problems += [
            f"data.{key}: {name!r} is not in data.features{did_you_mean(name, known or [])}"
            for name in beside
        ]
    pairs = [("data", data), *((f"data.columns.{name}", table) for name, table in data.columns.items())]
    for key, table in pairs:
        unknown = table.unknown or data.unknown
        if (table.rare or 1) > 1 and unknown != "other":
            problems.append(f'{key}.rare: got {table.rare}; it needs unknown = "other" to put rare ones into')
    return problems


def _idx_problems(data: IdxData) -> list[str]:
    problems: list[str] = []
    if (data.test_features is None) != (data.test_target is None):
        problems.append("data: one of test_features and test_target; write both, or neither")
    names = [data.features, data.target, data.test_features, data.test_target]
    bare = [name for name in names if name is not None and name not in data.sha256]
    if data.url is not None and bare:
        problems.append(f"data.sha256: no hash of {', '.join(bare)}; what is fetched needs one")
    return problems


def _split_problems(content: Mapping[str, Any]) -> list[str]:
    split = content.get("split", {})
    if not isinstance(split, dict):
        return []
    shares = [split.get("validation", 0.15), split.get("test", 0.15), split.get("calibration", 0)]
    if all(isinstance(share, int | float) and 0 <= share < 1 for share in shares) and sum(shares) >= 1:
        parts = "validation + test" + (" + calibration" if shares[2] else "")
        return [f"split: {parts} is {sum(shares):g}; allowed: below 1, to leave rows to train on"]
    return []


def _training_problems(content: Mapping[str, Any]) -> list[str]:
    training = content.get("training", {})
    if not isinstance(training, dict):
        return []
    problems: list[str] = []
    size, count = training.get("batch_size", 64), training.get("devices", 1)
    if isinstance(size, int) and isinstance(count, int) and count > 1 and 2 <= size < 2 * count:
        problems.append(
            f"training.batch_size: got {size}; allowed: at least 2 * training.devices ({2 * count})"
        )
    patience = training.get("patience", TrainingTable().patience)  # type: ignore[call-arg]  # all have defaults
    if training.get("monitor") == "nothing" and patience:
        problems.append(f'training.patience: got {patience}; with monitor = "nothing" nothing stops early: 0')
    return problems


def _model_problems(table: object, folder: Path) -> list[str]:
    """Load the class and hold the arguments against its constructor."""
    from dropserve.model import load_class  # noqa: PLC0415  # torch: only once a model is named

    if not isinstance(table, dict) or not isinstance(spec := table.get("class"), str):
        return []
    if spec.count(":") != 1 or not spec.partition(":")[2].isidentifier():
        return []  # reported by the pattern
    arguments = table.get("arguments", {})
    try:
        cls = load_class(spec, folder).cls
    except ModelSourceError as error:
        return [f"model.class: {error}"]
    if not isinstance(arguments, dict):
        return []
    return argument_problems(cls, arguments, "model.arguments.")
