"""No key of another library's configuration is passed over: what transformers' class does not know by default is known here, or refused."""

import pytest
import torch

from vitscale.errors import CheckpointError
from vitscale.models.foreign_keys import ForeignKeys, ForeignTensors
from vitscale.models.transformers_section import READERS, general

transformers = pytest.importorskip("transformers")


def test_every_key_is_used_idle_or_refused_by_name() -> None:
    keys = ForeignKeys({"a": 1, "b": 2, "c": 3, "d": {"e": 4, "f": 5}, "g": 6})
    assert keys.take("a") == 1
    assert keys.take("z", 9) == 9
    keys.idle("b", "y")
    keys.must("c", 4)
    keys.inner("d").take("e")
    with pytest.raises(CheckpointError) as refused:
        keys.close("x.json")
    said = str(refused.value).splitlines()
    assert said[0].startswith("x.json")
    assert [line.split()[0] for line in said[1:]] == ["c", "d.f", "g"]
    with pytest.raises(CheckpointError, match=r"lacks d\.h"):
        ForeignKeys({}, "d.").take("h")


@pytest.mark.parametrize(("value", "fits"), [(True, True), (1, False), (1.0, False), (None, False)])
def test_a_number_is_no_truth(value: object, fits: bool) -> None:
    keys = ForeignKeys({"a": value})
    keys.must("a", True)
    assert bool(keys.faults()) != fits


def test_every_tensor_is_used_idle_or_refused_by_name() -> None:
    tensors = ForeignTensors({name: torch.zeros(1) for name in ("a", "b.index", "c", "d")})
    assert {name for name in tensors if name in tensors} == set(tensors)       # looking for a name is no use of its tensor
    tensors["a"], tensors.get("d")
    with pytest.raises(CheckpointError, match=r"takes: c$"):
        tensors.close([r".*\.index"])
    assert tensors.close([r".*\.index", "c"]) == ["b.index", "c"]
    with pytest.raises(CheckpointError, match=r"takes: b\.index, c$"):
        tensors.close([r"index", "[d-z]"])


@pytest.mark.parametrize("kind", READERS)
def test_what_is_left_out_is_what_transformers_takes_it_for(kind: str) -> None:
    """A file says only what its writer thought of; and no key that their class has by itself is unknown here."""
    theirs = transformers.CONFIG_MAPPING[kind.partition("_by_")[0]]()
    keys = ForeignKeys(theirs.to_dict())
    READERS[kind](keys)
    pairs = [(keys, theirs)] + [(inner, getattr(theirs, inner.inside.rstrip("."))) for inner in keys._inner]
    for read, config in pairs:
        for key, default in read.defaults.items():
            if hasattr(config, key):
                value = getattr(config, key)
                assert (list(value) if isinstance(value, (tuple, list)) else value) == default, key
    general(keys)
    assert not [key for key, why in keys.faults().items() if "is not known here" in why]
