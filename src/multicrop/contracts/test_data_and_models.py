"""The contracts of data sets and of models that are not in multicrop's conf/, and of the embedded model."""

import pytest
import torch

from multicrop.contracts.options import foreign, made
from multicrop.contracts.problems import picture
from multicrop.crops import as_policy
from multicrop.crops.views import image_views
from multicrop.data.base import Dataset
from multicrop.data.images import shared_pixels

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("option", foreign("dataset"))
class TestDatasets:
    def test_labels_have_class_names_and_ids_do_not_repeat(self, option):
        dataset = made("dataset", option)
        assert isinstance(dataset, Dataset) and len(set(dataset.class_names)) == len(dataset.class_names) > 1
        for images in (getattr(dataset, split) for split in SPLITS):
            if images.indexed is True:
                assert len(images.ids) == len(images.labels) == len(set(images.ids))
                assert set(images.labels) <= set(range(len(dataset.class_names)))
        assert dataset.test.indexed is not True or len(dataset.test)

    def test_it_is_read_twice_alike(self, option):
        one, two = (made("dataset", option).test for _ in range(2))
        assert one.fingerprint == two.fingerprint
        if one.indexed is True:
            assert one.ids == two.ids and torch.equal(shared_pixels(one.open(0)), shared_pixels(two.open(0)))


@pytest.mark.parametrize("option", ["tiny", *foreign("model")])
class TestModels:
    def test_features_have_unit_norm_and_one_dimension(self, option):
        encoder = made("model", option)
        with torch.inference_mode():
            pixels, _ = image_views(shared_pixels(picture()), "a", as_policy(made("crop", "random_k1")), encoder.spec, 0)
            images, text = encoder.encode_images(pixels), encoder.encode_prompts([["dog"], ["cat", "a cat"]])
        assert images.shape == (2, encoder.dim) and text.features.shape == (2, 2, encoder.dim) and encoder.logit_scale > 0
        torch.testing.assert_close(images.norm(dim=1), torch.ones(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(text.features[text.mask].norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
        assert len(encoder.fingerprint()) > 8 and encoder.fingerprint() == encoder.fingerprint()
