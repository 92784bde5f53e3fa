"""Features that are encoded elsewhere: export, a plain encoder outside, import, and the numbers of the embedded model."""

import inspect
import json
import pickle
from functools import partial

import pyarrow as pa
import pytest
import torch
from conftest import composed, options, session_of
from hydra.utils import instantiate
from pictures import pictures
from pyarrow import parquet
from refusals import refused
from safetensors.torch import save_file

from multicrop import crops
from multicrop.adapters.clip_lora import ClipLora
from multicrop.adapters.twostage import TwoStage, norms_of
from multicrop.cli import main
from multicrop.config import without
from multicrop.crops.pixels import view_pixels
from multicrop.data.images import open_image, to_tensor
from multicrop.encoder import with_encoder
from multicrop.encoder.imported import FeatureTable, ImportedEncoder, imported_encoder
from multicrop.features import bank_identity, feature_bank
from multicrop.features.exchange import BOX, export_boxes, import_features
from multicrop.model import MultiCropCLIP
from multicrop.runs.experiment import run

SAMPLER = partial(crops.random, n_crops=2, min_side=0.4, max_side=0.9)
DATA = ("n_classes=4", "family_size=2", "test_images=3", "train_images=2", "validation_images=1")
RUN = (*(f"dataset.{knob}" for knob in DATA), "crop=random_k4", "crop.min_side=0.4")
QUIET = ("trainer.progress=false", "pictures=0", "examples=0")


def command(*words):
    """The exit status of `multicrop features`."""
    with pytest.raises(SystemExit) as ended:
        main(["features", *map(str, words)])
    return ended.value.code


def write_parquet(folder, rows, vectors, texts, text_vectors):
    """The files that `multicrop features import` reads."""
    columns = {name: [row[name] for row in rows] for name in ("image_id", *BOX)}
    for name, table, values in (("views", columns, vectors), ("texts", {"text": texts}, text_vectors)):
        vector = pa.array(values.tolist(), pa.list_(pa.float32()))
        parquet.write_table(pa.table({**table, "vector": vector}), folder / f"{name}.parquet")
    return folder / "views.parquet", folder / "texts.parquet"


def encoded_outside(folder, encoder):
    """Encode the exported pictures, boxes and prompts with the plain encoder, without a bank."""
    rows, vectors = parquet.read_table(folder / "boxes.parquet").to_pylist(), []
    for file in dict.fromkeys(row["file"] for row in rows):
        boxes = torch.tensor([[row[name] for name in BOX] for row in rows if row["file"] == file])
        with torch.inference_mode():
            vectors.append(encoder.encode_images(view_pixels(to_tensor(open_image(folder / file)), boxes, encoder.spec)))
    texts = parquet.read_table(folder / "prompts.parquet")["text"].to_pylist()
    return write_parquet(folder, rows, torch.cat(vectors), texts, encoder.encode_texts(texts))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, encoder):
    """The overrides of a run of the embedded model, and of the same run on features that were encoded outside."""
    folder = tmp_path_factory.mktemp("scenes")
    paths = (f"paths.cache={folder}/cache", f"paths.output={folder}/outputs")
    assert command("export", *RUN, *paths, "model=tiny", "--to", folder / "out", "--splits", "test", "train", "validation", "--images") == 0
    views, texts = encoded_outside(folder / "out", encoder)
    names = ("--to", folder / "encoded", "--name", "outside", "--logit-scale", encoder.logit_scale)
    assert command("import", views, "--texts", texts, *names) == 0
    own = (*RUN, *QUIET, *paths)
    return own, (*own, "model=imported", f"model.path={folder}/encoded", 'prompt.template="{}"')


def test_prompts_of_an_export_that_names_no_model_are_those_of_the_run_on_what_comes_back(tmp_path):
    assert command("export", *RUN, f"paths.cache={tmp_path}", "--to", tmp_path / "out") == 0
    texts = parquet.read_table(tmp_path / "out" / "prompts.parquet")["text"].to_pylist()
    prompts = session_of(*RUN, f"paths.cache={tmp_path}", "model=imported", "model.path=nothing").prompts
    assert set(texts) == {text for row in prompts for text in row} and prompts[0][0].startswith("a photo of a")


