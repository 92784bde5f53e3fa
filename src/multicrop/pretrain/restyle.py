"""The restyled bank: each training drawing in several random styles, rasterised into a cache that training reads.

`python -m multicrop.pretrain.restyle --output FOLDER` builds it. That needs `npm` on the PATH and the `pack` extra (resvg-py); reading it
needs neither. It takes 0.7 GB and a few minutes, and is not shipped.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from rich.progress import track
from torch import Tensor

from multicrop.data.embedded.artwork import TRAINING_VENDORS, load_concepts, load_drawings
from multicrop.data.embedded.pack import SIDE, VENDORS, iconify_drawings, npm_package, render
from multicrop.files import atomic, content_hash, write_text
from multicrop.pretrain import recolour, svg_style
from multicrop.pretrain.svg_style import restyle

SPRITES, INDEX = "sprites.npy", "index.json"


class RestyledBank:
    """Restyled sprites on disk; rows are read when they are asked for, so a copy in another process costs nothing."""

    def __init__(self, folder: Path, *, vendors: tuple[str, ...] = TRAINING_VENDORS) -> None:
        """Open a bank.

        Args:
            folder: What `python -m multicrop.pretrain.restyle --output FOLDER` made.
            vendors: Vendors whose sprites are used.

        Raises:
            ValueError: If there is no bank, or it lacks one of the vendors.
        """
        if not (folder / INDEX).exists():
            raise ValueError(f"{folder} holds no restyled drawings; make them: python -m multicrop.pretrain.restyle --output {folder}")
        self.index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if missing := set(vendors) - {vendor for vendor, _ in self.index["drawings"]}:
            raise ValueError(f"{folder} has no restyled drawings by {', '.join(sorted(missing))}; make it again with --output {folder}")
        variants = self.index["variants"]
        chosen = [row for row, (vendor, _) in enumerate(self.index["drawings"]) if vendor in vendors]
        self.path = folder / SPRITES
        self.rows = torch.tensor([row * variants + variant for row in chosen for variant in range(variants)])
        self.concepts = [self.index["drawings"][row][1] for row in chosen for _ in range(variants)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Int[Tensor, " n"]) -> UInt8[Tensor, "n 4 side side"]:
        sprites = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(sprites[self.rows[positions].numpy()])


def restyled(svg: str, key: str) -> UInt8[np.ndarray, "4 side side"]:
    """One restyling of a drawing, rasterised; the key decides it."""
    image = render(restyle(svg, random.Random(key))).convert("RGBA")
    return np.asarray(image.resize((SIDE, SIDE))).transpose(2, 0, 1)


def _all_variants(drawing: tuple[str, str, str], variants: int, seed: int) -> UInt8[np.ndarray, "variants 4 side side"]:
    vendor, concept, svg = drawing
    return np.stack([restyled(svg, f"{seed}/{vendor}/{concept}/{variant}") for variant in range(variants)])


def training_svgs(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(vendor, concept, svg) of the drawings that training may read: seen concepts of the training vendors, as they are in the pack."""
    concepts = [concept for concept in load_concepts() if not concept["unseen"]]
    packed = {(drawing.vendor, drawing.concept) for drawing in load_drawings(TRAINING_VENDORS, unseen=False)}
    for vendor in TRAINING_VENDORS:
        for concept, svg in iconify_drawings(npm_package(VENDORS[vendor][0], folder), concepts):
            if (vendor, concept) in packed:
                yield vendor, concept, svg


def build(output: Path, *, variants: int = 14, seed: int = 0, workers: int = 1) -> int:
    """Write the bank: its sprites, then its index with the hash of what made it.

    Args:
        output: Folder of the bank.
        variants: Restylings per drawing.
        seed: Seed of all restylings.
        workers: Number of processes.

    Returns:
        The number of sprites.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        drawings = list(training_svgs(Path(folder)))
    code = [Path(module.__file__).read_text(encoding="utf-8") for module in (recolour, svg_style)]
    content = content_hash(*code, variants, seed, *(text for drawing in drawings for text in drawing))
    with atomic(output / SPRITES) as partial, ProcessPoolExecutor(workers) as pool:
        shape = (len(drawings) * variants, 4, SIDE, SIDE)
        sprites = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        made = pool.map(_all_variants, drawings, [variants] * len(drawings), [seed] * len(drawings), chunksize=16)
        for row, pixels in enumerate(track(made, "restyling", total=len(drawings))):
            sprites[row * variants : (row + 1) * variants] = pixels
        sprites.flush()
    index = {"content": content, "variants": variants, "seed": seed, "drawings": [drawing[:2] for drawing in drawings]}
    write_text(output / INDEX, json.dumps(index))
    return len(drawings) * variants


def main() -> None:
    """Command line: `python -m multicrop.pretrain.restyle --output FOLDER`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the bank")
    parser.add_argument("--variants", type=int, default=14, help="restylings per drawing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    knobs = vars(parser.parse_args())
    print(f"{build(knobs.pop('output'), **knobs)} restyled drawings")


if __name__ == "__main__":
    main()
