"""The contract of crop policies."""

import pytest
import torch

from multicrop.contracts.options import made, options
from multicrop.contracts.problems import picture
from multicrop.crops import as_policy, boxes_of
from multicrop.crops.views import image_views
from multicrop.data.images import shared_pixels
from multicrop.encoder import with_encoder
from multicrop.model import MultiCropCLIP

SIZES = [(96, 96), (240, 180), (37, 200), (3, 2)]


@pytest.mark.parametrize("option", options("crop"))
class TestCrops:
    def sampler(self, option, encoder, height, width, **knobs):
        """The policy, for one image of this size where it looks at the image."""
        image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
        return with_encoder(made("crop", option, **knobs), encoder).at(image)

    def test_boxes_lie_in_the_image_and_view_0_is_the_whole(self, option, encoder):
        for height, width in SIZES:
            boxes = boxes_of(self.sampler(option, encoder, height, width), height, width, "a", 0)
            assert boxes[0].tolist() == [0, 0, width, height]
            x1, top, x2, bottom = boxes.T  # x1 > x2: a mirrored crop
            assert (boxes[:, [0, 2]] >= 0).all() and (top >= 0).all() and (boxes[:, [0, 2]] <= width).all() and (bottom <= height).all()
            assert ((x2 - x1).abs() >= 1).all() and (bottom - top >= 1).all()
            assert torch.equal(boxes, boxes.round())

    def test_same_key_same_boxes(self, option, encoder):
        sampler = self.sampler(option, encoder, 90, 120)
        assert torch.equal(sampler(90, 120, "a", 3), sampler(90, 120, "a", 3))

    def test_more_crops_begin_with_the_same_ones(self, option, encoder):
        if not as_policy(made("crop", option)).nested:
            pytest.skip("only for policies whose first k of n crops are those of k, which @crop_policy(nested=True) declares")
        few, many = (self.sampler(option, encoder, 90, 120, n_crops=n)(90, 120, "a", 3) for n in (3, 9))
        assert torch.equal(few, many[:3]) and len(many) == 9
        again = self.sampler(option, encoder, 90, 120, n_crops=3)
        assert not torch.equal(few, again(90, 120, "b", 3)) and not torch.equal(few, again(90, 120, "a", 4))

    def test_pixels_have_the_models_side_and_every_box_gets_a_feature(self, option, encoder):
        sampler = with_encoder(made("crop", option), encoder)
        pixels, boxes = image_views(shared_pixels(picture()), "a", sampler, encoder.spec, 0)
        assert pixels.shape[1:] == (3, encoder.spec.side, encoder.spec.side)
        with torch.inference_mode():
            features = MultiCropCLIP(encoder, sampler).features(pixels, boxes[None])
            assert features.shape == (1, len(boxes), encoder.dim)
            torch.testing.assert_close(features[0, 0], encoder.encode_images(pixels[0]), atol=1e-5, rtol=0)
