"""The parts of a run that its configuration names, each made once."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from torch import nn

from multicrop.aggregators import Aggregator, as_aggregator
from multicrop.aggregators.logits_cache import CachedScorer, LogitsCache
from multicrop.aggregators.score import Scorer
from multicrop.config import weight_of
from multicrop.crops import CropPolicy, as_policy
from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.contents import keep_index_in
from multicrop.data.halves import with_half
from multicrop.data.limit import limited
from multicrop.encoder import Encoder, looking
from multicrop.encoder.known import EncoderFacts, LazyEncoder
from multicrop.features import FeatureBank, check_storage, feature_bank
from multicrop.runs.images import split_of, unknown_images
from multicrop.runs.injectables import Injectables, inject
from multicrop.runs.known import encoder_facts, encoder_maker, model_key, text_features
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.runs.unreadable import check_on_unreadable, report_unreadable
from multicrop.text import TextBank, prompts_of

OF_BANK = ("num_workers", "accelerator", "devices", "cut", "shard_images", "progress")  # knobs of the group trainer
Made = TypeVar("Made")


@dataclass
class Session:
    """What a task is built from.

    Args:
        settings: The configuration as plain values.
        cache: What this run shares with others in the process; None: nothing.
    """

    settings: Settings
    cache: SweepCache | None = None

    def share(self, kind: str, key: object, make: Callable[[], Made], *, of: nn.Module | None = None) -> Made:
        """A part from the cache, or made anew where the run has none (see ``SweepCache.get``)."""
        return make() if self.cache is None else self.cache.get(kind, key, make, of=of)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, corrupted, and with half of its classes, if the configuration asks for it."""
        part = self.settings.part("dataset")
        keep_index_in(self.settings.cache / "contents")
        corruption = self.settings.part("corruption")
        whole = self.share("corruption", corruption.values, corruption.make)(self.share("dataset", part.values, part.make))
        half = self.settings.config.get("classes", "all")  # an older record has none
        return whole if half == "all" else with_half(whole, half)

    @cached_property
    def encoder(self) -> Encoder:
        """The dual encoder."""
        part = self.settings.part("model")
        return self.share("model", [part.values, model_key(part.values)], encoder_maker(part))

    @cached_property
    def facts(self) -> EncoderFacts:
        """What is known of the encoder, which is loaded only where its files were not seen before."""
        keep_index_in(self.settings.cache / "contents")
        values = self.settings.part("model").values

        def of_loaded() -> EncoderFacts:
            return self.share("encoder facts", values, lambda: EncoderFacts.of(self.encoder), of=self.encoder)

        return of_loaded() if "encoder" in self.__dict__ else encoder_facts(values, self.settings.cache / "encoders", of_loaded)

    @property
    def lazy_encoder(self) -> LazyEncoder:
        """The encoder for what may not need it."""
        return LazyEncoder(self.facts, lambda: self.encoder, self.__dict__.get("elsewhere", encoder_maker(self.settings.part("model"))))

    def with_encoder(self, encoder: Encoder) -> "Session":
        """The same parts with another encoder, which crop policies look through as well."""
        changed = replace(self)
        kept = {name: part for name, part in self.__dict__.items() if name not in ("sampler", "facts")}
        changed.__dict__ |= kept | {"encoder": encoder, "facts": EncoderFacts.of(encoder), "elsewhere": None}
        return changed

    def with_classes(self, dataset: Dataset, prompts: list[list[str]] | None = None) -> "Session":
        """The same parts for other classes: those of a data set, which may hold no image, and their prompts where these are known."""
        changed = replace(self)
        changed.__dict__ |= {"dataset": dataset, **({} if prompts is None else {"prompts": prompts})}
        return changed

    def with_knobs(self, crop: Mapping[str, Any], fusion_weight: float, text: TextBank) -> "Session":
        """The same parts with other knobs of the crop policy, another fusion weight and other encoded prompts."""
        config = self.settings.config
        values = {"crop": {**config["crop"], **crop}, "task": {**config["task"], "fusion_weight": fusion_weight}}
        changed = replace(self, settings=replace(self.settings, config={**config, **values}))
        kept = {"dataset": self.dataset, "encoder": self.encoder, "facts": self.facts, "aggregator": self.aggregator}
        changed.__dict__ |= {**kept, "text": text, "prompts": text.prompts}
        return changed

    @cached_property
    def sampler(self) -> CropPolicy:
        """The crop policy with its knobs bound, and with the encoder where it looks at the image."""
        part = self.settings.part("crop")
        policy = as_policy(part.make())
        if policy.looks_at is None:
            return policy
        return self.share("crops", part.values, lambda: looking.with_encoder(policy, self.encoder), of=self.encoder)

    @cached_property
    def prompts(self) -> list[list[str]]:
        """The prompts of each class, label prompt first."""
        dataset = self.dataset
        return prompts_of(self.settings.part("prompt").make(), dataset.class_names, dataset.descriptions, dataset.class_keys)

    @cached_property
    def text(self) -> TextBank:
        """The encoded prompts."""
        folder = self.settings.cache / "texts"
        return self.share("text", [self.prompts, *self.facts.key], partial(text_features, self.prompts, self.lazy_encoder, folder))

    @cached_property
    def aggregator(self) -> Aggregator:
        """The aggregator with its knobs bound."""
        return as_aggregator(self.settings.part("aggregator").make())

    @cached_property
    def scorer(self) -> Scorer:
        """Class logits of views: the aggregator's, fused with the global view's."""
        return self._scorer(self.aggregator, self.settings.task["fusion_weight"])

    @cached_property
    def beside(self) -> dict[str, Scorer]:
        """The scorers of the further aggregators, by name, each with the fusion weight of its file."""
        parts = self.settings.beside.items()
        return {name: self._scorer(as_aggregator(part.without("facts").make()), weight_of(part.values)) for name, part in parts}

    def _scorer(self, aggregator: Aggregator, weight: float) -> Scorer:
        """A scorer whose aggregator's logits the jobs of a sweep share."""
        made = (self.text, self.facts.logit_scale, aggregator, weight)
        if self.cache is None:
            return Scorer(*made)
        return CachedScorer(*made, cache=self.share("logits", [self.prompts, aggregator.identity, *self.facts.key], LogitsCache))

    def inject(self, part: Callable[..., Made]) -> Made:
        """What the constructor of an adapter or a method makes of the parts of the run that its parameters name."""
        return inject(part, self.injectables)

    @property
    def injectables(self) -> Injectables:
        """What the constructor of an adapter or a method may ask for by name.

        Raises:
            ValueError: If the aggregator prunes classes.
        """
        if self.aggregator.prunes:
            raise ValueError(
                "aggregator.prune=true gives exact logits to the five best classes alone, and an adapter or method reads all of them: "
                "use aggregator.prune=false, or task=zero_shot"
            )
        return Injectables(self.scorer, lambda: self.encoder)

    @property
    def scored_images(self) -> LabelledImages | StreamedImages:
        """The images that the run scores: ``split`` of the data set, at most ``limit`` of it."""
        return limited(split_of(self.dataset, self.settings["split"]), self.settings.limit)

    @cached_property
    def unknown_images(self) -> LabelledImages | None:
        """The images of unknown classes that ``ood`` names; None where the configuration names none."""
        return unknown_images(self.settings, self.dataset, lambda changed: replace(self, settings=changed).dataset)

    def bank(self, images: LabelledImages | StreamedImages) -> FeatureBank:
        """The feature bank of some images; with ``bank=off`` one that encodes while it is read.

        Raises:
            ValueError: If no image can be read, or one cannot and ``on_unreadable=raise``.
        """
        check_on_unreadable(self.settings["on_unreadable"])
        storage, compute = self.settings["bank"], self.settings.compute
        check_storage(images, storage=storage, cut=compute.cut)
        how = {
            "seed": self.settings["crop_seed"],
            "cache": self.settings.banks,
            "storage": storage,
            **{name: getattr(compute, name) for name in OF_BANK},
        }
        make = partial(feature_bank, images, self.sampler, self.lazy_encoder, engine=self.settings.engine, **how)
        if storage == "off" or images.indexed is False:
            return make()
        key = [images.fingerprint, images.ids, self.settings.part("crop").values, how, *self.facts.key]
        opened = self.share("bank", key, make)  # files are opened, and checksums read, once per process in a sweep
        bank = copy.copy(opened)
        bank.images, opened.reused = images, True
        report_unreadable(bank, self.settings["on_unreadable"])
        return bank
