"""Models of open_clip (PE-Core, MobileCLIP2, EVA02, SigLIP, CoCa, DFN ...), with open_clip's own towers, tokenizers and pixels."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from multicrop.config.ranges import Count, OneOf
from multicrop.crops.pixels import PixelSpec
from multicrop.encoder.calibration import Calibration
from multicrop.encoder.dual import Encoder
from multicrop.encoder.open_clip_layers import read_class_token_alone
from multicrop.encoder.open_clip_sides import OtherSides
from multicrop.encoder.open_clip_source import Source, described, open_clip_source
from multicrop.encoder.open_clip_texts import OpenClipTexts, OpenClipTokenizer, tokenizer_knobs
from multicrop.encoder.precisions import PRECISIONS

EXTRA = "model=open_clip needs open_clip: pip install 'multicrop[open_clip]'"


def load_open_clip(
    name: str,
    *,
    checkpoint: str | None = None,
    tag: str | None = None,
    revision: str | None = None,
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32",
    compile: bool = False,
    calibration: Calibration | None = None,
    crop_side: Count | None = None,
) -> Encoder:
    """Load a model of open_clip; its features are those of open_clip's own pipeline.

    Reads safetensors only and runs no code of the checkpoint. Towers with training-time branches (MobileCLIP) are reparameterised.

    Args:
        name: ``hf-hub:OWNER/NAME``, a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, or, with `checkpoint`, an
            architecture of open_clip.
        checkpoint: A safetensors file with the weights of the architecture.
        tag: The published tag of the architecture whose pixels and activation the checkpoint has.
        revision: The commit, branch or tag of a model on the hub.
        precision: Precision of the image tower: fp32, bf16, fp16 (GPU), openvino_fp32, openvino_bf16, int8 or int8_static (CPU).
        compile: Whether to compile the image tower by torch.compile.
        calibration: A function that returns (id, RGB image) pairs, called for int8_static alone.
        crop_side: Side of crops in pixels, under the model's and a multiple of its patches, for vision transformers. None: its own.

    Returns:
        The encoder on the CPU, in evaluation mode.

    Raises:
        ValueError: If open_clip is not installed, if the model has no safetensors weights or no facts of its pixels, if its weights do not
            fit its architecture, if the precision cannot run on this machine, or if crop_side is not for this model.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"{EXTRA} ({error})") from error
    source = open_clip_source(name, checkpoint, tag, revision)
    with _explained(source), _quiet():
        model = open_clip.create_model(source.model, load_weights=False, pretrained_text=False)  # a pickle beside it is never opened
        _check_shapes(model, source)
        open_clip.load_checkpoint(model, str(source.weights))
        text = source.config["text_cfg"]
        own = open_clip.get_tokenizer(source.model, **tokenizer_knobs(source))
    dual = OpenClipDual(model, source.config, own.context_length)
    kept = {key: text.get(key) for key in ("tokenizer_kwargs", "tokenizer_mode", "context_length")}
    tokenizer = OpenClipTokenizer(own, trims=dual.text_model.trims, facts=kept)
    knobs = {"precision": precision, "compile": compile, "calibration": calibration}
    spec = replace(pixels_of(model.visual.image_size, source), crop_side=crop_side)
    return Encoder(dual, tokenizer, spec, name=source.label, **knobs)


class OpenClipConfig(SimpleNamespace):
    """What `Encoder` asks of a model's configuration; `open_clip` holds the architecture."""

    def to_dict(self) -> dict[str, Any]:
        """All that decides the features, with the weights."""
        return {"model_type": self.model_type, "open_clip": self.open_clip}


