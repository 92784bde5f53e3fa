"""Crop samplers against slow oracles: their formulas in plain loops, SciPy's statistics, torchvision's own crops, PIL's mirror."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import composed, options, pictures, random_text, unit
from hydra.utils import get_method, instantiate
from PIL import Image, ImageOps
from refusals import refused
from scipy import stats
from scipy.stats import qmc
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from multicrop import crops
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.crops.pixels import unmirrored, view_pixels
from multicrop.crops.views import image_views
from multicrop.data.images import shared_pixels, to_tensor
from multicrop.show import pictures as report
from multicrop.show.explain.explanation import explain

SIDES = {"n_crops": 1, "min_side": 0.4, "max_side": 0.9}
HEIGHT, WIDTH = 4000, 6000  # large, so that rounding to pixels is far below what the statistics resolve
LARGE = {"n_crops": 24, "min_side": 0.7, "max_side": 0.9}  # sides that overlap much
RESIZED = {"n_crops": 1, "min_area": 0.08, "max_area": 1.0, "flip_probability": 0.5}


def square_coordinates(boxes, height=HEIGHT, width=WIDTH):
    """What the boxes were made of: side, left and top as shares (boxes, 3) of their ranges."""
    low, high = SIDES["min_side"], SIDES["max_side"]
    rows = []
    for left, top, right, bottom in boxes.tolist():
        assert right - left == bottom - top
        side = right - left
        rows.append([(side / min(height, width) - low) / (high - low), left / (width - side), top / (height - side)])
    return np.array(rows)


def assert_uniform(values):
    """Kolmogorov-Smirnov against U(0,1), at a level that a right sampler fails once in 10,000 seeds."""
    assert stats.kstest(values, "uniform").pvalue > 1e-4


def plain_iou(a, b):
    """Intersection over union, pixel by pixel."""
    pixels = [{(x, y) for x in range(int(l), int(r)) for y in range(int(t), int(d))} for l, t, r, d in (a, b)]  # noqa: E741
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


@pytest.mark.parametrize("sampler", [crops.random, crops.quasi_random, partial(crops.diverse, max_iou=0.85)])
class TestSquares:
    def test_side_and_position_are_uniform_over_images(self, sampler):
        """Each box alone is uniform, whatever its index: a scramble of its own makes even Sobol's first point so."""
        for index in (0, 5):
            boxes = torch.stack([sampler(HEIGHT, WIDTH, f"image {i}", 0, **(SIDES | {"n_crops": 6}))[index] for i in range(600)])
            shares = square_coordinates(boxes)
            for column in shares.T:
                assert_uniform(column)
            assert np.abs(np.corrcoef(shares.T) - np.eye(3)).max() < 4 / math.sqrt(600)

    def test_limits_are_kept_and_a_closed_range_is_one_side(self, sampler):
        sides = sampler(100, 70, "a", 0, n_crops=40, min_side=0.5, max_side=0.5).diff(dim=1)
        boxes = sampler(100, 70, "a", 0, n_crops=200, min_side=0.1, max_side=1.0)
        assert len(sides) == 40 and set((boxes[:, 2] - boxes[:, 0]).tolist()) <= set(range(7, 71))
        assert (sampler(100, 70, "a", 0, n_crops=9, min_side=1.0, max_side=1.0)[:, 2] == 70).all()

    @pytest.mark.parametrize(
        ("knobs", "word"),
        [({"n_crops": 0}, "n_crops is 0"), ({"min_side": 0.0}, "min_side"), ({"max_side": 1.2}, "1.2"), ({"min_side": 0.95}, "0.95")],
    )
    def test_knobs_out_of_range_are_refused(self, sampler, knobs, word):
        with refused(word):
            sampler(90, 120, "a", 0, **(SIDES | knobs))


class TestQuasiRandom:
    def boxes(self, image_id, n_crops, seed=0):
        return crops.quasi_random(HEIGHT, WIDTH, image_id, seed, **(SIDES | {"n_crops": n_crops}))

    @pytest.mark.parametrize("count", [16, 17, 37, 64])
    def test_covers_sides_and_positions_better_than_random(self, count):
        sobol, chance = [], []
        for i in range(30):
            drawn = crops.random(HEIGHT, WIDTH, str(i), 0, **(SIDES | {"n_crops": count}))
            for found, boxes in ((sobol, self.boxes(str(i), count)), (chance, drawn)):
                found.append(qmc.discrepancy(square_coordinates(boxes).clip(0, 1)))
        assert max(sobol) < min(chance)  # the worst of 30 images against the luckiest

    def test_any_count_is_a_prefix(self):
        whole = self.boxes("a", 65)
        for count in (1, 2, 3, 7, 8, 9, 33, 64):
            assert torch.equal(self.boxes("a", count), whole[:count])

    def test_power_of_two_puts_one_box_into_each_eighth(self):
        """The defining balance of a Sobol sequence, which a scramble keeps: one of 8 points in each interval of 1/8."""
        for column in square_coordinates(self.boxes("a", 8)).T:
            assert sorted((column.clip(0, 1 - 1e-9) * 8).astype(int)) == list(range(8))


