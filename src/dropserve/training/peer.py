"""What each further process of a team runs: ``python -m dropserve.training.peer``, started by ``crew``.

It trains its share of every batch and keeps nothing: no progress, no checkpoint of its own, no run.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import torch

from dropserve.errors import DropserveError
from dropserve.training.crew import READY
from dropserve.training.fit import fit
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import checkpoint_of, prepare
from dropserve.training.team import Team


def main() -> None:
    """Read the order from standard input, prepare, say so on the pipe, and train."""
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(order["threads"])
    path = Path(order["recipe"])
    prepared = prepare(RecipeFile(path, check_recipe(order["content"], path)))
    folder = order["checkpoints"]
    checkpoint = checkpoint_of(prepared, Path(folder or "."))
    if checkpoint.path.name != order["identity"]:
        raise DropserveError(
            "recipe, data or model source have changed since this training began; begin again"
        )
    pipe = int(sys.argv[1])
    os.write(pipe, READY)
    os.close(pipe)
    fit(
        prepared.build,
        prepared.dataset,
        prepared.file.recipe,
        checkpoint=checkpoint if folder else None,
        team=Team(*order["team"]),
    )


def _end_with_parent() -> None:
    """The parent holds the other end of standard input, and never writes a second line."""
    while os.read(sys.stdin.fileno(), 1):  # not buffered: its lock would stand in the way of our own end
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
