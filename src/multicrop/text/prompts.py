"""Prompts with descriptions: attribute phrases joined to the class name, sentences as written, and mixtures of several sources."""

import inspect
from collections.abc import Callable, Mapping, Sequence

from multicrop.text import grammar
from multicrop.text.bank import members
from multicrop.text.sources import class_texts, leak_handled
from multicrop.text.templates import fill

GRAMMAR = "grammar"
FIELDS = "{label}, {prompt} and {description}"


def described(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    template: str,
    join: str | None = GRAMMAR,
    bank: str | None = None,
    file: str | None = None,
    extend: str | None = None,
    with_label: bool = True,
    leak: str = "keep",
    max_descriptions: int | None = None,
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """The label prompt, then each description put into `join`, or bare where the texts are to stand without the label.

    `join` is a text with the fields {description}, {label} (the class name) and {prompt} (the label prompt), as DCLIP's
    "{label}, which has {description}", or `grammar` (also null): "which has a", "which is", "which" or nothing, by the phrase's part of
    speech. The sources are those of `sources.class_texts`, `leak` that of `sources.leak_handled`. `max_descriptions` keeps the first
    so many of each class. Raises ValueError as they do, for a `join` without {description} or with another field, and for a number below 1.
    """
    if max_descriptions is not None and max_descriptions < 1:
        raise ValueError(f"prompt.max_descriptions is 1 or more, or null for all; got {max_descriptions}. For none, use prompt=template")
    rows = class_texts(class_names, descriptions, bank=bank, file=file, extend=extend, class_keys=class_keys)
    if leak != "keep" or not with_label or bank or file or extend:
        rows = leak_handled(class_names, rows, leak, hidden=not with_label)
    rows = [row[:max_descriptions] for row in rows]
    labels = [fill(template, name) for name in class_names]
    if not with_label:
        return [[label, *row] for label, row in zip(labels, rows, strict=True)]
    return [
        [label, *(joined_text(join or GRAMMAR, name, label, text) for text in row)]
        for name, label, row in zip(class_names, labels, rows, strict=True)
    ]


def sentences(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    template: str,
    file: str | None,
    extend: str | None = None,
    join: str = "{description}",
    with_label: bool = True,
    leak: str = "keep",
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """The label prompt, then whole sentences about the class from a file (CuPL, Pratt et al., 2023), as written.

    Nearly all such sentences name their class; `with_label=false` says that they should not, and `leak` does it. Raises ValueError without
    a file, and as `described` does.
    """
    if not file:
        raise ValueError("prompt=sentences needs a file of sentences, a JSON object {class: [sentence, ...]}; pass prompt.file=PATH")
    return described(
        class_names, {}, template=template, join=join, file=file, extend=extend, with_label=with_label, leak=leak, class_keys=class_keys
    )


def mixed(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    parts: Mapping[str, Callable[..., list[list[str]]]],
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """The prompts of several prompt functions, one behind the other: slot 0 is that of the first part, repeated texts are left out.

    Raises ValueError when there is no part.
    """
    if not parts:
        raise ValueError("prompt=mixed has no part; add one: +prompt@prompt.parts.mine=descriptions")
    rows = [prompts_of(part, class_names, descriptions, class_keys) for part in parts.values()]
    return [_distinct([prompt for row in of_class for prompt in row]) for of_class in zip(*rows, strict=True)]


def _distinct(prompts: Sequence[str]) -> list[str]:
    """The prompts without those that are encoded from the same texts as an earlier one."""
    kept: dict[tuple[str, ...], str] = {}
    for prompt in prompts:
        kept.setdefault(members(prompt), prompt)
    return list(kept.values())


def prompts_of(
    prompts: Callable[..., list[list[str]]],
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """What a prompt function makes; stable keys are passed on where the data set has some and the function takes them."""
    if class_keys is None or "class_keys" not in inspect.signature(prompts).parameters:
        return prompts(class_names, descriptions)
    return prompts(class_names, descriptions, class_keys=class_keys)


def joined_text(join: str, label: str, prompt: str, description: str) -> str:
    """The description put into `join`; raises ValueError when that has no `{description}` or another field than the three."""
    if join == GRAMMAR:
        return grammar.joined(label, description)
    try:
        if "{description}" in join:
            return join.format(label=label, prompt=prompt, description=description)
    except (LookupError, ValueError) as error:
        raise ValueError(f"prompt.join holds the fields {FIELDS} only, or is {GRAMMAR}; got {join!r}") from error
    raise ValueError(f"prompt.join holds {{description}}, where the description goes, or is {GRAMMAR}; got {join!r}")