def test_an_export_has_the_images_of_the_run_and_no_others(tmp_path):
    """At most `limit` of those that are scored, all that are learned from, and those of unknown classes."""
    run = (*RUN, "limit=3", "classes=base", "ood=new", f"paths.cache={tmp_path}")
    assert command("export", *run, "model=tiny", "--splits", "test", "train", "--to", tmp_path / "out") == 0
    found, session = parquet.read_table(tmp_path / "out" / "boxes.parquet").to_pylist(), session_of(*run)
    for split, images in (("test", session.scored_images), ("train", session.dataset.train), ("unknown", session.unknown_images)):
        assert list(dict.fromkeys(row["image_id"] for row in found if row["split"] == split)) == list(images.ids)
    assert len(session.scored_images) == 3 < len(session.dataset.test) and len(session.unknown_images) > 0


@pytest.mark.parametrize("task", ["task=tta", "task=few_shot"])
def test_a_run_on_imported_features_gives_the_numbers_of_the_encoder(task, scenes):
    """Adapted to the stream, and learned from the train split."""
    more = ("task.shots=1", "adapter=tip_adapter") if task == "task=few_shot" else ("method=tda",)
    own, imported = (run(composed(*overrides, task, *more)) for overrides in scenes)
    assert imported == own > 0.25


def test_features_texts_and_facts_are_those_that_were_imported(scenes):
    own, imported = (session_of(*overrides) for overrides in scenes)
    banks = [session.bank(session.scored_images) for session in (own, imported)]
    torch.testing.assert_close(banks[1].tensors()[0], banks[0].tensors()[0], atol=2e-3, rtol=0)
    assert torch.equal(banks[1].boxes(3), banks[0].boxes(3)) and not torch.equal(banks[1].boxes(3), banks[1].boxes(4))
    torch.testing.assert_close(imported.text.features, own.text.features, atol=1e-6, rtol=0)
    assert imported.facts.name == "outside" and imported.facts.logit_scale == pytest.approx(own.facts.logit_scale)
    assert banks[1].manifest["identity"]["model"] == imported.encoder.table.content


@pytest.mark.parametrize("kind", ["adapter", "method"])
def test_every_adapter_and_method_runs_on_them_or_says_what_it_lacks(kind, scenes):
    session = session_of(*scenes[1])
    for option in options(kind):
        make = instantiate(without(composed(f"{kind}={option}")[kind], "search"))
        needed = inspect.signature(make).parameters
        if "projection" in needed:
            with refused("adapter=prolip", "outside"):
                session.inject(make)
        elif "encoder" not in needed:
            assert isinstance(session.inject(make), make.func)
        elif make.func is ClipLora:
            with refused("adapter=clip_lora", "not here"):
                session.inject(make)._with_updates()
        elif make.func is TwoStage:
            with refused("adapter=twostage", "has none here"):
                norms_of(session.encoder.model, "blocks", "outside")
        else:
            with refused("'imported'", "outside"):
                session.inject(make)


@pytest.fixture(scope="module")
def small(tmp_path_factory, encoder):
    """Pictures, the folder with the files of their features, and these features."""
    folder = tmp_path_factory.mktemp("small")
    images = pictures(5)
    views = feature_bank(images, SAMPLER, encoder, seed=0, cache=folder, storage="off").tensors()[0]
    assert export_boxes({"test": images}, crops.as_policy(SAMPLER), 0, folder) == 15
    rows, texts = parquet.read_table(folder / "boxes.parquet").to_pylist(), ["a cat", "a dog"]
    assert [row["image_id"] for row in rows[::3]] == images.ids and [row["view"] for row in rows[:3]] == [0, 1, 2]
    assert [row["file"] for row in rows] == [None] * 15
    write_parquet(folder, rows, views.flatten(0, 1), texts, encoder.encode_texts(texts))
    return images, folder, views


def imported(folder, to, files=("views.parquet", "texts.parquet"), scale=50.0):
    import_features([folder / files[0]], [folder / files[1]], to, name="outside", logit_scale=scale)
    return imported_encoder(str(to))


