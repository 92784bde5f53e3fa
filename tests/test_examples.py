"""The images that a record keeps: which are picked, what is said of them, and that a picture is made once."""

import pytest
import torch
from conftest import composed, pictures, random_text, unit
from hydra.utils import instantiate
from PIL import Image

from multicrop.aggregators import transport_plan
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.record import Predictions
from multicrop.show import examples
from multicrop.show import pictures as report
from multicrop.show.explain.carriers import title
from multicrop.show.explain.scored import ScoredImages

VIEW_SETS = {"uniform": "crops", "entropy": "all"}  # entropy compares all classes


class Run:
    """Five views of six images with boxes."""

    def __init__(self, generator, collected, *overrides):
        self.images, self.views = pictures(6), unit(6, 5, 16, generator=generator)
        self.boxes = torch.tensor([[0.0, 0, 100, 90]] + [[50.0, 10, 10, 60]] * 4)  # the crops are mirrored
        self.scorer = Scorer(random_text(generator), 20.0, instantiate(without(composed(*overrides).aggregator, "facts")), 1.0)
        self.collected, self.fingerprint, self.open = collected, "six", self.images.open

    @property
    def scored(self):
        return ScoredImages(
            predictions=predicted(self.collected),
            scores=self.collected,
            ids=self.images.ids,
            fingerprint=self.fingerprint,
            open_image=self.open,
            views=lambda index: self.views[index],
            boxes=lambda index: self.boxes,
            scorer=self.scorer,
            class_names=[f"class {c}" for c in range(5)],
        )


def logits(*classes):
    return torch.nn.functional.one_hot(torch.tensor(classes), 5).float()


def predicted(scores):
    rows = {row: scores[row].argmax(1).numpy() for row in ("global", "final")}
    return Predictions([str(index) for index in scores["index"].tolist()], scores["label"].numpy(), rows, domain=())


@pytest.fixture
def collected():
    """Images 0 and 1 rescued, 2 and 3 lost, 4 wrong, 5 right in both."""
    label = torch.tensor([0, 1, 0, 1, 0, 1])
    return {"label": label, "index": torch.arange(6), "global": logits(1, 0, 0, 1, 2, 1), "final": logits(0, 1, 3, 0, 3, 1)}


def outcomes(kinds):
    """Scores of images that are rescued (r), lost (l), wrong (w) or right in both rows (o)."""
    base, final = {"r": 1, "l": 0, "w": 2, "o": 0}, {"r": 0, "l": 1, "w": 2, "o": 0}
    return {
        "label": torch.zeros(len(kinds), dtype=torch.long),
        "index": torch.arange(len(kinds)),
        "global": logits(*(base[k] for k in kinds)),
        "final": logits(*(final[k] for k in kinds)),
    }


def test_all_kinds_are_picked_and_free_places_are_used(collected):
    assert examples.pick(predicted(collected), 6) == [(0, "rescued"), (1, "rescued"), (2, "lost"), (3, "lost"), (4, "wrong")]
    assert [kind for _, kind in examples.pick(predicted(collected), 3)] == ["rescued", "rescued", "lost"]
    assert examples.pick(predicted(collected), 0) == []
    none_wrong = {**collected, "final": collected["global"]}
    assert [kind for _, kind in examples.pick(predicted(none_wrong), 4)] == ["wrong"] * 3


def test_half_of_the_examples_are_rescued_a_third_lost_a_sixth_wrong_spread_over_the_stream():
    scores = predicted(outcomes("rlwo" * 25))  # rescued at 0, 4, ..., 96, lost one later, wrong two later
    picked = examples.pick(scores, 12)
    positions = {kind: [p for p, k in picked if k == kind] for kind in examples.KINDS}
    assert positions == {"rescued": [0, 20, 40, 56, 76, 96], "lost": [1, 33, 65, 97], "wrong": [2, 98]}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("rrrr" + "l" * 20 + "w" * 20, {"rescued": 4, "lost": 6, "wrong": 2}),  # the places of rescued ones go to lost ones first
        ("r" * 20 + "l" + "w" * 20, {"rescued": 9, "lost": 1, "wrong": 2}),  # those of lost ones to rescued ones
        ("rl" + "w" * 20, {"rescued": 1, "lost": 1, "wrong": 10}),
        ("rllww", {"rescued": 1, "lost": 2, "wrong": 2}),
        ("oooo", {"rescued": 0, "lost": 0, "wrong": 0}),
    ],
)
def test_places_that_a_kind_does_not_fill_go_to_the_others_in_order(kinds, expected):
    found = [kind for _, kind in examples.pick(predicted(outcomes(kinds)), 12)]
    assert {kind: found.count(kind) for kind in examples.KINDS} == expected


def test_spread_takes_the_first_and_the_last():
    assert examples.spread(range(10, 17), 3) == [10, 13, 16]
    assert examples.spread([5, 6], 4) == [5, 6] and examples.spread([5, 6, 7], 1) == [5] and examples.spread([], 2) == []


