"""The inputs of the runs: images in tables, class names, descriptions, a few-shot split, a small random CLIP and an own crop policy."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, CLIPModel

from multicrop.config import PACKAGE

TINY = PACKAGE / "encoder" / "tiny_clip"
CLASSES, SPLITS = ("okapi", "dugong", "quokka"), {"train": 3, "val": 2, "test": 6}  # images per class
SUPPORT = {"train": 2, "val": 1}  # images per class in the file of the few-shot split
SIDE, PATCH = 32, 16
TEXTS = {"texts": ["striped legs", "a broad snout", "round ears"], "more": ["a long tongue", "grey skin", "short fur"]}
POLICY = """import torch
from storm_helper import SHARE


def left(height, width, image_id, seed):
    return torch.tensor([[0.0, 0.0, max(1.0, width * SHARE // 1), height]])
"""


def make_inputs(folder: Path) -> Path:
    """Write all inputs into a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        rows = [(f"{split}-{label}-{number}.bmp", label) for number in range(count) for label in range(len(CLASSES))]
        for name, label in rows:
            coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) // 2 + np.uint8(40 * label)
            Image.fromarray(coarse).resize((44, 36), Image.Resampling.NEAREST).save(folder / name)
        (folder / f"{split}.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    (folder / "names.json").write_text(json.dumps(CLASSES))
    for name, phrases in TEXTS.items():
        texts = {label: [phrase] for label, phrase in zip(CLASSES, phrases, strict=True)}
        (folder / f"{name}.json").write_text(json.dumps(texts))
    chosen = {name: [f"{name}-{label}-{number}.bmp" for label in range(len(CLASSES)) for number in range(n)] for name, n in SUPPORT.items()}
    (folder / "split.json").write_text(json.dumps(chosen))
    make_model(folder / "model")
    (folder / "plugin").mkdir()
    (folder / "plugin" / "storm_policy.py").write_text(POLICY)
    (folder / "plugin" / "storm_helper.py").write_text("SHARE = 0.5\n")
    return folder


def make_model(folder: Path) -> None:
    """Write a random CLIP of two narrow layers with the embedded model's tokenizer."""
    config = AutoConfig.from_pretrained(TINY)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 16}
    for tower in (config.text_config, config.vision_config):
        tower.update(small)
    config.vision_config.update({"image_size": SIDE, "patch_size": PATCH})
    config.projection_dim = small["projection_dim"]
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    for path in TINY.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder)
    processor = json.loads((folder / "processor_config.json").read_text())
    for place in (processor, processor.get("image_processor", {})):
        if "crop_size" in place:
            place["crop_size"] = {"height": SIDE, "width": SIDE}
        if "size" in place:
            place["size"] = {"shortest_edge": SIDE}
    (folder / "processor_config.json").write_text(json.dumps(processor))
