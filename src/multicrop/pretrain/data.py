"""Training batches keyed by their step: pictures, and the tokens of the captions they are compared with."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import CLIPTokenizer

from multicrop.config.ranges import Fraction
from multicrop.data.embedded.artwork import TRAINING_VENDORS, Drawing, Trained, training_drawings
from multicrop.data.embedded.whole import several
from multicrop.files import content_hash
from multicrop.pretrain.captions import concept_caption
from multicrop.pretrain.compose import Composer
from multicrop.pretrain.restyle import RestyledBank


def sprites_of(drawings: list[Drawing], concepts: list[dict]) -> tuple[Tensor, Tensor]:
    """RGBA sprites (n,4,96,96) uint8 and the concept index of each."""
    row = {concept["concept"]: index for index, concept in enumerate(concepts)}
    pixels = [torch.from_numpy(np.array(drawing.image)).permute(2, 0, 1) for drawing in drawings]
    return torch.stack(pixels), torch.tensor([row[drawing.concept] for drawing in drawings])


@dataclass(frozen=True)
class DataKnobs:
    """What training pictures are composed of.

    Attributes:
        restyled: Folder of the restyled bank (`python -m multicrop.pretrain.restyle --output FOLDER`), or None.
        restyled_share: Share of the objects that are restyled, where there is a bank.
        scene_share: Share of the images that show several objects.
        whole_share: Share of the scenes that are seen as a whole.
        leave_out: A training vendor whose drawings are not read, to validate on, or None.
    """

    restyled: str | None = None
    restyled_share: Fraction = 0.75
    scene_share: Fraction = 0.6
    whole_share: Fraction = 0.25
    leave_out: Trained | None = None


def training_data(concepts: list[dict], knobs: DataKnobs) -> tuple[Composer, dict[str, Any]]:
    """The composer of the training vendors' sprites, and the vendors, knobs and content hash of all that it reads."""
    if knobs.leave_out is not None and knobs.leave_out not in TRAINING_VENDORS:
        raise ValueError(f"task.leave_out is a training vendor ({', '.join(TRAINING_VENDORS)}) or null, got {knobs.leave_out!r}")
    vendors = tuple(vendor for vendor in TRAINING_VENDORS if vendor != knobs.leave_out)
    sprites, labels = sprites_of([drawing for drawing in training_drawings() if drawing.vendor in vendors], concepts)
    parts = [vendors, hashlib.sha256(sprites.numpy().tobytes()).hexdigest(), labels.tolist()]
    bank = None
    if knobs.restyled:
        source = RestyledBank(Path(knobs.restyled), vendors=vendors)
        row = {concept["concept"]: index for index, concept in enumerate(concepts)}
        bank = source, torch.tensor([row[concept] for concept in source.concepts])
        parts.append(source.index["content"])
    shares = {"restyled_share": knobs.restyled_share, "scene_share": knobs.scene_share, "whole_share": knobs.whole_share}
    made_from = {"vendors": vendors, "data": content_hash(*parts), "pictures": shares}
    return Composer(sprites, labels, restyled=bank, **shares), made_from


class TrainingBatches(Dataset):
    """Batch i is a function of (seed, i) alone, so that a resumed run reads the batches that the killed run had left.

    A batch holds the composition, one sampled caption for each concept, a sample of part phrases with the pairs
    (picture, phrase) that are true, and a caption for each picture that shows three objects or more.
    """

    def __init__(
        self, composer: Composer, concepts: Sequence[dict], tokenizer: CLIPTokenizer, *, batch_size: int, phrases: int, seed: int
    ) -> None:
        self.composer, self.concepts, self.tokenizer = composer, concepts, tokenizer
        self.batch_size, self.n_phrases, self.seed = batch_size, phrases, seed
        self.phrases = sorted({part for concept in concepts for part in concept["parts"]})
        known = {phrase: index for index, phrase in enumerate(self.phrases)}
        self.has_phrase = torch.zeros(len(concepts) + 1, len(self.phrases))  # the last row stands for an empty slot
        for row, concept in enumerate(concepts):
            self.has_phrase[row, [known[part] for part in concept["parts"]]] = 1

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        rng = random.Random((self.seed << 32) + step)
        shown = self.composer(self.batch_size, generator)
        true_phrases, chosen = self._phrases(shown.objects, shown.visible, generator)
        crowded = ((shown.visible > 0.5).sum(1) >= 3).nonzero().squeeze(1)
        texts = [concept_caption(concept, rng) for concept in self.concepts]
        texts += [self.phrases[index] for index in chosen]
        texts += [self._scene(shown.objects[i], shown.visible[i], rng) for i in crowded]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {
            "images": shown.images,
            "concept_targets": self._concept_targets(shown.objects, shown.visible, shown.area),
            "patches": shown.patches,
            "phrase_targets": true_phrases,
            "several": crowded,
            "input_ids": tokens["input_ids"],
            "lengths": tokens["attention_mask"].sum(1),
        }

    def _concept_targets(self, objects: Tensor, visible: Tensor, area: Tensor) -> Tensor:
        """(B,C) weights: the square root of the picture's area that a sufficiently visible object covers."""
        weight = torch.where(visible > 0.25, area.sqrt(), 0)
        targets = torch.zeros(len(objects), len(self.concepts) + 1)
        return targets.scatter_add_(1, objects % (len(self.concepts) + 1), weight)[:, :-1]

    def _phrases(self, objects: Tensor, visible: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.where(visible > 0.6, objects, -1)
        true = self.has_phrase[rows].amax(1)
        order = torch.randperm(len(self.phrases), generator=generator)[: self.n_phrases]
        return true[:, order], order

    def _scene(self, objects: Tensor, visible: Tensor, rng: random.Random) -> str:
        names = [self.concepts[int(o)]["name"] for o, share in zip(objects, visible, strict=True) if share > 0.5]
        rng.shuffle(names)
        return several(names)


class StepSampler(Sampler[int]):
    """The steps of an epoch, counted from `done()` when it begins, so that a resumed run continues where it stopped; none after `last`."""

    def __init__(self, steps: int, last: int, done: Callable[[], int]) -> None:
        self.steps, self.last, self.done = steps, last, done

    def __iter__(self) -> Iterator[int]:
        first = self.done()
        return iter(range(first, min(first + self.steps, self.last)))

    def __len__(self) -> int:
        return self.steps


def training_loader(batches: Dataset, steps: int, *, done: Callable[[], int], steps_per_epoch: int, num_workers: int) -> DataLoader:
    """One whole batch per item; workers are spawned, because a fork after torch operations hangs."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=StepSampler(steps_per_epoch, steps, done),
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
    )
