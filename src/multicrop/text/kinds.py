"""Tells local texts, phrases about parts, from global texts, sentences about the whole; and selects prompts by kind."""

from collections.abc import Sequence

from multicrop.text.joins import GlobalText

SCOPES = ("local", "global", "both")
TEXT_SETS = ("label", "descriptions", *SCOPES, "all")


def of_scope(texts: Sequence[str], scope: str) -> list[str]:
    """The local texts, the global ones, or both, in their order."""
    return [text for text in texts if scope == "both" or isinstance(text, GlobalText) == (scope == "global")]


def selected(prompts: Sequence[Sequence[str]], scope: str) -> list[list[int]]:
    """The slots of the local prompts of each class, of its global ones, or of both; slot 0, the label prompt, is neither.

    Raises:
        ValueError: If a class has no prompt of a kind that is read.
    """
    for kind in ("local", "global") if scope == "both" else (scope,):
        if bare := [row[0] for row in prompts if not of_scope(row[1:], kind)]:
            raise ValueError(
                f"text_set={scope} reads {kind} texts, but {len(bare)} of {len(prompts)} classes have none among their prompts: "
                f"{', '.join(bare[:3])}{', ...' if len(bare) > 3 else ''}. Make them with prompt=descriptions prompt.scope={scope}, "
                "or read what there is (text_set=descriptions)"
            )
    return [[slot for slot, prompt in enumerate(row) if slot and of_scope([prompt], scope)] for row in prompts]
