"""Everything that is wrong with a set of shards: every header, every image, every label, and sha256 where it was written down."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitscale.data import remote
from vitscale.data.bad import BadSample
from vitscale.data.formats import FORMATS, HEAD, compression, format_of
from vitscale.data.image import decode_whole
from vitscale.data.index import SeveralImages, image_member, reading
from vitscale.data.labels import LabelRule, classes_in
from vitscale.data.members import Damage, GroupMembers, Member, ReadAt, Sample, Walk, group
from vitscale.data.pack import SUMS
from vitscale.data.shards import expand, unreadable
from vitscale.data.survive import looking_at
from vitscale.errors import DataError
from vitscale.recipe.redact import redact

_CHUNK = 1 << 22                            # bytes hashed at once
Progress = Callable[[int, int], None]       # (bytes done, bytes in all)

# What a fault is called, besides the reasons of BadSample, and the name of the shard's format where the archive itself is damaged.
MISSING, CHECKSUM, DUPLICATE, APART = "missing", "checksum", "duplicate", "apart"
LOST, LABEL, READ = "lost", "label", "read"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    shard: str
    reason: str
    detail: str
    key: str | None = None
    offset: int | None = None       # bytes, of the header of the member concerned, or of where the damage begins


@dataclass
class Findings:
    """What was looked at, and what is wrong with it."""

    shards: int = 0
    samples: int = 0                # that can be read at all
    bytes: int = 0
    hashed: int = 0                 # shards whose sha256 was known
    labelled: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def by_reason(self) -> Counter[str]:
        return Counter(fault.reason for fault in self.faults)

    def as_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("shards", "samples", "bytes", "hashed", "labelled")}
        return {**counts, "by_reason": dict(self.by_reason), "faults": [asdict(fault) for fault in self.faults]}


def verify(
    urls: str | Sequence[str], *, label: str = "cls", class_map: str | None = None, classes: int | None = None, multi_label: bool = False,
    group_members: GroupMembers = "adjacent", image: str | None = None, workers: int = 1, on_progress: Progress | None = None,
) -> Findings:
    """Look at every byte of the shards.  Faults come in the order of the shards, and of the bytes in them.

    label, class_map, multi_label, group_members, image: as in `data` of a recipe.  If no sample of the set has the label's member, the
    set is unlabelled and that is no fault, unless `classes`, the number of classes, is given.  Raises DataError for URLs that name
    nothing at all.
    """
    paths, rule = expand(urls), LabelRule.of(label, class_map, multi_label)
    classes = len(rule.names) if rule.names is not None and classes is None else classes
    folders = list(dict.fromkeys(os.path.dirname(path) for path in paths))
    sums = {folder: _sums(Path(folder, SUMS)) for folder in folders}
    away = [path for path in paths if remote.is_remote(path)]
    known = dict(zip(away, remote.facts_of(away), strict=True)) if away else {}
    facts = [known[path] if path in known else _facts(path) for path in paths]
    sizes = [one.size if one else 0 for one in facts]
    done = 0
    verdict = Findings(shards=len(paths), bytes=sum(sizes))
    unlabelled: list[Fault] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        looks = [pool.submit(_look, path, one, sums[os.path.dirname(path)].get(os.path.basename(path)), rule, classes,
                             group_members, image)
                 for path, one in zip(paths, facts, strict=True)]
        try:
            for size, task in zip(sizes, looks, strict=True):
                part, without = task.result()
                verdict.samples += part.samples
                verdict.labelled += part.labelled
                verdict.hashed += part.hashed
                verdict.faults += part.faults
                unlabelled += without
                done += size
                if on_progress:
                    on_progress(done, verdict.bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if verdict.labelled or classes is not None:
        verdict.faults += unlabelled
    listed = set(paths)
    for folder in folders:                  # a glob cannot name what is gone, but the sums can
        verdict.faults += [Fault(f"{folder}/{name}", MISSING, f"is named in {SUMS} but is not there") for name in sums[folder]
                           if f"{folder}/{name}" not in listed and not os.path.exists(f"{folder}/{name}")]
    place = {redact(path): number for number, path in enumerate(paths)}
    verdict.faults.sort(key=lambda fault: (place.get(fault.shard, len(place)), fault.shard, fault.offset or 0))
    return verdict


def _sums(path: Path) -> dict[str, str]:
    """{file name: sha256} of a file that `sha256sum -c` reads."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(path, error) from error
    parts = (line.partition(" ") for line in lines)
    return {name[1:]: sha for sha, _, name in parts if len(name) > 1 and "/" not in name}        # "  name" or " *name"


