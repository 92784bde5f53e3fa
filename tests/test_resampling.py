"""Crops cut on the device: as PIL cuts them, for every kernel, size and direction, and as the other path cuts them."""

import numpy as np
import pytest
import torch
from conftest import pictures
from PIL import Image
from test_bank import fill

from multicrop.crops.pixels import PixelSpec, view_pixels
from multicrop.crops.resampling import device_view_pixels, kernel, resize_matrices

PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def spec(side, interpolation="bicubic", short=True):
    return PixelSpec(side, side if short else None, interpolation, (0.5,) * 3, (0.5,) * 3)


def photograph(height, width, seed=3):
    """Smooth shading, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 110 + 60 * np.sin(x / 9)[..., None] * np.cos(y / 13)[..., None] + 40 * ((x // 17 + y // 23) % 2)[..., None]
    return Image.fromarray((waves + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(375, 500), (90, 61), (224, 224)])
def test_a_crop_is_what_pil_makes_of_it(interpolation, size):
    image = photograph(*size)
    height, width = size
    boxes = [[0, 0, width, height], [5, 3, 45, 43], [width // 2, height // 3, width, height], [10, 10, 14, 15], [0, 0, width, 20]]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    views = device_view_pixels(pixels, torch.tensor(boxes, dtype=torch.float32), spec(96, interpolation, short=False))
    for view, box in zip(views, boxes, strict=True):
        expected = np.asarray(image.crop(box).resize((96, 96), PIL_FILTERS[interpolation])).transpose(2, 0, 1).astype(int)
        difference = np.abs(view.numpy() - expected)
        assert difference.max() <= 2 and np.quantile(difference, 0.999) <= 1


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (64, 64), (61, 190)])
@pytest.mark.parametrize("short", [True, False])
def test_the_two_paths_cut_the_same_views(size, short):
    pixels = torch.from_numpy(np.array(photograph(*size))).permute(2, 0, 1)
    height, width = size
    boxes = torch.tensor([[0, 0, width, height], [width - 4, 2, 6, height - 9], [3, 5, 33, 35]], dtype=torch.float32)
    here, there = view_pixels(pixels, boxes, spec(80, short=short)), device_view_pixels(pixels, boxes, spec(80, short=short))
    difference = (here.int() - there.int()).abs()
    assert difference.max() <= 2 and difference.float().quantile(0.999) <= 1


def test_weights_are_the_kernel_summed_by_hand():
    facts = spec(3)
    (matrix,) = resize_matrices(torch.tensor([2.0]), torch.tensor([11.0]), torch.tensor([2.0]), torch.tensor([11.0]), 14, facts)
    for out in range(3):
        centre = 2 + (out + 0.5) * 3
        raw = [float(kernel(torch.tensor((p + 0.5 - centre) / 3), "bicubic")) if 2 <= p < 11 else 0.0 for p in range(14)]
        torch.testing.assert_close(matrix[out], torch.tensor(raw) / sum(raw))
    x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.5])
    torch.testing.assert_close(kernel(x, "bicubic"), torch.tensor([1.0, 0.5625, 0.0, -0.0625, 0.0]))


def test_a_kernel_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.cut=worker"):
        device_view_pixels(torch.zeros(3, 9, 9, dtype=torch.uint8), torch.zeros(1, 4), spec(4, "nearest"))


def test_a_bank_cut_on_the_device_is_another_bank_with_nearly_the_same_features(encoder, tmp_path):
    by_worker, by_device = (fill(pictures(6), encoder, tmp_path, cut=cut) for cut in ("worker", "device"))
    assert not by_device.reused and len(list(tmp_path.rglob("manifest.json"))) == 2
    cosines = (by_worker.tensors()[0] * by_device.tensors()[0]).sum(-1)
    assert cosines.min() > 0.999 and torch.equal(by_worker.boxes(2), by_device.boxes(2))
