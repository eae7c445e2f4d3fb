"""The zoo lies beside the tests, for benchmarks to use as well."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "zoo"))
