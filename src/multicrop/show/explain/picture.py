"""The explanation of one image as a PNG: its boxes, the two plans, and what each text adds to the margin."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.files import save_figure
from multicrop.show.explain.explanation import Explanation, Side, Word
from multicrop.show.pictures import draw_boxes, draw_matches

MOST_WORDS = 12
MOST_BOXES = 16
FOR, AGAINST = "#2a7f62", "#b3365b"


def draw_explanation(item: Explanation, path: Path) -> None:
    """Write the picture. Class names and prompts are drawn literally: no character is markup."""
    rows = max(len(item.predicted.prompts), len(item.runner_up.prompts))
    listed = item.words[:MOST_WORDS]
    heights = [max(3.6, 0.6 + 0.24 * rows), 0.8 + 0.24 * len(listed)]
    figure = Figure(figsize=(16, sum(heights)), layout="constrained")
    top, bottom = figure.add_gridspec(2, 1, height_ratios=heights)
    picture, first, second = (figure.add_subplot(cell) for cell in top.subgridspec(1, 3, width_ratios=[1, 1.3, 1.3]))
    shown, names, texts = item.prominent(MOST_BOXES), item.crop_names(), item.best_texts()
    draw_boxes(picture, item.open_image(), item.boxes[shown], [texts[view] for view in shown], [names[view] for view in shown])
    picture.set_title(_wrapped(headline(item), 40), fontsize=9, parse_math=False)
    for axis, side, role in ((first, item.predicted, "predicted"), (second, item.runner_up, "runner-up")):
        _draw_side(axis, item, side, role)
    _draw_words(figure.add_subplot(bottom), listed, item)
    save_figure(figure, path, dpi=110)


def headline(item: Explanation) -> str:
    """The prediction, its probability, and the prediction of the global view."""
    said = "as the global view" if item.global_name == item.predicted.name else f"global view: {item.global_name}"
    return f"{item.name}: {item.predicted.name} ({100 * item.probability:.0f} %; {said})"


def matrix_title(item: Explanation) -> str:
    """What the two matrices show."""
    if item.is_plan:
        return "mass that goes from each crop to each text (1: all that an average crop has)"
    return "cosine similarity of each view to each text (this aggregator has no transport plan)"


def words_title(item: Explanation) -> str:
    """What the list of words shows."""
    if item.is_plan:
        return f"what each text adds to the margin of {item.margin:.2f} between the two classes, in logits"
    return "mean similarity of each text above the two classes' mean, in logits (this aggregator has no plan to split its margin by)"


def words_note(item: Explanation) -> str:
    """How to read the list of words."""
    return (
        f"Above 0 favours {item.predicted.name}, below 0 {item.runner_up.name}. A text of the predicted class is above 0 where it "
        "is matched better than the two classes are on average, a text of the runner-up where it is matched worse."
    )


def _draw_side(axis: Axes, item: Explanation, side: Side, role: str) -> None:
    values = side.mass * len(side.mass) if item.is_plan else side.scores
    low, high = (0, 1) if item.is_plan else (min(float(s.scores.min()) for s in (item.predicted, item.runner_up)), None)
    shown = draw_matches(axis, values, side.prompts, item.crop_names(), vmin=low, vmax=high)
    axis.set_title(_wrapped(f"{role}: {side.name}, logit {side.logit:.2f}\n{matrix_title(item)}", 66), fontsize=8, parse_math=False)
    axis.figure.colorbar(shown, ax=axis, fraction=0.03)


def _draw_words(axis: Axes, listed: list[Word], item: Explanation) -> None:
    values = [word.contribution for word in listed]
    axis.barh(range(len(listed)), values, color=[FOR if value >= 0 else AGAINST for value in values])
    labels = [textwrap.shorten(f"{word.text}  ({word.side})", 90, placeholder=" …") for word in listed]
    axis.set_yticks(range(len(listed)), labels, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_title(_wrapped(f"{words_title(item)}: right of 0 favours {item.predicted.name}", 150), fontsize=9, parse_math=False)
    axis.tick_params(axis="x", labelsize=8)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width, max_lines=3) for line in text.splitlines())
