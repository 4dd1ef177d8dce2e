"""The text of batch scripts: what is asked of SLURM, and what reaches the shell, letter by letter."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.cluster.script import HOME, Job, pattern_of, render
from vitscale.cluster.site import Site

SLURM = HOME / "slurm"
RUN = Job("vit_b", "runs/vit_b/logs/job-%j.log", 8, "recipes/vit_b.yaml", ("optim.lr=5e-4", "name=vit_b"))

PLAIN = f"""\
#!/bin/bash
# vit_b: written by `vitscale submit`; it can be edited and submitted again by sbatch.

#SBATCH --job-name=vit_b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/vit_b/logs/job-%j.log

home={HOME}
source "$home/launch/batch.sh"
train recipes/vit_b.yaml optim.lr=5e-4 name=vit_b
"""

FULL = f"""\
#!/bin/bash
# sweep: written by `vitscale submit`; it can be edited and submitted again by sbatch.

#SBATCH --job-name=sweep
#SBATCH --array=0-9%4
#SBATCH --account=vision
#SBATCH --partition=gpu,long
#SBATCH --qos=normal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output="my sweeps/100%% \\"real\\"/%A_%a.log"
#SBATCH --dependency=afterany:123_4
#SBATCH --constraint=ib

export SETUP='module load cuda/12.8 && ulimit -c 0'
export VENV='/home/me/my envs/v'
export CONTAINER='--container-image=/i/v.sqsh --container-mounts=/data'
export PREFIX='apptainer exec --nv v.sif'
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
home={HOME}
source "$home/launch/batch.sh"
choose_recipe 'my sweeps'
train "$recipe"
"""


def test_a_plain_run():
    assert render(RUN, Site()) == PLAIN


def test_everything_at_once():
    site = Site(account="vision", partition="gpu,long", qos="normal", nodes=2, gpus_per_node=4, cpus_per_task=12, time="2-00:00:00",
                signal_lead=600, directives=("--constraint=ib",), setup="module load cuda/12.8 && ulimit -c 0", venv="/home/me/my envs/v",
                container="--container-image=/i/v.sqsh --container-mounts=/data", prefix="apptainer exec --nv v.sif",
                network_interface="ib0")
    output = pattern_of(Path('my sweeps/100% "real"')) + "/%A_%a.log"
    job = Job("sweep", output, 4, None, sweep="my sweeps", tasks=10, at_once=4, after="123_4", requeue=False)
    assert render(job, site) == FULL


def test_nodes_without_gpus_ask_for_none():
    text = render(RUN, Site(gpus_per_node=0))
    assert "--gpus" not in text
    assert "#SBATCH --ntasks-per-node=8" in text


def words_that_arrive(text: str, folder: Path) -> list[str]:
    """What the script hands to `train`, run by a real shell with a launch/batch.sh that prints it."""
    (folder / "launch").mkdir(exist_ok=True)
    (folder / "launch" / "batch.sh").write_text("train() { printf '%s\\0' \"$@\"; }\nchoose_recipe() { recipe=$1; }\n")
    script = re.sub(r"(?m)^home=.*$", f"home={folder}", text)
    done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=folder, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1), min_size=1, max_size=3))
def test_no_word_of_an_override_is_taken_for_shell(words: list[str], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.getbasetemp()
    job = Job("x", "x.log", 1, words[0], tuple(words[1:]))
    assert words_that_arrive(render(job, Site()), folder) == words


def test_hostile_words_do_nothing(tmp_path: Path):
    words = ["$(touch owned)", "`touch owned`", "a'; touch owned; '", 'data.train="a b/{0..3}.tar"',
              "x\n#SBATCH --nodes=99\ntouch owned", "&", "*"]
    assert words_that_arrive(render(Job("x", "x.log", 1, "r.yaml", tuple(words)), Site()), tmp_path) == ["r.yaml", *words]
    assert words_that_arrive(render(Job("x", "x.log", 1, None, sweep=words[0], tasks=1), Site()), tmp_path) == [words[0]]
    assert not (tmp_path / "owned").exists()


def directives(text: str) -> dict[str, str]:
    found = re.findall(r"(?m)^#SBATCH --([a-z-]+)=?(\S*)", text)
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("name", ["vit_huge", "vit_large"])
def test_the_shipped_scripts_have_the_same_form(name: str):
    """Who reads one can read the other: the same directives in the same order, the same way to the ranks."""
    shipped = (SLURM / f"{name}.sh").read_text()
    ours = render(Job(name, "%x-%j.log", 8, f"recipes/{name}.yaml"), Site(nodes=int(directives(shipped)["nodes"])))
    assert list(directives(shipped).items()) == list(directives(ours).items())
    assert 'source "$home/launch/batch.sh"\ntrain "$recipe" "$@"' in shipped
    assert f"recipe=recipes/{name}.yaml" in shipped


def test_the_shipped_sweep_has_the_same_form():
    shipped = (SLURM / "sweep.sh").read_text()
    ours = render(Job("sweep", "%x-%A_%a.log", 1, None, sweep="sweep", tasks=8, at_once=4),
                  Site(gpus_per_node=1, cpus_per_task=2, time="12:00:00", signal_lead=120))
    assert list(directives(shipped).items()) == list(directives(ours).items())
    assert 'choose_recipe "$1"\ntrain "$recipe" "${@:2}"' in shipped


@pytest.mark.parametrize("path", sorted([*SLURM.glob("*.sh"), *(HOME / "launch").glob("*.sh")]), ids=lambda path: path.name)
def test_the_shell_can_read_it(path: Path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=20).stderr == ""


@pytest.mark.parametrize("path", sorted(SLURM.glob("*.sh")), ids=lambda path: path.name)
def test_without_slurm_one_line_says_what_to_do(path: Path, tmp_path: Path):
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, str(path)], capture_output=True, text=True, timeout=20, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"sbatch {'--array=0-9%4 ' if path.name == 'sweep.sh' else ''}{path}" in done.stderr


def test_submitted_from_elsewhere_it_says_where_launch_was_looked_for(tmp_path: Path):
    environment = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", str(SLURM / "vit_huge.sh")], capture_output=True, text=True, timeout=20, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr == f"vitscale: no launch/batch.sh in {tmp_path}: submit from the checkout, or export VITSCALE_HOME\n"


def choose(folder: Path, sweep: str, task: int) -> subprocess.CompletedProcess[str]:
    script = f'home={HOME}; source "$home/launch/batch.sh"; choose_recipe "$1"; echo "$recipe"'
    return subprocess.run(["bash", "-c", script, "sweep", sweep], capture_output=True, text=True, timeout=20, cwd=folder,
                          env={"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(task)})


def test_the_shell_and_submit_count_recipes_alike(tmp_path: Path):
    from vitscale.cluster.submit import recipes_of

    names = ["b.yaml", "B.yaml", "a b.yaml", "10.yaml", "9.yaml", ".hidden.yaml", "é.yaml", "z.txt", "$(x).yaml"]
    (tmp_path / "sweep").mkdir()
    for name in names:
        (tmp_path / "sweep" / name).touch()
    (tmp_path / "list").write_text("# a sweep\nsweep/b.yaml\n\n  sweep/a b.yaml  \nsweep/9.yaml")
    for sweep, count in (("sweep", 7), ("list", 3)):
        found = recipes_of(tmp_path / sweep)
        assert len(found) == count
        for task, path in enumerate(found):
            assert choose(tmp_path, sweep, task).stdout == path.removeprefix(f"{tmp_path}/") + "\n"
        beyond = choose(tmp_path, sweep, count)
        assert beyond.returncode == 2
        assert beyond.stderr == f"vitscale: {sweep} holds {count} recipes, counted from 0: there is none for task {count}\n"


def test_a_sweep_that_is_nothing(tmp_path: Path):
    done = choose(tmp_path, "nowhere", 0)
    assert done.returncode == 2
    assert done.stderr == "vitscale: give a folder of recipes, or a file with one on each line; got 'nowhere', which is neither\n"
