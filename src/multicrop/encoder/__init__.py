"""The only place that knows transformers' dual encoders: unit-norm features of pixels and prompts, and the scale of their cosines."""

from multicrop.encoder.dual import PRECISIONS, Encoder
from multicrop.encoder.facts import pixel_spec
from multicrop.encoder.loading import load_encoder
from multicrop.encoder.looking import with_encoder
from multicrop.encoder.pooled import CAUSAL_FAMILIES, heads, pooled_alone, rest

__all__ = ["CAUSAL_FAMILIES", "PRECISIONS", "Encoder", "heads", "load_encoder", "pixel_spec", "pooled_alone", "rest", "with_encoder"]
