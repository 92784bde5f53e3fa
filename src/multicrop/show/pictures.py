"""The picture of a run's explanations (explanations.png): the crops that carried each text's mass, beside the image with their boxes."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multicrop.files import save_figure
from multicrop.record import Predictions
from multicrop.show.examples import spread
from multicrop.show.explain.carriers import title, views_shown
from multicrop.show.explain.explanation import Explanation
from multicrop.show.explain.scored import ScoredImages
from multicrop.show.explain.sheet import GAP, WIDTH, Sheet, draw_boxes, draw_side, heat_note, side_height

PICTURE = 2.9  # inches of the side of an image
MARGIN, BAR, LINE = 0.15, 0.12, 0.17  # inches: around the figure, of the colour bar, of a line of text
LINE_WIDTH = 150  # characters of a title


def draw_chosen(run: ScoredImages, *, count: int, path: Path) -> Path | None:
    """Draw the explanations of at most `count` images of a run; returns the path, or None where there is no plan or no image."""
    if not run.scorer.aggregator.has_plan:
        return None
    explanations = [run.explain(position) for position in chosen_examples(run.predictions, count)]
    if not explanations:
        return None
    draw_explanations(explanations, path)
    return path


def draw_explanations(explanations: Sequence[Explanation], path: Path) -> None:
    """Write one block per image: its title, its boxes, and for each text of the predicted class the crops that carry its mass."""
    titles = [[line for text in title(item) for line in textwrap.wrap(text, LINE_WIDTH)] for item in explanations]
    heads = [LINE * len(lines) + 0.12 for lines in titles]
    bodies = [max(PICTURE, side_height(item, item.predicted)) for item in explanations]
    total = 2 * MARGIN + LINE + sum(heads) + sum(bodies) + 0.2 * (len(heads) - 1)
    sheet = Sheet(2 * MARGIN + PICTURE + GAP + WIDTH + GAP + BAR + 0.3, total)
    left, top = MARGIN + PICTURE + GAP, MARGIN + LINE
    for item, lines, head, body in zip(explanations, titles, heads, bodies, strict=True):
        sheet.write(lines[0], MARGIN, top, bold=True)
        sheet.write("\n".join(lines[1:]), MARGIN, top + LINE)
        draw_boxes(sheet.axes(MARGIN, top + head, PICTURE, PICTURE), item, views_shown(item, item.predicted))
        shown = draw_side(sheet, item, item.predicted, left, top + head)
        if item is explanations[0]:
            bar = sheet.axes(left + WIDTH + GAP / 2, top + head, BAR, side_height(item, item.predicted) - 0.45)
            sheet.figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=7)
        top += head + body + 0.2
    sheet.write("the crops that carried each text, with their share of its mass", left, MARGIN, size=7.5)
    sheet.write(heat_note(explanations[0]), left + WIDTH - 3.6, MARGIN, size=7.5)
    save_figure(sheet.figure, path, dpi=110)


def chosen_examples(predictions: Predictions, count: int) -> list[int]:
    """Positions of at most `count` images to draw: rescued ones, one wrong one where count > 1, then any, each spread over the stream.

    True and predicted classes differ between the images as far as there are so many.
    """
    right, base = predictions.correct("final"), predictions.correct("global")
    rescued, wrong = np.flatnonzero(right & ~base).tolist(), np.flatnonzero(~right).tolist()
    classes = [{*pair} for pair in zip(predictions.label.tolist(), predictions.rows["final"].tolist(), strict=True)]
    n_wrong = min(len(wrong), 1 if count > 1 else 0)
    picked: list[int] = []
    for positions, most in ((rescued, count - n_wrong), (wrong, n_wrong), (range(len(right)), count)):
        picked += spread_over_classes(positions, classes, min(most, count - len(picked)), picked)
    return picked


def spread_over_classes(positions: Sequence[int], classes: Sequence[set[int]], count: int, before: Sequence[int]) -> list[int]:
    """`count` of the positions, evenly spaced: of classes that none of `before` has, one image per class; then of the others."""
    seen = {one for position in before for one in classes[position]}
    first: list[int] = []
    for position in positions:
        if not classes[position] & seen:
            first.append(position)
            seen |= classes[position]
    picked = spread(first, count)
    others = [position for position in positions if position not in picked and position not in before]
    return [*picked, *spread(others, count - len(picked))]
