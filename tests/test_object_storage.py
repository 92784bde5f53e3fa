"""paths.cache in object storage: an S3 server on the loopback, and the same on file://."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import composed, pictures
from refusals import refused
from s3_server import serving

from multicrop import crops
from multicrop.cli import main
from multicrop.data.images import open_image
from multicrop.features import feature_bank
from multicrop.features.remote import RemoteBanks, RemoteShardFolder
from multicrop.files import Objects, ObjectStoreError
from multicrop.runs import experiment

pytest.importorskip("obstore", reason="the extra objects is not installed: pip install -c constraints.txt -e '.[objects]'")
SAMPLER = partial(crops.random, n_crops=3, min_side=0.4, max_side=0.8)
HIDDEN = "a-secret-of-thirty-two-characters"
PAGE = 3  # objects that the server lists at once


@pytest.fixture(scope="module")
def server():
    """An S3 server; the credentials are in the environment alone."""
    with serving(PAGE) as (address, state), pytest.MonkeyPatch.context() as patched:
        known = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": HIDDEN, "AWS_REGION": "us-east-1"}
        for name, value in known.items():
            patched.setenv(name, value)
        yield state


@pytest.fixture(params=["s3", "file"])
def url(request, tmp_path):
    """A new place for banks."""
    if request.param == "file":
        return f"file://{tmp_path}/objects"
    state = request.getfixturevalue("server")
    state.buckets[bucket := f"bucket-{len(state.buckets)}"] = {}
    return f"s3://{bucket}/banks"


def banks(url, local, limit=10**9):
    return RemoteBanks(url, local, limit)


def fill(images, encoder, cache, **knobs):
    return feature_bank(images, SAMPLER, encoder, seed=0, cache=cache, progress=False, **{"shard_images": 2} | knobs)


def stored(url):
    return {found.name.rsplit("/", 1)[-1]: found for found in Objects(url).list()}


def content(url):
    return {found.name: Objects(url).read(found.name) for found in Objects(url).list() if "shard-" in found.name}


def unreadable(images):
    """The same images, none of which can be opened: a bank at hand does not open them."""
    return replace(images, open=lambda index: open_image(b""))


def test_a_bank_has_the_bytes_of_one_on_disk_and_is_read_from_another_machine(url, encoder, tmp_path):
    images = pictures(9)
    whole = fill(images, encoder, banks(url, tmp_path / "here"))
    disk = fill(images, encoder, tmp_path / "disk")
    assert {n.rsplit("/", 1)[-1]: c for n, c in content(url).items()} == {
        p.name: p.read_bytes() for p in (tmp_path / "disk").rglob("shard-*.safetensors")
    }
    assert len(content(url)) == 5 > PAGE and {"manifest.json", "layout.json"} < set(stored(url))
    assert stored(url)["manifest.json"].modified >= max(found.modified for found in stored(url).values())
    there = fill(unreadable(images), encoder, banks(url, tmp_path / "there"), shard_images=4)
    assert there.reused and not whole.reused
    assert torch.equal(there.tensors()[0], disk.tensors()[0]) and torch.equal(there.boxes(8), disk.boxes(8))
    few = fill(unreadable(images).subset([7, 2]), encoder, banks(url, tmp_path / "there"))
    assert few.reused and torch.equal(few.tensors()[0], disk.tensors()[0][[7, 2]])


def test_the_first_writer_of_a_shard_wins(url, tmp_path):
    bank = banks(url, tmp_path)
    folder, other = (banks(url, tmp_path / name).new("data", "key", 1, 4, size=size) for name, size in (("one", 2), ("two", 4)))
    assert folder.size == other.size == 2 and bank.finished("data", "key") == []  # the size is that of the first writer as well
    first, second = ({"readable": torch.full((2,), value, dtype=torch.uint8)} for value in (1, 0))
    folder.write(1, first)
    other.write(1, second)
    assert folder.missing() == other.missing() == [0]
    assert torch.equal(other.read(1)["readable"], first["readable"])


def test_a_damaged_shard_is_encoded_again_and_a_damaged_copy_fetched_again(url, encoder, tmp_path, caplog):
    images = pictures(6)
    clean = fill(images, encoder, banks(url, tmp_path / "here")).tensors()[0]
    before, objects = content(url), Objects(url)
    copy = sorted((tmp_path / "here").rglob("shard-*.safetensors"))[0]
    copy.write_bytes(b"damaged")
    assert torch.equal(fill(unreadable(images), encoder, banks(url, tmp_path / "here")).tensors()[0], clean)
    name = sorted(before)[1]
    objects.delete([name])
    assert objects.create(name, b"damaged")
    again = fill(images, encoder, banks(url, tmp_path / "there"))
    assert torch.equal(again.tensors()[0], clean) and "fails its checksum" in caplog.text
    assert {k: v for k, v in content(url).items() if not k.endswith(".damaged")} == before
    assert objects.read(f"{name}.damaged") == b"damaged"


def test_local_copies_take_no_more_than_their_limit(url, encoder, tmp_path):
    images = pictures(24)
    expected = fill(images, encoder, banks(url, tmp_path / "here")).tensors()[0]
    size = len(next(iter(content(url).values())))
    bank = fill(unreadable(images), encoder, banks(url, tmp_path / "there", limit=4 * size + size // 2))
    assert torch.equal(bank.tensors()[0], expected) and bank.reused
    assert 1 <= len(list((tmp_path / "there").rglob("shard-*.safetensors"))) <= 4


def test_the_bank_command_lists_verifies_and_prunes(url, encoder, tmp_path, capsys):
    fill(pictures(6), encoder, banks(url, tmp_path))
    copies = tmp_path / "other"
    folder = RemoteShardFolder(copies, "key", 4, 2, objects=Objects(url).below("data", "key", "v1"), top=copies, limit=0)
    folder.write(0, {"readable": torch.ones(2, dtype=torch.uint8)})

    def bank(*words, status=0):
        with pytest.raises(SystemExit) as ended:
            main(["bank", *words, "--cache", url])
        assert ended.value.code == status
        return capsys.readouterr().out

    assert f"2 banks in {url}" in bank("list") and f"{url}/data/key/v1" in bank("list", "--json")
    assert "1 banks verified, 0 damaged files, 1 unfinished banks" in bank("verify")
    assert "skipped, a process is filling it" in bank("prune", "--unfinished", "--yes")
    name = next(name for name in sorted(content(url)) if "data" not in name)
    Objects(url).delete([name])
    Objects(url).create(name, b"damaged")
    assert f"damaged: {url}/{name}" in bank("verify", status=1)
    assert "would delete" in bank("prune", "--unused-days", "-1") and len(content(url)) == 4
    assert "deleted" in bank("prune", "--unused-days", "-1", "--yes") and set(content(url)) == {"data/key/v1/shard-00000.safetensors"}


def test_banks_are_copied_to_and_from_a_disk_and_a_copy_that_was_stopped_continues(url, encoder, tmp_path, capsys):
    images, disk, back = pictures(6), tmp_path / "disk", tmp_path / "back"
    expected = fill(images, encoder, disk).tensors()[0]

    def copy(*places, status=0):
        with pytest.raises(SystemExit) as ended:
            main(["bank", "copy", *map(str, places)])
        assert ended.value.code == status
        return capsys.readouterr().out

    assert "1 banks copied and verified, 0 damaged shards" in copy(disk, url) and len(content(url)) == 3
    objects, (first, second, third) = Objects(url), sorted(content(url))
    objects.delete([first, second, stored(url)["manifest.json"].name])
    assert objects.create(second, b"damaged")
    written = stored(url)[third.rsplit("/", 1)[-1]].modified
    copy(disk, url)
    assert objects.read(f"{second}.damaged") == b"damaged" and stored(url)[third.rsplit("/", 1)[-1]].modified == written
    there = fill(unreadable(images), encoder, banks(url, tmp_path / "local"))
    assert there.reused and torch.equal(there.tensors()[0], expected)
    copy(url, back, "--only", first.split("/")[1])
    assert torch.equal(fill(unreadable(images), encoder, back).tensors()[0], expected)
    assert "0 banks copied" in copy(url, tmp_path / "none", "--only", "another-key")
    next(disk.rglob("shard-00001.safetensors")).write_bytes(b"damaged")
    assert "1 damaged shards" in copy(disk, tmp_path / "worse", status=1) and not list((tmp_path / "worse").rglob("manifest.json"))


@pytest.mark.parametrize("words", [["copy", "one"], ["list", "one"]])
def test_copy_takes_two_places_and_other_actions_none(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bank", *words])
    assert ended.value.code == 2 and "FROM TO" in capsys.readouterr().err


def test_a_run_keeps_no_credentials(server, tmp_path, caplog):
    server.buckets[bucket := f"bucket-{len(server.buckets)}"] = {}
    words = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=1", "dataset.validation_images=1", "crop=random_k4"]
    words += ["aggregator=max", "trainer.shard_images=4", "examples=0", "trainer.progress=false", f"paths.output={tmp_path}/runs"]
    there = [f"paths.cache=s3://{bucket}", f"paths.local={tmp_path}/local"]
    accuracy = experiment.run(composed(*words, *there))
    assert accuracy == experiment.run(composed(*words, f"paths.cache={tmp_path}/disk"))
    assert len(content(f"s3://{bucket}")) == 3 and not list((tmp_path / "local").rglob("*.partial*"))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) + caplog.text.encode()
    assert HIDDEN.encode() not in kept and all(HIDDEN.encode() not in (found or b"") for found in content(f"s3://{bucket}").values())
    with refused("credentials", "environment"):
        experiment.run(composed(*words, f"paths.cache=s3://someone:{HIDDEN}@{bucket}/banks"))


def test_a_server_that_is_overloaded_is_asked_again(server):
    server.buckets["overloaded"], server.overloaded = {}, 2
    before = len(server.requests)
    assert Objects("s3://overloaded").create("name", b"content") and server.buckets["overloaded"]["name"][0] == b"content"
    assert len(server.requests) - before == 3


def test_a_place_that_cannot_be_used_is_named(server):
    with refused("s3://no-such-bucket", "Check the bucket", error=ObjectStoreError):
        Objects("s3://no-such-bucket").create("name", b"content")
    with refused("s3://, gs://, az://, file://", "got http://"):
        Objects("http://host/banks")
