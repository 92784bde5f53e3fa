"""Image features before the visual projection, which ProLIP trains: the matrix itself, and an encoder that stops before it."""

import copy

from jaxtyping import Float
from torch import Tensor, nn

from multicrop.adapters.tuned_encoder import rebuilt
from multicrop.encoder import Encoder


def visual_projection(encoder: Encoder) -> Float[Tensor, "dim width"]:
    """Return the matrix W that ends the image tower: a unit-norm feature is norm(W x), with x the feature before the projection.

    Args:
        encoder: The encoder.

    Returns:
        W in single precision on the CPU, shape (dim, width).

    Raises:
        ValueError: If the tower does not end with a linear map without a bias.
    """
    return _ends_with(encoder)[1].detach().float().cpu()


def unprojected(encoder: Encoder) -> Encoder:
    """Return an encoder whose image features are those before the visual projection, unit-norm, of length `width`.

    Without a bias, norm(W x) does not depend on the length of x. The weights are shared with `encoder`, whose texts it also encodes.

    Args:
        encoder: The encoder.

    Raises:
        ValueError: As `visual_projection`.
    """
    name, weight = _ends_with(encoder)
    shared = {id(value): value for value in (*encoder.model.parameters(), *encoder.model.buffers())}
    model = copy.deepcopy(encoder.model, shared)
    holder, last = (model.vision_model, None) if name == "proj" else (model, nn.Identity())
    setattr(holder, name, last)
    found = rebuilt(encoder, model, encoder.precision)
    found.dim = weight.shape[1]
    return found


def _ends_with(encoder: Encoder) -> tuple[str, Tensor]:
    """The name and the matrix (dim, width) of the last step of the image tower, in transformers or open_clip."""
    model = encoder.model
    last, own = getattr(model, "visual_projection", None), getattr(getattr(model, "vision_model", None), "proj", None)
    if isinstance(last, nn.Linear) and last.bias is None:
        return "visual_projection", last.weight
    if isinstance(own, nn.Parameter):
        return "proj", own.T
    raise ValueError(
        f"adapter=prolip trains the matrix without a bias that ends the image tower of CLIP, and {encoder.name} ends with another step. "
        "Choose adapter=rla, which trains a matrix behind any encoder, or a CLIP model (model=clip_vit_b32)"
    )
