"""Loading a dual encoder from a folder or the HuggingFace hub, with an error that names what is wrong."""

from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from torch import nn

from multicrop.config import EMBEDDED_MODEL
from multicrop.config.ranges import OneOf
from multicrop.encoder.calibration import Calibration
from multicrop.encoder.dual import PRECISIONS, Encoder
from multicrop.encoder.facts import pixel_spec
from multicrop.files.hub import hub_answers, local_files_only

BYTES = 256  # transformers makes a blank tokenizer, of fewer tokens, where a folder has no tokenizer files


def load_encoder(
    path: str,
    *,
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32",
    compile: bool = False,
    revision: str | None = None,
    calibration: Calibration | None = None,
) -> Encoder:
    """Load a dual encoder from a folder or, with the internet, from the HuggingFace hub.

    Tested on CLIP (so MetaCLIP), MetaCLIP 2, SigLIP, SigLIP 2 of a fixed resolution, ALIGN, Chinese-CLIP, AltCLIP and
    VisionTextDualEncoder; other checkpoints that transformers' AutoModel loads as two towers should work. Reads safetensors only and runs
    no code of the checkpoint.

    Args:
        path: A folder, the id of a model on the hub, or ``tiny`` for the embedded model.
        precision: Precision of the image tower: fp32, bf16, fp16 (GPU), openvino_bf16, int8 or int8_static (CPU).
        compile: Whether to compile the image tower by torch.compile.
        revision: The commit, branch or tag of a model on the hub.
        calibration: A function that returns (id, RGB image) pairs, called for int8_static alone, for instance
            `multicrop.data.calibration.calibration_images`. A tower for photographs needs photographs.

    Returns:
        The encoder on the CPU, in evaluation mode.

    Raises:
        ValueError: If the checkpoint cannot be found, is not a dual encoder or is a NaFlex checkpoint of SigLIP 2, if the precision cannot
            run on this machine, or if int8_static comes without calibration.
    """
    from transformers import AutoImageProcessor, AutoTokenizer  # seconds of imports, which a bank at hand does not need

    path = str(EMBEDDED_MODEL if path == "tiny" else Path(path).expanduser())
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
    options = {"revision": revision, "trust_remote_code": False, "local_files_only": local_files_only(path)}
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
    if not Path(path).exists() and (Path(path).is_absolute() or path.count("/") > 1):
        raise ValueError(
            f"{path} does not exist; pass a checkpoint's folder (model=local model.path=FOLDER), a hub id OWNER/NAME, or choose model=tiny"
        )
    from transformers import AutoModel  # as above
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return AutoModel.from_pretrained(
            path,
            use_safetensors=True,
            dtype=torch.float32,
            revision=revision,
            trust_remote_code=False,
            local_files_only=local_files_only(path),
            adapter_kwargs={"local_files_only": local_files_only(path)},  # transformers looks for peft's files as well
            **knobs,
        ).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(_load_advice(path, error)) from error


def _load_advice(path: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    if Path(path).is_dir():
        return f"{path} holds no safetensors checkpoint that transformers can load ({reason}); it needs model.safetensors"
    if not hub_answers():
        reason = "the hub does not answer, and no download of it is on this machine"
    return (
        f"the model {path!r} is neither a folder here nor reachable on the HuggingFace hub ({reason}). Check the name and the network, "
        "or download it elsewhere and pass model=local model.path=FOLDER; model=tiny needs no network"
    )
