"""Explanations: the words add up to the margin, the page and the picture take any text, and bad images are named."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import composed, random_text, unit
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from PIL import Image
from refusals import refused

from multicrop.aggregators import transport_plan
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.record import read_record
from multicrop.runs.experiment import run
from multicrop.runs.explain import settings_of_record
from multicrop.runs.explained_images import DataImages, asked_images
from multicrop.runs.settings import settings_of
from multicrop.show.explain.carriers import (
    MOST_TEXTS,
    against,
    caption,
    carriers,
    deciding,
    texts_shown,
    title,
    unlike,
    verdict,
    views_shown,
)
from multicrop.show.explain.explanation import BOTH, WHOLE_IMAGE, Side, Word, explain, words
from multicrop.show.explain.page import page
from multicrop.show.explain.picture import draw_explanation
from multicrop.show.explain.sheet import Sheet, draw_boxes
from multicrop.show.explain.table import words_table

SMALL = ["dataset.n_classes=6", "dataset.test_images=2", "dataset.train_images=2", "dataset.validation_images=2", "crop=random_k4"]
NASTY = '<script>alert("1")</script> $\\frac{1}{2}$ & [bold]'


def explained(generator, *overrides, fusion_weight=1.0, views=7, names=None, classes=5):
    text = random_text(generator, classes=classes)
    names = names or [f"class {c}" for c in range(classes)]
    scorer = Scorer(text, 20.0, instantiate(without(composed(*overrides).aggregator, "facts")), fusion_weight)
    features = unit(1, views, 16, generator=generator)
    boxes = torch.tensor([[0.0, 0, 60, 40], *([30.0 - k, k, 10.0, 20 + k] for k in range(views - 1))])  # mirrored: x1 > x2
    item = explain(scorer, features[0], boxes, names, name="a.png", open_image=lambda: Image.new("RGB", (60, 40), "teal"))
    return item, scorer, features


TRANSPORTS = [
    ["aggregator=dnd"],
    ["aggregator=awt"],
    ["aggregator=optimal_transport", "aggregator.solver=exact"],
    ["aggregator=optimal_transport", "aggregator.solver=partial", "aggregator.view_marginal=best_match"],
    ["aggregator=optimal_transport", "aggregator.solver=unbalanced", "aggregator.text_set=all"],
]


@pytest.mark.parametrize("overrides", TRANSPORTS, ids=lambda o: " ".join(o))
@pytest.mark.parametrize("fusion_weight", [1.0, 0.3])
def test_the_words_of_a_transport_add_up_to_the_margin(overrides, fusion_weight, generator):
    item, scorer, features = explained(generator, *overrides, fusion_weight=fusion_weight)
    logits = scorer(features)[0]
    top = logits.topk(2)
    assert (item.predicted.name, item.runner_up.name) == tuple(f"class {c}" for c in top.indices.tolist())
    assert item.margin == pytest.approx(float(top.values[0] - top.values[1]), abs=1e-5)
    assert sum(word.contribution for word in item.words) == pytest.approx(item.margin, abs=2e-4)
    assert (WHOLE_IMAGE in [word.text for word in item.words]) == (fusion_weight < 1)
    sizes = [abs(word.contribution) for word in item.words]
    assert item.is_plan and sizes == sorted(sizes, reverse=True)
    for side in (item.predicted, item.runner_up):
        assert float(side.mass.sum()) == pytest.approx(1, abs=1e-5)


def test_a_words_contribution_is_the_mass_it_gets_times_how_far_it_lies_above_the_middle():
    mass = [[0.2, 0.3], [0.1, 0.4]]
    scores = {"cat": [[0.5, 0.1], [0.2, 0.3]], "dog": [[0.3, 0.1], [0.0, 0.2]]}
    texts = {"cat": ["whiskers", "four legs"], "dog": ["four legs", "long tongue"]}
    sides = [Side(name, 0.0, texts[name], torch.tensor(mass), torch.tensor(scores[name])) for name in scores]
    found = {word.text: word for word in words(*sides, 10.0)}
    total = {name: sum(mass[k][m] * scores[name][k][m] for k in range(2) for m in range(2)) for name in scores}
    middle = (total["cat"] + total["dog"]) / 2
    expected = dict.fromkeys(["whiskers", "four legs", "long tongue"], 0.0)
    for sign, name in ((1, "cat"), (-1, "dog")):
        for m, text in enumerate(texts[name]):
            expected[text] += 10 * sign * sum(mass[k][m] * (scores[name][k][m] - middle) for k in range(2))
    assert {text: word.contribution for text, word in found.items()} == pytest.approx(expected, abs=1e-6)
    assert {text: word.side for text, word in found.items()} == {"whiskers": "cat", "four legs": BOTH, "long tongue": "dog"}


def test_the_mass_is_the_aggregators_own_plan(generator):
    item, scorer, features = explained(generator, "aggregator=dnd")
    _, plan, used = transport_plan(features, scorer.text, logit_scale=20.0, **scorer.aggregator.knobs)
    c = int(item.predicted.name.removeprefix("class "))
    torch.testing.assert_close(item.predicted.mass, plan[0, c, :, : int(used.mask[c].sum())])
    assert item.crop_names() == ["1", "2", "3", "4", "5", "6"] and (item.boxes[:, 0] <= item.boxes[:, 2]).all()


@pytest.mark.parametrize("name", ["wca", "vote", "global", "soft_match"])
def test_without_a_plan_the_similarities_are_shown_and_named_so(name, generator):
    item, scorer, features = explained(generator, f"aggregator={name}")
    assert not item.is_plan and len(item.boxes) == len(item.predicted.scores) == len(item.crop_names())
    assert float(item.predicted.mass.sum()) == pytest.approx(1)
    c = int(item.predicted.name.removeprefix("class "))
    first = len(features[0]) - len(item.boxes)
    prompt = scorer.text.prompts[c].index(item.predicted.prompts[0])
    assert float(item.predicted.scores[0, 0]) == pytest.approx(float(features[0, first] @ scorer.text.features[c, prompt]), abs=1e-5)
    assert "has no transport plan" in page(item) and "has no plan to split its margin by" in page(item)


def test_the_page_escapes_every_text_and_reaches_for_nothing(generator, tmp_path):
    item, _, _ = explained(generator, "aggregator=dnd", names=[f"{NASTY} {c}" for c in range(5)])
    html = page(item)
    assert html.count("<script>") == 1 and "&lt;script&gt;alert(&quot;1&quot;)" in html
    assert (
        not re.search(r'(src|href)\s*=\s*"(?!data:|#photo)', html) and "http:" not in html and "https:" not in html and "url(" not in html
    )
    assert "default-src 'none'" in html and html.count("<rect data-view") == 6
    draw_explanation(item, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size[0] > 1000
    cells = list(words_table(item).columns[1].cells)
    assert all("\\[bold]" in cell or cell == BOTH for cell in cells)


def test_one_class_has_no_runner_up(generator, tmp_path):
    item, _, _ = explained(generator, "aggregator=dnd", classes=1)
    assert item.predicted.name == "class 0" and item.words == []
    for draw in (lambda: draw_explanation(item, tmp_path / "a.png"), lambda: page(item)):
        with refused("two classes", "dataset="):
            draw()
    assert not list(tmp_path.iterdir())


def test_the_logits_given_decide_the_classes(generator):
    """An adapter's or a method's logits predict; the plan is the aggregator's for that class."""
    _, scorer, features = explained(generator, "aggregator=dnd")
    names, boxes = [f"class {c}" for c in range(5)], torch.zeros(7, 4)
    logits, whole = torch.tensor([0.0, 1.0, 5.0, 2.0, 3.0]), torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])
    item = explain(
        scorer,
        features[0],
        boxes,
        names,
        name="a",
        open_image=lambda: Image.new("RGB", (8, 8)),
        logits=logits,
        global_logits=whole,
        label="class 2",
    )
    assert [side.name for side in item.sides] == ["class 2", "class 4"] and item.margin == 2 and item.global_name == "class 1"
    assert item.probability == pytest.approx(float(logits.softmax(0)[2]))
    _, plan, used = transport_plan(features, scorer.text, logit_scale=20.0, **scorer.aggregator.knobs)
    for side, c in zip(item.sides, (2, 4), strict=True):
        torch.testing.assert_close(side.plan, plan[0, c, :, : int(used.mask[c].sum())], atol=1e-5, rtol=1e-3)


