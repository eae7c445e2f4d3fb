"""What a search found, as a recipe: the file it came from, comments and all, with other numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from dropserve.errors import UsageError
from dropserve.training.recipe_file import RecipeFile, load_recipe
from dropserve.training.tuning.search import Tuned

_PATHS = (("model", "class"), ("data", "file"), ("data", "folder"))


def write_recipe(file: RecipeFile, tuned: Tuned, path: Path) -> RecipeFile:
    """Write the found values into a copy of the recipe, and read it back.

    Args:
        file: the recipe that was tuned.
        tuned: what was found.
        path: where to write; relative paths in it are made to start from there.

    Raises:
        UsageError: if it cannot be written.
        RecipeError: if what was written is no recipe.
    """
    import tomlkit  # noqa: PLC0415  # only to write

    document: Any = tomlkit.parse(file.path.read_text(encoding="utf-8"))
    best = tuned.best.values
    model = _table(document, "model")
    if "arguments" not in model:
        model["arguments"] = tomlkit.table()
    rates = {name: float(f"{rate:.4g}") for name, rate in tuned.space.rates(best).items()}
    for name, rate in rates.items():
        model["arguments"][name] = rate
    optimiser = _table(document, "optimiser")
    for name in ("learning_rate", "weight_decay"):
        optimiser[name] = float(f"{best[name]:.4g}")
    document["tuned"] = _measured(tuned, rates)
    if path.resolve().parent != file.folder:
        for table, key in _PATHS:
            _move(_table(document, table), key, file.folder, path.resolve().parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomlkit.dumps(document), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror}; name another file") from error
    return load_recipe(path)


def _measured(tuned: Tuned, rates: dict[str, float]) -> Any:
    """The table ``[tuned]``."""
    import tomlkit  # noqa: PLC0415  # as above

    table = tomlkit.table()
    table.comment(f"written by dropserve tune. {tuned.verdict}")
    table["trials"], table["rows"] = len(tuned.trials), len(tuned.best.rows)
    table["rates"] = tomlkit.inline_table()
    table["rates"].update(rates)
    found = None if tuned.without is None else tuned.behind(tuned.without)
    if found is not None and all(map(math.isfinite, found)):
        table["gain"], table["half"] = (float(f"{value:.4g}") for value in found)
    return table


def _table(document: Any, name: str) -> Any:
    import tomlkit  # noqa: PLC0415  # as above

    if name not in document:
        document[name] = tomlkit.table()
    return document[name]


def _move(table: Any, key: str, before: Path, after: Path) -> None:
    """Let a relative path start from another folder."""
    value = table.get(key)
    if not isinstance(value, str):
        return
    place, colon, name = value.rpartition(":") if key == "class" else (value, "", "")
    if (key == "class" and not place.endswith(".py")) or Path(place).is_absolute():
        return
    table[key] = f"{Path(os.path.relpath(before / place, after)).as_posix()}{colon}{name}"
