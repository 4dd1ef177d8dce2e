"""The hardware that a plan is for, from the words people use: `4x8xH200` is four nodes of eight H200."""

import difflib
import re
from dataclasses import dataclass

from vitscale.errors import ClusterError
from vitscale.plan.hardware import DEVICES, HOSTS, Device, Host

_WORDS = re.compile(r"^\s*(?:(\d{1,6})\s*[x×]\s*)?(?:(\d{1,6})\s*[x×]\s*)?(\S.*?)\s*$", re.IGNORECASE)
CPU = "cpu"


@dataclass(frozen=True)
class Fleet:
    """So many nodes of so many devices, one rank on each.  `name` is a key of DEVICES, or `cpu`."""

    nodes: int
    per_node: int
    name: str

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.per_node < 1:
            raise ClusterError(f"{self.nodes}x{self.per_node}x{self.name}: wants at least one node of one device")

    @property
    def size(self) -> int:
        """Ranks."""
        return self.nodes * self.per_node

    @property
    def device(self) -> Device | None:
        """None: a CPU, of which no table knows what it can do."""
        return DEVICES.get(self.name)

    @property
    def host(self) -> Host | None:
        return HOSTS[self.device.host] if self.device else None

    @property
    def cores(self) -> int | None:
        """Cores of a node that the ranks of the recipe may use: of a part of a node, its part."""
        return max(self.host.cores * min(self.per_node, self.host.devices) // self.host.devices, 1) if self.host else None

    @property
    def network_bandwidth(self) -> float:
        """Bytes/s of a node to the others, each way: of a part of a node, its part.  0 for a CPU."""
        return self.host.network_bandwidth * min(self.per_node, self.host.devices) / self.host.devices if self.host else 0.0

    def __str__(self) -> str:
        return f"{self.nodes}x{self.per_node}x{self.name}"


def find_fleet(words: str) -> Fleet:
    """`4x8xH200` -> Fleet(4, 8, "H200"); `8xH100` is one node, `L40S` one device, `cpu` one CPU.  Raises ClusterError."""
    match = _WORDS.match(words)
    if match is None:
        raise ClusterError(f"--on {words!r}: wants NODES x GPUS x GPU, such as 4x8xH200")
    first, second, name = match.groups()
    counts = [int(count) for count in (first, second) if count is not None]
    nodes, per_node = [1, 1, *counts][-2:]
    known = {key.lower(): key for key in (*DEVICES, CPU)}
    squeezed = re.sub(r"[\s_-]+", " ", name.lower())
    if squeezed not in known:
        close = difflib.get_close_matches(squeezed, known, n=1, cutoff=0.6)
        hint = f" (did you mean {known[close[0]]}?)" if close else ""
        raise ClusterError(f"--on {words}: {name!r} is not in the hardware table; it knows {', '.join(known.values())}{hint}")
    return Fleet(nodes, per_node, known[squeezed])