class TestDiverse:
    def test_no_pair_overlaps_more_than_the_limit(self):
        overlaps = 0
        for i in range(6):
            boxes = crops.diverse(40, 52, str(i), 0, **LARGE | {"n_crops": 12}, max_iou=0.85).tolist()
            drawn = crops.random(40, 52, str(i), 0, **LARGE | {"n_crops": 12}).tolist()
            for j in range(12):
                for k in range(j):
                    assert plain_iou(boxes[j], boxes[k]) <= 0.85
                    overlaps += plain_iou(drawn[j], drawn[k]) > 0.85
        assert overlaps > 0  # the rejection had work to do

    def test_is_random_where_nothing_is_rejected(self):
        assert torch.equal(crops.diverse(90, 120, "a", 1, **LARGE, max_iou=1.0), crops.random(90, 120, "a", 1, **LARGE))

    def test_a_box_depends_on_those_before_it_alone(self):
        whole = crops.diverse(90, 120, "a", 1, **LARGE, max_iou=0.6)
        for count in range(1, 24):
            assert torch.equal(crops.diverse(90, 120, "a", 1, **LARGE | {"n_crops": count}, max_iou=0.6), whole[:count])

    def test_keeps_the_last_candidate_where_all_overlap(self):
        boxes = crops.diverse(50, 50, "a", 0, n_crops=5, min_side=1.0, max_side=1.0, max_iou=0.5)
        assert boxes.tolist() == [[0, 0, 50, 50]] * 5

    @pytest.mark.parametrize("max_iou", [0.0, 1.1])
    def test_a_limit_out_of_range_is_refused(self, max_iou):
        with refused("max_iou", str(max_iou)):
            crops.diverse(90, 120, "a", 0, **LARGE, max_iou=max_iou)


class TestRandomResized:
    def drawn(self, height, width, count, **knobs):
        return crops.random_resized(height, width, "a", 0, **(RESIZED | {"n_crops": count} | knobs))

    @pytest.mark.parametrize(("height", "width"), [(900, 900), (500, 900)])
    def test_boxes_are_distributed_as_torchvisions(self, height, width):
        ours = unmirrored(self.drawn(height, width, 1500)).numpy()
        torch.manual_seed(5)
        blank = torch.empty(1, height, width)
        theirs = np.array([RandomResizedCrop.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(1500)])  # top, left, h, w
        w, h = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
        pairs = [(w * h, theirs[:, 2] * theirs[:, 3]), (w / h, theirs[:, 3] / theirs[:, 2])]
        pairs += [(ours[:, 0], theirs[:, 1]), (ours[:, 1], theirs[:, 0])]
        for one, two in pairs:
            assert stats.ks_2samp(one, two).pvalue > 1e-4

    def test_small_crops_follow_the_formulas(self):
        """Up to 1/16 of the area everything fits at the first draw: area uniform, log aspect uniform, corner uniform, all apart."""
        boxes = unmirrored(self.drawn(HEIGHT, HEIGHT, 800, min_area=0.02, max_area=1 / 16)).numpy().astype(float)
        w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        shares = np.stack(
            [
                (w * h / HEIGHT**2 - 0.02) / (1 / 16 - 0.02),
                (np.log(w / h) - math.log(3 / 4)) / math.log(16 / 9),
                (boxes[:, 0] + 0.5) / (HEIGHT - w + 1),
                (boxes[:, 1] + 0.5) / (HEIGHT - h + 1),
            ]
        )
        for values in shares:
            assert_uniform(values)
        assert np.abs(np.corrcoef(shares) - np.eye(4)).max() < 4 / math.sqrt(800)

    @pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
    def test_the_wished_share_is_mirrored(self, probability):
        boxes = self.drawn(90, 120, 1000, flip_probability=probability)
        share = (boxes[:, 0] > boxes[:, 2]).float().mean().item()
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / 1000)
        assert torch.equal(unmirrored(boxes), self.drawn(90, 120, 1000, flip_probability=0.0))

    @pytest.mark.parametrize(("height", "width"), [(37, 200), (200, 37), (2, 90), (51, 2)])
    def test_what_never_fits_is_torchvisions_fallback(self, height, width):
        area = {"min_area": 1.0, "max_area": 1.0}
        top, left, h, w = RandomResizedCrop.get_params(torch.empty(1, height, width), (1.0, 1.0), (3 / 4, 4 / 3))
        assert unmirrored(self.drawn(height, width, 20, **area)).tolist() == [[left, top, left + w, top + h]] * 20

    @pytest.mark.parametrize(
        ("knobs", "word"),
        [({"n_crops": 0}, "n_crops"), ({"min_area": 0.0}, "min_area"), ({"max_area": 1.5}, "1.5"), ({"flip_probability": 2.0}, "2.0")],
    )
    def test_knobs_out_of_range_are_refused(self, knobs, word):
        with refused(word):
            self.drawn(90, 120, 1, **knobs)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (97, 140), (151, 90), (33, 64)])