class OpenClipDual(nn.Module):
    """Both towers of an open_clip model under the names that `Encoder` calls.

    Args:
        model: The model with its weights.
        config: Its architecture.
        context: Tokens that the text tower reads at most.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], context: int) -> None:
        super().__init__()
        self.vision_model, self.text_model = _image_tower(model), OpenClipTexts(getattr(model, "text", model))
        self.logit_scale, self.sides = model.logit_scale, OtherSides()
        if getattr(model, "logit_bias", None) is not None:
            self.logit_bias = model.logit_bias
        layers = config["text_cfg"].get("layers", 12)  # open_clip's own default
        self.config = OpenClipConfig(
            model_type="open_clip",
            open_clip=described(config, getattr(getattr(model, "text", None), "config", None)),
            projection_dim=config["embed_dim"],
            vision_config=SimpleNamespace(model_type="open_clip_vision", **_sizes(self.vision_model)),
            text_config=SimpleNamespace(model_type="open_clip_text", max_position_embeddings=context, num_hidden_layers=layers),
        )

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> BaseModelOutputWithPooling:
        """Features of normalised pixels, not normalised; with interpolated positions for another side than the model's."""
        run = partial(self.sides.features, self.vision_model) if interpolate_pos_encoding else self.vision_model
        output = run(pixel_values)
        return BaseModelOutputWithPooling(pooler_output=output[0] if isinstance(output, tuple) else output)

    def get_text_features(self, input_ids: Tensor) -> BaseModelOutputWithPooling:
        """Features of token ids, not normalised."""
        return BaseModelOutputWithPooling(pooler_output=self.text_model(input_ids))


def pixels_of(image_size: Sequence[int], source: Source) -> PixelSpec:
    """The pixels of a model: open_clip resizes to the shorter side and crops, to the longer and pads, or stretches ("squash")."""
    facts, (height, width) = source.pixels, image_size
    mode, interpolation = facts.get("resize_mode") or "shortest", facts.get("interpolation") or "bicubic"
    if height != width or mode not in ("shortest", "longest", "squash"):
        raise ValueError(
            f"views are squares, and {source.label} has {height} x {width} px and the resize mode {mode}; choose another model"
        )
    return PixelSpec(
        side=height,
        short_side=height if mode == "shortest" else None,
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",  # its "random" is bicubic outside training
        mean=_triple(facts["mean"]),
        std=_triple(facts["std"]),
        centre="even",
        fill=int(facts.get("fill_color") or 0) if mode == "longest" else None,
    )


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, Sequence) else (value,) * 3
    return float(red), float(green), float(blue)


def _image_tower(model: nn.Module) -> nn.Module:
    """The image tower; training-time branches are merged into one convolution each (MobileCLIP), and what is not read is left out."""
    tower = model.visual
    if hasattr(tower, "trunk"):
        from timm.utils import reparameterize_model

        tower.trunk = reparameterize_model(tower.trunk.eval())
    read_class_token_alone(tower)
    return tower


def _sizes(tower: nn.Module) -> dict[str, int]:
    """Patch size, width and number of layers of a vision transformer; the number of layers alone of another network."""
    trunk = getattr(tower, "trunk", None)
    if trunk is None and hasattr(tower, "patch_size"):
        blocks, (rows, _) = tower.transformer.resblocks, tower.grid_size
        inner = blocks[0].mlp.c_fc.out_features
    elif hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed"):
        blocks, (rows, _) = trunk.blocks, trunk.patch_embed.grid_size
        inner = 4 * trunk.embed_dim
    else:
        return {"num_hidden_layers": 1}
    side = tower.image_size[0]
    return {"patch_size": side // rows, "image_size": side, "intermediate_size": inner, "num_hidden_layers": len(blocks)}


def _check_shapes(model: nn.Module, source: Source) -> None:
    """Raise ValueError where open_clip would interpolate positions to fit, silently, or where the file is of another model."""
    own = {name: value.numel() for name, value in model.state_dict().items()}
    with safe_open(source.weights, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name in own}  # noqa: SIM118, it is no dict
    if wrong := [name for name, shape in shapes.items() if own[name] != torch.Size(shape).numel()]:
        raise ValueError(
            f"{source.weights} is of another size than {source.label}: {', '.join(wrong[:3])} differ; choose its own architecture"
        )


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn open_clip's errors into a ValueError that says what to do."""
    try:
        yield
    except (RuntimeError, OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"open_clip cannot load {source.label} from {source.weights} ({type(error).__name__}: {reason}); its weights have to be "
            "those of its architecture, and the tokenizer of a HuggingFace text tower has to be in its folder or on the hub"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's messages on the root logger, such as that the weights are random before they are loaded."""

    class Hidden(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return record.module not in ("factory", "pretrained", "model")

    root, hidden, silent = logging.getLogger(), Hidden(), logging.NullHandler()
    root.addFilter(hidden)
    root.addHandler(silent)  # without a handler the first message would install one
    try:
        yield
    finally:
        root.removeFilter(hidden)
        root.removeHandler(silent)
