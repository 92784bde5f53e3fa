"""The boxes of a crop policy are checked at the first image of a bank."""

import random as python_random
from functools import partial

import numpy as np
import pytest
import torch
from conftest import options, pictures, session_of
from refusals import refused

from multicrop import crops
from multicrop.crops.checked import check_policy
from multicrop.features import feature_bank

PICTURE = torch.zeros(3, 40, 60, dtype=torch.uint8)


def fixed(*boxes):
    """A policy that draws these boxes."""

    def policy(height, width, image_id, seed):
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)

    return crops.as_policy(policy)


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ((0.5, 0, 10, 10), "is not in whole pixels"),
        ((0, 0, float("nan"), 10), "is not in whole pixels"),
        ((0, 0, float("inf"), 10), "is not in whole pixels"),
        ((-1, 0, 10, 10), "leaves the image"),
        ((10, 0, -1, 10), "leaves the image"),
        ((0, -1, 10, 10), "leaves the image"),
        ((0, 0, 61, 10), "leaves the image"),
        ((61, 0, 5, 10), "leaves the image"),
        ((0, 0, 10, 41), "leaves the image"),
        ((5, 0, 5, 10), "is empty"),
        ((0, 10, 10, 10), "is empty"),
        ((0, 12, 10, 10), "is empty"),
    ],
)
def test_a_wrong_box_is_named(box, word):
    with refused("box 1 of the crop policy policy", word, "image-7", "60 x 40 pixels", "whole pixels"):
        check_policy(fixed((0, 0, 60, 40), box), PICTURE, "image-7", 0)
    check_policy(fixed((0, 0, 60, 40), (60, 0, 0, 40)), PICTURE, "image-7", 0)  # the whole image, and mirrored


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1).item(),
        lambda: np.random.rand(),
        lambda: np.random.seed(3) or np.random.rand(),
        lambda: torch.manual_seed(3).initial_seed() and torch.rand(1).item(),
    ],
)
def test_a_global_generator_is_refused(draw):
    def policy(height, width, image_id, seed):
        return torch.tensor([[0.0, 0.0, 1 + int(9 * draw()), 10.0]])

    with refused("policy draws from the global generator", "crop_generator(seed, image_id, index)"):
        check_policy(crops.as_policy(policy), PICTURE, "x", 0)


def test_another_thread_may_draw_during_a_call():
    others = iter([torch.rand])  # what another thread does during the first call

    def policy(height, width, image_id, seed):
        for draw in others:
            draw(1)
        return torch.tensor([[0.0, 0.0, 9.0, 10.0]])

    check_policy(crops.as_policy(policy), PICTURE, "x", 0)


def test_boxes_that_change_from_call_to_call_are_refused():
    calls = iter(range(1, 50))
    for draw in (lambda: next(calls), lambda: python_random.randint(1, 40), lambda: np.random.default_rng().integers(1, 40)):

        def drawn(height, width, image_id, seed, draw=draw):
            return torch.tensor([[0.0, 0.0, float(draw()), float(draw())] for _ in range(5)])

        with refused("drawn draws other boxes when it is called again for the image x", "crop_generator"):
            check_policy(crops.as_policy(drawn), PICTURE, "x", 0)


def test_another_number_or_shape_of_boxes_is_refused():
    def grows(height, width, image_id, seed):
        return torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(height // 8, 1)

    with refused("as many crops for every image: 1, got shape (5, 4)"):
        check_policy(crops.as_policy(grows), PICTURE, "x", 0)


@pytest.mark.parametrize("option", options("crop"))
def test_the_packages_policies_pass_on_images_of_any_size(option):
    policy = session_of(f"crop={option}", "dataset.n_classes=2").sampler
    for height, width in ((224, 300), (37, 23), (9, 260), (1, 1)):
        check_policy(policy, torch.zeros(3, height, width, dtype=torch.uint8), f"{height}x{width}", 3)


@pytest.mark.parametrize("storage", ["disk", "off"])
def test_a_bank_checks_its_first_image_and_no_other(storage, encoder, tmp_path, monkeypatch):
    from multicrop.features import view_dataset

    asked, check = [], view_dataset.check_policy
    monkeypatch.setattr(
        view_dataset, "check_policy", lambda policy, pixels, image_id, seed: asked.append(image_id) or check(policy, pixels, image_id, seed)
    )
    sampler = partial(crops.random, n_crops=1, min_side=0.5, max_side=0.9)
    images = pictures(5)
    bank = feature_bank(images, sampler, encoder, seed=0, cache=tmp_path, storage=storage, progress=False)
    list(bank.batches(batch_size=2))
    assert asked == images.ids[:1]


def test_a_bank_with_boxes_outside_is_refused_and_stores_nothing(encoder, tmp_path):
    def outside(height, width, image_id, seed):
        return torch.tensor([[0.0, 0.0, width + 1.0, height]])

    with refused("box 0 of the crop policy outside leaves the image"):
        feature_bank(pictures(2), outside, encoder, seed=0, cache=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("manifest.json"))
