"""What a run is made of: the parts that the configuration names, each made once, and the task over them."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.data import Subset

from multicrop.bank import ImageBank, image_bank
from multicrop.config import without
from multicrop.crops import CropSampler
from multicrop.datasets.base import Dataset, LabelledImages, few_shot_split
from multicrop.encoder import Encoder
from multicrop.tasks import AdaptationTask, BankTask, FewShotTask, Scorer, ZeroShotTask

log = logging.getLogger(__name__)
ORDERS = ("shuffled", "sorted_by_class")
ON_UNREADABLE = ("skip", "raise")


@dataclass
class Session:
    """What a task is built from: the configuration, and the parts that it names, each made once."""

    cfg: DictConfig

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; `crop_side` and `description_prompt` are for crop policies and prompts to read."""
        return instantiate(without(self.cfg.dataset, "crop_side", "description_prompt"))

    @cached_property
    def encoder(self) -> Encoder:
        """The dual encoder; `template` is for the prompts to read."""
        return instantiate(without(self.cfg.model, "template"))

    @cached_property
    def sampler(self) -> CropSampler:
        """The crop policy with its knobs bound."""
        return instantiate(self.cfg.crop)

    @cached_property
    def scorer(self) -> Scorer:
        """Views to fused class logits."""
        dataset = self.dataset
        prompts = instantiate(self.cfg.prompt)(dataset.class_names, dataset.descriptions)
        text = self.encoder.encode_prompts(prompts)
        return Scorer(text, self.encoder.logit_scale, instantiate(self.cfg.aggregator), self.cfg.task.fusion_weight)

    def bank(self, images: LabelledImages) -> ImageBank:
        """The bank of some images, with a word on the ones that could not be read."""
        if self.cfg.on_unreadable not in ON_UNREADABLE:
            raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, got {self.cfg.on_unreadable!r}")
        trainer = self.cfg.trainer
        bank = image_bank(
            images,
            self.sampler,
            self.encoder,
            seed=self.cfg.crop_seed,
            cache=Path(self.cfg.paths.cache),
            num_workers=trainer.num_workers,
            accelerator=trainer.accelerator,
            progress=trainer.progress,
        )
        if skipped := [images.ids[i] for i in (~bank.readable).nonzero().squeeze(1).tolist()]:
            message = f"{len(skipped)} of {len(images)} images of {images.name} cannot be used and are skipped: {', '.join(skipped[:3])}"
            if self.cfg.on_unreadable == "raise":
                raise ValueError(f"{message}; mend or remove them, or pass on_unreadable=skip")
            log.warning(message)
        if not len(bank):
            raise ValueError(f"no image of {images.name} can be read; mend them or choose other data")
        return bank


def zero_shot(session: Session, *, fusion_weight: float) -> BankTask:
    """Nothing to learn."""
    return ZeroShotTask(session.scorer)


def few_shot(session: Session, *, fusion_weight: float, shots: int) -> BankTask:
    """Fit the adapter on a support set and select on validation images; the test split is not opened here."""
    support, validation = few_shot_split(session.dataset, shots=shots, seed=session.cfg.seed)
    scorer = session.scorer
    task = FewShotTask(scorer, instantiate(session.cfg.adapter)(text=scorer.text, logit_scale=scorer.logit_scale, score=scorer))
    with torch.no_grad():
        examples = [task.examples(*session.bank(images).tensors()) for images in (support, validation)]
    task.adapter.fit(*examples)
    return task


def tta(session: Session, *, fusion_weight: float, order: str, order_seed: int) -> BankTask:
    """A method that adapts to the stream of test images."""
    method = instantiate(session.cfg.method)(text=session.scorer.text, logit_scale=session.scorer.logit_scale)
    return AdaptationTask(session.scorer, method)


def stream(bank: ImageBank, cfg: DictConfig) -> Subset:
    """The test images in the order that the task's stream asks for; other tasks take them as they lie."""
    positions = list(range(len(bank)))
    if "order" in cfg.task:
        if cfg.task.order not in ORDERS:
            raise ValueError(f"task.order is one of {', '.join(ORDERS)}, got {cfg.task.order!r}")
        generator = torch.Generator().manual_seed(cfg.task.order_seed)
        positions = torch.randperm(len(bank), generator=generator).tolist()
        if cfg.task.order == "sorted_by_class":
            positions.sort(key=lambda p: bank.images.labels[bank.positions[p]])
    return Subset(bank, positions)


def split_of(dataset: Dataset, split: str) -> LabelledImages:
    """The images to score: `test`, or `validation` for choosing a knob without touching the test images."""
    if split not in ("test", "validation"):
        raise ValueError(f"split is test or validation, got {split!r}")
    images: LabelledImages = getattr(dataset, split)
    if not len(images):
        raise ValueError(f"{dataset.name} brings no validation images; choose another data set or split=test")
    return images
