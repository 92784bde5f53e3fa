"""The images that a run scores: those of a split, and those of unknown classes (``ood``)."""

import logging
from collections.abc import Callable
from dataclasses import replace

from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.halves import HALVES
from multicrop.data.limit import limited
from multicrop.runs.settings import Settings

SCORED = ("test", "validation")  # the splits whose images can be scored
log = logging.getLogger(__name__)


def split_of(dataset: Dataset, split: str, *, among: tuple[str, ...] = SCORED) -> LabelledImages | StreamedImages:
    """The images of a split.

    Raises:
        ValueError: If the split is not one of ``among``, or the data set has no images in it.
    """
    if split not in among:
        raise ValueError(f"split is {' or '.join(among)}, got {split!r}")
    images = getattr(dataset, split)
    if images.indexed is True and not len(images):
        filled = [name for name in among if name != split]
        how = f"split={filled[0]}" if among == SCORED else f"task.splits=[{filled[-1]}]"
        raise ValueError(f"{dataset.name} has no {split} images; choose another data set, or name another split: {how}")
    return images


def unknown_images(settings: Settings, dataset: Dataset, dataset_of: Callable[[Settings], Dataset]) -> LabelledImages | None:
    """The images of unknown classes that ``ood`` names, of the scored split; None where the configuration names none.

    Args:
        settings: The configuration.
        dataset: The data set that is scored.
        dataset_of: Makes the data set of other settings.

    Raises:
        ValueError: If ``ood`` is a half of the classes and the other half is not scored, the images are a stream, or all of them are of
            scored classes.
    """
    config = settings.config
    if (name := config.get("ood")) is None:
        return None
    if name in HALVES and config.get("classes") != (other := HALVES[1 - HALVES.index(name)]):
        raise ValueError(f"ood={name} is a half of the classes, of which the other is scored: pass classes={other} ood={name}")
    changed = {"classes": name} if name in HALVES else {"classes": "all", "dataset": config["ood_knobs"]}
    other_set = dataset_of(replace(settings, config={**config, **changed}))
    images = split_of(other_set, settings["split"])
    if images.indexed is False:
        raise ValueError(f"ood={name} is a stream, and the images of unknown classes are read by position; use dataset.streaming=false")
    scored = set(dataset.class_names)
    kept = [i for i, label in enumerate(images.labels) if other_set.class_names[label] not in scored]
    if not kept:
        raise ValueError(f"every class of ood={name} is a class of {dataset.name}; name a data set with other classes")
    if left_out := len(images) - len(kept):
        log.warning(f"{left_out} of {len(images)} images of ood={name} are of classes that {dataset.name} has too, and are left out")
    return limited(images.subset(kept) if left_out else images, settings.limit)
