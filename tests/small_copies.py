"""Small copies of a data set of three classes in every form that a source reads."""

import csv as csv_module
import hashlib
import io
import json
import tarfile
from pathlib import Path

import datasets as hf_datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from multicrop.text.descriptions import load_description_set

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


def make_aircraft(root: Path) -> list[str]:
    """The layout of FGVC-Aircraft: one image of each of the 100 variants per split, some with a slash in the name."""
    folder, names = root / "fgvc-aircraft-2013b" / "data", list(load_description_set("fgvc_aircraft").classes)
    write(folder / "variants.txt", "\n".join(names).encode())
    for split in ("train", "val", "test"):
        for label in range(len(names)):
            write(folder / "images" / f"{split}{label}.jpg", picture(label, side=8))
        write(folder / f"images_variant_{split}.txt", "\n".join(f"{split}{i} {name}" for i, name in enumerate(names)).encode())
    return ["dataset=fgvc_aircraft", f"paths.data={root}"]


def make_cars(root: Path) -> list[str]:
    """The layout of CoOp for Stanford Cars: one image of each of the 196 models per split, one with a slash in the name."""
    names, table = list(load_description_set("stanford_cars").classes), {}
    for split in ("train", "val", "test"):
        table[split] = [[f"cars_{split}/{label}.jpg", label, name] for label, name in enumerate(names)]
        for path, label, _ in table[split]:
            write(root / "stanford_cars" / path, picture(label, side=8))
    write(root / "stanford_cars" / "split_zhou_StanfordCars.json", table)
    return ["dataset=stanford_cars", f"paths.data={root}"]


def make_tables(root: Path, *, held=True, hashes=True, group=2) -> list[str]:
    """Tables of `dataset=parquet`, two per split: images as bytes, or as files."""
    for split in SPLITS:
        rows = []
        for _, label, number, data in (sample for sample in samples() if sample[0] == split):
            place = f"{split}-{label}-{number}.png"
            cell = {"bytes": data} if held else {"location": str(write(root / "images" / place, data).relative_to(root))}
            own = {"hash": hashlib.sha256(data).hexdigest()} if hashes else {}
            rows.append({"id": place, "label": NAMES[label], **cell, **own})
        (root / "tables").mkdir(parents=True, exist_ok=True)
        for number in range(2):
            pq.write_table(pa.Table.from_pylist(rows[number::2]), root / "tables" / f"{split}-{number}.parquet", row_group_size=group)
    return ["dataset=parquet", f"dataset.root={root}", *(f"dataset.{split}={root}/tables/{split}-*.parquet" for split in SPLITS)]


MAKERS = {"folder": make_folder, "csv": make_csv, "webdataset": make_shards, "hf": make_parquet, "coop": make_coop, "parquet": make_tables}
