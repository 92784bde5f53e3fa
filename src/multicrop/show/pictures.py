"""The picture of the boxes and transport plans of a run (explanations.png)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from multicrop.files import save_figure
from multicrop.show.examples import correct, spread
from multicrop.show.explain.explanation import Explanation
from multicrop.show.explain.scored import ScoredImages

matplotlib.use("Agg")
MOST_TICKS = 24  # crop numbers below a heat map
COLOURS = matplotlib.color_sequences["tab20"]


def draw_chosen(run: ScoredImages, *, count: int, path: Path) -> Path | None:
    """Draw the explanations of at most `count` images of a run; returns the path, or None where there is no plan or no image."""
    if not run.scorer.aggregator.has_plan:
        return None
    explanations = [run.explain(position) for position in chosen_examples(run.scores, count)]
    if not explanations:
        return None
    draw_explanations(explanations, path)
    return path


def draw_explanations(explanations: Sequence[Explanation], path: Path) -> None:
    """Write one row per image: its boxes, each in the colour of the text that most of its mass goes to, beside the plan as a heat map."""
    figure = Figure(figsize=(11, 3.4 * len(explanations)), layout="constrained")
    axes = figure.subplots(len(explanations), 2, squeeze=False, width_ratios=[1, 2.2])
    for (picture, heat), item in zip(axes, explanations, strict=True):
        side, names = item.predicted, item.crop_names()
        draw_boxes(picture, item.open_image(), item.boxes, item.best_texts(), names)
        picture.set_title(textwrap.fill(outcome(item), 44, max_lines=4), fontsize=8, parse_math=False)
        shown = draw_matches(heat, side.plan * len(side.plan), side.prompts, names, vmax=1)
        heat.set_title("mass that goes from each crop to each text (1: all that an average crop has)", fontsize=8)
        figure.colorbar(shown, ax=heat, fraction=0.03)
    save_figure(figure, path, dpi=110)


def outcome(item: Explanation) -> str:
    """Whether the prediction is right, and what the global view predicts where it differs."""
    name = item.predicted.name
    said = f"{name}: right" if name == item.label else f"{name}: wrong, it is {item.label}"
    return said if item.global_name == name else f"{said} (global view: {item.global_name})"


def draw_boxes(axis: Axes, image: Image.Image, boxes: Float[Tensor, "views 4"], prompts: list[int], names: list[str]) -> None:
    """Draw the image with its upright boxes, each in the colour of its prompt, with its name in a corner."""
    axis.imshow(image)
    axis.axis("off")
    for best, name, (left, top, right, bottom) in zip(prompts, names, boxes.tolist(), strict=True):
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour(best), linewidth=1.6))
        axis.text(left + 2, top + 2, name, color="white", fontsize=6, va="top", bbox={"facecolor": colour(best), "pad": 1, "linewidth": 0})


def draw_matches(
    axis: Axes,
    values: Float[Tensor, "views prompts"],
    prompts: list[str],
    names: list[str],
    *,
    vmin: float | int = 0,
    vmax: float | int | None = None,
) -> AxesImage:
    """Draw a heat map, one row per prompt (in its colour) and one column per view; returns it for a colour bar."""
    shown = axis.imshow(values.T.numpy(), aspect="auto", cmap="magma", vmin=vmin, vmax=vmax)
    axis.set_yticks(range(len(prompts)), [_short(text, 34) for text in prompts], fontsize=8, parse_math=False)
    for description, tick in enumerate(axis.get_yticklabels()):
        tick.set_color(colour(description))
    step = max(1, -(-len(names) // MOST_TICKS))
    axis.set_xticks(range(0, len(names), step), names[::step])
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("crop", fontsize=8)
    return shown


def colour(prompt: int) -> tuple[float, float, float]:
    """The colour (red, green, blue in 0-1) of a prompt and of the boxes matched to it."""
    return to_rgb(COLOURS[(2 * prompt) % len(COLOURS)])


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def chosen_examples(scores: Mapping[str, Tensor], count: int) -> list[int]:
    """Positions of at most `count` images to draw: rescued ones, one wrong one where count > 1, then any, each spread over the stream."""
    right, base = correct(scores, "final"), correct(scores, "global")
    rescued, wrong = ((right & ~base).nonzero().squeeze(1).tolist(), (~right).nonzero().squeeze(1).tolist())
    n_wrong = min(len(wrong), 1 if count > 1 else 0)
    picked = [*spread(rescued, count - n_wrong), *spread(wrong, n_wrong), *spread(range(len(right)), count)]
    return list(dict.fromkeys(picked))[:count]
