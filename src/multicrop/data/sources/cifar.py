"""CIFAR-10 and CIFAR-100 from the binary version of their authors: fixed-length records, no pickle."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from multicrop.config.ranges import OneOf
from multicrop.data.base import Dataset, LabelledImages, assemble
from multicrop.data.classes import classes_of
from multicrop.files import content_hash

PIXELS = 3 * 32 * 32  # red, green and blue planes
FILES = {  # layout -> (label bytes of a record, of which the last is the class; training files; test files; class names in label order)
    "cifar10": (1, [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], "batches.meta.txt"),
    "cifar100": (2, ["train.bin"], ["test.bin"], "fine_label_names.txt"),
}


@dataclass(frozen=True)
class _Records:
    """Reads record i of one of the files; every call opens the file anew."""

    places: list[tuple[Path, int]]

    def __call__(self, index: int) -> Image.Image:
        path, offset = self.places[index]
        pixels = np.fromfile(path, np.uint8, PIXELS, offset=offset).reshape(3, 32, 32)
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def cifar(*, root: str, layout: Annotated[str, OneOf(tuple(FILES))], classes: str) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 in the binary version; class names come from its own file and are matched by name.

    Args:
        root: The folder of the binary files.
        layout: `cifar10` or `cifar100`.
        classes: The packaged class list of the same name.

    Returns:
        The data set; an id is the file and the number of the record.

    Raises:
        ValueError: If files do not exist (also if only the pickled version does) or do not hold whole records, or a label is out of range.
    """
    if layout not in FILES:
        raise ValueError(f"dataset.layout is one of {', '.join(FILES)}, got {layout!r}")
    base = Path(root).expanduser()
    label_bytes, train, test, names_file = FILES[layout]
    if missing := [name for name in (*train, *test, names_file) if not (base / name).is_file()]:
        pickled = any((base / name).is_file() for name in ("data_batch_1", "test_batch", "train"))
        raise ValueError(
            f"{base} lacks {', '.join(missing)}. Download the binary version of {layout} from its authors "
            f"(https://www.cs.toronto.edu/~kriz/cifar.html, about 160 MB), unpack it, and pass dataset.root=FOLDER"
            + ("; the files there are the Python version, which is pickled and is not read" if pickled else "")
        )
    found = [line.strip() for line in (base / names_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    names = classes_of(found, what=str(base / names_file), classes=classes, class_names=None)
    splits = {name: _split(f"{layout}/{name}", base, files, label_bytes) for name, files in (("train", train), ("test", test))}
    return assemble(layout, names, splits)


def _split(name: str, base: Path, files: list[str], label_bytes: int) -> LabelledImages:
    """The records of some files; the fingerprint is a hash of their bytes."""
    ids, labels, places, checksums = [], [], [], []
    record = label_bytes + PIXELS
    for file in files:
        data = np.fromfile(base / file, np.uint8)
        if not len(data) or len(data) % record:
            raise ValueError(f"{base / file} has {len(data)} bytes, which is not a whole number of records of {record}; download it again")
        rows = data.reshape(-1, record)
        ids += [f"{file}/{i:05d}" for i in range(len(rows))]
        labels += rows[:, label_bytes - 1].tolist()
        places += [(base / file, i * record + label_bytes) for i in range(len(rows))]
        checksums.append(hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest())
    return LabelledImages(name, ids, labels, _Records(places), content_hash(*checksums))
