"""The house's floors: a package imports only what stands below it; models know no parallelism; a login node needs no torch."""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vitscale

PACKAGE = Path(vitscale.__file__).parent
# from the ground up
FLOORS = ("counts", "errors", "awake", "files", "processes", "stopping", "terminal", "pages", "metrics", "recipe", "runfolder", "shapes",
          "plan", "cluster", "scaling", "kernels", "models", "objectives", "data", "optim", "parallel", "checkpoint", "resilience",
          "observe", "train", "bench", "evaluate", "explain", "export", "cli")
# who builds and trains a model asks the planner one question (and the data sheets theirs), which has an answer for any model: "not known"
WITHOUT_PLAN = ("models", "objectives", "data", "optim", "parallel", "checkpoint", "resilience", "observe", "explain", "export")
QUESTIONS = ("vitscale.plan.forecast.", "vitscale.plan.hardware.")
ON_FAKE_TENSORS = "train/exact.py"      # the one part of `vitscale plan` that wants the real model
EVERYTHING = ("cli", "__main__", "__init__")       # the roof and the door may import all; the door, only what is asked for
WITHOUT_TORCH = ("counts", "errors", "awake", "files", "processes", "stopping", "terminal", "pages", "metrics", "recipe", "runfolder",
                 "shapes", "plan", "cluster", "scaling", "cli")


def room_of(path: Path) -> str:
    """vitscale/data/order.py -> data; vitscale/errors.py -> errors; vitscale/__init__.py -> __init__."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, also inside functions and under TYPE_CHECKING; `from a import b` gives a.b."""
    found = []
    here = ["vitscale", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) - node.level] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
            found += [(node.lineno, argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return found


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_shipped" not in path.parts)


def rooms_used(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of what a file imports of vitscale itself."""
    for line, name in imports(path):
        first, _, rest = name.partition(".")
        if first == "vitscale":
            yield line, rest.split(".")[0]


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(path) for path in files()} - {"__init__", "__main__"}
    assert rooms <= set(FLOORS), "give the new package its place in FLOORS"
    assert {"models", "parallel", "train", "data"} <= rooms       # the files were found


def test_no_arrow_points_up() -> None:
    wrong = []
    for path in files():
        room = room_of(path)
        if room in EVERYTHING:
            continue
        for line, used in rooms_used(path):
            if used in ("", "__version__") or used == room:
                continue
            if used not in FLOORS or FLOORS.index(used) > FLOORS.index(room):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {room} imports {used}")
    assert wrong == []


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by name alone, and a run of all of them ends at the second one."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_no_circle_of_files() -> None:
    """Also inside a package, where no floor tells them apart; imports inside functions and those for types alone count too."""
    names = {".".join(["vitscale", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path for path in files()}
    uses = {name: {used for _, imported in imports(path) if (used := longest(imported, names))} - {name} for name, path in names.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name):], name])
        if name not in done:
            for used in sorted(uses[name]):
                walk(used, (*trail, name))
            done.add(name)

    for name in names:
        walk(name, ())


def longest(imported: str, names: dict[str, Path]) -> str | None:
    """The file that `vitscale.a.b.c` stands for: itself, or the module that holds c."""
    while imported and imported not in names:
        imported = imported.rpartition(".")[0]
    return imported if imported != "vitscale" else None


def outside(rooms: tuple[str, ...], banned: tuple[str, ...]) -> list[str]:
    return [f"{path.relative_to(PACKAGE)}:{line}: {name}" for path in files() if room_of(path) in rooms
            for line, name in imports(path) if any(f"{name}.".startswith(f"{ban}.") for ban in banned)]


def test_models_know_no_parallelism() -> None:
    assert outside(("models", "kernels"), ("torch.distributed", "deepspeed", "accelerate", "vitscale.parallel")) == []


def test_what_is_built_and_trained_knows_no_plan_of_it() -> None:
    assert outside(WITHOUT_PLAN, ("vitscale.plan",)) == []
    asking = outside(("train", "evaluate"), ("vitscale.plan",))
    assert asking
    assert [one for one in asking if not one.startswith(ON_FAKE_TENSORS) and not one.split(": ")[1].startswith(QUESTIONS)] == []


def test_a_recipe_knows_no_component() -> None:
    assert outside(("recipe", "errors"), ("torch", "deepspeed", "accelerate", "transformers", "cv2", "webdataset")) == []


def test_the_login_nodes_packages_import_no_torch() -> None:
    """`cli` may, through what it calls; not by itself."""
    assert outside(WITHOUT_TORCH, ("torch", "deepspeed", "accelerate")) == []


@pytest.mark.slow       # a fresh process imports torch
def test_importing_every_engines_door_loads_no_deepspeed() -> None:
    """It is required on Linux only, and slow to import."""
    assert not loaded("import vitscale.parallel.engines, vitscale.train.run") & {"deepspeed", "accelerate"}


HEAVY = ("torch", "deepspeed", "accelerate", "transformers", "cv2", "sklearn", "scipy")
AND_TELL = """
import atexit, contextlib, io, sys
atexit.register(lambda: print(*sys.modules, file=sys.__stdout__, flush=True))
with contextlib.redirect_stdout(io.StringIO()):
    exec(sys.argv[1])
"""


def loaded(program: str) -> set[str]:
    """The heavy libraries that a process has loaded when `program` is done."""
    done = subprocess.run([sys.executable, "-c", AND_TELL, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & set(HEAVY)


def command(*arguments: str) -> str:
    return f"import sys; sys.argv = ['vitscale', *{arguments!r}]; import vitscale.cli; vitscale.cli.main()"


@pytest.mark.parametrize("program", [
    "import vitscale; vitscale.__version__", command("--help"), command("train", "--help"), command("recipes", "list"),
    command("recipes", "check"), command("recipes", "show", "quickstart"), command("recipes", "schema"),
], ids=["import", "help", "train-help", "list", "check", "show", "schema"])
def test_the_login_node_loads_no_torch(program: str) -> None:
    assert loaded(program) == set()


def test_all_of_the_login_nodes_modules_load_no_torch() -> None:
    modules = [".".join(["vitscale", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
               for path in files() if room_of(path) in WITHOUT_TORCH]
    assert "vitscale.plan.memory" in modules
    found = loaded(f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")
    assert not found & {"torch", "deepspeed", "accelerate"}


def test_the_check_would_see_torch() -> None:
    assert "torch" in loaded("import sys; sys.modules['torch'] = sys")


def test_help_is_quick() -> None:
    """In seconds of a processor: a busy machine takes nothing from them."""
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vitscale", "--help"], check=True, capture_output=True, env={**os.environ, "COLUMNS": "100"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.slow       # a fresh process imports torch
def test_training_loads_no_scipy_unless_it_is_wanted() -> None:
    """A ninth of a run's imports."""
    told = subprocess.run([sys.executable, "-c", "import sys, vitscale.train.run; print('scipy' in sys.modules)"],
                          capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
