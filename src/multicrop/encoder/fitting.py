"""Descriptions that are longer than the context of a text tower: they are cut after the last whole word that fits."""

import logging
from collections.abc import Callable, Sequence

from multicrop.text.bank import Mean

log = logging.getLogger(__name__)


def fitted(prompts: list[list[str]], count: Callable[[list[str]], list[int]], context: int) -> list[list[str]]:
    """Cut the descriptions that are too long, and log how many.

    The label prompt, which is first, stays as it is, and so do means of several texts: the encoder refuses those that are too long.

    Args:
        prompts: Prompts per class.
        count: The number of tokens of each text.
        context: The most tokens that the text tower reads.

    Returns:
        The prompts, each at most `context` tokens long.
    """
    texts = list(dict.fromkeys(prompt for row in prompts for prompt in row[1:] if not isinstance(prompt, Mean)))
    cut = {text: _cut(text, count, context) for text, tokens in zip(texts, count(texts) if texts else [], strict=True) if tokens > context}
    if not cut:
        return prompts
    log.warning(
        f"{len(cut)} of {len(texts)} descriptions are longer than the {context} tokens that the model reads, and are cut after the last "
        f"whole word that fits, such as {next(iter(cut.values()))!r}"
    )
    return [[*row[:1], *(cut.get(prompt, prompt) for prompt in row[1:])] for row in prompts]


def _cut(text: str, count: Callable[[list[str]], list[int]], context: int) -> str:
    """As many words of a text as fit; the text itself, which the encoder refuses, where not even one does."""
    words: Sequence[str] = text.split()
    starts = [" ".join(words[:end]) for end in range(1, len(words) + 1)]
    fits = [start for start, tokens in zip(starts, count(starts), strict=True) if tokens <= context]
    return fits[-1] if fits else text
