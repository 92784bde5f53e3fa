"""Banks, data and records in object storage: servers on the loopback, and the same on file://."""

import json
import pickle
import shutil
import tarfile
from base64 import b64encode
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pytest
import torch
from conftest import composed, pictures
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from object_servers import AzureHandler, GoogleHandler, azure, google
from pyarrow import parquet as pq
from refusals import refused
from s3_server import Handler, amazon, serving
from small_copies import NAMES, make_shards, make_tables

from multicrop import crops
from multicrop.cli import main
from multicrop.compare.collect import collect
from multicrop.compare.parts import compare_parts
from multicrop.config import on_disk, without
from multicrop.data.contents import keep_index_in
from multicrop.data.images import ImageError, open_image
from multicrop.data.sources.shard_urls import streamed
from multicrop.features import feature_bank
from multicrop.features.remote import RemoteBanks, RemoteShardFolder
from multicrop.files import Objects, ObjectStoreError
from multicrop.record import PartFolder, RecordError, parts_at
from multicrop.runs import experiment
from multicrop.runs.settings import settings_of

pytest.importorskip("obstore", reason="the extra objects is not installed: pip install -c constraints.txt -e '.[objects]'")
SAMPLER = partial(crops.random, n_crops=3, min_side=0.4, max_side=0.8)
HIDDEN = "a-secret-of-thirty-two-characters"
PAGE = 3  # objects that a server lists at once
KINDS = {"s3": (Handler, amazon), "gs": (GoogleHandler, google), "az": (AzureHandler, azure)}
EVERY_KIND = pytest.mark.parametrize("url", [*KINDS, "file"], indirect=True)


