"""The content of image files: hashed once by bytes, whatever their place and times, with an index that may be lost."""

import os
import shutil
from pathlib import Path

import pytest

from multicrop.data import contents
from multicrop.data.base import file_images
from multicrop.data.contents import FileContents


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """An index of its own; files count as settled at once, unless a test says otherwise."""
    monkeypatch.setattr(contents, "_FOLDERS", [tmp_path / "index"])
    monkeypatch.setattr(contents, "SETTLED_SECONDS", -1)
    return tmp_path / "index"


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose bytes are read."""
    seen, whole = [], contents._hashed
    monkeypatch.setattr(contents, "_hashed", lambda place: seen.append(Path(place).name) or whole(place))
    return seen


def made(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(bytes([number]) * 1000)
    return folder


def images_of(folder: Path):
    paths = sorted(folder.iterdir())
    return file_images("birds/test", [path.name for path in paths], [0] * len(paths), paths)


def test_files_are_read_once_and_only_when_asked(tmp_path, hashed):
    images = images_of(made(tmp_path / "data"))
    assert not hashed
    first = images.fingerprint
    assert sorted(hashed) == ["0.png", "1.png", "2.png"]
    assert images_of(tmp_path / "data").fingerprint == first and len(hashed) == 3


def test_a_copy_and_a_touch_have_the_same_fingerprint(tmp_path, hashed):
    first = images_of(made(tmp_path / "data")).fingerprint
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)
    assert images_of(tmp_path / "copy").fingerprint == first
    del hashed[:]
    os.utime(tmp_path / "data" / "1.png", ns=(1, 1))
    assert images_of(tmp_path / "data").fingerprint == first and hashed == ["1.png"]


def test_a_changed_byte_is_noticed_with_size_and_time_kept(tmp_path, hashed):
    victim = made(tmp_path / "data") / "1.png"
    first, times = images_of(tmp_path / "data").fingerprint, victim.stat()
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert images_of(tmp_path / "data").fingerprint != first and hashed[3:] == ["1.png"]


def test_two_files_that_are_exchanged_are_noticed(tmp_path):
    folder = made(tmp_path / "data")
    first = images_of(folder).fingerprint
    (folder / "0.png").rename(folder / "x")
    (folder / "1.png").rename(folder / "0.png")
    (folder / "x").rename(folder / "1.png")
    assert images_of(folder).fingerprint != first


def test_a_file_that_was_changed_a_moment_ago_is_read_again(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 60)
    folder = made(tmp_path / "data")
    for _ in range(2):
        images_of(folder).fingerprint  # noqa: B018 reads the files
    assert len(hashed) == 6


@pytest.mark.parametrize("damage", [b"", b"no index", "flip", "cut"])
def test_a_damaged_index_is_made_again(damage, tmp_path, hashed, index):
    first = images_of(made(tmp_path / "data")).fingerprint
    (path,) = index.iterdir()
    data = path.read_bytes()
    middle = data.index(b"\n") + 5
    spoilt = {"flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "cut": data[:-9]}
    path.write_bytes(spoilt.get(damage, damage))
    assert images_of(tmp_path / "data").fingerprint == first and len(hashed) == 6
    assert path.read_bytes() == data and [p.name for p in index.iterdir()] == [path.name]


def test_an_index_that_cannot_be_written_costs_only_time(tmp_path, hashed, index):
    index.write_text("a file where the folder should be")
    assert images_of(made(tmp_path / "data")).fingerprint == images_of(tmp_path / "data").fingerprint and len(hashed) == 6


def test_the_index_lies_beside_the_banks_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_FOLDERS", [])
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    assert images_of(made(tmp_path / "data")).fingerprint
    assert len(list((tmp_path / "cache" / "contents").iterdir())) == 1
    monkeypatch.delenv("MULTICROP_CACHE")
    assert contents.index_folder() is None and images_of(tmp_path / "data").fingerprint


def test_a_subset_reads_its_own_files_alone(tmp_path, hashed):
    images = images_of(made(tmp_path / "data"))
    assert images.subset([2, 0]).fingerprint != images.subset([0, 2]).fingerprint
    assert sorted(set(hashed)) == ["0.png", "2.png"]


def test_a_subset_of_shards_is_told_by_its_ids(tmp_path):
    folder = made(tmp_path / "data")
    shards = FileContents("w", ["0.png"], [folder / "0.png"], "ids", per_image=False)
    assert len({shards.fingerprint, shards.subset([0], ["a"]).fingerprint, shards.subset([1], ["b"]).fingerprint}) == 3


def test_a_name_of_two_lines_is_not_entered(tmp_path, hashed):
    folder = made(tmp_path / "data")
    (folder / "two\nlines.png").write_bytes(b"2")
    first = images_of(folder).fingerprint
    assert images_of(folder).fingerprint == first and hashed[4:] == ["two\nlines.png"]
