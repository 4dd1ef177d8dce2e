"""Credentials leave a URL, and nothing else does."""

import pytest

from vitscale.recipe.redact import redact, redacted


@pytest.mark.parametrize(("url", "shown"), [
    ("https://me:SECRET@host/a.tar", "https://***@host/a.tar"),
    ("https://SECRET@host", "https://***@host"),
    ("https://me:SEC@RET@host/a@b.tar", "https://***@host/a@b.tar"),
    ("s3://key:SECRET@bucket/x-{00..09}.tar", "s3://***@bucket/x-{00..09}.tar"),
    ("https://h/a.tar?token=SECRET", "https://h/a.tar?token=***"),
    ("https://h/a.tar?part=1&access_token=SECRET&b=2", "https://h/a.tar?part=1&access_token=***&b=2"),
    ("https://h/a.tar?X-Amz-Credential=SECRET%2F1&X-Amz-Date=2&X-Amz-Security-Token=SECRET&X-Amz-Signature=SECRET",
     "https://h/a.tar?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Security-Token=***&X-Amz-Signature=***"),
    ("https://h/a?AWSAccessKeyId=SECRET&Signature=SECRET%3D&Expires=1", "https://h/a?AWSAccessKeyId=***&Signature=***&Expires=1"),
    ("https://h/a?x-goog-signature=SECRET&GoogleAccessId=SECRET", "https://h/a?x-goog-signature=***&GoogleAccessId=***"),
    ("https://h/a?sv=SECRET&sig=SECRET", "https://h/a?sv=***&sig=***"),
    ("https://h/a?api_key=SECRET;apikey=SECRET", "https://h/a?api_key=***;apikey=***"),
    ("https://h/a?client-secret=SECRET#token=SECRET", "https://h/a?client-secret=***#token=***"),
    ("cannot read 'https://me:SECRET@h/a?sig=SECRET' twice", "cannot read 'https://***@h/a?sig=***' twice"),
])
def test_what_opens_a_door_is_hidden(url, shown):
    assert redact(url) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize("text", [
    "/disk/a@b/token=x.tar", "https://h/a@b.tar?versionId=3&design=4", "shards/{00..09}.tar", "s3://bucket/key=1/x.tar", "", "file?sig=1",
])
def test_anything_else_stays(text):
    assert redact(text) == text


def test_nested_values():
    given = {"train": ("https://a:b@h/x",), "mix": [{"shards": ["https://h/x?sig=1", None]}], "n": 3, "on": True, "f": 0.5}
    assert redacted(given) == {
        "train": ("https://***@h/x",), "mix": [{"shards": ["https://h/x?sig=***", None]}], "n": 3, "on": True, "f": 0.5}
    assert given["train"] == ("https://a:b@h/x",)