class TestBanks:
    def test_on_disk_and_off_and_as_a_worker_gets_them(self, small, tmp_path):
        images, folder, views = small
        encoder = imported(folder, tmp_path / "encoded")
        how = {"seed": 0, "cache": tmp_path / "cache", "progress": False}
        disk = feature_bank(images, SAMPLER, encoder, **how)
        off = feature_bank(images, SAMPLER, encoder, storage="off", **how)
        assert torch.equal(off.tensors()[0], views) and torch.equal(off[3][0], views[3])
        torch.testing.assert_close(disk.tensors()[0], views, atol=1e-3, rtol=0)
        assert torch.equal(feature_bank(images, SAMPLER, encoder, storage="off", cut="device", **how).tensors()[0], views)
        assert torch.equal(pickle.loads(pickle.dumps(encoder.table)).views(images.ids[2], disk.boxes(2)), views[2])  # noqa: S301

    def test_boxes_of_scaled_files_are_refused(self, small, tmp_path):
        """They would be on a coarser grid than those that were exported."""
        images, folder, _ = small
        encoder = imported(folder, tmp_path / "encoded")
        for storage in ("disk", "off"):
            with refused("trainer.cut=scaled", "outside", "trainer.cut=worker"):
                feature_bank(images, SAMPLER, encoder, seed=0, cache=tmp_path, storage=storage, cut="scaled")

    def test_fewer_crops_and_another_order_are_answered_and_other_boxes_are_not(self, small, tmp_path):
        images, folder, views = small
        encoder = imported(folder, tmp_path / "encoded")
        fewer = feature_bank(images.subset([4, 1]), partial(SAMPLER, n_crops=1), encoder, seed=0, cache=tmp_path, storage="off")
        assert torch.equal(fewer.tensors()[0], views[[4, 1], :2])
        with refused("2 of 3 boxes", images.ids[0], "multicrop features export"):
            feature_bank(images, SAMPLER, encoder, seed=1, cache=tmp_path, storage="off").tensors()
        with refused("3 of 3 boxes", "'stranger'"):
            encoder.table.views("stranger", torch.zeros(3, 4))
        with refused("1 of 2 texts", "'a hen'", "multicrop features export"):
            encoder.encode_texts(["a cat", "a hen"])

    def test_the_identity_is_the_content(self, small, tmp_path):
        images, folder, _ = small
        first, again = imported(folder, tmp_path / "a"), imported(folder, tmp_path / "b")
        assert bank_identity(images, SAMPLER, first, 0) == bank_identity(images, SAMPLER, again, 0)
        assert imported(folder, tmp_path / "c", scale=51.0).fingerprint() != first.fingerprint()
        table = parquet.read_table(folder / "views.parquet").to_pylist()
        table[7]["vector"][0] += 0.01
        parquet.write_table(pa.Table.from_pylist(table), tmp_path / "views.parquet")
        import_features([tmp_path / "views.parquet"], [folder / "texts.parquet"], tmp_path / "d", name="outside", logit_scale=50.0)
        assert imported_encoder(str(tmp_path / "d")).fingerprint() != first.fingerprint()

    def test_a_changed_file_and_an_empty_folder_are_refused(self, small, tmp_path):
        _, folder, _ = small
        imported(folder, tmp_path / "encoded")
        path = tmp_path / "encoded" / "features.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with refused("not what was imported", "import the features again"):
            FeatureTable(tmp_path / "encoded")
        path.write_bytes(b"")
        with refused("cannot be read"):
            FeatureTable(tmp_path / "encoded")
        with refused("no imported features", "multicrop features import"):
            imported_encoder(str(tmp_path))

    def test_what_needs_the_towers_is_refused(self, small, tmp_path):
        images, folder, _ = small
        encoder = imported(folder, tmp_path / "encoded")
        with refused("were imported", "new pixels"):
            MultiCropCLIP(encoder, SAMPLER).views([images.open(0)])
        for looking in (crops.attention, crops.feature):
            with refused("outside", "crop"):
                with_encoder(looking, encoder)
        with refused("text tower is not here"):
            encoder.token_parts(["a cat"], 1)
        with refused("tokens of an image tower"):
            export_boxes({"test": images}, crops.as_policy(crops.feature), 0, tmp_path)


