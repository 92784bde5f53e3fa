"""Corruptions: any data set, each image by its own key, the rest of the program's randomness untouched."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import composed, pictures, session_of
from hydra.utils import instantiate
from PIL import Image
from refusals import refused

from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.corruptions import FURTHER, IMAGENET_C, common
from multicrop.data.images import ImageError

EVERY = (*IMAGENET_C, *FURTHER)


def dataset(count=3):
    images = pictures(count)
    return Dataset("pictures", ["a", "b"], {}, images, images.subset([0]), images)


def pixels(data, index=0):
    return np.asarray(data.test.open(index)).astype(int)


@pytest.mark.parametrize("kind", EVERY)
def test_a_corruption_changes_the_test_images_by_their_key_alone(kind):
    clean = dataset()
    once = common(clean, kind=kind, severity=3, corruption_seed=0)
    first, second = pixels(once, 0), pixels(once, 1)
    np.random.seed(5)
    again = common(dataset(), kind=kind, severity=3, corruption_seed=0)
    expected_next = np.random.RandomState(5).rand()
    assert np.array_equal(pixels(again, 1), second) and np.array_equal(pixels(again, 0), first)  # in another order
    assert np.random.rand() == expected_next  # NumPy's own generator goes on as if nothing had been drawn
    assert first.shape == pixels(clean, 0).shape and np.abs(first - pixels(clean, 0)).mean() > 0.5
    assert once.train is clean.train and once.validation is clean.validation


def test_noise_is_drawn_by_image_and_seed():
    """On three images of the same grey the noise is all there is to see."""
    grey = LabelledImages("grey", ["a", "b", "c"], [0, 1, 0], lambda i: Image.new("RGB", (40, 40), (120, 120, 120)), "grey")
    data = Dataset("grey", ["x", "y"], {}, grey, grey, grey)
    of = lambda seed, index: pixels(common(data, kind="gaussian_noise", severity=3, corruption_seed=seed), index)  # noqa: E731
    assert not np.array_equal(of(0, 0), of(0, 1)) and not np.array_equal(of(0, 0), of(1, 0))
    part = common(replace(data, test=grey.subset([2, 0])), kind="gaussian_noise", severity=3, corruption_seed=0)
    assert np.array_equal(pixels(part, 0), of(0, 2)) and np.array_equal(pixels(part, 1), of(0, 0))


def test_threads_that_read_at_once_change_no_noise():
    """The library draws from one generator of the whole process: readers that interleave would draw from each other's seed."""
    data = common(dataset(8), kind="gaussian_noise", severity=3, corruption_seed=0)
    alone = [pixels(data, index) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda index: pixels(data, index), range(8)))
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("kind", ["gaussian_noise", "contrast", "jpeg_compression", "gaussian_blur"])
def test_a_higher_severity_is_farther_from_the_clean_image(kind):
    clean = pixels(dataset())
    distance = [np.abs(pixels(common(dataset(), kind=kind, severity=s, corruption_seed=0)) - clean).mean() for s in (1, 3, 5)]
    assert distance[0] < distance[1] < distance[2]


def test_the_fingerprint_tells_kind_severity_and_seed_apart():
    knobs = [("fog", 3, 0), ("fog", 4, 0), ("fog", 3, 1), ("snow", 3, 0)]
    made = [common(dataset(), kind=k, severity=s, corruption_seed=seed).test for k, s, seed in knobs]
    prints = {images.fingerprint for images in made} | {dataset().test.fingerprint}
    assert len(prints) == 5 and made[0].name == "pictures-fog-3" and made[0].ids == dataset().test.ids
    assert common(replace(dataset(), test=made[0].subset([1])), kind="fog", severity=3, corruption_seed=0).test.parent is None


def test_a_stream_is_corrupted_as_its_images_are():
    images = pictures(3)
    rows = lambda part, parts: iter([(images.ids[i], images.labels[i], lambda i=i: images.open(i)) for i in range(part, 3, parts)])  # noqa: E731
    streamed = replace(dataset(), test=StreamedImages("pictures", ["a", "b"], rows, "p"))
    got = [(name, np.asarray(image)) for name, _, image in common(streamed, kind="snow", severity=2, corruption_seed=0).test]
    indexed = common(dataset(), kind="snow", severity=2, corruption_seed=0)
    assert [name for name, _ in got] == images.ids
    assert all(np.array_equal(image, pixels(indexed, i)) for i, (_, image) in enumerate(got))


def test_what_cannot_be_corrupted_is_named():
    with refused("corruption.kind is one of gaussian_noise", "saturate", "got 'rust'"):
        common(dataset(), kind="rust", severity=1, corruption_seed=0)
    with refused("corruption.severity is 1 to 5, got 6"):
        common(dataset(), kind="fog", severity=6, corruption_seed=0)
    small = LabelledImages("small", ["a.png"], [0], lambda i: Image.new("RGB", (20, 40)), "s")
    with pytest.raises(ImageError, match=r"a\.png is 20 x 40 pixels; a corruption needs 32 per side"):
        pixels(common(replace(dataset(), test=small), kind="fog", severity=1, corruption_seed=0))


def test_any_data_set_is_corrupted_by_one_word(encoder):
    words = ["dataset=scenes", "dataset.n_classes=4", "dataset.family_size=2", "dataset.test_images=1"]
    clean = session_of(*words).dataset
    fog = session_of(*words, "corruption=common", "corruption.kind=fog", "corruption.severity=5").dataset
    assert fog.name == f"{clean.name}-fog-5" and fog.train.fingerprint == clean.train.fingerprint
    assert np.abs(pixels(fog) - pixels(clean)).mean() > 10
    assert instantiate(composed().corruption)(clean) is clean
