"""Label prompts: one template filled with the class name, or an ensemble of templates, as single prompts or as one mean embedding."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from multicrop.config.ranges import Template
from multicrop.text.bank import Mean
from multicrop.text.nouns import article

DEFAULT_SET = "imagenet1k"  # OpenAI's 80 templates for ImageNet, the most general set


def fill(template: str, name: str, *, agree: bool = False) -> str:
    """Put the class name into a template.

    Args:
        template: Text with one ``{}``.
        name: Class name.
        agree: Whether "a" or "an" before the ``{}`` follows the sound of the name.

    Returns:
        The label prompt.

    Raises:
        ValueError: If the template has no ``{}``, or several.
    """
    if template.count("{}") != 1:
        raise ValueError(f"a template holds {{}} once, where the class name goes; got {template!r}")
    if agree:
        template = re.sub(r"\b([Aa])n? \{\}", lambda found: f"{found[1]}{article(name)[1:]} {{}}", template)
    return template.replace("{}", name)


def template(class_names: Sequence[str], descriptions: dict[str, list[str]], *, template: Template, agree: bool = False) -> list[list[str]]:
    """Make the label prompt alone.

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Ignored; prompt functions share their first two arguments.
        template: Template of the label prompt, with ``{}`` where the class name goes.
        agree: Whether "a" or "an" before the name follows its sound.

    Returns:
        One prompt per class.
    """
    return [[fill(template, name, agree=agree)] for name in class_names]


def ensemble(
    class_names: Sequence[str],
    descriptions: dict[str, list[str]],
    *,
    template: Template,
    templates: str | Sequence[Template] | None,
    average: bool,
    agree: bool = False,
) -> list[list[str]]:
    """Fill many templates with each class name (Radford et al., 2021).

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Ignored; prompt functions share their first two arguments.
        template: Template of the label prompt.
        templates: List of templates, name of a packaged set (a data set's name, or ``"imagenet7"``), or None for OpenAI's 80.
        average: True: one prompt per class, the normalised mean embedding of all templates. False: the label prompt, then one prompt per
            template.
        agree: Whether "a" or "an" before the name follows its sound.

    Returns:
        Prompts per class; the label prompt or the mean is first.

    Raises:
        ValueError: If the set is unknown, the list is empty, or a template does not hold one ``{}``.
    """
    chosen = template_set(templates)
    rows = []
    for name in class_names:
        label, texts = fill(template, name, agree=agree), [fill(each, name, agree=agree) for each in chosen]
        rows.append([Mean(label, texts)] if average else list(dict.fromkeys([label, *texts])))
    return rows


def template_set(templates: str | Sequence[str] | None) -> list[str]:
    """The templates of a packaged set, or a user's list."""
    if templates is None or isinstance(templates, str):
        packaged = _packaged()
        if (name := templates or DEFAULT_SET) not in packaged:
            raise ValueError(
                f"no set of templates is called {name!r}; prompt.templates is one of {', '.join(sorted(packaged))} "
                '(as in prompt.templates=imagenet1k), or a list such as prompt.templates=["a photo of a {}.","art of the {}."]'
            )
        return packaged[name]
    if not len(templates):
        raise ValueError("prompt.templates is empty; give a packaged set (prompt.templates=imagenet1k) or a list of templates")
    return [str(each) for each in templates]


@cache
def _packaged() -> dict[str, list[str]]:
    return json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))["templates"]
