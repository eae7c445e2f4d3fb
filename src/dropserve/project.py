"""Where things stand: the user's project folder, its stage folders, store and run-time files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dropserve.store import Store

STAGES = ("training", "export", "serving")


def packaged_stages() -> Path:
    """The folder that holds the stage folders dropserve ships (in a checkout, its root)."""
    installed = Path(__file__).parent / "stage_files"
    return installed if installed.is_dir() else Path(__file__).parents[2]


@dataclass(frozen=True)
class Project:
    """A folder that holds a model store and, perhaps, stage folders of its own.

    Attributes:
        root: the folder; the working directory by default.
    """

    root: Path

    @property
    def store(self) -> Store:
        """The model store, ``model_store/``."""
        return Store(self.root / "model_store")

    @property
    def run_dir(self) -> Path:
        """Logs, sockets and process ids of a running server, ``.run/``."""
        return self.root / ".run"

    def stage_file(self, name: str) -> Path:
        """The user's copy of a stage file such as ``export/checks.toml``, or the packaged one."""
        own = self.root / name
        return own if own.is_file() else packaged_stages() / name
