"""Results of splits as files, each written whole or not at all: what a kill leaves is not done again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dropserve.errors import DataError
from dropserve.training.uci.choose import Space
from dropserve.training.uci.judge import SAMPLES
from dropserve.training.uci.network import HIDDEN
from dropserve.training.uci.splits import SplitTable
from dropserve.training.whole_files import read_json, write_whole

METHOD = 1  # raised whenever the same settings would give other results


@dataclass(frozen=True)
class SplitResult:
    """One split, done.

    Attributes:
        split: its number.
        rmse: on the test rows, in the unit of the target.
        log_likelihood: on the test rows, in nats a row.
        validation_rmse: on the inner held-out rows, by what was chosen.
        validation_log_likelihood: the same.
        chosen: rate, learning rate, weight decay, and the noise's factor and floor.
        seconds: of the clock, for the search and the last training.
        processor_seconds: the same, of the processor.
    """

    split: int
    rmse: float
    log_likelihood: float
    validation_rmse: float
    validation_log_likelihood: float
    chosen: dict[str, float]
    seconds: float
    processor_seconds: float


class Records:
    """The results of one table under one set of settings.

    Args:
        folder: of all results; made when the first is written.
        table: its content is part of what the results stand for.
        space: the search space, likewise.
    """

    def __init__(self, folder: Path, table: SplitTable, space: Space) -> None:
        identity = {
            "method": METHOD,
            "table": table.sha256,
            "space": asdict(space),
            "hidden": HIDDEN,
            "samples": SAMPLES,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = folder / f"{table.name}-{digest[:12]}"

    def path(self, split: int) -> Path:
        """Where a split's result stands, or will."""
        return self.folder / f"split-{split:02d}.json"

    def read(self, split: int) -> SplitResult | None:
        """A split's result; None if it is not done.

        Raises:
            DataError: if the file is no result.
        """
        path = self.path(split)
        found = read_json(path)
        try:
            return None if found is None else SplitResult(**found)
        except TypeError as error:
            raise DataError(
                f"{path}: no result of a split ({error}); remove it to have it done again"
            ) from error

    def write(self, result: SplitResult) -> None:
        """Keep a result."""
        write_whole(self.path(result.split), asdict(result))
