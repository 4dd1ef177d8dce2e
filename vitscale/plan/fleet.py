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
    """So many nodes of so many devices, one rank on each.

    `name` is a key of DEVICES, `cpu`, what a file describes (`given`), or a device that nothing here knows: of that and of a CPU the plan
    says what does not depend on it.
    """

    nodes: int
    per_node: int
    name: str
    given: Device | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.per_node < 1:
            raise ClusterError(f"{self.nodes}x{self.per_node}x{self.name}: wants at least one node of one device")

    @property
    def size(self) -> int:
        """Ranks."""
        return self.nodes * self.per_node

    @property
    def device(self) -> Device | None:
        """None: a CPU, of which no table knows what it can do, or a device that is not known."""
        return self.given or DEVICES.get(self.name)

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU and self.given is None

    @property
    def host(self) -> Host | None:
        host = self.device.host if self.device else None
        return HOSTS[host] if isinstance(host, str) else host

    def unknown(self, precision: str) -> tuple[str, ...]:
        """What of the device is not known and a plan in this precision, "bf16" or "fp32", wants: "memory"; the others for its speed."""
        device = self.device
        if device is None:
            return () if self.is_cpu else ("memory", "peak", "memory bandwidth", "link bandwidth")
        wanted = {"memory": device.memory_bytes, "peak": device.peak(precision), "memory bandwidth": device.memory_bandwidth,
                  "link bandwidth": device.link_bandwidth if self.per_node > 1 else 1.0}
        return tuple(name for name, value in wanted.items() if value is None)

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


def find_fleet(words: str, given: tuple[str, Device] | None = None) -> Fleet:
    """`4x8xH200` -> Fleet(4, 8, "H200"); `8xH100` is one node, `L40S` one device, `cpu` one CPU.

    `given`: a device that a file describes, and its name; `words` are then numbers alone (`4x8`), or end in that name.  A name that is
    not in the table gives a Fleet whose device is not known.  Raises ClusterError.
    """
    if given is not None:
        counts = re.fullmatch(r"\s*(?:(\d{1,6})\s*[x×]\s*)?(\d{1,6})\s*", words.removesuffix(given[0]).rstrip(" x×") or "1")
        if counts is None:
            raise ClusterError(f"--on {words!r}: with --gpu, wants NODESxGPUS, such as 4x8")
        return Fleet(int(counts[1] or 1), int(counts[2]), *given)
    match = _WORDS.match(words)
    if match is None or not re.search("[A-Za-z]", match[3]) or match[3].startswith("-"):
        raise ClusterError(f"--on {words!r}: wants NODES x GPUS x GPU, such as 4x8xH200; the table knows {', '.join((*DEVICES, CPU))}")
    first, second, name = match.groups()
    counts_of = [int(count) for count in (first, second) if count is not None]
    nodes, per_node = [1, 1, *counts_of][-2:]
    known = {key.lower(): key for key in (*DEVICES, CPU)}
    known |= {key.replace(" ", ""): name for key, name in known.items()}
    squeezed = re.sub(r"[\s_-]+", " ", name.lower())
    return Fleet(nodes, per_node, known.get(squeezed, name))


def close_to(name: str) -> str | None:
    """The name of the table that somebody may have meant."""
    known = {key.lower(): key for key in (*DEVICES, CPU)}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return known[close[0]] if close else None
