"""The contract of aggregators."""

import pytest
import torch

from multicrop.contracts.options import foreign, made, options
from multicrop.contracts.problems import random_text, unit
from multicrop.text import TextBank

# Not logit_scale * cosine, but with its order: shares of votes, soft-matched similarities; those outside multicrop may be of any scale
LOGITS_OF_THEIR_OWN = {"vote", "soft_match", "abs", *foreign("aggregator")}


@pytest.mark.parametrize("option", options("aggregator"))
class TestAggregators:
    def test_logits_are_finite_and_each_image_stands_alone(self, option, generator):
        text, views = random_text(generator), unit(6, 5, 16, generator=generator)
        logits = made("aggregator", option)(views, text, 20.0)
        assert logits.shape == (6, 5) and logits.isfinite().all()
        torch.testing.assert_close(logits[2:3], made("aggregator", option)(views[2:3], text, 20.0), atol=2e-2, rtol=0)

    def test_order_of_crops_descriptions_and_classes_does_not_matter(self, option, generator):
        text, views = random_text(generator), unit(4, 6, 16, generator=generator)
        logits = made("aggregator", option)(views, text, 20.0)
        crops = torch.tensor([0, 3, 5, 1, 2, 4])
        torch.testing.assert_close(logits, made("aggregator", option)(views[:, crops], text, 20.0), atol=2e-2, rtol=0)
        reversed_rows = text.features.clone()
        for c, row in enumerate(text.prompts):
            reversed_rows[c, 1 : len(row)] = text.features[c, 1 : len(row)].flip(0)
        turned = TextBank(reversed_rows, text.mask, text.prompts)
        torch.testing.assert_close(logits, made("aggregator", option)(views, turned, 20.0), atol=2e-2, rtol=0)
        classes = torch.tensor([4, 2, 0, 1, 3])
        shuffled = TextBank(text.features[classes], text.mask[classes], [text.prompts[c] for c in classes])
        torch.testing.assert_close(logits[:, classes], made("aggregator", option)(views, shuffled, 20.0), atol=2e-2, rtol=0)

    def test_padding_is_never_read(self, option, generator):
        text, views = random_text(generator), unit(3, 5, 16, generator=generator)
        noise = unit(5, 2, 16, generator=generator)
        spoilt = torch.where(text.mask[..., None], text.features, unit(5, 4, 16, generator=generator))
        padded = TextBank(torch.cat([spoilt, noise], 1), torch.cat([text.mask, torch.zeros(5, 2, dtype=torch.bool)], 1), text.prompts)
        expected = made("aggregator", option)(views, text, 20.0)
        torch.testing.assert_close(expected, made("aggregator", option)(views, padded, 20.0), atol=2e-3, rtol=0)

    @pytest.mark.parametrize("scale", [1.0, 100.0])
    def test_one_view_one_description_is_the_plain_cosine(self, option, scale, generator):
        features = unit(3, 1, 16, generator=generator).abs().expand(-1, 2, -1)
        text = TextBank(features, torch.ones(3, 2, dtype=torch.bool), [["label", "description"]] * 3)
        views = unit(4, 1, 16, generator=generator).abs()
        logits, cosine = made("aggregator", option)(views, text, scale), scale * views[:, 0] @ features[:, 0].T
        if option in LOGITS_OF_THEIR_OWN:
            assert torch.equal(logits.argmax(1), cosine.argmax(1))
        else:
            torch.testing.assert_close(logits, cosine, atol=1e-3, rtol=1e-4)

    def test_identical_crops_and_half_precision_features_stay_finite(self, option, generator):
        views = unit(2, 1, 16, generator=generator).half().float().expand(-1, 7, -1)
        assert made("aggregator", option)(views, random_text(generator), 100.0).isfinite().all()
