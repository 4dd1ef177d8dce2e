"""Counts in words: 1 shard, 2 shards."""


def plural(count: int, noun: str) -> str:
    """(1, "class") -> "1 class"; (1200, "class") -> "1,200 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {noun}{ending}"
