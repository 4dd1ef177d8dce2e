"""A profile's page from traces whose numbers are known beforehand."""

from typing import Any

import pytest

from vitscale.observe.trace import Kernel, covered, glance, page, sparkline


def event(name: str, start: float, length: float, kind: str = "cpu_op", thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": length, "cat": kind, "pid": 9, "tid": thread}


def memory(at: float, total: int, device: int = 0) -> dict[str, Any]:
    return {"ph": "i", "name": "[memory]", "ts": at, "args": {"Total Allocated": total, "Device Type": device}}


STEPS = [event("vitscale step 20", 1000, 500, "user_annotation"), event("vitscale step 21", 1500, 500, "user_annotation")]
ON_CPU = [
    *STEPS, event("outer", 1100, 200), event("inner", 1120, 40), event("inner", 1180, 40), event("elsewhere", 1150, 250, thread=2),
    event("gloo:all_reduce", 1600, 100, "user_annotation"), event("before the first step", 100, 800),
    memory(1100, 10), memory(1300, 80), memory(1900, 20), memory(5000, 999), memory(1400, 7, device=1),
]
ON_GPU = [
    *STEPS, event("aten::mm", 1000, 900), event("gemm_kernel", 1200, 300, "kernel", 7),
    event("ncclKernel_AllReduce", 1400, 200, "kernel", 8), event("Memcpy HtoD", 1050, 50, "gpu_memcpy", 7),
    event("gemm_kernel", 1700, 100, "kernel", 7), memory(1100, 5, device=1),
]


def test_on_a_cpu() -> None:
    found = glance({"traceEvents": ON_CPU})
    assert (found.steps, found.seconds, found.on_gpu) == (2, pytest.approx(1e-3), False)
    assert found.idle == pytest.approx(1 - (300 + 100) / 1000)         # operators from 1100 to 1400, the exchange from 1600 to 1700
    assert found.exchange == pytest.approx(0.1)
    own = {kernel.name: (kernel.calls, kernel.seconds) for kernel in found.kernels}
    assert own == {"elsewhere": (1, pytest.approx(250e-6)), "outer": (1, pytest.approx(120e-6)), "inner": (2, pytest.approx(80e-6))}
    assert list(own) == ["elsewhere", "outer", "inner"]
    assert found.memory == ((pytest.approx(100e-6), 10), (pytest.approx(300e-6), 80), (pytest.approx(900e-6), 20))
    assert found.peak_bytes == 80


def test_on_a_gpu_its_kernels_count_and_not_the_hosts_operators() -> None:
    found = glance({"traceEvents": ON_GPU})
    assert found.on_gpu
    assert found.idle == pytest.approx(1 - (50 + 400 + 100) / 1000)
    assert found.exchange == pytest.approx(0.2)
    assert found.kernels == (Kernel("gemm_kernel", 2, pytest.approx(400e-6)), Kernel("ncclKernel_AllReduce", 1, pytest.approx(200e-6)))
    assert found.memory == ((pytest.approx(100e-6), 5),)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no step"):
        glance({"traceEvents": ON_CPU[2:]})


def test_the_page_has_every_rank_and_no_name_breaks_its_tables() -> None:
    hostile = glance({"traceEvents": [*ON_CPU, event("<script>|`x`\nend", 1500, 90)]})
    text = page([hostile, None], ["n1", "n|2"], "steps:20-21")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == "| 0 | n1 | 0.0005 | 51.0% | 10.0% | 80 B |"
    assert rows[3] == "| 1 | n 2 | no whole step | | | |"
    assert "<script>" not in text
    assert {row.count("|") for row in rows[4:]} == {5}
    assert "from 10 B to 80 B" in text
    assert page([None], ["n1"], "steps:1-2").startswith("# Profile of steps:1-2\n\nNo rank")


def test_a_long_curve_is_thinned_and_keeps_its_peak() -> None:
    curve = [memory(1000 + number / 10, 10_000 if number == 4321 else number % 7) for number in range(9000)]
    found = glance({"traceEvents": [*STEPS, *curve]})
    assert len(found.memory) <= 201
    assert found.peak_bytes == 10_000


def test_sparkline() -> None:
    assert sparkline([(0.0, 0.0), (0.55, 7.0), (0.9, 3.5)], 1.0, width=10) == "▁▁▁▁▁████▅"
    assert sparkline([(0.0, 5.0)], 1.0, width=3) == "▁▁▁"


def test_covered_is_the_union() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (9, 20)], 1, 10) == 2 + 1 + 1
    assert covered([], 0, 1) == 0
