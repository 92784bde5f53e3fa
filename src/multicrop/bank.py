"""The bank of view features: encoded once, keyed by content, written in checked shards, read by every experiment."""

import hashlib
import json
import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import BasePredictionWriter, ProgressBar, RichProgressBar
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multicrop.crops import CropSampler, boxes_of
from multicrop.datasets.base import LabelledImages, content_hash
from multicrop.encoder import Encoder
from multicrop.model import MultiCropCLIP, ViewDataset

SHARD_IMAGES = 512
CODE_FILES = (
    "crops/__init__.py",
    "crops/base.py",
    "crops/drawn.py",
    "crops/fixed.py",
    "views.py",
    "images.py",
    "encoder.py",
    "model.py",
)


class ImageBank(Dataset):
    """View features of one split: item i is (views, label, i), the views unit-norm float32 (views, dim).

    Shards stay memory-mapped. `n_views` may be smaller than what is stored: crops are nested.
    """

    def __init__(self, images: LabelledImages, shards: list[dict[str, Tensor]], manifest: dict, n_views: int, reused: bool) -> None:
        self.images, self.shards, self.manifest, self.n_views, self.reused = images, shards, manifest, n_views, reused
        self.readable = torch.cat([shard["readable"] for shard in shards]).bool() if shards else torch.zeros(0, dtype=torch.bool)
        self.positions = self.readable.nonzero().squeeze(1).tolist()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        index = self.positions[position]
        views = self._row("views", index).float()
        return torch.nn.functional.normalize(views, dim=-1), self.images.labels[index], index

    def boxes(self, index: int) -> Tensor:
        """The boxes of image `index` (views, 4), xyxy pixels; x1 > x2 where a crop is mirrored."""
        return self._row("boxes", index)

    def _row(self, name: str, index: int) -> Tensor:
        return self.shards[index // SHARD_IMAGES][name][index % SHARD_IMAGES, : self.n_views]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All views (images, views, dim) and labels (images)."""
        views, labels, _ = zip(*(self[i] for i in range(len(self))), strict=True)
        return torch.stack(views), torch.tensor(labels)


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


def recipe_of(images: LabelledImages, sampler: CropSampler, encoder: Encoder, seed: int) -> Recipe:
    """The recipe of these images cut by this sampler and seen by this encoder."""
    function = getattr(sampler, "func", sampler)
    knobs = {k: v for k, v in sorted(getattr(sampler, "keywords", {}).items()) if k != "n_crops"}
    code = content_hash(*((Path(__file__).parent / name).read_text(encoding="utf-8") for name in CODE_FILES))
    policy = f"{function.__module__}.{function.__qualname__} {knobs}"
    data = content_hash(images.fingerprint, *images.ids)
    return Recipe(encoder.fingerprint(), str(encoder.spec), encoder.precision, data, policy, seed, code)


def image_bank(
    images: LabelledImages,
    sampler: CropSampler,
    encoder: Encoder,
    *,
    seed: int,
    cache: Path,
    num_workers: int = 0,
    accelerator: str = "cpu",
    progress: bool = True,
) -> ImageBank:
    """The bank of these images, read where one is complete and encoded where not.

    A killed run continues at its first missing shard; a shard that fails its checksum is encoded again, with a warning. Of two
    processes that want the same bank, one encodes and the other waits. Raises PermissionError with advice when `cache` cannot be written.
    """
    recipe = recipe_of(images, sampler, encoder, seed)
    knobs = getattr(sampler, "keywords", {})
    n_views = _n_views(sampler)
    top = cache / images.name.replace("/", "-") / recipe.key
    if "n_crops" in knobs:  # nested: a bank of more crops answers too
        for manifest in sorted(top.glob("v*/manifest.json"), key=lambda path: int(path.parent.name[1:])):
            if int(manifest.parent.name[1:]) >= n_views and (bank := _read(images, manifest.parent, n_views)):
                return bank
    folder = top / f"v{n_views}"
    make_folder(folder, "paths.cache")
    with FileLock(folder.with_suffix(".lock")):
        bank = _read(images, folder, n_views)
        if bank is None:
            _encode(images, sampler, encoder, recipe, folder, num_workers, accelerator, progress)
            bank = _read(images, folder, n_views, reused=False)
        return bank


def make_folder(folder: Path, knob: str) -> None:
    """Create a folder that will be written to; raises PermissionError that names the knob when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {folder} ({error.strerror}); choose another place with {knob}=FOLDER") from error


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _n_views(sampler: CropSampler) -> int:
    """The views of an image under this policy; their number does not depend on the image."""
    return len(boxes_of(sampler, 8, 8, "", 0))


def _n_shards(images: LabelledImages) -> int:
    return -(-len(images) // SHARD_IMAGES)


def _read(images: LabelledImages, folder: Path, n_views: int, reused: bool = True) -> ImageBank | None:
    """The bank in this folder, or None when it is incomplete or a shard fails its checksum (which is then removed)."""
    if not (folder / "manifest.json").is_file():
        return None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    intact = True
    for shard, checksum in enumerate(manifest["checksums"]):
        path = _shard_path(folder, shard)
        if not path.is_file() or _checksum(path) != checksum:
            warnings.warn(f"{path} is missing or fails its checksum; it is encoded again", stacklevel=2)
            path.unlink(missing_ok=True)
            intact = False
    if not intact:
        (folder / "manifest.json").unlink()
        return None
    shards = [load_file(_shard_path(folder, shard)) for shard in range(len(manifest["checksums"]))]
    return ImageBank(images, shards, manifest, n_views, reused)


class _ShardWriter(BasePredictionWriter):
    """Collects view features and writes each shard once it is whole: temporary name, flush, rename."""

    def __init__(self, folder: Path, images: LabelledImages) -> None:
        super().__init__("batch")
        self.folder, self.total = folder, len(images)
        self.rows: list[dict[str, Tensor]] = []

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx) -> None:  # noqa: ANN001
        """Keeps the features of one image; a whole shard goes to disk."""
        self.rows.append(
            {
                "views": prediction["views"].half(),
                "boxes": prediction["boxes"].cpu(),
                "readable": prediction["readable"].cpu().to(torch.uint8),
            }
        )
        index = int(prediction["index"])
        if index % SHARD_IMAGES == SHARD_IMAGES - 1 or index == self.total - 1:
            stacked = {name: torch.stack([row[name] for row in self.rows]).contiguous() for name in self.rows[0]}
            _write_shard(stacked, _shard_path(self.folder, index // SHARD_IMAGES))
            self.rows = []


def _write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(f".partial-{os.getpid()}")
    try:
        save_file(tensors, partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error}); free some disk space or choose another place with paths.cache") from error
    finally:
        partial.unlink(missing_ok=True)


class BankProgress(RichProgressBar):
    """The progress bar of encoding, counted in images, and of scoring, counted in batches."""

    @property
    def predict_description(self) -> str:
        """What the bar says while views are encoded."""
        return "Encoding"

    @property
    def test_description(self) -> str:
        """What the bar says while views are scored."""
        return "Scoring"


def _encode(
    images: LabelledImages,
    sampler: CropSampler,
    encoder: Encoder,
    recipe: Recipe,
    folder: Path,
    num_workers: int,
    accelerator: str,
    progress: bool,
) -> None:
    """Encode the missing shards and write the manifest last."""
    for leftover in folder.glob("*.partial-*"):
        leftover.unlink()
    present = {shard for shard in range(_n_shards(images)) if _shard_path(folder, shard).is_file()}
    missing = [i for i in range(len(images)) if i // SHARD_IMAGES not in present]
    loader = DataLoader(
        ViewDataset(images, missing, sampler, encoder.spec, recipe.seed),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
    )
    callbacks: list[BasePredictionWriter | ProgressBar] = [_ShardWriter(folder, images)]
    if progress:
        callbacks.append(BankProgress())
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    started = time.perf_counter()
    trainer.predict(MultiCropCLIP(encoder, sampler, seed=recipe.seed), loader, return_predictions=False)
    seconds = time.perf_counter() - started
    n_views = _n_views(sampler)
    manifest = {
        "recipe": asdict(recipe),
        "images": len(images),
        "views": n_views,
        "checksums": [_checksum(_shard_path(folder, shard)) for shard in range(_n_shards(images))],
        "seconds": seconds,
        "crops_per_second": len(missing) * n_views / seconds if missing else 0.0,
        "precision_on_disk": "fp16",
    }
    partial = folder / f"manifest.partial-{os.getpid()}"
    partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    partial.replace(folder / "manifest.json")
