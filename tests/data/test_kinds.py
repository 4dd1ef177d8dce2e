"""One verdict for every kind of image: Pillow's pixels, or refused by its true name, whichever decoder runs and whichever command asks."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import corpus
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data import native, open_index, open_stream
from vitscale.data.bad import BadSample
from vitscale.data.crop import DRAWS, CentreCrop, RandomCrop
from vitscale.data.decode import decode
from vitscale.data.draws import uniforms
from vitscale.data.image import decode_whole, image_size
from vitscale.data.stats import stats
from vitscale.data.verify import verify
from vitscale.recipe.load import check_recipe

SOUND, REFUSED = corpus.sound(), corpus.refused()
ROWS = uniforms(0, 0, 0, range(2), 0, DRAWS).tolist()
FUZZ = Path(__file__).parent / "decode_fuzz.py"


def oracle(name, data):
    """What Pillow shows of it, RGB; and of what Pillow will not open for what surrounds the image, the image."""
    match name:
        case "png_frame_outside":
            return np.full((40, 40, 3), 85, np.uint8)
        case "png_text":
            return np.asarray(corpus.PICTURE)
        case "png_type_0_bits_16":                  # Pillow cuts off what is above 255
            return np.repeat((np.asarray(Image.open(io.BytesIO(data))) >> 8).astype(np.uint8)[:, :, None], 3, 2)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_image_gives_pillows_pixels(name):
    data, want = SOUND[name], oracle(name, SOUND[name])
    assert image_size(data) == want.shape[:2]
    assert np.array_equal(decode_whole(data), want)
    grey = np.asarray(Image.fromarray(want).convert("L"))
    apart = np.abs(decode_whole(data, 1)[:, :, 0].astype(int) - grey)
    assert apart.max() <= (40 if name.startswith("jpeg") else 0)        # a JPEG's grey is as it was coded
    assert apart.mean() <= 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused_by_its_name(name, decoder):
    data, reason, said = REFUSED[name]
    for rule, draws in ((CentreCrop(), ()), (RandomCrop(), ROWS[0])):
        with pytest.raises(BadSample) as caught:
            decode(data, rule, 16, 3, draws)
        assert caught.value.reason == reason
        assert said in str(caught.value)


def test_both_decoders_give_the_same_of_every_kind_at_every_size(monkeypatch):
    """Sizes at which crops are decoded at 1, 1/2, 1/4 and 1/8 where their kind can be."""
    def all_of_them():
        return {(name, size, channels, number, sound): decode(data, rule, size, channels, row, True, sound)
                for name, data in SOUND.items() for size in (3, 12, 48) for channels in (3, 1) for sound in (False, True)
                for number, (rule, row) in enumerate([(CentreCrop(), ()), *((RandomCrop((0.5, 1.0)), row) for row in ROWS)])}

    if not native.available():
        assert not os.environ.get("CI"), native.describe()
        pytest.skip(native.describe())
    ours = all_of_them()
    monkeypatch.setattr(native, "_module", None)
    theirs = all_of_them()
    assert [place for place, pixels in ours.items() if not np.array_equal(pixels, theirs[place])] == []


# Through every command that reads images

@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """All kinds in one shard, sound ones and those to be refused."""
    folder = tmp_path_factory.mktemp("kinds")
    with tarfile.open(folder / "s-0.tar", "w") as tar:
        for number, (name, data) in enumerate({**SOUND, **{name: row[0] for name, row in REFUSED.items()}}.items()):
            for ext, body in (("cls", b"%d" % (number % 5)), ("jpg", data)):
                info = tarfile.TarInfo(f"{name.replace(':', '')}.{ext}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return f"{folder}/s-*.tar"


EXPECTED = {(name, row[1]) for name, row in REFUSED.items()}


def test_verify_names_just_those(shards, decoder):
    verdict = verify(shards, classes=5)
    assert {(fault.key, fault.reason) for fault in verdict.faults} == EXPECTED
    assert verdict.samples == len(SOUND) + len(REFUSED)


def test_a_run_leaves_out_just_those(shards, decoder):
    index, bad, seen = open_index(shards), [], {}
    recipe = check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 16, "patch": 4, "classes": 5},
        "data": {"train": shards, "lanes": 1, "workers": 2, "max_bad_fraction": 0.9}, "optim": {"lr": 1e-3}, "global_batch": 4,
        "duration": "2 epochs", "seed": 3}, "test")
    with open_stream(recipe, index, rank=0, world=1, micro_batch=4, on_bad=bad.append) as stream:
        for batch in stream.until(2 * index.num_samples):
            for micro in batch.micro:
                seen |= dict(zip(micro.ids.tolist(), micro.images.numpy().copy(), strict=True))
    assert {(row["key"], row["reason"]) for row in bad} == EXPECTED
    assert set(seen) - {-1} == set(range(index.num_samples))


def test_stats_reads_the_size_of_just_the_others(shards, decoder):
    """What only decoding can tell is sound here."""
    found = stats(open_index(shards), workers=1)
    by_header = Counter(row[1] for name, row in REFUSED.items() if name not in ("png_bad_filter", "png_bad_filter_animated",
                                                                                "png_too_few_rows", "tiff_of_floats"))
    assert found.unreadable == by_header


def test_pack_leaves_out_just_those(shards, tmp_path, decoder):
    done = CliRunner().invoke(app, ["data", "pack", shards, str(tmp_path / "out"), "--workers", "1", "--resize", "16"])
    assert done.exit_code == 2, done.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {reason for _, reason in EXPECTED}
    assert len(rows) == len(EXPECTED)


# Whatever is done to them

def fuzz(folder, seconds, seed):
    for name, data in {**SOUND, **{name: row[0] for name, row in REFUSED.items()}}.items():
        (folder / name.replace(":", "")).write_bytes(data)
    done = subprocess.run([sys.executable, str(FUZZ), str(folder), str(seconds), str(seed)], capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    tried, taken = map(int, done.stdout.split()[-2:])
    assert 0 < taken < tried


def test_no_damage_ends_a_process_or_parts_the_decoders(tmp_path):
    """Each image as it is, then some damaged ones, at every scale; a library that fell would take that child alone."""
    fuzz(tmp_path, 4, 0)


@pytest.mark.all        # ten minutes of damage
@pytest.mark.parametrize("seed", range(1, 6))
def test_no_damage_does_so_for_long(seed, tmp_path):
    fuzz(tmp_path, 120, seed)
