"""The model store: where the stages meet.

``<root>/<name>/runs/<id>/`` is a run, ``<root>/<name>/<number>/`` a version. Either is written to a staging
folder and renamed into place, so a reader never sees half of one; neither is changed afterwards. Every
loader verifies hashes first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from dropserve.errors import CorruptStoreError, NotInStoreError, PublishError, UsageError
from dropserve.manifest import FileRecord, Manifest, RunManifest, VersionManifest, read_manifest

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")  # of a version; str.isdigit() takes superscripts too
_STAGING = ".staging-"
_LOCK = ".lock"
M = TypeVar("M", RunManifest, VersionManifest)


@dataclass(frozen=True)
class Stored(Generic[M]):
    """A published folder whose files agree with its manifest."""

    folder: Path
    manifest: M

    @property
    def manifest_sha256(self) -> str:
        """The hash of ``manifest.json``, which pins every file: by it, others can refer to this folder."""
        return hash_file(self.folder / MANIFEST).sha256

    def path(self, file: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            NotInStoreError: if it lists no such file.
        """
        if file not in self.manifest.files:
            listed = ", ".join(sorted(self.manifest.files))
            raise NotInStoreError(f"{self.folder} has no file {file!r}; it has {listed}")
        return self.folder / file


@dataclass(frozen=True)
class Staging:
    """A folder being filled. ``number`` is the version it will be, 0 for a run."""

    folder: Path
    name: str
    id: str
    number: int = 0


def check_name(name: str) -> str:
    """Return a model's name if it is fit for paths, URLs and endpoints.

    Raises:
        UsageError: otherwise.
    """
    if not _NAME.fullmatch(name) or name.endswith("-mc") or name == "runs":
        raise UsageError(
            f"model name {name!r}: use 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit; "
            "'runs' and names that end in -mc are reserved (the Monte Carlo endpoint is NAME-mc)."
        )
    return name


def hash_file(path: Path) -> FileRecord:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(sha256=digest, size=path.stat().st_size)