def test_crops_are_numbered_from_1_and_the_global_view_is_all(generator):
    item, _, _ = explained(generator, "aggregator=awt", views=4)  # reads the global view too
    assert item.crop_names() == ["all", "1", "2", "3"] and item.boxes[0].tolist() == [0, 0, 60, 40]
    assert "<title>global view: " in page(item) and "<title>crop 3: " in page(item) and "crop all" not in page(item)


@pytest.fixture
def folders(tmp_path):
    """A data set of class folders, and the part of the configuration that names it."""
    for number, name in enumerate(["cat/a", "cat/b", "dog/a", "dog/b"]):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((90, 70 + number), 40 + 20 * number).convert("RGB").save(path)
    return tmp_path / "data", ["dataset=folder", f"dataset.root={tmp_path}/data", "dataset.test_share=0.5"]


def dataset_of(*overrides):
    return settings_of(composed(*overrides)).part("dataset").make()


def names_of(found):
    return [(asked.name, asked.named, asked.label) for asked in found]


def test_images_are_files_folders_ids_or_lists_and_what_is_missing_is_named(tmp_path, folders):
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("in/b.png", "in/deep/a.JPG", "in/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    images = DataImages(dataset_of(*folders[1]), "test")

    def find(image):
        return names_of(asked_images(image, lambda: images))

    assert find(f"{tmp_path}/in") == [("b.png", False, None), ("a.JPG", False, None)]
    assert find([f"{tmp_path}/in/b.png", f"{tmp_path}/in/deep"]) == [("b.png", True, None), ("a.JPG", False, None)]
    for nothing in (None, []):
        with refused("image=PATH"):
            find(nothing)
    with refused("does not exist", "gone.png", "no image with this id"):
        find(str(tmp_path / "gone.png"))
    (tmp_path / "empty").mkdir()
    with refused("holds no image", ".png"):
        find(str(tmp_path / "empty"))


def test_an_image_of_the_data_set_is_known_by_its_id_its_place_and_its_bytes(tmp_path, folders):
    root, overrides = folders
    dataset = dataset_of(*overrides)
    images = DataImages(dataset, "test")
    for split in (dataset.test, dataset.train):
        for image_id, label in zip(split.ids, split.labels, strict=True):
            copy = tmp_path / "renamed.png"
            copy.write_bytes((root / image_id).read_bytes())
            for image in (image_id, str(root / image_id), str(copy)):
                assert names_of(asked_images(image, lambda: images)) == [(image_id, True, label)]
    other = tmp_path / "other.png"
    Image.new("RGB", (90, 70)).save(other)
    assert images.by_file(other) is None and images.by_id("other") is None


def test_an_image_without_a_file_is_known_by_the_name_of_its_id_and_its_pixels(tmp_path):
    scenes = dataset_of(*SMALL)
    images, image_id = DataImages(scenes, "test"), scenes.test.ids[3]
    scenes.test.open(3).save(tmp_path / f"{image_id}.png")
    found = images.by_file(tmp_path / f"{image_id}.png")
    assert (found.name, found.label) == (image_id, scenes.test.labels[3])
    scenes.test.open(4).save(tmp_path / f"{image_id}.png")
    assert images.by_file(tmp_path / f"{image_id}.png") is None


@pytest.mark.parametrize("task", ["zero_shot", "tta"])
def test_an_image_of_a_record_has_the_crops_and_the_class_of_its_run(tmp_path, task):
    """The run's configuration is that of the record, whatever the defaults are."""
    words = [*SMALL, "crop_seed=7", "examples=3", f"paths.output={tmp_path}/run", f"paths.cache={tmp_path}/banks", "logger=none"]
    run(composed(f"task={task}", *words))
    record = read_record(tmp_path / "run")
    chosen = [example for example in json.loads((tmp_path / "run/examples.json").read_text()) if example["boxes"]]
    kept = {example["image_id"] for example in chosen} | set(record.predictions.image_id[:2])
    out = [f"record={tmp_path}/run", "task=explain", f"paths.output={tmp_path}/out"]
    run(composed(f"image=[{','.join(sorted(kept))}]", *out))
    facts = {fact["image"]: fact for fact in json.loads((tmp_path / "out/explanations.json").read_text())}
    assert set(facts) == kept and chosen
    names = record.data["class_names"]
    rows = zip(record.predictions.image_id, record.predictions.label, record.predictions.rows["final"], strict=True)
    for image_id, label, final in (row for row in rows if row[0] in kept):
        assert (facts[image_id]["prediction"], facts[image_id]["label"]) == (names[final], names[label])
    side = composed(*SMALL).dataset.canvas
    for example in chosen:
        fact = facts[example["image_id"]]
        shares = [[value / side for value in box] for name, box in zip(fact["crops"], fact["boxes"], strict=True) if name != "all"]
        assert torch.tensor(shares) == pytest.approx(torch.tensor(example["boxes"]), abs=1e-4)
        assert fact["prediction"] == example["prediction"] and fact["global_view"] == example["global"]


def test_a_record_and_another_configuration_are_refused(tmp_path, monkeypatch):
    run(composed(*SMALL, f"paths.output={tmp_path}/run", f"paths.cache={tmp_path}/banks", "logger=none"))
    settings = settings_of(composed("task=explain", f"record={tmp_path}/run"))
    given = [
        "task=explain",
        f"record={tmp_path}/run",
        "image=a.png",
        "crop=random_k16",
        "crop_seed=3",
        "task.fusion_weight=0.5",
        "trainer.threads=1",
    ]
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: SimpleNamespace(overrides=SimpleNamespace(task=given))))
    with refused("brings its own configuration", "remove crop=random_k16 crop_seed=3 task.fusion_weight=0.5,"):
        settings_of_record(settings, read_record(tmp_path / "run"))


