"""Banks of view features: keyed by content, stored in checked shards or encoded while they are read, one protocol for experiments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from multicrop.features.base import Batch, EncodeCost, FeatureBank
from multicrop.features.disk import DiskBank
from multicrop.features.engine import Engine, local
from multicrop.features.factory import check_storage, feature_bank
from multicrop.features.identity import BankIdentity, bank_identity, count_views
from multicrop.features.shards import ShardFolder
from multicrop.features.stops import Stopped, local_rank, loop, stop_on_signals

if TYPE_CHECKING:
    from multicrop.features.callbacks import BankProgress, StopBetweenBatches
    from multicrop.features.on_the_fly import EncodedImages, OnTheFlyBank, encoded_groups
    from multicrop.features.one_pass import OnePassBank
    from multicrop.features.ray_engine import RayEngine

__all__ = [
    "BankIdentity",
    "BankProgress",
    "Batch",
    "DiskBank",
    "EncodeCost",
    "EncodedImages",
    "Engine",
    "FeatureBank",
    "OnTheFlyBank",
    "OnePassBank",
    "RayEngine",
    "ShardFolder",
    "StopBetweenBatches",
    "Stopped",
    "bank_identity",
    "check_storage",
    "count_views",
    "encoded_groups",
    "feature_bank",
    "local",
    "local_rank",
    "loop",
    "stop_on_signals",
]


LAZY = {
    "callbacks": ("BankProgress", "StopBetweenBatches"),
    "on_the_fly": ("EncodedImages", "OnTheFlyBank", "encoded_groups"),
    "one_pass": ("OnePassBank",),
    "ray_engine": ("RayEngine",),
}


def __getattr__(name: str) -> Any:
    """Load what encodes when it is asked for: it needs Lightning, whose import takes seconds."""
    for module, names in LAZY.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
