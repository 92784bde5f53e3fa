"""The contract of few-shot adapters."""

import inspect
import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from multicrop.adapters.base import Examples
from multicrop.aggregators.score import Scorer
from multicrop.contracts.options import composed, made, options
from multicrop.contracts.problems import blurred, tiny_encoder, unit
from multicrop.runs.injectables import inject
from multicrop.text import TextBank

NAMES = ("dog", "cat", "rose", "car")


@pytest.mark.parametrize("option", options("adapter"), scope="class")  # the tests of an adapter one after the other: one process fits it
class TestAdapters:
    @staticmethod
    def problem(make, generator):
        """Texts, logit scale, and views of 96 images; the prompts are a blurred memory of the classes."""
        labels = torch.arange(96) % 4
        if "encoder" in inspect.signature(make).parameters:  # prompts of the encoder, and views drawn towards the first class
            text = tiny_encoder().encode_prompts([[name, f"{name}, a drawing", f"a picture of {name}"] for name in NAMES])
            pull = torch.nn.functional.normalize(text.label[0] - text.label.mean(0), dim=0)
            return text, tiny_encoder().logit_scale, blurred(text.features[labels, :1] + 0.7 * pull, 0.1, generator), labels
        centres = unit(4, 1, 64, generator=generator)
        views, prompts = blurred(centres[labels], 0.2, generator), blurred(centres, 0.7, generator)
        return TextBank(prompts, torch.ones(4, 3, dtype=torch.bool), [["a", "b", "c"]] * 4), 10.0, views, labels

    @staticmethod
    @cache
    def fitted(option, **knobs):
        """Fitted on 4 shots; and the test images."""
        make = made("adapter", option, **knobs)
        if make.func.tunes_encoder:
            pytest.skip("this adapter learns from pixels; it has tests of its own")
        text, scale, views, labels = TestAdapters.problem(make, torch.Generator().manual_seed(7))
        scorer = Scorer(text, scale, made("aggregator", "mean_feature"), 1.0)
        logits = scorer(views)
        parts = [Examples(views[a:b], logits[a:b], labels[a:b]) for a, b in ((0, 16), (16, 32), (32, 96))]
        offered = {"encoder": tiny_encoder(), "projection": torch.eye(views.shape[-1])}
        adapter = inject(make, SimpleNamespace(text=text, logit_scale=scale, score=scorer, **offered))
        adapter.fit(parts[0], parts[1])
        return adapter, parts[2]

    def test_learns_a_separable_problem(self, option):
        adapter, test = self.fitted(option)
        adapted = adapter(test.views, test.logits)
        before = (test.logits.argmax(1) == test.labels).float().mean()
        assert adapted.isfinite().all() and (adapted.argmax(1) == test.labels).float().mean() > max(0.8, before)

    def test_says_how_it_was_selected(self, option):
        selection = json.loads(json.dumps(self.fitted(option)[0].selection))
        assert selection["how"] in ("fixed", "validation") and selection["images"] == 16
        assert selection["chosen"] in selection["curve"]

    def test_same_data_same_logits(self, option):
        few = {knob: 3 for knob in ("epochs", "iterations", "steps") if knob in composed(f"adapter={option}").adapter}
        (one, test), (two, _) = self.fitted(option, **few), self.fitted.__wrapped__(option, **few)
        assert torch.equal(one(test.views, test.logits), two(test.views, test.logits))

    def test_each_image_stands_alone_and_leaves_the_adapter_as_it_was(self, option):
        adapter, test = self.fitted(option)
        with torch.inference_mode():
            whole = adapter(test.views, test.logits)
            torch.testing.assert_close(adapter(test.views[5:6], test.logits[5:6]), whole[5:6], atol=1e-3, rtol=1e-4)
            assert torch.equal(adapter(test.views, test.logits), whole)
