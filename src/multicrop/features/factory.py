"""feature_bank: the one place that decides which bank reads which images."""

from pathlib import Path

from multicrop.crops import CropSampler, as_policy
from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.encoder import Encoder, with_encoder
from multicrop.encoder.known import LazyEncoder
from multicrop.features.base import EncodeSettings, FeatureBank
from multicrop.features.disk import Banks
from multicrop.features.engine import Engine, local
from multicrop.features.identity import ViewRecipe
from multicrop.features.joined import open_or_fill

STORAGES = ("disk", "off")
CUTS = ("worker", "device", "scaled")


def feature_bank(
    images: LabelledImages | StreamedImages,
    sampler: CropSampler,
    encoder: Encoder | LazyEncoder,
    *,
    seed: int,
    cache: Path | Banks,
    storage: str = "disk",
    num_workers: int = 0,
    accelerator: str = "cpu",
    devices: int = 1,
    cut: str = "worker",
    shard_images: int | None = None,
    progress: bool = True,
    engine: Engine = local,
) -> FeatureBank:
    """Make the bank of some images: on disk, encoded while it is read, or in one pass over a stream.

    Args:
        images: The images, indexed or streamed.
        sampler: The crop policy with its knobs bound.
        encoder: The encoder; a lazy one is loaded if views are to be encoded, or the policy looks at the image.
        seed: Seed of the crops.
        cache: The folder of all banks on disk, or their place in object storage.
        storage: ``"disk"`` to encode once and read from files, ``"off"`` to encode on each reading.
        num_workers: Processes that decode and cut; 0 for this process.
        accelerator: ``"cpu"``, or ``"gpu"`` to encode on a GPU.
        devices: Processes that encode a bank on disk, one per device.
        cut: ``"worker"`` or ``"device"``: where crops are resampled; ``"scaled"``: in the worker, from JPEG files that are decoded at 1/2,
            1/4 or 1/8 where they stay twice as large as the model needs (other boxes and pixels, and a bank of its own).
        shard_images: Images per shard of a new bank on disk; None for 256.
        progress: Whether a progress bar shows how a bank on disk is filled.
        engine: What encodes the missing shards of a bank on disk: a ``LocalEngine``, or a ``RayEngine``.

    Returns:
        A DiskBank, an OnTheFlyBank or an OnePassBank.

    Raises:
        PermissionError: If `cache` cannot be written to.
        ValueError: If `storage` or `cut` is unknown, `shard_images` is not a power of two, a stream is to be stored, or a Ray engine is
            to fill a bank that is not stored.
    """
    check_storage(images, storage=storage, cut=cut)
    lazy = LazyEncoder.of(encoder) if isinstance(encoder, Encoder) else encoder
    if cut == "scaled" and lazy.facts.precision == "imported":
        raise ValueError(f"trainer.cut=scaled is for pixels, and the features of {lazy.facts.name} were imported; pass trainer.cut=worker")
    policy = as_policy(sampler) if as_policy(sampler).looks_at is None else with_encoder(sampler, lazy.load())
    if storage == "disk" and images.indexed is True:
        settings = EncodeSettings(num_workers, accelerator, devices, cut, progress)
        return open_or_fill(images, ViewRecipe(lazy, policy, seed), cache, settings, shard_images=shard_images, engine=engine)
    if engine.needs_disk:
        raise ValueError(f"{type(engine).__name__} encodes banks on disk, and this run stores no features: use bank=disk, or engine=local")
    from multicrop.features.on_the_fly import OnTheFlyBank  # Lightning: seconds of imports that a bank on disk may not need
    from multicrop.features.one_pass import OnePassBank
    from multicrop.model import MultiCropCLIP

    module, how = MultiCropCLIP(lazy.load(), policy, seed=seed), {"num_workers": num_workers, "accelerator": accelerator, "cut": cut}
    return OnTheFlyBank(images, module, **how) if images.indexed is True else OnePassBank(images, module, **how)


def check_storage(images: LabelledImages | StreamedImages, *, storage: str, cut: str) -> None:
    """Raise ValueError for an unknown storage or cut, and for a stream that is to be stored on disk or decoded at a smaller scale."""
    if storage not in STORAGES:
        raise ValueError(f"bank is one of {', '.join(STORAGES)}, got {storage!r}")
    if cut not in CUTS:
        raise ValueError(f"trainer.cut is one of {', '.join(CUTS)}, got {cut!r}")
    if cut == "scaled" and not images.indexed:
        raise ValueError(f"{images.name} is a stream, which is decoded at full size: pass trainer.cut=worker, or dataset.streaming=false")
    if storage == "disk" and not images.indexed:
        raise ValueError(f"{images.name} is a stream, whose images are read once: pass bank=off, or dataset.streaming=false for a bank")
