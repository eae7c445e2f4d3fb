"""A live bar for training: epochs, losses, the validation score, and the best epoch so far."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dropserve.training.curve import score_name
from dropserve.training.learner import Epoch, is_better
from dropserve.training.recipe import Recipe


class EpochBar:
    """A watcher of training that draws a bar; on anything but a terminal it prints its last state alone.

    Args:
        epochs: how many there can be.
        recipe: says what the score is called, and which epoch is the best.
        console: where to draw.
    """

    def __init__(self, epochs: int, recipe: Recipe, console: Console) -> None:
        self._recipe, self._score = recipe, score_name(recipe.task)
        self._best: Epoch | None = None
        self._epochs = epochs
        self._progress = Progress(
            BarColumn(bar_width=10),
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
        if is_better(row, self._best, self._recipe):
            self._best = row
        best = self._best.number if self._best else "none"
        numbers = (
            f"epoch {row.number}/{self._epochs}, loss {row.train_loss:.3f}, "
            f"validation {row.validation_loss:.3f}, {self._score} {row.score:.4g}, best {best}"
        )
        self._progress.update(self._task, completed=row.number, numbers=numbers)
