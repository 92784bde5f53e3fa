"""The only room that knows transformers, open_clip and OpenVINO: unit-norm features of pixels and prompts, and the scale of cosines."""

from multicrop.encoder.clip_layers import CAUSAL_FAMILIES, pooled_alone
from multicrop.encoder.dual import Encoder
from multicrop.encoder.facts import pixel_spec
from multicrop.encoder.families import check_projections
from multicrop.encoder.loading import load_encoder
from multicrop.encoder.looking import with_encoder
from multicrop.encoder.precisions import PRECISIONS

__all__ = ["CAUSAL_FAMILIES", "PRECISIONS", "Encoder", "check_projections", "load_encoder", "pixel_spec", "pooled_alone", "with_encoder"]
