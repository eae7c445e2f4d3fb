"""Keep third-party chatter off the terminal: exporters print, log and warn about themselves."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Generator

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')

NOT_OWN = re.compile(r"site-packages|/lib/python|/dropserve/(export|dropout)/|<")


@contextlib.contextmanager
def quiet() -> Generator[list[warnings.WarningMessage]]:
    """Hold back prints, log records and warnings; the warnings are given to the caller."""
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("always")
        logging.disable(logging.CRITICAL)
        try:
            yield caught
        finally:
            logging.disable(before)


def cause(error: BaseException) -> str:
    """The first error of a chain in one line, with the user's own line where the text tells it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    own = [m for m in _FRAME.finditer(text) if not NOT_OWN.search(m["file"])]
    place = f" (at {own[-1]['file']}:{own[-1]['line']})" if own else ""
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}{place}"
