"""Two nodes of a Ray cluster on this machine, until this process ends; its argument is JSON."""

from __future__ import annotations

import json
import signal
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Start them, say so, wait."""
    given = json.loads(sys.argv[1])
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "dashboard_agent_listen_port": 0}
    head = node | {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    head |= {"dashboard_port": given["dashboard"], "temp_dir": given["temp"], "env_vars": given["nodes"][0]}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node, env_vars=given["nodes"][1])
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
