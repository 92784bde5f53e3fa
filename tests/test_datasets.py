"""Sources of images: each form on a small copy, read whole and run end to end; what users get wrong; labels proven by name."""

import io
import json
import pickle
from pathlib import Path

import datasets as hf_datasets
import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from conftest import CONF, composed, load, options
from hydra.utils import instantiate
from PIL import Image
from refusals import refused
from small_copies import (
    MAKERS,
    NAMES,
    SPLITS,
    make_aircraft,
    make_cars,
    make_coop,
    make_csv,
    make_parquet,
    make_shards,
    make_tables,
    make_tar,
    picture,
    samples,
    write,
)
from torch.utils.data import DataLoader

from multicrop.data.base import StreamedImages
from multicrop.data.classes import ClassList, classes_of, match, packaged
from multicrop.data.few_shot import few_shot_from_file, few_shot_split
from multicrop.data.images import ImageError
from multicrop.data.sources.hf_load import hub_facts
from multicrop.data.sources.parquet_columns import Column, Tables
from multicrop.data.sources.parquet_contents import repeated
from multicrop.runs.experiment import run
from multicrop.text import prompts_of
from multicrop.text.class_names import plain, shown_name
from multicrop.text.descriptions import available, load_description_set
from multicrop.text.sources import class_texts


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    hf_datasets.disable_progress_bars()


@pytest.mark.parametrize("form", MAKERS)
class TestForms:
    def test_the_same_images_and_labels_whatever_the_form(self, form, tmp_path):
        data = load(*MAKERS[form](tmp_path / "data"))
        assert data.class_names == NAMES
        for split in SPLITS:
            images, expected = getattr(data, split), [(label, content) for s, label, _, content in samples() if s == split]
            assert len(images) == len(set(images.ids)) == len(expected)
            got = sorted((label, images.open(i).tobytes()) for i, label in enumerate(images.labels))
            assert got == sorted((label, Image.open(io.BytesIO(content)).tobytes()) for label, content in expected)

    def test_fingerprint_knows_content_but_not_place(self, form, tmp_path):
        one, same = load(*MAKERS[form](tmp_path / "one" / "data")), load(*MAKERS[form](tmp_path / "two" / "data"))
        assert one.test.ids == same.test.ids and one.test.fingerprint != one.train.fingerprint
        moved = tmp_path / "moved"
        (tmp_path / "one").rename(moved)
        arguments = [o.replace(str(tmp_path / "one"), str(moved)) for o in MAKERS[form](tmp_path / "one" / "data")]
        assert load(*arguments).test.fingerprint == one.test.fingerprint

    def test_open_survives_pickling_for_spawned_workers(self, form, tmp_path):
        images = load(*MAKERS[form](tmp_path / "data")).test
        copy = pickle.loads(pickle.dumps(images))  # noqa: S301
        assert copy.open(1).tobytes() == images.open(1).tobytes()


QUICK = [
    "prompt=template",
    "aggregator=global",
    "crop=random_k1",
    "logger=none",
    "trainer.progress=false",
    "trainer.threads=1",
    "pictures=0",
]
RUN_EACH = """
import json, sys
from hydra import compose, initialize_config_dir
from multicrop.config import register_resolvers
from multicrop.runs.experiment import run
register_resolvers()
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    for overrides in json.loads(sys.argv[2]):
        run(compose("config", overrides=overrides))
"""


def test_few_shot_runs_on_every_form_and_its_record_repeats_the_splits(tmp_path):
    places = {form: [f"paths.output={tmp_path}/{form}-out", f"paths.cache={tmp_path}/banks"] for form in MAKERS}
    made = {form: make(tmp_path / form) for form, make in MAKERS.items()}
    jobs = [["task=few_shot", "task.shots=1", *QUICK, *made[form], *places[form]] for form in MAKERS]
    done = forked.run([CONF, json.dumps(jobs)], code=RUN_EACH)
    assert done.returncode == 0, done.stderr[-3000:]
    for form in MAKERS:
        record, data = tmp_path / f"{form}-out", load(*made[form])
        table = pq.read_table(record / "predictions.parquet").to_pydict()
        right = [p == label for p, label in zip(table["final_prediction"], table["label"], strict=True)]
        accuracy = json.loads((record / "metrics.json").read_text())["rows"]["final"]["accuracy"]
        assert accuracy == pytest.approx(sum(right) / 6) and len(right) == 6
        read = few_shot_from_file(data, str(record / "splits.json"))
        drawn = few_shot_split(data, shots=1, seed=1)
        assert [part.ids for part in read] == [part.ids for part in drawn] and len(read[0]) == len(read[1]) == 3


def test_the_command_takes_a_file_of_few_shot_splits(tmp_path):
    arguments = [*make_csv(tmp_path / "data"), f"paths.output={tmp_path}/out", f"paths.cache={tmp_path}/banks"]
    data = load(*arguments)
    chosen = {"train": [data.train.ids[i] for i in (1, 4, 7)], "val": data.validation.ids[:1]}
    arguments += ["task=few_shot", f"task.few_shot_file={write(tmp_path / 'split.json', chosen)}", f"hydra.run.dir={tmp_path}/out"]
    done = forked.run([*arguments, *QUICK])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 images, 3 classes" in done.stdout and json.loads((tmp_path / "out" / "splits.json").read_text()) == chosen


