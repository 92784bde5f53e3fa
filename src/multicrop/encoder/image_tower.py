"""Features of pixels, also of views of a side other than the model's."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multicrop.encoder.clip_layers import CLASS_TOKEN_FAMILIES, image_feature, last_layer_input
from multicrop.encoder.facts import side_of
from multicrop.encoder.families import family_of

GLOBAL_TOKEN = "global_token"  # noqa: S105 an entry of a vision tower's configuration
GLOBAL_TOKENS = ("class", "register")


def image_features(model: nn.Module, values: Float[Tensor, "views 3 side side"], *, interpolated: bool) -> Float[Tensor, "views dim"]:
    """Features, not normalised, of normalised pixels; `interpolated`: of another side than the model's.

    Where a class token alone is read, the last layer leaves out the patches but three (ViT-B/16: 0.93 of the time); other towers run as
    the library has them.
    """
    if reads_register(model):
        return model.vision_model(pixel_values=values).last_hidden_state[:, 1]
    if model.config.model_type in CLASS_TOKEN_FAMILIES:
        return image_feature(model, last_layer_input(model, values, interpolated=interpolated))
    return pooled(model.get_image_features(pixel_values=values, **({"interpolate_pos_encoding": True} if interpolated else {})))


def use_register(model: nn.Module, name: str) -> None:
    """Let the feature of an image be the register of TIPSv2's tower, its second global token; raises ValueError for another tower.

    Its configuration says so, and with it the identity of the encoder.
    """
    vision = model.config.vision_config
    if vision.model_type != "tipsv2_vision_model" or not vision.num_register_tokens:
        raise ValueError(
            f"model.global_token=register is for TIPSv2, whose register was trained on captions, and {name} is of the family "
            f"{family_of(model)!r}: set it to null"
        )
    setattr(vision, GLOBAL_TOKEN, "register")


def reads_register(model: nn.Module) -> bool:
    """Whether the feature of an image is the register of its tower."""
    return getattr(getattr(model.config, "vision_config", None), GLOBAL_TOKEN, None) == "register"


def is_interpolated(model: nn.Module, side: int) -> bool:
    """Whether the tower has to be asked to interpolate its positions for views of this side."""
    return side_of(model) not in (None, side)


def check_crop_side(model: nn.Module, name: str, side: int, crop_side: int) -> None:
    """Raise ValueError unless the image tower can read crops of this side; it is tried on a black one."""
    patch = getattr(model.config.vision_config, "patch_size", None)
    reason = "is no vision transformer of square patches"
    if isinstance(patch, int):
        if not 0 < crop_side < side or crop_side % patch:
            raise ValueError(
                f"model.crop_side is under the {side} px of {name} and a multiple of its patches of {patch} px, such as "
                f"{round(0.7 * side / patch) * patch}; got {crop_side}"
            )
        try:
            with torch.no_grad():
                image_features(model, torch.zeros(1, 3, crop_side, crop_side), interpolated=is_interpolated(model, crop_side))
            return
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"cannot interpolate its positions ({str(error).splitlines()[0]})"
    raise ValueError(
        f"model.crop_side needs an image tower that reads other sides, and {name} (family {family_of(model)!r}) {reason}; "
        "set model.crop_side=null, or choose a CLIP, SigLIP or TIPSv2 of transformers"
    )


def pooled(output: Any) -> Tensor:
    """The features in what a tower returns."""
    return output if isinstance(output, Tensor) else output.pooler_output
