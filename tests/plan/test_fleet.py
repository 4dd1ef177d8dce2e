"""Hardware in the words people use."""

import pytest

from vitscale.errors import ClusterError
from vitscale.plan import DEVICES, Fleet, find_fleet
from vitscale.plan.hardware import HOSTS


@pytest.mark.parametrize(("words", "fleet"), [
    ("4x8xH200", Fleet(4, 8, "H200")), ("8xh100", Fleet(1, 8, "H100")), ("L40S", Fleet(1, 1, "L40S")),
    (" 2 x 4 x A100 40GB ", Fleet(2, 4, "A100 40GB")), ("2x8xa100-40gb", Fleet(2, 8, "A100 40GB")), ("16×8×B200", Fleet(16, 8, "B200")),
    ("cpu", Fleet(1, 1, "cpu")), ("8xMI300X", Fleet(1, 8, "MI300X")),
    ("4xRTX4090", Fleet(1, 4, "RTX 4090")), ("rtx 3090", Fleet(1, 1, "RTX 3090")),
])
def test_words(words, fleet):
    assert find_fleet(words) == fleet
    assert find_fleet(str(fleet)) == fleet


@pytest.mark.parametrize(("words", "says"), [
    ("0x8xH200", "at least one node"), ("4x0xH200", "at least one node"), ("", "wants NODES x GPUS x GPU"),
    ("4x8", "wants NODES x GPUS x GPU.*the table knows A100"), ("-1x8xH200", "wants NODES x GPUS x GPU"),
])
def test_mistakes(words, says):
    with pytest.raises(ClusterError, match=says):
        find_fleet(words)


@pytest.mark.parametrize("words", ["4x8xH201", "xyz", "8xRTX 9090 Ti", "2x4xGaudi3"])
def test_a_device_that_nobody_knows_is_a_fleet_with_nothing_known_of_it(words):
    fleet = find_fleet(words)
    assert (fleet.device, fleet.is_cpu, str(fleet).endswith(words.rpartition("x")[2])) == (None, False, True)
    assert set(fleet.unknown("bf16")) == {"memory", "peak", "memory bandwidth", "link bandwidth"}
    assert find_fleet(words.replace("8", "1", 1)).unknown("fp32")


def test_every_device_has_a_host_and_every_number_a_source():
    for name, device in DEVICES.items():
        assert device.host in HOSTS, name
        assert 1e11 < device.memory_bandwidth < 2e13, name
        assert 1e10 <= device.link_bandwidth < 2e12, name
        assert device.bf16_flops is None or device.fp32_flops < device.bf16_flops, name
    for host in HOSTS.values():
        assert host.source
        assert host.watts > 500 * host.devices


def test_a_part_of_a_node_has_its_part_of_cores_and_network():
    whole, half = find_fleet("8xH100"), find_fleet("4xH100")
    assert (whole.cores, half.cores) == (112, 56)
    assert whole.network_bandwidth == 2 * half.network_bandwidth == 400e9
