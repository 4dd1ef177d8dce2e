"""A program: compiles every kernel for an NVIDIA H100 or H200 (sm_90), for which it needs none, and prints as JSON what each came to.

By itself, for a process compiles kernels or interprets them.  With `all`: for more widths.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vitscale.kernels import triton_gelu, triton_heads, triton_residual
from vitscale.kernels.tiles import Tiling, parts_of_rows, whole_rows

CUOBJDUMP = next(Path(triton.__file__).parent.rglob("cuobjdump"))
ROWS = 128 * 197
EXACT = ("MEAN", "RSTD", "SUMS", "SHARE", "SCALE", "WEIGHT", "BIAS")    # parameters are fp32 under autocast


def kernels(width: int, dtype: str) -> Iterator[tuple[str, Any, dict[str, Any], int]]:
    """(name, kernel, its constants, warps), as the launchers choose them."""
    def tiled(tiling: Tiling, **more: Any) -> tuple[dict[str, Any], int]:
        return {"WIDTH": width, "ROWS": tiling.rows, "COLS": tiling.cols, "STEPS": tiling.steps, "WIDE": tl.float32, **more}, tiling.warps

    poly = dtype == "bf16"
    yield "gelu", triton_gelu.forward, {"BLOCK": 4096, "POLY": poly, "WIDE": tl.float32}, 8
    yield ("gelu backward", triton_gelu.backward,
           *tiled(parts_of_rows(ROWS, 4 * width, 4096, 512, 16), WIDTH=4 * width, POLY=poly, SUM=True))
    yield ("pack", triton_heads.pack, *tiled(parts_of_rows(ROWS, width, 4096, 256, 16), HEAD=80 if width % 80 == 0 else 64, SUM=True))
    for scale in (False, True):
        words = " with scale and keep" if scale else ""
        forward = whole_rows(ROWS, width)
        yield (f"norm{words}", triton_residual.forward,
               *tiled(forward, EPS=1e-6, HAS_BRANCH=True, HAS_SCALE=scale, HAS_SHARE=scale, HAS_NORM=True))
        for norm in (False, True):
            yield (f"{'norm' if norm else 'sum'}{words} backward", triton_residual.backward, *tiled(
                whole_rows(ROWS, width, 64), HAS_NORM=norm, HAS_OUT=True, HAS_SCALE=scale, HAS_SHARE=scale, WRITES_BRANCH=scale,
                SUM_BRANCH=True))


def compiled(kernel: Any, constants: dict[str, Any], warps: int, dtype: str) -> dict[str, int]:
    """-> registers a thread, bytes of them spilled into memory, instructions, and bytes that one load moves at most."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else ("*fp32" if name in EXACT else f"*{dtype}") if name.isupper() else "i32"
                 for name in kernel.arg_names}
    aligned: Any = {(place,): [["tt.divisibility", 16]] for place, (name, kind) in enumerate(signature.items())
                    if kind.startswith("*") or name.startswith(("count", "q_", "k_", "v_"))}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told, code = (subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
                      for option in ("--dump-resource-usage", "--dump-sass"))
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told).groups()       # type: ignore[union-attr]
    steps = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", code)
    loads = [int(size) // 8 for size in re.findall(r"LDG\.E\S*?\.(64|128)\b", code)]
    return {"registers": int(registers), "stack": int(stack), "instructions": len(steps),
            "spills": sum(step.startswith(("LDL", "STL")) for step in steps), "load_bytes": max(loads, default=4)}


def main() -> None:
    found = {}
    for width in (96, 192, 384, 768, 1024, 1280, 4096) if "all" in sys.argv else (1024,):
        for dtype in ("bf16", "fp32") if "all" in sys.argv else ("bf16",):
            for name, kernel, constants, warps in kernels(width, dtype):
                found[f"{name}, {dtype} rows of {width}"] = compiled(kernel, constants, warps, dtype)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