@pytest.fixture(scope="module")
def servers():
    """A server of each kind; the credentials are in the environment alone."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
        states = {}
        for scheme, (handler, environment) in KINDS.items():
            address, states[scheme] = stack.enter_context(serving(PAGE, handler))
            for name, value in environment(address, HIDDEN).items():
                patched.setenv(name, value)
        yield states


@pytest.fixture(scope="module")
def server(servers):
    """The S3 server."""
    return servers["s3"]


@pytest.fixture(params=["s3", "file"])
def url(request, tmp_path):
    """A new place for banks."""
    if request.param == "file":
        return f"file://{tmp_path}/objects"
    state = request.getfixturevalue("servers")[request.param]
    state.buckets[bucket := f"bucket-{len(state.buckets)}"] = {}
    return f"{request.param}://{bucket}/banks"


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


@EVERY_KIND
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


@EVERY_KIND
def test_a_subset_reads_the_images_of_other_subsets_from_another_machine(url, encoder, tmp_path):
    images, opened = pictures(9), []
    fill(images.subset(range(4)), encoder, banks(url, tmp_path / "here"))
    counted = replace(images, open=lambda index: opened.append(index) or images.open(index)).subset([3, 6, 7, 0])
    part = fill(counted, encoder, banks(url, tmp_path / "there"))
    assert sorted(opened) == [6, 7] and torch.equal(part.tensors()[0], fill(images.subset([3, 6, 7, 0]), encoder, tmp_path).tensors()[0])


@EVERY_KIND
def test_the_first_writer_of_a_shard_wins(url, tmp_path):
    bank = banks(url, tmp_path)
    folder, other = (banks(url, tmp_path / name).new("data", "key", 1, 4, size=size) for name, size in (("one", 2), ("two", 4)))
    assert folder.size == other.size == 2 and bank.finished("data", "key") == []  # the size is that of the first writer as well
    first, second = ({"readable": torch.full((2,), value, dtype=torch.uint8)} for value in (1, 0))
    folder.write(1, first)
    other.write(1, second)
    assert folder.missing() == other.missing() == [0]
    assert torch.equal(other.read(1)["readable"], first["readable"])


@EVERY_KIND
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
    next(disk.rglob("shard-00001.safetensors")).write_bytes(b"damaged" * 10_000)  # the larger bank is copied first
    shutil.copytree(back / "pictures", disk / "later")
    printed, worse = copy(disk, tmp_path / "worse", status=1), tmp_path / "worse"
    assert f"not whole: {worse}/pictures/" in printed and f"copied: {worse}/later/" in printed
    assert "1 banks copied and verified, 1 damaged shards" in printed and not list((worse / "pictures").rglob("manifest.json"))


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


@EVERY_KIND
def test_objects_are_written_once_listed_in_pages_and_deleted(url, request):
    objects, state = Objects(url), request.getfixturevalue("servers").get(url.split(":")[0])
    assert objects.create("a/one", b"first") and not objects.create("a/one", b"second")
    assert (objects.read("a/one"), objects.part("a/one", 1, 3), objects.facts("a/one").size) == (b"first", b"ir", 5)
    assert all(objects.create(f"b/{number}", b"") for number in range(5))
    before = len(state.requests) if state else 0
    assert sorted(found.name for found in objects.list()) == ["a/one", *(f"b/{number}" for number in range(5))]
    assert state is None or len(state.requests) - before == 6 / PAGE
    assert objects.folders() == ["a", "b"] and objects.folders("b") == []
    objects.move("b/0", "b/0.damaged")
    objects.move("b/none", "b/1")
    objects.delete(["b/1", "b/none", "b/2"])
    assert sorted(found.name for found in objects.list("b")) == ["b/0.damaged", "b/3", "b/4"]
    assert objects.read("none") is None and objects.facts("none") is None
    with pytest.raises(FileNotFoundError):
        objects.part("none", 0, 1)


@pytest.mark.parametrize("scheme", KINDS)
def test_a_server_that_is_overloaded_is_asked_again_and_one_that_refuses_is_named(servers, scheme, monkeypatch):
    state, objects = servers[scheme], Objects(f"{scheme}://overloaded")
    state.buckets["overloaded"], before = {}, len(state.requests)
    for act in (lambda: objects.create("name", b"content"), lambda: objects.read("name") == b"content", lambda: [*objects.list()]):
        state.overloaded = 2
        assert act() and not state.overloaded
    assert len(state.requests) - before == 9
    with refused(f"{scheme}://no-such-bucket/name", "Check the bucket", error=ObjectStoreError):
        Objects(f"{scheme}://no-such-bucket").create("name", b"content")
    monkeypatch.setattr(state, "forbidden", True)
    with pytest.raises(ObjectStoreError, match="Check the bucket, its address and the credentials") as told:
        objects.read("name")
    assert HIDDEN not in str(told.value) and b64encode(HIDDEN.encode()).decode() not in str(told.value)


def test_a_bank_is_filled_while_the_bucket_is_overloaded(server, encoder, tmp_path):
    server.buckets["busy"], server.every = {}, 3  # each third request is answered by 503
    try:
        fill(pictures(6), encoder, banks("s3://busy/banks", tmp_path / "here"))
    finally:
        server.every = 0
    fill(pictures(6), encoder, tmp_path / "disk")
    on_disk = {path.name: path.read_bytes() for path in (tmp_path / "disk").rglob("shard-*.safetensors")}
    assert {name.rsplit("/", 1)[-1]: found for name, found in content("s3://busy/banks").items()} == on_disk


def test_a_place_that_cannot_be_used_is_named(servers, monkeypatch):
    with refused("s3://, gs://, az://, file://", "got http://"):
        Objects("http://host/banks")
    for scheme in KINDS:
        for place in (f"{scheme}://someone:{HIDDEN}@bucket/banks", f"{scheme}://bucket/banks?sig={HIDDEN}"):
            with pytest.raises(ValueError, match="holds credentials") as told:
                Objects(place)
            assert HIDDEN not in str(told.value)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with refused("az://elsewhere/name", "Account must be specified", "credentials in the environment", error=ObjectStoreError):
        Objects("az://elsewhere").read("name")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", HIDDEN)
    with pytest.raises(ObjectStoreError, match="gs://elsewhere/name cannot be used") as told:
        Objects("gs://elsewhere").read("name")
    assert HIDDEN not in str(told.value)


def put_folder(folder, url):
    """The address of a copy of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert Objects(url).create(str(path.relative_to(folder)), path.read_bytes())
    return url


def loaded(*words):
    try:
        return instantiate(without(composed(*words).dataset, "facts"))
    except InstantiationException as error:
        raise error.__cause__ from None


def empty_tar(folder):
    folder.mkdir()
    tarfile.open(folder / "none.tar", "w").close()
    return folder


