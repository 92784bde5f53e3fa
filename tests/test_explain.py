"""Explanations: the words add up to the margin, the page and the picture take any text, and bad images are named."""

import json
import re

import pytest
import torch
from conftest import composed, random_text, unit
from hydra.utils import instantiate
from PIL import Image
from refusals import refused

from multicrop.aggregators import transport_plan
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.runs.experiment import run
from multicrop.runs.explain import image_files
from multicrop.show.explain.explanation import BOTH, WHOLE_IMAGE, Side, explain, words
from multicrop.show.explain.page import page
from multicrop.show.explain.picture import draw_explanation
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
    assert not re.search(r'(src|href)\s*=\s*"(?!data:)', html) and "http:" not in html and "https:" not in html and "url(" not in html
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


def test_images_are_files_folders_or_lists_and_what_is_missing_is_named(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert image_files(str(tmp_path)) == ([tmp_path / "b.png", tmp_path / "deep/a.JPG"], set())
    one = tmp_path / "b.png"
    assert image_files([str(one), str(tmp_path / "deep")]) == ([one, tmp_path / "deep/a.JPG"], {one})
    for nothing in (None, []):
        with refused("image=PATH"):
            image_files(nothing)
    with refused("does not exist", "gone.png"):
        image_files(str(tmp_path / "gone.png"))
    (tmp_path / "empty").mkdir()
    with refused("holds no image", ".png"):
        image_files(str(tmp_path / "empty"))


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
