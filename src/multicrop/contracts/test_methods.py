"""The contract of test-time methods."""

from types import SimpleNamespace

import pytest
import torch

from multicrop.aggregators.score import Scorer
from multicrop.contracts.options import foreign, made, options
from multicrop.contracts.problems import random_encoder, random_text, separable, unit
from multicrop.runs.injectables import inject

ROUNDED = {"boost", "dmn", "tda", "tda_views", "tent", *foreign("method")}  # their products over images round by the shape of the batch


@pytest.mark.parametrize("option", options("method"))
class TestMethods:
    def stream(self, images=30, classes=4):
        problem = separable(torch.Generator().manual_seed(3), images, classes)
        return problem.views, 6 * problem.views.mean(1) @ unit(16, classes, generator=torch.Generator().manual_seed(5))

    def make(self, option):
        text = random_text(torch.Generator().manual_seed(5), classes=4)
        score = Scorer(text, 20.0, made("aggregator", "mean_feature"), 1.0)
        return inject(made("method", option), SimpleNamespace(text=text, logit_scale=20.0, score=score, encoder=random_encoder(16)))

    @pytest.mark.parametrize("n_views", [1, 2, 9])
    def test_logits_are_finite_and_inputs_stay(self, option, n_views, generator):
        views, logits = unit(7, n_views, 16, generator=generator), 3 * torch.randn(7, 4, generator=generator)
        before = views.clone(), logits.clone()
        adapted = self.make(option)(views, logits)
        assert adapted.shape == (7, 4) and adapted.isfinite().all()
        assert torch.equal(views, before[0]) and torch.equal(logits, before[1])

    def test_views_that_coincide_stay_finite(self, option, generator):
        views = unit(3, 1, 16, generator=generator).expand(-1, 8, -1)
        assert self.make(option)(views, 3 * torch.randn(3, 4, generator=generator)).isfinite().all()

    def test_batches_do_not_matter(self, option):
        views, logits = self.stream()
        whole, parts = self.make(option), self.make(option)
        expected = whole(views, logits)
        got = torch.cat([parts(views[a:b], logits[a:b]) for a, b in ((0, 1), (1, 17), (17, 30))])
        if whole.transductive:  # images of a batch are adapted together
            assert not torch.allclose(expected, got, atol=1e-3)
            return
        batched = not whole.state_dict() or option in ROUNDED
        torch.testing.assert_close(expected, got, atol=1e-5 if batched else 0, rtol=0)

    def test_state_resumes_in_mid_stream_and_reset_forgets(self, option):
        views, logits = self.stream()
        method, resumed = self.make(option), self.make(option)
        fresh = {name: value.clone() for name, value in method.state_dict().items()}
        first = method(views[:15], logits[:15])
        assert not fresh or any(not torch.equal(value, method.state_dict()[name]) for name, value in fresh.items())
        resumed.load_state_dict(method.state_dict())
        rest = method(views[15:], logits[15:])
        assert torch.equal(rest, resumed(views[15:], logits[15:]))
        method.reset()
        assert torch.equal(first, method(views[:15], logits[:15]))