class TestNames:
    def test_plain_form(self):
        assert plain("001.Black_footed_Albatross") == plain("Black-footed Albatross") == "black footed albatross"
        assert plain("/a/apartment_building/outdoor") == plain("apartment_building-outdoor")
        assert plain("F/A-18") == "f a 18" and plain("Straße") == "strasse" and plain("737-400") == "737 400"

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("/a/airport_terminal", "airport terminal"), ("apartment_building/outdoor", "apartment building outdoor"),
            ("001.Black_footed_Albatross", "Black footed Albatross"), ("F-16A/B", "F-16A/B"), ("F/A-18", "F/A-18"),
            ("2012 Ram C/V Cargo Van Minivan", "2012 Ram C/V Cargo Van Minivan"), ("+", "+"),
        ],
    )  # fmt: skip
    def test_a_slash_of_the_name_stays_and_one_of_a_path_goes(self, name, shown):
        assert shown_name(name) == shown and plain(shown) == plain(name)

    @pytest.mark.parametrize("name", available())
    def test_every_packaged_class_finds_its_descriptions_as_it_is_shown(self, name):
        listed, texts = packaged(name), load_description_set(name).descriptions
        rows = class_texts(listed.names, {}, description_set=name, class_keys=listed.keys)
        assert rows == list(texts.values())
        jack = [i for i, title in enumerate(listed.names) if "jack" in title and "lantern" in title]
        assert all(class_texts(["jack o lantern"], {}, description_set=name) == [rows[i]] for i in jack)

    @pytest.mark.parametrize(("make", "slash"), [(make_aircraft, {"F-16A/B", "F/A-18"}), (make_cars, {"2012 Ram C/V Cargo Van Minivan"})])
    def test_names_with_a_slash_run_through_to_prompts(self, make, slash, tmp_path):
        overrides = make(tmp_path)
        data = load(*overrides)
        prompts = prompts_of(instantiate(composed(*overrides).prompt), data.class_names, data.descriptions, data.class_keys)
        assert slash <= set(data.class_names) and all(len(row) > 8 for row in prompts)
        for name in slash:
            row = prompts[data.class_names.index(name)]
            assert name in row[0] and all(text.startswith(f"{name}, which ") for text in row[1:])

    @pytest.mark.parametrize("name", available())
    def test_packaged_lists_match_themselves_in_any_order_and_spelling(self, name):
        listed = packaged(name)
        found = [title.upper().replace(" ", "_") for title in reversed(listed.names)]
        assert match(found, listed, what="x", reference=name) == list(reversed(range(len(found))))

    def test_imagenet_tells_its_twins_apart_by_wnid(self):
        listed = packaged("imagenet1k")
        assert len(set(listed.names)) == 1000 and listed.keys == sorted(listed.keys)
        found = match(["n04008634", "n03773504", "n04356056", "n04355933"], listed, what="x", reference="y", subset=True)
        assert [listed.names[i] for i in found] == ["projectile", "missile", "sunglasses", "sunglass"]
        wnids = {name: listed.keys[i] for i, name in enumerate(listed.names)}
        assert wnids["crane bird"] == "n02012849" and wnids["construction crane"] == "n03126707"

    def test_a_mismatch_shows_both_lists(self):
        words = [
            "a (3 classes) and b (3 classes)",
            "1  cow",
            "| dog",
            "only in the first (1): cow",
            "only in the second (1): dog",
            "aliases",
        ]
        with refused(*words):
            match(["cat", "cow", "okapi"], ClassList(["cat", "dog", "okapi"]), what="a", reference="b")

    def test_two_of_the_data_for_one_of_the_list(self):
        with refused("several of the first name one class of the second (1): Dog and dog_ are dog"):
            match(["cat", "Dog", "dog_"], ClassList(["cat", "dog", "okapi"]), what="a", reference="b")

    def test_one_name_for_two_classes(self):
        with refused("one name for several classes (0: polar bear; 1: Polar Bear)", "stable key"):
            classes_of(["polar_bear", "Polar Bear"], what="a", classes=None, class_names=None)

    def test_the_order_of_a_list_of_names_does_not_matter(self, tmp_path):
        names = write(tmp_path / "names.json", ["Okapi", "the cat", "Dog"])
        arguments = [f"dataset.class_names={names}", "dataset.aliases={cat: the cat}"]
        for form in ("folder", "csv", "hf", "webdataset"):
            data = load(*MAKERS[form](tmp_path / form), *arguments)
            assert data.class_names == ["the cat", "Dog", "Okapi"]

    @pytest.mark.parametrize("form", ["folder", "csv", "hf", "webdataset", "coop"])
    def test_a_list_of_other_names_is_refused(self, form, tmp_path):
        names = write(tmp_path / "names.json", ["cat", "dog", "zebra"])
        with refused("only in the first (1): okapi", "only in the second (1): zebra"):
            load(*MAKERS[form](tmp_path / form), f"{'+' if form == 'coop' else ''}dataset.class_names={names}")

    def test_bare_numbers_want_names_in_label_order(self, tmp_path):
        arguments = make_parquet(tmp_path / "data", label="number")
        with refused("bare numbers and nothing names them", "dataset.class_names=FILE"):
            load(*arguments)
        with refused("bare numbers", "food101 is not in the order"):
            load(*arguments, "dataset.classes=food101")
        with refused("out of range: 2;", "2 class names make 0 to 1"):
            load(*arguments, f"dataset.class_names={write(tmp_path / 'two.json', ['cat', 'dog'])}")
        assert load(*arguments, f"dataset.class_names={write(tmp_path / 'three.json', ['a', 'b', 'c'])}").class_names == ["a", "b", "c"]

    def test_coop_labels_keep_their_own_order(self, tmp_path):
        data = load(*make_coop(tmp_path, order=(2, 0, 1)))
        assert data.class_names == ["okapi", "cat", "dog"]
        assert {(path.split("/")[0], data.class_names[label]) for path, label in zip(data.test.ids, data.test.labels, strict=True)} == {
            (name, name) for name in NAMES
        }