def test_the_task_writes_pictures_pages_and_facts_and_skips_what_a_folder_has_of_broken_files(tmp_path):
    pictures = tmp_path / "in"
    pictures.mkdir()
    Image.effect_noise((90, 70), 80).convert("RGB").save(pictures / "noise.png")
    (pictures / "broken.png").write_bytes(b"not a picture")
    out = [f"paths.output={tmp_path}/out", "task=explain", *SMALL]
    accuracy = run(composed(f"image={pictures}", *out))
    facts = json.loads((tmp_path / "out/explanations.json").read_text())
    assert [fact["image"] for fact in facts] == ["noise.png"] and accuracy == pytest.approx(facts[0]["probability"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000-noise.png", "000-noise.html", "explanations.json"}
    assert "data:image/png;base64," in (tmp_path / "out/000-noise.html").read_text()
    with refused("broken.png", "cannot be decoded"):
        run(composed(f"image={pictures}/broken.png", *out))
    with refused("broken.png"):
        run(composed(f"image={pictures}", "on_unreadable=raise", *out))


def sides(*texts_of):
    """Two classes whose plan moves the mass of each text from two crops."""
    plan = torch.tensor([[0.30, 0.05], [0.15, 0.10], [0.02, 0.20], [0.03, 0.15]])
    return [Side(f"melon, penguin and {name}", 5.0 - number, list(texts), plan, plan) for number, (name, texts) in enumerate(texts_of)]


def item_of(generator, **changed):
    item, _, _ = explained(generator, "aggregator=dnd", views=5)
    both = sides(("cat", ["cat", "melon"]), ("dragon", ["dragon", "melon"]))
    found = [Word("dragon", both[1].name, 0.6), Word("cat", both[0].name, -0.4), Word("melon", BOTH, 0.1)]
    return replace(item, sides=both, words=found, **changed)


def test_a_text_is_shown_with_the_crops_that_carry_its_mass_and_their_shares(generator):
    item = item_of(generator)
    first, second = (carriers(item, item.predicted, text) for text in (0, 1))
    assert [(c.view, c.name) for c in first] == [(0, "1"), (1, "2")]  # the third crop has 6 %
    assert [c.value for c in first] == pytest.approx([0.6, 0.3]) and [c.value for c in second] == pytest.approx([0.4, 0.3, 0.2])
    assert [caption(item, c) for c in second] == ["3: 40 %", "4: 30 %", "2: 20 %"]
    assert views_shown(item, item.predicted) == [0, 1, 2, 3]
    html = page(item)
    assert html.count('<use href="#photo"/>') == 10 and "<figcaption>3: 40 %</figcaption>" in html
    even = replace(item, is_plan=False)
    assert [caption(even, c) for c in carriers(even, item.predicted, 0)] == ["1: 0.30", "2: 0.15", "4: 0.03"]


def test_of_many_texts_those_that_add_most_are_shown_in_their_order(generator):
    item = item_of(generator)
    texts = [f"text {number}" for number in range(MOST_TEXTS + 2)]
    side = replace(item.predicted, prompts=texts, plan=(plan := torch.rand(4, len(texts), generator=generator)), scores=plan)
    item = replace(item, words=[Word(text, side.name, 0.0 if number in (2, 5) else 1.0) for number, text in enumerate(texts)])
    assert texts_shown(item, side) == [0, 1, 3, 4, *range(6, MOST_TEXTS + 2)]


def test_a_name_is_said_by_the_words_in_which_it_differs():
    assert unlike("a, b, c and cat", "a, b, c and dragon face") == "… cat"
    assert unlike("red bird of the north sea", "blue bird of the north sea") == "red …"
    assert unlike("a, b, x and c d", "a, b, y and c d") == "… x …"
    assert unlike("cat", "dog") == "cat" and unlike("a cat", "a dog") == "a cat" and unlike("a b", "a b") == "a b"
    assert unlike("a, b and", "a, b and c") == "a, b and"  # nothing is left


def test_the_title_says_true_and_predicted_class_and_the_text_that_decided(generator):
    item = item_of(generator, label="melon, penguin and cat", global_name="melon, penguin and dragon")
    assert title(item) == [
        "melon, penguin and cat: right",
        "global view: … dragon; runner-up: … dragon",
        "decided by “dragon” (… dragon, matched less): +0.60 of the margin of 1.00",
    ]
    wrong = replace(item, label="melon, penguin and owl", global_name=item.predicted.name)
    assert verdict(wrong) == "wrong, it is … owl" and against(wrong) == "global view: the same; runner-up: … dragon"
    assert verdict(replace(item, label=None, probability=0.314)) == "31 %"
    assert deciding(replace(item, is_plan=False)) == "" and len(title(replace(item, words=[]))) == 2
    assert deciding(replace(item, words=[Word("melon", BOTH, 0.1)])).startswith("decided by “melon” (both classes): +0.10")


def test_the_picture_has_only_the_boxes_of_the_crops_that_it_shows(generator):
    item = item_of(generator)
    shown = replace(item, sides=[replace(side, plan=side.plan * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]) for side in item.sides])
    axis = Sheet(4.0, 4.0).axes(0.0, 0.0, 4.0, 4.0)
    draw_boxes(axis, shown, views_shown(shown, shown.predicted))
    assert [text.get_text() for text in axis.texts] == ["1", "2", "3"] and len(axis.patches) == 3
