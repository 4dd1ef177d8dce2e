"""What a walk over a shard finds, and which members make a sample: webdataset's rule, or one key anywhere; and what damage costs."""

import hashlib
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")      # webdataset 1.0.2, tariterators.base_plus_ext
_META = re.compile(r"__[^/]*__($|/)")                   # webdataset 1.0.2, tariterators.tar_file_iterator, skip_meta
GroupMembers = Literal["adjacent", "anywhere"]
ReadAt = Callable[[int, int], bytes]    # (offset, size) -> at most size bytes; fewer only at the end


@dataclass(frozen=True)
class Member:
    """One file in a shard: its name as the archive gives it, where its header and its data lie (bytes)."""

    name: str
    header: int
    offset: int
    size: int


@dataclass(frozen=True)
class Link:
    """A hard or symbolic link: its name, where its header lies, the archive's name of what it stands for."""

    name: str
    header: int
    target: str


@dataclass(frozen=True)
class Damage:
    """Bytes [offset, end) of a shard that could not be understood, and why; the name of the member that is lost, where it is known."""

    offset: int
    end: int
    reason: str
    name: str | None = None
    apart: bool = False         # nothing is lost: members of one key do not stand together


@dataclass
class Walk:
    """Progress of a walk: what was damaged, and the hash over every header seen, by which one content is told from another."""

    damage: list[Damage] = field(default_factory=list)
    sha: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def note(self, damage: Damage) -> Damage:
        """The damage, kept."""
        self.damage.append(damage)
        return damage


@dataclass
class Sample:
    """The members of one key, by extension."""

    key: str
    members: dict[str, Member]
    suspect: bool = False       # next to damage: kept if it has what every other sample has
    broken: bool = False        # one of its members is known to be cut


def split_name(name: str) -> tuple[str, str] | None:
    """Member name -> (key, extension in lower case) by webdataset's rule; None for a member that belongs to no sample."""
    match = None if _META.match(name) else _NAME.match(name)
    return (match[1], match[2].lower()) if match else None


def group(items: list[Member | Link | Damage], state: Walk, members: GroupMembers = "adjacent") -> tuple[list[Sample], set[str]]:
    """Consecutive members of equal key make a sample (webdataset's rule); -> (samples to keep, keys of those known to be lost).

    Where webdataset raises for a member that comes twice, a new sample starts and the damage is noted; so is a key whose members stand
    apart.  With `anywhere` they make one sample, at the place of the first.  A link counts as the member that it points to in the same
    shard; one that points nowhere is damage.  A sample next to damage (with `anywhere`: in a shard with any) is dropped unless it has
    every extension that all undamaged samples of the shard have.
    """
    samples: list[Sample] = []
    lost: set[str] = set()
    latest: dict[str, Sample] = {}
    apart: list[tuple[Member, Sample]] = []
    after_damage = False
    for item in _followed(items, state):
        parts = split_name(item.name) if item.name else None
        if isinstance(item, Damage):
            if samples:
                samples[-1].suspect = True
                samples[-1].broken |= parts is not None and samples[-1].key == parts[0]
            if parts:
                lost.add(parts[0])
            after_damage = True
            continue
        if parts is None:
            continue
        key, ext = parts
        sample = latest.get(key)
        if sample is None or ext in sample.members or (members == "adjacent" and sample is not samples[-1]):
            if sample is not None and ext in sample.members:
                state.note(Damage(item.header, item.offset, f"key {key!r} comes twice; both samples are kept"))
            elif sample is not None:
                apart.append((item, sample))
            sample = latest[key] = Sample(key, {}, suspect=after_damage)
            samples.append(sample)
        sample.members[ext] = item
        after_damage = False
    if apart:
        state.note(_stand_apart(*apart[0], len(apart)))
    if members == "anywhere" and any(isinstance(item, Damage) for item in items):
        for sample in samples:
            sample.suspect = True
    intact = [set(sample.members) for sample in samples if not sample.suspect]
    required = set.intersection(*intact) if intact else {ext for sample in samples for ext in sample.members}
    kept = [sample for sample in samples if not sample.broken and (not sample.suspect or required <= set(sample.members))]
    lost |= {sample.key for sample in samples} - {sample.key for sample in kept}
    return kept, lost


def _stand_apart(item: Member, before: Sample, count: int) -> Damage:
    """One remark for all keys of a shard: a tar with all images before all labels has nothing else."""
    ext = item.name.rpartition("/")[2].partition(".")[2]
    return Damage(item.header, item.offset, f"members of one key stand apart, {count} times; of {before.key!r} {', '.join(before.members)} "
                  f"come before and {ext} here, and make two samples; set data.group_members: anywhere (--group-members anywhere) to join "
                  "them", apart=True)


def _followed(items: list[Member | Link | Damage], state: Walk) -> list[Member | Damage]:
    """Links as the members that they stand for, wherever these lie in the shard."""
    if not any(isinstance(item, Link) for item in items):
        return items            # type: ignore[return-value]
    named = {posixpath.normpath(item.name): item for item in items if not isinstance(item, Damage)}
    found: list[Member | Damage] = []
    for item in items:
        if not isinstance(item, Link):
            found.append(item)
            continue
        target: Member | Link | None = item
        for _ in range(len(named)):         # a link to a link, but not round and round
            if not isinstance(target, Link):
                break
            target = named.get(target.target)
        if isinstance(target, Member):
            found.append(Member(item.name, item.header, target.offset, target.size))
        elif split_name(item.name):
            why = f"{item.name!r} is a link to {item.target!r}, which is no file in this shard; pack the file itself"
            found.append(state.note(Damage(item.header, item.header, why, item.name)))
    return found