class TestStreams:
    def arguments(self, form, tmp_path):
        if form == "hf":
            return [*make_parquet(tmp_path / "data"), "dataset.streaming=true"]
        names = write(tmp_path / "names.json", NAMES)
        return [*make_shards(tmp_path / "data", numbers=True), "dataset.streaming=true", f"dataset.class_names={names}"]

    @pytest.mark.parametrize("form", ["hf", "webdataset"])
    def test_a_stream_gives_the_images_of_the_index(self, form, tmp_path):
        arguments = self.arguments(form, tmp_path)
        stream, indexed = load(*arguments).test, load(*arguments, "dataset.streaming=false").test
        assert isinstance(stream, StreamedImages) and stream.class_names == NAMES
        assert stream.indexed is False and indexed.indexed is True
        got = [(image_id, label, image.tobytes()) for image_id, label, image in stream]
        assert got == [(image_id, indexed.labels[i], indexed.open(i).tobytes()) for i, image_id in enumerate(indexed.ids)]

    @pytest.mark.parametrize("form", ["hf", "webdataset"])
    @pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (3, 0), (2, 2)])
    def test_ranks_and_workers_see_every_image_once(self, form, world_size, workers, tmp_path):
        stream = load(*self.arguments(form, tmp_path)).test
        seen = []
        for rank in range(world_size):
            part = StreamedImages(stream.name, stream.class_names, stream.source, stream.fingerprint, rank, world_size)
            seen += [image_id for image_id, _, _ in DataLoader(part, batch_size=None, num_workers=workers, collate_fn=lambda item: item)]
        assert sorted(seen) == sorted(image_id for image_id, _, _ in stream) and len(seen) == 6

    @pytest.mark.parametrize("form", ["hf", "webdataset"])
    def test_an_experiment_scores_a_stream_in_passing(self, form, tmp_path):
        words = ["prompt=template", "aggregator=global", "crop=random_k1", "trainer.progress=false", *self.arguments(form, tmp_path)]
        paths = [f"paths.output={tmp_path}/o", f"paths.cache={tmp_path}/c"]
        streamed = run(composed(*words, "bank=off", *paths))
        assert streamed == run(composed(*words, "dataset.streaming=false", *paths))
        with refused("is a stream", "bank=off", "dataset.streaming=false"):
            run(composed(*words, *paths))


class TestCsvRefuses:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (["dataset.file=/nowhere.csv"], ["/nowhere.csv does not exist", "path and label"]),
            (["dataset.label_column=klass"], ["no column klass", "path, label, split", "dataset.label_column"]),
            (["dataset.split_column=fold"], ["no column fold", "path, label, split", "dataset.split_column=null"]),
            (["dataset.root=/nowhere"], ["images", "do not exist", "dataset.root"]),
            (["dataset.test=x.csv"], ["dataset.file=CSV, or dataset.test=CSV"]),
            (["dataset.delimiter=|"], ["no column path, label", "dataset.delimiter"]),
        ],
    )
    def test_knobs(self, change, words, tmp_path):
        with refused(*words):
            load(*make_csv(tmp_path), *change)

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ([], ["has no rows"]),
            ([("images/test-0-0.png", "", "test")], ["lacks a path or a label in line 2"]),
            ([("images/test-0-0.png", "cat", "exam"), ("images/test-1-0.png", "dog", "test")], ["splits 'exam'", "train, val or test"]),
            ([("images/test-0-0.png", "cat", "train"), ("images/test-1-0.png", "dog", "train")], ["no test rows", "split_column=null"]),
            (
                [("images/test-0-0.png", "cat", "test"), ("images/test-1-0.png", "dog", "train")],
                ["1 of 2 classes have no test image", "dog"],
            ),
            (
                [("images/test-0-0.png", "cat", "test")] * 2 + [("images/test-1-0.png", "dog", "test")],
                ["ids", "repeat: images/test-0-0.png"],
            ),
            ([("images/test-0-0.png", "cat", "test")], ["1 classes (cat)", "two or more"]),
            ([("images/none.png", "cat", "test"), ("images/test-1-0.png", "dog", "test")], ["1 of the 2 images", "none.png"]),
            ([("images/test-0-0.png", "0", "test"), ("images/test-1-0.png", "1", "test")], ["bare numbers", "dataset.class_names"]),
        ],
    )
    def test_rows(self, rows, words, tmp_path):
        with refused(*words):
            load(*make_csv(tmp_path, rows=rows))

    def test_labels_out_of_range(self, tmp_path):
        rows = [("images/test-0-0.png", "0", "test"), ("images/test-1-0.png", "3", "test")]
        with refused("labels out of range: 3", "Labels count from 0"):
            load(*make_csv(tmp_path, rows=rows), f"dataset.class_names={write(tmp_path / 'names.json', ['cat', 'dog'])}")

    def test_without_a_split_column_a_test_part_is_drawn(self, tmp_path):
        data = load(*make_csv(tmp_path), "dataset.split_column=null", "dataset.test_share=0.25")
        assert [len(part) for part in (data.train, data.validation, data.test)] == [15, 0, 6]
        assert not set(data.train.ids) & set(data.test.ids)


