"""`vitscale submit` before SLURM has a say: the bill, chains, arrays, and every mistake in one message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.cluster.bill import bill, describe, links_needed
from vitscale.cluster.site import Site
from vitscale.cluster.submit import plan_run, plan_sweep, with_options
from vitscale.errors import ClusterError, RecipeError, UserError
from vitscale.recipe import RECIPES, load_recipe

H200 = Site(nodes=4, gpu="H200", price_per_gpu_hour=3.5)
HUGE = load_recipe("vit_huge")


def test_a_bill_by_hand():
    """The FLOPs over what 32 ranks do at the planner's MFU; near the 897 GPU-hours at 40 % of the recipe's header."""
    found = bill(HUGE, H200)
    assert (found.ranks, found.params, found.images) == (32, 658_740_561, 90 * 14_197_122)
    assert found.flops == pytest.approx(1.28e21, rel=2e-3)
    assert found.mfu == pytest.approx(0.4, rel=0.15)
    assert found.hours == pytest.approx(found.flops / (32 * 989e12 * found.mfu) / 3600)
    assert found.cost == pytest.approx(found.hours * 32 * 3.5)
    assert found.micro_batch is not None
    assert found.peak_bytes is not None
    assert found.peak_bytes < 141e9


def test_the_bill_in_words():
    words = "\n".join(describe(bill(HUGE, H200), H200))
    assert "658,740,561 parameters" in words
    assert "32: 4 nodes of 8" in words
    found = bill(HUGE, H200)
    assert f"{found.hours:.1f} hours, {32 * found.hours:,.1f} GPU-hours, assuming {found.mfu:.0%} MFU on H200: an assumption" in words
    assert f"{found.cost:,.2f} at 3.5 a GPU-hour" in words


def test_what_is_not_known_is_called_so():
    recipe = load_recipe("vit_huge", ["data.num_samples=null"])
    words = dict(line.split(maxsplit=1) for line in describe(bill(recipe, Site()), Site()))
    assert words["memory"] == words["work"] == "not known"
    assert words["time"] == "not known (give gpu in cluster.yaml, and data.num_samples)"
    assert words["cost"].startswith("not known (give gpu and price_per_gpu_hour")


def test_nodes_without_gpus_have_the_recipes_processes():
    recipe = load_recipe("quickstart", ["parallel.processes=3"])
    assert bill(recipe, Site(nodes=2, gpus_per_node=0, gpu="H200")).ranks == 6
    assert bill(recipe, Site(nodes=2, gpus_per_node=0, gpu="H200")).hours is None


def test_what_cannot_run_is_refused():
    with pytest.raises(RecipeError, match=r"global_batch: 48 .* enough for 48 ranks, not for 64"):
        bill(load_recipe("quickstart"), Site(nodes=8))
    with pytest.raises(RecipeError, match=r"micro_batch: 1 image at a time would need"):
        bill(load_recipe("vit_huge", ["parallel.engine=ddp", "model.size=gigantic", "model.depth=64"]), Site(gpu="A100 40GB"))
    with pytest.raises(RecipeError, match=r"micro_batch: 512 images at a time need about"):
        bill(load_recipe("vit_huge", ["micro_batch=512"]), Site(gpu="A100 40GB"))


def test_a_chain_as_long_as_it_takes():
    """26 hours at 23.917 usable hours a job: 2, and one in case the assumptions are too good."""
    assert links_needed(bill(HUGE, H200), H200) == 3
    assert plan_run("vit_huge", [], H200, chain="auto").links == 3
    with pytest.raises(ClusterError, match="--chain auto wants to know"):
        plan_run("vit_huge", [], Site(nodes=4), chain="auto")
    with pytest.raises(ClusterError, match=r"time 00:05:00 is no longer than signal_lead, 300 s"):
        plan_run("vit_huge", [], H200.model_copy(update={"time": "00:05:00"}), chain="auto")


def test_links_of_a_chain_do_not_requeue():
    assert "#SBATCH --requeue\n" in plan_run("vit_huge", [], Site()).script
    assert "#SBATCH --requeue\n" in plan_run("vit_huge", [], Site(), chain="1").script
    assert "#SBATCH --no-requeue\n" in plan_run("vit_huge", [], Site(), chain="2").script
    assert "#SBATCH --no-requeue\n" in plan_run("vit_huge", [], Site(requeue=False), chain="2").script
    for chain in (None, "1"):
        with pytest.raises(ClusterError, match="say --chain K"):
            plan_run("vit_huge", [], Site(requeue=False), chain=chain)


@pytest.mark.parametrize("chain", ["0", "-1", "101", "x", "", "1e3", "²"])
def test_a_chain_of_what(chain: str):
    with pytest.raises(ClusterError, match="--chain wants auto or a number from 1 to 100"):
        plan_run("vit_huge", [], H200, chain=chain)


@pytest.mark.parametrize("after", ["", "x", "1,2", "1 --wrap=x", "afterok:1", "1_", "-1"])
def test_after_what(after: str):
    assert "#SBATCH --dependency=afterany:12_3\n" in plan_run("vit_huge", [], H200, after="12_3").script
    with pytest.raises(ClusterError, match="--after wants the number of a job"):
        plan_run("vit_huge", [], H200, after=after)


def test_the_recipe_is_named_so_that_the_job_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "-x.yaml"):
        (tmp_path / name).write_text((RECIPES / "quickstart.yaml").read_text())
    site = Site(nodes=1)
    assert "\ntrain mine.yaml name=y\n" in plan_run("mine.yaml", ["name=y"], site).script
    assert "\ntrain ./-x.yaml\n" in plan_run("-x.yaml", [], site).script
    assert f"\ntrain {RECIPES / 'quickstart.yaml'}\n" in plan_run("quickstart", [], site).script


def sweep(folder: Path, *names: str) -> Path:
    folder.mkdir()
    text = (RECIPES / "quickstart.yaml").read_text()
    for number, name in enumerate(names):
        (folder / f"{number}.yaml").write_text(text.replace("name: quickstart", f"name: {name}"))
    return folder


def test_a_sweep_is_an_array(tmp_path: Path):
    planned = plan_sweep(sweep(tmp_path / "s", "a", "b", "c"), ["seed=1"], Site(), at_once=2)
    assert "#SBATCH --array=0-2%2\n" in planned.script
    assert f"\nchoose_recipe {tmp_path / 's'}\ntrain \"$recipe\" seed=1\n" in planned.script
    assert [str(folder) for folder in planned.folders] == ["runs/a", "runs/b", "runs/c"]
    assert planned.path == tmp_path / "s" / "job.sh"


def test_a_sweep_whose_runs_would_share_a_folder(tmp_path: Path):
    planned = sweep(tmp_path / "s", "a", "b", "a")
    with pytest.raises(RecipeError, match="several recipes have the run folder runs/a;"):
        plan_sweep(planned, [], Site())
    with pytest.raises(RecipeError, match="several recipes have the run folder runs/z;"):
        plan_sweep(planned, ["name=z"], Site())


def test_an_empty_sweep(tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "list.txt").write_text("# none\n")
    for path in (tmp_path / "s", tmp_path / "list.txt"):
        with pytest.raises(RecipeError, match="holds no recipes"):
            plan_sweep(path, [], Site())


def test_options_stand_above_the_site():
    site = Site(nodes=2, gpus_per_node=8, cpus_per_task=12)
    assert with_options(site, nodes=4, gpus_per_node=None, time="1-00:00:00") == Site(nodes=4, gpus_per_node=8, cpus_per_task=12,
                                                                                      time="1-00:00:00")
    assert with_options(site, gpus_per_node=1).gpus_per_node == 1
    with pytest.raises(ClusterError, match=r"nodes +wants a number >= 1, got 0"):
        with_options(site, nodes=0)
    with pytest.raises(ClusterError, match="1 of a node's 8 GPUs want their share of its cores"):
        with_options(Site(), gpus_per_node=1)


def vitscale(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """On a machine without SLURM: its programs may be installed on this one, but are not on this PATH."""
    environment = {**os.environ, "PATH": str(folder / "nothing"), "PYTHONPATH": str(Path(__file__).parents[2]),
                   "XDG_CONFIG_HOME": str(folder)}
    return subprocess.run([sys.executable, "-m", "vitscale", *arguments], capture_output=True, text=True, cwd=folder, timeout=60,
                          env=environment)


def test_without_slurm(tmp_path: Path):
    """A plan and a script can be had; what wants SLURM says so in one line and exits with 2."""
    dry = vitscale(tmp_path, "submit", "quickstart", "--dry-run", "name=x")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "not described: no cluster.yaml found" in dry.stdout
    assert not (tmp_path / "runs").exists()
    for arguments in (["submit", "quickstart"], ["cancel", "runs/quickstart"]):
        done = vitscale(tmp_path, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("vitscale: s")
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "quickstart" / "job.json").exists()     # nothing was submitted, and nothing says so
    assert vitscale(tmp_path, "status").stdout.splitlines()[0].split()[:3] == ["run", "state", "step"]


@pytest.mark.parametrize("arguments", [
    ["submit", "nowhere"], ["submit", "quickstart", "optim.lrr=1"], ["submit", "quickstart", "--cluster", "nowhere.yaml"],
    ["submit", "quickstart", "--at-once", "2"], ["submit", "quickstart", "--time", "soon"], ["status", "nowhere"], ["logs", "nowhere"],
])
def test_mistakes_end_in_one_message(tmp_path: Path, arguments: list[str]):
    done = vitscale(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("vitscale: ")
    assert "Traceback" not in done.stderr
    assert issubclass(ClusterError, UserError)
