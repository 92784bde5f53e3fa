"""A bank's key: a hash of everything that can change its bytes, and of nothing else."""

from dataclasses import asdict, dataclass

from multicrop.config import PACKAGE
from multicrop.crops import CropSampler, boxes_of
from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder
from multicrop.files import content_hash

CODE_FILES = ("crops/*.py", "views.py", "resampling.py", "images.py", "encoder/*.py", "model.py")


@dataclass(frozen=True)
class Recipe:
    """Everything that can change the bytes of a bank, but for the number of nested crops."""

    model: str
    pixels: str
    precision: str
    data: str
    policy: str
    seed: int
    code: str

    @property
    def key(self) -> str:
        """The bank's name: a hash of the recipe."""
        return content_hash(*asdict(self).values())


def recipe_of(images: LabelledImages, sampler: CropSampler, encoder: Encoder, seed: int, cut: str = "worker") -> Recipe:
    """The recipe of these images cut by this sampler (in a worker or on the device) and seen by this encoder."""
    function = getattr(sampler, "func", sampler)
    knobs = {k: v for k, v in sorted(getattr(sampler, "keywords", {}).items()) if k != "n_crops"}
    files = sorted(path for pattern in CODE_FILES for path in PACKAGE.glob(pattern))
    code = content_hash(*(path.read_text(encoding="utf-8") for path in files))
    policy = f"{function.__module__}.{function.__qualname__} {knobs}"
    data = content_hash(images.fingerprint, *images.ids)
    return Recipe(encoder.fingerprint(), f"{encoder.spec} cut={cut}", encoder.precision, data, policy, seed, code)


def count_views(sampler: CropSampler) -> int:
    """The views of an image under this policy; their number does not depend on the image."""
    return len(boxes_of(sampler, 8, 8, "", 0))
