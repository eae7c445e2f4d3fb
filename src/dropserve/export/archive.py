"""Archives that TorchServe registers, each with one endpoint's files and a manifest of them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dropserve.errors import ExportError, MissingExtraError
from dropserve.manifest import VersionManifest
from dropserve.store import hash_folder, write_manifest

from .external import files_of

CONFIG, HANDLER = "model-config.yaml", "handler.py"
EXAMPLE = "example.json"
PLAIN = ("model.onnx", "model.ts", EXAMPLE)
MONTE_CARLO = ("trunk.onnx", "head.onnx", "masked.ts", "nearest.onnx", "nearest.ts", EXAMPLE)


@dataclass(frozen=True)
class Stage:
    """What the stage folder ``serving/`` gives to each archive.

    Attributes:
        handler: ``handler.py``, with exactly one class.
        config: ``model-config.yaml``; TorchServe reads batch size and workers from it.
    """

    handler: Path
    config: Path


def write_archives(folder: Path, manifest: VersionManifest, stage: Stage) -> list[Path]:
    """Write ``<name>.mar`` and, if there are dropout sites, ``<name>-mc.mar`` into a version's folder.

    Args:
        folder: holds the graphs and the example.
        manifest: the version's; each archive carries it with its own list of files.
        stage: handler and configuration.

    Raises:
        ExportError: if a stage file is missing or the archiver fails.
        MissingExtraError: if torch-model-archiver is not installed.
    """
    archives = [_archive(folder, manifest, manifest.name, PLAIN, stage)]
    if manifest.sites:
        archives.append(_archive(folder, manifest, f"{manifest.name}-mc", MONTE_CARLO, stage))
    return archives


def _archive(
    folder: Path, manifest: VersionManifest, endpoint: str, files: Iterable[str], stage: Stage
) -> Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".archive-") as scratch:
        payload = Path(scratch) / "payload"
        payload.mkdir()
        for name in files:
            for file in files_of(folder / name):
                if file.is_file():
                    shutil.copy(file, payload)
        for source, name in ((stage.handler, HANDLER), (stage.config, CONFIG)):
            if not source.is_file():
                raise ExportError(f"there is no {source}; `dropserve init` puts the stage folders back")
            shutil.copy(source, payload / name)
        # The server writes its own settings over the configuration, so it is not among the verified files.
        own = {name: record for name, record in hash_folder(payload).items() if name != CONFIG}
        write_manifest(payload, manifest.model_copy(update={"files": own}))
        _run_archiver(payload, folder, endpoint, manifest.version, Path(scratch))
    return folder / f"{endpoint}.mar"


def _run_archiver(payload: Path, target: Path, endpoint: str, version: int, scratch: Path) -> None:
    """Call the archiver as a process of its own.

    It gathers files in a folder named after the model below the system's temporary folder, and empties that
    first: two exports at once would take each other's files. So it gets a temporary folder of its own.
    """
    extra = sorted(path.name for path in payload.iterdir() if path.name not in {HANDLER, CONFIG})
    command = [
        *(sys.executable, "-P", "-W", "ignore", "-m", "model_archiver.model_packaging"),
        *("--model-name", endpoint, "--version", str(version), "--handler", HANDLER),
        *("--extra-files", ",".join(extra), "--config-file", CONFIG),
        *("--export-path", str(target.absolute()), "--archive-format", "zip-store"),
    ]
    temporary = scratch.absolute() / "tmp"
    temporary.mkdir()
    done = subprocess.run(  # noqa: S603  # our own interpreter and names that we made
        command,
        cwd=payload,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in done.stderr and "model_archiver" in done.stderr:
        raise MissingExtraError("torch-model-archiver", "export")
    if f"[Errno {errno.ENOSPC}]" in done.stderr:  # as if we had written it ourselves: the store tells it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if done.returncode or not (target / f"{endpoint}.mar").is_file():
        raise ExportError(f"torch-model-archiver failed for {endpoint}: {done.stderr.strip()[-500:]}")
