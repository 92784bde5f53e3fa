"""model=imported: an encoder that runs elsewhere; `multicrop features import` keeps its features by image, box and text."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import torch
import xxhash
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multicrop.crops.pixels import PixelSpec
from multicrop.encoder.calibration import Calibration
from multicrop.encoder.dual import Encoder
from multicrop.files import atomic, content_hash, read_facts, write_facts
from multicrop.text import TextBank, text_bank

TENSORS, FACTS = "features.safetensors", "features.json"
WHOLE = PixelSpec(224, None, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # a view shows its whole box; its side is that of pictures
EXPORT = (
    "`multicrop features export` writes the boxes and prompts of a run: give it the same overrides, encode what it writes, and import that"
)


class FeatureTable:
    """The features in a folder that `multicrop features import` wrote: those of an image by its boxes, and those of texts.

    It pickles as its folder, so that workers map the file instead of copying it.
    """

    def __init__(self, folder: Path) -> None:
        facts = read_facts(folder / FACTS)
        if facts is None:
            raise ValueError(f"{folder} holds no imported features ({FACTS}); run: multicrop features import FILE --to {folder}")
        try:
            tensors = load_file(folder / TENSORS)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / TENSORS} cannot be read ({error}); import the features again") from error
        if (content := content_of(tensors, facts["logit_scale"])) != facts["content"]:
            raise ValueError(f"{folder / TENSORS} is not what was imported; import the features again")
        self.folder, self.tensors, self.content = folder, tensors, content
        self.name, self.logit_scale = str(facts["name"]), float(facts["logit_scale"])
        self.image_place = {name: place for place, name in enumerate(_listed(tensors["ids"]))}
        self.text_place = {text: place for place, text in enumerate(_listed(tensors["texts"]))}

    def __reduce__(self) -> tuple[type["FeatureTable"], tuple[Path]]:
        return FeatureTable, (self.folder,)

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return self.tensors["vectors"].shape[1]

    def views(self, image_id: str, boxes: Float[Tensor, "views 4"]) -> Float[Tensor, "views dim"]:
        """The features of an image's boxes; raises ValueError for a box that was not imported."""
        place = self.image_place.get(image_id)
        first, last = (0, 0) if place is None else self.tensors["starts"][place : place + 2].tolist()
        rows = {tuple(box): first + row for row, box in enumerate(self.tensors["boxes"][first:last].tolist())}
        wanted = [tuple(box) for box in boxes.tolist()]
        if absent := [box for box in wanted if box not in rows]:
            raise ValueError(
                f"{len(absent)} of {len(wanted)} boxes of the image {image_id!r} have no imported feature in {self.folder}, such as "
                f"{absent[0]}. {EXPORT}"
            )
        return self.tensors["vectors"][[rows[box] for box in wanted]]

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """The features of texts; raises ValueError for one that was not imported."""
        if absent := [text for text in texts if text not in self.text_place]:
            raise ValueError(
                f"{len(absent)} of {len(texts)} texts have no imported feature in {self.folder}, such as {absent[0]!r}. {EXPORT}"
            )
        return self.tensors["text_vectors"][[self.text_place[text] for text in texts]]


def write_table(folder: Path, images: dict[str, tuple[Tensor, Tensor]], texts: dict[str, Tensor], *, name: str, logit_scale: float) -> None:
    """Write a FeatureTable.

    Args:
        folder: The folder, which is made.
        images: Boxes (rows, 4) and unit-norm features (rows, dim) of each image.
        texts: The unit-norm feature (dim) of each text.
        name: The name of the model in records.
        logit_scale: Multiplier of cosine similarities.
    """
    counts = torch.tensor([0, *(len(boxes) for boxes, _ in images.values())])
    tensors = {
        "ids": _bytes_of(list(images)),
        "starts": counts.cumsum(0),
        "boxes": torch.cat([boxes for boxes, _ in images.values()]).float(),
        "vectors": torch.cat([vectors for _, vectors in images.values()]).float(),
        "texts": _bytes_of(list(texts)),
        "text_vectors": torch.stack(list(texts.values())).float(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)  # a folder with it is complete
    with atomic(folder / TENSORS) as partial:
        save_file(tensors, partial)
    write_facts(folder / FACTS, {"name": name, "logit_scale": logit_scale, "content": content_of(tensors, logit_scale)})


def content_of(tensors: dict[str, Tensor], logit_scale: float) -> str:
    """A hash of all features with their ids, boxes and texts, and of the scale."""
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return content_hash(digest.hexdigest(), float(logit_scale))


def _bytes_of(texts: list[str]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def _listed(values: Tensor) -> list[str]:
    return json.loads(values.numpy().tobytes())


class Elsewhere(nn.Module):
    """Stands for the towers, which are not here."""

    config = SimpleNamespace(model_type="imported")


class ImportedEncoder(Encoder):
    """An encoder whose features were computed elsewhere, for the boxes and texts that were imported.

    Whatever reads features runs on it. What needs the towers (CLIP-LoRA, prompt tuning, crop=attention, crop=feature, new images or texts)
    raises ValueError.

    Args:
        table: The imported features.

    Attributes:
        table: The imported features.
    """

    def __init__(self, table: FeatureTable) -> None:
        nn.Module.__init__(self)
        self.table, self.name, self.precision, self.spec, self.dim = table, table.name, "imported", WHOLE, table.dim
        self.logit_scale, self.logit_bias, self.model = table.logit_scale, 0.0, Elsewhere()
        self.calibration, self.compiled, self.views_in_cache = None, False, sys.maxsize

    def fingerprint(self) -> str:
        """The hash of the imported content."""
        return self.table.content

    def weights_hash(self) -> str:
        """The hash of the imported content, as there are no weights."""
        return self.table.content

    def tokens_hash(self) -> str:
        """The hash of the imported content, as texts are not cut into tokens here."""
        return self.table.content

    def encode_texts(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Look up texts; raises ValueError for one that was not imported."""
        return self.table.texts(texts)

    def encode_prompts(self, prompts: list[list[str]]) -> TextBank:
        """Look up one list of prompts per class; they are not cut."""
        return text_bank(prompts, self.encode_texts)

    def encode_images(self, pixels: Tensor) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"the features of {self.name} were imported, and new pixels cannot be encoded; choose a model that is here")

    def check_feature_crops(self) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"crop=feature reads tokens of the image tower, and the features of {self.name} were imported; choose crop=random")

    def token_parts(self, texts: list[str], size: int) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"the features of {self.name} were imported, and its text tower is not here; choose a model that is here")


def imported_encoder(path: str, *, calibration: Calibration | None = None) -> Encoder:
    """Open features that were computed elsewhere.

    Args:
        path: The folder that ``multicrop features import`` wrote.
        calibration: Ignored; every model may be given it.

    Returns:
        An encoder that looks up features by image id and box, and by text.

    Raises:
        ValueError: If the folder holds no imported features, or they were changed.
    """
    return ImportedEncoder(FeatureTable(Path(path).expanduser()))
