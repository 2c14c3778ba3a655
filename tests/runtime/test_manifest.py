"""Manifests: whatever broke in a finished folder is found."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from finetune.runtime import manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    """Sealed: a large file, a small one, an empty one, one below another folder."""
    (tmp_path / "step1/zero").mkdir(parents=True)
    rng = random.Random(0)
    (tmp_path / "step1/model.safetensors").write_bytes(rng.randbytes(50_000))
    (tmp_path / "step1/zero/rank 0 的.pt").write_bytes(rng.randbytes(700))
    (tmp_path / "step1/progress.json").write_text('{"step": 1}')
    (tmp_path / "step1/empty").touch()
    manifest.write_manifest(tmp_path / "step1")
    return tmp_path / "step1"


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found(folder):
    """500 of them, drawn over all bytes of all files; and 100 in each file."""
    assert manifest.verify(folder) == []
    rng = random.Random(7)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    places = [(path, rng.randrange(8 * path.stat().st_size)) for path in rng.choices(files, sizes, k=500)]
    places += [(path, rng.randrange(8 * path.stat().st_size)) for path in files for _ in range(100)]
    for path, bit in places:
        flip(path, bit)
        found = manifest.verify(folder)
        assert len(found) == 1 and path.name in found[0], (path, bit)
        flip(path, bit)
    assert manifest.verify(folder) == []


def test_files_that_are_lost_cut_short_or_too_many_are_named(folder):
    (folder / "more").write_text("x")
    assert manifest.verify(folder) == ["多了 more"]
    (folder / "more").unlink()
    (folder / "empty").unlink()
    assert manifest.verify(folder) == ["少了 empty"]
    (folder / "empty").touch()
    os.truncate(folder / "model.safetensors", 40_000)
    assert manifest.verify(folder) == ["model.safetensors 是 40,000 個位元組，應為 50,000"]


def test_a_folder_without_a_manifest_was_never_finished(folder):
    (folder / manifest.FILE).unlink()
    assert "沒有寫完" in manifest.verify(folder)[0]


def test_what_file_managers_leave_breaks_nothing(folder):
    for name in (".DS_Store", "Thumbs.db", "zero/._rank"):
        (folder / name).write_text("x")
    assert manifest.verify(folder) == []


def test_links_are_not_followed(folder, tmp_path):
    """Neither in the place of a file, though it holds the same, nor of the manifest, nor of a folder."""
    (tmp_path / "same").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(tmp_path / "kept")
    (folder / "model.safetensors").symlink_to(tmp_path / "same")
    assert "不是一般檔案" in manifest.verify(folder)[0]
    (folder / "model.safetensors").unlink()
    (tmp_path / "kept").rename(folder / "model.safetensors")
    (folder / "elsewhere").symlink_to(tmp_path)
    assert "不是一般檔案" in manifest.verify(folder)[0]
    (folder / "elsewhere").unlink()
    (folder / manifest.FILE).rename(tmp_path / "manifest")
    (folder / manifest.FILE).symlink_to(tmp_path / "manifest")
    assert "不是一般檔案" in manifest.verify(folder)[0]


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", "[" * 100_000, '{"files": [], "format": 1}', "NaN", '{"files": {"a": 1}}',
        '{"format": 1, "files": {"../../etc/passwd": {"size": 1, "sha256": "0"}}, "sha256": "0"}',
        '{"format": 1, "files": {"a": {"size": true, "sha256": []}}}', '{"files": {"\\ud800": {"size": 1}}}',
        '{"files": {"a": {"size": ' + "9" * 5000 + ', "sha256": "0"}}}',
    ],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_broken_and_nothing_it_names_is_opened(folder, text):
    (folder / manifest.FILE).write_text(text)
    assert manifest.verify(folder) == [f"{manifest.FILE} 壞了"]


def test_names_that_lead_out_of_the_folder_are_only_compared(folder):
    """One whose own hash is right: written by someone who knows how."""
    files = {"../secret": {"size": 1, "sha256": "0" * 64}, "/etc/passwd": {"size": 1, "sha256": "0" * 64}}
    (folder / manifest.FILE).write_text(manifest._text(files))
    found = manifest.verify(folder)
    assert "少了 ../secret" in found and "少了 /etc/passwd" in found and len(found) == 6
