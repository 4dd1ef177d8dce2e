"""A sample of the matrix of tests/export/interchange.py that changes with the date, and the whole of it."""

import datetime
import importlib.metadata
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import interchange
import matrix_pages
import pytest
import torch

from vitscale.checkpoint.load import load
from vitscale.export.verify import check_peer

HERE = Path(__file__).parent
RESULTS = matrix_pages.RESULTS


def run(library: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows of some cases, in a process of its own."""
    done = subprocess.run([sys.executable, str(HERE / "interchange.py"), library, *arguments], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(rows: list[dict[str, Any]]) -> None:
    """No third outcome beside equal answers and a refusal by name."""
    bad = [row for row in rows if row["result"] not in ("equal", "refused", "backbone", "no model")]
    assert not bad, "\n".join(json.dumps(row) for row in bad[:10])
    assert not [row for row in rows if row["result"] == "refused" and ("differ" in row["words"] or "itself" in row["words"])]
    counts = Counter(row["result"] for row in rows)
    assert counts["no model"] < len(rows) / 4
    assert counts["equal"] >= len(rows) / 10


@pytest.mark.parametrize(("library", "count"), [("timm", 16), ("transformers", 24)])
def test_todays_folders_have_equal_answers_or_are_refused_by_name(library: str, count: int) -> None:
    if library == "timm" and not (Path(sys.prefix) / "peers" / "timm").is_dir():
        pytest.skip("timm is not in its environment; `make .venv/peers` puts it there")
    seed = datetime.date.today().toordinal()
    print(f"python tests/export/interchange.py {library} --sample {count} --seed {seed}")
    judge(run(library, "--sample", str(count), "--seed", str(seed)))


def test_timm_goes_on_with_what_we_wrote() -> None:
    if not (Path(sys.prefix) / "peers" / "timm").is_dir():
        pytest.skip("timm is not in its environment; `make .venv/peers` puts it there")
    rows = run("ours")
    assert len(rows) >= 40
    assert not [row for row in rows if row["result"] != "equal"]


@pytest.mark.all
@pytest.mark.timeout(3600)
def test_timm_trains_what_we_wrote() -> None:
    """With other classes: recomputed, compiled whole, in bf16."""
    rows = run("training")
    assert len(rows) >= 60
    assert not [row for row in rows if row["result"] != "equal"]


@pytest.mark.all
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_all_of_them(library: str) -> None:
    """Kept beside this file: what docs/models.md and README.md say is read comes from there."""
    rows = run(library)
    judge(rows)
    version = next((Path(sys.prefix) / "peers").glob("timm-*.dist-info")).name.split("-")[1].removesuffix(".dist") if (
        library == "timm") else importlib.metadata.version(library)
    matrix_pages.write(json.loads(RESULTS.read_text(encoding="utf-8")) | {library: matrix_pages.kept(version, rows)})


def test_the_pages_say_what_was_found() -> None:
    for page, text in matrix_pages.pages(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is not that of interchange.json"


@pytest.mark.parametrize("kind", ["Siglip2VisionModel", "Siglip2ForImageClassification"])
def test_siglip_2_takes_rows_of_patches(kind: str, tmp_path: Path) -> None:
    """Its classes are not asked as the others are; check_peer cuts images into rows for them."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 8,
             "num_patches": 16}
    config = transformers.Siglip2VisionConfig(**small) if "Vision" in kind else transformers.Siglip2Config(
        vision_config=small, num_labels=5)
    model = getattr(transformers, kind)(config).eval()
    interchange.shaken(model, torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.section.position_interpolation == "bilinear_antialias"
    assert check_peer(loaded, tmp_path, "transformers") <= interchange.EQUAL