@pytest.mark.parametrize(
    ("kinds", "count", "expected"),
    [
        ("orwrrwrw", 4, [1, 3, 6, 2]),  # three rescued ones of one class, the others spread, then one wrong one
        ("orwrrwrw", 1, [1]),  # no wrong one in place of the only rescued one
        ("oorw", 4, [2, 3, 0, 1]),  # any others fill the places
        ("oooo", 2, [0, 1]),
        ("wwoo", 3, [0, 1, 3]),
        ("ll", 2, [0, 1]),  # a lost image is a wrong one
        ("rr", 0, []),
    ],
)
def test_pictures_show_rescued_images_one_wrong_one_and_others(kinds, count, expected):
    assert report.chosen_examples(predicted(outcomes(kinds)), count) == expected


def test_pictures_are_of_different_classes_as_far_as_there_are_so_many():
    scores = outcomes("rrrrrrrrwwoo")
    label = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 3, 4, 4])
    scores |= {"label": label, "final": logits(*label.tolist()), "global": logits(*((label + 1) % 5).tolist())}
    scores["final"][8:10] = logits(1, 1)
    found = predicted(scores)
    chosen = report.chosen_examples(found, 4)
    assert chosen == [0, 6, 10, 9] and len({int(label[position]) for position in chosen}) == 4
    assert report.chosen_examples(found, 6) == [0, 3, 6, 10, 1, 8] and len(set(report.chosen_examples(found, 12))) == 12


@pytest.mark.parametrize("view_marginal", VIEW_SETS)
def test_an_example_says_names_boxes_in_fractions_and_the_plan_of_the_predicted_class(collected, generator, view_marginal):
    knobs = [f"aggregator.view_marginal={view_marginal}", f"aggregator.view_set={VIEW_SETS[view_marginal]}"]
    run = Run(generator, collected, "aggregator=dnd", *knobs)
    made = examples.collect(run.scored, count=5)
    first = made[2]
    assert (first["kind"], first["label"], first["global"], first["prediction"]) == ("lost", "class 0", "class 0", "class 3")
    width, height = run.images.open(2).size
    assert first["boxes"][0] == pytest.approx([10 / width, 10 / height, 50 / width, 60 / height], abs=1e-3)
    _, plan, used = transport_plan(run.views[2:3], run.scorer.text, logit_scale=20.0, **run.scorer.aggregator.knobs)
    alone = plan[0, 3, -4:, : len(used.prompts[3])]
    assert torch.tensor(first["plan"]).numpy() == pytest.approx((alone / alone.sum(1, keepdim=True)).numpy(), abs=2e-3)
    assert first["prompts"] == used.prompts[3] and len(first["plan"]) == len(first["boxes"]) == 4
    assert max(examples.unpacked(first).size) <= examples.SIDE
    plain = examples.collect(Run(generator, collected, "aggregator=wca").scored, count=5)
    assert "plan" not in plain[0] and plain[0]["picture"] == made[0]["picture"]


def test_a_policy_without_crops_has_no_plan_in_its_examples(collected, generator):
    run = Run(generator, collected, "aggregator=dnd")
    run.views, run.boxes = run.views[:, :1], run.boxes[:1]
    assert all(example["boxes"] == [] and "plan" not in example for example in examples.collect(run.scored, count=5))


def test_a_picture_is_opened_once_whatever_the_number_of_runs(generator, collected):
    opened = []
    for run in (Run(generator, collected, "aggregator=dnd") for _ in range(2)):
        run.fingerprint, source = "counted", run.images.open
        run.open = lambda i, source=source: opened.append(i) or source(i)
        examples.collect(run.scored, count=5)
    assert sorted(opened) == [0, 1, 2, 3, 4]


def test_the_picture_of_a_run_shows_the_explained_images_with_their_outcome(generator, collected, tmp_path):
    run = Run(generator, collected, "aggregator=dnd").scored
    said = [title(run.explain(position))[0] for position in (0, 2, 4, 5)]
    assert said == ["class 0: right", "class 3: wrong, it is class 0", "class 3: wrong, it is class 0", "class 1: right"]
    assert title(run.explain(0))[1].startswith("global view: class 1; runner-up: class ")
    path = tmp_path / "explanations.png"
    assert report.draw_chosen(run, count=2, path=path) == path
    two, one = Image.open(path).size, report.draw_chosen(run, count=1, path=path) and Image.open(path).size
    assert two[0] == one[0] > 1200 and two[1] > 1.6 * one[1]
    assert report.draw_chosen(run, count=0, path=path) is None
    assert report.draw_chosen(Run(generator, collected, "aggregator=wca").scored, count=2, path=tmp_path / "none.png") is None
    assert [file.name for file in tmp_path.iterdir()] == ["explanations.png"]
