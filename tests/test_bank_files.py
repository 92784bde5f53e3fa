"""The files of a bank against what happens to files: shards of two sizes, foreign and damaged files, full disks, passing errors."""

import errno
import importlib
import itertools
import json
import logging
import os
import shutil
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import forked
import lightning as L
import pytest
import torch
from conftest import pictures
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from test_bank import SAMPLER, fill, shard_bytes
from torch.utils.data import Subset, SubsetRandomSampler

from multicrop.crops import as_policy
from multicrop.data.base import StreamedImages
from multicrop.data.images import ImageError, open_image
from multicrop.features import BankProgress, DiskBank, ShardFolder, StopBetweenBatches, bank_identity, feature_bank, local_rank
from multicrop.features.base import EncodeCost
from multicrop.features.fill import EncodeSettings, ShardSampler, ShardWriter, encoding_trainer
from multicrop.features.identity import ViewRecipe
from multicrop.features.manifest import agreed_size, stored_size
from multicrop.features.shards import Claims
from multicrop.features.view_dataset import ViewCutter, ViewDataset, view_loader
from multicrop.files import access, read_facts, write_facts

engine_module, factory_module, fill_module, on_the_fly_module, one_pass_module, shards_module, view_module = (
    importlib.import_module(f"multicrop.features.{name}")
    for name in ("engine", "factory", "fill", "on_the_fly", "one_pass", "shards", "view_dataset")
)


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


def test_a_manifest_is_that_of_its_own_bank(tmp_path, caplog):
    folder = ShardFolder(tmp_path, "key", 10, 4)
    assert folder.manifest() is None and caplog.text == ""
    for other in (replace(folder, key="other"), replace(folder, images=9), replace(folder, size=8)):
        folder.finish({"note": 1})
        assert folder.manifest() == {"note": 1, "key": "key", "images": 10, "shard_images": 4}
        assert other.manifest() is None and not folder.manifest_path.exists()
        folder.manifest_path.with_name("manifest.json.damaged").unlink()
    assert caplog.text.count("is damaged or not the manifest of this bank, and is made again") == 3


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


def test_a_shard_that_cannot_be_opened_for_the_moment_is_not_damaged(bank, quick, encoder, tmp_path, monkeypatch, caplog):
    whole, times = Path.open, []

    def opened(self, *arguments, **knobs):
        if self.name == "shard-00001.safetensors" and len(times) < 2:
            times.append(self)
            raise OSError(errno.EMFILE, "Too many open files")
        return whole(self, *arguments, **knobs)

    monkeypatch.setattr(Path, "open", opened)
    assert fill(pictures(10), encoder, tmp_path).reused and len(times) == 2
    assert caplog.text.count("shard-00001.safetensors cannot be read") == 2


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


class Ticks:
    """A clock that goes on by one second whenever it is read."""

    def __init__(self):
        self.perf_counter = itertools.count(7.0).__next__


def test_the_files_of_a_bank_say_what_it_holds(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "time", Ticks())
    images = replace(pictures(10, "a/b"), open=lambda i: open_image(b"no image") if i == 7 else pictures(10).open(i))
    found = fill(images, encoder, tmp_path, shard_images=4)
    (path,) = tmp_path.rglob("manifest.json")
    identity = bank_identity(images, SAMPLER, encoder, 0)
    assert path.relative_to(tmp_path) == Path("a-b", identity.key, "v4", "manifest.json")
    facts = read_facts(path)
    assert facts.pop("identity") == asdict(identity) and facts.pop("checksum", None) is None
    assert facts == {
        "dataset": "a/b",
        "model": encoder.name,
        "views": 4,
        "seconds": 1.0,
        "crops_per_second": 40.0,
        "precision_on_disk": "fp16",
        "key": identity.key,
        "images": 10,
        "shard_images": 4,
    }
    assert found.cost == EncodeCost(1.0, 40.0) and found.manifest == read_facts(path)
    assert sorted(file.name for file in path.parent.iterdir() if "lock" not in file.name) == [
        "layout.json",
        "manifest.json",
        *(f"shard-0000{index}.safetensors" for index in range(3)),
    ]
    for shard, rows in zip(found.shards, (4, 4, 2), strict=True):
        kinds = {name: (value.dtype, tuple(value.shape)) for name, value in shard.items()}
        views, boxes = (rows, 4, encoder.model.config.projection_dim), (rows, 4, 4)
        assert kinds == {"views": (torch.float16, views), "boxes": (torch.float32, boxes), "readable": (torch.uint8, (rows,))}
    assert found.readable.tolist() == [index != 7 for index in range(10)] and found.positions == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert len(found) == 9 and found.tensors()[1].tolist() == [i % 2 for i in found.positions]


