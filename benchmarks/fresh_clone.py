"""From a fresh clone to an answering endpoint, as a newcomer would, with a clock on each part.

Clones the last commit into a temporary folder and runs the README's commands there, for the default recipe
and then for the tutorial and CNN recipes. The environment has an empty home and no Java on its PATH.

    python benchmarks/fresh_clone.py [--json PATH] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
RECIPES = {
    "digits": None,
    "tutorial": "training/recipes/tutorial.toml",
    "digits-cnn": "training/recipes/digits-cnn.toml",
}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def newcomer(home: Path, port: int) -> dict[str, str]:
    """The environment of somebody who has Python and make, and nothing of ours."""
    tools = home / "tools"
    tools.mkdir(parents=True)
    names = "sh bash env make git sed grep sort column cat cp mv rm mkdir touch uname dirname ls curl head tr"
    for name in names.split():
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    (tools / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    if shutil.which("java", path=str(tools)):
        raise SystemExit("java is on the newcomer's PATH; this would measure nothing")
    kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "LANG"))}
    return {
        **kept,
        "PATH": str(tools),
        "HOME": str(home),
        "DROPSERVE_PORT": str(port),
        "PIP_NO_CACHE_DIR": "1",
    }


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run one command, show what it prints, and return its seconds; stop at the first failure."""
    print(f"$ {' '.join(command)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return time.perf_counter() - start


def measure(folder: Path) -> dict[str, object]:
    """All parts, in order."""
    port = free_port()
    environment = newcomer(folder / "home", port)
    clone = folder / "dropserve"
    timed(["git", "clone", "--quiet", str(ROOT), str(clone)], folder, environment)
    seconds: dict[str, dict[str, float]] = {"digits": {"setup": timed(["make", "setup"], clone, environment)}}
    served = 0
    try:
        for name, recipe in RECIPES.items():
            extra = [f"RECIPE={recipe}"] if recipe else []
            parts = seconds.setdefault(name, {})
            for stage in ("train", "export", "serve"):
                parts[stage] = timed(["make", stage, *extra], clone, environment)
            example = json.loads((clone / "model_store" / name / "1" / "example.json").read_text("utf-8"))
            for endpoint in (name, f"{name}-mc"):
                answer = httpx.post(
                    f"http://127.0.0.1:{port}/predictions/{endpoint}", json=example, timeout=30
                )
                print(endpoint, answer.status_code, answer.text[:300])
                answer.raise_for_status()
            served += 1
    finally:
        timed(["make", "stop"], clone, environment)
    texts = {
        name: ", ".join(f"{part} {s:.0f} s" for part, s in parts.items()) for name, parts in seconds.items()
    }
    return {**texts, "recipes_served": served, "seconds": seconds}


def main() -> None:
    """Measure in a temporary folder, print, and write the figures if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the clone where it is")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dropserve-fresh-"))
    try:
        figures = measure(folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    for name in RECIPES:
        print(f"{name:12} {figures[name]}")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