def _facts(path: str) -> remote.ShardFacts | None:
    return remote.ShardFacts(os.path.getsize(path), 0) if os.path.isfile(path) else None


def _look(
    path: str, facts: remote.ShardFacts | None, sha: str | None, rule: LabelRule, classes: int | None, group_members: GroupMembers,
    image: str | None,
) -> tuple[Findings, list[Fault]]:
    """One shard -> what is wrong with it, and apart from that its samples without a label."""
    part = Findings()
    without: list[Fault] = []
    url, path = path, redact(path)
    total = facts.size if facts else 0
    try:
        if facts is None and remote.is_remote(url):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with reading(url, total, facts.stamp if facts else 0) as read_at:
            if sha is not None:
                part.hashed = 1
                found = _sha256(read_at)
                if found != sha:
                    part.faults.append(Fault(path, CHECKSUM, f"its sha256 is {found[:16]}..., in {SUMS} stands {sha[:16]}...", offset=0))
            for sample in _samples(path, read_at, total, part, group_members):
                part.samples += 1
                for fault in _faults(path, read_at, sample, rule, classes, image):
                    (without if fault.reason == LABEL and rule.member not in sample.members else part.faults).append(fault)
                part.labelled += rule.member in sample.members
    except OSError as error:
        kind = MISSING if isinstance(error, (FileNotFoundError, NotADirectoryError)) else READ
        part.faults.append(Fault(path, kind, error.strerror or str(error)))
    except DataError as error:
        part.faults.append(Fault(path, READ, str(error)))
    return part, without


def _sha256(read_at: ReadAt) -> str:
    sha, at = hashlib.sha256(), 0
    while chunk := read_at(at, _CHUNK):
        sha.update(chunk)
        at += len(chunk)
    return sha.hexdigest()


def _samples(path: str, read_at: ReadAt, total: int, part: Findings, group_members: GroupMembers) -> list[Sample]:
    """Walk the headers; what is damaged goes into `part`."""
    head = read_at(0, HEAD) if total else b""
    form = format_of(path, head)
    if not total:
        part.faults.append(Fault(path, form, "is an empty file", offset=0))
        return []
    if form == "tar" and (packed := compression(head)):
        part.faults.append(Fault(path, form, f"is compressed ({packed}); decompress it, since samples are read at their offsets", offset=0))
        return []
    state = Walk()
    items = list(FORMATS[form].walk(read_at, total, state, 0))
    headers = {item.name: item.header for item in items if isinstance(item, Member)}
    known = len(state.damage)
    samples, lost = group(items, state, group_members)
    for number, damage in enumerate(state.damage):
        span = f" (bytes {damage.offset} to {damage.end})" if number < known and damage.end > damage.offset else ""
        part.faults.append(Fault(path, _name_of(damage, form), damage.reason + span, offset=damage.offset))
    for key in sorted(lost):
        offset = min((header for name, header in headers.items() if name.startswith(f"{key}.")), default=None)
        part.faults.append(Fault(path, LOST, "lost to the damage around it", key=key, offset=offset))
    if not samples and not part.faults:
        part.faults.append(Fault(path, form, "no samples in it", offset=0))
    return samples


def _name_of(damage: Damage, form: str) -> str:
    return APART if damage.apart else DUPLICATE if damage.reason.startswith("key ") else form


def _faults(path: str, read_at: ReadAt, sample: Sample, rule: LabelRule, classes: int | None, chosen: str | None) -> list[Fault]:
    """What is wrong with one sample: its image, its label."""
    faults = []

    def fault(member: Member, reason: str, detail: str) -> None:
        faults.append(Fault(path, reason, f"{member.name.rpartition('/')[2]}: {detail}", sample.key, member.header))

    first = next(iter(sample.members.values()))
    try:
        name = image_member(list(sample.members), chosen)
        if name is None:
            fault(first, "image", f"the sample has no image (its members are {', '.join(sample.members)})")
        else:
            first = sample.members[name]
            data = read_at(first.offset, first.size)
            with looking_at(path, sample.key, data):
                decode_whole(data)
    except SeveralImages as error:
        fault(first, "image", f"the sample {error}")
    except BadSample as error:
        fault(first, error.reason, str(error))
    member = sample.members.get(rule.member)
    if member is None:
        fault(first, LABEL, f"the sample has no '{rule.member}' member (it has {', '.join(sample.members)})")
        return faults
    try:
        for value in classes_in(read_at(member.offset, member.size), rule):
            if value >= 0 and (classes is None or value < classes):
                continue
            fault(member, LABEL, f"is {value}" + (f", outside 0 to {classes - 1}" if classes is not None else ", below 0"))
    except BadSample as error:
        fault(member, LABEL, str(error))
    return faults