class TestShardsRefuse:
    def test_torn(self, tmp_path):
        arguments = make_shards(tmp_path)
        shard = tmp_path / "test-001.tar"
        shard.write_bytes(shard.read_bytes()[:700])
        with refused("test-001.tar", "download it again"):
            load(*arguments)

    def test_compressed_or_no_tar(self, tmp_path):
        arguments = make_shards(tmp_path)
        write(tmp_path / "test-000.tar", "no tar" * 200)
        with refused("test-000.tar", "not a complete, uncompressed tar file"):
            load(*arguments)

    def test_missing(self, tmp_path):
        arguments = make_shards(tmp_path)
        (tmp_path / "test-001.tar").unlink()
        with refused("1 shards do not exist", "test-001.tar", "dataset.streaming=true"):
            load(*arguments)

    def test_a_label_without_image_and_a_key_that_is_not_there(self, tmp_path):
        arguments = make_shards(tmp_path)
        with refused("5 images and 0 labels (.txt)", "dataset.label_key"):
            load(*arguments, "dataset.label_key=txt")
        make_tar(tmp_path / "test-001.tar", [("a.png", picture(1)), ("a.cls", b"cat"), ("b.cls", b"dog")])
        with refused("1 images and 2 labels", "without the other: b"):
            load(*arguments)

    @pytest.mark.parametrize("label", [b"\xff\xfe", b"", b"{}", b'{"label": true}'])
    def test_labels_that_are_none(self, label, tmp_path):
        make_tar(tmp_path / "t.tar", [("a.png", picture(1)), ("a.json", label)])
        with refused("a.json", "holds"):
            load("dataset=webdataset", f"dataset.test={tmp_path}/t.tar", "dataset.label_key=json")

    def test_folders_in_tars_and_json_labels_are_read_and_spoilt_images_say_where(self, tmp_path):
        members = [("x/a.jpg", picture(1)), ("x/a.json", b'{"label": "cat"}'), ("y/a.png", b"spoilt"), ("y/a.json", b'{"label": "dog"}')]
        make_tar(tmp_path / "t.tar", members)
        images = load("dataset=webdataset", f"dataset.test={tmp_path}/t.tar", "dataset.label_key=json").test
        assert images.ids == ["x/a", "y/a"] and images.open(0).size == (32, 32)
        with refused("y/a in t.tar", "cannot be decoded", error=ImageError):
            images.open(1)


class TestHfRefuses:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (["dataset.test=exam"], ["no split exam", "train, validation", "dataset.test"]),
            (["dataset.image_column=img"], ["no column img", "image, label", "dataset.image_column"]),
            (["dataset.id_column=key"], ["no column key", "dataset.id_column"]),
            (["dataset.path=null"], ["dataset.path", "hub id"]),
        ],
    )
    def test_knobs(self, change, words, tmp_path):
        with refused(*words):
            load(*make_parquet(tmp_path / "data"), *change)

    def test_a_file_that_is_no_parquet(self, tmp_path):
        with refused("cannot be loaded", "parquet"):
            load("dataset=hf", f"dataset.path={write(tmp_path / 'test.parquet', 'no')}", "dataset.train=null")

    def test_labels_as_text_one_file_alone_and_a_cell_without_image(self, tmp_path):
        make_parquet(tmp_path / "data", label="text")
        alone = ["dataset=hf", f"dataset.path={tmp_path}/data/test-00000-of-00001.parquet", "dataset.train=null"]
        data = load(*alone)
        assert data.class_names == NAMES and len(data.test) == 6 and len(data.train) == 0
        with refused("row 0 of data/test", "no image but int", error=ImageError):
            from multicrop.data.sources.hf import open_value

            open_value(3, "row 0 of data/test")

    def test_saved_to_disk(self, tmp_path):
        make_parquet(tmp_path / "data")
        files = {split: str(tmp_path / "data" / f"{split}-00000-of-00001.parquet") for split in SPLITS}
        hf_datasets.load_dataset("parquet", data_files=files).save_to_disk(tmp_path / "saved")
        data = load("dataset=hf", f"dataset.path={tmp_path}/saved", "dataset.validation=validation")
        assert data.class_names == NAMES and len(data.test) == 6 and data.test.open(0).size == (32, 32)


