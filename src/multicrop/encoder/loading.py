"""Loading a dual encoder from a folder or the HuggingFace hub, with an error that names what is wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from torch import nn

from multicrop.config import EMBEDDED_MODEL
from multicrop.config.ranges import Count, OneOf
from multicrop.encoder.calibration import Calibration
from multicrop.encoder.dual import Encoder
from multicrop.encoder.facts import pixel_spec, side_of
from multicrop.encoder.families import check_complete, check_config, check_dual
from multicrop.encoder.image_tower import GLOBAL_TOKENS, use_register
from multicrop.encoder.native_tokens import is_native, native_spec
from multicrop.encoder.precisions import PRECISIONS
from multicrop.encoder.text_rule import TEXT_CLEANINGS
from multicrop.files.hub import hub_answers, local_files_only

BYTES = 256  # transformers makes a blank tokenizer, of fewer tokens, where a folder has no tokenizer files


def load_encoder(
    path: str,
    *,
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32",
    compile: bool = False,
    revision: str | None = None,
    calibration: Calibration | None = None,
    text_cleaning: Annotated[str, OneOf(TEXT_CLEANINGS)] | None = None,
    crop_side: Count | None = None,
    token_buckets: Sequence[Count] | None = None,
    global_token: Annotated[str, OneOf(GLOBAL_TOKENS)] | None = None,
) -> Encoder:
    """Load a dual encoder from a folder or, with the internet, from the HuggingFace hub.

    Tested on CLIP (so MetaCLIP), MetaCLIP 2, SigLIP, SigLIP 2 (of a fixed resolution and NaFlex), ALIGN, Chinese-CLIP, AltCLIP, AIMv2,
    TIPSv2, BLIP, GroupViT, OWL-ViT, CLIPSeg and VisionTextDualEncoder; other checkpoints that transformers' AutoModel loads as two
    towers should work. Reads safetensors only and runs no code of the checkpoint.

    Args:
        path: A folder, the id of a model on the hub, or ``tiny`` for the embedded model.
        precision: Precision of the image tower: fp32, bf16, fp16 (GPU), openvino_fp32, openvino_bf16, int8 or int8_static (CPU).
        compile: Whether to compile the image tower by torch.compile.
        revision: The commit, branch or tag of a model on the hub.
        calibration: A function that returns (id, RGB image) pairs, called for int8_static alone, for instance
            `multicrop.data.calibration.calibration_images`. A tower for photographs needs photographs.
        text_cleaning: What SigLIP does to texts before they are cut into tokens: ``lower`` (the default) as transformers, ``canonical`` as
            open_clip. Other families take None alone.
        crop_side: Side of crops in pixels, under the model's and a multiple of its patches, through interpolated positions: 160 px take
            half the time of 224. None: the model's side.
        token_buckets: Numbers of tokens that a view of a NaFlex model (SigLIP 2) may have: it gets the smallest that holds the patches its
            own pixels fill, or the largest. None: 64, 100, 144, 196 and 256. For other families None alone.
        global_token: The feature of an image of TIPSv2: its ``class`` token (the default), trained on alt texts of the web, or its
            ``register``, trained on captions that a model wrote. For other families None or ``class``.

    Returns:
        The encoder on the CPU, in evaluation mode.

    Raises:
        ValueError: If the checkpoint cannot be found, lacks weights or is not a dual encoder, if the precision cannot run on this machine,
            if int8_static comes without calibration, or if text_cleaning, crop_side,
            token_buckets or global_token is not for this model.
    """
    from transformers import AutoImageProcessor, AutoTokenizer  # seconds of imports, which a bank at hand does not need

    path = str(EMBEDDED_MODEL if path == "tiny" else Path(path).expanduser())
    model = load_model(path, revision, complete=True)
    check_dual(model, path)
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
    name = Path(path).name if Path(path).exists() else path
    if global_token == "register":  # noqa: S105
        use_register(model, name)
    knobs = {"precision": precision, "compile": compile, "calibration": calibration, "text_cleaning": text_cleaning}
    if is_native(model):
        spec = native_spec(processor, None if token_buckets is None else tuple(token_buckets))
    elif token_buckets is None:
        spec = pixel_spec(processor, side_of(model))
    else:
        raise ValueError(f"model.token_buckets is for NaFlex models (SigLIP 2), and {name} reads views of one size; set it to null")
    return Encoder(model, tokenizer, replace(spec, crop_side=crop_side), name=name, **knobs)


def load_model(path: str, revision: str | None = None, *, complete: bool = False, **knobs: str) -> nn.Module:
    """The model in this folder or of this id, in fp32; raises ValueError with advice when there is none.

    With `complete`, also when the checkpoint lacks weights of the model.
    """
    if Path(path).is_file():
        raise ValueError(f"{path} is a file; pass the folder that holds it: model=local model.path={Path(path).parent}")
    if not Path(path).exists() and (Path(path).is_absolute() or path.count("/") > 1):
        raise ValueError(
            f"{path} does not exist; pass a checkpoint's folder (model=local model.path=FOLDER), a hub id OWNER/NAME, or choose model=tiny"
        )
    from transformers import AutoModel, PreTrainedConfig  # as above
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = {"revision": revision, "trust_remote_code": False, "local_files_only": local_files_only(path)}
    with suppress(OSError):  # without a configuration transformers says below what is wrong
        check_config(PreTrainedConfig.get_config_dict(path, **source)[0], path)
    with _advised(path):
        model, report = AutoModel.from_pretrained(
            path,
            use_safetensors=True,
            dtype=torch.float32,
            adapter_kwargs={"local_files_only": local_files_only(path)},  # transformers looks for peft's files as well
            output_loading_info=True,
            **source,
            **knobs,
        )
    check_complete(sorted(report["missing_keys"]) if complete else [], path)
    return model.eval()


@contextmanager
def _advised(path: str) -> Iterator[None]:
    """Turn errors of the block into a ValueError that says what to do."""
    try:
        yield
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
