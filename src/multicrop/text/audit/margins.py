"""Measures which texts of a class discriminate it under an encoder: a text is nearer to the label prompt of its class than to others."""

from collections.abc import Callable, Sequence

from multicrop.text.bank import TextBank
from multicrop.text.descriptions import DescriptionSet
from multicrop.text.templates import fill


def margins(
    source: DescriptionSet, key: str, rivals: Sequence[str], encode_prompts: Callable[[list[list[str]]], TextBank], template: str
) -> dict[str, float]:
    """Measure how well each text of a class, without the class name, discriminates the class for an encoder.

    Args:
        source: Description set.
        key: Key of the class.
        rivals: Keys of the classes to tell it from, without `key`.
        encode_prompts: Encodes one list of prompts per class.
        template: Template of the label prompts.

    Returns:
        Per local and global text the cosine similarity to the label prompt of its class less the largest one to that of a rival; above 0
        the text discriminates.
    """
    texts = source.texts_of(key)
    labels = [fill(template, source.classes[name]) for name in (key, *rivals)]
    bank = encode_prompts([[labels[0], *texts], *([label] for label in labels[1:])])
    similarity = bank.features[0, 1 : 1 + len(texts)] @ bank.label.T
    return dict(zip(texts, (similarity[:, 0] - similarity[:, 1:].amax(1)).tolist(), strict=True))
