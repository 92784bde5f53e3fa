"""Checkpoints of the embedded CLIP: where training starts, what a killed run finds, and the export as a HuggingFace checkpoint."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from multicrop.config import PACKAGE
from multicrop.files import atomic, file_hash
from multicrop.pretrain.captions import CONTEXT_TOKENS

SIDE, PATCH, PROJECTION = 96, 16, 128
HEADER_LENGTH = 8  # bytes of a safetensors file that hold the length of its JSON header, little-endian


def tiny_config(vocab_size: int, *, width: int, layers: int, text_width: int, text_layers: int) -> CLIPConfig:
    """A small CLIP; end of text must be token 1 in `text_config`, else the text tower pools the wrong token."""
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_width // 32}
    text |= {"num_hidden_layers": text_layers, "max_position_embeddings": CONTEXT_TOKENS, "vocab_size": vocab_size}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    vision |= {"num_hidden_layers": layers, "image_size": SIDE, "patch_size": PATCH}
    shared = {"projection_dim": PROJECTION, "hidden_act": "gelu"}
    return CLIPConfig(text_config=text | shared | special, vision_config=vision | shared, projection_dim=PROJECTION, **special)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, so that a killed run finds the last whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the checkpoint beside its place, then rename it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic(Path(path)) as partial:
            super().save_checkpoint(checkpoint, partial, storage_options)


@dataclass(frozen=True)
class Start:
    """The checkpoint that training starts from, with its tokenizer and the hash of its weights."""

    config: CLIPConfig
    tokenizer: CLIPTokenizer
    weights: dict[str, Tensor]
    content: str

    @classmethod
    def from_checkpoint(cls, init: str, knob: str = "task.init") -> "Start":
        """The checkpoint of a folder, or the shipped one where `init`, the value of `knob`, is `embedded`."""
        folder = PACKAGE / "encoder" / "tiny_clip" if init == "embedded" else Path(init)
        if not (folder / "model.safetensors").exists():
            raise ValueError(f"{knob}={init} holds no model.safetensors; pass a folder that task=pretrain exported, `embedded` or null")
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        return cls(model.config, CLIPTokenizer.from_pretrained(folder), model.state_dict(), file_hash(folder / "model.safetensors"))

    def averaged(self, trained: dict[str, Tensor], init_share: float) -> dict[str, Tensor]:
        """The trained weights, with a share of the initial ones."""
        return {name: value.lerp(self.weights[name], init_share) if value.is_floating_point() else value for name, value in trained.items()}


def export(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path, made_from: dict[str, Any]) -> None:
    """Write the model in half precision, with tokenizer and processor, as `from_pretrained` reads it; each file is whole or absent.

    `made_from` (data, vendors, recipe) goes into the metadata of the weights.
    """
    side = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        model.half().save_pretrained(made)
        model.float()
        _add_metadata(Path(made) / "model.safetensors", {name: json.dumps(value) for name, value in made_from.items()})
        CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            file.replace(folder / file.name)


def _add_metadata(weights: Path, metadata: dict[str, str]) -> None:
    """Add entries to the header of a safetensors file; the library itself orders them at random, so that equal weights differ in bytes."""
    content = weights.read_bytes()
    end = HEADER_LENGTH + int.from_bytes(content[:HEADER_LENGTH], "little")
    header = json.loads(content[HEADER_LENGTH:end])
    header["__metadata__"] = header.get("__metadata__", {}) | metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_LENGTH)  # the tensors stay aligned
    weights.write_bytes(len(text).to_bytes(HEADER_LENGTH, "little") + text + content[end:])