class TestCoopRefuses:
    def change(self, tmp_path, edit):
        arguments = make_coop(tmp_path)
        file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
        table = json.loads(file.read_text())
        edit(table)
        write(file, table)
        return arguments

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda t: t.pop("val"), ["lacks a split", "train, val, test"]),
            (lambda t: t["test"].append(["cat/x.png", 0]), ["has the row", "[path, label, class name]"]),
            (lambda t: t["test"].append(["../x.png", 0, "cat"]), ["'../x.png'", "below the folder of images"]),
            (lambda t: t["test"].append(["cat/x.png", 0, "cow"]), ["label 0 both 'cat' and 'cow'"]),
            (lambda t: t["test"].append(["cat/x.png", 5, "cow"]), ["label 3 missing", "without gaps"]),
            (lambda t: t["test"].append(["cat/x.png", 0, "cat"]), ["cat/x.png", "do not exist"]),
            (lambda t: t["test"].append(t["test"][0]), ["repeat: cat/test-0.png"]),
        ],
    )
    def test_rows(self, edit, words, tmp_path):
        arguments = self.change(tmp_path, edit)
        with refused(*words):
            load(*arguments)

    def test_other_classes_than_the_packaged_list(self, tmp_path):
        with refused("3 classes", "the packaged list dtd (47 classes)", "only in the first (3): cat, dog, okapi", "banded"):
            load(*make_coop(tmp_path), "dataset.classes=dtd")


class TestFewShotFile:
    @pytest.fixture
    def data(self, tmp_path):
        return load(*make_coop(tmp_path))

    def test_paths_rows_of_coop_and_ids(self, data, tmp_path):
        train = [["/home/me/dtd/images/cat/train-0.png", 0, "cat"], "images/dog/train-1.png", "okapi/train-2.png"]
        file = write(tmp_path / "split.json", {"train": train, "val": ["cat/validation-0.png"]})
        support, validation = few_shot_from_file(data, str(file))
        assert support.ids == ["cat/train-0.png", "dog/train-1.png", "okapi/train-2.png"] and support.labels == [0, 1, 2]
        assert validation.ids == ["cat/validation-0.png"]

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ({"train": ["cat/train-0.png"], "val": ["cat/validation-0.png"]}, ["no training image for 2 classes: dog, okapi"]),
            ({"train": ["cat/test-0.png"], "val": ["cat/validation-0.png"]}, ["1 images that are not in dtd/train", "cat/train-0.png"]),
            ({"train": [["cat/train-0.png", 1, "cat"]], "val": ["cat/validation-0.png"]}, ["label 1, the data set says 0"]),
            ({"train": ["cat/train-0.png"] * 2, "val": ["cat/validation-0.png"]}, ["cat/train-0.png more than once"]),
            ({"train": [f"{n}/train-0.png" for n in NAMES], "val": ["cat/train-0.png"]}, ["both for training and for validation"]),
            ({"train": []}, ["two lists that are not empty"]),
            ([], ["two lists"]),
        ],
    )
    def test_refused(self, data, table, words, tmp_path):
        with refused(*words):
            few_shot_from_file(data, str(write(tmp_path / "split.json", table)))

    def test_a_pickle_is_never_opened(self, data, tmp_path):
        flag = tmp_path / "flag"

        class Trap:
            def __reduce__(self):
                return Path.touch, (flag,)

        file = write(tmp_path / "shot_1-seed_1.pkl", pickle.dumps(Trap()))
        with refused("is a pickle", "runs whatever code", "container", "task.shots"):
            few_shot_from_file(data, str(file))
        assert not flag.exists()


def write_cifar(root: Path, layout: str) -> None:
    """A copy of the binary version with 20 images a file."""
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if layout == "cifar10" else ["train.bin", "test.bin"]
    listed = packaged(layout).names
    head, count = (1, 20) if layout == "cifar10" else (2, 100)
    for seed, file in enumerate(files):
        rows = np.random.default_rng(seed).integers(0, 256, (count, head + 3072), dtype=np.uint8)
        rows[:, head - 1] = np.arange(count) % len(listed)
        rows[0, head:] = np.repeat([250, 120, 10], 1024)  # planes: red, green, blue
        write(root / file, rows.tobytes())
    title = "batches.meta.txt" if layout == "cifar10" else "fine_label_names.txt"
    write(root / title, "\n".join(name.replace(" ", "_") for name in listed) + "\n\n")


class TestCifar:
    @pytest.mark.parametrize("layout", ["cifar10", "cifar100"])
    def test_records(self, layout, tmp_path):
        write_cifar(tmp_path, layout)
        data = load(f"dataset={layout}", f"dataset.root={tmp_path}")
        assert data.class_names == packaged(layout).names and len(data.train) == 100
        assert data.test.open(0).size == (32, 32) and data.test.open(0).getpixel((5, 9)) == (250, 120, 10)
        assert data.test.labels[:12] == [i % len(data.class_names) for i in range(12)]

    def test_the_pickled_version_is_refused(self, tmp_path):
        write(tmp_path / "data_batch_1", b"\x80\x02")
        with refused("lacks data_batch_1.bin", "binary version", "https://www.cs.toronto.edu", "pickled and is not read"):
            load("dataset=cifar10", f"dataset.root={tmp_path}")

    def test_torn_and_renamed(self, tmp_path):
        write_cifar(tmp_path, "cifar10")
        names = tmp_path / "batches.meta.txt"
        original = names.read_text()
        names.write_text(original.replace("frog", "toad"))
        with refused("only in the first (1): toad", "only in the second (1): frog"):
            load("dataset=cifar10", f"dataset.root={tmp_path}")
        names.write_text(original)
        (tmp_path / "test_batch.bin").write_bytes(b"\0" * 5000)
        with refused("test_batch.bin has 5000 bytes", "records of 3073"):
            load("dataset=cifar10", f"dataset.root={tmp_path}")


