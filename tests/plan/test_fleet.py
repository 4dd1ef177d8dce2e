"""Hardware in the words people use."""

import pytest

from vitscale.errors import ClusterError
from vitscale.plan import DEVICES, Fleet, find_fleet
from vitscale.plan.hardware import HOSTS


@pytest.mark.parametrize(("words", "fleet"), [
    ("4x8xH200", Fleet(4, 8, "H200")), ("8xh100", Fleet(1, 8, "H100")), ("L40S", Fleet(1, 1, "L40S")),
    (" 2 x 4 x A100 40GB ", Fleet(2, 4, "A100 40GB")), ("2x8xa100-40gb", Fleet(2, 8, "A100 40GB")), ("16×8×B200", Fleet(16, 8, "B200")),
    ("cpu", Fleet(1, 1, "cpu")), ("8xMI300X", Fleet(1, 8, "MI300X")),
])
def test_words(words, fleet):
    assert find_fleet(words) == fleet
    assert find_fleet(str(fleet)) == fleet


@pytest.mark.parametrize(("words", "says"), [
    ("4x8xH201", r"'H201' is not in the hardware table; it knows A100, .*MI300X, cpu \(did you mean H2?1?00\?\)"),
    ("xyz", "it knows A100"), ("0x8xH200", "at least one node"), ("4x0xH200", "at least one node"), ("", "wants NODES x GPUS x GPU"),
    ("4x8", "is not in the hardware table"), ("-1x8xH200", "is not in the hardware table"),
])
def test_mistakes(words, says):
    with pytest.raises(ClusterError, match=says):
        find_fleet(words)


def test_every_device_has_a_host_and_every_number_a_source():
    for name, device in DEVICES.items():
        assert device.host in HOSTS, name
        assert 1e11 < device.memory_bandwidth < 2e13, name
        assert 1e10 < device.link_bandwidth < 2e12, name
        assert device.fp32_flops < device.bf16_flops, name
    for host in HOSTS.values():
        assert host.source
        assert host.watts > 500 * host.devices


def test_a_part_of_a_node_has_its_part_of_cores_and_network():
    whole, half = find_fleet("8xH100"), find_fleet("4xH100")
    assert (whole.cores, half.cores) == (112, 56)
    assert whole.network_bandwidth == 2 * half.network_bandwidth == 400e9
