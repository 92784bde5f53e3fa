"""Encoded prompts of all classes, padded to one tensor; and prompts that stand for the mean of several texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize, pad

from multicrop.text.kinds import SCOPES, TEXT_SETS, selected

UNIT_TOLERANCE = 0.01  # of norms; half precision rounds them by less
LABELS_ALONE = "prompt=template aggregator=mean_feature aggregator.text_set=label"  # what needs no description, for messages


class Mean(str):
    """A prompt that stands for the normalised mean embedding of its `members`; its own text is what reports show."""

    members: tuple[str, ...]

    def __new__(cls, shown: str, members: Sequence[str]) -> "Mean":
        """The mean of the distinct members, shown as `shown`."""
        made = super().__new__(cls, shown)
        made.members = tuple(dict.fromkeys(members))
        return made

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:
        """The arguments that a copy is made from."""
        return str(self), self.members

    def __repr__(self) -> str:
        """With the members, as two means may show the same text."""
        return f"Mean({str(self)!r}, {self.members!r})"


def members(prompt: str) -> tuple[str, ...]:
    """The texts that a prompt is encoded from: itself, or the members of a mean."""
    return prompt.members if isinstance(prompt, Mean) else (prompt,)


@dataclass(frozen=True)
class TextBank:
    """Unit-norm prompt features of all classes.

    Args:
        features: Features, shape (classes, prompts, dim), padded with zeros to the class with most prompts.
        mask: True for real entries, shape (classes, prompts).
        prompts: Prompts per class; the label prompt is first.
    """

    features: Float[Tensor, "classes prompts dim"]
    mask: Bool[Tensor, "classes prompts"]
    prompts: list[list[str]]

    def __post_init__(self) -> None:
        """Check that the shapes fit."""
        _check_shapes(tuple(self.features.shape), tuple(self.mask.shape), len(self.prompts))

    @classmethod
    def from_features(
        cls, features: ArrayLike, mask: ArrayLike | None = None, prompts: Sequence[Sequence[str]] | None = None
    ) -> "TextBank":
        """Make a bank of features that were encoded elsewhere.

        Args:
            features: Unit-norm features, shape (classes, prompts, dim), or (classes, dim) for one prompt per class; the label prompt of a
                class is first. Padding may hold anything.
            mask: True for real entries, shape (classes, prompts), with padding last; None: all are real.
            prompts: Prompts per class, for reports; None: their numbers.

        Returns:
            The bank, with zeros as padding.

        Raises:
            ValueError: If shapes do not fit, a class has no prompt, padding is not last, or a real feature does not have unit norm.
        """
        values = torch.as_tensor(features)
        values = values[:, None] if values.ndim == 2 else values
        real = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        counts = real.sum(-1).tolist() if real.ndim == 2 else [0]
        named = [[f"class {c} prompt {m}" for m in range(n)] for c, n in enumerate(counts)] if prompts is None else list(map(list, prompts))
        _check_shapes(tuple(values.shape), tuple(real.shape), len(named))
        bank = cls(values, real, named)
        _check_values(bank, counts)
        return cls(torch.where(real[..., None], values, 0), real, named)

    @property
    def label(self) -> Float[Tensor, "classes dim"]:
        """The label prompt of each class."""
        return self.features[:, 0]

    def moved(self, step: Float[Tensor, "classes dim"], *, unit: bool = True) -> "TextBank":
        """The bank with each class's step added to all its prompts; padding stays 0.

        Args:
            step: What is added, shape (classes, dim).
            unit: Whether the sums are normalised again.

        Returns:
            The moved bank.
        """
        features = self.features + step[:, None]
        return TextBank((normalize(features, dim=-1) if unit else features) * self.mask[..., None], self.mask, self.prompts)

    def with_class(self, position: int, prompts: "TextBank") -> "TextBank":
        """The bank with other prompts of one class.

        Args:
            position: The class.
            prompts: A bank of one class.

        Returns:
            The changed bank.
        """
        width = max(self.mask.shape[1], prompts.mask.shape[1])
        wide = [pad(bank.features, (0, 0, 0, width - bank.mask.shape[1])) for bank in (self, prompts)]
        masks = [pad(bank.mask, (0, width - bank.mask.shape[1])) for bank in (self, prompts)]
        features, mask = (torch.cat([rows[:position], one, rows[position + 1 :]]) for rows, one in (wide, masks))
        return TextBank(features, mask, [*self.prompts[:position], *prompts.prompts, *self.prompts[position + 1 :]])

    def select(self, texts: str) -> "TextBank":
        """Select label prompts or descriptions.

        Args:
            texts: ``"label"``, ``"descriptions"`` (all of them), ``"local"`` or ``"global"`` descriptions alone, ``"both"`` (descriptions,
                where each class must have some of each kind) or ``"all"``.

        Returns:
            The bank of the selected prompts.

        Raises:
            ValueError: If `texts` is none of these, or a class has no prompt of a kind that is selected.
        """
        if texts == "all":
            return self
        if texts == "label":
            return TextBank(self.features[:, :1], self.mask[:, :1], [row[:1] for row in self.prompts])
        if texts in SCOPES:
            return self._slots(selected(self.prompts, texts))
        if texts != "descriptions":
            raise ValueError(f"texts is one of {', '.join(TEXT_SETS)}, got {texts!r}")
        bare = [row[0] for row in self.prompts if len(row) < 2]
        if bare:
            raise ValueError(
                f"descriptions are wanted, but {len(bare)} classes have none: {', '.join(bare[:3])}"
                f"{', ...' if len(bare) > 3 else ''}. Use prompt=descriptions with a file that covers them (prompt.file=PATH), "
                "or let the aggregator read the label prompts (aggregator.text_set=label, or aggregator=global)"
            )
        return TextBank(self.features[:, 1:], self.mask[:, 1:], [row[1:] for row in self.prompts])

    def _slots(self, slots: Sequence[Sequence[int]]) -> "TextBank":
        """The bank of some prompts of each class."""
        width = max(map(len, slots))
        index = torch.tensor([[*row, *[0] * (width - len(row))] for row in slots], device=self.mask.device)
        mask = torch.tensor([[place < len(row) for place in range(width)] for row in slots], device=self.mask.device)
        features = self.features[torch.arange(len(slots), device=index.device)[:, None], index]
        rows = [[prompts[slot] for slot in row] for prompts, row in zip(self.prompts, slots, strict=True)]
        return TextBank(torch.where(mask[..., None], features, 0), mask, rows)


def _check_shapes(features: tuple[int, ...], mask: tuple[int, ...], n_classes: int) -> None:
    """Raise ValueError where features, mask and prompts are not of the same classes and prompts."""
    if len(features) != 3 or mask != features[:2] or n_classes != features[0]:
        raise ValueError(
            "a text bank has features (classes, prompts, dim), a mask (classes, prompts) and a list of prompts per class; got features "
            f"{features}, mask {mask} and prompts of {n_classes} classes"
        )


def _check_values(bank: TextBank, counts: Sequence[int]) -> None:
    """Raise ValueError where a class has no prompt, padding is not last, names are not as many, or a feature is no unit vector."""
    wrong = [c for c, n in enumerate(counts) if not n or not bank.mask[c, :n].all() or len(bank.prompts[c]) != n]
    if wrong:
        raise ValueError(
            f"each class has one prompt or more, then padding, and as many texts as prompts; class {wrong[0]} has the mask "
            f"{bank.mask[wrong[0]].int().tolist()} and {len(bank.prompts[wrong[0]])} texts"
        )
    norms = bank.features[bank.mask].double().norm(dim=-1)
    worst = int((norms - 1).abs().nan_to_num(torch.inf).argmax())
    if not abs(float(norms[worst]) - 1) < UNIT_TOLERANCE:
        label, prompt = bank.mask.nonzero()[worst].tolist()
        raise ValueError(
            f"text features have norm 1, and prompt {prompt} of class {label} has norm {float(norms[worst]):.4g}: "
            "divide each feature by its norm"
        )


def text_bank(prompts: list[list[str]], encode: Callable[[list[str]], Tensor]) -> TextBank:
    """Encode every distinct text once and arrange the features class by class.

    Args:
        prompts: Prompts per class; a ``Mean`` becomes one feature.
        encode: Encodes a list of texts to unit-norm features, shape (texts, dim).

    Returns:
        The text bank.
    """
    distinct = list(dict.fromkeys(text for row in prompts for prompt in row for text in members(prompt)))
    position = {text: index for index, text in enumerate(distinct)}
    features = encode(distinct)
    width = max(len(row) for row in prompts)
    padded = torch.zeros(len(prompts), width, features.shape[1])
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, texts in enumerate(prompts):
        padded[row, : len(texts)] = torch.stack([_feature(features[[position[text] for text in members(prompt)]]) for prompt in texts])
        mask[row, : len(texts)] = True
    return TextBank(padded, mask, prompts)


def _feature(features: Float[Tensor, "texts dim"]) -> Float[Tensor, " dim"]:
    """The one feature as it is, or the normalised mean of several."""
    return features[0] if len(features) == 1 else normalize(features.mean(0), dim=-1)
