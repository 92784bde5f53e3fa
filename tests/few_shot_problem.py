"""A small few-shot problem that the tests of adapters share."""

import torch
from conftest import random_text, unit

from multicrop import aggregators
from multicrop.adapters import descent
from multicrop.adapters.base import Examples
from multicrop.aggregators.score import Scorer


def mean_feature(views, text, logit_scale):
    """All views against all prompts, averaged."""
    return aggregators.mean_feature(views, text, logit_scale, view_set="all", text_set="all")


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def pooled(views):
    return torch.stack([sum(image) / sum(image).norm() for image in views])


def die_after(epochs, monkeypatch):
    """Interrupt a fit after so many epochs, each after its checkpoint; returns whether there was a checkpoint after each."""
    keep, kept = descent.FitCheckpoint.on_train_epoch_end, []

    def killed(self, trainer, module):
        keep(self, trainer, module)
        kept.append(self.path.exists())
        if len(kept) == epochs:
            raise KeyError("killed")

    monkeypatch.setattr(descent.FitCheckpoint, "on_train_epoch_end", killed)
    return kept


class Problem:
    """12 support and 20 validation images of a few classes, with what an adapter is constructed from."""

    def __init__(self, generator, *, classes=3, aggregator=mean_feature, dim=8):
        self.score = Scorer(random_text(generator, classes=classes, dim=dim), 10.0, aggregator, 1.0)
        centres = unit(classes, 1, dim, generator=generator)
        self.support, self.validation = (self._examples(n, centres, generator) for n in (12, 20))

    def _examples(self, n, centres, generator):
        labels = torch.arange(n) % len(centres)
        views = torch.nn.functional.normalize(centres[labels] + 0.4 * torch.randn(n, 4, centres.shape[2], generator=generator), dim=-1)
        return Examples(views, self.score(views), labels)

    def fitted(self, adapter, **knobs):
        adapter = adapter(score=self.score, **knobs)
        adapter.fit(self.support, self.validation)
        return adapter

    def adapted(self, adapter):
        with torch.no_grad():
            return adapter(self.validation.views, self.validation.logits)