def test_views_of_a_bank_on_disk_have_norm_one_in_float32(bank):
    views = bank.tensors()[0]
    assert views.dtype == torch.float32
    torch.testing.assert_close(views.norm(dim=-1), torch.ones(10, 4), atol=1e-6, rtol=0)


def test_the_time_of_the_last_use_is_that_of_the_manifest(bank, encoder, tmp_path, monkeypatch):
    (path,) = tmp_path.rglob("manifest.json")
    os.utime(path, (5, 5))
    assert fill(pictures(10), encoder, tmp_path).reused and path.stat().st_mtime > 5

    def read_only(path):
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "utime", read_only)
    assert fill(pictures(10), encoder, tmp_path).reused


def test_the_nearest_bank_of_nested_crops_answers(encoder, tmp_path):
    for crops in (8, 12):
        fill(pictures(3), encoder, tmp_path, partial(SAMPLER, n_crops=crops))
    found = fill(pictures(3), encoder, tmp_path)
    assert found.reused and found.manifest["views"] == 9 and found.tensors()[0].shape[1] == 4
    wider = fill(pictures(3), encoder, tmp_path, partial(SAMPLER, n_crops=10))
    assert wider.reused and wider.manifest["views"] == 13
    assert not fill(pictures(3), encoder, tmp_path, partial(SAMPLER, n_crops=13)).reused


@pytest.mark.parametrize("stored", [9, 12])
def test_the_whole_set_is_hashed_for_a_subset_only_where_it_may_have_a_bank(stored, encoder, tmp_path, monkeypatch):
    whole, asked, identity = pictures(9, "a/b"), [], ViewRecipe.identity
    fill(pictures(stored, "a/b"), encoder, tmp_path)
    monkeypatch.setattr(ViewRecipe, "identity", lambda recipe, images, cut: asked.append(len(images)) or identity(recipe, images, cut))
    part = fill(whole.subset([7, 2]), encoder, tmp_path)
    assert part.reused == (stored == 9) and asked == ([9] if part.reused else [2])


def test_a_subset_of_a_bank_is_read_in_its_own_order(encoder, tmp_path):
    whole = replace(pictures(9), open=lambda i: open_image(b"no image") if i == 2 else pictures(9).open(i))
    bank, part = fill(whole, encoder, tmp_path, shard_images=4), fill(whole.subset([7, 2, 5]), encoder, tmp_path)
    assert part.readable.tolist() == [True, False, True] and part.positions == [0, 2] and len(part) == 2
    assert part.rows == [7, 2, 5] and part.cost == bank.cost and part.n_views == 4 and part.images.ids == [whole.ids[i] for i in (7, 2, 5)]
    assert torch.equal(part[1][0], bank[4][0]) and part[1][1:] == (whole.labels[5], 2)


