"""YAML 1.2 scalars, keys given twice, merges, and text that comes back as it was."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.errors import RecipeError
from vitscale.recipe.text import read_yaml, write_yaml


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("1E3", 1000.0), ("5e8", 5e8), (".5", 0.5), ("5.", 5.0), ("-.5e-3", -0.0005), (".inf", math.inf), ("-.INF", -math.inf),
    ("0", 0), ("-7", -7), ("+5", 5), ("010", 10), ("0x1F", 31), ("0o17", 15), ("!!int 0x1F", 31), ("!!float 1", 1.0),
    ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("Null", None),
    ("no", "no"), ("off", "off"), ("yes", "yes"), ("On", "On"), ("tRUE", "tRUE"), ("1_000", "1_000"), ("1:30", "1:30"), ("1e", "1e"),
    ("0b11", "0b11"), ("2026-11-23", "2026-11-23"), ("2026-11-23T10:00:00", "2026-11-23T10:00:00"), ("=", "="),
    ("'1e-3'", "1e-3"), ('"no"', "no"),
])
def test_scalars(text, value):
    read = read_yaml(text, "r.yaml")
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_a_number():
    assert math.isnan(read_yaml(".nan", "r.yaml"))


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\nb: 2\na: 3", "r.yaml: key 'a' is given twice (lines 1 and 3)"),
    ("s:\n  lr: 1\n  lr: 2", "r.yaml: key 'lr' is given twice (lines 2 and 3)"),
    ("[1]: 2", "r.yaml: line 1: a key wants to be a word, not a list or section"),
    ("a: 1\n? {b: 1}\n: 2", "r.yaml: line 2: a key wants to be a word, not a list or section"),
    ("a: 1\nb: c: d", "r.yaml: line 2: mapping values are not allowed here"),
    ("a: *b", "r.yaml: line 1: found undefined alias 'b'"),
    ("a: !!int abc", "r.yaml: line 1: 'abc' is no whole number"),
    ("a: !!float abc", "r.yaml: line 1: 'abc' is no number"),
    ("a: " + "9" * 5000, f"r.yaml: line 1: '{'9' * 40}' is no whole number"),
    ("!!python/object/apply:os.system [x]", "could not determine a constructor for the tag"),
    ("--- 1\n--- 2", "r.yaml: line 2: but found another document"),
    ("[" * 10_000, "r.yaml: is nested too deeply"),
])
def test_mistakes_name_file_and_line(text, message):
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "r.yaml")
    assert message in str(caught.value)


def test_merge_keys():
    text = "base: &base {p: 1, q: 2}\nmore: &more {p: 3, r: 4}\none: {<<: *base, q: 5}\ntwo:\n  <<: [*more, *base]\n"
    assert read_yaml(text, "r.yaml") == {
        "base": {"p": 1, "q": 2}, "more": {"p": 3, "r": 4}, "one": {"p": 1, "q": 5}, "two": {"p": 3, "q": 2, "r": 4},
    }


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.sampled_from([
        "no", "1e-3", "010", "2026-11-23", "~", "0x1F", "<<", "=", "1:30", ".inf", "", " ", "#", "- a", "\x85", "\u2028", "\ufeff",
    ]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_what_is_written_is_read_back_equal(value):
    read = read_yaml(write_yaml(value), "r.yaml")
    assert repr(read) == repr(value)        # types too: 1 is not 1.0 and not True
