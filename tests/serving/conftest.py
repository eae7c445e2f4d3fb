"""Attacks and demands lie beside the tests, for every host to use."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in ("hostile", "hosts"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _folder))
