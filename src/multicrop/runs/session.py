"""What a run is made of: the parts that the configuration names, each made once, and the task over them."""

import copy
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from multicrop.adapters.base import Adapter, EncoderAdapter
from multicrop.aggregators.logits_cache import KeptScorer
from multicrop.aggregators.score import Scorer
from multicrop.config import in_sweep, without
from multicrop.crops import CropSampler, looks_at
from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.few_shot import few_shot_from_file, few_shot_split
from multicrop.encoder import Encoder, sighted
from multicrop.features import Bank, ImageBank, PassingBank, StreamedBank, count_views, image_bank
from multicrop.model import MultiCropCLIP
from multicrop.runs import finished_runs as finished
from multicrop.runs.sweep_cache import shared
from multicrop.runs.tasks import AdaptationTask, BankTask, FewShotTask, TunedTask, ZeroShotTask
from multicrop.text import prompts_of

log = logging.getLogger(__name__)
ON_UNREADABLE = ("skip", "raise")
FOR_OTHERS = ("crop_side", "description_prompt", "description_set", "template")  # facts of a data set that are no argument of it
BANKS = ("disk", "off")
SELECTIONS = ("validation", "fixed")
CUTS = ("worker", "device")
PRUNING = ("certified_fusion_weight",)  # knobs of an aggregator that change nothing where prune=false
Part = TypeVar("Part")


@dataclass
class Session:
    """What a task is built from: the configuration, and the parts that it names, each made once."""

    cfg: DictConfig

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; FOR_OTHERS are for crop policies and prompts to read."""
        node = without(self.cfg.dataset, *FOR_OTHERS)
        dataset = shared("dataset", node, lambda: instantiate(node))
        return instantiate(self.cfg.corruption)(dataset)

    @cached_property
    def encoder(self) -> Encoder:
        """The dual encoder; `template` is for the prompts to read."""
        node = without(self.cfg.model, "template")
        return shared("model", node, lambda: instantiate(node))

    @cached_property
    def sampler(self) -> CropSampler:
        """The crop policy with its knobs bound, and the encoder's eyes where it wants to look at the image."""
        sampler = instantiate(self.cfg.crop)
        return sighted(sampler, self.encoder) if looks_at(sampler) else sampler

    @cached_property
    def scorer(self) -> Scorer:
        """Views to fused class logits."""
        dataset = self.dataset
        prompts = prompts_of(instantiate(self.cfg.prompt), dataset.class_names, dataset.descriptions, dataset.class_keys)
        encoder = self.encoder
        text = shared("text", prompts, lambda: encoder.encode_prompts(prompts), of=encoder)
        made = (text, encoder.logit_scale, instantiate(self.cfg.aggregator), self.cfg.task.fusion_weight)
        if not in_sweep():
            return Scorer(*made)
        knobs = without(self.cfg.aggregator, *(() if self.cfg.aggregator.get("prune") else PRUNING))
        return KeptScorer(*made, kept=shared("logits", [prompts, knobs], dict, of=encoder))

    @property
    def offers(self) -> dict[str, object]:
        """What the constructor of an adapter or a method may ask for. Raises ValueError for a pruning aggregator."""
        if self.cfg.aggregator.get("prune"):
            raise ValueError(
                "aggregator.prune=true gives exact logits to the five best classes alone, and an adapter or method reads all of them: "
                "use aggregator.prune=false, or task=zero_shot"
            )
        scorer = self.scorer
        return {"text": scorer.text, "logit_scale": scorer.logit_scale, "score": scorer, "encoder": self.encoder}

    def bank(self, images: LabelledImages | StreamedImages) -> Bank:
        """The bank of some images, with a word on the ones that could not be read; with bank=off, one that encodes as it is read."""
        cfg, trainer = self.cfg, self.cfg.trainer
        if cfg.on_unreadable not in ON_UNREADABLE:
            raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, got {cfg.on_unreadable!r}")
        if cfg.bank not in BANKS:
            raise ValueError(f"bank is one of {', '.join(BANKS)}, got {cfg.bank!r}")
        if trainer.cut not in CUTS:
            raise ValueError(f"trainer.cut is one of {', '.join(CUTS)}, got {trainer.cut!r}")
        where = {"num_workers": trainer.num_workers, "accelerator": trainer.accelerator, "cut": trainer.cut}
        if isinstance(images, StreamedImages) and cfg.bank == "disk":
            raise ValueError(f"{images.name} is a stream, whose images pass once: pass bank=off, or dataset.streaming=false for a bank")
        if cfg.bank == "off":
            module = MultiCropCLIP(self.encoder, self.sampler, seed=cfg.crop_seed)
            if isinstance(images, StreamedImages):
                where.pop("cut")
                return PassingBank(images, module, n_views=count_views(self.sampler), **where)
            return StreamedBank(images, module, n_views=count_views(self.sampler), **where)
        where |= {"devices": trainer.devices, "shard_images": trainer.shard_images, "progress": trainer.progress}
        bank = self._bank_on_disk(images, {"seed": cfg.crop_seed, "cache": Path(cfg.paths.cache), **where})
        self.report_unreadable(bank)
        return bank

    def _bank_on_disk(self, images: LabelledImages, how: dict[str, object]) -> ImageBank:
        """The bank in its files; in a sweep they are opened, and their checksums read, once a process."""
        policy = OmegaConf.to_container(self.cfg.crop, resolve=True)
        make = partial(image_bank, images, self.sampler, self.encoder, **how)
        kept = shared("bank", [images.fingerprint, images.ids, policy, how], make, of=self.encoder)
        bank = copy.copy(kept)
        bank.images, kept.reused = images, True
        return bank

    def report_unreadable(self, bank: Bank) -> None:
        """A word on images that could not be read; raises ValueError with on_unreadable=raise, or when none could."""
        images = bank.images
        if skipped := [images.ids[i] for i in (~bank.readable).nonzero().squeeze(1).tolist()]:
            message = f"{len(skipped)} of {len(images)} images of {images.name} cannot be used and are skipped: {', '.join(skipped[:3])}"
            if self.cfg.on_unreadable == "raise":
                raise ValueError(f"{message}; mend or remove them, or pass on_unreadable=skip")
            log.warning(message)
        if not len(bank):
            raise ValueError(f"no image of {images.name} can be read; mend them or choose other data")


