"""Label prompts: one template filled with the class name, or an ensemble of many, as prompts of their own or as one mean embedding."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from multicrop.text.bank import Mean
from multicrop.text.grammar import article

DEFAULT_SET = "imagenet1k"  # OpenAI's 80 templates for ImageNet, the most general set


def fill(template: str, name: str, *, agree: bool = False) -> str:
    """The template with the class name in its `{}`; `agree` turns an "a" before it into "an" where the name wants that.

    Raises ValueError when it has no `{}` or several.
    """
    if template.count("{}") != 1:
        raise ValueError(f"a template holds {{}} once, where the class name goes; got {template!r}")
    if agree:
        template = re.sub(r"\b([Aa])n? \{\}", lambda found: f"{found[1]}{article(name)[1:]} {{}}", template)
    return template.replace("{}", name)


def template(class_names: Sequence[str], descriptions: dict[str, list[str]], *, template: str, agree: bool = False) -> list[list[str]]:
    """The label prompt alone: the template filled with the class name."""
    return [[fill(template, name, agree=agree)] for name in class_names]


def ensemble(
    class_names: Sequence[str],
    descriptions: dict[str, list[str]],
    *,
    template: str,
    templates: str | Sequence[str] | None,
    average: bool,
    agree: bool = False,
) -> list[list[str]]:
    """Many templates a class: with `average` slot 0 is the normalised mean embedding of all (Radford et al., 2021), and the only prompt;
    without, slot 0 is the label prompt and each template is one prompt more.

    `templates` is a list, the name of a packaged set (a data set's name, or imagenet7), or null for OpenAI's 80. Raises ValueError for an
    unknown set, an empty list, or a template without one `{}`.
    """
    chosen = template_set(templates)
    rows = []
    for name in class_names:
        label, texts = fill(template, name, agree=agree), [fill(each, name, agree=agree) for each in chosen]
        rows.append([Mean(label, texts)] if average else list(dict.fromkeys([label, *texts])))
    return rows


def template_set(templates: str | Sequence[str] | None) -> list[str]:
    """The templates of a packaged set, or a list of one's own."""
    if templates is None or isinstance(templates, str):
        packaged = _packaged()
        if (name := templates or DEFAULT_SET) not in packaged:
            raise ValueError(
                f"no set of templates is called {name!r}; prompt.templates is one of {', '.join(sorted(packaged))}, "
                'or a list such as prompt.templates=["a photo of a {}.","art of the {}."]'
            )
        return packaged[name]
    if not len(templates):
        raise ValueError("prompt.templates is empty; give a packaged set (prompt.templates=imagenet1k) or a list of templates")
    return [str(each) for each in templates]


@cache
def _packaged() -> dict[str, list[str]]:
    return json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))["templates"]
