"""Banks of view features: keyed by content, stored in checked shards or encoded while they are read, one protocol for experiments."""

from multicrop.features.base import Batch, EncodeCost, FeatureBank
from multicrop.features.disk import DiskBank
from multicrop.features.factory import check_storage, feature_bank
from multicrop.features.fill import BankProgress, local_rank
from multicrop.features.identity import BankIdentity, bank_identity, count_views
from multicrop.features.on_the_fly import EncodedImages, OnTheFlyBank, encoded_groups
from multicrop.features.one_pass import OnePassBank
from multicrop.features.shards import ShardFolder
from multicrop.features.stops import StopBetweenBatches, Stopped, stop_on_signals

__all__ = [
    "BankIdentity",
    "BankProgress",
    "Batch",
    "DiskBank",
    "EncodeCost",
    "EncodedImages",
    "FeatureBank",
    "OnTheFlyBank",
    "OnePassBank",
    "ShardFolder",
    "StopBetweenBatches",
    "Stopped",
    "bank_identity",
    "check_storage",
    "count_views",
    "encoded_groups",
    "feature_bank",
    "local_rank",
    "stop_on_signals",
]
