"""Clients that nobody here wrote, against our server: tritonclient, KServe's InferenceRESTClient, curl.

Makes an environment of its own for them (they pin packages that we do not want), serves a network through
dropserve's own TorchServe host, and has each client ask in each way that TorchServe's routes allow. Every
number that comes back is compared with eager PyTorch in float64.

    python benchmarks/real_clients.py [--json PATH] [--clients VENV]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from served import NAME, SAMPLES, Subject, prepare, serving

CLIENTS = Path(__file__).parent / "peers" / "clients"
SCRIPT = CLIENTS / "ask.py"
INSTALLED = Path(__file__).parents[1] / ".venv-peers" / "clients"  # by make peers
_CLOSE = 1e-5  # float32 on our side, float64 in the oracle
console = Console(width=120)


def environment(folder: Path) -> Path:
    """A Python that has the clients, and nothing of ours."""
    python = folder / "bin" / "python"
    if not python.is_file():
        console.print("installing tritonclient and kserve into an environment of their own")
        venv.create(folder, with_pip=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "-r", str(CLIENTS / "requirements.txt")], check=True
        )
    return python


def _default(folder: Path) -> Path:
    return INSTALLED if INSTALLED.is_dir() else folder / "clients"


def ask(python: Path, url: str, subject: Subject, folder: Path) -> list[dict[str, object]]:
    """Have every client ask, and judge what it got."""
    rows = folder / "rows.npy"
    np.save(rows, subject.rows[:5].astype(np.float32))
    done = subprocess.run(
        [str(python), str(SCRIPT), url, NAME, str(rows)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{SCRIPT.name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    plain, doubt = subject.probabilities()[:5], subject.samples()[:, :5].mean(axis=0)
    found: list[dict[str, object]] = []
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            continue
        exchange = json.loads(line)
        oracle = doubt if exchange["doubt"] else plain
        if exchange["probabilities"] is None:
            exchange["sound"] = bool(exchange["sound"])
        else:
            got = np.array(exchange.pop("probabilities"), np.float64).reshape(oracle.shape)
            exchange["error"] = float(np.abs(got - oracle).max())
            exchange["sound"] = exchange["sound"] and exchange["error"] < _CLOSE
        found.append(exchange)
    return found


def curl(url: str, subject: Subject) -> dict[str, object]:
    """The command that `dropserve serve` prints."""
    body = json.dumps({"instances": subject.rows[:5].tolist(), "parameters": {"mc_samples": SAMPLES}})
    command = ["curl", "-s", f"{url}/predictions/{NAME}-mc", "-H", "content-type: application/json"]
    done = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True)
    got = [list(row["probabilities"].values()) for row in json.loads(done.stdout)["predictions"]]
    error = float(np.abs(np.array(got) - subject.samples()[:, :5].mean(axis=0)).max())
    return {"client": "curl", "how": "V1, Monte Carlo", "error": error, "sound": error < _CLOSE}


def main() -> None:
    """Serve, ask, print, and write the figures if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clients", type=Path, help="an environment that has the clients, or shall get them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dropserve-clients-") as name:
        folder = Path(name)
        python = environment((options.clients or _default(folder)).absolute())
        subject = prepare(folder)
        with serving(folder, subject.version) as deployment:
            exchanges = [*ask(python, deployment.url, subject, folder), curl(deployment.url, subject)]
    table = Table("client", "how", "difference from eager float64", "")
    for exchange in exchanges:
        error = exchange.get("error")
        difference = "" if error is None else f"{error:.1e}"
        verdict = "sound" if exchange["sound"] else "[red]WRONG[/]"
        table.add_row(str(exchange["client"]), str(exchange["how"]), difference, verdict)
    console.print(table)
    wrong = sum(not exchange["sound"] for exchange in exchanges)
    clients = sorted({str(exchange["client"]) for exchange in exchanges})
    console.print(f"{len(exchanges)} exchanges with {', '.join(clients)}, {wrong} wrong")
    if options.json:
        figures = {"exchanges": len(exchanges), "wrong": wrong, "clients": ", ".join(clients)}
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
