"""Processes that are surely ours: their identity, and the lock file that a running server holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.05
_TICKS = 19  # field 22 of /proc/PID/stat, counted behind the name, which may hold blanks


@dataclass(frozen=True)
class ProcessId:
    """A process for good: its number may be given to a stranger later, its start may not.

    Attributes:
        pid: its number.
        started: when it started: on Linux in clock ticks since the machine booted, which no change of the
            wall clock moves; elsewhere in seconds since the epoch, as the system recorded them.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The identity of a process that runs now.

        Raises:
            psutil.NoSuchProcess: if there is none of that number.
        """
        return cls(pid, _start_of(pid))

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        import psutil  # noqa: PLC0415  # hosts only

        with contextlib.suppress(psutil.NoSuchProcess):
            same = _start_of(self.pid) == self.started
            return same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        return False

    def end(self, grace: float) -> None:
        """Ask it to end, wait, then kill it and all that it started; a stranger is left alone.

        Args:
            grace: seconds to wait before killing.
        """
        import psutil  # noqa: PLC0415  # hosts only

        if not self.alive:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            process.terminate()
            _, left = psutil.wait_procs([process], timeout=grace)
            for relative in [*left, *family]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    relative.kill()  # psutil compares start times: never a stranger
            psutil.wait_procs(family, timeout=grace)


def _start_of(pid: int) -> float:
    import psutil  # noqa: PLC0415  # hosts only

    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return float(text.rpartition(")")[2].split()[_TICKS])


class LockFile:
    """A file that one process locks; those that inherit it hold the lock too.

    The system releases the lock when the last of them has ended, however it ended: whether a server of a
    folder runs depends on no process number, no clock and no file that may be half written.

    Args:
        path: the file; it is made where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """To be inherited by a child process.

        Raises:
            RuntimeError: if the lock is not held.
        """
        if self._descriptor is None:
            raise RuntimeError(f"{self.path} is not locked")
        return self._descriptor

    def acquire(self, seconds: float = 0.0) -> bool:
        """Lock the file.

        Args:
            seconds: how long to try.

        Returns:
            Whether it is held now.

        Raises:
            OSError: if the file cannot be made, on a full disk say.
        """
        deadline = time.monotonic() + seconds
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, self.path):  # it may have been removed between the two calls
                    self._descriptor = descriptor
                    return True
            except BlockingIOError:
                pass
            os.close(descriptor)
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)

    def release(self) -> None:
        """Remove the file and unlock it; nothing happens where it is not held."""
        if self._descriptor is not None:
            if _is_at(self._descriptor, self.path):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def is_held(self) -> bool:
        """Whether some process holds it now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holders(self) -> list[ProcessId]:
        """The other processes that have it open, as far as the system lets us look."""
        import psutil  # noqa: PLC0415  # hosts only

        path, found = str(self.path.resolve()), list[ProcessId]()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(file.path == path for file in process.open_files()):
                    found.append(ProcessId.of(process.pid))
        return found


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at this path."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)
