"""What users get wrong: the error names the thing and says what to do, and nothing wrong passes in silence."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from bad_inputs import CHOICES, COMMANDS, NAMES, NUMBERS, RUNS
from conftest import CONF, ROOT, composed, session_of
from PIL import Image
from refusals import answer, refusal, refused, remedies, with_remedy
from transformers import BertConfig, BertModel, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from multicrop.cli import main
from multicrop.config import check_machine, check_overrides
from multicrop.data.few_shot import few_shot_split
from multicrop.data.sources.folder import folder
from multicrop.data.sources.splits import divided
from multicrop.encoder import load_encoder
from multicrop.pretrain.captions import CONTEXT_TOKENS, train_tokenizer
from multicrop.text import described, fill, read_descriptions, template, text_bank

TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONTEXT = {"max_position_embeddings": CONTEXT_TOKENS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    """A dual encoder of random weights, as transformers saves one."""
    path = tmp_path_factory.mktemp("models") / "random_clip"
    tokenizer = train_tokenizer([{"name": name, "keywords": [], "parts": []} for name in ("cat", "dog", "okapi")])
    text = CONTEXT | {"vocab_size": len(tokenizer)}
    vision = {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=TOWER | text, vision_config=TOWER | vision, projection_dim=16)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> Path:
    """A folder of things that are not what a knob expects."""
    at = tmp_path_factory.mktemp("places")
    (at / "text.txt").write_text("no picture")
    (at / "latin.json").write_bytes('{"cat": ["M\xfctze"]}'.encode("latin-1"))
    (at / "latin.csv").write_bytes("path,label\na.png,M\xfctze\n".encode("latin-1"))
    (at / "odd.csv").write_text("file,name\na.png,cat\n")
    (at / "list.json").write_text('["cat"]')
    (at / "broken.json").write_text('{"cat": [')
    (at / "empty").mkdir()
    write_images(at / "zoo" / "test", cat=1, dog=1)
    write_images(at / "half", cat=2, dog=0)
    return at


def write_images(root: Path, **counts: int) -> Path:
    """One folder a class, with that many pictures."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 30), (90 * label, 20 * index, 0)).save(root / name / f"{index}.png")
    return root


def read(root: Path, class_names: Path | None = None, test_share: float = 0.5):
    return folder(root=str(root), class_names=class_names and str(class_names), test_share=test_share, split_seed=0)


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["crop=randm_k16"], ["crop=randm_k16", "did you mean random_k16", "global, grid, quasi_random, random"]),
            (["-m", "crop=global,randm_k16"], ["crop=randm_k16", "did you mean random_k16"]),
            (["-m", "seed=1,2", "aggregator=global,maxx"], ["aggregator=maxx", "did you mean max"]),
            (["crop=nothing_like_it"], ["crop=nothing_like_it", "The options are: attention, diverse, feature, five_crop, global"]),
            (["task=tta", "task.ordr=x"], ["task.ordr", "did you mean task.order"]),
            (["aggregator.epsiln=0.1"], ["aggregator.epsiln", "did you mean aggregator.epsilon"]),
            (["-m", "aggregator.epsiln=0.1,0.2"], ["aggregator.epsiln", "did you mean aggregator.epsilon"]),
            (["epsilon=0.1"], ["epsilon", "did you mean", "aggregator.epsilon"]),
            (["dataste=emoji"], ["dataste", "did you mean dataset"]),
            (["zzz=1"], ["zzz", "run.py --cfg job"]),
        ],
    )
    def test_unknown_names_are_refused_with_the_nearest(self, arguments, words):
        with refused(*words):
            check_overrides(arguments, CONF)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["-m", "crop=global,random_k16", "seed=1,2", "aggregator.epsilon=0.1,0.2"],
            ["task=tta", "task.order=sorted_by_class", "method.positive.size=4"],
            ["model=local", "model.path=/some/where", "dataset.facts.crop_side=[0.2,0.4]"],
            ["+tag=x", "~logger", "hydra.job.chdir=true", "--cfg", "job"],
        ],
    )
    def test_known_names_pass(self, arguments):
        check_overrides(arguments, CONF)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["crop=randm_k16"], ["crop=randm_k16", "did you mean random_k16"]),
            (["dataset=folder", "dataset.root=/nowhere", "logger=none"], ["dataset.root=/nowhere is not a folder", "dataset.root=PATH"]),
        ],
    )
    def test_run_py_exits_with_the_message(self, tmp_path, arguments, words):
        done = forked.run([*arguments, f"paths.output={tmp_path}/out", f"paths.cache={tmp_path}/banks"], cwd=tmp_path)
        assert done.returncode == 2
        assert all(word in done.stderr for word in words), done.stderr


