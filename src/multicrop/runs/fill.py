"""Filling the bank of some images without opening it, so that memory does not grow with the number of images."""

from dataclasses import dataclass, replace

from multicrop.data.base import LabelledImages
from multicrop.features import ShardFolder
from multicrop.features.base import EncodeSettings
from multicrop.features.disk import filled
from multicrop.features.identity import ViewRecipe
from multicrop.runs.session import Session
from multicrop.runs.unreadable import check_on_unreadable, report_skipped


@dataclass(frozen=True)
class Filled:
    """A complete bank.

    Args:
        folder: Its folder.
        reused: Whether it was complete before.
    """

    folder: ShardFolder
    reused: bool

    @property
    def crops_per_second(self) -> float | None:
        """The rate at which it was filled; None where it was complete before."""
        return None if self.reused else (self.folder.manifest() or {})["crops_per_second"]


def fill(session: Session, images: LabelledImages) -> Filled:
    """Fill the bank of some images where it is not complete.

    Args:
        session: The parts of the run.
        images: The images; that they are a subset of others is not used.
    """
    settings, compute = session.settings, session.settings.compute
    recipe = ViewRecipe(session.lazy_encoder, session.sampler, settings["crop_seed"])
    how = EncodeSettings(compute.num_workers, compute.accelerator, compute.devices, compute.cut, compute.progress)
    folder, reused = filled(images, recipe, settings.banks, how, shard_images=compute.shard_images, engine=settings.engine)
    return Filled(replace(folder, path=folder.path.absolute()), reused)


def fill_and_verify(session: Session, images: LabelledImages) -> tuple[Filled, int]:
    """Fill the bank of some images and read each shard once; damaged ones are encoded again.

    Returns:
        The bank, and the number of images that could be read.

    Raises:
        ValueError: If no image can be read, or one cannot and ``on_unreadable=raise``.
    """
    check_on_unreadable(session.settings["on_unreadable"])
    bank = fill(session, images)
    while (skipped := bank.folder.unreadable()) is None:
        bank = fill(session, images)
    report_skipped(images, skipped, session.settings["on_unreadable"])
    return bank, len(images) - len(skipped)
