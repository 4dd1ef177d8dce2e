"""Shards: packed, indexed, checked, looked into."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vitscale.cli.app import Shards, data_app
from vitscale.counts import plural

if TYPE_CHECKING:
    from vitscale.data.members import GroupMembers


GroupMembersOption = Annotated[str, typer.Option(help="As data.group_members: adjacent, or anywhere in the shard.")]
ImageOption = Annotated[str | None, typer.Option(metavar="MEMBER", help="As data.image: the member that is the image, such as left.jpg.")]


@data_app.command("quickstart")
def data_quickstart(folder: Annotated[Path, typer.Argument(help="Where the shards go.")] = Path("data/digits")) -> None:
    """Pack scikit-learn's 1,797 handwritten digits into shards."""
    from vitscale.data.quickstart import pack_digits

    pack_digits(folder)
    print(f"packed into {folder}")


@data_app.command("pack")
def data_pack(
    source: Annotated[str, typer.Argument(help="A folder with a folder per class, a .csv or .parquet manifest, or shards (quoted).")],
    out: Annotated[Path, typer.Argument(help="The folder of the new shards; one for each split.")],
    prefix: Annotated[str, typer.Option(help="Shards are OUT/PREFIX-000000.tar and on.")] = "shard",
    shard_samples: Annotated[int | None, typer.Option(help="Samples of a shard; default 1000.")] = None,
    shard_bytes: Annotated[int | None, typer.Option(help="Instead: bytes of the source images of a shard, about.")] = None,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Mix the samples; default: 0 for folders and manifests.")] = None,
    no_shuffle: Annotated[bool, typer.Option("--no-shuffle", help="Keep the source's order; the default for shards.")] = False,
    resize: Annotated[int | None, typer.Option(metavar="PIXELS", help="Shrink the shorter side to this; never enlarges.")] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of images that were shrunk.")] = 90,
    classes: Annotated[Path | None, typer.Option(help="Class names, one a line, in the order of their numbers; default: sorted.")] = None,
    path_column: Annotated[str, typer.Option(help="Manifest: where the path stands, relative to the manifest's folder.")] = "path",
    label_column: Annotated[str, typer.Option(help="Manifest: where the class number or name stands; '' for no labels.")] = "label",
    group_members: GroupMembersOption = "adjacent",
    image: ImageOption = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Exit with 0 although images were bad or classes are empty.")] = False,
    max_left_out: Annotated[float, typer.Option(help="Exit with 2 if more than this share of a folder's files are no images.")] = 0.1,
) -> None:
    """Pack images into shards, in parallel; goes on where a killed pack stopped.

    Every image is decoded first: bad ones are left out and listed in OUT/bad.jsonl, and the exit code is 2.  TIFF, GIF (its first picture)
    and AVIF become PNG.  A folder with train/, val/ or test/ in it becomes OUT/train, OUT/val and so on, with the same class numbers.
    Folders and manifests are mixed by a seed, since shards that hold one class each train badly.  The same source gives the same bytes.
    """
    from vitscale.data.labels import read_class_map
    from vitscale.data.pack import PackOptions, pack
    from vitscale.data.progress import bar
    from vitscale.data.report import show_packed
    from vitscale.data.sources import open_sources
    from vitscale.data.survive import threads
    from vitscale.errors import EXIT_WRONG_INPUT, DataError
    from vitscale.processes import usable_cores

    if no_shuffle and shuffle is not None:
        raise DataError("give one of --shuffle and --no-shuffle")
    if not 0 <= max_left_out <= 1:
        raise DataError(f"--max-left-out: wants a share from 0 to 1, got {max_left_out:g}")
    if Path(source).is_dir() and out.absolute().resolve().is_relative_to(Path(source).resolve()):
        raise DataError(f"{out}: lies inside the source; name a folder outside it")
    names = list(read_class_map(classes)) if classes else ()
    sound = True
    for split, opened in open_sources(source, path_column=path_column, label_column=label_column, classes=names,
                                      group_members=_grouping(group_members), image=image).items():
        seed = None if no_shuffle else shuffle if shuffle is not None or opened.mixed else 0
        options = PackOptions(prefix, shard_samples if shard_samples or shard_bytes else 1000, shard_bytes, seed, resize, quality)
        with bar(f"packing {split}".strip(), "images") as show:
            packed = pack(opened, out / split, options, workers=threads(workers or usable_cores()), on_progress=show)
        sound &= show_packed(split, opened, packed, out / split, options, max_left_out, skip_bad)
    if not sound:
        raise typer.Exit(EXIT_WRONG_INPUT)


