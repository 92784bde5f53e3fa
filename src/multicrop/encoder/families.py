"""Refusals by family: which dual encoders, and which of their towers, lack what a computation relies on."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

DUAL = ("get_image_features", "get_text_features")
TOWERS = {"vision_model": "image", "text_model": "text"}
INSTEAD = "choose a CLIP-like checkpoint, for instance model=clip_vit_b16 or model=local model.path=FOLDER"


def family_of(model: nn.Module) -> str:
    """The model type of a checkpoint's configuration, such as ``clip``; the name of the class where there is none."""
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)


def check_dual(model: nn.Module, path: str) -> None:
    """Raise ValueError unless the model has an image and a text tower of the form that `Encoder` reads."""
    if not all(hasattr(model, name) for name in DUAL):
        raise ValueError(f"{path} is a {type(model).__name__}, not a dual encoder with an image and a text tower; {INSTEAD}")
    lacking = [name for name in TOWERS if not hasattr(model, name)]
    lacking += [name for name in ("vision_config", "text_config") if not hasattr(model.config, name)]
    if lacking:
        raise ValueError(
            f"{path} is of the family {family_of(model)!r} ({type(model).__name__}), which has no {', '.join(lacking)}: "
            f"its towers are built differently, and its features are not one vector per image and text; {INSTEAD}"
        )


def check_config(config: Mapping[str, Any], path: str) -> None:
    """Raise ValueError for a flat TIPSv2 configuration, in whose place transformers would read the sizes of another model."""
    if config.get("model_type") == "tipsv2" and not {"vision_config", "text_config"} <= config.keys():
        raise ValueError(
            f"config.json of {path} is of TIPSv2's own code, without vision_config and text_config: transformers would take the sizes and "
            "the temperature of TIPSv2-B/14 instead, silently. Choose a checkpoint that was converted for transformers"
        )


def check_complete(missing: Sequence[str], path: str) -> None:
    """Raise ValueError where a checkpoint lacks weights of the model, which would be random."""
    if missing:
        raise ValueError(
            f"{path} has no weights for {len(missing)} parts of its model, which would be random: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. It was trained for another task, or its file is of another model; {INSTEAD}"
        )


def check_projections(model: nn.Module, name: str, projections: Sequence[str]) -> None:
    """Raise ValueError unless the attention of every layer of both towers has linear layers of these names.

    peft is content with one such layer, so that Chinese-CLIP and AltCLIP would be tuned in their image tower alone.
    """
    if not all(hasattr(model, part) for part in TOWERS):
        raise ValueError(
            f"adapter=clip_lora tunes both towers, and those of {name} are not here; choose an adapter that learns from features"
        )
    for part, tower in TOWERS.items():
        module, layers = getattr(model, part), getattr(model.config, part.replace("_model", "_config")).num_hidden_layers
        found = [sum(own.endswith(f".{projection}") for own, _ in module.named_modules()) for projection in projections]
        if min(found) < layers:
            raise ValueError(
                f"adapter=clip_lora tunes {', '.join(projections)} in every layer of both towers; {name} is of the family "
                f"{family_of(model)!r}, whose {tower} tower has {min(found)} of them in {layers} layers. Choose a CLIP model "
                "(model=clip_vit_b32), or an adapter that learns from features"
            )