class TestFiles:
    def test_safetensors_give_what_parquet_gives(self, small, tmp_path):
        _, folder, _ = small
        rows = parquet.read_table(folder / "views.parquet").to_pylist()
        tensors = {"vectors": torch.tensor([row["vector"] for row in rows]), "boxes": torch.tensor([[row[n] for n in BOX] for row in rows])}
        ids = [row["image_id"] for row in rows]
        save_file(tensors, tmp_path / "views.safetensors", metadata={"image_ids": json.dumps(ids)})
        texts = parquet.read_table(folder / "texts.parquet")
        vectors = torch.tensor(texts["vector"].to_pylist())
        save_file({"vectors": vectors}, tmp_path / "texts.safetensors", metadata={"texts": json.dumps(texts["text"].to_pylist())})
        other = imported(tmp_path, tmp_path / "encoded", ("views.safetensors", "texts.safetensors"))
        assert other.fingerprint() == imported(folder, tmp_path / "again").fingerprint()
        save_file(tensors, tmp_path / "views.safetensors", metadata={"image_ids": json.dumps(ids[1:])})
        with refused("views.safetensors", "14 image_ids"):
            imported(tmp_path, tmp_path / "encoded", ("views.safetensors", "texts.safetensors"))

    def test_any_length_becomes_unit_norm_and_unit_norm_stays(self, small, tmp_path):
        _, folder, views = small
        rows = parquet.read_table(folder / "views.parquet").to_pylist()
        texts = parquet.read_table(folder / "texts.parquet")
        write_parquet(tmp_path, rows, 7 * views.flatten(0, 1), texts["text"].to_pylist(), torch.tensor(texts["vector"].to_pylist()))
        scaled, exact = (
            imported(tmp_path, tmp_path / "a").table.tensors["vectors"],
            imported(folder, tmp_path / "b").table.tensors["vectors"],
        )
        torch.testing.assert_close(scaled, exact, atol=1e-6, rtol=0)
        assert torch.equal(exact, views.flatten(0, 1))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda rows: [row.pop("x2") for row in rows], ("x2",)),
            (lambda rows: rows[3].update(vector=[0.0] * len(rows[3]["vector"])), ("zero or not finite", "1 features")),
            (lambda rows: rows[3].update(vector=[float("nan")] * len(rows[3]["vector"])), ("zero or not finite", "1 features")),
            (lambda rows: rows[3].update(vector=None), ("nulls",)),
            (lambda rows: rows[3]["vector"].pop(), ("several lengths",)),
            (lambda rows: [row["vector"].pop() for row in rows], ("one length",)),
            (lambda rows: rows.append({**rows[0], "vector": rows[1]["vector"]}), ("two different features", "different splits")),
            (lambda rows: rows.clear(), ("no rows",)),
        ],
        ids=["column", "zero", "nan", "null", "ragged", "dim", "twice", "none"],
    )
    def test_a_file_that_is_wrong_is_refused(self, change, words, small, tmp_path):
        _, folder, _ = small
        table = parquet.read_table(folder / "views.parquet")
        rows = table.to_pylist()
        change(rows)
        schema = pa.schema([field for field in table.schema if not rows or field.name in rows[0]])
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "views.parquet")
        with refused(*words):
            import_features([tmp_path / "views.parquet"], [folder / "texts.parquet"], tmp_path / "encoded", name="x", logit_scale=1.0)

    def test_the_command_refuses_a_scale_and_a_split_that_mean_nothing(self, small, tmp_path, capsys):
        _, folder, _ = small
        files = [folder / "views.parquet", "--texts", folder / "texts.parquet", "--to", tmp_path / "encoded"]
        assert command("import", *files, "--logit-scale", "0") == 2 and "over 0" in capsys.readouterr().err
        assert command("export", *RUN, "dataset.validation_images=0", "--splits", "validation", "--to", tmp_path) == 2
        assert "no images in validation" in capsys.readouterr().err


def test_it_is_an_encoder(small, tmp_path):
    _, folder, _ = small
    encoder = imported(folder, tmp_path / "encoded")
    assert isinstance(encoder, ImportedEncoder) and not list(encoder.parameters()) and encoder.logit_scale == 50
    bank = encoder.encode_prompts([["a cat"], ["a dog", "a cat"]])
    assert bank.mask.tolist() == [[True, False], [True, True]] and torch.equal(bank.features[1, 1], bank.features[0, 0])
