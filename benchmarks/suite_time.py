"""How long the two tiers of tests take on this machine, and whether they pass.

python benchmarks/suite_time.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def timed(target: str) -> tuple[float, str]:
    """Run a make target; return its seconds and its closing line. A failing suite has no time to state."""
    start = time.perf_counter()
    done = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    closing = (done.stdout.strip().splitlines() or ["nothing"])[-1].strip("= ")
    print(f"make {target}: {seconds:.0f} s, {closing}", flush=True)
    if done.returncode:
        raise SystemExit(f"make {target} failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return seconds, closing


def main() -> None:
    """Time both tiers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    for target, key in (("test", "test"), ("test-all", "test_all")):
        seconds, closing = timed(target)
        figures |= {f"{key}_seconds": seconds, f"{key}_closing": closing}
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
