"""The identity of a bank: a hash of everything that can change its bytes, and of nothing else."""

from dataclasses import asdict, dataclass

from multicrop.config import PACKAGE
from multicrop.crops import CropPolicy, CropSampler, as_policy
from multicrop.data.base import LabelledImages
from multicrop.data.contents import FileContents
from multicrop.encoder import Encoder
from multicrop.encoder.known import EncoderFacts, LazyEncoder
from multicrop.files import content_hash

CODE_FILES = (
    *("crops/*.py", "data/images.py", "data/corruptions.py", "encoder/*.py", "model.py"),
    *("features/view_dataset.py", "features/fill.py"),
)


@dataclass(frozen=True)
class BankIdentity:
    """Everything that can change the bytes of a bank, except the number of nested crops."""

    model: str
    pixels: str
    precision: str
    data: str
    policy: str
    seed: int
    code: str

    @property
    def key(self) -> str:
        """The bank's folder: a hash of the parts."""
        return content_hash(*asdict(self).values())


def bank_identity(images: LabelledImages, sampler: CropSampler, encoder: Encoder, seed: int, cut: str = "worker") -> BankIdentity:
    """Name what decides the bytes of a bank.

    Args:
        images: The images; their fingerprint and ids count.
        sampler: The crop policy with its knobs.
        encoder: The encoder; its weights, pixels and precision count.
        seed: Seed of the crops.
        cut: ``"worker"``, ``"device"`` or ``"scaled"``: where and from what crops are resampled.

    Returns:
        The parts, which also hold a hash of the code that makes views and features.
    """
    return _identity(images, sampler, EncoderFacts.of(encoder), seed, cut)


def _identity(images: LabelledImages, sampler: CropSampler, facts: EncoderFacts, seed: int, cut: str) -> BankIdentity:
    files = sorted(path for pattern in CODE_FILES for path in PACKAGE.glob(pattern))
    code = content_hash(*(path.read_text(encoding="utf-8") for path in files))
    policy = as_policy(sampler).identity
    listed = images.ids if isinstance(images.ids, list) else ()  # the fingerprint of a table covers its ids
    data = content_hash(images.fingerprint, *listed)
    return BankIdentity(facts.fingerprint, f"{facts.spec} cut={cut}", facts.precision, data, policy, seed, code)


@dataclass(frozen=True)
class ViewRecipe:
    """What makes the views of an image and their features: encoder, crop policy (with the encoder where it looks at the image) and seed."""

    encoder: LazyEncoder
    sampler: CropPolicy
    seed: int

    def identity(self, images: LabelledImages, cut: str) -> BankIdentity:
        """The identity of the bank of some images."""
        return _identity(images, self.sampler, self.encoder.facts, self.seed, cut)


def image_keys(images: LabelledImages) -> list[str]:
    """A hash per image of its id and its content, the same in every subset of a data set."""
    content, whole = images.content, images
    if isinstance(content, FileContents) and content.per_image:
        return [content_hash(content.more, *one) for one in zip(images.ids, content.file_digests, strict=True)]
    while whole.parent is not None:
        whole = whole.parent[0]
    return [content_hash(whole.fingerprint, image_id) for image_id in images.ids]


def count_views(sampler: CropSampler) -> int:
    """Views per image under a crop policy; the number does not depend on the image."""
    return as_policy(sampler).n_views


def is_nested(sampler: CropSampler) -> bool:
    """Whether the policy's first crops are the same however many it draws, so that a bank of more crops answers for fewer."""
    return as_policy(sampler).nested
