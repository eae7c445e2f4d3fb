"""Keeps a Ray that is on loopback there.

Each replica of Ray Serve opens a gRPC port for other replicas on all addresses of its machine, and no option
of Ray's changes that (seen in 2.60). Where Ray has its node on loopback, as ``dropserve serve`` starts it, a
replica's port goes there too. A test looks at every listener of every process.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dropserve.serving.runtime import LOOPBACK


def keep_inside() -> None:
    """Have this replica's own port where its node is; Ray opens it once the replica's constructor is done."""
    import ray  # noqa: PLC0415  # Ray's processes only

    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    replica: Any = import_module("ray.serve._private.replica")  # private: see above
    opened = replica.add_port_to_grpc_server

    def inside(server: Any, address: str) -> int:
        return opened(server, f"{LOOPBACK}:{address.rpartition(':')[2]}")

    replica.add_port_to_grpc_server = inside
