"""`vitscale plan` as a user types it: the page, JSON, exit codes, mistakes, pictures, a recipe written."""

import json
import os
import resource
import subprocess
import sys

import pytest

from vitscale.errors import RecipeError
from vitscale.plan import find_fleet, plan_run
from vitscale.recipe import load_recipe


def run(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-m", "vitscale", "plan", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd,
                          env={**os.environ, "COLUMNS": "100", "XDG_CONFIG_HOME": "/nonexistent"})


def test_the_page(tmp_path):
    done = run("vit_huge", "--on", "4x8xH200", "--price", "3.5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page = done.stdout
    for words in ("vit_huge_in21k on 4 x 8 x H200", "658,740,561 parameters", "5,121 tokens", "fits", "usable", "images/s", "MFU (assumed)",
                  "matrix units", "GPU-hours", "at 3.5 each", "kWh", "checkpoint", "on disk at once (checkpoint.keep",
                  "attention (q, k, v, out)", "CUDA, cuBLAS, NCCL",
                  "attention_product", "4 L N^2 D", "1,024", "the fastest that fits of each engine", "assumed, not measured"):
        assert words in page, words
    assert max(len(line) for line in page.splitlines()) <= 100


def test_it_answers_within_a_second_of_a_processor(tmp_path):
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("vit_huge", "--on", "4x8xH200", "--json", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 1.0


def test_it_loads_no_torch_nor_numpy():
    code = ("import atexit, sys; sys.argv = ['vitscale', 'plan', 'vit_huge', '--on', '8xH100']\nimport vitscale.cli\n"
            "atexit.register(lambda: print(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)), file=sys.stderr))\n"
            "vitscale.cli.main()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_what_does_not_fit_ends_in_2_and_says_what_would(tmp_path):
    out = tmp_path / "fits.yaml"
    options = ("--on", "8xA100 40GB", "--write", str(out))
    done = run("vit_huge", "parallel.engine=ddp", "model.size=gigantic", "model.depth=96", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "NO: " in done.stdout
    assert "what would fit" in done.stdout
    again = run(str(out), "--on", "8xA100 40GB", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["memory"]["fits"] is True
    assert "# ViT-H/14 on ImageNet-21k" in out.read_text()
    done = run("vit_huge", *options, cwd=tmp_path)
    assert (done.returncode, "is not written over" in done.stderr) == (2, True)


def test_hardware_and_price_from_cluster_yaml(tmp_path):
    site = tmp_path / "mine.yaml"
    site.write_text("nodes: 2\ngpus_per_node: 8\ngpu: H100\nprice_per_gpu_hour: 2.0\n")
    done = run("vit_huge", "--cluster", str(site), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["hardware"]["gpus"], found["hardware"]["name"], found["cost"]["price_per_gpu_hour"]) == (16, "H100", 2.0)


@pytest.mark.parametrize(("arguments", "says"), [
    (["vit_huge"], "--on: say which hardware, such as --on 4x8xH200, or --on cpu (there is no cluster.yaml)"),
    (["vit_huge", "--on", "4x8"], "the table knows A100,"),
    (["vit_huge", "--gpu", "none.yaml"], "none.yaml"),
    (["vit_hige", "--on", "H200"], "did you mean vit_huge?"),
    (["vit_huge", "model.sise=base", "--on", "H200"], "model.sise"),
    (["vit_huge", "--on", "H200", "--mfu", "1.5"], "--mfu: is a share of the peak between 0 and 1"),
    (["vit_huge", "--on", "H200", "--price", "-1"], "--price: wants a number > 0"),
    (["vit_huge", "--on", "H200", "--storage", "nan"], "--storage: wants a number > 0"),
    (["quickstart", "--on", "64x8xH200"], "enough for 48 ranks, not for 512"),
    (["vit_huge", "--on", "H200", "--measured", "none.json"], "--measured none.json: cannot be read"),
])
def test_mistakes_are_one_clear_message(arguments, says, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_measurement(tmp_path):
    file = tmp_path / "bench.json"
    row = {
        "recipe": "vit_huge_in21k", "device": "NVIDIA H200", "images_per_second": 420.0, "mfu": 0.42, "micro_batch": 64, "engine": "fsdp",
        "precision": "bf16", "recompute": "selective", "compile": True, "peak_bytes": 10**10, "versions": {}, "date": "2026-01-01"}
    file.write_text(json.dumps(row))
    done = run("vit_huge", "--on", "H200", "--measured", str(file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MFU (measured)" in done.stdout
    assert "42.0% MFU of one NVIDIA H200 with the recipe vit_huge_in21k" in " ".join(done.stdout.split())
    for broken, says in (({**row, "mfu": "x"}, "mfu is 'x'"), ({**row, "mfu": 42.0}, "not between 0 and 1"), ([1], "wants an object"),
                         ({key: value for key, value in row.items() if key != "device"}, "device is missing")):
        file.write_text(json.dumps(broken))
        done = run("vit_huge", "--on", "H200", "--measured", str(file), cwd=tmp_path)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_search_that_finds_nothing_raises_no_error():
    recipe = load_recipe("vit_huge", ["model.width=12288", "model.depth=96", "model.heads=96", "model.mlp=49152"])
    assert plan_run(recipe, find_fleet("cpu")).memory.fits is None
    with pytest.raises(RecipeError, match=r"does not divide the 8 rank|cannot share"):
        plan_run(load_recipe("vit_large", ["parallel.tensor=16", "parallel.compile=false"]), find_fleet("8xH100"))


KNOWN = {"memory_gb": 24, "memory_bandwidth_gb_s": 900, "bf16_tflops": 80, "fp32_tflops": 40, "link_gb_s": 32}


def described(folder, **values):
    from vitscale.plan.described import read_described

    file = folder / "gpu.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in ({"name": "Own GPU"} | values).items()))
    return read_described(file)


@pytest.mark.parametrize("without", [(), *((key,) for key in KNOWN), tuple(KNOWN)])
@pytest.mark.parametrize("on", ["", "4", "4x8", "2x4xOwn GPU"])
def test_of_a_described_gpu_the_plan_says_what_follows_and_names_what_is_missing(tmp_path, without, on):
    fleet = find_fleet(on, described(tmp_path, **{key: value for key, value in KNOWN.items() if key not in without}))
    plan = plan_run(load_recipe("vit_large"), fleet)
    assert plan.memory.peak_bytes > 2**30
    assert plan.parameters.total > 3e8
    assert (plan.memory.fits is None) == ("memory_gb" in without)
    needed = {"bf16_tflops", "memory_bandwidth_gb_s", *({"link_gb_s"} if fleet.per_node > 1 else ())}
    assert (plan.time.images_per_second is None) == bool(needed & set(without))
    names = {"memory_gb": "memory", "bf16_tflops": "peak", "memory_bandwidth_gb_s": "memory bandwidth", "link_gb_s": "link bandwidth"}
    for key, name in names.items():
        assert any(name in line for line in plan.unknown) or key not in without or (key == "link_gb_s" and fleet.per_node == 1)
    assert bool(plan.unknown) == (plan.memory.fits is None or plan.time.images_per_second is None)
    json.dumps(plan.as_json(), allow_nan=False)


def test_a_described_gpu_with_the_numbers_of_a_known_one_has_its_plan(tmp_path):
    from vitscale.plan.hardware import DEVICES, HOSTS

    known, host = DEVICES["L40S"], HOSTS["PCIe server"]
    given = described(tmp_path, memory_gb=48, memory_bandwidth_gb_s=864, bf16_tflops=362, fp32_tflops=91.6, link_gb_s=32,
                      cores_per_node=host.cores, gpus_per_node=host.devices, network_gbit_s=400, watts_per_node=5000)
    assert given[1].memory_bytes == known.memory_bytes
    own, table = (plan_run(load_recipe("vit_large"), fleet) for fleet in (find_fleet("2x8", given), find_fleet("2x8xL40S")))
    assert (own.time, own.memory, own.cost) == (table.time, table.memory, table.cost)


@pytest.mark.parametrize(("on", "says"), [("4x8xH300", "did you mean H200?"), ("8xMadeUp 9000", "MadeUp 9000 is not in the hardware table"),
                                          ("8xT4", "T4 has no matrix units for parallel.precision=bf16"), ("V100", "no matrix units")])
def test_an_unknown_gpu_still_gets_a_plan_with_what_is_unknown_named(on, says):
    plan = plan_run(load_recipe("vit_large"), find_fleet(on))
    assert says in " ".join(plan.unknown)
    assert plan.memory.peak_bytes > 2**30
    assert (plan.time.images_per_second, plan.time.basis) == (None, "unknown")


def test_a_mistyped_gpu_is_said_on_the_page(tmp_path):
    done = run("vit_large", "--on", "8xH300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "did you mean" in done.stdout
    assert "not known" in done.stdout
