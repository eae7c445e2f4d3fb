"""Small JSON files that are written whole or not at all, and read back or reported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dropserve.errors import DataError


def write_whole(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the former file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> Any | None:
    """Read it back; None if it is not there.

    Raises:
        DataError: if it cannot be read; the message says to remove it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it to have it done again") from error