class TestKnobs:
    @pytest.mark.parametrize(("line", "words"), [(line, words) for line, *words in (*NUMBERS, *CHOICES, *NAMES)])
    def test_a_bad_value_is_refused_with_a_message_that_names_it(self, line, words):
        said = refusal(shlex.split(line))
        assert said and not [word for word in words if word not in said], said

    @pytest.mark.parametrize("line", [line for line, *_ in (*NUMBERS, *CHOICES)])
    def test_what_the_message_says_to_write_is_accepted(self, line):
        arguments = shlex.split(line)
        (remedy,) = remedies(refusal(arguments))
        assert refusal(with_remedy(arguments, remedy)) == ""

    def test_there_are_150_bad_inputs(self):
        assert len(NUMBERS) + len(CHOICES) + len(NAMES) + len(RUNS) + len(COMMANDS) >= 150

    def test_names_are_suggested_once(self):
        said = refusal(["datase=emoji"])
        assert "did you mean dataset or dataset.facts or " in said and said.count("dataset or") == 1 and "_target_" not in said

    def test_a_gpu_where_there_is_none(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert refusal(["trainer=gpu"]) == ""  # --cfg, and a sweep whose jobs run on another machine
        with refused("trainer.accelerator=gpu needs a GPU", "Write trainer=cpu"):
            check_machine(composed("trainer=gpu"))
        check_machine(composed("trainer=cpu"))

    def test_a_run_looks_for_the_gpu_before_it_imports_torch(self, tmp_path):
        code = (
            "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules)); "
            f"sys.argv = ['run.py', 'trainer=gpu', 'logger=none', 'paths.output={tmp_path}']; runpy.run_path('run.py', run_name='__main__')"
        )
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 2 and done.stderr.startswith("error: trainer.accelerator=gpu needs a GPU") and done.stdout == "False\n"

    def test_a_project_without_a_login(self, monkeypatch, tmp_path):
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            monkeypatch.delenv(name, raising=False)
        cfg = composed("logger=wandb", "logger.project=birds")
        with refused("logger.project=birds needs a login", "logger.project=null", "logger=none", "WANDB_MODE=offline"):
            check_machine(cfg)
        for remedy in ("logger.project=null", "logger=none"):
            check_machine(composed("logger=wandb", remedy))
        monkeypatch.setenv("WANDB_MODE", "offline")
        check_machine(cfg)

    def test_a_name_that_reads_as_a_number_is_quoted(self):
        said = refusal(["dataset=folder", "dataset.root=2024"])
        assert remedies(said) == ['dataset.root="2024"'] and refusal(["dataset=folder", *remedies(said)]) == ""


class TestAnswers:
    """What `run.py` prints, its exit status, and what it has imported until then."""

    def test_a_mistake_is_one_line_within_two_seconds_and_without_torch(self, tmp_path):
        code = (
            "import atexit, runpy, sys, time; "
            "atexit.register(lambda: print(time.process_time(), 'torch' in sys.modules)); "
            "sys.argv = ['run.py', 'crop.n_crops=abc']; runpy.run_path('run.py', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 2 and done.stderr == (
            "error: crop.n_crops is a whole number from 1 to 4096; got 'abc'. Write crop.n_crops=16\n"
        )
        seconds, torch = done.stdout.split()
        assert torch == "False" and float(seconds) < 2

    def test_the_traceback_comes_back_on_demand(self, tmp_path):
        arguments = ["dataset=folder", "dataset.root=/nowhere", f"paths.output={tmp_path}/out", "logger=none"]
        done = forked.run(arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: dataset.root=/nowhere is not a folder")
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
        done = forked.run(arguments, env={**os.environ, "MULTICROP_TRACEBACK": "1"}, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" in done.stderr and "error: dataset.root=/nowhere is not a folder" in done.stderr

    def test_a_defect_says_so_and_where_its_traceback_is(self, tmp_path):
        code = (
            "import runpy, sys\nfrom multicrop.runs import session\n"
            "session.Session.dataset = property(lambda self: {}['secret of ours'])\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        done = forked.run([f"paths.output={tmp_path}/out", "logger=none"], cwd=tmp_path, code=code)
        (log,) = (tmp_path / "out").rglob("traceback.txt")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"this is a defect of multicrop, not of your command: KeyError: 'secret of ours'. The traceback is in {log}" in done.stderr
        assert "Traceback" in log.read_text() and "KeyError: 'secret of ours'" in log.read_text()

    @pytest.mark.parametrize(
        "line",
        [
            "hydra/launcher=nope logger=none",
            "hydra.nope=1 logger=none",
            "sweep=overview logger=none",
            "hydra.run.dir=/proc/none logger=none",
        ],
    )
    def test_what_hydra_refuses_is_a_message_too(self, line, tmp_path):
        done = forked.run([line, "logger=none", f"paths.output={tmp_path}"], cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr, done.stderr

    @pytest.mark.parametrize(("line", "words"), [(line, words) for line, *words in RUNS])
    def test_a_run_that_cannot_be_made_is_one_message(self, line, words, places, capsys):
        arguments = [word.format(at=places) for word in shlex.split(line)]
        arguments += [] if "dataset=" in line else ["dataset.n_classes=4", "dataset.test_images=1", "crop=random_k1"]
        status, said = answer(["logger=none", f"paths.cache={places}/banks", f"paths.output={places}/out", *arguments], capsys)
        assert status == 2 and said.startswith("error: ") and "Traceback" not in said, said
        assert not [word for word in words if word.format(at=places) not in said], said

    @pytest.mark.parametrize(("line", "words"), [(line, words) for line, *words in COMMANDS])
    def test_a_command_of_multicrop_is_refused_by_one_message(self, line, words, places, capsys):
        with pytest.raises(SystemExit) as ended:
            main([word.format(at=places) for word in shlex.split(line)])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in said, said
        assert not [word for word in words if word.format(at=places) not in said], said


class TestFolder:
    def test_missing(self, tmp_path):
        with refused(f"dataset.root={tmp_path}/none is not a folder", "dataset.root=PATH"):
            read(tmp_path / "none")

    @pytest.mark.parametrize(
        ("counts", "words"),
        [
            ({}, ["no class folder", "two or more, one folder per class"]),
            ({"cat": 2}, ["one class folder (cat)", "two or more, one folder per class"]),
            ({"cat": 0, "dog": 0}, ["no image below", ".png"]),
            ({"cat": 2, "dog": 0}, ["no test image: dog", "Add images", ".png", "remove the folders"]),
        ],
    )
    def test_too_little_in_it(self, tmp_path, counts, words):
        with refused(*words):
            read(write_images(tmp_path, **counts))

    @pytest.mark.parametrize("share", [0.0, 1.0, 20.0])
    def test_share_out_of_range(self, tmp_path, share):
        with refused(f"dataset.test_share is between 0 and 1, got {share}"):
            read(write_images(tmp_path, cat=2, dog=2), test_share=share)


class TestClassNames:
    @pytest.fixture
    def images(self, tmp_path):
        return write_images(tmp_path / "zoo", house_cat=2, dog=2)

    def test_missing(self, images, tmp_path):
        with refused("dataset.class_names=", "names.json does not exist", "JSON object {folder: class name}"):
            read(images, tmp_path / "names.json")

    @pytest.mark.parametrize("content", [b"cat: Katze", b"\xff\xfe\x00"])
    def test_no_json(self, images, tmp_path, content):
        (tmp_path / "names.json").write_bytes(content)
        with refused("dataset.class_names=", "names.json is not JSON", "JSON object {folder: class name}"):
            read(images, tmp_path / "names.json")

    @pytest.mark.parametrize(
        ("mapping", "words"),
        [
            (["cat", "dog"], ["names.json", "only in the first (1): house_cat", "only in the second (1): cat"]),
            ({"dog": 3}, ["names.json", "JSON object {folder: class name} of non-empty strings"]),
            ({"cow": "Kuh"}, ["folders that do not exist: cow", "the folders are dog, house_cat"]),
            ({"dog": "pet", "house_cat": "pet"}, ["'dog' and 'house_cat'", "tell them apart in dataset.class_names"]),
            ({"dog": "house cat"}, ["'dog' and 'house_cat'", "tell them apart in dataset.class_names"]),
        ],
    )
    def test_misfit(self, images, tmp_path, mapping, words):
        with refused(*words):
            read(images, write_json(tmp_path / "names.json", mapping))

    def test_partial_mapping(self, images, tmp_path):
        assert read(images, write_json(tmp_path / "names.json", {"dog": "a good dog"})).class_names == ["a good dog", "house cat"]


class TestSplits:
    def test_train_val_test_folders(self, tmp_path):
        for index, split in enumerate(("train", "val", "test")):
            write_images(tmp_path / split, cat=3 - index, dog=3 - index)
        data = read(tmp_path)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 4, 2]
        assert data.class_names == ["cat", "dog"] and data.test.ids == ["test/cat/0.png", "test/dog/0.png"]

    @pytest.mark.parametrize("splits", [[], ["train"], ["train", "val"], ["train", "val", "test"], ["train", "test"]])
    def test_few_shot_never_sees_test_images(self, tmp_path, splits):
        for split in splits or ["."]:
            write_images(tmp_path / split, cat=6, dog=6)
        data = read(tmp_path)
        support, validation = few_shot_split(data, shots=2, seed=0)
        assert not set(support.ids) & set(validation.ids)
        assert not {*support.ids, *validation.ids} & set(data.test.ids)
        assert all(len(part) >= 2 for part in (support, validation, data.test))

    def test_class_of_one_image(self, tmp_path):
        write_images(tmp_path / "train", cat=4, dog=1)
        write_images(tmp_path / "test", cat=1, dog=1)
        with refused("two images per class", "'dog' has 1", "Add images or leave the class out"):
            few_shot_split(read(tmp_path), shots=2, seed=0)
        write_images(tmp_path / "val", cat=1, dog=1)
        support, validation = few_shot_split(read(tmp_path), shots=2, seed=0)
        assert [support.labels.count(label) for label in (0, 1)] == [2, 1]
        assert len(validation) == 2

    def test_class_whose_only_image_is_for_testing(self, tmp_path):
        data = read(write_images(tmp_path, cat=4, dog=1))
        assert data.test.labels.count(1) == 1
        with refused("two images per class", "'dog' has 0", "Add images or leave the class out"):
            few_shot_split(data, shots=1, seed=0)

    def test_no_shots(self, tmp_path):
        with refused("task.shots is 0", "one image per class or more"):
            few_shot_split(read(write_images(tmp_path, cat=4, dog=4)), shots=0, seed=0)


class TestBank:
    @pytest.fixture
    def session(self, tmp_path, random_checkpoint):
        """Makes the session of a folder of two classes, of which some pictures are spoilt."""

        def make(spoilt: list[str], *overrides: str):
            root = write_images(tmp_path / "zoo" / "test", cat=2, dog=2).parent
            for name in spoilt:
                (root / "test" / name).write_text("no picture")
            model = ["model=local", f"model.path={random_checkpoint}"]
            places = [f"dataset.root={root}", f"paths.cache={tmp_path / 'banks'}"]
            return session_of("dataset=folder", "crop=random_k1", "trainer.progress=false", *model, *places, *overrides)

        return make

    def test_unreadable_image_is_skipped_and_counted(self, session, caplog):
        made = session(["cat/1.png"])
        bank = made.bank(made.dataset.test)
        assert bank.readable.tolist() == [True, False, True, True]
        assert len(bank) == 3
        views, labels = bank.tensors()
        assert views.shape == (3, 2, 16) and labels.tolist() == [0, 1, 1]
        assert "1 of 4 images of zoo/test" in caplog.text and "test/cat/1.png (" in caplog.text
        assert "1.png cannot be decoded (its format is not known); remove it" in caplog.text

    def test_unreadable_image_raises_on_demand(self, session):
        made = session(["cat/1.png"], "on_unreadable=raise")
        with refused("1 of 4 images", "test/cat/1.png", "repair or remove them", "on_unreadable=skip"):
            made.bank(made.dataset.test)

    def test_on_unreadable_is_one_of_two(self, session):
        made = session([], "on_unreadable=rise")
        with refused("on_unreadable is one of skip, raise, got 'rise'"):
            made.bank(made.dataset.test)

    def test_no_readable_image(self, session):
        made = session(["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"])
        with refused("no image of zoo/test can be read", "repair them or choose other data"):
            made.bank(made.dataset.test)

    def test_cache_that_cannot_be_written(self, session, tmp_path):
        (tmp_path / "file").touch()
        made = session([], f"paths.cache={tmp_path / 'file' / 'banks'}")
        with refused(f"cannot write to {tmp_path / 'file' / 'banks'}", "paths.cache=FOLDER", error=PermissionError):
            made.bank(made.dataset.test)


class TestPrompts:
    NAMES = ("cat", "dog", "okapi")

    def test_classes_without_descriptions(self):
        with refused("2 of 3 classes have no descriptions: dog, okapi", "1 other classes: cow", "prompt.file=PATH", "prompt=template"):
            described(self.NAMES, {"cat": ["whiskers"], "dog": [], "cow": ["horns"]}, template="{}", join="{label}, {description}")

    def test_unknown_classes_of_a_file_are_named(self, tmp_path, caplog):
        texts = {name: ["whiskers", "a tail"] for name in (*self.NAMES, "cow", "yak")}
        path = write_json(tmp_path / "zoo.json", texts)
        described(self.NAMES, {}, template="{}", join="{label}, {description}", file=str(path))
        assert "unknown_class 2 (cow, yak)" in caplog.text

    def test_aggregator_that_needs_descriptions(self, random_checkpoint):
        text = text_bank(template(self.NAMES, {}, template="{}"), load_encoder(path=str(random_checkpoint)).encode_texts)
        with refused("3 classes have none: cat, dog, okapi", "prompt.file=PATH", "aggregator=global"):
            text.select("descriptions")

    def test_missing_file(self, tmp_path):
        with refused("none.json does not exist", "prompt.file", "{class: [phrase, ...]}"):
            read_descriptions(str(tmp_path / "none.json"))

    @pytest.mark.parametrize(
        "content", [b"cat: whiskers", b"\xff\xfe\x00", b'["cat"]', b'{"cat": "fur"}', b'{"cat": [3]}', b'{"cat": [" "]}']
    )
    def test_file_of_another_shape(self, tmp_path, content):
        (tmp_path / "zoo.json").write_bytes(content)
        with refused("zoo.json", "JSON", "{class: [phrase, ...]}"):
            read_descriptions(str(tmp_path / "zoo.json"))

    @pytest.mark.parametrize("wrong", ["a photo", "a {} and a {}", "a {label}"])
    def test_template_without_one_place_for_the_name(self, wrong):
        with refused("{} once, where the class name goes", repr(wrong)):
            fill(wrong, "cat")

    @pytest.mark.parametrize("join", ["{label}", "{name}: {description}", "{}, {description}", "{description"])
    def test_join_with_other_fields(self, join):
        with refused("prompt.join", "{description}", repr(join)):
            described(["cat"], {"cat": ["whiskers"]}, template="{}", join=join)


class TestModel:
    @pytest.fixture
    def copy(self, random_checkpoint, tmp_path):
        return Path(shutil.copytree(random_checkpoint, tmp_path / "copy"))

    def test_text_longer_than_the_context(self, random_checkpoint):
        with refused(f"over the context of {CONTEXT_TOKENS}", "'ball ball", "shorten the text"):
            load_encoder(path=str(random_checkpoint)).encode_texts(["cat", "ball " * CONTEXT_TOKENS])

    def test_a_description_longer_than_the_context_is_cut_after_the_last_word_that_fits(self, random_checkpoint, caplog):
        encoder = load_encoder(path=str(random_checkpoint))
        long = "ball " * CONTEXT_TOKENS
        bank = encoder.encode_prompts([["cat", long, "a cat"], ["dog", "a dog"]])
        (label, cut, whole), _ = bank.prompts
        assert (label, whole) == ("cat", "a cat") and long.startswith(f"{cut} ball ") and "1 of 3 descriptions" in caplog.text
        lengths = encoder.rule.lengths(encoder.tokenizer, [cut, f"{cut} ball"])
        assert lengths[0] <= encoder.rule.context < lengths[1]
        with refused(f"over the context of {CONTEXT_TOKENS}"):
            encoder.encode_prompts([[long, "a cat"]])

    @pytest.mark.parametrize("answers", [False, True])
    def test_no_network_is_said_once_and_in_seconds(self, tmp_path, answers):
        """A hub that refuses connections, and one that takes them and never answers."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1] if answers else 9
            env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("HF_")}
            env |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path)}
            places = [f"paths.output={tmp_path}/out", f"paths.cache={tmp_path}/banks", "logger=none", "dataset.n_classes=4"]
            started = time.monotonic()
            done = forked.run(["model=clip_vit_b16", *places], env=env, cwd=tmp_path)
        assert done.returncode == 2 and time.monotonic() - started < 30
        assert "the hub does not answer" in done.stderr and "model=local model.path=FOLDER" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr

    def test_no_network(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with refused("'openai/does-not-exist'", "Check the name and the network", "model=local model.path=FOLDER", "model=tiny"):
            load_encoder(path="openai/does-not-exist")

    def test_no_dual_encoder(self, tmp_path):
        BertModel(BertConfig(**TOWER, vocab_size=8)).save_pretrained(tmp_path)
        with refused("BertModel", "not a dual encoder", "model=local model.path=FOLDER"):
            load_encoder(path=str(tmp_path))

    def test_empty_folder(self, tmp_path):
        with refused(str(tmp_path), "no safetensors checkpoint"):
            load_encoder(path=str(tmp_path))

    def test_file_instead_of_its_folder(self, copy):
        with refused("model.safetensors is a file", f"model.path={copy}"):
            load_encoder(path=str(copy / "model.safetensors"))

    def test_truncated_weights(self, copy):
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with refused(str(copy), "no safetensors checkpoint that transformers can load"):
            load_encoder(path=str(copy))

    @pytest.mark.parametrize("pattern", ["tokenizer*", "preprocessor*"])
    def test_files_missing_beside_the_weights(self, copy, pattern):
        for path in copy.glob(pattern):
            path.unlink()
        with refused(str(copy), "has weights but no usable tokenizer"):
            load_encoder(path=str(copy))

    def test_unknown_precision(self, random_checkpoint):
        with refused("precision is one of fp32, bf16, fp16", "got 'fp64'", "model.precision"):
            load_encoder(path=str(random_checkpoint), precision="fp64")


def few_shot_counts(dataset, shots):
    """How many images of each class are in the support and in the validation images."""
    support, validation = few_shot_split(dataset, shots=shots, seed=0)
    assert not set(support.ids) & set(validation.ids)
    return [[part.labels.count(label) for label in range(len(dataset.class_names))] for part in (support, validation)]


@pytest.mark.parametrize("own", [False, True])
def test_at_most_four_images_per_class_are_held_back_for_validation(tmp_path, own):
    write_images(tmp_path / "train", cat=14, dog=14)
    write_images(tmp_path / "test", cat=1, dog=1)
    if own:
        write_images(tmp_path / "val", cat=6, dog=6)
    for shots, held_back in ((2, 2), (4, 4), (5, 4), (8, 4)):
        assert few_shot_counts(read(tmp_path), shots) == [[shots] * 2, [held_back] * 2]


def test_a_class_with_few_images_keeps_one_for_training_and_one_for_validation(tmp_path):
    write_images(tmp_path / "train", cat=14, dog=2, okapi=5)
    write_images(tmp_path / "test", cat=1, dog=1, okapi=1)
    assert few_shot_counts(read(tmp_path), 4) == [[4, 1, 4], [4, 1, 1]]
    assert few_shot_counts(read(tmp_path), 8) == [[8, 1, 4], [4, 1, 1]]


def test_a_division_into_train_and_test_leaves_each_part_an_image():
    """`divided` takes round(count * share) of each class for testing, and neither part of a class with two images is empty."""
    sizes = {"one": 1, "two": 2, "three": 3, "ten": 10}
    items = {name: list(range(size)) for name, size in sizes.items()}
    for share, expected in ((0.01, [1, 1, 1, 1]), (0.5, [1, 1, 2, 5]), (0.99, [1, 1, 2, 9])):
        train, test = divided(items, share, 0)
        assert [len(test[name]) for name in sizes] == expected
        assert all(sorted(train[name] + test[name]) == items[name] for name in sizes)
