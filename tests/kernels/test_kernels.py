"""Kernels without a GPU: in Triton's interpreter against float64 and torch's operations, and as compiled for one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitscale.kernels.tiles import parts_of_rows, whole_rows

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: it is for Linux on x86-64")
BOTH_WAYS = {"residual forward", "residual backward"}
BY_BACKBONE = {"swin": BOTH_WAYS, "convnext": BOTH_WAYS, "vit": BOTH_WAYS | {"heads pack"}, "deit": BOTH_WAYS | {"heads pack"}}
OTHER_ACT = ("vit-modern", "vit-eva", "vit-clip", "swin-table", "convnext-grn")      # than GELU


def told(program: str, folder: Path, *words: str) -> dict[str, Any]:
    """What a program beside this file prints, whose kernels are compiled into the folder."""
    done = subprocess.run([sys.executable, HERE / program, *words], capture_output=True, text=True, timeout=3000,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.slow       # 35 s in Triton's interpreter
def test_kernels_compute_right_in_the_interpreter(tmp_path: Path) -> None:
    """One process for all of it.  New memory is filled with what is not a number, so that no result may be left unwritten."""
    check_interpreted(told("interpret_kernels.py", tmp_path))


@needs_triton
@pytest.mark.all
def test_kernels_compute_right_on_larger_grids(tmp_path: Path) -> None:
    check_interpreted(told("interpret_kernels.py", tmp_path, "all"))


def check_interpreted(found: dict[str, Any]) -> None:
    assert [words["failed"] for words in found.values() if "failed" in words] == []
    assert {name: share for name, share in found["errors"].items() if not share <= 1} == {}
    assert {name: right for name, right in (found["gradients"] | found["corners"]).items() if right is not True} == {}
    for name, (apart, ran) in found["models"].items():
        assert apart <= (2e-2 if "bf16" in name else 1e-5), (name, apart)
        family = name.partition(",")[0].partition("-")[0]
        wanted = BY_BACKBONE[family] | (set() if name.startswith(OTHER_ACT) else {"gelu forward", "gelu backward"})
        assert wanted <= set(ran), name
    assert len(found["models"]) >= 15
    whole = ["bias", "gelu", "norm", "pack"]
    wide = "rows of 9000 are left to torch: kernels take 8192 at most"
    choices = found["choices"]
    assert choices["auto"] == [whole, wide, False]
    assert choices["torch"] == [[], "parallel.kernels is torch", False]
    assert choices["stage 3"][0] == ["gelu", "pack"]
    assert "DeepSpeed's stage 3 gives each layer its parameters for its own forward pass alone" in choices["stage 3"][1]
    assert choices["cut"][0] == ["gelu", "norm", "pack"]
    left, why, failed = choices["broken"]
    assert failed
    assert left == ["bias", "norm"]
    assert "gelu is left to torch: its kernel is off by " in why
    assert "pack is left to torch: its kernel failed on rows of 24: " in why


@needs_triton
@pytest.mark.slow       # 5 s in Triton's compiler
def test_kernels_compile_for_a_card_that_is_not_here(tmp_path: Path) -> None:
    check_compiled(told("compile_kernels.py", tmp_path))


@needs_triton
@pytest.mark.all
def test_kernels_compile_for_all_widths(tmp_path: Path) -> None:
    check_compiled(told("compile_kernels.py", tmp_path, "all"))


def check_compiled(found: dict[str, dict[str, int]]) -> None:
    """No number goes to memory and back for want of registers, and memory is read 16 bytes at a time."""
    assert len(found) >= 9
    for name, of in found.items():
        assert (of["stack"], of["spills"]) == (0, 0), (name, of)
        assert of["load_bytes"] == 16, (name, of)
    # beyond about so many a number, instructions take longer than memory does; each thread has 16 numbers
    assert found["gelu, bf16 rows of 1024"]["instructions"] / 16 < 27
    assert found["gelu backward, bf16 rows of 1024"]["instructions"] / 16 < 40


@pytest.mark.parametrize("rows", [1, 2, 7, 197, 25216, 401408])
@pytest.mark.parametrize("width", [1, 24, 96, 197, 1024, 1280, 8192])
def test_tiles_cover_a_matrix_and_leave_work_for_all(rows: int, width: int) -> None:
    for tiling in (whole_rows(rows, width), whole_rows(rows, width, 64), parts_of_rows(rows, width, 4096, 512, 16)):
        step = tiling.rows * tiling.steps
        assert tiling.down * step >= rows > (tiling.down - 1) * step
        assert tiling.across * tiling.cols >= width > (tiling.across - 1) * tiling.cols
        assert tiling.cols & (tiling.cols - 1) == tiling.rows & (tiling.rows - 1) == 0      # Triton wants powers of two
        if tiling.steps > 1:
            assert tiling.down * tiling.across >= 396
