"""Prompts with descriptions: attribute phrases joined to the class name, sentences as written, and mixtures of several sources."""

import inspect
from collections.abc import Callable, Mapping, Sequence

from multicrop.config.ranges import Count, Leak, Scope, Template
from multicrop.text.bank import LABELS_ALONE, members
from multicrop.text.joins import GlobalText, joined
from multicrop.text.kinds import of_scope
from multicrop.text.sources import class_texts, leak_handled
from multicrop.text.templates import fill

GRAMMAR = "grammar"
FIELDS = "{label}, {prompt} and {description}"


def described(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    template: Template,
    join: str | None = GRAMMAR,
    description_set: str | None = None,
    file: str | None = None,
    extend: str | None = None,
    with_label: bool = True,
    leak: Leak = "keep",
    max_descriptions: Count | None = None,
    scope: Scope = "local",
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """Make the label prompt and one prompt per description.

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Descriptions of the data set itself, by class name.
        template: Template of the label prompt, with ``{}`` for the class name.
        join: How a description follows the class name: a text with the fields ``{description}``, ``{label}`` (class name) and ``{prompt}``
            (label prompt), such as ``"{label}, which has {description}"`` (DCLIP, Menon and Vondrick, 2023), or ``"grammar"`` (also None):
            "which has a", "which is" and so on, by the join word of each phrase (see ``multicrop.text.joins``).
        description_set: Packaged description set, laid over `descriptions` class by class.
        file: JSON file that replaces all other sources.
        extend: JSON file whose texts are added.
        with_label: False: descriptions stand alone, without the class name; the label prompt stays first.
        leak: ``"keep"``, ``"drop"`` or ``"mask"`` descriptions that hold the class name.
        max_descriptions: Number of local descriptions per class, the first of each list; None for all.
        scope: ``"local"`` (phrases about parts), ``"global"`` (texts about the whole, which follow the class name after a comma) or
            ``"both"``.
        class_keys: Stable key of each class (ImageNet: the wnid).

    Returns:
        Prompts per class; the label prompt is first.

    Raises:
        ValueError: If a source cannot be used, a class has no description of the scope, or an argument is out of range.
    """
    if max_descriptions is not None and max_descriptions < 1:
        raise ValueError(f"prompt.max_descriptions is 1 or more, or null for all; got {max_descriptions}. For none, use {LABELS_ALONE}")
    sources = {"description_set": description_set, "file": file, "extend": extend}
    rows = class_texts(class_names, descriptions, **sources, class_keys=class_keys, scope=scope)
    if leak != "keep" or not with_label or description_set or file or extend:
        rows = leak_handled(class_names, rows, leak, hidden=not with_label)
    rows = [[*of_scope(row, "local")[:max_descriptions], *of_scope(row, "global")] for row in rows]
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
    template: Template,
    file: str | None,
    extend: str | None = None,
    join: str = "{description}",
    with_label: bool = True,
    leak: Leak = "keep",
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """Make the label prompt and the sentences of a file as they are written (CuPL, Pratt et al., 2023).

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Ignored; prompt functions share their first two arguments.
        template: Template of the label prompt.
        file: JSON file ``{class: [sentence, ...]}``.
        extend: JSON file whose sentences are added.
        join: Text with the fields of ``described``.
        with_label: False: warns about sentences that name their class; choose `leak` with it.
        leak: ``"keep"``, ``"drop"`` or ``"mask"`` sentences that hold the class name.
        class_keys: Stable key of each class.

    Returns:
        Prompts per class; the label prompt is first.

    Raises:
        ValueError: If no file is set, and as ``described`` does.
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
    """Concatenate the prompts of several prompt functions.

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Descriptions of the data set itself, by class name.
        parts: Prompt functions by name, in order.
        class_keys: Stable key of each class.

    Returns:
        Prompts per class without repeated texts; the first is that of the first part.

    Raises:
        ValueError: If there is no part.
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
    """Make the prompts of classes by a prompt function.

    Args:
        prompts: The prompt function with its knobs bound.
        class_names: Class names, in the order of the labels.
        descriptions: The descriptions of the data set's own, by class name.
        class_keys: Stable key of each class (ImageNet: the wnid), passed to a function that takes them; None: the data set has none.

    Returns:
        The prompts of each class, its label prompt first.
    """
    if class_keys is None or "class_keys" not in inspect.signature(prompts).parameters:
        return prompts(class_names, descriptions)
    return prompts(class_names, descriptions, class_keys=class_keys)


def joined_text(join: str, label: str, prompt: str, description: str) -> str:
    """Put the description into `join`; raises ValueError if `join` has no `{description}` or a field other than the three.

    A global text names what the class is, as "which has" cannot, so it follows the class name after a comma.
    """
    if isinstance(description, GlobalText):
        return GlobalText(f"{label}, {description}")
    if join == GRAMMAR:
        return joined(label, description)
    try:
        if "{description}" in join:
            return join.format(label=label, prompt=prompt, description=description)
    except (LookupError, ValueError) as error:
        raise ValueError(f"prompt.join holds the fields {FIELDS} only, or is {GRAMMAR}; got {join!r}") from error
    raise ValueError(f"prompt.join holds {{description}}, where the description goes, or is {GRAMMAR}; got {join!r}")
