"""Tests that ask for `decoder` run twice: with the native decoder, and with the libraries alone."""

import os

import pytest

from vitscale.data import native


@pytest.fixture(params=["native", "libraries"])
def decoder(request, monkeypatch):
    if request.param == "libraries":
        monkeypatch.setattr(native, "_module", None)
    elif not native.available():
        assert not os.environ.get("CI"), native.describe()      # there it must have been built
        pytest.skip(native.describe())
    return request.param
