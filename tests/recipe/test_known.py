"""What data and weights know of themselves: taken over where the recipe is silent, compared where it speaks, the same for every command."""

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.errors import DataError
from vitscale.models.timm_config import timm_architecture
from vitscale.models.timm_section import section_of_timm
from vitscale.models.transformers_config import config_of, kind_of
from vitscale.models.transformers_section import section_of
from vitscale.plan.command import PlanOptions, plan_command
from vitscale.plan.params import count_params
from vitscale.recipe import Recipe, beside, load_recipe
from vitscale.recipe.bound import changes, settings_of
from vitscale.recipe.load import check_recipe
from vitscale.recipe.schema import ConvNext, Deit, Model, Swin, Vit
from vitscale.recipe.text import write_yaml
from vitscale.recipe.weights import known_of

NAMES = ("cat", "dog", "owl", "elk")
PLAIN: dict[str, Any] = {"name": "x", "model": {"size": "tiny"}, "data": {"train": "shards/train-{000000..000003}.tar"},
                         "optim": {"lr": 1e-3}, "global_batch": 8, "duration": "2 steps"}
SIZES = {"width": 32, "depth": 2, "heads": 4, "mlp": 48, "classes": 4}
SECTIONS: dict[str, Model] = {
    "vit": Vit(**SIZES, image=32, patch=8), "grey": Vit(**SIZES, image=64, patch=16, channels=1),
    "deit": Deit(family="deit", **SIZES, image=48, patch=8),
    "dino": Vit(**{**SIZES, "mlp": 64}, image=42, patch=14, layer_scale=0.1, registers=3),
    "siglip": Vit(**SIZES, image=32, patch=8, pool="mean"),
    "beit": Vit(**SIZES, image=32, patch=8, pool="mean", pool_norm=True, registers=1, position="relative", layer_scale=0.1),
    "swin": Swin(family="swin", width=16, depths=(2, 2), heads=(2, 4), window=4, image=32, classes=4),
    "convnext": ConvNext(family="convnext", widths=(8, 16), depths=(1, 2), image=32, classes=4),
    "no head": Vit(**{**SIZES, "classes": 0}, image=32, patch=8),
}
PROCESSOR = {"image_processor_type": "BitImageProcessor",
             "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "resample": 2,
             "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


def listed(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def recipe_of(**sections: Mapping[str, Any] | Any) -> tuple[Recipe, list[str], list[str]]:
    """(recipe, what was taken over, what differs) of PLAIN with these sections joined to it."""
    values = {key: {**value, **sections.get(key, {})} if isinstance(value, dict) else value for key, value in PLAIN.items()} | {
        key: value for key, value in sections.items() if key not in PLAIN or not isinstance(PLAIN[key], dict)}
    notes: list[Any] = []
    recipe = check_recipe(values, "x.yaml", tell=notes.append, strict=True)
    return recipe, [note.text for note in notes if not note.differs], [note.text for note in notes if note.differs]


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("data", [
    {"train": "shards/train-{000000..000003}.tar"}, {"train": "sha*/train-*.tar"}, {"train": ["{shards,others}/a.tar"]},
    {"train": "file://{here}/shards/a.tar"}, {"train": "{here}/shards/a.tar"},
    {"train": None, "mix": [{"shards": "shards/a.tar"}], "lanes": 8},
    {"train": "elsewhere/a.tar", "val": "shards/val.tar"}, {"train": "elsewhere/a.tar", "class_map": "shards/classes.txt"},
    {"train": "shards/a.tar", "label": "json:kind"}, {"train": "data/digits/a.tar", "prepare": "digits"}], ids=str)
def test_the_classes_of_a_set_are_taken_over_and_compared(data: dict[str, Any], tmp_path: Path) -> None:
    listed(tmp_path / "shards")
    data = json.loads(json.dumps(data).replace("{here}", str(tmp_path)))
    classes = 10 if "prepare" in data else 4
    recipe, taken, differs = recipe_of(data=data)
    assert recipe.model.classes == classes
    assert [f"model.classes {classes}" in line for line in taken] == [True]
    assert differs == []
    assert "classes: {}" not in write_yaml(recipe.model_dump(mode="json"))
    again, taken, differs = recipe_of(data=data, model={"classes": classes})
    assert (again, taken, differs) == (recipe, [], [])
    stated, taken, differs = recipe_of(data=data, model={"classes": 1000})
    assert stated.model.classes == 1000
    assert (taken, [f"model.classes is 1000, there {classes}" in line for line in differs]) == ([], [True])


@pytest.mark.parametrize("values", [{"objective": {"name": "rotation"}}, {"data": {"label": None}, "objective": {"name": "mae"}}], ids=str)
def test_without_labels_classes_are_nobodys(values: dict[str, Any], tmp_path: Path) -> None:
    listed(tmp_path / "shards")
    recipe, taken, differs = recipe_of(**values)
    assert (recipe.model.classes, taken, differs) == (1000, [], [])


@pytest.mark.parametrize(("names", "words"), [
    (("dog", "cat", "owl", "elk"), "the same in another order: class 0 is dog there, cat here"),
    (("cat", "dog", "owl", "yak"), "but others: class 3 is yak there, elk here"),
    (("cat", "dog"), "names 2 classes, shards/classes.txt 4")])
def test_sets_that_name_their_classes_otherwise_are_told_apart(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    listed(tmp_path / "shards")
    listed(tmp_path / "held", names)
    _, _, differs = recipe_of(data={"val": "held/val.tar"})
    assert len(differs) == 1
    assert words in differs[0]


class Server(BaseHTTPRequestHandler):
    answers: list[int] = []      # noqa: RUF012  one list for all

    def do_GET(self) -> None:
        code = 404 if not self.path.startswith("/shards/classes.txt?sig=") else self.answers.pop(0) if self.answers else 200
        self.send_response(code)
        self.end_headers()
        if code == 200:
            self.wfile.write(b"cat\ndog\nowl\nelk\n")

    def log_message(self, *ignored: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    beside._far.cache_clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_far_set_is_asked_and_an_answer_waited_for(server: str) -> None:
    """Whoever cannot tell must not train another model than the rank beside it."""
    far = {"train": f"{server}/shards/train-{{000000..000003}}.tar?sig=secret"}
    Server.answers[:] = [503, 503]
    recipe, taken, _ = recipe_of(data=far)
    assert recipe.model.classes == 4
    assert "classes.txt?sig=***" in taken[0]
    assert recipe_of(data={"train": f"{server}/none/a.tar"})[0].model.classes == 1000
    beside._far.cache_clear()
    Server.answers[:] = [503] * 3
    with pytest.raises(DataError, match=r"classes.txt\?sig=\*\*\*: whether it is there cannot be told .*503.*say model.classes"):
        recipe_of(data=far)
    Server.answers[:] = [503] * 3
    assert check_recipe({**PLAIN, "data": far}, "x.yaml").model.classes == 1000         # who only plans goes on


def theirs(library: str, section: Model, folder: Path) -> tuple[Model, dict[str, Any]]:
    """(the section that is read back, evaluate.crop and colours) of a folder without weights in the form of a library."""
    names = NAMES[:section.classes]
    config: dict[str, Any]
    if library == "transformers":
        config = config_of(kind_of(section), section, names)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        read = section_of(config, "x")
    elif library == "timm":
        name, arguments = timm_architecture(section)
        config = {"architecture": name, "num_classes": section.classes, "model_args": arguments, "label_names": list(names),
                  "pretrained_cfg": {
            "input_size": [section.channels, section.image, section.image], "crop_pct": 0.8, "interpolation": "bilinear",
            "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
        read = section_of_timm(config, "x")
    else:
        config = {"vitscale": "0.1.0", "model": section.model_dump(mode="json"), "class_names": list(names), "transform": {
            "image": section.image, "channels": section.channels, "crop": 0.8, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
            "exif": False}}
        read = section
    (folder / "config.json").write_text(json.dumps(config))
    return read, {"evaluate.crop": 0.8, "data.augment.mean": [0.4, 0.5, 0.6], "data.augment.std": [0.2, 0.3, 0.4]}


def test_a_processor_of_images_and_text_says_how_images_are_prepared(tmp_path: Path) -> None:
    """Where CLIP's and SigLIP's are saved today; it goes before a file of the images' alone."""
    theirs("transformers", SECTIONS["vit"], tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSOR | {"image_mean": [0.1, 0.2, 0.3]}}))
    for _ in range(2):
        known = known_of(tmp_path)
        assert known is not None
        assert known.values["data.augment.mean"] == [0.1, 0.2, 0.3]
        (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(("library", "name"), [
    (library, name) for library in ("transformers", "timm", "vitscale") for name in SECTIONS
    if (library, name) not in (("timm", "beit"), ("timm", "convnext"))])       # which have no expression there
def test_weights_say_what_whoever_reads_them_finds(library: str, name: str, tmp_path: Path) -> None:
    """And a recipe that names them and says nothing itself has it; one that says otherwise keeps its word, and hears of it."""
    section = SECTIONS[name]
    read, about = theirs(library, section, tmp_path)
    wanted = about | {f"model.{key}": getattr(read, key) for key in ("image", "channels", "patch", "classes") if getattr(read, key, None)}
    known = known_of(tmp_path)
    assert known is not None
    assert known.values == wanted
    assert known.names == NAMES[:section.classes]
    model = section.model_dump(mode="json", exclude={"image", "channels", "patch", "classes"}) | {"family": section.family}
    init = {"init": str(tmp_path), "objective": {}} | ({"objective": {"name": "distillation", "teacher": "none"}} if name == "deit" else {})
    values = {**PLAIN, **init, "model": model}
    notes: list[Any] = []
    recipe = check_recipe(values, "x.yaml", tell=notes.append)
    dumped = recipe.model_dump(mode="json")
    assert {key: _at(dumped, key) for key in wanted} == wanted
    resized = [f"images were resized by bilinear for init={tmp_path}"] if library != "vitscale" else []
    assert [note.text.partition(";")[0] for note in notes if note.differs] == resized
    other = {**values, "data": {**PLAIN["data"], "augment": {"mean": [0.485, 0.456, 0.406]}}, "evaluate": {"crop": 1.0}}
    notes.clear()
    kept = check_recipe(other, "x.yaml", tell=notes.append)
    assert (kept.data.augment.mean, kept.evaluate.crop, kept.data.augment.std) == ((0.485, 0.456, 0.406), 1.0, (0.2, 0.3, 0.4))
    said = next(note.text for note in notes if "says otherwise" in note.text)
    assert "data.augment.mean is [0.485, 0.456, 0.406], there [0.4, 0.5, 0.6]; evaluate.crop is 1, there 0.8" in said


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def a_run(folder: Path, recipe: Recipe, step: int = 3) -> Path:
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({"format": 1, "step": step, "recipe": recipe.model_dump(mode="json"),
                                                "data": {"position": 24, "index_hash": "ab"}}))
    return place


@pytest.mark.parametrize("named", ["run", "run/checkpoints/step-00000003", "run/checkpoints/step-00000003/model.safetensors"])
def test_runs_and_checkpoints_say_it_too(named: str, tmp_path: Path) -> None:
    listed(tmp_path / "shards")
    before, *_ = recipe_of(model={"image": 64, "channels": 1, "patch": 8}, data={"augment": {"mean": [0.3] * 3}}, evaluate={"crop": 0.7})
    place = a_run(tmp_path / "run", before)
    (place / "model.safetensors").touch()
    (tmp_path / "other").mkdir()
    recipe, taken, differs = recipe_of(data={"train": "other/a.tar"}, init=named)
    assert len(taken) == 1
    assert differs == []
    assert (recipe.model, recipe.data.augment, recipe.evaluate.crop) == (before.model, before.data.augment, 0.7)
    listed(tmp_path / "other", ("dog", "cat", "owl", "elk"))
    _, _, differs = recipe_of(data={"train": "other/a.tar"}, init=named)
    assert "the same in another order" in differs[0]


@pytest.mark.parametrize("old", [1000, 4])
def test_a_run_goes_on_with_what_it_was_begun_with(old: int, tmp_path: Path) -> None:
    """Whatever is known today: of a run of the days when nothing was taken over, and of data whose facts have changed since."""
    begun, *_ = recipe_of(model={"classes": old}, data={"augment": {"mean": [0.3] * 3}})
    a_run(tmp_path / "runs" / "x", begun)
    listed(tmp_path / "shards", (*NAMES, "yak"))
    recipe, taken, differs = recipe_of(data={"augment": {"mean": [0.3] * 3}})
    assert changes(settings_of(begun.model_dump(mode="json")), settings_of(recipe.model_dump(mode="json"))) == []
    assert taken == []
    assert [f"model.classes is {old}, there 5" in line for line in differs] == [True]


def test_all_commands_mean_the_same_recipe(tmp_path: Path) -> None:
    listed(tmp_path / "shards")
    (tmp_path / "x.yaml").write_text(write_yaml(PLAIN))
    recipe = load_recipe("x.yaml")
    params = count_params(recipe.model, recipe.objective)
    assert params == count_params(Vit(size="tiny", classes=4), recipe.objective) < count_params(Vit(size="tiny"), recipe.objective)
    checked = CliRunner().invoke(app, ["recipes", "check", "x.yaml"])
    assert f"{params:,} parameters" in checked.output
    assert "model.classes 4" in checked.output
    assert "classes: 4" in CliRunner().invoke(app, ["recipes", "show", "x.yaml"]).output
    told: list[Any] = []
    plan, _ = plan_command("x.yaml", [], PlanOptions("cpu"), told.append)
    assert plan.parameters.total == params
    assert "model.classes 4" in told[0].text
