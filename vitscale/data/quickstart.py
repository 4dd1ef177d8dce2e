"""Real images without a download: scikit-learn's 1,797 handwritten digits as WebDataset shards."""

import os
import shutil
from pathlib import Path

import numpy as np

from vitscale.data.draws import inside_permutation
from vitscale.errors import DataError

TRAIN_SHARDS, VAL_SHARDS = 8, 2
TRAIN = "train-{000000..000007}.tar"
VAL = "val-{000000..000001}.tar"
_SEED = 0


def digits_split() -> tuple[list[int], list[int]]:
    """(train, val) indices into load_digits(), 1,438 and 359: a fifth of each class is held out, the same on every machine; mixed."""
    from sklearn.datasets import load_digits

    target = load_digits().target
    train: list[int] = []
    val: list[int] = []
    for digit in range(10):
        members = np.flatnonzero(target == digit)
        members = members[inside_permutation(_SEED, 0, digit, len(members))]
        held_out = round(len(members) / 5)
        val += members[:held_out].tolist()
        train += members[held_out:].tolist()
    mixed = (np.array(part)[inside_permutation(_SEED, 1, number, len(part))].tolist() for number, part in enumerate((train, val)))
    return next(mixed), next(mixed)


def pack_digits(folder: str | Path) -> Path:
    """Pack the digits into `folder`: 8 train and 2 val shards of 8 x 8 grey PNGs with their class, and classes.txt.  -> the folder

    Does nothing if they are there already.  The folder appears whole or not at all, and two processes may race.  The same bytes each time.
    Raises DataError when the folder holds something else or cannot be written.
    """
    target = Path(folder).absolute()
    if _complete(target):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists but does not hold the packed digits; remove it, or name another folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        temporary.mkdir(parents=True)
        _write(temporary)
        try:
            os.rename(temporary, target)            # fails where another process was faster: a folder replaces only an empty one
        except OSError:
            if not _complete(target):
                raise
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror}); give another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _complete(folder: Path) -> bool:
    names = [f"train-{number:06d}.tar" for number in range(TRAIN_SHARDS)] + [f"val-{number:06d}.tar" for number in range(VAL_SHARDS)]
    return all((folder / name).is_file() for name in [*names, "classes.txt"])


def _write(folder: Path) -> None:
    import cv2
    from sklearn.datasets import load_digits
    from webdataset import ShardWriter  # imports torch, so only here

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)         # stored as 0..16
    for name, part, shards in zip(("train", "val"), digits_split(), (TRAIN_SHARDS, VAL_SHARDS), strict=True):
        pattern = str(folder).replace("%", "%%") + f"/{name}-%06d.tar"
        with ShardWriter(pattern, maxcount=-(-len(part) // shards), verbose=0, encoder=False, mtime=0) as writer:
            for index in part:
                done, png = cv2.imencode(".png", grey[index])
                assert done
                writer.write({"__key__": f"digit-{index:06d}", "png": png.tobytes(), "cls": str(digits.target[index]).encode()})
    (folder / "classes.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
