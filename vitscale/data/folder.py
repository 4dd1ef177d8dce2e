"""A folder of class folders, or one of such a folder for each split: the pictures in it, and a count of what is left out, by reason."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.data.foreign import HEAD, kind_of
from vitscale.data.index import IMAGES
from vitscale.errors import DataError

# Names that people give to the parts of a set, in lower case, and what each is called in the output.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
          "test": "test", "testing": "test"}
_SYSTEM = ("__MACOSX", "@eaDir", "lost+found")          # folders that programs leave behind


@dataclass
class Found:
    """Pictures by class: [(path, name of its class)] in the order of names, and what is left out."""

    pictures: list[tuple[Path, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)     # reason -> files that somebody may have meant as pictures
    hidden: Counter[str] = field(default_factory=Counter)       # reason -> files that a system or a program keeps for itself


def class_folders(root: Path) -> list[str]:
    """The folders right below `root`, sorted: its classes, or its splits.  Links to folders count, hidden folders do not."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name))


def splits_of(root: Path, classes: tuple[str, ...] = ()) -> dict[str, Path]:
    """{"train": folder, "val": folder} where the folders of `root` are all named like splits, and none is a class of `classes`; else {}.

    Raises DataError where such folders hold no class folders, where two mean the same split, and where folders that share their classes
    stand beside one that is no split.
    """
    names = class_folders(root)
    named = [name for name in names if name.lower() in SPLITS]
    if not named or any(name in classes for name in names):
        return {}
    if len(named) < len(names):
        inside = Counter(below for name in named for below in class_folders(root / name))
        if not any(count > 1 for count in inside.values()):
            return {}
        other = next(name for name in names if name not in named)
        raise DataError(f"{root}: {' and '.join(f'{name}/' for name in named)} look like splits of a set, and {other}/ does not; move it "
                        "away, or, if all of them are classes, name them with --classes")
    bare = [name for name in names if not class_folders(root / name)]
    if bare:
        raise DataError(f"{root}: {' and '.join(f'{name}/' for name in names)} look like splits of a set, but {bare[0]}/ holds no class "
                        "folders; pack a manifest with a label for each picture, or, if these are the classes, name them with --classes")
    splits: dict[str, Path] = {}
    for name in names:
        if (split := SPLITS[name.lower()]) in splits:
            raise DataError(f"{root}: {splits[split].name}/ and {name}/ both look like the split '{split}'; pack each by itself, or, if "
                            "these are the classes, name them with --classes")
        splits[split] = root / name
    return splits


def look_through(root: Path, classes: list[str]) -> Found:
    """Every picture below ROOT/CLASS, however deep, as torchvision's ImageFolder has it; links are followed.

    A file is a picture by its ending, or else by its first bytes, so that a JPEG under any ending is found and a format that nothing here
    can read comes out as a bad picture with its name, not as nothing at all.
    """
    found = Found()
    for entry in os.scandir(root):
        if not entry.is_dir():
            found.left_out["beside the class folders"] += 1
        elif _is_hidden(entry.name):
            _count_hidden(entry.path, found)
    for name in classes:
        for path in _files(root / name, found):
            if path.name.startswith("._"):
                found.hidden["._*: what macOS writes beside a file"] += 1
            elif reason := _why_not(path):
                found.left_out[reason] += 1
            else:
                found.pictures.append((path, name))
    return found


def _files(top: Path, found: Found) -> Iterator[Path]:
    """Files below `top` in the order of their names, through links, but never into a folder that is being walked already."""
    root = os.stat(top.parent)
    above: dict[str, tuple[tuple[int, int], ...]] = {str(top.parent): ((root.st_dev, root.st_ino),)}
    for folder, below, files in os.walk(top, followlinks=True, onerror=_refuse):
        info = os.stat(folder)
        mine = (info.st_dev, info.st_ino)
        way = above[os.path.dirname(folder)]
        if mine in way:
            found.left_out["a link to a folder above itself"] += 1
            below.clear()
            continue
        above[folder] = (*way, mine)
        for name in [name for name in below if _is_hidden(name)]:
            below.remove(name)
            _count_hidden(os.path.join(folder, name), found)
        below.sort()
        yield from (Path(folder, name) for name in sorted(files))


def _count_hidden(folder: str, found: Found) -> None:
    if files := sum(len(inside) for _, _, inside in os.walk(folder)):
        found.hidden[f"in {os.path.basename(folder)}/, a hidden or system folder"] += files


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}); make it readable, or move it out of the source") from None


def _why_not(path: Path) -> str:
    """Why a file is left out; "" for a picture."""
    ending = path.suffix.lower()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "no regular file (a pipe, a socket or a device)"
        if ending[1:] in IMAGES:
            return ""
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return ""           # told as a bad picture, with the reason
    return "" if kind_of(head) else f"{ending or 'no ending'}: no picture"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM
