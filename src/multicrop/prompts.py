"""Class names -> prompts: slot 0 of a class is its label prompt, descriptions follow. Counts stay ragged."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multicrop.descriptions import available, phrases_for

Prompts = Callable[..., list[list[str]]]


@dataclass(frozen=True)
class TextBank:
    """Unit-norm prompt features of all classes, padded to the longest class, with the mask of real entries."""

    features: Float[Tensor, "classes prompts dim"]
    mask: Bool[Tensor, "classes prompts"]
    prompts: list[list[str]]

    @property
    def label(self) -> Float[Tensor, "classes dim"]:
        """The label prompt of each class."""
        return self.features[:, 0]

    def select(self, texts: str) -> "TextBank":
        """Only the label prompts (`label`), only the descriptions (`descriptions`), or `all`.

        Raises ValueError when descriptions are wanted and some class has none.
        """
        if texts == "all":
            return self
        if texts == "label":
            return TextBank(self.features[:, :1], self.mask[:, :1], [row[:1] for row in self.prompts])
        if texts != "descriptions":
            raise ValueError(f"texts is label, descriptions or all, got {texts!r}")
        bare = [row[0] for row in self.prompts if len(row) < 2]
        if bare:
            raise ValueError(
                f"descriptions are wanted, but {len(bare)} classes have none: {', '.join(bare[:3])}"
                f"{', ...' if len(bare) > 3 else ''}. Use prompt=descriptions with a file that covers them (prompt.file=PATH), "
                "or an aggregator that needs only the label prompt (aggregator=global)"
            )
        return TextBank(self.features[:, 1:], self.mask[:, 1:], [row[1:] for row in self.prompts])


def text_bank(prompts: list[list[str]], encode: Callable[[list[str]], Tensor]) -> TextBank:
    """Encode every distinct prompt once and lay the features out class by class."""
    distinct = list(dict.fromkeys(text for row in prompts for text in row))
    position = {text: index for index, text in enumerate(distinct)}
    features = encode(distinct)
    width = max(len(row) for row in prompts)
    padded = torch.zeros(len(prompts), width, features.shape[1])
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, texts in enumerate(prompts):
        padded[row, : len(texts)] = features[[position[text] for text in texts]]
        mask[row, : len(texts)] = True
    return TextBank(padded, mask, prompts)


def template(class_names: Sequence[str], descriptions: dict[str, list[str]], *, template: str) -> list[list[str]]:
    """The label prompt alone: the template filled with the class name."""
    return [[fill(template, name)] for name in class_names]


def described(
    class_names: Sequence[str],
    descriptions: dict[str, list[str]],
    *,
    template: str,
    join: str,
    bank: str | None = None,
    file: str | None = None,
) -> list[list[str]]:
    """The label prompt, then each description put into `join` (fields `{label}` and `{description}`).

    The data set's own descriptions are overlaid by those of a packaged `bank` (multicrop.descriptions), these by those of `file`,
    a JSON object {class: [phrase, ...]}. Raises ValueError for classes that are left without any.
    """
    packaged = phrases_for(bank, class_names) if bank else {}
    descriptions = {**descriptions, **packaged, **(read_descriptions(file) if file else {})}
    unknown = sorted(set(descriptions) - set(class_names))
    missing = [name for name in class_names if not descriptions.get(name)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(class_names)} classes have no descriptions: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}"
            + (f"; the descriptions name {len(unknown)} other classes: {', '.join(unknown[:3])}" if unknown else "")
            + ". Add them to a JSON object {class: [phrase, ...]} and pass prompt.file=PATH, name a packaged bank "
            f"(prompt.bank={'|'.join(available())}), or use prompt=template"
        )
    return [[fill(template, name), *(_joined(join, name, text) for text in descriptions[name])] for name in class_names]


def _joined(join: str, label: str, description: str) -> str:
    """The description put into `join`; raises ValueError when that has no `{description}` or another field than the two."""
    try:
        if "{description}" in join:
            return join.format(label=label, description=description)
    except (LookupError, ValueError) as error:
        raise ValueError(f"prompt.join holds the fields {{label}} and {{description}} only; got {join!r}") from error
    raise ValueError(f"prompt.join holds {{description}}, where the description goes; got {join!r}")


def fill(template: str, name: str) -> str:
    """The template with the class name in its `{}`; raises ValueError when it has none."""
    if template.count("{}") != 1:
        raise ValueError(f"a template holds {{}} once, where the class name goes; got {template!r}")
    return template.replace("{}", name)


def read_descriptions(file: str) -> dict[str, list[str]]:
    """A JSON object {class: [phrase, ...]}; raises ValueError when it is something else."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"the description file {path} does not exist; prompt.file wants a JSON object {{class: [phrase, ...]}}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the description file {path} is no JSON ({error}); prompt.file wants {{class: [phrase, ...]}}") from error
    if not isinstance(table, dict) or not all(
        isinstance(v, list) and all(isinstance(text, str) and text.strip() for text in v) for v in table.values()
    ):
        raise ValueError(f"the description file {path} must be a JSON object {{class: [phrase, ...]}} of non-empty strings")
    return table
