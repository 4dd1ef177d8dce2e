"""Where a node's exporter listens, so that Prometheus can reach it and nobody else need: never on all addresses."""

import ipaddress
import os
import re
import socket
import subprocess
from collections.abc import Sequence

LOOPBACK = "127.0.0.1"


def exporter_address(node: str, nodes: Sequence[str]) -> str | None:
    """Loopback if the run's `nodes` are one.  Else the address of `node` on the cluster's own network: by SLURM's NodeAddr, or the one
    from which this machine would speak to another of the nodes (nothing is sent).  None where neither is known."""
    others = sorted(set(nodes) - {node})
    if not others:
        return LOOPBACK
    found = _by_slurm(node) if "SLURMD_NODENAME" in os.environ else None
    return found or next((address for other in others[:3] if (address := _towards(other))), None)


def _by_slurm(node: str) -> str | None:
    try:
        told = subprocess.run(["scontrol", "show", "node", node, "--oneliner"],
                              capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(?:^|\s)NodeAddr=(\S+)", told)
    return _usable(match[1], loopback=True) if match else None      # a NodeAddr of loopback is meant


def _towards(other: str) -> str | None:
    """A name of this machine's own may stand for loopback in its /etc/hosts; the way to another machine does not lie there."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return _usable(probe.getsockname()[0])
    except OSError:
        return None


def _usable(named: str, loopback: bool = False) -> str | None:
    try:
        address = ipaddress.ip_address(named.partition("%")[0])
    except ValueError:
        try:
            return _usable(str(socket.getaddrinfo(named, None, type=socket.SOCK_STREAM)[0][4][0]))
        except OSError:
            return None
    return None if address.is_unspecified or (address.is_loopback and not loopback) else str(address)