def test_what_a_bank_is_made_with_reaches_it(bank, encoder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(factory_module, "open_or_fill", lambda *words, **knobs: asked.append((*words, knobs)) or bank)
    images, knobs = pictures(3), {"num_workers": 2, "accelerator": "gpu", "cut": "device", "seed": 5, "cache": tmp_path}
    engine = engine_module.LocalEngine()  # another than the default
    feature_bank(images, SAMPLER, encoder, devices=3, progress=False, shard_images=8, engine=engine, **knobs)
    feature_bank(images, SAMPLER, encoder, seed=5, cache=tmp_path)
    made = [EncodeSettings(2, "gpu", 3, "device", False), EncodeSettings()]
    for (found, recipe, cache, settings, size), expected in zip(asked, made, strict=True):
        assert found is images and cache == tmp_path and settings == expected
        assert as_policy(recipe.sampler) == as_policy(SAMPLER) and recipe.encoder.load() is encoder and recipe.seed == 5
        others = {"shard_images": 8, "engine": engine} if expected.devices == 3 else {"shard_images": None, "engine": engine_module.local}
        assert size == others
    elsewhere = engine_module.LocalEngine()
    elsewhere.needs_disk = True
    with pytest.raises(ValueError, match="stores no features"):
        feature_bank(images, SAMPLER, encoder, storage="off", engine=elsewhere, **knobs)
    stream = StreamedImages("s", ["a", "b"], lambda part, parts: iter(()), "f")
    for source in (images, stream):
        bank = feature_bank(source, SAMPLER, encoder, storage="off", **knobs)
        assert (bank.num_workers, bank.accelerator, bank.cutter.cut, bank.cutter.seed, bank.n_views) == (2, "gpu", "device", 5, 4)
        bank = feature_bank(source, SAMPLER, encoder, storage="off", seed=5, cache=tmp_path)
        assert (bank.num_workers, bank.accelerator, bank.cutter.cut) == (0, "cpu", "worker")
        plain = type(bank)(source, bank.module)
        assert (plain.num_workers, plain.accelerator, plain.cutter) == (0, "cpu", bank.cutter)


def test_the_cost_of_reading_is_that_of_encoding_alone(encoder, tmp_path, monkeypatch):
    """The clock goes on by a second while a group is encoded, and by another while its reader works."""
    images = pictures(40)
    stream = StreamedImages("s", ["a", "b"], lambda part, parts: ((images.ids[i], 0, partial(images.open, i)) for i in range(40)), "f")
    for module, source in ((on_the_fly_module, images), (one_pass_module, stream)):
        monkeypatch.setattr(module, "time", Ticks())
        bank = feature_bank(source, SAMPLER, encoder, storage="off", seed=0, cache=tmp_path)
        assert bank.cost == EncodeCost(0.0, 0.0)
        sizes = [len(labels) for _, labels, _ in bank.batches(batch_size=1)]
        assert sizes == [16, 16, 8] and bank.cost == EncodeCost(3.0, 160 / 3)
        if source is images:
            list(bank.batches([3, 4], batch_size=1))
            assert bank.cost == EncodeCost(4.0, 168 / 4)


def test_groups_without_a_readable_image_are_passed_over(encoder, tmp_path):
    images = pictures(40)
    opened = lambda i: open_image(b"no image") if 16 <= i < 32 or i == 3 else images.open(i)  # noqa: E731
    whole = replace(images, open=opened)
    stream = StreamedImages("s", ["a", "b"], lambda part, parts: ((images.ids[i], i % 2, partial(opened, i)) for i in range(40)), "f")
    kept = [i for i in range(40) if i != 3 and not 16 <= i < 32]
    for source in (whole, stream):
        bank = feature_bank(source, SAMPLER, encoder, storage="off", seed=0, cache=tmp_path)
        assert [len(labels) for _, labels, _ in bank.batches(batch_size=1)] == [15, 8]
        assert bank.readable.tolist() == [i in kept for i in range(40)] and len(bank) == 23
        assert bank.cost.crops_per_second == pytest.approx(23 * 4 / bank.cost.seconds)
        assert bank.images.ids == images.ids and bank.labels == [i % 2 for i in bank.positions]


def test_a_trainer_that_encodes_keeps_nothing_and_stops_last():
    trainer = encoding_trainer(callbacks=[first := L.Callback()])
    assert trainer.callbacks[0] is first and isinstance(trainer.callbacks[-1], StopBetweenBatches)
    (bar,) = (callback for callback in trainer.callbacks if isinstance(callback, ProgressBar))
    assert isinstance(bar, BankProgress) and bar.predict_description == "Encoding"
    assert trainer.loggers == [] and trainer.checkpoint_callback is None
    assert not any(isinstance(callback, ModelSummary) for callback in trainer.callbacks)
    assert (trainer.num_devices, type(trainer.strategy)) == (1, SingleDeviceStrategy)
    quiet = encoding_trainer(progress=False, devices=2)
    assert quiet.progress_bar_callback is None and (quiet.num_devices, type(quiet.strategy)) == (2, DDPStrategy)


def test_a_shard_that_is_written_releases_its_own_claim_alone(tmp_path):
    """Workers run ahead: the next shard is claimed before this one is whole."""
    folder = ShardFolder(tmp_path, "key", 6, 4)
    writer = ShardWriter(folder, claims := Claims(folder))
    trainer, module = encoding_trainer(progress=False), L.LightningModule()
    assert claims.take(0) and claims.take(1)
    for index in ([0, 1], [2, 3], [4, 5]):
        views, boxes = torch.full((2, 3, 8), float(index[0])), torch.ones(2, 3, 4)
        group = {"views": views, "boxes": boxes, "readable": torch.tensor([True, False]), "index": torch.tensor(index)}
        writer.write_on_batch_end(trainer, module, group, None, None, 0, 0)
        assert sorted(claims.held) == {1: [0, 1], 3: [1], 5: []}[index[-1]]
    assert writer.written == 6 and writer.groups == [] and folder.missing() == []
    first, last = folder.read(0), folder.read(1)
    assert first["views"][:, 0, 0].tolist() == [0, 0, 2, 2] and last["views"].unique().tolist() == [4]
    assert first["readable"].tolist() == [1, 0, 1, 0]


def test_the_number_of_a_process_among_those_of_a_machine(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_rank() == 3


def test_each_process_of_several_starts_at_its_share_of_the_missing_shards(encoder, tmp_path, monkeypatch):
    order, write = [], ShardFolder.write
    monkeypatch.setattr(ShardFolder, "write", lambda self, index, tensors: order.append(index) or write(self, index, tensors))
    monkeypatch.setattr(fill_module, "encoding_trainer", lambda **knobs: encoding_trainer(**knobs | {"devices": 1}))
    monkeypatch.setenv("LOCAL_RANK", "2")
    fill(pictures(7), encoder, tmp_path, shard_images=1, devices=3)
    assert order == [4, 5, 6, 0, 1, 2, 3]  # 7 * 2 // 3


def test_a_size_is_found_in_the_layout_before_the_manifest(tmp_path):
    assert stored_size(tmp_path) is None
    write_facts(tmp_path / "manifest.json", {"shard_images": 8})
    assert stored_size(tmp_path) == 8 and agreed_size(tmp_path, 2) == 8 and not (tmp_path / "layout.json").exists()
    write_facts(tmp_path / "layout.json", {"shard_images": 4})
    assert stored_size(tmp_path) == 4
    write_facts(tmp_path / "layout.json", {"shard_images": None})
    assert stored_size(tmp_path) == 8


def test_the_boxes_of_the_first_image_that_is_cut_are_checked_and_no_others(encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(view_module, "check_policy", lambda policy, pixels, *rest: asked.append((tuple(pixels.shape[1:]), *rest)))
    cutter, images = ViewCutter(as_policy(SAMPLER), encoder.spec, seed=6), pictures(3)
    pixels, boxes = cutter.views(None, "broken")
    assert pixels == [] and boxes.shape == (4, 4) and not boxes.any() and asked == []
    for index in (1, 2):
        cutter.views(images.open(index), images.ids[index])
    assert asked == [((101, 127), images.ids[1], 6)]


def test_images_are_read_by_one_thread_where_a_tower_looks_at_them(encoder):
    def threads(policy):
        return ViewDataset(pictures(2), ViewCutter(as_policy(policy), encoder.spec, seed=0), group_size=1).threads

    torch.set_num_threads(2)
    try:
        assert threads(SAMPLER) == 2 and threads(replace(as_policy(SAMPLER), looks_at="attention")) == 1
    finally:
        torch.set_num_threads(1)


def test_a_bank_without_images_has_no_rows(tmp_path):
    empty = DiskBank(pictures(0), [], {}, n_views=4, reused=False)
    assert len(empty) == 0 and empty.readable.tolist() == [] and empty.positions == empty.labels == []


def test_what_another_process_has_removed_is_no_error(bank, encoder, tmp_path, monkeypatch):
    check = ShardFolder.check

    def damaged(self):
        monkeypatch.setattr(ShardFolder, "check", check)
        self.manifest_path.unlink()  # the other process found the same damage

    monkeypatch.setattr(ShardFolder, "check", damaged)
    assert torch.equal(fill(pictures(10), encoder, tmp_path).tensors()[0], bank.tensors()[0])
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "shard-00000.lock"]))
    ShardFolder(tmp_path, "key", 10, 4).tidy()


