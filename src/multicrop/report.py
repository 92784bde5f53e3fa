"""What a person looks at: the table of a run in the terminal, and pictures of boxes and transport plans."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.table import Table
from torch import Tensor

from multicrop.aggregators import transport_plan
from multicrop.bank import ImageBank
from multicrop.prompts import TextBank
from multicrop.views import unmirrored

matplotlib.use("Agg")
COLOURS = matplotlib.colormaps["tab20"].colors


def results_table(title: str, rows: dict[str, dict[str, float]], labels: dict[str, str], seconds: dict[str, float]) -> Table:
    """A rich table: accuracy, paired difference to the global view with its 95 % interval, rescued and lost images, scoring time."""
    table = Table(title=title, title_justify="left")
    for column in ("", "top-1", r"vs global \[95 %]", "rescued/lost", "seconds"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for row, label in labels.items():
        values = rows[row]
        interval = f"{100 * values['difference']:+.1f} \\[{100 * values['low']:+.1f}, {100 * values['high']:+.1f}]"
        compared = ("", "") if row == "global" else (interval, f"{values['rescued']}/{values['lost']}")
        table.add_row(label, f"{100 * values['accuracy']:.1f}", *compared, f"{seconds[row]:.2f}")
    return table


@dataclass(frozen=True)
class Explanation:
    """One image and how its crops were matched to the descriptions of one class."""

    image: Image.Image
    boxes: Tensor
    plan: Tensor
    prompts: list[str]
    title: str


def explain(bank: ImageBank, position: int, text: TextBank, class_index: int, title: str, knobs: dict) -> Explanation:
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
        share = item.plan.sum(1, keepdim=True).clamp_min(1e-12)
        best = (item.plan / share).argmax(1)
        picture.imshow(item.image)
        picture.set_title(textwrap.fill(item.title, 44, max_lines=4), fontsize=8)
        picture.axis("off")
        for crop, (left, top, right, bottom) in enumerate(unmirrored(item.boxes).tolist()):
            colour = COLOURS[(2 * int(best[crop])) % len(COLOURS)]
            frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6)
            picture.add_patch(frame)
            picture.text(left + 2, top + 2, str(crop), color=colour, fontsize=7, va="top")
        shown = heat.imshow(item.plan.T.numpy() * item.plan.shape[0], aspect="auto", cmap="magma", vmin=0, vmax=1)
        heat.set_yticks(range(len(item.prompts)), [_short(text, 34) for text in item.prompts], fontsize=8)
        for description, tick in enumerate(heat.get_yticklabels()):
            tick.set_color(COLOURS[(2 * description) % len(COLOURS)])
        heat.set_xticks(range(item.plan.shape[0]))
        heat.tick_params(axis="x", labelsize=7)
        heat.set_xlabel("crop", fontsize=8)
        heat.set_title("share of each crop's mass that goes to a description", fontsize=8)
        figure.colorbar(shown, ax=heat, fraction=0.03)
    figure.savefig(path, dpi=110)


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
