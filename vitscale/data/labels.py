"""The class number of a sample, and the check before training that labels are what the recipe says."""

from vitscale.data.bad import BadSample
from vitscale.data.index import SetIndex
from vitscale.data.reader import ShardReader
from vitscale.errors import DataError


def parse_label(raw: bytes) -> int:
    """`b"12\\n"` -> 12.  Raises BadSample("label")."""
    try:
        return int(raw.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        raise BadSample("label", f"its label is no whole number: {raw[:40]!r}") from None


def no_label(index: SetIndex, shard: int, number: int, label: str, extensions: list[str]) -> DataError:
    """The error for a sample without its label member."""
    return DataError(
        f"{index.paths[shard]}: sample '{index.key_of(shard, number)}' has no '{label}' member (it has {', '.join(extensions)}); "
        "name the label field with data.label, or repack with `vitscale data pack`"
    )


def outside(index: SetIndex, shard: int, number: int, value: int, classes: int) -> DataError:
    """The error for a label that the model has no class for."""
    return DataError(
        f"{index.paths[shard]}: sample '{index.key_of(shard, number)}' has the label {value}, but model.classes is {classes} "
        f"(labels 0 to {classes - 1}); set model.classes to the number of classes, or name another label field with data.label"
    )


def check_labels(index: SetIndex, label: str, classes: int, limit: int = 256) -> int:
    """Read up to `limit` labels, spread evenly over the shards and inside them; -> how many were read.

    Raises DataError for the first sample whose `label` member is missing, is no whole number, or lies outside [0, classes).
    A run still meets every label: this only finds early what is wrong with most of them.
    """
    reader = ShardReader(index)
    filled = [shard for shard, count in enumerate(index.counts.tolist()) if count]
    shards = filled[::-(-len(filled) // limit)]
    each = limit // len(shards)
    done = 0
    for shard in shards:
        count = int(index.counts[shard])
        for number in range(0, count, -(-count // min(each, count))):
            extensions = [ext for ext, _, _ in index.shard(shard).members(number)]
            if label not in extensions:
                raise no_label(index, shard, number, label, extensions)
            try:
                value = parse_label(reader.read(shard, number, (label,))[label])
            except BadSample as error:
                raise DataError(f"{index.paths[shard]}: sample '{index.key_of(shard, number)}': {error}; "
                                "wanted is the class as a whole number") from None
            if not 0 <= value < classes:
                raise outside(index, shard, number, value, classes)
            done += 1
    reader.close()
    return done
