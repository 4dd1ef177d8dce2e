"""An NVML that answers from a recorded sample, for the real binding (nvidia-ml-py) to load: what is read of a GPU, without one.

    python tests/nvml.py RUNS      an exporter with those readings, announced in RUNS until its standard input ends
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
UUID = "GPU-2c5e6f0a-7b1d-4e8f-9a63-0d4c1b2e3f58"
# The fields and units of `nvidia-smi -q` for an 80 GB device at work.
SAMPLE = {"uuid": UUID, "memory_total": 85520809984, "memory_used": 61343793152, "utilization_percent": 97, "power_milliwatts": 634512,
          "temperature_celsius": 58}


def replayed(folder: Path, **changes: object) -> dict[str, str]:
    """The environment of a process that finds this NVML; it is compiled into `folder`."""
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(HERE / "observe" / "nvml_replay.c")], check=True, timeout=60)
    sample = folder / "sample.txt"
    sample.write_text("".join(f"{name} {value}\n" for name, value in (SAMPLE | changes).items()))
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "NVML_SAMPLE": str(sample), "PYTHONPATH": str(HERE.parent)}


def main(runs: Path) -> None:
    from vitscale.observe import readings
    from vitscale.observe.board import Board
    from vitscale.observe.exporter import Exporter
    from vitscale.observe.targets import target_file

    board = Board((0,))
    own = board.writer(0)
    read = readings.device(UUID)
    assert read is not None
    own.set("device_memory_allocated_bytes", 55e9)      # torch's own word, which there is no GPU to give
    with readings.Readings([read], lambda values: [own.set(*pair) for pair in values.items()], every_s=0.2):
        exporter = Exporter(board=board, discovery=target_file(runs / "replayed", "gpu"), labels={"run": "replayed", "node": "gpu"},
                            tells_run=False)
        try:
            print(exporter.address, flush=True)
            sys.stdin.read()
        finally:
            exporter.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
