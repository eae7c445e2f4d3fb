"""The command line: ``dropserve train | export | serve | ...``.

Each module of this package holds the commands of one stage and imports that stage inside its functions:
``dropserve predict`` on a small host needs no torch.
"""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from dropserve.cli import audit, bench, export, predict, serve, study, train
from dropserve.errors import DropserveError, MissingExtraError

app = typer.Typer(
    name="dropserve",
    help="Train with dropout. Prove it is gone. Serve the answer, and the doubt when someone asks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train.app)
app.add_typer(audit.app)
app.add_typer(export.app)
app.add_typer(serve.app)
app.add_typer(predict.app)
app.add_typer(bench.app)
app.add_typer(study.app)

# The extra that brings what a command imports.
_EXTRAS = {
    "train": "train",
    "bench": "train",
    "overfit": "train",
    "tune": "train",
    "import": "train",
    "export": "export",
    "serve": "torchserve",
}


def main() -> None:
    """Run the command line; an error of ours is a message and an exit status, not a traceback."""
    # Threads that wait for each other by spinning make a small training five times as slow where other work
    # wants the cores. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        try:
            app()
        except ModuleNotFoundError as error:
            extra = next((_EXTRAS[word] for word in sys.argv[1:] if word in _EXTRAS), None)
            if extra == "torchserve" and "asgi" in sys.argv:
                extra = "serve"
            if extra is None or error.name is None or error.name.startswith("dropserve"):
                raise
            raise MissingExtraError(error.name, extra) from error
    except DropserveError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_status)
