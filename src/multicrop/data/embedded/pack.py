"""Rebuild the embedded artwork pack (`make pack`) from the open icon sets of the npm registry.

Needs `npm` on the PATH and the `pack` extra (resvg-py). Using the pack needs neither. Every row holds the licence of its vendor;
share-alike and closed sets are excluded.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.progress import track

from multicrop.files import atomic, write_text

EMBEDDED = Path(__file__).parent
SIDE = 96  # pixels of the stored square drawing
UNSEEN_CONCEPTS = 28
KEYWORDS = "emojibase-data@17.0.0"
VENDORS = {  # vendor -> npm package, licence, author, role
    "noto": ("@iconify-json/noto@1.2.9", "Apache-2.0", "Google", "train"),
    "twemoji": ("@iconify-json/twemoji@1.2.5", "CC-BY-4.0", "Twitter, jdecked and contributors", "train"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Microsoft", "train"),
    "emojione": ("@iconify-json/emojione@1.2.3", "CC-BY-4.0", "EmojiOne", "train"),
    "fxemoji": ("@iconify-json/fxemoji@1.2.2", "Apache-2.0", "Mozilla", "train"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d@1.1.0", "MIT", "Microsoft, packaged by LobeHub", "held_out"),
    "noto-v1": ("@iconify-json/noto-v1@1.2.5", "Apache-2.0", "Google", "held_out"),
    "streamline": ("@iconify-json/streamline-emojis@1.2.4", "CC-BY-4.0", "Streamline", "held_out"),
}
OTHER_THINGS = {"streamline": {"turkey"}}  # names of drawings that show something else: a flag
UNNUMBERED = re.compile(r"-1$")  # streamline: pizza-1 and pizza-2 for the concept pizza
PLAIN = re.compile(r"-face(-1)?$")  # streamline: bear-face for the concept bear


def npm_package(spec: str, folder: Path) -> Path:
    """Download and unpack one npm package; returns its root folder."""
    subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = max(folder.glob("*.tgz"), key=lambda path: path.stat().st_mtime_ns)
    target = folder / archive.stem
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    archive.unlink()
    return target / "package"


def group_of(entry: dict) -> str | None:
    """The pack's group of an emojibase entry: faces, animals, food, or None when the pack leaves it out."""
    group, subgroup = entry.get("group"), entry.get("subgroup", -1)
    if group == 0 and subgroup <= 11 and "pile of poo" not in entry["label"]:
        return "faces"
    if group == 3 and 34 <= subgroup <= 39:
        return "animals"
    return "food" if group == 4 else None


