"""What a picture or page of an explanation shows of it: the crops that carry each text's mass, and titles that say what differs."""

from collections.abc import Sequence
from dataclasses import dataclass

from multicrop.show.explain.explanation import BOTH, Explanation, Side, Word

MOST_CROPS = 3  # per text
MOST_TEXTS = 8  # per class
LEAST_SHARE = 0.1  # of a text's mass; the first crop is shown whatever its share
LEAST_WORDS = 2  # that names have in common before they are left out


@dataclass(frozen=True)
class Carrier:
    """A view and its share of a text's mass (0-1), or its cosine similarity to the text where there is no transport plan."""

    view: int
    name: str
    value: float


def carriers(item: Explanation, side: Side, text: int) -> list[Carrier]:
    """The views that carry most mass to a text, or are most similar to it; at most ``MOST_CROPS``, largest first."""
    moved = side.plan[:, text]
    values = moved / moved.sum().clamp_min(1e-12) if item.is_plan else side.scores[:, text]
    best: list[int] = values.argsort(descending=True, stable=True)[:MOST_CROPS].tolist()
    kept = [view for place, view in enumerate(best) if place == 0 or not item.is_plan or float(values[view]) >= LEAST_SHARE]
    names = item.crop_names()
    return [Carrier(view, names[view], float(values[view])) for view in kept]


def caption(item: Explanation, carrier: Carrier) -> str:
    """`9: 31 %`, the crop and its share of the text's mass; `9: 0.31`, its similarity, where there is no plan."""
    return f"{carrier.name}: {100 * carrier.value:.0f} %" if item.is_plan else f"{carrier.name}: {carrier.value:.2f}"


def texts_shown(item: Explanation, side: Side) -> list[int]:
    """The texts of a class that a picture shows, in their order: at most ``MOST_TEXTS``, those that add most to the margin."""
    size = {word.text: abs(word.contribution) for word in item.words}
    order = sorted(range(len(side.prompts)), key=lambda text: -size.get(side.prompts[text], 0.0))
    return sorted(order[:MOST_TEXTS])


def views_shown(item: Explanation, side: Side) -> list[int]:
    """The views that carry the texts of a class that are shown; the picture has only their boxes."""
    return sorted({carrier.view for text in texts_shown(item, side) for carrier in carriers(item, side, text)})


def unlike(name: str, other: str) -> str:
    """The name without the words that it begins or ends with as `other` does: `… cat` for `melon and cat` beside `melon and dragon`."""
    own, its = name.split(), other.split()
    if own == its:
        return name
    start = _same(own, its)
    end = _same(own[start:][::-1], its[start:][::-1])
    start, end = (count if count >= LEAST_WORDS else 0 for count in (start, end))
    kept = own[start : len(own) - end]
    return " ".join(["…"] * (start > 0) + kept + ["…"] * (end > 0)) if kept else name


def _same(own: Sequence[str], its: Sequence[str]) -> int:
    """How many words both begin with."""
    pairs = enumerate(zip(own, its, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(own), len(its)))


def title(item: Explanation) -> list[str]:
    """Two or three lines: the prediction and whether it is right, the classes that it was decided against, and the text that decided."""
    name = item.predicted.name
    lines = [f"{name}: {verdict(item)}", against(item)]
    decided = deciding(item)
    return [*lines, decided] if decided else lines


def verdict(item: Explanation) -> str:
    """`right`, or `wrong, it is … dragon`; the probability where the true class is not known."""
    if item.label is None:
        return f"{100 * item.probability:.0f} %"
    return "right" if item.label == item.predicted.name else f"wrong, it is {unlike(item.label, item.predicted.name)}"


def against(item: Explanation) -> str:
    """The prediction of the global view and the runner-up, by what differs from the predicted class."""
    name = item.predicted.name
    whole = "the same" if item.global_name == name else unlike(item.global_name, name)
    second = f"; runner-up: {unlike(item.runner_up.name, name)}" if len(item.sides) > 1 else ""
    return f"global view: {whole}{second}"


def deciding(item: Explanation) -> str:
    """The text that adds most to the margin over the runner-up; empty where there is one class, or no plan that splits the margin."""
    word = max(item.words, key=lambda word: word.contribution, default=None)
    if word is None or not item.is_plan:
        return ""
    return f"decided by “{word.text}” ({_owner(item, word)}): {word.contribution:+.2f} of the margin of {item.margin:.2f}"


def apart(item: Explanation) -> tuple[str, str]:
    """Predicted class and runner-up, each by what differs from the other."""
    first, second = item.predicted.name, item.runner_up.name
    return unlike(first, second), unlike(second, first)


def described(item: Explanation, word: Word) -> str:
    """The class that a text describes, by what differs from the other of the two classes."""
    if word.side == BOTH:
        return "both classes"
    return apart(item)[0 if word.side == item.predicted.name else 1]


def _owner(item: Explanation, word: Word) -> str:
    return described(item, word) + (", matched less" if word.side not in (BOTH, item.predicted.name) else "")
