"""Small copies of a data set of three classes in every form that a source reads."""

import csv as csv_module
import io
import json
import tarfile
from pathlib import Path

import datasets as hf_datasets
import numpy as np
from PIL import Image

NAMES = ["cat", "dog", "okapi"]
SPLITS = {"train": 3, "validation": 2, "test": 2}  # images a class


def picture(seed: int, side: int = 32) -> bytes:
    """A PNG that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def samples():
    """(split, label, number, PNG bytes) of all images of the small copy."""
    for split, (name, count) in enumerate(SPLITS.items()):
        for label in range(len(NAMES)):
            for number in range(count):
                yield name, label, number, picture(1000 * split + 100 * label + number)


def write(path: Path, content: bytes | str | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def make_folder(root: Path) -> list[str]:
    for split, label, number, data in samples():
        write(root / split / NAMES[label] / f"{number}.png", data)
    return ["dataset=folder", f"dataset.root={root}"]


def make_csv(root: Path, *, rows=None, header=("path", "label", "split")) -> list[str]:
    made = []
    for split, label, number, data in samples():
        name = f"images/{split}-{label}-{number}.png"
        write(root / name, data)
        made.append((name, NAMES[label], split))
    with (root / "list.csv").open("w", newline="") as stream:
        csv_module.writer(stream).writerows([header, *(made if rows is None else rows)])
    return ["dataset=csv", f"dataset.file={root}/list.csv"]


def make_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_shards(root: Path, *, numbers=False) -> list[str]:
    """Two shards a split."""
    for split in SPLITS:
        chosen = [(label, number, data) for s, label, number, data in samples() if s == split]
        for shard in range(2):
            members = []
            for label, number, data in chosen[shard::2]:
                members += [(f"{label}-{number}.png", data), (f"{label}-{number}.cls", (str(label) if numbers else NAMES[label]).encode())]
            make_tar(root / f"{split}-{shard:03d}.tar", members)
    urls = [f'dataset.{split}="{root}/{split}-{{000..001}}.tar"' for split in SPLITS]
    return ["dataset=webdataset", *urls]


def make_parquet(root: Path, *, label="class", column="image") -> list[str]:
    kinds = {"class": hf_datasets.ClassLabel(names=NAMES), "number": hf_datasets.Value("int64"), "text": hf_datasets.Value("string")}
    features = hf_datasets.Features({column: hf_datasets.Image(), "label": kinds[label]})
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        chosen = [(label_, data) for s, label_, _, data in samples() if s == split]
        table = {
            column: [{"bytes": data, "path": None} for _, data in chosen],
            "label": [NAMES[row] if label == "text" else row for row, _ in chosen],
        }
        hf_datasets.Dataset.from_dict(table, features=features).to_parquet(root / f"{split}-00000-of-00001.parquet")
    return ["dataset=hf", f"dataset.path={root}", "dataset.validation=validation"]


def make_coop(root: Path, *, order=(0, 1, 2), name=lambda label: NAMES[label]) -> list[str]:
    """The layout of CoOp, in the terms of `dataset=dtd` but with our class names."""
    table = {"train": [], "val": [], "test": []}
    for split, label, number, data in samples():
        path = f"{NAMES[label]}/{split}-{number}.png"
        write(root / "dtd" / "images" / path, data)
        table[{"validation": "val"}.get(split, split)].append([path, order.index(label), name(label)])
    write(root / "dtd" / "split_zhou_DescribableTextures.json", table)
    return ["dataset=dtd", f"paths.data={root}", "dataset.classes=null"]


MAKERS = {"folder": make_folder, "csv": make_csv, "webdataset": make_shards, "hf": make_parquet, "coop": make_coop}