def hash_folder(folder: Path) -> dict[str, FileRecord]:
    """A record for every file below a folder, but for the manifest and what guards it."""
    own = {MANIFEST, MANIFEST_HASH, _LOCK}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = ((path.relative_to(folder).as_posix(), path) for path in files)
    return {name: hash_file(path) for name, path in names if name not in own}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` and, beside it, its own hash."""
    text = manifest.model_dump_json(indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / MANIFEST_HASH).write_bytes(_guard(text.encode()))


def _guard(content: bytes) -> bytes:
    """The line that ``sha256sum --check`` reads."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def open_folder(folder: Path, kind: type[M], *, strict: bool = True) -> Stored[M]:
    """Read a manifest and verify every file it lists.

    Args:
        folder: a run, a version, or an unpacked archive of one.
        kind: ``RunManifest`` or ``VersionManifest``.
        strict: also refuse files that the manifest does not list.

    Raises:
        NotInStoreError: if there is no manifest.
        CorruptStoreError: if a file is missing, altered or not listed; the message names it.
    """
    manifest = _read_verified_manifest(folder)
    if not isinstance(manifest, kind):
        raise CorruptStoreError(f"{folder / MANIFEST} describes a {manifest.kind}, not a {kind.__name__}")
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptStoreError(f"{path} is missing, but {MANIFEST} lists it. {_MEND}")
        found = hash_file(path)
        if found != record:
            raise CorruptStoreError(
                f"{path} is not what was published: expected sha256 {record.sha256[:12]}... of "
                f"{record.size} bytes, found {found.sha256[:12]}... of {found.size} bytes. {_MEND}"
            )
    if strict and (unknown := sorted(set(_names(folder)) - set(manifest.files))):
        raise CorruptStoreError(f"{folder / unknown[0]} is not listed in {MANIFEST}. {_MEND}")
    return Stored(folder, manifest)


_MEND = "Restore the folder from a backup, or train and export again and delete this one."


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in {MANIFEST, MANIFEST_HASH}:
            yield name


def _read_verified_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise NotInStoreError(f"{folder} holds no {MANIFEST}")
    content = path.read_bytes()
    guard = folder / MANIFEST_HASH
    if not guard.is_file() or guard.read_bytes() != _guard(content):
        raise CorruptStoreError(f"{path} does not agree with {MANIFEST_HASH} beside it. {_MEND}")
    try:
        return read_manifest(json.loads(content))
    except RecursionError as error:
        raise CorruptStoreError(f"{path}: its values are nested too deep. {_MEND}") from error
    except ValueError as error:
        raise CorruptStoreError(f"{path}: {error}") from error


def _require_place(found: Stored[M], name: str, own: str) -> Stored[M]:
    """Refuse a manifest that stands in another folder than the one it was published in.

    Raises:
        CorruptStoreError: naming both.
    """
    manifest = found.manifest
    told = manifest.id if isinstance(manifest, RunManifest) else str(manifest.version)
    if (manifest.name, told) != (name, own):
        raise CorruptStoreError(
            f"{found.folder / MANIFEST} describes {manifest.kind} {told} of model {manifest.name!r}, but "
            f"stands in the folder of {own} of {name!r}. Move it back, or export again under that name."
        )
    return found


class Store:
    """A model store on disk.

    Args:
        root: its folder; made when something is published.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Models that have at least one run or version."""
        if not self.root.is_dir():
            return []
        folders = (path for path in self.root.iterdir() if path.is_dir())
        return sorted(f.name for f in folders if self.runs(f.name) or self.versions(f.name))

    def runs(self, name: str) -> list[str]:
        """Ids of the runs of a model, oldest first."""
        folder = self.root / name / "runs"
        if not folder.is_dir():
            return []
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def versions(self, name: str) -> list[int]:
        """Numbers of the versions of a model, ascending."""
        folder = self.root / name
        if not folder.is_dir():
            return []
        return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and _NUMBER.fullmatch(p.name))

    def run(self, name: str, run_id: str | None = None) -> Stored[RunManifest]:
        """Open a run (the newest by default) and verify it.

        Raises:
            NotInStoreError: if there is none; the message says what there is.
            CorruptStoreError: if a file was altered.
        """
        found = self.runs(name)
        if not found or (run_id is not None and run_id not in found):
            self._refuse(name, "run", run_id, found, "dropserve train")
        own = run_id or found[-1]
        return _require_place(open_folder(self.root / name / "runs" / own, RunManifest), name, own)

    def version(self, name: str, number: int | None = None) -> Stored[VersionManifest]:
        """Open a version (the newest by default) and verify it.

        Raises:
            NotInStoreError: if there is none; the message says what there is.
            CorruptStoreError: if a file was altered.
        """
        found = self.versions(name)
        if not found or (number is not None and number not in found):
            self._refuse(name, "version", number, found, "dropserve export")
        own = str(number or found[-1])
        return _require_place(open_folder(self.root / name / own, VersionManifest), name, own)

    def _refuse(
        self, name: str, what: str, wanted: object, found: list[str] | list[int], command: str
    ) -> None:
        if found:
            listed = ", ".join(map(str, found))
            raise NotInStoreError(f"model {name!r} has no {what} {wanted}; it has {listed}")
        names = ", ".join(self.names()) or "nothing yet"
        raise NotInStoreError(
            f"model {name!r} has no {what} in {self.root} (there: {names}). Make one with: {command}"
        )

    @contextmanager
    def staging(self, name: str, kind: type[M]) -> Generator[Staging]:
        """A folder to fill and publish; it is removed if it was not published.

        Two at once get different numbers. What a killed process left behind is cleared away first.

        Raises:
            PublishError: on any failure of the file system, such as a full disk; nothing is published.
        """
        check_name(name)
        parent = self.root / name / ("runs" if kind is RunManifest else "")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.root / name / _LOCK):
                _clear_abandoned(parent)
                staging = self._reserve(parent, name, kind)
                lock = (staging.folder / _LOCK).open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)
            with lock:
                try:
                    yield staging
                finally:
                    shutil.rmtree(staging.folder, ignore_errors=True)
        except OSError as error:
            raise PublishError(
                f"nothing was published for {name!r}: {error.strerror or error} "
                f"({error.filename or parent}). The store is as it was; mend this and try again."
            ) from error

    def _reserve(self, parent: Path, name: str, kind: type[M]) -> Staging:
        if kind is RunManifest:
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
            run_id, number = f"{stamp}-{secrets.token_hex(2)}", 0
        else:
            waiting = [p.name.removeprefix(_STAGING) for p in parent.glob(f"{_STAGING}*")]
            taken = [*self.versions(name), *(int(n) for n in waiting if _NUMBER.fullmatch(n))]
            number = max(taken, default=0) + 1
            run_id = str(number)
        folder = parent / f"{_STAGING}{run_id}"
        folder.mkdir()
        return Staging(folder, name, run_id, number)

    def publish(self, staging: Staging, manifest: M) -> Stored[M]:
        """Hash what is in the staging folder, write the manifest, and rename the folder into place.

        Args:
            staging: what :meth:`staging` gave.
            manifest: its ``files`` are filled in here.

        Raises:
            OSError: turned into :class:`PublishError` by the surrounding :meth:`staging`.
        """
        folder, target = staging.folder, staging.folder.parent / staging.id
        manifest = manifest.model_copy(update={"files": hash_folder(folder)})
        write_manifest(folder, manifest)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
                _sync(path)
        with _locked(self.root / staging.name / _LOCK):  # else a folder without its lock looks abandoned
            (folder / _LOCK).unlink()
            folder.rename(target)
        _sync(target.parent)
        return Stored(target, manifest)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear_abandoned(parent: Path) -> None:
    """Remove staging folders whose owner no longer holds their lock."""
    for folder in parent.glob(f"{_STAGING}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except FileNotFoundError:
            pass  # killed between making the folder and its lock, or just before the rename
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
