"""The identity of a run: every input changed in place changes its part and no other, and a sweep repeats what a change touches alone."""

import json
import shutil
import sys

import pytest
from conftest import composed, session_of
from PIL import Image
from safetensors.torch import load_file, save_file

from multicrop.adapters import descent
from multicrop.config import PACKAGE
from multicrop.files import Identity
from multicrop.record import read_record
from multicrop.runs import experiment, few_shot, settings
from multicrop.runs.identity import run_identity
from multicrop.runs.sweep_cache import SweepCache
from multicrop.text import GlobalText

TWO_SHOTS = ("task=few_shot", "task.shots=2", "adapter=tip_adapter")
PLUGIN = """
import torch
from own_helper import SHARE

def left(height, width, image_id, seed):
    return torch.tensor([[0.0, 0.0, max(1.0, width * SHARE // 1), height]])

def first(views, text, logit_scale, **knobs):
    return logit_scale * views[:, 0] @ text.label.T
"""
FEW_SHOT = ("task=few_shot", "task.shots=1", "adapter=tip_adapter")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with every file that a run can read: pictures, tables, class names, texts, a few-shot split, a model, and a plugin."""
    folder = tmp_path_factory.mktemp("inputs")
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        rows = [(f"{split}-{label}-{i}.png", label) for label in (0, 1) for i in range(count)]
        for i, (name, label) in enumerate(rows):
            Image.new("RGB", (40 + i, 40), (200 * label, 20 * i, len(split))).save(folder / name)
        (folder / f"{split}.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    (folder / "names.json").write_text('["okapi", "dugong"]')
    (folder / "texts.json").write_text('{"okapi": ["striped legs"], "dugong": ["a broad snout"]}')
    (folder / "more.json").write_text('{"okapi": ["a long tongue"], "dugong": ["grey skin"]}')
    split = {"train": ["train-0-0.png", "train-1-0.png"], "val": ["train-0-1.png", "train-1-1.png"]}
    (folder / "split.json").write_text(json.dumps(split))
    shutil.copytree(PACKAGE / "encoder" / "tiny_clip", folder / "model")
    (folder / "own_plugin.py").write_text(PLUGIN)
    (folder / "own_helper.py").write_text("SHARE = 0.5\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def words_of(folder, *more):
    data = [f"dataset.{split}={folder}/{name}.csv" for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))]
    data += ["dataset=csv", f"dataset.class_names={folder}/names.json", "model=local", f"model.path={folder}/model", "crop=random_k1"]
    return [*data, "aggregator=max", "prompt=descriptions", f"prompt.file={folder}/texts.json", *more]


def identity(folder, *more):
    return run_identity(session_of(*words_of(folder, *more)))


def replaced(name, old, new):
    """An edit of a text file in place."""

    def edit(folder):
        path = folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


def repainted(name):
    return lambda folder: Image.new("RGB", (44, 41), (9, 9, 9)).save(folder / name)


def retrained(folder):
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "vision_model" in name and name.endswith("weight"))
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


MERGES = [f'"merges": [\n      [\n        "{one}",\n        "{two}"\n' for one, two in (("i", "n"), ("a", "c"))]
OF_PLUGIN = ("crop=global", "crop._target_=own_plugin.left", "aggregator._target_=own_plugin.first")
EDITS = {  # what is edited in place, the run, and the parts of its identity that change
    "prompt.file": (replaced("texts.json", "striped", "spotted"), (), {"texts"}),
    "prompt.extend": (replaced("more.json", "grey", "dark"), ("prompt.extend={}/more.json",), {"texts"}),
    "a file that is not read": (replaced("more.json", "grey", "dark"), (), set()),
    "weights": (retrained, (), {"encoder"}),
    "config.json": (replaced("model/config.json", '"num_attention_heads": 6', '"num_attention_heads": 3'), (), {"encoder"}),
    "tokenizer": (replaced("model/tokenizer.json", MERGES[0], MERGES[1]), (), {"texts"}),
    "few_shot_file": (replaced("split.json", "train-0-0", "train-0-2"), (*FEW_SHOT, "task.few_shot_file={}/split.json"), {"support"}),
    "class names": (replaced("names.json", "okapi", "quokka"), ("prompt=template",), {"data", "texts"}),
    "a label of test": (replaced("test.csv", "test-0-1.png,0", "test-0-1.png,1"), (), {"data"}),
    "a label of train": (replaced("train.csv", "train-0-1.png,0", "train-0-1.png,1"), (), set()),
    "a label of the support": (replaced("train.csv", "train-0-2.png,0", "train-0-2.png,1"), TWO_SHOTS, {"support"}),
    "a label beside the support": (replaced("train.csv", "train-0-1.png,0", "train-0-1.png,1"), TWO_SHOTS, set()),
    "a test image": (repainted("test-0-0.png"), (), {"data"}),
    "a validation image": (repainted("val-0-0.png"), (), set()),
    "a validation image, scored": (repainted("val-0-0.png"), ("split=validation",), {"data"}),
    "a validation image, few-shot": (repainted("val-0-0.png"), FEW_SHOT, {"support"}),
    "plugin": (replaced("own_plugin.py", "views[:, 0]", "views[:, -1]"), OF_PLUGIN, {"crops", "aggregator"}),
    "plugin's own import": (replaced("own_helper.py", "0.5", "0.6"), OF_PLUGIN, {"crops", "aggregator"}),
    "plugin that is not read": (replaced("own_plugin.py", "views[:, 0]", "views[:, -1]"), (), set()),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_input_edited_in_place_changes_its_part_and_no_other(name, place):
    edit, more, expected = EDITS[name]
    words = [word.format(place) for word in more]
    if "prompt=template" in words:
        words = [word for word in words_of(place, *words) if "prompt.file" not in word and word != "prompt=descriptions"]
        made = lambda: run_identity(session_of(*words))  # noqa: E731
    else:
        made = lambda: identity(place, *words)  # noqa: E731
    kept = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    before = made()
    assert made() == before
    edit(place)
    try:
        after = made()
    finally:
        for path, content in kept.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
    assert set(before.differences(after)) == expected and (before.key == after.key) == (not expected)


KNOBS = [
    ((), ("seed=2",), set()),
    (("task=tta",), ("seed=2",), set()),
    (FEW_SHOT, ("seed=2",), {"support"}),
    (("task=few_shot", "task.shots=1", "adapter=coop", "prompt.extend={}/more.json"), ("seed=2",), {"support", "adapter"}),
    (OF_PLUGIN, ("seed=2",), {"task"}),  # code outside the package may draw from the global generator
    ((), ("crop_seed=2",), {"crops"}),
    ((), ("crop.n_crops=2",), {"crops"}),
    ((), ("bank=off",), {"crops"}),
    ((), ("trainer.cut=device",), {"crops"}),
    ((), ("aggregator.each=both",), {"aggregator"}),
    ((), ("task.fusion_weight=0.5",), {"task"}),
    ((), ("on_unreadable=raise",), {"task"}),
    ((), ("model.precision=bf16",), {"encoder"}),
    ((), ("split=validation",), {"data"}),
    ((), ("trainer.batch_size=3", "pictures=0", "examples=0", "logits=all", "paths.output=elsewhere"), set()),
    ((), ("task.beside=[wca]",), {"beside"}),
    (("task.beside=[wca,topk]",), ("task.beside=[topk,wca]",), {"beside"}),
    (("task=tta",), ("method.positive.size=2",), {"method"}),
    (("task=tta",), ("task.order_seed=2",), {"task"}),
    (("task=tta",), ("task.save_every=5",), set()),
    (FEW_SHOT, ("task.selection=fixed",), {"task"}),
    ((), FEW_SHOT, {"adapter", "support", "task"}),
]


@pytest.mark.parametrize(("first", "then", "expected"), KNOBS, ids=lambda value: " ".join(sorted(value)))
def test_a_knob_changes_its_part_and_no_other(first, then, expected, place):
    first = [word.format(place) for word in first]
    assert set(identity(place, *first).differences(identity(place, *first, *then))) == expected


def test_means_count_with_their_members(place):
    shown, lists = words_of(place)[:-2], ("['a {}','b {}']", "['a {}','c {}']")
    one, two = (session_of(*shown, "prompt=ensemble", f"prompt.templates={texts}") for texts in lists)
    assert one.prompts == two.prompts and run_identity(one).differences(run_identity(two)) == ["texts"]


def test_global_texts_differ_from_local_ones_of_the_same_words(place):
    local = session_of(*words_of(place))
    whole = local.with_classes(local.dataset, [[label, *map(GlobalText, texts)] for label, *texts in local.prompts])
    assert whole.prompts == local.prompts and run_identity(whole, "texts") != run_identity(local, "texts")
    cache = SweepCache()
    assert cache.get("text", local.prompts, list) is not cache.get("text", whole.prompts, list)


def test_the_identity_is_the_same_in_a_sweep_that_shares_parts(place):
    from multicrop.runs.session import Session

    cache, words = SweepCache(), words_of(place, *FEW_SHOT)
    shared = [run_identity(Session(settings.settings_of(composed(*words)), cache)) for _ in range(2)]
    assert shared[0] == shared[1] == identity(place, *FEW_SHOT)


def test_a_key_of_some_parts_does_not_depend_on_the_others():
    one, two = Identity({"a": "1", "b": "2"}), Identity({"a": "1", "b": "3"})
    assert one.key_of("a") == two.key_of("a") != one.key_of("b") and one.key != two.key and one.differences(two) == ["b"]
    assert one.key_of("a", "c") != one.key_of("a") and one.key == Identity({"b": "2", "a": "1"}).key


@pytest.fixture
def sweep(place, tmp_path, monkeypatch):
    """Runs jobs of a sweep in this process; returns whether a job ran, and its accuracy."""
    monkeypatch.setattr(settings, "in_sweep", lambda: True)
    write, ran = experiment.write_record, []
    monkeypatch.setattr(experiment, "write_record", lambda folder, **parts: ran.append(1) or write(folder, **parts))
    fixed = ["examples=0", "pictures=0", "trainer.progress=false", f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out"]

    def job(*more):
        ran.clear()
        accuracy = experiment.run(composed(*words_of(place, *fixed, *more)), SweepCache())
        return bool(ran), accuracy

    return job


def test_a_repeated_sweep_skips_what_is_done_and_runs_again_what_a_change_touches(place, sweep):
    """Both jobs write into one folder, so the index finds the record of another run there."""
    mean = "aggregator=mean_feature"
    assert sweep(mean)[0] and not sweep(mean)[0] and not sweep(mean, "seed=7")[0]
    assert sweep("aggregator=max")[0] and sweep(mean)[0] and not sweep(mean)[0]
    kept = (place / "test.csv").read_text()
    replaced("test.csv", "test-0-1.png,0", "test-0-1.png,1")(place)
    ran, accuracy = sweep(mean)
    assert ran and sweep(mean) == (False, accuracy)
    (place / "test.csv").write_text(kept)
    assert sweep(mean)[0]


def test_the_record_says_what_decided_the_run_and_names_the_model(place, sweep, tmp_path):
    sweep(*FEW_SHOT)
    record = read_record(tmp_path / "out")
    encoder = session_of(*words_of(place)).encoder
    assert record.identity == identity(place, *FEW_SHOT)
    assert record.model["weights"] == encoder.weights_hash() and record.model["architecture"] == "CLIPModel"
    assert record.model["parameters"] == sum(p.numel() for p in encoder.parameters()) > 1e6


def test_a_fit_never_goes_on_from_one_with_other_inputs(place, tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    found, fit = [], few_shot._fit
    monkeypatch.setattr(few_shot, "_fit", lambda session, adapter, work, key: found.append(key) or fit(session, adapter, work, key))
    fixed = ["examples=0", "pictures=0", "trainer.progress=false", f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out"]
    words = ["task=few_shot", "task.shots=1", "adapter=clip_adapter", "adapter.epochs=1", *fixed]
    for more in ((), ("split=validation",), ("seed=2",), ("aggregator=mean_feature",)):
        experiment.run(composed(*words_of(place, *words, *more)))
    assert found[0] == found[1] and len(set(found)) == 3
