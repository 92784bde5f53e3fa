"""The bank of view features: encoded once, keyed by content, written in checked shards, read by every experiment."""

from multicrop.bank.fill import BankProgress, encoding_trainer, fill, local_rank
from multicrop.bank.image_bank import ImageBank, SubsetBank, image_bank
from multicrop.bank.passing import PassingBank, PassingBatches
from multicrop.bank.recipe import Recipe, count_views, recipe_of
from multicrop.bank.shards import ShardFolder, make_folder
from multicrop.bank.streamed import StreamedBank, StreamedBatches

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
    "make_folder",
    "recipe_of",
]
