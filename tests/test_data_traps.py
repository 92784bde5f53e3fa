"""Traps in data: spellings that differ in case, keys that repeat, addresses that run commands, and folders whose names look like globs."""

import json
from itertools import product

import forked
import pytest
import records
from conftest import composed, session_of
from hydra.errors import InstantiationException
from refusals import refused
from small_copies import NAMES, make_csv, make_parquet, make_shards, make_tar, picture, write

from multicrop.cli import main
from multicrop.compare.collect import collect
from multicrop.data.overview import overview
from multicrop.record import read_record
from multicrop.runs.experiment import run
from multicrop.runs.sweep_cache import SweepCache
from multicrop.show import terminal


def load(*overrides):
    """The data set of a run; an error as its loader raises it, without Hydra's wrapping."""
    try:
        return session_of(*overrides).dataset
    except InstantiationException as error:
        raise error.__cause__ from None


SPEED = ["prompt=template", "aggregator=global", "crop=random_k1", "trainer.progress=false", "pictures=0", "examples=0"]


class TestShardAddresses:
    COMMANDS = (
        "pipe:touch {place}",
        "{{pipe:touch {place},a.tar}}",
        "a.tar::pipe:touch {place}",
        "pi{{pe,}}:touch {place}",
        " pipe:touch {place}",
        "PIPE:touch {place}",
        "https://x/';touch {place};'",
        "ais://touch {place}",
    )

    @pytest.mark.parametrize(
        ("command", "split", "streaming"),
        [*product(COMMANDS, ["test"], [True]), *product(COMMANDS[:1], ["train"], [True, False]), (COMMANDS[0], "test", False)],
    )
    def test_one_that_runs_a_command_is_refused_before_anything_runs(self, command, split, streaming, tmp_path):
        names, place = write(tmp_path / "names.json", NAMES), tmp_path / "ran"
        words = make_shards(tmp_path / "data", numbers=True)
        address = command.format(place=place).replace("'", "\\'")
        words += [f"dataset.{split}='{address}'", f"dataset.streaming={str(streaming).lower()}", f"dataset.class_names={names}"]
        with refused("run commands and are refused", "https://"):
            data = load(*words)
            list(data.test)
        assert not place.exists()

    def test_a_file_of_that_name_does_not_open_the_way(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        make_tar(tmp_path / "pipe:touch ran", [("a.png", picture(1)), ("a.cls", b"0")])
        names = write(tmp_path / "names.json", NAMES)
        with refused("are refused"):
            list(load("dataset=webdataset", "dataset.test='pipe:touch ran'", "dataset.streaming=true", f"dataset.class_names={names}").test)
        assert not (tmp_path / "ran").exists()

    def test_lists_and_missing_files_of_a_stream_are_refused(self, tmp_path):
        names = write(tmp_path / "names.json", NAMES)
        for test, words in (("[a.tar,b.tar]", ("one text", "::")), ("a.tar", ("1 shards do not exist", "a.tar"))):
            with refused(*words):
                load("dataset=webdataset", f"dataset.test={test}", "dataset.streaming=true", f"dataset.class_names={names}")

    def test_a_url_is_for_streams(self, tmp_path):
        names = write(tmp_path / "names.json", NAMES)
        words = ["dataset=webdataset", "dataset.test='https://a.b/x-{0..1}.tar?k=1&l=2'", f"dataset.class_names={names}"]
        with refused("2 shards do not exist", "dataset.streaming=true"):
            load(*words)
        assert load(*words, "dataset.streaming=true").test.source.urls == ["https://a.b/x-0.tar?k=1&l=2", "https://a.b/x-1.tar?k=1&l=2"]

    @pytest.mark.parametrize("streaming", [True, False])
    def test_brackets_in_names_are_no_glob_where_the_file_exists(self, streaming, tmp_path):
        folder = tmp_path / "data[1]"
        make_shards(folder, numbers=True)
        (folder / "test-000.tar").rename(folder / "test[0].tar")
        names = write(tmp_path / "names.json", NAMES)
        words = ["dataset=webdataset", f"dataset.class_names={names}", f"dataset.streaming={str(streaming).lower()}"]
        for pattern in ("test[0].tar", "test[[]0].tar", "test?0?.tar"):
            data = load(*words, f"dataset.test='{folder}/{pattern}'")
            assert [image_id for image_id, *_ in data.test] == ["0-0", "1-0", "2-0"] if streaming else len(data.test) == 3


class TestRepeatedKeys:
    PAIR = (("a.png", picture(1)), ("a.cls", b"cat"))

    @pytest.mark.parametrize(
        "more",
        [
            [("a.png", picture(2))],
            [("a.jpg", picture(2))],
            [("a.cls", b"dog")],
            [("b.png", picture(2)), ("b.cls", b"dog"), ("a.png", picture(3))],
        ],
    )
    def test_within_a_shard(self, more, tmp_path):
        make_tar(tmp_path / "t.tar", [*self.PAIR, *more])
        with refused(more[-1][0], "t.tar", "repeats the key a", "own key"):
            load("dataset=webdataset", f"dataset.test={tmp_path}/t.tar")

    def test_between_shards(self, tmp_path):
        make_tar(tmp_path / "t0.tar", [*self.PAIR, ("b.png", picture(2)), ("b.cls", b"dog")])
        make_tar(tmp_path / "t1.tar", [*self.PAIR])
        with refused("1 ids", "repeat: a", "unique id"):
            load("dataset=webdataset", f"dataset.test='{tmp_path}/t{{0..1}}.tar'")

    def test_two_images_of_a_key_in_a_stream(self, tmp_path):
        make_tar(tmp_path / "t.tar", [("a.png", picture(1)), ("a.jpg", picture(2)), ("a.cls", b"0")])
        names = write(tmp_path / "names.json", NAMES)
        data = load("dataset=webdataset", f"dataset.test={tmp_path}/t.tar", "dataset.streaming=true", f"dataset.class_names={names}")
        with refused("a has several images (.jpg, .png)", "own key"):
            list(data.test)

    def test_repeated_ids_of_a_stream_are_scored_and_told(self, tmp_path, caplog):
        members = [
            (f"{number}.{kind}", picture(number) if kind == "png" else b"%d" % (number % 3))
            for number in range(4)
            for kind in ("png", "cls")
        ]
        make_tar(tmp_path / "t.tar", [*members, ("1.png", picture(9)), ("1.cls", b"2")])
        words = ["dataset=webdataset", f"dataset.test={tmp_path}/t.tar", "dataset.streaming=true", "bank=off", *SPEED]
        words += [f"dataset.class_names={write(tmp_path / 'names.json', NAMES)}", f"paths.output={tmp_path}/out"]
        run(composed(*words, f"paths.cache={tmp_path}/banks"))
        assert "1 ids of the stream" in caplog.text and "repeat: 1;" in caplog.text
        assert read_record(tmp_path / "out").predictions.image_id == ["0", "1", "2", "3", "1"]

    def test_repeated_ids_of_a_table_are_refused(self, tmp_path):
        words = make_csv(tmp_path / "a")
        table = tmp_path / "a" / "list.csv"
        table.write_text(table.read_text() + "\n".join(table.read_text().splitlines()[1:2]) + "\n")
        with refused("1 ids of list/train repeat", "images/train-0-0.png", "unique id"):
            load(*words)


class TestBracketsInFolders:
    def test_parquet_files_are_read_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        make_parquet(tmp_path / "data[1]")
        folder = tmp_path / "data[1]"
        assert len(load("dataset=hf", f"dataset.path='{folder}'").test) == 6
        (folder / "test-00000-of-00001.parquet").rename(folder / "test[0].parquet")
        assert len(load("dataset=hf", f"dataset.path='{folder}/test[0].parquet'", "dataset.train=null").test) == 6

    def test_compare_and_report_read_them(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("runs[1]/0", "runs[1]/1", "runs1/0"):
            records.write(tmp_path / name, accuracy=0.7 + 0.1 * ("1/1" in name), draw=len(name))
        for places, count in (
            (["runs[1]"], 2),
            ([f"{tmp_path}/runs[1]/*"], 2),
            (["runs[1]/[0]"], 1),
            (["runs*/0"], 2),
            (["runs[12]/0"], 1),
        ):
            assert len(collect(places)[0]) == count, places
        assert {run.folder.parent.name for run in collect(["runs[12]/0"])[0]} == {"runs1"}
        for words in (["compare", "runs[1]"], ["report", "runs[1]", "-o", "page.html"], ["record", "show", "runs[1]/0"]):
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 0, words
        with refused("runs[9]", "does not exist"):
            collect(["runs[9]"])

    def test_a_sweep_writes_and_prints_them(self, tmp_path):
        folder = tmp_path / "runs[new]"
        words = ["-m", "dataset.n_classes=4", "dataset.test_images=2", "crop=random_k1", "task=zero_shot", "aggregator=max", "logger=none"]
        words += ["trainer.progress=false", "task.fusion_weight=0.5,1.0", f"paths.cache='{tmp_path}/b[x]'", f"paths.output='{folder}'"]
        for said in ("2 of 2 done", "already done, skipped"):
            done = forked.run(words)
            assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
            lines = "".join(done.stdout.split("\n"))
            assert f"multicrop compare {folder}/sweep-" in lines and ("record: " not in lines or f"record: {folder}/" in lines)
        assert len(collect([str(folder)])[0]) == 2


def images_in(root, names, count=2):
    for number, name in enumerate(names):
        for image in range(count):
            write(root / name / f"{image}.png", picture(100 * number + image))
    return ["dataset=folder", f"dataset.root='{root}'"]


class TestSpellings:
    @pytest.mark.parametrize(
        ("spelled", "split"),
        [("Train", "train"), ("TRAINING", "train"), ("Val", "validation"), ("VALID", "validation"), ("Validation", "validation")],
    )
    def test_split_folders_may_have_any_case(self, spelled, split, tmp_path):
        data = load(*images_in(tmp_path, ["TEST/cat", "TEST/dog", f"{spelled}/cat", f"{spelled}/dog"]))
        assert data.class_names == ["cat", "dog"] and len(data.test) == len(getattr(data, split)) == 4
        assert data.test.ids[0] == "TEST/cat/0.png" and getattr(data, split).ids[0] == f"{spelled}/cat/0.png"

    @pytest.mark.parametrize(
        ("one", "other", "split"), [("Train", "train", "train"), ("val", "valid", "validation"), ("TESTING", "test", "test")]
    )
    def test_two_folders_of_one_split_are_refused(self, one, other, split, tmp_path):
        words = images_in(tmp_path, [f"{top}/{name}" for top in (one, other) for name in ("cat", "dog")])
        with refused(f"{' and '.join(sorted((one, other)))}, which both name the {split} images", "merge"):
            load(*words)

    def test_a_class_named_like_a_split_is_explained(self, tmp_path):
        with refused("no class folder", "folders named train, val or test in any case are splits"):
            load(*images_in(tmp_path, ["Car", "Train", "Plane"]))

    def test_classes_that_differ_in_case_only_are_refused_with_both_names(self, tmp_path):
        with refused("'Cat' and 'cat'", "'big_Dog' and 'big_dog'", "dataset.class_names"):
            load(*images_in(tmp_path / "a", ["Cat", "cat", "big_dog", "big_Dog", "c", "c++"]))
        assert load(*images_in(tmp_path / "b", ["c", "c++"])).class_names == ["c", "c++"]  # other signs make another prompt
        names = write(tmp_path / "names.json", {"Cat": "tom cat"})
        assert load(*images_in(tmp_path / "c", ["Cat", "cat"]), f"dataset.class_names={names}").class_names == ["tom cat", "cat"]

    def test_folders_for_one_class_of_a_list_are_refused_with_both_names(self, tmp_path):
        names = write(tmp_path / "names.json", ["cat", "dog"])
        with refused("several of the first name one class of the second (1): Cat and cat are cat"):
            load(*images_in(tmp_path / "a", ["Cat", "cat", "dog"]), f"dataset.class_names={names}")

    def test_names_of_numbers_that_differ_in_case_only_are_refused(self, tmp_path):
        names = write(tmp_path / "names.json", ["Cat", "cat", "okapi"])
        with refused("'Cat' and 'cat'", "names.json"):
            load(*make_shards(tmp_path / "data", numbers=True), f"dataset.class_names={names}")


@pytest.fixture
def uneven(tmp_path):
    """Three classes with 5, 5 and 9 training images and 2, 3 and 4 test images."""
    for split, counts in (("Train", (5, 5, 9)), ("Test", (2, 3, 4))):
        for name, count in zip(("ape", "bee", "cow"), counts, strict=True):
            images_in(tmp_path / "data", [f"{split}/{name}"], count)
    paths = [f"paths.output={tmp_path}/out", f"paths.cache={tmp_path}/banks"]
    return ["dataset=folder", f"dataset.root={tmp_path}/data", *SPEED, *paths]


class TestSupport:
    def test_too_few_images_are_told_and_recorded(self, uneven, tmp_path, caplog, capsys):
        run(composed(*uneven, "task=few_shot", "task.shots=1000", "task.selection=fixed"))
        assert "3 of 3 classes have fewer support images than task.shots=1000" in caplog.text
        assert "ape 4, bee 4, cow 8" in caplog.text  # one image of each is held back for validation
        support = json.loads((tmp_path / "out" / "metrics.json").read_text())["support"]
        assert support == {"asked": 1000, "per_class": {"ape": 4, "bee": 4, "cow": 8}}
        with pytest.raises(SystemExit):
            main(["record", "show", str(tmp_path / "out")])
        assert "support    4 to 8 images per class, 1000 asked" in capsys.readouterr().out

    def test_enough_images_are_no_warning(self, uneven, tmp_path, caplog):
        run(composed(*uneven, "task=few_shot", "task.shots=2", "task.selection=fixed"))
        assert "fewer support images" not in caplog.text
        assert json.loads((tmp_path / "out" / "metrics.json").read_text())["support"]["per_class"] == {"ape": 2, "bee": 2, "cow": 2}


class TestFirstLines:
    LINES = (
        "data: 3 classes: ape, bee, cow",
        "  train: 19 images, 5 / 5 / 9 per class (smallest / median / largest)",
        "  test: 9 images, 2 / 3 / 4 per class (smallest / median / largest)",
    )

    @pytest.mark.parametrize("task", ["zero_shot", "few_shot", "tta", "encode"])
    def test_every_run_begins_with_its_classes_and_counts(self, task, uneven, monkeypatch):
        said = []
        monkeypatch.setattr(terminal.console, "print", lambda *values, **_: said.extend(values))
        run(composed(*uneven, f"task={task}", *(["task.shots=2"] if task == "few_shot" else [])))
        assert said[0] == "\n".join(self.LINES) and len(said) > 1

    def test_the_jobs_of_a_sweep_say_it_once(self, uneven, tmp_path, monkeypatch):
        said, cache = [], SweepCache()
        monkeypatch.setattr(terminal.console, "print", lambda *values, **_: said.extend(map(str, values)))
        for weight in (0.5, 1.0):
            run(composed(*uneven, f"task.fusion_weight={weight}"), cache)
        assert sum("3 classes: ape" in line for line in said) == 1

    def test_data_check_begins_with_them(self, uneven, capsys):
        with pytest.raises(SystemExit):
            main(["data", "check", *uneven])
        assert capsys.readouterr().out.startswith("\n".join(self.LINES))

    def test_many_classes_are_shortened_and_streams_have_no_counts(self, tmp_path):
        data = load(*images_in(tmp_path / "a", [f"class {n:02d}" for n in range(19)] + ["class 19" + "x" * 30]))
        assert overview(data)[0] == f"a: 20 classes: class 00, class 01, class 02, class 03, class 04, ..., class 19{'x' * 19}..."
        assert overview(data)[1:] == ["  train: 20 images, 1 per class", "  test: 20 images, 1 per class"]
        names = write(tmp_path / "names.json", NAMES)
        stream = load(*make_shards(tmp_path / "b", numbers=True), "dataset.streaming=true", f"dataset.class_names={names}")
        assert overview(stream)[1:] == ["  test: a stream, whose images are counted when they are read"]
