"""Loading a dual encoder from a folder or the HuggingFace hub, and saying what is wrong where that fails."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from multicrop.encoder.dual import Encoder
from multicrop.encoder.facts import pixel_spec

BYTES = 256  # a tokenizer of fewer tokens is the blank one that transformers makes up where a folder has no tokenizer files


def load_encoder(
    *, path: str, precision: str = "fp32", compile: bool = False, revision: str | None = None, calibration: str | None = None
) -> Encoder:
    """Load a dual encoder from a folder or, with the internet, from the HuggingFace hub by its id.

    Tested on CLIP (so MetaCLIP), MetaCLIP 2, SigLIP, SigLIP 2 of a fixed resolution, ALIGN, Chinese-CLIP, AltCLIP and
    VisionTextDualEncoder; others that transformers' AutoModel loads as two towers should do. Reads safetensors only and runs no code of
    the checkpoint. `calibration` is a folder of pictures like those to come, for precision=int8_static alone: without one the ranges
    come from scenes of the embedded drawings, and a tower for photographs wants photographs. Raises ValueError when it cannot be found
    or is no dual encoder, and for SigLIP 2's NaFlex checkpoints.
    """
    path = str(Path(path).expanduser())
    model = load_model(path, revision)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(
            f"{path} is a {type(model).__name__}, not a dual encoder with an image and a text tower; "
            "choose a CLIP-like checkpoint, for instance model=clip_vit_b16 or model=local model.path=FOLDER"
        )
    if model.config.model_type == "siglip2":
        raise ValueError(
            f"{path} is a NaFlex model: the number and shape of its patches follow each image, while views here are squares of one size. "
            "Choose the fixed-resolution checkpoint of the same training, for instance model=siglip2_b16"
        )
    options = {"revision": revision, "trust_remote_code": False}
    try:
        processor = AutoImageProcessor.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{path} has weights but no usable tokenizer or image processor: {error}") from error
    if len(tokenizer) < BYTES:
        raise ValueError(
            f"{path} has weights but no usable tokenizer ({len(tokenizer)} tokens); add its tokenizer files, for instance tokenizer.json"
        )
    vision = model.config.vision_config
    spec = pixel_spec(processor, vision.image_size if hasattr(vision, "patch_size") else None)
    name = Path(path).name if Path(path).exists() else path
    return Encoder(model, tokenizer, spec, name=name, precision=precision, compile=compile, calibration=calibration)


def load_model(path: str, revision: str | None = None, **knobs: str) -> nn.Module:
    """The model in this folder or of this id, in fp32; raises ValueError with advice when there is none."""
    if Path(path).is_file():
        raise ValueError(f"{path} is a file; pass the folder that holds it: model=local model.path={Path(path).parent}")
    disable_progress_bar()
    try:
        return AutoModel.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, revision=revision, trust_remote_code=False, **knobs
        ).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(_load_advice(path, error)) from error


def _load_advice(path: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    if Path(path).is_dir():
        return f"{path} holds no safetensors checkpoint that transformers can load ({reason})"
    return (
        f"the model {path!r} is neither a folder here nor reachable on the HuggingFace hub ({reason}). Check the name and the network, "
        "or download it elsewhere and pass model=local model.path=FOLDER; model=tiny needs no network"
    )
