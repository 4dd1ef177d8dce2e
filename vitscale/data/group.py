"""Which members of a shard make a sample: webdataset's rule, and what damage costs."""

from dataclasses import dataclass

from vitscale.data.tar import Damage, Member, Walk, split_name


@dataclass
class Sample:
    """The members of one key, by extension."""

    key: str
    members: dict[str, Member]
    suspect: bool = False       # next to damage: kept if it has what every other sample has
    broken: bool = False        # one of its members is known to be cut


def group(items: list[Member | Damage], state: Walk) -> tuple[list[Sample], set[str]]:
    """Consecutive members of equal key make a sample (webdataset's rule); -> (samples to keep, keys of those known to be lost).

    Where webdataset raises for a member that comes twice, a new sample starts and the damage is noted.  A sample next to damage is
    dropped unless it has every extension that all undamaged samples of the shard have.
    """
    samples: list[Sample] = []
    lost: set[str] = set()
    keys: set[str] = set()
    after_damage = False
    for item in items:
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
        if not samples or samples[-1].key != key or ext in samples[-1].members:
            if key in keys:
                state.damage.append(Damage(item.header, item.offset, f"key {key!r} comes twice; both samples are kept", None))
            keys.add(key)
            samples.append(Sample(key, {}, suspect=after_damage))
        samples[-1].members[ext] = item
        after_damage = False
    intact = [set(sample.members) for sample in samples if not sample.suspect]
    required = set.intersection(*intact) if intact else {ext for sample in samples for ext in sample.members}
    kept = [sample for sample in samples if not sample.broken and (not sample.suspect or required <= set(sample.members))]
    lost |= {sample.key for sample in samples} - {sample.key for sample in kept}
    return kept, lost