class TestWnids:
    def make(self, root: Path, wnids, count=1):
        for label, wnid in enumerate(wnids):
            for number in range(count):
                write(root / wnid / f"{number}.png", picture(100 * label + number))
        return root

    def test_a_subset_keeps_imagenets_order_and_its_texts(self, tmp_path):
        wnids = ["n04008634", "n01440764", "n03773504", "n02012849"]
        self.make(tmp_path / "r", wnids)
        self.make(tmp_path / "train", [*wnids, "n01443537"])
        arguments = ["dataset=imagenet_r", f"dataset.test={tmp_path}/r", f"dataset.train={tmp_path}/train", "dataset.n_classes=4"]
        data = load(*arguments)
        assert data.class_keys == sorted(wnids) and data.class_names == ["tench", "crane bird", "missile", "projectile"]
        assert [path.split("/")[0] for path in data.test.ids] == sorted(wnids) and len(data.train) == 4
        texts = class_texts(data.class_names, {}, description_set="imagenet1k", class_keys=data.class_keys)
        phrases = load_description_set("imagenet1k").descriptions
        assert [list(row) for row in texts] == [phrases[key] for key in data.class_keys] and texts[2] != texts[3]

    def test_numbers_are_labels_not_strings(self, tmp_path):
        self.make(tmp_path / "v2", ["0", "2", "10"])
        data = load("dataset=imagenet_v2", f"dataset.test={tmp_path}/v2", "dataset.n_classes=3")
        assert data.class_keys == [packaged("imagenet1k").keys[i] for i in (0, 2, 10)]
        assert data.test.ids == ["0/0.png", "2/0.png", "10/0.png"] and data.test.labels == [0, 1, 2]

    def test_corruptions(self, tmp_path):
        self.make(tmp_path / "fog" / "5", ["n01440764", "n01443537"])
        arguments = ["dataset=imagenet_c", f"dataset.root={tmp_path}", "dataset.n_classes=2"]
        assert load(*arguments, "dataset.corruption=fog").name == "imagenet_c-fog-5"
        with refused("dataset.corruption=gaussian_noise is not a folder", "which holds fog"):
            load(*arguments)
        with refused("dataset.severity is 1 to 5, got 6"):
            load(*arguments, "dataset.severity=6")

    def test_refusals(self, tmp_path):
        with refused("imagenet is not found", "https://image-net.org", "dataset.test=FOLDER"):
            load("dataset=imagenet", f"paths.data={tmp_path}/none")
        write(tmp_path / "loose" / "ILSVRC2012_val_00000001.JPEG", picture(1))
        with refused("images are not in class folders", "wnid"):
            load("dataset=imagenet", f"dataset.test={tmp_path}/loose")
        self.make(tmp_path / "odd", ["n01440764", "tench"])
        with refused("1 folders", "tench", "named by wnid"):
            load("dataset=imagenet", f"dataset.test={tmp_path}/odd")
        self.make(tmp_path / "few", ["n01440764", "n01443537"])
        with refused("2 class folders, imagenet has 1000", "dataset.n_classes=NUMBER"):
            load("dataset=imagenet", f"dataset.test={tmp_path}/few")


class TestCub:
    def make(self, root: Path) -> list[str]:
        listed = packaged("cub200").names
        write(
            root / "classes.txt", "".join(f"{i} {i:03d}.{name.replace(' ', '_').replace('-', '_')}\n" for i, name in enumerate(listed, 1))
        )
        images = [(i, f"{i:03d}.x/{part}.png", part) for i in range(1, 201) for part in (0, 1)]
        for number, (_, path, _) in enumerate(images):
            write(root / "images" / path, picture(number, side=4))
        for title, value in (("images", 1), ("image_class_labels", 0), ("train_test_split", 2)):
            write(root / f"{title}.txt", "".join(f"{n} {row[value]}\n" for n, row in enumerate(images, 1)))
        return ["dataset=cub200", f"dataset.root={root}"]

    def test_official_lists(self, tmp_path):
        data = load(*self.make(tmp_path))
        assert data.class_names == packaged("cub200").names
        assert data.train.ids[0] == "001.x/1.png" and data.test.labels == list(range(200))

    def test_refusals(self, tmp_path):
        arguments = self.make(tmp_path)
        (tmp_path / "images.txt").write_text("one two\n")
        with refused("the line 'one two'"):
            load(*arguments)
        (tmp_path / "images.txt").unlink()
        with refused("lacks images.txt", "https://www.vision.caltech.edu"):
            load(*arguments)


