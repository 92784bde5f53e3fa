"""The images that a record keeps: which are picked, what is said of them, and that a picture is made once."""

import pytest
import torch
from conftest import pictures, random_text, unit

from multicrop.aggregators import transport_plan
from multicrop.show import examples

KNOBS = {"view_set": "crops", "text_set": "descriptions", "solver": "sinkhorn", "epsilon": 0.05}


class Bank:
    """Five views of six images with boxes."""

    def __init__(self, generator):
        self.images, self.positions = pictures(6), list(range(6))
        self.views = unit(6, 5, 16, generator=generator)

    def __getitem__(self, position):
        return self.views[position], self.images.labels[position], position

    def boxes(self, index):
        return torch.tensor([[0.0, 0, 100, 90]] + [[50.0, 10, 10, 60]] * 4)  # the crops are mirrored


def logits(*classes):
    return torch.nn.functional.one_hot(torch.tensor(classes), 5).float()


@pytest.fixture
def collected():
    """Images 0 and 1 rescued, 2 and 3 lost, 4 wrong, 5 right in both."""
    label = torch.tensor([0, 1, 0, 1, 0, 1])
    return {"label": label, "index": torch.arange(6), "global": logits(1, 0, 0, 1, 2, 1), "final": logits(0, 1, 3, 0, 3, 1)}


def test_all_kinds_are_picked_and_free_places_are_used(collected):
    assert examples.pick(collected, 6) == [(0, "rescued"), (1, "rescued"), (2, "lost"), (3, "lost"), (4, "wrong")]
    assert [kind for _, kind in examples.pick(collected, 3)] == ["rescued", "rescued", "lost"]
    assert examples.pick(collected, 0) == []
    none_wrong = {**collected, "final": collected["global"]}
    assert [kind for _, kind in examples.pick(none_wrong, 4)] == ["wrong"] * 3


@pytest.mark.parametrize("view_marginal", ["uniform", "entropy"])  # entropy compares all classes
def test_an_example_says_names_boxes_in_fractions_and_the_plan_of_the_predicted_class(collected, generator, view_marginal):
    knobs = KNOBS | {"view_marginal": view_marginal}
    bank, text = Bank(generator), random_text(generator)
    names = [f"class {c}" for c in range(5)]
    made = examples.collect(bank, collected, text, names, count=5, plan_knobs=knobs)
    first = made[2]
    assert (first["kind"], first["label"], first["global"], first["prediction"]) == ("lost", "class 0", "class 0", "class 3")
    width, height = bank.images.open(2).size
    assert first["boxes"][0] == pytest.approx([10 / width, 10 / height, 50 / width, 60 / height], abs=1e-3)
    _, plan, used = transport_plan(bank.views[2:3], text, **knobs)
    alone = plan[0, 3, :, : len(used.prompts[3])]
    assert torch.tensor(first["plan"]).numpy() == pytest.approx((alone / alone.sum(1, keepdim=True)).numpy(), abs=2e-3)
    assert first["prompts"] == used.prompts[3] and len(first["plan"]) == len(first["boxes"]) == 4
    assert max(examples.unpacked(first).size) <= examples.SIDE
    plain = examples.collect(bank, collected, text, names, count=5, plan_knobs=None)
    assert "plan" not in plain[0] and plain[0]["picture"] == made[0]["picture"]


def test_a_picture_is_opened_once_whatever_the_number_of_runs(generator, collected):
    opened = []
    first, again = Bank(generator), Bank(generator)
    from dataclasses import replace

    source = first.images.open
    for bank in (first, again):
        bank.images = replace(bank.images, fingerprint="counted", open=lambda i: opened.append(i) or source(i))
        examples.collect(bank, collected, random_text(generator), ["x"] * 5, count=5, plan_knobs=None)
    assert sorted(opened) == [0, 1, 2, 3, 4]