def read_concepts(package: Path, parts: dict[str, list[str]]) -> list[dict]:
    """The concepts of the pack with name, keywords, group and parts, in Unicode order, 28 of them marked unseen.

    A face is kept only when the parts table describes it: hearts, costumes and a few symbols share the Unicode group.
    """
    entries = json.loads((package / "en/data.json").read_text(encoding="utf-8"))
    entries = [e for e in entries if group_of(e) and (group_of(e) != "faces" or e["label"] in parts)]
    concepts = [
        {
            "concept": entry["hexcode"],
            "name": entry["label"],
            "group": group_of(entry),
            "keywords": [tag for tag in entry.get("tags", []) if tag != entry["label"]],
            "parts": parts.get(entry["label"], []),
        }
        for entry in sorted(entries, key=lambda entry: entry["order"])
    ]
    shuffled = sorted(concepts, key=lambda c: hashlib.sha256(f"unseen:{c['name']}".encode()).hexdigest())
    unseen = {c["concept"] for c in shuffled[:UNSEEN_CONCEPTS]}
    return [{**c, "unseen": c["concept"] in unseen} for c in concepts]


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _bare(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def iconify_drawings(package: Path, concepts: list[dict]) -> Iterator[tuple[str, str]]:
    """(concept, svg) of an iconify set, matched by code point where the set has it, else by normalised name.

    In a set without code points, heads answer to the animal's plain name, and the first of several drawings to the name without its number.
    """
    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    by_code = {_bare(code): name for code, name in json.loads((package / "chars.json").read_text()).items()}
    by_name = {_key(name): name for name in icons["icons"]}
    by_name |= {_key(alias): target["parent"] for alias, target in icons.get("aliases", {}).items() if len(target) == 1}
    if not by_code:
        by_name = {_key(ending.sub("", name)): name for ending in (PLAIN, UNNUMBERED) for name in icons["icons"]} | by_name
    for concept in concepts:
        name = by_code.get(_bare(concept["concept"])) or by_name.get(_key(concept["name"]))
        if name not in icons["icons"]:
            continue
        icon = icons["icons"][name]
        box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
        view = " ".join(str(value) for value in box)
        body = icon["body"]
        yield concept["concept"], f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{body}</svg>'


def render(svg: str) -> Image.Image:
    """Rasterise one SVG drawing at twice the stored side, with alpha."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))))


def raster_drawings(package: Path, concepts: list[dict]) -> Iterator[tuple[str, Image.Image]]:
    """(concept, image) of a set of webp files named by code points."""
    files = {_bare(path.stem): path for path in sorted((package / "assets").glob("*.webp"))}
    for concept in concepts:
        if path := files.get(_bare(concept["concept"])):
            yield concept["concept"], Image.open(path)


def encode(drawing: Image.Image) -> bytes:
    """A square 96 px lossy WebP with alpha, about 2 kB."""
    drawing = drawing.convert("RGBA")
    side = max(drawing.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    buffer = io.BytesIO()
    canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80, method=6)
    return buffer.getvalue()


def vendor_rows(vendor: str, folder: Path, concepts: list[dict]) -> Iterator[dict]:
    """The rows of one vendor: image, identity, licence and role."""
    spec, licence, author, role = VENDORS[vendor]
    package = npm_package(spec, folder)
    known = {concept["concept"]: concept for concept in concepts}
    if vendor == "fluent-3d":
        drawings = list(raster_drawings(package, concepts))
    else:
        wanted = [concept for concept in concepts if concept["name"] not in OTHER_THINGS.get(vendor, ())]
        drawings = [(c, render(s)) for c, s in track(list(iconify_drawings(package, wanted)), f"drawing {vendor}")]
    for concept, drawing in drawings:
        yield {
            "image": {"bytes": encode(drawing), "path": f"{vendor}/{concept}.webp"},
            "concept": concept,
            "name": known[concept]["name"],
            "group": known[concept]["group"],
            "unseen": known[concept]["unseen"],
            "vendor": vendor,
            "role": role,
            "licence": licence,
            "author": author,
        }


def write_pack(target: Path, vendors: Collection[str] = tuple(VENDORS)) -> dict[str, int]:
    """Draw these vendors anew and keep the rows of the others byte for byte; returns the number of drawings per vendor."""
    parts = json.loads((target / "parts.json").read_text(encoding="utf-8"))
    kept = pq.read_table(target / "emoji.parquet").to_pylist() if set(vendors) != set(VENDORS) else []
    with tempfile.TemporaryDirectory() as folder:
        concepts = read_concepts(npm_package(KEYWORDS, Path(folder)), parts)
        drawn = {vendor: list(vendor_rows(vendor, Path(folder), concepts)) for vendor in VENDORS if vendor in vendors}
    drawn |= {vendor: [row for row in kept if row["vendor"] == vendor] for vendor in VENDORS if vendor not in vendors}
    write_rows(target / "emoji.parquet", [row for vendor in VENDORS for row in drawn[vendor]])
    lines = ",\n".join(json.dumps(concept, ensure_ascii=False) for concept in concepts)
    write_text(target / "concepts.json", f"[\n{lines}\n]\n")
    return {vendor: len(drawn[vendor]) for vendor in VENDORS}


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write the rows with the feature description by which `datasets` opens `image` as pictures."""
    features = {name: {"dtype": "string", "_type": "Value"} for name in rows[0] if name not in ("image", "unseen")}
    features |= {"image": {"_type": "Image"}, "unseen": {"dtype": "bool", "_type": "Value"}}
    features = {name: features[name] for name in rows[0]}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with atomic(path) as partial:
        pq.write_table(table, partial, row_group_size=256)


def main() -> None:
    """Command line: `python -m multicrop.data.embedded.pack [--output FOLDER] [--vendors VENDOR ...]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder that holds parts.json")
    parser.add_argument("--vendors", nargs="+", choices=VENDORS, default=list(VENDORS), help="draw only these anew")
    arguments = parser.parse_args()
    print(write_pack(arguments.output, arguments.vendors))


if __name__ == "__main__":
    main()