class TestTorchvision:
    def make(self, root: Path) -> list[str]:
        """DTD in the layout that torchvision reads."""
        for part, number in (("train", 0), ("val", 1), ("test", 2)):
            write(root / "dtd" / "dtd" / "labels" / f"{part}1.txt", "".join(f"{name}/{name}_{number}.png\n" for name in NAMES))
            for label, name in enumerate(NAMES):
                write(root / "dtd" / "dtd" / "images" / name / f"{name}_{number}.png", picture(10 * label + number))
        return ["dataset=torchvision", "dataset.set_class=DTD", f"dataset.root={root}", "dataset.validation={split: val}"]

    def test_lists_are_torchvisions_and_decoding_is_ours(self, tmp_path):
        arguments = self.make(tmp_path)
        data = load(*arguments)
        assert data.class_names == NAMES and data.test.ids[1] == "dtd/dtd/images/dog/dog_2.png"
        assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 3, 3]
        (tmp_path / "dtd/dtd/images/dog/dog_2.png").write_text("spoilt")
        with refused("dog_2.png cannot be decoded", error=ImageError):
            load(*arguments).test.open(1)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (["dataset.set_class=DTDs"], ["dataset.set_class=DTDs is not a class"]),
            (["dataset.set_class=CIFAR10"], ["reads pickles", "dataset=cifar10"]),
            (["dataset.test={split: exam}"], ["finds no data", "exam"]),
            (["dataset.root=/nowhere"], ["finds no data in /nowhere", "dataset.download=true"]),
            (["dataset.set_class=OxfordIIITPet"], ["OxfordIIITPet takes no loader", "dataset=folder"]),
            (["dataset.set_class=FakeData"], ["FakeData takes no loader", "dataset=folder"]),
        ],
    )
    def test_refusals(self, change, words, tmp_path):
        with refused(*words):
            load(*self.make(tmp_path), *change)

    def test_labels_may_be_numpys(self, tmp_path, monkeypatch):
        """As StanfordCars reads them from its .mat file."""
        plain = torchvision.datasets.DTD.__getitem__
        expected = load(*self.make(tmp_path)).test.labels
        monkeypatch.setattr(torchvision.datasets.DTD, "__getitem__", lambda made, i: (plain(made, i)[0], np.uint8(plain(made, i)[1])))
        labels = load(*self.make(tmp_path)).test.labels
        assert labels == expected and all(type(label) is int for label in labels)

    def test_an_item_that_is_no_labelled_file_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torchvision.datasets.DTD, "__getitem__", lambda made, index: (made.loader("a.png"), "cat"))
        with refused("DTD gives", "a.png", "instead of an image file and a label", "dataset=folder"):
            load(*self.make(tmp_path))


class TestFactsOfHubSets:
    """What stands for the content of a set that is not a local file."""

    def table(self, folder: Path, labels) -> hf_datasets.Dataset:
        hf_datasets.Dataset.from_dict({"image": [b"a", b"b", b"c"], "label": labels}).to_parquet(str(folder / "test.parquet"))
        return hf_datasets.load_dataset("parquet", data_files=str(folder / "test.parquet"), split="train", cache_dir=str(folder / "cache"))

    def test_files_of_the_hub_with_their_revision(self):
        table = hf_datasets.Dataset.from_dict({"label": [1]})
        table.info.download_checksums = {"hf://datasets/owner/name@abc/test.parquet": {}}
        assert hub_facts(table) == ["hf://datasets/owner/name@abc/test.parquet"]

    def test_files_in_the_cache_whatever_the_place_of_the_cache(self, tmp_path):
        made = self.table(tmp_path, [0, 1, 2])
        made.info.download_checksums = None
        facts = hub_facts(made)
        (file,) = [Path(entry["filename"]) for entry in made.cache_files]
        assert len(facts) == 1 and file.name in facts[0] and file.parent.name in facts[0] and str(tmp_path) not in facts[0]
        write(tmp_path / "test.parquet", b"")
        other = self.table(tmp_path, [0, 1, 1])
        other.info.download_checksums = None
        assert hub_facts(other) != facts

    def test_rows_in_memory(self):
        made = [hf_datasets.Dataset.from_dict({"image": [b"a", b"b"], "label": labels}) for labels in ([0, 1], [0, 1], [1, 1])]
        one, same, other = (hub_facts(table) for table in made)
        assert one == same != other


READY = sorted(set(options("dataset")) - {"emoji", "scenes", "folder", "csv", "hf", "webdataset", "parquet", "torchvision"})


@pytest.mark.parametrize("name", READY)
def test_a_ready_set_without_its_data_says_where_they_come_from_and_where_they_go(name, tmp_path):
    with refused("http", str(tmp_path)) as _:
        load(f"dataset={name}", f"paths.data={tmp_path}")


@pytest.mark.parametrize("name", READY)
def test_a_ready_set_names_its_bank_and_its_list(name):
    node = composed(f"dataset={name}").dataset
    assert node.facts.description_set == node.classes and node.classes in available()
    assert (CONF / "dataset" / f"{name}.yaml").read_text().startswith("# ")


