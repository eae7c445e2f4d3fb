"""A live bar for training: epochs, losses, the validation score, and the best epoch so far."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dropserve.training.curve import score_name
from dropserve.training.learner import Epoch


class EpochBar:
    """A watcher of training that draws a bar; on anything but a terminal it prints its last state alone.

    Args:
        epochs: how many there can be.
        task: decides what the score is called.
        console: where to draw.
    """

    def __init__(self, epochs: int, task: str, console: Console) -> None:
        self._score = score_name(task)
        self._best: Epoch | None = None
        self._progress = Progress(
            TextColumn("epoch"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=epochs, numbers="")

    def __enter__(self) -> EpochBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_progress(self, epochs: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=epochs)

    def on_epoch(self, row: Epoch) -> None:
        """Show the numbers of an epoch."""
        if self._best is None or row.validation_loss < self._best.validation_loss:
            self._best = row
        numbers = (
            f"loss {row.train_loss:.3f}, validation {row.validation_loss:.3f}, "
            f"{self._score} {row.score:.4g}, best epoch {self._best.number}"
        )
        self._progress.update(self._task, completed=row.number, numbers=numbers)
