"""What `verify` says besides the faults of test_data_faults.py: sums, labels of every kind, the report and exit codes."""

import io
import json
import os
import tarfile

import corrupt
import pytest
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data.pack import PackOptions, pack
from vitscale.data.sources import open_source
from vitscale.data.verify import verify
from vitscale.errors import DataError


@pytest.fixture
def packed(tmp_path):
    pack(open_source(corrupt.build(tmp_path / "raw")), tmp_path / "set", PackOptions(shard_samples=6), workers=1)
    return tmp_path / "set"


def test_what_was_packed_is_clean(packed):
    done = []
    verdict = verify(f"{packed}/*.tar", classes=corrupt.CLASSES, workers=2, on_progress=lambda *at: done.append(at))
    assert (verdict.faults, verdict.hashed, verdict.samples) == ([], 3, 18)
    assert done[-1][0] == done[-1][1] == verdict.bytes == sum(file.stat().st_size for file in packed.glob("*.tar"))


def test_a_flipped_bit_anywhere_is_seen_by_its_sum(packed):
    path = packed / "shard-000001.tar"
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1                                       # padding behind a label: no decoder can know
    path.write_bytes(raw)
    verdict = verify(f"{packed}/*.tar")
    assert [(fault.reason, os.path.basename(fault.shard)) for fault in verdict.faults] == [("checksum", "shard-000001.tar")]
    assert "in SHA256SUMS stands" in verdict.faults[0].detail


def test_faults_are_in_the_order_of_their_bytes_and_at_their_offsets(tmp_path):
    urls = corrupt.build(tmp_path, {"jpg": b"garbage", "cls": b"x"})
    corrupt.TAR["cut_inside_data"][0](tmp_path)
    faults = verify(urls).faults
    assert [fault.reason for fault in faults] == ["label", "format", "lost", "tar"]
    assert [fault.offset for fault in faults] == sorted(fault.offset for fault in faults)
    raw = (tmp_path / "s-001.tar").read_bytes()
    for fault, name in zip(faults[:2], (f"{corrupt.KEY}.cls", f"{corrupt.KEY}.jpg"), strict=True):
        assert raw[fault.offset:].startswith(name.encode())


def test_an_unlabelled_set_is_no_fault_unless_labels_are_asked_for(tmp_path):
    urls = corrupt.build(tmp_path)
    assert verify(urls, label="class").faults == []
    assert verify(urls, label="class", classes=7).by_reason == {"label": 18}
    assert verify(urls, classes=5).by_reason == {"label": 4}
    assert verify(urls).labelled == 18


@pytest.mark.parametrize(("content", "sound"), [
    (b'{"a": {"b": 3}}', True), (b'{"a": {"b": "3"}}', True), (b'{"a": [1]}', False), (b'{"a": {"b": true}}', False), (b"{", False),
    (b'{"a": {"b": 99}}', False), (b"[]", False), (b"\xff", False),
])
def test_labels_inside_json(tmp_path, content, sound):
    urls = corrupt.build(tmp_path, {"json": content})
    faults = verify(urls, label="json:a.b").faults
    assert [fault.reason for fault in faults if fault.key == corrupt.KEY] == [] if sound else ["label"]
    assert len(faults) == 17 + (not sound) or content == b'{"a": {"b": 99}}'      # the others have no json member


def test_labels_that_are_names(tmp_path):
    (tmp_path / "classes.txt").write_text("".join(f"{number}\n" for number in range(7)))
    urls = corrupt.build(tmp_path / "a", {"cls": b"seven"})
    faults = verify(urls, class_map=str(tmp_path / "classes.txt")).faults
    assert [(fault.reason, fault.key) for fault in faults] == [("label", corrupt.KEY)]
    assert "b'seven'" in faults[0].detail


def test_the_command_exits_with_2_names_each_fault_and_writes_json(tmp_path):
    urls = corrupt.build(tmp_path, corrupt.SAMPLE["jpeg_with_a_zeroed_block"][0])
    result = CliRunner().invoke(app, ["data", "verify", urls, "--json", str(tmp_path / "faults.json"), "--classes", "7"])
    assert result.exit_code == 2
    assert corrupt.KEY in result.output
    assert "a JPEG with zeroed bytes at its byte" in result.output
    assert "1 fault: decode 1" in result.output
    written = json.loads((tmp_path / "faults.json").read_text())
    assert written["by_reason"] == {"decode": 1}
    assert (written["faults"][0]["key"], written["samples"]) == (corrupt.KEY, 18)
    assert CliRunner().invoke(app, ["data", "verify", corrupt.build(tmp_path / "b")]).exit_code == 0


def test_a_set_with_many_faults_is_cut_on_the_terminal_alone(tmp_path):
    urls = [corrupt.build(tmp_path / f"{number:02d}", {"jpg": b""}) for number in range(45)]
    result = CliRunner().invoke(app, ["data", "verify", *urls])
    assert "... and 5 more; --json FILE has them all" in result.output


def test_a_glob_without_matches_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no file matches"):
        verify(f"{tmp_path}/*.tar")


def test_names_that_would_spoil_a_terminal_are_spelled_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("\x1b[31mred\udcff[bold].jpg", "\x1b[31mred\udcff[bold].cls"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    result = CliRunner().invoke(app, ["data", "verify", str(tmp_path / "a.tar")])
    assert result.exit_code == 2
    assert r"\x1b[31mred\udcff[bold]" in result.output
    assert "\x1b" not in result.output
