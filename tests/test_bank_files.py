"""The files of a bank against what happens to files: shards of two sizes, foreign and damaged files, full disks, passing errors."""

import errno
import importlib
import json
import logging
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from conftest import pictures
from test_bank import SAMPLER, fill, shard_bytes
from torch.utils.data import Subset, SubsetRandomSampler

from multicrop.crops import as_policy
from multicrop.data.images import ImageError, open_image
from multicrop.features import DiskBank, ShardFolder, feature_bank
from multicrop.features.base import EncodeCost
from multicrop.features.fill import ShardSampler
from multicrop.features.manifest import agreed_size
from multicrop.features.shards import Claims
from multicrop.features.view_dataset import view_loader
from multicrop.files import access, read_facts

shards_module = importlib.import_module("multicrop.features.shards")


@pytest.fixture
def quick(monkeypatch):
    """Tries without waits."""
    monkeypatch.setattr(access, "RETRY_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def bank(encoder, tmp_path) -> DiskBank:
    """A bank of ten images in shards of four."""
    return fill(pictures(10), encoder, tmp_path, shard_images=4)


def stopped(images, encoder, cache, monkeypatch, *, size, after):
    """A fill in shards of `size` that ends when so many have been written."""
    write, written = ShardFolder.write, []

    def dying(self, index, tensors):
        if len(written) == after:
            raise InterruptedError("the process was killed")
        written.append(index)
        write(self, index, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "write", dying)
        with pytest.raises(InterruptedError):
            fill(images, encoder, cache, shard_images=size)


@pytest.mark.parametrize(("first", "second"), [(4, 16), (16, 4)])
def test_a_bank_goes_on_with_the_size_it_was_begun_with(first, second, encoder, tmp_path, monkeypatch, caplog):
    clean = fill(pictures(20), encoder, tmp_path / "clean", shard_images=16)
    stopped(pictures(20), encoder, tmp_path / "bank", monkeypatch, size=first, after=4 if first == 4 else 1)
    kept = shard_bytes(tmp_path / "bank")
    found = fill(pictures(20), encoder, tmp_path / "bank", shard_images=second)
    assert torch.equal(found.tensors()[0], clean.tensors()[0])
    assert found.manifest["shard_images"] == first and kept.items() <= shard_bytes(tmp_path / "bank").items()
    assert f"begun with {first} images per shard" in caplog.text


def test_shards_of_another_size_are_no_shards_of_this_bank(encoder, tmp_path, monkeypatch, caplog):
    """Even where the layout is lost: rows and size are sealed."""
    clean = fill(pictures(20), encoder, tmp_path / "clean", shard_images=16)
    stopped(pictures(20), encoder, tmp_path / "bank", monkeypatch, size=4, after=4)
    next((tmp_path / "bank").rglob("layout.json")).unlink()
    found = fill(pictures(20), encoder, tmp_path / "bank", shard_images=16)
    assert "checksum" in caplog.text
    assert torch.equal(found.tensors()[0], clean.tensors()[0])


def test_a_shard_is_sealed_with_its_rows_and_size(tmp_path):
    tensors = {"readable": torch.ones(4, dtype=torch.uint8)}
    sealed = ShardFolder(tmp_path, "key", 20, 4)
    sealed.write(1, tensors)
    assert sealed.read(1) is not None
    shutil.copy(sealed.shard(1), sealed.shard(2))
    assert sealed.read(2) is None
    for other in (replace(sealed, images=8), replace(sealed, key="other"), replace(sealed, images=19)):
        assert other.read(1) is None
    ends = replace(sealed, images=20, size=16)  # its second shard is rows 16 to 19, also four
    assert len(ends.rows(1)) == 4 and ends.read(1) is None


def test_the_last_shard_is_shorter_and_missing_ones_are_listed(tmp_path):
    folder = ShardFolder(tmp_path, "key", 10, 4)
    assert folder.count == 3 and [list(folder.rows(index)) for index in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert ShardFolder(tmp_path, "key", 8, 4).count == 2 and ShardFolder(tmp_path, "key", 0, 4).missing() == []
    folder.write(1, {"readable": torch.ones(4, dtype=torch.uint8)})
    assert folder.missing() == [0, 2] and folder.shard(1).name == "shard-00001.safetensors"
    folder.write(2, {"readable": torch.ones(3, dtype=torch.uint8)})  # one image too many
    assert folder.read(1) is not None and folder.read(2) is None and folder.read(0) is None


def test_a_checksum_tells_names_types_shapes_and_bytes_apart():
    value = torch.arange(6, dtype=torch.int16)
    tensors = [{"a": value}, {"b": value}, {"a": value.view(torch.float16)}, {"a": value.view(2, 3)}, {"a": value.flip(0)}]
    tensors += [{"a": value, "b": value[:3]}, {"a": value[:3], "b": value}]
    sums = [shards_module.checksum(one) for one in tensors]
    assert len(set(sums)) == len(tensors)
    assert shards_module.checksum({"b": value[:3], "a": value}) == sums[5]  # the order of the names does not count
    assert shards_module.checksum({"a": torch.stack([value, value], 1)[:, 0]}) == sums[0]  # nor does the layout in memory


def test_claims_exclude_each_other_until_they_are_released(tmp_path):
    folder = ShardFolder(tmp_path, "key", 10, 4)
    one, two = Claims(folder), Claims(folder)
    leftover, foreign = (tmp_path / f"shard-0000{index}.safetensors.partial-7" for index in (0, 1))
    for path in (leftover, foreign):
        path.touch()
    assert one.take(0) and not two.take(0) and two.take(1) and set(one.held) == {0}
    assert not leftover.exists()  # of a process that died
    one.take(2)
    one.release([0])
    assert set(one.held) == {2} and two.take(0) and not one.take(0)
    one.release()
    assert one.held == {} and two.take(2)
    two.release()
    folder.write(0, {"readable": torch.ones(4, dtype=torch.uint8)})
    for _ in range(2):  # a shard that is written is not claimed, and its lock is free again
        assert not one.take(0) and not two.take(0)
    one.wait(0)
    folder.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-00000.safetensors"]


def test_each_process_starts_at_another_shard_and_takes_what_is_free(tmp_path):
    folder = ShardFolder(tmp_path, "key", 10, 4)
    for start, order in ((0, [0, 1, 2, 3, 4]), (1, [2, 3, 4, 0, 1]), (5, [4, 0, 1, 2, 3])):
        sampler = ShardSampler(folder, claims := Claims(folder), 2, start)  # groups of two images; the last shard has one
        assert list(sampler) == order and len(sampler) == 5
        claims.release()
    (other := Claims(folder)).take(1)
    assert list(ShardSampler(folder, Claims(folder), 2, 0)) == [0, 1, 4]
    other.release()
    for index, images in enumerate((4, 4, 2)):
        folder.write(index, {"readable": torch.ones(images, dtype=torch.uint8)})
    assert list(ShardSampler(folder, Claims(folder), 2, 3)) == []


def test_a_loader_gives_whole_groups_and_forks_its_workers_from_a_server():
    letters = Subset(["a", "b"], [0, 1])
    here, there = (view_loader(letters, num_workers=workers, accelerator=kind) for workers, kind in ((0, "cpu"), (1, "gpu")))
    assert list(here) == ["a", "b"] and here.multiprocessing_context is None and not here.pin_memory
    assert there.num_workers == 1 and there.multiprocessing_context.get_start_method() == "forkserver" and there.pin_memory
    assert list(view_loader(letters, num_workers=0, accelerator="cpu", sampler=SubsetRandomSampler([1]))) == ["b"]


def test_the_cost_of_a_bank_is_its_rate():
    assert EncodeCost.of(10, 4.0) == EncodeCost(4.0, 2.5) and EncodeCost.of(10, 0.0) == EncodeCost(0.0, 0.0)


def test_writers_of_different_sizes_agree(tmp_path):
    sizes, barrier = [], threading.Barrier(8)

    def ask(wanted):
        barrier.wait()
        sizes.append(agreed_size(tmp_path, wanted))

    threads = [threading.Thread(target=ask, args=(2**n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 8 and len(set(sizes)) == 1 and agreed_size(tmp_path, 512) == sizes[0]


TWO = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests")
from conftest import pictures, tiny_encoder
from test_bank import fill
encoder, cache = tiny_encoder(), Path(sys.argv[1])
children = []
for size in (4, 16):
    if (child := os.fork()) == 0:
        fill(pictures(20), encoder, cache, shard_images=size)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def test_two_fills_of_different_sizes_at_once_give_the_features_of_one(encoder, tmp_path):
    clean = fill(pictures(20), encoder, tmp_path / "clean", shard_images=16)
    done = forked.run([tmp_path / "bank"], os.environ | {"OMP_NUM_THREADS": "1"}, code=TWO, timeout=300)
    assert done.returncode == 0, done.stderr
    found = fill(pictures(20), encoder, tmp_path / "bank", shard_images=16)
    assert found.reused and torch.equal(found.tensors()[0], clean.tensors()[0])


@pytest.mark.parametrize("content", ['{"images": 3}', "[]", "3", "", '{"checksum": "x", "images": 10}', "other bank", "edited"])
def test_a_manifest_with_other_content_is_set_aside(content, bank, encoder, tmp_path, caplog):
    (path,) = tmp_path.rglob("manifest.json")
    if content == "other bank":
        other = fill(pictures(9), encoder, tmp_path / "other", shard_images=4)
        content = next((tmp_path / "other").rglob("manifest.json")).read_text()
        assert other.manifest["images"] == 9
    elif content == "edited":
        content = path.read_text().replace('"views": 4', '"views": 5')
    kept = path.read_text()
    assert content != kept
    path.write_text(content)
    again = fill(pictures(10), encoder, tmp_path, shard_images=4)
    assert f"{path} is damaged or not the manifest of this bank" in caplog.text
    assert torch.equal(again.tensors()[0], bank.tensors()[0])
    assert path.with_name("manifest.json.damaged").read_text() == content
    assert read_facts(path)["images"] == 10


def test_a_read_only_cache_with_a_damaged_file_says_what_to_do(bank, encoder, tmp_path, monkeypatch):
    victim = next(tmp_path.rglob("shard-00001.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")

    def read_only(self, target):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "replace", read_only)
    with pytest.raises(PermissionError, match=r"shard-00001.*checksum.*make the folder writable.*paths\.cache"):
        fill(pictures(10), encoder, tmp_path, shard_images=4)
    assert victim.exists()


@pytest.mark.parametrize("place", ["shard", "manifest", "layout", "claim"])
def test_a_full_disk_names_the_file_and_the_knob(place, encoder, tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    if place == "shard":
        replaced = Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, to: full(self) if "shard" in self.name else replaced(self, to))
    elif place == "claim":
        acquire = shards_module.FileLock.acquire
        fails = lambda self, *a, **k: full(self) if "shard" in self.lock_file else acquire(self, *a, **k)  # noqa: E731
        monkeypatch.setattr(shards_module.FileLock, "acquire", fails)
    else:
        write = Path.write_text

        def half(self, text, **knobs):
            write(self, text[:9], **knobs)
            return full(self) if place in self.name else write(self, text, **knobs)

        monkeypatch.setattr(Path, "write_text", half)
    named = {"claim": r"shard-00000\.lock"}.get(place, place)
    with pytest.raises(OSError, match=rf"cannot write .*({named}).*free some disk space.*paths\.cache") as caught:
        fill(pictures(3), encoder, tmp_path, shard_images=4)
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.rglob("*.partial*"))


PASSING = [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.ENOMEM]


def failing(path, number, times):
    """A read of files that fails so many times for this one; the names it was asked for."""
    read, asked = Path.read_bytes, []

    def patched(self):
        if self == path:
            asked.append(self)
            if len(asked) <= times:
                raise OSError(number, os.strerror(number), str(self))
        return read(self)

    return patched, asked


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pictures(1).open(0).save(path)
    return path


@pytest.mark.parametrize("number", PASSING)
def test_a_passing_error_is_tried_again_and_then_stops_the_run(number, photo, quick, encoder, tmp_path, monkeypatch, caplog):
    images = pictures(6)
    mixed = replace(images, open=lambda i: open_image(photo) if i == 4 else images.open(i))
    read, asked = failing(photo, number, 3)
    monkeypatch.setattr(Path, "read_bytes", read)
    found = fill(mixed, encoder, tmp_path / "a", shard_images=4)
    assert found.readable.all() and len(asked) == 4 and caplog.text.count("next try") == 3
    read, asked = failing(photo, number, 99)
    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(OSError, match=r"4 times.*photo\.png") as caught:
        fill(mixed, encoder, tmp_path / "b", shard_images=4)
    assert caught.value.errno == number and len(asked) == 4 and not list((tmp_path / "b").rglob("manifest.json"))
    monkeypatch.undo()
    assert fill(mixed, encoder, tmp_path / "b", shard_images=4).readable.all()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EPERM])
def test_a_file_that_is_missing_or_forbidden_stops_the_run_at_once(number, photo, encoder, tmp_path, monkeypatch):
    read, asked = failing(photo, number, 99)
    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(OSError, match=r"photo\.png"):
        fill(replace(pictures(1), open=lambda i: open_image(photo)), encoder, tmp_path / "bank")
    assert len(asked) == 1 and not shard_bytes(tmp_path / "bank")


def test_only_the_images_own_faults_make_it_unreadable(photo, quick, encoder, tmp_path):
    photo.write_bytes(photo.read_bytes()[:200])
    bank = fill(replace(pictures(3), open=lambda i: open_image(photo) if i == 1 else pictures(3).open(i)), encoder, tmp_path / "bank")
    assert bank.readable.tolist() == [True, False, True]
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(tmp_path)  # a folder


@pytest.mark.parametrize("way", ["memory", "open"])
def test_the_systems_errors_while_an_image_is_decoded_are_passing_too(way, photo, quick, monkeypatch):
    from PIL import Image

    whole, times = Image.open, []
    error = MemoryError() if way == "memory" else OSError(errno.EMFILE, "Too many open files")

    def opened(stream):
        times.append(stream)
        if len(times) < 3:
            raise error
        return whole(stream)

    monkeypatch.setattr(Image, "open", opened)
    assert open_image(photo).size == pictures(1).open(0).size and len(times) == 3


def test_sources_of_any_kind_are_tried_again(quick, encoder, tmp_path, caplog):
    images, failures = pictures(3), {"disk": 2, "off": 2}
    for storage in failures:

        def opened(index, storage=storage):
            if index == 1 and failures[storage]:
                failures[storage] -= 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return images.open(index)

        with caplog.at_level(logging.WARNING):
            bank = feature_bank(replace(images, open=opened), SAMPLER, encoder, seed=0, cache=tmp_path, storage=storage, progress=False)
            assert len(bank.tensors()[0]) == 3 and not failures[storage]


def test_a_shard_that_cannot_be_opened_for_the_moment_is_not_damaged(bank, quick, encoder, tmp_path, monkeypatch):
    whole, times = Path.open, []

    def opened(self, *arguments, **knobs):
        if self.name == "shard-00001.safetensors" and len(times) < 2:
            times.append(self)
            raise OSError(errno.EMFILE, "Too many open files")
        return whole(self, *arguments, **knobs)

    monkeypatch.setattr(Path, "open", opened)
    assert fill(pictures(10), encoder, tmp_path).reused and len(times) == 2


POLICY = """
import torch
SIZE = {size}
def helper(height, width):
    return min(height, width) {division} SIZE
def corner(height, width, image_id, seed):
    \"\"\"A policy outside the package.\"\"\"
    side = helper(height, width)
    return torch.tensor([[0.0, 0.0, side, side]])
"""


def policy(tmp_path, **values):
    namespace = {"__name__": "policies"}
    exec(compile(POLICY.format(**({"size": 2, "division": "//"} | values)), str(tmp_path / "policies.py"), "exec"), namespace)  # noqa: S102
    return namespace["corner"]


@pytest.mark.parametrize("edit", [{"size": 3}, {"division": "- 3 *"}])
def test_an_edited_policy_outside_the_package_has_a_bank_of_its_own(edit, encoder, tmp_path):
    first = fill(pictures(3), encoder, tmp_path, policy(tmp_path))
    assert fill(pictures(3), encoder, tmp_path, policy(tmp_path)).reused
    second = fill(pictures(3), encoder, tmp_path, policy(tmp_path, **edit))
    assert not second.reused and not torch.equal(second.boxes(0), first.boxes(0))


def test_the_identity_of_the_packages_policies_holds_no_code():
    assert " code " not in as_policy(SAMPLER).identity
    assert " code " in as_policy(policy(Path("/nowhere"))).identity


def test_a_claim_is_released_when_a_fill_fails(encoder, tmp_path, monkeypatch):
    stopped(pictures(8), encoder, tmp_path, monkeypatch, size=4, after=1)
    (top,) = {path.parent for path in tmp_path.rglob("layout.json")}
    folder = ShardFolder(top, top.parent.name, 8, 4)
    assert folder.missing() == [1] and Claims(folder).take(1)
    assert json.loads((top / "layout.json").read_text())["shard_images"] == 4
