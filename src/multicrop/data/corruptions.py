"""`corruption=common`: the test images of any data set under one of the common corruptions of Hendrycks and Dietterich (ICLR 2019)."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import numpy as np
from PIL import Image

from multicrop.config.ranges import OneOf, Seed, Severity
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.images import ImageError, reduced_decoding
from multicrop.files import content_hash

IMAGENET_C = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog"),
    *("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
FURTHER = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
Kind = Annotated[str, OneOf((*IMAGENET_C, *FURTHER))]
LIBRARY = "imagecorruptions-imaug"
LEAST_SIDE = 32
_ONE_AT_A_TIME = threading.Lock()


def clean(dataset: Dataset) -> Dataset:
    """Return the data set unchanged."""
    return dataset


def common(dataset: Dataset, *, kind: Kind, severity: Severity, corruption_seed: Seed) -> Dataset:
    """Corrupt the test images of a data set; training and validation images stay unchanged.

    The noise of an image depends on (corruption_seed, kind, image id) alone. Kernels are in pixels of the image as it is stored, whereas
    ImageNet-C corrupts images of 224 px.

    Args:
        dataset: Any data set, indexed or streamed.
        kind: One of the 15 corruptions of ImageNet-C or the 4 further ones.
        severity: 1 to 5.
        corruption_seed: Seed of the noise.

    Returns:
        The data set with corrupted test images and a name that says so.

    Raises:
        ValueError: If the kind or the severity does not exist.
        ImportError: If the library of corruptions is not installed.
    """
    if kind not in (*IMAGENET_C, *FURTHER):
        raise ValueError(f"corruption.kind is one of {', '.join((*IMAGENET_C, *FURTHER))}, got {kind!r}")
    if severity not in range(1, 6):
        raise ValueError(f"corruption.severity is 1 to 5, got {severity}")
    spoil = Corruption(kind, severity, corruption_seed)
    test = dataset.test
    name, fingerprint = f"{test.name}-{kind}-{severity}", content_hash(test.fingerprint, spoil, _library_version())
    if test.indexed is True:
        corrupted = replace(test, name=name, content=fingerprint, open=_CorruptedImages(test, spoil), parent=None)
    else:
        corrupted = replace(test, name=name, fingerprint=fingerprint, source=_CorruptedSource(test.source, spoil))
    return replace(dataset, name=f"{dataset.name}-{kind}-{severity}", test=corrupted)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity."""

    kind: str
    severity: int
    seed: int

    def __call__(self, image: Image.Image, image_id: str) -> Image.Image:
        """The corrupted RGB image, always the same for one id; raises ImageError for a side under 32 pixels."""
        from imagecorruptions import corrupt, corruption_dict

        if min(image.size) < LEAST_SIDE:
            raise ImageError(f"{image_id} is {image.width} x {image.height} pixels; a corruption needs {LEAST_SIDE} per side")
        drawn = int(content_hash(self.seed, self.kind, image_id)[:8], 16)
        own = {"seed": drawn} if "seed" in inspect.signature(corruption_dict[self.kind]).parameters else {}
        with _numpy_seeded(drawn):
            return Image.fromarray(corrupt(np.array(image), severity=self.severity, corruption_name=self.kind, **own))


@dataclass(frozen=True)
class _CorruptedImages:
    images: LabelledImages
    spoil: Corruption

    def __call__(self, index: int) -> Image.Image:
        with reduced_decoding(None):  # kernels are in pixels of the image as it is stored
            return self.spoil(self.images.open(index), self.images.ids[index])


@dataclass(frozen=True)
class _CorruptedSource:
    source: Callable[[int, int], Iterator[tuple[str, int, Callable[[], Image.Image]]]]
    spoil: Corruption

    def __call__(self, part: int, parts: int) -> Iterator[tuple[str, int, Callable[[], Image.Image]]]:
        for image_id, label, opened in self.source(part, parts):
            yield image_id, label, partial(_opened, opened, self.spoil, image_id)


def _opened(opened: Callable[[], Image.Image], spoil: Corruption, image_id: str) -> Image.Image:
    return spoil(opened(), image_id)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which the library draws, and restore it afterwards; one thread at a time."""
    with _ONE_AT_A_TIME:
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)


def _library_version() -> str:
    try:
        return version(LIBRARY)
    except PackageNotFoundError as error:
        raise ImportError(f"corruption=common needs {LIBRARY}: pip install {LIBRARY}, or corruption=none") from error
