"""The benchmarks of steps run in their smallest forms; the guard finds a loss; README's table is made of the rows."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _programs():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def row(name, **figures):
    return {"name": name, "figures": [{"name": key, "value": value, "low": value, "high": value, "unit": "x", "goal": goal, "met": True}
                                      for key, (value, goal) in figures.items()],
            "hardware": "two cores", "date": "2026-11-25", "load_at_end": 0.4}


@pytest.mark.slow       # processes that import torch and transformers, one after the other
def test_gpu_step_in_its_smallest_form_on_a_cpu(tmp_path, monkeypatch):
    import gpu_step

    monkeypatch.setattr(gpu_step, "PEERS", ("transformers", "no_such_library"))
    gpu_step.main(["--device", "cpu", "--models", "micro", "--no-compile", "--precision", "fp32", "--rounds", "1", "--steps", "1",
                   "--batch", "2", "--rows", str(tmp_path)])
    found = json.loads((tmp_path / "cpu-step.json").read_text())
    values = {one["name"]: one["value"] for one in found["figures"]}
    assert 0.01 < values["micro: ratio to the best peer, transformers"] < 100      # no speed is asserted but a collapse
    assert 0 < next(value for name, value in values.items() if "measured here" in name) < 1
    assert found["notes"] == ["no_such_library is not installed"]
    assert not any("data sheet" in name for name in values)


@pytest.mark.slow       # a process that measures this machine's peak
def test_a_model_that_time_is_not_left_for_is_named_in_the_row(tmp_path, monkeypatch):
    import gpu_step

    def until_late(bench, model, peaks):
        bench.deadline = 0.0
        return [gpu_step.figure(f"{model}: of a test", [1.0])]

    monkeypatch.setattr(gpu_step.Bench, "measure", until_late)
    gpu_step.main(["--device", "cpu", "--precision", "fp32", "--models", "micro", "L/16", "H/14", "--limit", "90", "--rows", str(tmp_path)])
    found = json.loads((tmp_path / "cpu-step.json").read_text())
    assert [one["name"] for one in found["figures"]] == ["micro: of a test"]
    assert found["notes"] == ["L/16 was left out, since 90 s were over", "H/14 was left out, since 90 s were over"]


def test_a_step_without_labels_is_held_against_its_passes(tmp_path):
    import self_supervised_step

    self_supervised_step.main(["--batch", "2", "--rounds", "1", "--rows", str(tmp_path)])
    found = json.loads((tmp_path / "self-supervised-step.json").read_text())
    assert [one["name"] for one in found["figures"]] == ["beside the passes of dino_cifar10", "beside the passes of lejepa_cifar10"]
    assert all(-1 < one["value"] < 100 for one in found["figures"])


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    import gpu_step
    import torch

    if torch.cuda.is_available():
        gpu_step.main(["--models", "micro", "--rounds", "1", "--steps", "1", "--rows", str(tmp_path)])
        assert (tmp_path / "gpu-step.json").exists()
    else:
        gpu_step.main(["--rows", str(tmp_path)])
        assert "not measured" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow       # a real run
def test_overhead_in_its_smallest_form(tmp_path):
    import overhead

    overhead.main(["--model", "tiny", "--image", "32", "--batch", "4", "--steps", "3", "--rows", str(tmp_path)])
    found = json.loads((tmp_path / "step-overhead.json").read_text())
    assert 0 <= found["figures"][0]["value"] < 1


def test_the_share_of_a_step_outside_the_model():
    import overhead

    rows = [{"time": float(second), "seconds_compute": 0.7, "seconds_optimizer": 0.2, "seconds_data_wait": 0.05} for second in range(4)]
    assert overhead.shares(rows) == pytest.approx([0.1] * 3)


def test_the_guard_finds_a_loss_in_either_direction_and_nothing_else():
    import check

    stored = {"a": row("a", speed=(2.0, ">= 1.8"), memory=(1.0, "<= 1.03")), "b": row("b", other=(1.0, ""))}
    same = {"a": row("a", speed=(1.85, ">= 1.8"), memory=(1.08, "<= 1.03")), "c": row("c", speed=(0.1, ""))}
    assert check.losses(stored, same) == ([], 2)
    worse, compared = check.losses(stored, {"a": row("a", speed=(1.79, ""), memory=(1.2, ""))})
    assert compared == 2
    assert worse == ["a: speed: 2 -> 1.79", "a: memory: 1 -> 1.2"]
    elsewhere = {"a": row("a", speed=(0.1, "")) | {"shards": {"sha256": "of others"}}}
    assert check.losses(stored, elsewhere) == ([], 0)


def test_the_guard_by_command(tmp_path):
    import check

    for folder, value in (("stored", 2.0), ("same", 2.1), ("worse", 1.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(json.dumps(row("a", speed=(value, ">= 1.8"))))
    check.main(["--rows", str(tmp_path / "stored"), "--fresh", str(tmp_path / "same")])
    with pytest.raises(SystemExit, match="1 of 1 ratios fell"):
        check.main(["--rows", str(tmp_path / "stored"), "--fresh", str(tmp_path / "worse")])
    with pytest.raises(SystemExit, match="no ratio"):
        check.main(["--rows", str(tmp_path / "stored"), "--fresh", str(tmp_path)])


def test_what_falls_is_measured_once_more(tmp_path, monkeypatch, capsys):
    import check

    (tmp_path / "a.json").write_text(json.dumps(row("a", speed=(2.0, ">= 1.8"), other=(2.0, ""))))
    made = [{"a": row("a", speed=(speed, ""), other=(other, ""))} for speed, other in ((1.0, 1.0), (1.1, 2.0), (1.0, 2.0), (2.0, 1.0))]
    monkeypatch.setattr(check, "measured", lambda shards: made.pop(0))
    with pytest.raises(SystemExit, match=r"(?s)1 of 2 ratios fell.*a: speed: 2 -> 1$"):
        check.main(["--rows", str(tmp_path)])
    assert "measured once more, since these fell:\na: speed: 2 -> 1\na: other: 2 -> 1\n" in capsys.readouterr().err
    check.main(["--rows", str(tmp_path)])           # another one each time
    assert made == []


def test_readmes_table_is_made_of_the_rows(tmp_path):
    import readme

    page = tmp_path / "README.md"
    page.write_text(f"# x\n{readme.BEGIN}old\n{readme.END}rest\n")
    readme.main(["--readme", str(page)])
    text = page.read_text()
    assert text.startswith("# x\n")
    assert text.endswith("rest\n")
    assert "old" not in text
    stored = json.loads((BENCHMARKS / "rows" / "data-end-pil.json").read_text())["figures"][0]
    assert f"| shards to batches against webdataset + PIL | {stored['value']:.3g} x |" in text
    readme.main(["--readme", str(page)])
    assert page.read_text() == text
    page.write_text("# without marks\n")
    with pytest.raises(SystemExit, match="wants the lines"):
        readme.main(["--readme", str(page)])


def test_every_figure_that_readme_shows_has_its_name_from_a_program():
    """A figure that was renamed would be shown as not measured."""
    import readme

    rows = {path.stem: json.loads(path.read_text()) for path in (BENCHMARKS / "rows").glob("*.json")}
    for name, words, wanted in readme.SHOWN:
        figures = [one["name"] for one in rows[name]["figures"]] if name in rows else []
        model, of_a_model, _ = wanted.partition(":")        # of the models of one row only some may have been measured
        if figures and (not of_a_model or any(figure.startswith(model) for figure in figures)):
            assert any(figure.startswith(wanted) for figure in figures), words
