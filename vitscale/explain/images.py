"""Images that the command line names."""

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from vitscale.data.bad import BadSample


def read_images(sources: Sequence[str]) -> Iterator[tuple[str, bytes | BadSample]]:
    for source in sources:
        path = Path(source)
        found = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else \
            [path] if path.exists() else [Path(one) for one in sorted(glob(source))] or [path]
        for one in found:
            try:
                yield str(one), one.read_bytes()
            except OSError as error:
                yield str(one), BadSample("read", error.strerror or str(error))
