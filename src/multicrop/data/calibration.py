"""Images that an encoder of precision int8_static is calibrated on: embedded training scenes, or a folder of the user's own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from multicrop.data.base import LabelledImages, file_images
from multicrop.data.embedded.artwork import HELD_OUT_VENDORS
from multicrop.data.embedded.scenes import scenes
from multicrop.data.sources.folder import SUFFIXES, image_files

IMAGES = 40
SCENES = {
    "vendor": HELD_OUT_VENDORS[0],
    "n_classes": IMAGES,
    "family_size": 4,
    "n_objects": 4,
    "object_side": (0.30, 0.42),
    "distractors": 0,
    "background": "mixed",
    "canvas": 240,
    "test_images": 1,
    "train_images": 1,
    "validation_images": 1,
    "dataset_seed": 0,
}


def calibration_images(folder: str | None = None) -> Iterator[tuple[str, Image.Image]]:
    """Yield at most 40 images with their ids, the same ones in every process.

    Args:
        folder: A folder of images like those to be encoded, searched at any depth. Of more than 40 images it gives 40 evenly spaced by
            path. None gives scenes of the embedded training drawings.

    Yields:
        Pairs (id, RGB image). An id is the path below the folder.

    Raises:
        ValueError: If the folder does not exist or holds no image.
        ImageError: If an image cannot be decoded.
    """
    images = _own(Path(folder).expanduser()) if folder else scenes(**SCENES).train
    for index in np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int).tolist():
        yield images.ids[index], images.open(index)


def _own(base: Path) -> LabelledImages:
    paths = image_files(base)
    if not paths:
        raise ValueError(
            f"model.calibration={base} is not a folder with images ({', '.join(sorted(SUFFIXES))}); pass one with about {IMAGES} "
            "that look like yours, or model.calibration=null for the embedded scenes"
        )
    return file_images(base.name, [path.relative_to(base).as_posix() for path in paths], [0] * len(paths), paths)
