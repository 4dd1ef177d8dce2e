"""Where an exporter listens: loopback on one node, the cluster's own address on several, never all addresses."""

import os
import socket
from pathlib import Path

import pytest

from vitscale.observe import address
from vitscale.observe.address import LOOPBACK, exporter_address


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """A program of that name, first on the path."""
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")


def test_one_node_keeps_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert exporter_address("n1", ["n1", "n1", "n1"]) == LOOPBACK


@pytest.mark.parametrize(("node_address", "expected"), [("10.1.2.3", "10.1.2.3"), ("127.0.0.2", "127.0.0.2"), ("fd00::5", "fd00::5")])
def test_a_node_of_slurm_has_its_nodeaddr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node_address: str, expected: str) -> None:
    scontrol(tmp_path, monkeypatch, f"NodeName=n2 Arch=x86_64 NodeAddr={node_address} NodeHostName=n2 Version=22.05")
    assert exporter_address("n2", ["n1", "n2"]) == expected


def test_never_all_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, monkeypatch, "NodeName=n2 NodeAddr=0.0.0.0 NodeHostName=n2")
    assert exporter_address("n2", ["no-such-name.invalid", "n2"]) is None


def test_a_name_that_stands_for_loopback_is_no_address_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian writes a machine's own name into /etc/hosts."""
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert exporter_address("here", ["here", "localhost"]) is None


def test_elsewhere_it_is_the_one_from_which_another_node_is_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)

    class Probe(socket.socket):
        def connect(self, target: object) -> None:
            assert target == ("10.0.0.7", 9)

        def getsockname(self) -> tuple[str, int]:
            return "10.0.0.3", 4711

    monkeypatch.setattr(address.socket, "socket", Probe)
    assert exporter_address("a", ["a", "10.0.0.7"]) == "10.0.0.3"