def test_a_damaged_bank_whose_manifest_cannot_be_removed_names_it_and_the_knob(bank, encoder, tmp_path, monkeypatch):
    victim, (manifest,) = next(tmp_path.rglob("shard-00001.safetensors")), tmp_path.rglob("manifest.json")
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    unlink, locks = Path.unlink, []

    def full(self, **knobs):
        if self == manifest:
            locks.extend(path.name for path in manifest.parent.parent.glob("*.lock"))
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        unlink(self, **knobs)

    monkeypatch.setattr(Path, "unlink", full)
    with pytest.raises(OSError, match=rf"cannot write {manifest} .*paths\.cache=FOLDER") as caught:
        fill(pictures(10), encoder, tmp_path)
    assert caught.value.errno == errno.ENOSPC and locks == ["v4.lock"]


def test_a_group_holds_views_or_whole_images_and_may_be_empty(encoder):
    images, side = pictures(3), encoder.spec.side
    here, there = (ViewCutter(as_policy(SAMPLER), encoder.spec, seed=0, cut=cut) for cut in ("worker", "device"))
    for cutter in (here, there):
        group = cutter.group([cutter.views(None, "a"), cutter.views(None, "b")])
        assert group["readable"].tolist() == [False, False] and group["boxes"].shape == (2, 4, 4)
        none = (len(group["pixels"]),) if cutter is there else (tuple(group["pixels"].shape), group["pixels"].dtype)
        assert none == ((0,) if cutter is there else ((0, 3, side, side), torch.uint8))
    rows = [there.views(None, "a"), *(there.views(images.open(i), images.ids[i]) for i in range(2))]
    group = there.group(rows)
    assert [tuple(pixels.shape) for pixels in group["pixels"]] == [(3, 96, 120), (3, 101, 127)]
    assert group["readable"].tolist() == [False, True, True]
    assert here.group([here.views(images.open(0), "a")])["pixels"].shape == (4, 3, side, side)


def test_workers_do_not_get_the_set_that_a_subset_is_of(encoder):
    assert ViewDataset(pictures(4).subset([1, 2]), ViewCutter(as_policy(SAMPLER), encoder.spec, seed=0), group_size=1).images.parent is None


def test_an_image_that_is_read_again_is_named_by_its_id(encoder, quick, tmp_path, caplog):
    images, failures = pictures(3), [1]

    def opened(index):
        if failures and failures.pop():
            raise OSError(errno.ESTALE, "Stale file handle")
        return images.open(index)

    bank = feature_bank(replace(images, open=opened), SAMPLER, encoder, seed=0, cache=tmp_path, storage="off")
    assert bank[2][1:] == (images.labels[2], 2) and "pictures-2 cannot be read (Stale file handle)" in caplog.text
