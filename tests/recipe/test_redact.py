"""Credentials leave a URL, and nothing else does."""

import pytest

from vitscale.recipe.redact import redact, redacted

# What is to be hidden is written SECRET; forms as vendors and people write them.
FORMS = [
    "https://me:SECRET@host/a.tar", "https://SECRET@host", "https://me:SECRET@SECRET@host/a@b.tar", "s3://key:SECRET@bucket/x-{00..09}.tar",
    "https://me:SECRET/SECRET@host/a.tar", "https://me:SECRET?SECRET#SECRET@host:80/a.tar", "ftp://me:SECRET%40@host/a",
    "gs://:SECRET@b/a",
    "https://h/a.tar?token=SECRET", "https://h/a.tar?part=SECRET&access_token=SECRET&b=SECRET",
    "https://h/a.tar?X-Amz-Credential=SECRET%2F1&X-Amz-Date=SECRET&X-Amz-Security-Token=SECRET&X-Amz-Signature=SECRET",     # AWS 4
    "https://h/a?AWSAccessKeyId=SECRET&Signature=SECRET%3D&Expires=SECRET",                                                # AWS 2
    "https://h/a?x-goog-signature=SECRET&GoogleAccessId=SECRET",                                                            # Google Cloud
    "https://h/a?sv=SECRET&sig=SECRET&skoid=SECRET", "https://h/a?se=SECRET&sp=SECRET",                                     # Azure
    "https://h/a?OSSAccessKeyId=SECRET&Signature=SECRET", "https://h/a?x-oss-signature=SECRET",                             # Alibaba
    "https://h/a?q-sign-algorithm=SECRET&q-ak=SECRET&q-signature=SECRET",                                                   # Tencent
    "https://h/a?Policy=SECRET&Key-Pair-Id=SECRET&Signature=SECRET",                                                        # CloudFront
    "https://h/a?X-Bce-Signature=SECRET&authorization=bce-auth-v1/SECRET/SECRET", "https://h/a?verify=SECRET",
    "https://h/a?hdnts=exp=SECRET~hmac=SECRET", "https://h/a?md5=SECRET,SECRET", "https://h/a?e=SECRET&h=SECRET",           # CDNs
    "https://h/a?api_key=SECRET;apikey=SECRET", "https://h/a?client-secret=SECRET#token=SECRET", "https://h/a#access_token=SECRET",
    "https://h/a?%73ig=SECRET", "https://h/a?to%6Ben=SECRET&%74oken=SECRET",
    "https://h/a%3Fsig%3DSECRET%26b%3DSECRET",
    "https://h/a?SECRET", "https://h/a?SECRET&SECRET", "https://h/a?x[]=SECRET&y[0]=SECRET", "https://h/a;jsessionid=SECRET",
    "https://h/a?x='SECRET&sig=SECRET", "https://h/a?x=(SECRET)&sig=SECRET", "https://h/a?x=it'sSECRET&s=SECRET",
    "https://h/a?sig=SECRET)SECRET&b=SECRET'SECRET", "https://h/a?redirect=https%3A%2F%2Fx%3Fsig%3DSECRET", "HTTPS://h/a?Sig=SECRET",
    "https://h/a?url=https://me:SECRET@h/b?sig=SECRET", "https://proxy/https://me:SECRET@h/a?sig=SECRET",
    "hf://me:SECRET@datasets/x?r=SECRET",
    "https://h/a?sig=SECRET==&b=SECRET+/SECRET", "abfs://c@SECRET:SECRET@h/a?sig=SECRET", "https://h/a?sig=\u00e9SECRET",
    "simplecache::s3://k:SECRET@b/a",
    "https://h/a?sig=abc;SECRET", "https://h/a?sig=abc%3BSECRET", "https://h/a?SECRET=", "https://h/a?SECRET==&b=1", "https://h/a;SECRET",
    "https%3A%2F%2Fh%2Fa%3Fsig%3DSECRET", "https%3A%2F%2Fme%3ASECRET%40h%2Fa", "https%253A%252F%252Fh%252Fa%253Fsig%253DSECRET",
    "https://proxy/https%3A%2F%2Fme%3ASECRET%40h%2Fa", "https://h/a%253Fsig%253DSECRET", "https://h/a%3Fx%253DSECRET",
    r"https:\/\/me:SECRET@h\/a?sig=SECRET", r"https:\/\/h\/a?sig=SECRET", "https://h/a?sig=x\"SECRET", "https://h/a?sig=x<SECRET&b=y>SECRET",
]
AROUND = ["{}", "cannot read '{}' twice", "({})", '["{}", 3]', "see {}.", "{}: no such shard", "a='{}', b=`{}`", "<{}>",
          "https://h/x {} and {}"]


@pytest.mark.parametrize("text", AROUND)
@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_secret_is_ever_shown(form, text):
    shown = redact(text.replace("{}", form))
    assert "SECRET" not in shown
    assert "***" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(("url", "shown"), [
    ("https://me:SECRET@host/a.tar", "https://***@host/a.tar"),
    ("s3://key:SECRET@bucket/x-{00..09}.tar", "s3://***@bucket/x-{00..09}.tar"),
    ("https://h/a.tar?part=1&access_token=SECRET&b=2", "https://h/a.tar?part=***&access_token=***&b=***"),
    ("https://h:80/a@b.tar?x=1", "https://h:80/a@b.tar?x=***"),
    ("cannot read 'https://me:SECRET@h/a?sig=SECRET' twice", "cannot read 'https://***@h/a?sig=***' twice"),
    ("(https://h/a?sig=SECRET), https://h/b.", "(https://h/a?sig=***), https://h/b."),
])
def test_what_is_left_still_names_the_file(url, shown):
    assert redact(url) == shown


@pytest.mark.parametrize("text", [
    "/disk/a@b/token=x.tar", "https://h/a@b.tar", "https://h:8080/a@b.tar#part", "shards/{00..09}.tar", "s3://bucket/key=1/x.tar", "",
    "file?sig=1",
])
def test_anything_else_stays(text):
    assert redact(text) == text


def test_nested_values():
    given = {"train": ("https://a:b@h/x",), "mix": [{"shards": ["https://h/x?sig=1", None]}], "n": 3, "on": True, "f": 0.5}
    assert redacted(given) == {
        "train": ("https://***@h/x",), "mix": [{"shards": ["https://h/x?sig=***", None]}], "n": 3, "on": True, "f": 0.5}
    assert given["train"] == ("https://a:b@h/x",)
