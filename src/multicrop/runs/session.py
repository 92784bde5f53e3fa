"""The parts of a run that its configuration names, each made once."""

import copy
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from torch import nn

from multicrop.aggregators.logits_cache import KeptScorer
from multicrop.aggregators.score import Scorer
from multicrop.crops import CropSampler, looks_at
from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.calibration import calibration_images
from multicrop.encoder import Encoder, sighted
from multicrop.features import Bank, ImageBank, PassingBank, StreamedBank, count_views, image_bank
from multicrop.model import MultiCropCLIP
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.text import TextBank, prompts_of

log = logging.getLogger(__name__)
ON_UNREADABLE = ("skip", "raise")
BANKS = ("disk", "off")
CUTS = ("worker", "device")
ONLY_PRUNING = ("certified_fusion_weight",)  # knobs of an aggregator that change nothing where prune=false
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
        """The data set, corrupted if the configuration asks for it."""
        part = self.settings.part("dataset")
        return self.settings.part("corruption").make()(self.share("dataset", part.values, part.make))

    @cached_property
    def encoder(self) -> Encoder:
        """The dual encoder."""
        part = self.settings.part("model")
        images = partial(calibration_images, part.values.get("calibration"))
        return self.share("model", part.values, partial(part.make, calibration=images))

    @cached_property
    def sampler(self) -> CropSampler:
        """The crop policy with its knobs bound, and with the encoder where it looks at the image."""
        sampler = self.settings.part("crop").make()
        return sighted(sampler, self.encoder) if looks_at(sampler) else sampler

    @cached_property
    def prompts(self) -> list[list[str]]:
        """The prompts of each class, label prompt first."""
        dataset = self.dataset
        return prompts_of(self.settings.part("prompt").make(), dataset.class_names, dataset.descriptions, dataset.class_keys)

    @cached_property
    def text(self) -> TextBank:
        """The encoded prompts."""
        return self.share("text", self.prompts, lambda: self.encoder.encode_prompts(self.prompts), of=self.encoder)

    @cached_property
    def scorer(self) -> Scorer:
        """Class logits of views: the aggregator's, fused with the global view's."""
        part = self.settings.part("aggregator")
        made = (self.text, self.encoder.logit_scale, part.make(), self.settings.task["fusion_weight"])
        if self.cache is None:
            return Scorer(*made)
        decisive = part if part.values.get("prune") else part.without(*ONLY_PRUNING)
        return KeptScorer(*made, kept=self.share("logits", [self.prompts, decisive.values], dict, of=self.encoder))

    @property
    def injectables(self) -> dict[str, Any]:
        """What the constructor of an adapter or a method may ask for by name.

        Raises:
            ValueError: If the aggregator prunes classes.

        """
        if self.settings.part("aggregator").values.get("prune"):
            raise ValueError(
                "aggregator.prune=true gives exact logits to the five best classes alone, and an adapter or method reads all of them: "
                "use aggregator.prune=false, or task=zero_shot"
            )
        return {"text": self.text, "logit_scale": self.encoder.logit_scale, "score": self.scorer, "encoder": self.encoder}

    @property
    def scored_images(self) -> LabelledImages | StreamedImages:
        """The images that the run scores: ``split`` of the data set."""
        return split_of(self.dataset, self.settings["split"])

    def bank(self, images: LabelledImages | StreamedImages) -> Bank:
        """The feature bank of some images; with ``bank=off`` one that encodes while it is read.

        Raises:
            ValueError: If no image can be read, or one cannot and ``on_unreadable=raise``.

        """
        if self.settings["on_unreadable"] not in ON_UNREADABLE:
            raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, got {self.settings['on_unreadable']!r}")
        if (storage := self.settings["bank"]) not in BANKS:
            raise ValueError(f"bank is one of {', '.join(BANKS)}, got {storage!r}")
        compute = self.settings.compute
        if compute.cut not in CUTS:
            raise ValueError(f"trainer.cut is one of {', '.join(CUTS)}, got {compute.cut!r}")
        where = {"num_workers": compute.num_workers, "accelerator": compute.accelerator, "cut": compute.cut}
        if isinstance(images, StreamedImages) and storage == "disk":
            raise ValueError(f"{images.name} is a stream, whose images pass once: pass bank=off, or dataset.streaming=false for a bank")
        if storage == "off":
            module = MultiCropCLIP(self.encoder, self.sampler, seed=self.settings["crop_seed"])
            if isinstance(images, StreamedImages):
                where.pop("cut")
                return PassingBank(images, module, n_views=count_views(self.sampler), **where)
            return StreamedBank(images, module, n_views=count_views(self.sampler), **where)
        where |= {"devices": compute.devices, "shard_images": compute.shard_images, "progress": compute.progress}
        bank = self._bank_on_disk(images, {"seed": self.settings["crop_seed"], "cache": self.settings.cache, **where})
        self.report_unreadable(bank)
        return bank

    def _bank_on_disk(self, images: LabelledImages, how: dict[str, Any]) -> ImageBank:
        """The bank in its files, which are opened, and their checksums read, once per process in a sweep."""
        make = partial(image_bank, images, self.sampler, self.encoder, **how)
        key = [images.fingerprint, images.ids, self.settings.part("crop").values, how]
        shared = self.share("bank", key, make, of=self.encoder)
        bank = copy.copy(shared)
        bank.images, shared.reused = images, True
        return bank

    def report_unreadable(self, bank: Bank) -> None:
        """Log the images that could not be read.

        Raises:
            ValueError: If none could be read, or one could not and ``on_unreadable=raise``.

        """
        images = bank.images
        if skipped := [images.ids[i] for i in (~bank.readable).nonzero().squeeze(1).tolist()]:
            message = f"{len(skipped)} of {len(images)} images of {images.name} cannot be used and are skipped: {', '.join(skipped[:3])}"
            if self.settings["on_unreadable"] == "raise":
                raise ValueError(f"{message}; mend or remove them, or pass on_unreadable=skip")
            log.warning(message)
        if not len(bank):
            raise ValueError(f"no image of {images.name} can be read; mend them or choose other data")


def inject(part: Callable[..., Made], **injectables: Any) -> Made:
    """What the constructor of an adapter or a method makes of those values that its parameters name."""
    names = inspect.signature(part).parameters
    return part(**{name: value for name, value in injectables.items() if name in names})


def split_of(dataset: Dataset, split: str, *, among: tuple[str, ...] = ("test", "validation")) -> LabelledImages | StreamedImages:
    """The images of a split.

    Raises:
        ValueError: If the split is not one of ``among``, or the data set has no images in it.

    """
    if split not in among:
        raise ValueError(f"split is {' or '.join(among)}, got {split!r}")
    images = getattr(dataset, split)
    if isinstance(images, LabelledImages) and not len(images):
        raise ValueError(f"{dataset.name} brings no {split} images; name another split or choose another data set")
    return images
