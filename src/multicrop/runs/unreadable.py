"""Images that cannot be read: reported, and an error where the run asks for it or none is left."""

import logging
from collections import Counter
from collections.abc import Sequence

from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.data.images import ImageError
from multicrop.features import FeatureBank

log = logging.getLogger(__name__)
ON_UNREADABLE = ("skip", "raise")


def report_unreadable(bank: FeatureBank, on_unreadable: str) -> None:
    """Log the images that could not be read, and the ids that a stream repeated.

    Args:
        bank: The bank that was read.
        on_unreadable: ``"skip"`` or ``"raise"``.

    Raises:
        ValueError: If none could be read, or one could not and ``on_unreadable=raise``.
    """
    images = bank.images
    _report(images, (~bank.readable).nonzero().squeeze(1).tolist(), on_unreadable)
    if not bank.reorderable and (twice := [name for name, count in Counter(images.ids).items() if count > 1]):
        log.warning(
            f"{len(twice)} ids of the stream {images.name} repeat: {', '.join(twice[:3])}; every image is scored, and those of one id "
            "have crops of one draw. Give each image its own id"
        )
    if not len(bank):
        raise ValueError(f"no image of {images.name} can be read; repair them or choose other data")


def check_on_unreadable(on_unreadable: str) -> None:
    """Raise ValueError for a value that the knob does not have."""
    if on_unreadable not in ON_UNREADABLE:
        raise ValueError(f"on_unreadable is one of {', '.join(ON_UNREADABLE)}, got {on_unreadable!r}")


def report_skipped(images: LabelledImages, skipped: Sequence[int], on_unreadable: str) -> None:
    """Log the images of a bank that could not be read; raises ValueError as `report_unreadable` does."""
    _report(images, skipped, on_unreadable)
    if len(skipped) == len(images):
        raise ValueError(f"no image of {images.name} can be read; repair them or choose other data")


def _report(images: LabelledImages, skipped: Sequence[int], on_unreadable: str) -> None:
    """Log images that cannot be read, with the reasons of three; raises ValueError if ``on_unreadable=raise``."""
    if not skipped:
        return
    reasons = [(images.ids[int(index)], reason(images, index)) for index in skipped[:3]]
    named = "; ".join(f"{image_id} ({why})" if why else image_id for image_id, why in reasons)
    message = f"{len(skipped)} of {len(images)} images of {images.name} cannot be used and are skipped: {named}"
    if on_unreadable == "raise":
        raise ValueError(f"{message}; repair or remove them, or pass on_unreadable=skip")
    log.warning(message)


def reason(images: LabelledImages | StreamedImages, index: int) -> str:
    """Why an image cannot be read; empty for a stream, and where it can be read now."""
    if images.indexed is False:
        return ""
    try:
        images.open(index)
    except (ImageError, OSError) as error:
        return str(error)
    return ""
