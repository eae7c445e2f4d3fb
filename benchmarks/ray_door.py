"""What our door before Ray Serve's HTTP proxy is worth: the same cluster, the same load, with it and without.

Two Ray clusters of two nodes with a replica each, deployed by `serve deploy` from the shipped file. In one,
the environment of its nodes is what that file advises; in the other, Ray's own. They take turns under load;
each is stopped (SIGSTOP) while the other is asked. Every answer is compared with a direct computation.

    python benchmarks/ray_door.py [--json PATH] [--seconds 2] [--rounds 5] [--connections 1 8 32]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import answers
import psutil
from contestants import Contestant
from rich.console import Console
from rich.table import Table
from rounds import compete
from served import NAME, ROOT, Subject, prepare
from started import Family, processor_seconds

sys.path.insert(0, str(ROOT / "tests" / "hosts"))

from cluster import Cluster  # beside the tests

LABELS = {"door": "our door", "ray": "Ray's own proxy"}
console = Console(width=120)


@dataclass(frozen=True)
class Nodes(Family):
    """The processes of a cluster."""

    cluster: Cluster

    def members(self) -> list[psutil.Process]:
        """On both nodes."""
        return self.cluster.everything()


def contestant(cluster: Cluster, name: str, label: str, subject: Subject) -> Contestant:
    """The door of the head, asked for plain answers."""
    oracle = answers.Oracle(subject.probabilities(), subject.samples())
    return Contestant(
        name,
        label,
        "two nodes, one replica each",
        f"{cluster.url(0)}/predictions/{NAME}",
        subject.bodies,
        answers.plain(oracle),
        lambda: {"server": processor_seconds(cluster.everything())},
        steady=True,
        family=Nodes(cluster.leader, cluster),
    )


def run(folder: Path, seconds: float, rounds: int, connections: tuple[int, ...]) -> dict[str, float | int]:
    """Start both, let them take turns, print; the figures."""
    subject = prepare(folder)
    with ExitStack() as stack:
        entered: list[Contestant] = []
        for name, label in LABELS.items():
            home = folder / name
            shutil.copytree(subject.version.folder, home / "model_store" / NAME / "1")
            cluster = stack.enter_context(Cluster(home, doors=name == "door"))
            cluster.deploy(models=[NAME], replicas=2)
            entered.append(contestant(cluster, name, label, subject))
        try:
            record = compete(entered, connections, rounds, seconds, console.print)
        finally:
            for one in entered:
                if one.family:
                    one.family.thaw()
    table = Table("connections", *(f"{label}: answers/s" for label in LABELS.values()), "ratio", "p50 ms")
    figures: dict[str, float | int] = {"answers": record.checked, "wrong": len(record.wrong)}
    figures["errors"] = sum(record.errors.values())
    for c in connections:
        ratio = record.ratio("door", "ray", c)
        spread = f"{ratio.median:.1f} ({ratio.least:.1f} to {ratio.greatest:.1f})"
        latency = " / ".join(f"{record.latency(name, c, 'p50'):.1f}" for name in LABELS)
        table.add_row(str(c), *(f"{record.rate(name, c):.0f}" for name in LABELS), spread, latency)
        figures |= {f"{name}_rate_{c}": record.rate(name, c) for name in LABELS}
        figures[f"door_over_ray_{c}"] = ratio.median
    console.print(table)
    console.print(f"{record.checked} answers compared, wrong: {len(record.wrong)}; errors: {record.errors}")
    return figures


def main() -> None:
    """Read the command line, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dropserve-door-") as name:
        figures = run(Path(name), given.seconds, given.rounds, tuple(given.connections))
    if given.json:
        given.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")
    raise SystemExit(1 if figures["wrong"] else 0)


if __name__ == "__main__":
    main()