class TestTables:
    """dataset=parquet."""

    @pytest.mark.parametrize("knobs", [{"held": False}, {"held": False, "hashes": False}, {"hashes": False}, {"group": 100}])
    def test_images_in_files_and_tables_without_hashes_are_the_same_images(self, tmp_path, knobs):
        one, other = (load(*make_tables(tmp_path / name, **own)) for name, own in (("one", knobs), ("other", {})))
        for split in SPLITS:
            images, expected = getattr(one, split), getattr(other, split)
            assert images.ids == expected.ids and images.labels == list(expected.labels) and images.ids[1:3] == list(expected.ids)[1:3]
            assert [images.open(i).tobytes() for i in range(len(images))] == [expected.open(i).tobytes() for i in range(len(images))]
            assert images.ids[-1] == list(images.ids)[-1] and images.ids.digest == expected.ids.digest

    def test_the_fingerprint_is_that_of_ids_and_images_and_not_of_the_layout(self, tmp_path):
        def fingerprint(name, change=lambda table: table, **knobs):
            arguments = make_tables(tmp_path / name, **knobs)
            for path in (tmp_path / name / "tables").glob("test-*"):
                pq.write_table(change(pq.read_table(path)), path)
            return load(*arguments).test.fingerprint

        known = fingerprint("one")
        assert known == fingerprint("two", group=100) and known != fingerprint("three", lambda table: table.take([2, 1, 0]))
        assert known == fingerprint("five", lambda table: table.append_column("more", [["x"] * len(table)]))
        assert known != fingerprint("four", lambda table: with_column(table, "hash", [text[::-1] for text in table["hash"].to_pylist()]))

    def test_rows_without_ids_are_numbered_within_their_file(self, tmp_path):
        data = load(*make_tables(tmp_path), "dataset.id_column=null")
        assert (
            list(data.test.ids) == [f"{file:05d}/{row:07d}" for file in range(2) for row in range(3)]
            and data.test.ids[4] == "00001/0000001"
        )

    def test_a_changed_image_stops_the_run_and_a_missing_one_too(self, tmp_path):
        images = load(*make_tables(tmp_path, held=False)).test
        write(tmp_path / "images" / images.ids[0], picture(99))
        with refused("the hash that the column hash gives", "Write the table again"):
            images.open(0)
        (tmp_path / "images" / images.ids[0]).unlink()
        with pytest.raises(FileNotFoundError):
            images.open(0)

    @pytest.mark.parametrize(
        ("knob", "change", "told"),
        [
            ("dataset.label_column=class", None, ("no column class", "its columns are")),
            ("dataset.test=nowhere/*.parquet", None, ("no .parquet file is there",)),
            (None, {"id": ["same"] * 3}, ("are empty or repeat", "same")),
            (None, {"id": [None] * 3}, ("are empty or repeat",)),
            (None, {"label": [None] * 3}, ("3 nulls", "dataset.label_column")),
            (None, {"label": ["cat"] * 3}, ("have no test image", "okapi")),
        ],
    )
    def test_what_is_wrong_with_a_table_is_said(self, tmp_path, knob, change, told):
        arguments = make_tables(tmp_path)
        for path in (tmp_path / "tables").glob("test-*" if change else "none"):
            table = pq.read_table(path)
            for name, values in change.items():
                table = with_column(table, name, values)
            pq.write_table(table, path)
        with refused(*told):
            load(*arguments, *([knob] if knob else []))

    def test_each_table_needs_the_columns_of_the_first_and_row_groups_that_fit_into_memory(self, tmp_path, monkeypatch):
        arguments, path = make_tables(tmp_path), tmp_path / "tables" / "test-1.parquet"
        whole = pq.read_table(path)
        pq.write_table(whole.drop_columns("hash"), path)
        with refused("test-1.parquet has no column hash"):
            load(*arguments)
        pq.write_table(whole, path)
        monkeypatch.setattr("multicrop.data.sources.parquet_columns.LARGEST", 1000)
        with refused("fewer rows per row group"):
            load(*arguments)

    def test_ids_that_repeat_are_found_in_several_passes(self, tmp_path):
        pq.write_table(pa.table({"id": [str(i % 997) for i in range(1000)]}), tmp_path / "t.parquet", row_group_size=300)
        ids = Column(Tables.of([tmp_path / "t.parquet"], ["id"]), "id", str)
        assert sorted(repeated(ids, at_once=100)) == sorted(repeated(ids)) == ["0", "1", "2"]

    def test_a_run_on_tables_equals_that_on_a_list_and_finds_its_bank_again(self, tmp_path):
        made, places = make_tables(tmp_path / "data"), [f"paths.cache={tmp_path}/banks", "task=zero_shot", *QUICK]
        accuracy = run(composed(*made, *places, f"paths.output={tmp_path}/one"))
        assert accuracy == run(composed(*make_csv(tmp_path / "csv"), *places, f"paths.output={tmp_path}/csv-out"))
        assert accuracy == run(composed(*made, *places, f"paths.output={tmp_path}/two"))
        reused = [json.loads((tmp_path / name / "metrics.json").read_text())["bank_reused"] for name in ("one", "two")]
        keys = [json.loads((tmp_path / name / "identity.json").read_text())["key"] for name in ("one", "two")]
        assert reused == [False, True] and keys[0] == keys[1]


def with_column(table, name, values):
    """The table with other values, which may all be null, in a column of texts."""
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
