"""Measures the data plane against what people use today: crop-decode, index and read, end to end, cold resume.  Writes rows.

    python benchmarks/data.py --shards 'photos/shard-{000000..000003}.tar'      then      python benchmarks/report.py
"""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import HERE, Contender, figure, interleave, rates, ratios, write_row

from vitscale.data import SetIndex, ShardReader, native, open_index, uniforms
from vitscale.data.crop import DRAWS, RandomCrop
from vitscale.data.image import image_size
from vitscale.data.index import VERSION, image_member
from vitscale.data.shards import Homes

SIZE = 224
PARTS = ("crop", "read", "end", "views", "resume")
PEERS = ("pillow", "webdataset", "opencv-python-headless", "torch>=2.10,<2.14", "torchvision", "numpy")


@dataclass(frozen=True)
class Bench:
    """What a measurement is made with."""

    given: argparse.Namespace
    facts: dict[str, Any]       # of every row
    index: SetIndex
    ours: Contender
    peers: Contender
    folder: Path                # temporary

    @property
    def mine(self) -> dict[str, Any]:
        """What our contender needs to find the index that lies there already."""
        return {"urls": list(self.index.paths), "index_dir": str(self.folder / "index")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the data plane; rows go to --rows.")
    parser.add_argument("--shards", help="brace URL or glob of shards with one image and one `cls` a sample; "
                                         "without it two sample photos of scikit-learn are packed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=2000, help="decoded by a contender in a round; twenty times as many are read")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads of ours, worker processes of the peers")
    parser.add_argument("--resume-shards", type=int, default=200_000)
    parser.add_argument("--peers-env", type=Path, help="where the peers are installed if they are not importable here")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = open_index(given.shards or pack_photos(folder), str(folder / "index"))
        facts: dict[str, Any] = {"shards": describe(index), "command": command(given), "rounds": given.rounds}
        ours, peers = Contender(sys.executable, "data_ours.py"), Contender(python_of_peers(given.peers_env), "data_peers.py")
        bench = Bench(given, facts, index, ours, peers, folder)
        try:
            facts["versions"] = versions() | json.loads(peers.run("versions")["versions"])
            if "crop" in given.only:
                measure_crop(bench)
            if "read" in given.only:
                measure_read(bench)
            if "end" in given.only:
                measure_end(bench)
            if "views" in given.only:
                measure_views(bench)
        finally:
            ours.close()
            peers.close()
        if "resume" in given.only:
            measure_resume(given, {name: facts[name] for name in ("command", "versions", "rounds")}, folder)


def measure_crop(bench: Bench) -> None:
    """One core.  All get the same bytes and the same boxes; PIL's pixels are the oracle of the error.  Ours decodes an image to its end
    when it meets it first, here before the rounds, as in every epoch but the first; the first epoch is measured beside it."""
    files: list[str] = []
    sizes: list[tuple[int, int]] = []
    with_image = [(shard, number) for shard, count in enumerate(bench.index.counts.tolist()) for number in range(count)]
    reader = ShardReader(bench.index)
    for shard, number in with_image[:bench.given.samples]:
        members = reader.read(shard, number)
        data = members[str(image_member(list(members)))]
        files.append(str(bench.folder / f"{len(files)}.image"))
        Path(files[-1]).write_bytes(data)
        sizes.append(image_size(data))
    passes = max(bench.given.samples // len(files), 1)
    draws = [uniforms(0, 0, epoch, range(len(files)), 0, DRAWS).tolist() for epoch in range(passes)]
    boxes = [[RandomCrop().box(*size, row) for size, row in zip(sizes, rows, strict=True)] for rows in draws]
    kept = {name: str(bench.folder / f"{name}.npy") for name in ("ours", "pil")}
    bench.ours.run("crop", files=files, draws=draws[:1], size=SIZE, first=False)
    bench.ours.run("crop", files=files, draws=draws[:1], size=SIZE, first=False, keep=kept["ours"])
    bench.peers.run("crop", files=files, boxes=boxes[:1], size=SIZE, keep=kept["pil"])
    one, other = (np.load(kept[name]).astype(np.int16) for name in ("ours", "pil"))
    errors = np.abs(one - other).mean((1, 2, 3))
    found = interleave(bench.given.rounds, {
        "ours": lambda: bench.ours.run("crop", files=files, draws=draws, size=SIZE, first=False),
        "first": lambda: bench.ours.run("crop", files=files, draws=draws, size=SIZE, first=True),
        "libraries": lambda: bench.ours.run("crop", files=files, draws=draws, size=SIZE, first=True, libraries=True),
        "pil": lambda: bench.peers.run("crop", files=files, boxes=boxes, size=SIZE),
    })
    mine, first, theirs = (rates(found[name], "cpu_s") for name in ("ours", "first", "pil"))
    write_row(bench.given.rows, "data-crop", f"Decode, random crop, resize to {SIZE}: against PIL, one core", [
        figure("ratio to PIL in the first epoch, each image decoded to its end", ratios(first, theirs), "x", at_least=2.6),
        figure("ratio to PIL from the second epoch on", ratios(mine, theirs), "x", at_least=2.6),
        figure("mean error against PIL", [float(errors.mean())], "of 255", at_most=1.5),
        figure("error of the worst image", [float(errors.max())], "of 255"),
        figure("vitscale, first epoch", first, "images/CPU-s"), figure("vitscale", mine, "images/CPU-s"),
        figure("PIL", theirs, "images/CPU-s"),
        figure("the libraries' decoder, first epoch, ratio to PIL", ratios(rates(found["libraries"], "cpu_s"), theirs), "x"),
    ], **bench.facts)


def measure_read(bench: Bench) -> None:
    """One core, files in the page cache: what finding and reading a sample costs."""
    urls, passes = list(bench.index.paths), max(20 * bench.given.samples // bench.index.num_samples, 1)
    found = interleave(bench.given.rounds, {
        "ours": lambda: bench.ours.run("read", passes=passes, **bench.mine),
        "webdataset": lambda: bench.peers.run("read", urls=urls, passes=max(passes // 4, 1)),
    })
    mine, theirs = (rates(found[name], "cpu_s") for name in ("ours", "webdataset"))
    write_row(bench.given.rows, "data-read", "Find and read every member, shuffled, not decoded: against webdataset's sequential reader", [
        figure("vitscale", mine, "samples/CPU-s", at_least=40_000), figure("webdataset", theirs, "samples/CPU-s"),
        figure("ratio to webdataset", ratios(mine, theirs), "x", at_least=4),
    ], **bench.facts)


def measure_end(bench: Bench) -> None:
    """Shards to batches.  webdataset with PIL is timm's and open_clip's path; with OpenCV and torch's resize it is as good and faster."""
    urls, passes = list(bench.index.paths), max(bench.given.samples // bench.index.num_samples, 1)
    image = image_member([ext for ext, _, _ in bench.index.shard(0).members(0)])
    asked = {"passes": passes, "label": "cls", "size": SIZE, "workers": bench.given.workers}
    found = interleave(bench.given.rounds, {
        "ours": lambda: bench.ours.run("end", **bench.mine, **asked),
        "PIL": lambda: bench.peers.run("end", urls=urls, decoder="pil", image=image, **asked),
        "OpenCV": lambda: bench.peers.run("end", urls=urls, decoder="opencv", image=image, **asked),
    })
    rivals = (("PIL", "webdataset + PIL, as timm and open_clip do", 3.0), ("OpenCV", "webdataset + OpenCV at equal quality", 1.2))
    for name, title, goal in rivals:
        figures = []
        for clock, per in (("wall_s", "s"), ("cpu_s", "CPU-s")):
            mine, theirs = rates(found["ours"], clock), rates(found[name], clock)
            figures += [figure(f"ratio, images/{per}", ratios(mine, theirs), "x", at_least=goal if clock == "wall_s" else None),
                        figure("vitscale", mine, f"images/{per}"), figure(f"webdataset + {name}", theirs, f"images/{per}")]
        title = f"Shards to batches, {bench.given.workers} workers: against {title}"
        write_row(bench.given.rows, f"data-end-{name.lower()}", title, figures, **bench.facts)


def measure_views(bench: Bench) -> None:
    """An image decoded once and cut ten times, against the published pipeline of DINOv2, which is given its bytes without reading them."""
    told = bench.peers.run("torchvision")["version"]
    if not told:
        print("data-views: not measured, since there is no torchvision: `make .venv/peers`, or --peers-env", file=sys.stderr)
        return
    files, count = [], min(bench.given.samples // 10 + 1, bench.index.num_samples)
    reader = ShardReader(bench.index)
    for number in range(count):
        members = reader.read(0, number % int(bench.index.counts[0]))
        files.append(str(bench.folder / f"views-{number}.image"))
        Path(files[-1]).write_bytes(members[str(image_member(list(members)))])
    found = interleave(bench.given.rounds, {
        "ours": lambda: bench.ours.run("views", passes=max(count // bench.index.num_samples, 1), **bench.mine),
        "DINOv2": lambda: bench.peers.run("views", files=files, passes=1),
    })
    mine, theirs = (rates(found[name], "cpu_s") for name in ("ours", "DINOv2"))
    title = "Decode, 2 crops of 224 and 8 of 96, augmentation: against DINOv2's transforms by torchvision and PIL, one core"
    write_row(bench.given.rows, "data-views", title, [
        figure("ratio to DINOv2's", ratios(mine, theirs), "x", at_least=4), figure("vitscale", mine, "images/CPU-s"),
        figure("DINOv2's", theirs, "images/CPU-s"),
    ], **(bench.facts | {"versions": bench.facts["versions"] | {"torchvision": told}}),
        notes=["CPU time, in turns; ours with reading its shards and with what it fetched beyond the end, the peer's bytes lie in memory"])


def measure_resume(given: argparse.Namespace, facts: dict[str, Any], folder: Path) -> None:
    """A fresh process in the middle of shards of 10,000 samples that are only listed; nothing of what it measures opens a shard."""
    count, home = given.resume_shards, folder / "many"
    urls = f"{folder}/none-{{000000..{count - 1:06d}}}.tar"
    paths = [f"{folder}/none-{number:06d}.tar" for number in range(count)]
    home.mkdir()
    columns: dict[str, list[Any]] = {"bytes": [1_100_000_000] * count, "mtime_ns": [1] * count, "samples": [10_000] * count,
                                     "images": [10_000] * count, "damaged": [0] * count, "lost": [0] * count}
    columns["header_sha256"] = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    Homes(str(home)).sets(paths)[0].write_text(json.dumps({"version": VERSION, "urls": paths, **columns}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    asked = [sys.executable, str(HERE / "data_ours.py"), urls, str(home), "1024", "4096"]
    told = [subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout.split()
            for _ in range(given.rounds)]
    write_row(given.rows, "data-resume", f"Cold resume in the middle of {int(told[0][3]):,} samples in {count:,} shards, to the next "
                                         "batch's samples and draws", [
        figure("time from the set file to the batch", [float(one[0]) for one in told], "s", at_most=2),
        figure("peak memory of the process", [float(one[1]) / 1e6 for one in told], "MB", at_most=500),
        figure("distinct shards in the batch of 4096", [float(one[2]) for one in told]),
    ], **facts)


def pack_photos(folder: Path) -> str:
    """scikit-learn's two photos, at several qualities, into two shards."""
    from sklearn.datasets import load_sample_images
    photos = load_sample_images().images
    for shard in range(2):
        with tarfile.open(folder / f"photos-{shard}.tar", "w") as tar:
            for number in range(16):
                _, coded = cv2.imencode(".jpg", photos[number % 2][:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80 + number])
                for ext, data in (("cls", str(number % 2).encode()), ("jpg", coded.tobytes())):
                    info = tarfile.TarInfo(f"{16 * shard + number:06d}.{ext}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/photos-*.tar"


def describe(index: SetIndex) -> dict[str, Any]:
    """The shards by what is in them, not by where they lie."""
    return {"sha256": index.hash, "count": len(index.paths), "samples": index.num_samples,
            "mean_bytes": round(int(index.bytes.sum()) / index.num_samples)}


def command(given: argparse.Namespace) -> str:
    words = [f"--rounds {given.rounds} --samples {given.samples} --workers {given.workers}"]
    words += ["--shards SHARDS"] * bool(given.shards) + [f"--only {' '.join(given.only)}"] * (tuple(given.only) != PARTS)
    return "python benchmarks/data.py " + " ".join(words)


def versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], "decoder": native.describe()} | {
        name: version(name) for name in ("simplejpeg", "torch", "numpy")}


def python_of_peers(place: Path | None) -> str:
    """This interpreter if it has the peers, else that of the environment `place`, made and filled when it is not there yet."""
    if place is None:
        if missing := [name for name in ("PIL", "webdataset", "cv2", "torch") if importlib.util.find_spec(name) is None]:
            raise SystemExit(f"the peers {', '.join(missing)} cannot be imported here; give a folder to install them in with --peers-env")
        return sys.executable
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--disable-pip-version-check", *PEERS], check=True, stdout=sys.stderr)
    return str(python)


if __name__ == "__main__":
    main()
