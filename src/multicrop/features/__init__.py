"""The bank of view features: encoded once, keyed by content, written in checked shards, read by every experiment."""

from multicrop.features.fill import BankProgress, encoding_trainer, fill, local_rank
from multicrop.features.identity import Recipe, count_views, recipe_of
from multicrop.features.on_disk import ImageBank, SubsetBank, image_bank
from multicrop.features.on_the_fly import StreamedBank, StreamedBatches
from multicrop.features.one_pass import PassingBank, PassingBatches
from multicrop.features.shards import ShardFolder

Bank = ImageBank | StreamedBank | PassingBank  # what experiments read

__all__ = [
    "Bank",
    "BankProgress",
    "ImageBank",
    "PassingBank",
    "PassingBatches",
    "Recipe",
    "ShardFolder",
    "StreamedBank",
    "StreamedBatches",
    "SubsetBank",
    "count_views",
    "encoding_trainer",
    "fill",
    "image_bank",
    "local_rank",
    "recipe_of",
]
