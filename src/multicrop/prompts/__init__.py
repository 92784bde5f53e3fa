"""Class names -> prompts: slot 0 of a class is its label prompt, further texts follow. Counts stay ragged."""

from collections.abc import Callable

from multicrop.prompts.features import Mean, TextBank, members, text_bank
from multicrop.prompts.phrases import described, mixed, prompts_of, sentences
from multicrop.prompts.random_texts import waffle
from multicrop.prompts.sources import read_descriptions
from multicrop.prompts.templates import ensemble, fill, template

Prompts = Callable[..., list[list[str]]]

__all__ = [
    "Mean",
    "Prompts",
    "TextBank",
    "described",
    "ensemble",
    "fill",
    "members",
    "mixed",
    "prompts_of",
    "read_descriptions",
    "sentences",
    "template",
    "text_bank",
    "waffle",
]