FORMS = {
    "bytes": lambda root: make_tables(root, hashes=False),
    "locations": lambda root: make_tables(root, held=False, hashes=False),
    "hashes": lambda root: make_tables(root, held=False),
    "tar": make_shards,
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_a_bucket_are_those_of_a_folder(form, url, tmp_path):
    words = FORMS[form](tmp_path / "data")
    top = put_folder(tmp_path / "data", url)
    there = [word.replace(f"{tmp_path}/data", top) for word in words]
    for split in ("train", "test"):
        one, other = (getattr(loaded(*some), split) for some in (words, there))
        assert list(one.ids) == list(other.ids) and list(one.labels) == list(other.labels) and one.fingerprint == other.fingerprint
        copy = pickle.loads(pickle.dumps(other))  # noqa: S301
        assert [copy.open(i).tobytes() for i in range(len(one))] == [one.open(i).tobytes() for i in range(len(one))]


def test_locations_of_a_table_may_be_addresses_and_an_object_that_changed_is_hashed_again(url, tmp_path):
    words = make_tables(tmp_path / "data", held=False, hashes=False)
    put_folder(tmp_path / "data" / "images", url)
    for path in (tmp_path / "data" / "tables").glob("*.parquet"):
        rows = pq.read_table(path).to_pydict()
        pq.write_table(pa.table(rows | {"location": [f"{url}/{place.rpartition('/')[2]}" for place in rows["location"]]}), path)
    keep_index_in(tmp_path / "index")
    images = loaded(*words).test
    before = images.fingerprint
    assert images.open(0).size
    place = pq.read_table(sorted((tmp_path / "data" / "tables").glob("test-*"))[0])["location"][0].as_py().rpartition("/")[2]
    Objects(url).delete([place])
    with pytest.raises(FileNotFoundError, match=place):
        images.open(0)
    Objects(url).create(place, b"other")
    changed = loaded(*words).test
    assert changed.fingerprint != before
    with pytest.raises(ImageError, match=place):
        changed.open(0)


def test_an_error_of_the_storage_is_no_fault_of_an_image(server, tmp_path, monkeypatch):
    server.buckets[bucket := f"bucket-{len(server.buckets)}"] = {}
    words = make_tables(tmp_path / "data", held=False, hashes=False)
    top = put_folder(tmp_path / "data", f"s3://{bucket}/data")
    there = [word.replace(f"{tmp_path}/data", top) for word in words]
    images = loaded(*there).test
    monkeypatch.setattr(server, "forbidden", True)
    with refused(f"s3://{bucket}", "Check the bucket", error=ObjectStoreError):
        images.open(0)


def test_shards_of_a_bucket_are_read_as_a_stream(url, tmp_path):
    make_shards(tmp_path / "data")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    top = put_folder(tmp_path / "data", url)
    words = ["dataset=webdataset", "dataset.streaming=true", f"dataset.class_names={tmp_path}/names.json"]
    streams = [loaded(*words, f'dataset.test="{place}/test-*.tar"').test for place in (tmp_path / "data", top)]
    one, other = ([(name, label, image.tobytes()) for name, label, image in stream] for stream in streams)
    assert one == other and len(one) > 4
    with refused("do not exist", "dataset.test"):
        loaded(*words, f'dataset.test="{top}/train.tar"')
    empty = empty_tar(tmp_path / "empty")
    for place in (str(empty), f"{put_folder(empty, url + '/empty')}"):
        with refused("hold no samples"):
            list(streamed([f"{place}/none.tar"]))


SMALL = ["dataset.n_classes=4", "dataset.test_images=5", "dataset.train_images=1", "dataset.validation_images=1", "crop=random_k4"]
SMALL += ["aggregator=max", "trainer.shard_images=8", "trainer.progress=false", "examples=0", "pictures=0", "logger=none"]


def test_records_are_put_in_a_bucket_and_compared_from_there(url, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MULTICROP_LOCAL", str(tmp_path / "copies"))
    words = [*SMALL, f"paths.cache={tmp_path}/banks", f"paths.local={tmp_path}/local"]
    for name in ("score", "zero_shot"):
        run = [f"task={name}", *words]
        assert experiment.run(composed(*run, f"paths.output={url}/{name}")) == experiment.run(
            composed(*run, f"paths.output={tmp_path}/disk/{name}")
        )
    here = tmp_path / "disk" / "score" / "predictions.parquet"
    there = Objects(url).below("score", "predictions.parquet")
    assert {f.name: there.read(f.name) for f in there.list()} == {p.name: p.read_bytes() for p in here.iterdir()}
    listed = {found.name: found.modified for found in Objects(url).below("score").list()}
    assert listed["manifest.json"] == max(listed.values()) and "config.yaml" in listed
    assert not list((tmp_path / "local").rglob("part-*"))
    assert all(HIDDEN.encode() not in (Objects(url).read(found.name) or b"") for found in Objects(url).list())

    copied, problems = collect([url])
    same = collect([tmp_path / "disk"])[0]
    assert not problems and sorted(r.metrics["images"] for r in copied) == sorted(r.metrics["images"] for r in same)
    assert [r.sorted_predictions.correct().tolist() for r in copied] == [r.sorted_predictions.correct().tolist() for r in same]
    assert pickle.loads(pickle.dumps(parts_at(f"{url}/score"))).total() == PartFolder.read(here).total()  # noqa: S301
    expected = compare_parts(PartFolder.read(here), PartFolder.read(here), baseline_row="global")
    assert compare_parts(parts_at(f"{url}/score"), PartFolder.read(here), baseline_row="global") == expected
    with pytest.raises(SystemExit) as ended:
        main(["compare", f"{url}/score", "--parts", "--baseline", "global"])
    assert ended.value.code == 0 and f"{expected.rescued}/{expected.lost}" in capsys.readouterr().out
    with refused("holds a finished record", "hydra.run.dir"):
        experiment.run(composed("task=score", *words, f"paths.output={url}/score"))
    Objects(url).delete([found.name for found in Objects(url).list() if found.name.startswith("zero_shot/")])
    assert [run.folder.name for run in collect([url])[0]] == ["score"]


def test_a_run_that_was_stopped_goes_on_with_the_parts_in_the_bucket(url, tmp_path):
    words = ["task=score", *SMALL, f"paths.cache={tmp_path}/banks", f"paths.output={url}"]
    experiment.run(composed(*words, f"paths.local={tmp_path}/one"))
    parts, whole = Objects(url).below("predictions.parquet"), {found.name: Objects(url).read(found.name) for found in Objects(url).list()}
    names = sorted(found.name for found in parts.list() if found.name.startswith("part-"))
    assert len(names) == 3
    Objects(url).delete(["manifest.json", "metrics.json"])
    parts.delete(names[:2])
    assert parts.create(names[1], b"damaged") and parts.create("part-0000009.parquet", b"of an earlier run")
    kept = {found.name: found.modified for found in parts.list()}[names[2]]
    experiment.run(composed(*words, f"paths.local={tmp_path}/another_machine"))
    again = {found.name: Objects(url).read(found.name) for found in Objects(url).list()}
    assert set(again) == set(whole)
    assert all(again[f"predictions.parquet/{name}"] == whole[f"predictions.parquet/{name}"] for name in names)
    assert {found.name: found.modified for found in parts.list()}[names[2]] == kept
    parts.delete(names[:1])
    with refused("1 of 3 parts are missing", error=RecordError):
        parts_at(url).total()


def test_a_place_of_records_with_credentials_is_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="holds credentials") as told:
        experiment.run(composed(*SMALL, f"paths.output=s3://someone:{HIDDEN}@bucket/runs"))
    assert HIDDEN not in str(told.value) and not list(tmp_path.iterdir())
    assert on_disk("file:///a/b/", ".cache/local") == ".cache/local/outputs/file/a/b" and on_disk("outputs", "x") == "outputs"


def test_records_lie_below_the_place_as_their_folders_do(tmp_path):
    settings = settings_of(composed(*SMALL, "paths.output=s3://bucket/runs", f"paths.local={tmp_path}"))
    top = settings.outputs
    assert top == tmp_path / "outputs" / "s3" / "bucket" / "runs" and settings.record_place.url == "s3://bucket/runs"
    assert replace(settings, output=top / "2026-01-01" / "12").record_place.url == "s3://bucket/runs/2026-01-01/12"
    assert replace(settings, output=tmp_path / "large").record_place.url == "s3://bucket/runs/large"
    assert settings_of(composed(*SMALL)).record_place is None
