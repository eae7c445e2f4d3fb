"""The same load on our hosts, on stock TorchServe, and on what a user might take instead, in one run.

One network (64-256-256-10), one row of 64 floats a request, as JSON, on loopback, load generator and server
on the same cores. Stock TorchServe is what its examples lead to: a handler on BaseHandler, an eager model,
default configuration (a worker for each core) and once more with one worker, as ours has; for Monte Carlo, a
loop of 50 passes in the handler. TorchServe's limit is our configuration around a handler that does nothing,
and uvicorn's an application that does nothing.
The peers (peers/catalogue.py) serve the ``model.onnx`` that we exported, each in an environment of its own;
those that are not installed are named and left out. Every answer is compared with a direct computation in
float64. How turns are taken: rounds.py.

    python benchmarks/serving_load.py [--json PATH] [--page docs/benchmarks.md] [--seconds 2] [--rounds 5]
                                      [--connections 1 8 32] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import bench_page
from contestants import Contestant, Field, Wanted, everyone
from load import Figures, apply
from peers.catalogue import PEERS, Peer
from rich.console import Console
from rounds import Record, compete
from served import Subject, prepare

OURS = ("plain", "asgi", "ray")  # each is set against every deterministic server of others
OTHERS = ("stock", "stock one", "limit", "uvicorn limit", *(peer.name for peer in PEERS))
BESIDE = ("nothing", "plain", "mc")  # what goes on beside the plain requests whose latency is taken
console = Console(width=140)


@dataclass(frozen=True)
class Options:
    """How much is measured, and what is written."""

    seconds: float
    rounds: int
    connections: tuple[int, ...]
    only: tuple[str, ...] = ()
    json: Path | None = None
    page: Path | None = None


def beside(contestants: Sequence[Contestant], options: Options, record: Record) -> dict[str, list[Figures]]:
    """Plain requests on one connection, while the most connections ask for something beside them."""
    found = {contestant.name: contestant for contestant in contestants}
    if not {"plain", "mc"} <= set(found):
        return {}
    probes: dict[str, list[Figures]] = {load: [] for load in BESIDE}
    for _ in range(options.rounds):
        for load in BESIDE:
            groups = [found["plain"].group(1, "probe")]
            if load != "nothing":
                groups.append(found[load].group(max(options.connections)))
            probe = apply(groups, options.seconds)["probe"]
            record.file(found["plain"], probe)
            probes[load].append(probe)
    return probes


def figures_of(
    record: Record, probes: dict[str, list[Figures]], field: Field, options: Options
) -> dict[str, Any]:
    """What is written as JSON; ``not_run`` gives the reason for each ratio that nobody could take."""
    keys: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "errors": sum(record.errors.values()),
        "errors_by_kind": json.dumps(record.errors),
        "answers_checked": record.checked,
        "answers_wrong": len(record.wrong),
        "cores_taken_by_other_work": record.others,
        "left_out": list(field.left_out.values()),
    }
    not_run: dict[str, str] = {}

    def set_against(key: str, names: tuple[str, str], figure: Callable[[], float]) -> None:
        if record.has(*names):
            keys[key] = figure()
        else:
            absent = [name for name in names if not record.has(name)]
            not_run[key] = "; ".join(field.left_out.get(name, f"{name} did not take part") for name in absent)

    for c in options.connections:
        for contestant in field.contestants:
            own, name = contestant.key, contestant.name
            keys[f"{own}_rate_{c}"] = record.rate(name, c)
            keys[f"{own}_cpu_us_{c}"] = record.cost(name, c)
            keys |= {f"{own}_{at}_ms_{c}": record.latency(name, c, at) for at in ("p50", "p90", "p99")}
        pairs = [(ours, theirs) for ours in OURS for theirs in OTHERS]
        pairs += [("mc", "plain"), ("asgi mc", "asgi")]
        pairs += [(ours, theirs) for ours in ("mc", "asgi mc") for theirs in ("stock mc", "stock one mc")]
        for ours, theirs in pairs:
            own = (
                f"{ours}_over_{theirs}_{c}".replace(" ", "_")
                .replace("stock_mc", "stock")
                .replace("stock_one_mc", "stock_one")
            )
            set_against(own, (ours, theirs), lambda o=ours, t=theirs, c=c: record.ratio(o, t, c).median)
            own = own.replace("_over_", "_cpu_saved_over_")
            set_against(own, (ours, theirs), lambda o=ours, t=theirs, c=c: record.saving(o, t, c).median)
    for theirs in ("stock mc", "stock one mc"):
        set_against(
            f"mc_over_{theirs.removesuffix(' mc').replace(' ', '_')}_least",
            ("mc", theirs),
            lambda t=theirs: min(record.ratio("mc", t, c).median for c in options.connections),
        )
    keys |= {
        f"plain_latency_{'alone' if load == 'nothing' else f'beside_{load}'}_ms": median(
            probe.latency["p50"] for probe in found
        )
        for load, found in probes.items()
    }
    return {**keys, "not_run": not_run}


def run(options: Options, folder: Path, subject: Subject, peers: Sequence[Peer] = PEERS) -> int:
    """Start everyone, measure, print, write.

    Returns:
        1 if an answer was wrong, or a contestant refused so much that its rate means nothing; else 0.
    """
    with everyone(folder, subject, peers, Wanted(options.only)) as field:
        for reason in field.left_out.values():
            console.print(f"[yellow]left out:[/] {reason}", highlight=False)
        if not field.contestants:
            raise SystemExit(
                "nobody to measure; there are plain, mc, asgi, asgi mc, stock mc, stock one mc, "
                + ", ".join(OTHERS)
            )
        names = ", ".join(contestant.label for contestant in field.contestants)
        console.print(f"taking turns: {names}", highlight=False)
        record = compete(
            field.contestants, options.connections, options.rounds, options.seconds, console.print
        )
        probes = beside(field.contestants, options, record)
    page = bench_page.Page(record, probes, field, options, peers)
    for table in page.tables():
        console.print(table)
    console.print(page.verdict(), highlight=False)
    for line in [*record.refusing[:5], *record.wrong[:5]]:
        console.print(f"[red]WRONG[/] {line}", highlight=False)
    if options.json:
        content = {"figures": figures_of(record, probes, field, options)}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if options.page and not (record.wrong or record.refusing):
        page.write(options.page)
    return 1 if record.wrong or record.refusing else 0


def main() -> None:
    """Read the command line, make the network, run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="a page in Markdown, and its picture beside it as SVG")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="who shall take part")
    given = parser.parse_args()
    options = Options(
        given.seconds, given.rounds, tuple(given.connections), tuple(given.only), given.json, given.page
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended
    with tempfile.TemporaryDirectory(prefix="dropserve-bench-") as name:
        folder = Path(name)
        raise SystemExit(run(options, folder, prepare(folder)))


if __name__ == "__main__":
    main()
