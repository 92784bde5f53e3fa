"""Prompts of classes from class names and descriptions. The first prompt of a class is its label prompt; counts may differ by class."""

from collections.abc import Callable

from multicrop.text.bank import Mean, TextBank, members, text_bank
from multicrop.text.controls import waffle
from multicrop.text.joins import GlobalText
from multicrop.text.prompts import described, mixed, prompts_of, sentences
from multicrop.text.sources import read_descriptions
from multicrop.text.templates import ensemble, fill, template

Prompts = Callable[..., list[list[str]]]

__all__ = [
    "GlobalText",
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