def given(part: Callable[..., Part], **offers: object) -> Part:
    """What the constructor makes of those of the offers that it names: an adapter or method says what it needs by its parameters."""
    names = inspect.signature(part).parameters
    return part(**{name: value for name, value in offers.items() if name in names})


def zero_shot(session: Session, *, fusion_weight: float) -> BankTask:
    """Nothing to learn."""
    return ZeroShotTask(session.scorer)


def few_shot(session: Session, *, fusion_weight: float, shots: int, few_shot_file: str | None, selection: str = "validation") -> BankTask:
    """Fit the adapter on a support set and select on validation images, before any test image is opened."""
    if selection not in SELECTIONS:
        raise ValueError(f"task.selection is {' or '.join(SELECTIONS)}, got {selection!r}")
    if few_shot_file:
        support, validation = few_shot_from_file(session.dataset, few_shot_file)
    else:
        support, validation = few_shot_split(session.dataset, shots=shots, seed=session.cfg.seed)
    node = session.cfg.adapter if selection == "validation" else without(session.cfg.adapter, "search")
    adapter = given(instantiate(node), **session.offers)
    task = (tuned if isinstance(adapter, EncoderAdapter) else fitted)(session, adapter, support, validation)
    task.splits = {"train": support.ids, "val": validation.ids}
    return task


def fitted(session: Session, adapter: Adapter, support: LabelledImages, validation: LabelledImages) -> FewShotTask:
    """The task of an adapter that learns on the features of the banks."""
    task = FewShotTask(session.scorer, adapter)
    with torch.no_grad():
        examples = [task.examples(*session.bank(images).tensors()) for images in (support, validation)]
    fit(session, adapter, *examples)
    return task


def fit(session: Session, adapter: Adapter | EncoderAdapter, *examples: object) -> Encoder | None:
    """What the adapter's fit gives; a killed one goes on in the next run of the same configuration, and a long one shows a bar."""
    adapter.checkpoint = Path(session.cfg.paths.cache, "fits", f"{finished.identity(session.cfg, session.dataset)}.ckpt")
    adapter.progress = session.cfg.trainer.progress
    started = time.perf_counter()
    learned = adapter.fit(*examples)
    adapter.selection["fit_seconds"] = time.perf_counter() - started
    return learned


def tuned(session: Session, adapter: EncoderAdapter, support: LabelledImages, validation: LabelledImages) -> TunedTask:
    """The task of an adapter that changes the encoder; the images to score are seen by the changed one too, after it is fitted.

    The fit reads neither crops nor aggregator, so that a sweep over these fits once.
    """
    if session.cfg.bank == "off":
        raise ValueError("an adapter that changes the encoder has a bank of its own for what the changed one sees; use bank=disk")
    scorer, changed = session.scorer, copy.copy(session)
    decisive = [OmegaConf.to_container(session.cfg.adapter, resolve=True), [row[:1] for row in scorer.text.prompts]]
    decisive += [[images.fingerprint, images.ids] for images in (support, validation)]
    made = shared("tuned", decisive, lambda: (adapter, fit(session, adapter, support, validation)), of=session.encoder)
    adapter, changed.encoder = made
    bank = changed.bank(split_of(session.dataset, session.cfg.split))
    adapter.checkpoint.unlink(missing_ok=True)
    return TunedTask(scorer, adapter, changed.encoder.encode_prompts(scorer.text.prompts), bank)


def tta(session: Session, *, fusion_weight: float, order: str, order_seed: int, save_every: int | None) -> BankTask:
    """A method that adapts to the stream of test images; their order and the saves are stream.py's."""
    method = given(instantiate(session.cfg.method), **session.offers)
    return AdaptationTask(session.scorer, method)


def split_of(dataset: Dataset, split: str, *, among: Sequence[str] = ("test", "validation")) -> LabelledImages | StreamedImages:
    """The images to score: `test`, or `validation` for choosing a knob without touching the test images."""
    if split not in among:
        raise ValueError(f"split is {' or '.join(among)}, got {split!r}")
    images = getattr(dataset, split)
    if isinstance(images, LabelledImages) and not len(images):
        raise ValueError(f"{dataset.name} brings no {split} images; name another split or choose another data set")
    return images