@pytest.mark.parametrize("side", [0.3, 0.5, 0.875, 1.0])
@pytest.mark.parametrize(("sampler", "theirs"), [(crops.five_crop, F.five_crop), (crops.ten_crop, F.ten_crop)])
def test_five_and_ten_crops_are_torchvisions_pixel_for_pixel(sampler, theirs, height, width, side, encoder):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    size = round(min(height, width) * side)
    boxes = crops.boxes_of(partial(sampler, side=side), height, width, "a", 0)
    same_size = replace(encoder.spec, side=size, short_side=size)  # nothing to resample
    assert torch.equal(view_pixels(image, boxes, same_size)[1:], torch.stack(theirs(image, [size, size])))


@pytest.mark.parametrize("sampler", [crops.five_crop, crops.ten_crop])
def test_a_side_out_of_range_is_refused(sampler):
    for side in (0.0, 1.5):
        with refused("side", str(side)):
            sampler(90, 120, "a", 0, side=side)


class TestMirroredCrops:
    SAMPLER = partial(crops.random_resized, n_crops=12, min_area=0.08, max_area=1.0, flip_probability=0.5)

    def test_pixels_are_pils_mirror(self, encoder):
        """Exactly the mirror of the view that is not flipped; PIL from end to end, as for any crop, within 1 of 255."""
        image, size = pictures(3).open(2), (encoder.spec.side, encoder.spec.side)
        pixels, boxes = image_views(shared_pixels(image), "a", self.SAMPLER, encoder.spec, 0)
        plain = view_pixels(to_tensor(image), unmirrored(boxes), encoder.spec)
        flipped = boxes[:, 0] > boxes[:, 2]
        assert 0 < flipped.sum() < 12
        for view, unflipped, box, flip in zip(pixels[1:], plain[1:], unmirrored(boxes)[1:].int().tolist(), flipped[1:], strict=True):
            own = Image.fromarray(unflipped.permute(1, 2, 0).numpy())
            pils = image.crop(box).resize(size, Image.Resampling.BICUBIC)
            own, pils = (np.asarray(ImageOps.mirror(x) if flip else x).transpose(2, 0, 1).astype(int) for x in (own, pils))
            assert np.array_equal(view.numpy(), own)
            assert np.quantile(np.abs(view.numpy() - pils), 0.999) <= 1

    def test_mirroring_twice_is_the_crop(self, encoder):
        image = to_tensor(pictures(1).open(0))
        boxes = torch.tensor([[0.0, 0, 120, 96], [30, 10, 90, 60], [90, 10, 30, 60]])
        _, plain, mirrored = view_pixels(image, boxes, encoder.spec)
        assert torch.equal(plain, mirrored.flip(-1)) and not torch.equal(plain, mirrored)
        assert unmirrored(boxes).tolist() == [[0, 0, 120, 96], [30, 10, 90, 60], [30, 10, 90, 60]]

    def test_boxes_are_drawn_where_they_are(self, tmp_path, generator):
        """A mirrored crop is drawn as the box of its pixels."""
        image, text, boxes = pictures(1).open(0), random_text(generator), torch.tensor([[0.0, 0, 120, 96], [90, 10, 30, 60]])
        scorer = Scorer(text, 20.0, instantiate(without(composed("aggregator=dnd").aggregator, "facts")), 1.0)
        views, names = unit(2, 16, generator=generator), [str(c) for c in range(5)]
        for name, drawn in (("mirrored", boxes), ("plain", unmirrored(boxes))):
            item = explain(scorer, views, drawn, names, name="a", open_image=lambda: image)
            assert item.boxes.tolist() == [[30, 10, 90, 60]]
            report.draw_explanations([item], tmp_path / f"{name}.png")
        assert (tmp_path / "mirrored.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_wca_presets_are_the_two_ranges_of_its_code():
    """60 crops; the released loader calls random_crop without alpha, whose default is 0.1."""
    for option, low in (("wca", 0.5), ("wca_released", 0.1)):
        crop = composed(f"crop={option}", "dataset=scenes").crop
        assert (crop.n_crops, crop.min_side, crop.max_side) == (60, low, 0.9)


@pytest.mark.parametrize("option", options("crop"))
def test_every_target_is_one_of_the_package(option):
    target = composed(f"crop={option}").crop["_target_"]
    assert get_method(target) is getattr(crops, target.rsplit(".", 1)[-1])


NESTED = {"attention", "diverse", "feature", "quasi_random", "random", "random_resized"}


@pytest.mark.parametrize("option", options("crop"))
def test_a_policy_says_what_it_is(option):
    policy = crops.as_policy(instantiate(composed(f"crop={option}").crop))
    name = policy.function.__name__
    assert policy.nested == (name in NESTED) and policy.looks_at == {"attention": "attention", "feature": "tokens"}.get(name)
    assert crops.as_policy(policy) is policy and policy.n_views == 1 + len(policy(90, 120, "a", 0))


def plugin(height, width, image_id, seed, *, n_crops, share=0.5):
    """A policy of a user, which declares nothing."""
    return torch.tensor([[0.0, 0, width * share, height]] * n_crops)


class TestCropPolicy:
    def test_a_plugin_is_a_function_and_its_identity_holds_every_knob(self):
        policy = crops.as_policy(partial(plugin, n_crops=2))
        assert not policy.nested and policy.looks_at is None and policy.n_crops == 2 and policy.at(torch.zeros(3, 8, 8)) is policy
        texts = [
            crops.as_policy(sampler).identity for sampler in (policy, partial(plugin, n_crops=3), partial(plugin, n_crops=2, share=0.4))
        ]
        assert len(set(texts)) == 3 and texts[0].startswith("test_crops.plugin {'n_crops': 2} code ")

    def test_the_identity_of_a_nested_policy_leaves_out_the_number_of_crops(self):
        few, many = (crops.as_policy(partial(crops.random, **SIDES | {"n_crops": n})).identity for n in (2, 9))
        assert few == many and few != crops.as_policy(partial(crops.random, **SIDES | {"max_side": 0.8})).identity
        assert few != crops.as_policy(partial(crops.quasi_random, **SIDES)).identity

    def test_the_identity_holds_what_looks(self):
        class Look:
            identity = "backbone 1"

            def __call__(self, image):
                raise NotImplementedError

        policy = crops.as_policy(partial(crops.feature, **SIDES))
        assert replace(policy, look=Look()).identity == f"{policy.identity} backbone 1"

    def test_partials_of_partials_keep_the_last_knob(self):
        sampler = partial(partial(crops.random, **SIDES), n_crops=3)
        assert crops.as_policy(sampler).knobs == SIDES | {"n_crops": 3} and len(crops.as_policy(sampler)(90, 120, "a", 0)) == 3
        assert torch.equal(crops.as_policy(sampler)(90, 120, "a", 5), sampler(90, 120, "a", 5))

    def test_positional_knobs_and_nameless_functions_are_refused(self):
        with pytest.raises(TypeError, match="bind them by name"):
            crops.as_policy(partial(crops.global_view, 90))
        with refused("named function", "def"):
            _ = crops.as_policy(partial(crops.as_policy(partial(Nameless())))).identity

    def test_a_declaration_needs_its_knob(self):
        with pytest.raises(TypeError, match="n_crops"):
            crops.crop_policy(nested=True)(lambda height, width, image_id, seed: None)
        with pytest.raises(TypeError, match="view"):
            crops.crop_policy(looks_at="attention")(lambda height, width, image_id, seed: None)


class Nameless:
    """A callable without a name."""

    def __call__(self, height, width, image_id, seed):
        return torch.zeros(0, 4)


def test_random_draws_what_it_always_drew():
    """Boxes are part of every record: a change of the key or of the draws must be meant."""
    boxes = crops.random(96, 120, "scene-7", 3, n_crops=2, min_side=0.5, max_side=0.9)
    assert boxes.tolist() == [[4, 2, 81, 79], [42, 3, 113, 74]]
