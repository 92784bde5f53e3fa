"""The parts of a drawn explanation, placed in inches: the image with boxes, the crops of each text, the plan as a heat map."""

import textwrap

from jaxtyping import Float
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from multicrop.show.explain.carriers import MOST_CROPS, caption, carriers, texts_shown
from multicrop.show.explain.explanation import Explanation, Side

CELL = 0.86  # inches of the square that holds a crop and its caption
LABEL, HEAT, GAP = 1.75, 3.6, 0.25  # inches
WIDTH = LABEL + MOST_CROPS * CELL + GAP + HEAT  # of the texts of one class
MOST_TICKS = 24  # crop numbers below a heat map
LONGEST_SIDE = 600  # pixels of a drawn image: more are not seen
COLOURS = color_sequences["tab20"]


class Sheet:
    """A figure whose axes are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height))
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """New axes of this size."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def write(self, text: str, left: float, top: float, *, size: float = 8.5, bold: bool = False) -> None:
        """Write text, whose characters are no markup, below and right of a place."""
        weight = "bold" if bold else "normal"
        place = left / self.width, 1 - top / self.height
        self.figure.text(*place, text, fontsize=size, fontweight=weight, va="top", linespacing=1.35, parse_math=False)


def colour(text: int) -> tuple[float, float, float]:
    """The colour (red, green, blue in 0-1) of a text and of the boxes matched to it."""
    return to_rgb(COLOURS[(2 * text) % len(COLOURS)])


def side_height(item: Explanation, side: Side) -> float:
    """Inches that `draw_side` takes, with the numbers of the crops below."""
    return CELL * len(texts_shown(item, side)) + 0.45


def draw_boxes(axis: Axes, item: Explanation, views: list[int]) -> None:
    """Draw the image with the upright boxes of these views, each in the colour of its text, with its name in a corner."""
    image, texts, names = _image(item), item.best_texts(), item.crop_names()
    width, height = item.open_image().size
    axis.imshow(image, extent=(0, width, height, 0))
    axis.axis("off")
    axis.set_anchor("NW")
    for view in views:
        left, top, right, bottom = item.boxes[view].tolist()
        ink = colour(texts[view])
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ink, linewidth=1.6))
        axis.text(left, top, names[view], color="white", fontsize=7, va="top", bbox={"facecolor": ink, "pad": 1.2, "linewidth": 0})


def draw_side(sheet: Sheet, item: Explanation, side: Side, left: float, top: float) -> AxesImage:
    """Draw one row per text: its words, the crops that carry its mass, and its row of the heat map, which is returned for a colour bar."""
    texts = texts_shown(item, side)
    height = CELL * len(texts)
    _draw_crops(sheet.axes(left + LABEL, top, MOST_CROPS * CELL, height), item, side, texts)
    values = (side.mass * len(side.mass) if item.is_plan else side.scores)[:, texts]
    lowest = 0.0 if item.is_plan else min(float(one.scores.min()) for one in item.sides)
    highest = 1.0 if item.is_plan else max(float(one.scores.max()) for one in item.sides)
    heat = sheet.axes(left + LABEL + MOST_CROPS * CELL + GAP, top, HEAT, height)
    return _draw_matches(heat, values, item.crop_names(), lowest, highest)


def heat_note(item: Explanation) -> str:
    """What the heat map shows."""
    return "mass from crop to text (1: all that an average crop has)" if item.is_plan else "cosine similarity of crop and text"


def _draw_crops(axis: Axes, item: Explanation, side: Side, texts: list[int]) -> None:
    image = _image(item)
    scale = image.width / item.open_image().width
    for row, text in enumerate(texts):
        words = textwrap.fill(side.prompts[text], 24, max_lines=4, placeholder=" …")
        axis.text(-0.12, row + 0.36, words, color=colour(text), fontsize=8, ha="right", va="center", parse_math=False)
        for column, carrier in enumerate(carriers(item, side, text)):
            box = (item.boxes[carrier.view] * scale).round().int().tolist()
            _draw_crop(axis, image.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1))), column, row, text)
            axis.text(column + 0.5, row + 0.74, caption(item, carrier), fontsize=7, ha="center", va="top")
    axis.set(xlim=(0, MOST_CROPS), ylim=(len(texts), 0), aspect="auto")
    axis.axis("off")


def _draw_crop(axis: Axes, crop: Image.Image, column: int, row: int, text: int) -> None:
    """Draw a crop, framed in the colour of its text, into 0.9 x 0.7 of its cell."""
    scale = min(0.9 / crop.width, 0.7 / crop.height)
    width, height = crop.width * scale, crop.height * scale
    left, top = column + 0.5 - width / 2, row + 0.37 - height / 2
    axis.imshow(crop, extent=(left, left + width, top + height, top))
    axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour(text), linewidth=1.6))


def _draw_matches(axis: Axes, values: Float[Tensor, "views texts"], names: list[str], lowest: float, highest: float) -> AxesImage:
    shown = axis.imshow(values.T.numpy(), aspect="auto", cmap="magma", vmin=lowest, vmax=highest)
    step = max(1, -(-len(names) // MOST_TICKS))
    axis.set_xticks(range(0, len(names), step), names[::step])
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("crop", fontsize=7.5, labelpad=1)
    return shown


def _image(item: Explanation) -> Image.Image:
    image = item.open_image().convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image