@data_app.command("verify")
def data_verify(
    shards: Shards,
    classes: Annotated[int | None, typer.Option(help="Number of classes: labels must lie below it.")] = None,
    label: Annotated[str, typer.Option(help="As data.label: a member, or json:path.to.field.")] = "cls",
    class_map: Annotated[str | None, typer.Option(help="As data.class_map: labels are names.")] = None,
    multi_label: Annotated[bool, typer.Option(help="As data.multi_label: a sample has any number of labels.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every fault there too.")] = None,
    group_members: GroupMembersOption = "adjacent",
    image: ImageOption = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
) -> None:
    """Check every header, image, label and sha256 of shards.  Exit code 0: clean; 2: faults found, each named."""
    import json

    from vitscale.data.progress import bar
    from vitscale.data.report import show_verdict
    from vitscale.data.survive import threads
    from vitscale.data.verify import verify
    from vitscale.errors import EXIT_WRONG_INPUT
    from vitscale.processes import usable_cores

    with bar("verifying", "bytes") as show:
        verdict = verify(shards, label=label, class_map=class_map, classes=classes, multi_label=multi_label,
                         group_members=_grouping(group_members), image=image, workers=threads(workers or usable_cores()), on_progress=show)
    show_verdict(verdict)
    if json_file:
        json_file.write_text(json.dumps(verdict.as_json(), indent=1))
    if verdict.faults:
        raise typer.Exit(EXIT_WRONG_INPUT)


@data_app.command("stats")
def data_stats(
    shards: Shards,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="A picture of samples as the model sees them.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Whose crop, flip and augmentation it shows; default: plain, 224 pixels.")] = None,
    label: Annotated[str | None, typer.Option(help="As data.label: a member, or json:path.to.field; default: the recipe's or cls")] = None,
    class_map: Annotated[str | None, typer.Option(help="As data.class_map: labels are names; default: the recipe's.")] = None,
    multi_label: Annotated[bool | None, typer.Option(help="As data.multi_label: any number of labels; default: the recipe's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there too.")] = None,
    index_dir: Annotated[str | None, typer.Option(help="Where the index goes; default: beside the shards.")] = None,
    group_members: GroupMembersOption = "adjacent",
    image: ImageOption = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
) -> None:
    """Classes, sizes, formats and copies of the images in shards, and a contact sheet."""
    import json

    from vitscale.data.index import open_index
    from vitscale.data.progress import bar
    from vitscale.data.report import show_stats
    from vitscale.data.stats import stats
    from vitscale.data.survive import threads
    from vitscale.processes import usable_cores
    from vitscale.recipe import load_recipe

    read = load_recipe(recipe) if recipe else None
    label = label or (read.data.label if read else None) or "cls"
    class_map = class_map or (read.data.class_map if read else None)
    multi_label = multi_label if multi_label is not None else bool(read and read.data.multi_label)
    index = open_index(tuple(shards), index_dir, group_members=_grouping(group_members), image=image)
    with bar("reading", "shards") as show:
        counted = stats(index, label=label, class_map=class_map, multi_label=multi_label, workers=threads(workers or usable_cores()),
                        on_progress=show)
    show_stats(counted)
    if json_file:
        json_file.write_text(json.dumps(counted.as_json(), indent=1))
    if sheet:
        from vitscale.data.sheet import write_sheet

        write_sheet(sheet, index, read, label, class_map, multi_label)
        print(f"wrote {sheet}")


@data_app.command("index")
def data_index(
    shards: Shards,
    index_dir: Annotated[str | None, typer.Option(help="Where the index goes; default: beside the shards.")] = None,
    group_members: GroupMembersOption = "adjacent",
) -> None:
    """Index shards: what `train` does by itself at its first use of them."""
    from vitscale.data.index import open_index
    from vitscale.data.progress import bar

    with bar("indexing", "shards") as show:
        index = open_index(tuple(shards), index_dir, show, group_members=_grouping(group_members))
    print(f"{plural(index.num_samples, 'sample')} in {plural(len(index.counts), 'shard')}; index hash {index.hash}")
    if index.damaged:
        print(f"{plural(index.damaged, 'damaged place')}, {plural(index.lost, 'sample')} lost there; `vitscale data verify` names them",
              file=sys.stderr)
    for shard, path in enumerate(index.paths):
        if apart := index.apart(shard):
            print(f"{path}: {apart}", file=sys.stderr)


def _grouping(text: str) -> "GroupMembers":
    """Raises DataError."""
    from vitscale.errors import DataError

    if text not in ("adjacent", "anywhere"):
        raise DataError(f"--group-members: is adjacent or anywhere, got {text!r}")
    return cast("GroupMembers", text)
