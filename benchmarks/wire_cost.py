"""Reading a batch of requests in a worker of TorchServe: by its own code, and in pieces (serving/wire.py).

A batch of 12 requests of the serving benchmarks comes over a pair of sockets, again and again, and is read by
the two in turn. Prints microseconds for a request and the ratio.

    python benchmarks/wire_cost.py [--json PATH]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from dropserve.serving import wire

REQUESTS, REPEATS = 12, 2000
HEADERS = {
    "host": "127.0.0.1:8080",
    "content-type": "application/json",
    "content-length": "560",
    "accept": "*/*",
    "user-agent": "benchmark",
}
END = struct.pack("!i", -1)


def field(content: bytes) -> bytes:
    """A length and so many bytes."""
    return struct.pack("!i", len(content)) + content


def batch() -> bytes:
    """What the frontend sends behind the command byte."""
    rows = np.random.default_rng(0).normal(size=(REQUESTS, 64)).round(4).tolist()
    message = b""
    for number, row in enumerate(rows):
        message += field(f"8f14e45f-ceea-467f-a0e6-{number:012d}".encode())
        message += b"".join(field(part.encode()) for pair in HEADERS.items() for part in pair) + END
        body = json.dumps({"instances": [row]}).encode()
        message += field(b"body") + field(b"application/json") + field(body) + END
    return message + END


def main() -> None:
    """Take turns, compare what was read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["TS_DECODE_INPUT_REQUEST"] = "false"  # as our servers configure it
    spec = importlib.util.find_spec(wire.MODULE)
    if spec is None or spec.loader is None:
        raise SystemExit("torchserve is not installed; install it with: make setup")
    torchserve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torchserve)
    readers: dict[str, Callable[[socket.socket], object]] = {
        "torchserve": getattr(torchserve, wire.FUNCTION),
        "pieces": wire.read_batch,
    }
    near, far = socket.socketpair()
    message, seconds, found = batch(), {name: [] for name in readers}, {}
    for _ in range(REPEATS):
        for name, read in readers.items():
            far.sendall(message)
            start = time.perf_counter()
            found[name] = read(near)
            seconds[name].append(time.perf_counter() - start)
    if found["torchserve"] != found["pieces"]:
        raise SystemExit("the two read different requests")
    figures = {f"{name}_us": 1e6 * median(times) / REQUESTS for name, times in seconds.items()}
    ratios = [own / ours for own, ours in zip(seconds["torchserve"], seconds["pieces"], strict=True)]
    figures["over_torchserve"] = median(ratios)
    print(
        f"{figures['torchserve_us']:.1f} us a request by TorchServe's code, {figures['pieces_us']:.1f} in "
        f"pieces: {figures['over_torchserve']:.1f} times as fast"
    )
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
