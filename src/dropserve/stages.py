"""Give a user the stage folders: what to train, how an export is judged, what a server runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dropserve.errors import UsageError
from dropserve.project import STAGES, packaged_stages


@dataclass
class Copied:
    """What copying did, paths relative to the target.

    Attributes:
        created: files that were not there.
        unchanged: files that were there and are the same.
        kept: files that were there and differ; they stay as they are.
    """

    created: list[Path] = field(default_factory=list[Path])
    unchanged: list[Path] = field(default_factory=list[Path])
    kept: list[Path] = field(default_factory=list[Path])


def copy_stages(target: Path) -> Copied:
    """Copy the packaged stage folders into a folder; no file that is there is ever written over.

    Args:
        target: made if it is not there.

    Raises:
        UsageError: if a file cannot be written.
    """
    source, copied = packaged_stages(), Copied()
    for stage in STAGES:
        for file in sorted((source / stage).rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            name = file.relative_to(source)
            try:
                _copy(file, target / name, name, copied)
            except OSError as error:
                raise UsageError(f"{target / name} cannot be written: {error.strerror}") from error
    return copied


def _copy(file: Path, target: Path, name: Path, copied: Copied) -> None:
    if target.exists():
        same = target.is_file() and target.read_bytes() == file.read_bytes()
        (copied.unchanged if same else copied.kept).append(name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)  # not the mode: an installed file may be read-only
    copied.created.append(name)
