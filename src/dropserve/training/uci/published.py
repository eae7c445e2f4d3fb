"""Published figures to stand beside ours: ``published.json`` of the folder of tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropserve.errors import DataError

GRID = "2018 grid search"
ENSEMBLES = "Deep Ensembles 2017"


@dataclass(frozen=True)
class Figure:
    """A mean and its spread, as published; the spread is a standard error but for Deep Ensembles."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Published:
    """What one source reports on one table.

    Attributes:
        source: the column's name.
        rmse: in the unit of the target.
        log_likelihood: in nats a row.
    """

    source: str
    rmse: Figure
    log_likelihood: Figure


def read_published(folder: Path) -> dict[str, list[Published]]:
    """The columns for each table; empty if the folder has no ``published.json``.

    Raises:
        DataError: if the file is not of its form.
    """
    path = folder / "published.json"
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        columns: dict[str, list[Published]] = {}
        for source, block, read in _COLUMNS:
            for table, figures in content[block]["results"].items():
                rmse, likelihood = read(figures)
                columns.setdefault(table, []).append(Published(source, rmse, likelihood))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not published figures as they were expected: {type(error).__name__}: {error}"
        ) from error
    return columns


def _figure(found: dict[str, float], sign: int = 1) -> Figure:
    return Figure(sign * found["mean"], found.get("spread", found.get("stderr", float("nan"))))


_Read = Callable[[dict[str, Any]], tuple[Figure, Figure]]
_COLUMNS: tuple[tuple[str, str, _Read], ...] = (
    (
        "Gal & Ghahramani 2016",
        "gal_ghahramani_2016_table1",
        lambda found: (_figure(found["Dropout"]["rmse"]), _figure(found["Dropout"]["ll"])),
    ),
    (
        "2 layers, 2016",
        "readme_2016",
        lambda found: (_figure(found["2_layers_rmse"]), _figure(found["2_layers_ll"])),
    ),
    (GRID, "result_files", lambda found: (_figure(found["mc_rmse"]), _figure(found["ll"]))),
    (
        ENSEMBLES,
        "deep_ensembles_2017_table1",
        lambda found: (_figure(found["rmse"]), _figure(found["nll"], -1)),
    ),
)
