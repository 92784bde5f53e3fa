"""What a person looks at: the table of a run in the terminal, and pictures of boxes and transport plans."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from multicrop.aggregators import transport_plan
from multicrop.crops.pixels import unmirrored
from multicrop.features import FeatureBank
from multicrop.text import TextBank

matplotlib.use("Agg")
MOST_TICKS = 24  # crop numbers below a heat map
COLOURS = matplotlib.colormaps["tab20"].colors


@dataclass(frozen=True)
class Explanation:
    """One image and how its crops were matched to the descriptions of one class."""

    image: Image.Image
    boxes: Tensor
    plan: Tensor
    prompts: list[str]
    title: str


def explain(bank: FeatureBank, position: int, text: TextBank, class_index: int, title: str, knobs: dict) -> Explanation:
    """The transport plan of one image against one class; `knobs` are those of `transport_plan`, and `text` holds all classes."""
    views, _, index = bank[position]
    _, plan, used = transport_plan(views[None], text, **knobs)
    boxes = bank.boxes(index)
    boxes = boxes[1:] if plan.shape[2] == len(boxes) - 1 else boxes
    count = int(used.mask[class_index].sum())
    return Explanation(bank.images.open(index), boxes, plan[0, class_index, :, :count], used.prompts[class_index], title)


def draw_explanations(explanations: list[Explanation], path: Path) -> None:
    """One row an image: its boxes, each in the colour of the description it was matched to, beside the plan as a heat map."""
    figure = Figure(figsize=(11, 3.4 * len(explanations)), layout="constrained")
    axes = figure.subplots(len(explanations), 2, squeeze=False, width_ratios=[1, 2.2])
    for (picture, heat), item in zip(axes, explanations, strict=True):
        names = [str(crop) for crop in range(len(item.boxes))]
        draw_boxes(picture, item.image, unmirrored(item.boxes), item.plan.argmax(1).tolist(), names)
        picture.set_title(textwrap.fill(item.title, 44, max_lines=4), fontsize=8, parse_math=False)
        shown = draw_matches(heat, item.plan * item.plan.shape[0], item.prompts, names, vmax=1)
        heat.set_title("share of each crop's mass that goes to a description", fontsize=8)
        figure.colorbar(shown, ax=heat, fraction=0.03)
    figure.savefig(path, dpi=110)


def draw_boxes(axis: Axes, image: Image.Image, boxes: Float[Tensor, "views 4"], prompts: list[int], names: list[str]) -> None:
    """The image with its upright boxes, each in the colour of its prompt, and its name in a corner."""
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
    """A heat map, one row a prompt (in its colour) and one column a view; returns it, for a colour bar."""
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
    """The colour (red, green, blue in 0-1) of a prompt and of the boxes that match it."""
    return COLOURS[(2 * prompt) % len(COLOURS)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def chosen_examples(results: dict[str, Tensor], count: int) -> list[int]:
    """Positions in the stream worth a picture: rescued images first, then ones still wrong, spread over the stream."""
    right = results["final"].argmax(1) == results["label"]
    base = results["global"].argmax(1) == results["label"]
    rescued, wrong = (right & ~base).nonzero().squeeze(1), (~right).nonzero().squeeze(1)
    others = torch.arange(len(right))
    n_wrong = min(len(wrong), 1 if count > 1 else 0)
    picked = [*_spread(rescued, count - n_wrong), *_spread(wrong, n_wrong)]
    return list(dict.fromkeys([*picked, *_spread(others, count)]))[:count]


def _spread(positions: Tensor, count: int) -> list[int]:
    if not len(positions) or count < 1:
        return []
    steps = torch.linspace(0, len(positions) - 1, min(count, len(positions))).round().long()
    return positions[steps].tolist()
