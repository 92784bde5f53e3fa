"""The explanation of one image as a PNG: its boxes, the crops of each text of both classes, and what each text adds to the margin."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes

from multicrop.files import save_figure
from multicrop.show.explain.carriers import apart, described, title, views_shown
from multicrop.show.explain.explanation import Explanation, Word
from multicrop.show.explain.sheet import GAP, WIDTH, Sheet, draw_boxes, draw_side, heat_note, side_height

MOST_WORDS = 12
PICTURE = 4.2  # inches of the side of the image
MARGIN, BAR, LINE, WORD = 0.2, 0.12, 0.17, 0.24  # inches: around the figure, of the colour bar, of a line of text, of a word's bar
FOR, AGAINST = "#2a7f62", "#b3365b"


def draw_explanation(item: Explanation, path: Path) -> None:
    """Write the picture. Class names and prompts are drawn literally: no character is markup."""
    names = apart(item)
    sides = ((item.predicted, f"predicted: {names[0]}"), (item.runner_up, f"runner-up: {names[1]}"))
    listed, lines = item.words[:MOST_WORDS], [line for text in title(item) for line in textwrap.wrap(text, 160)]
    head, bars = MARGIN + LINE * (len(lines) + 1), WORD * len(listed) + 0.4
    body = max(PICTURE, sum(side_height(item, side) + 0.3 for side, _ in sides))
    sheet = Sheet(2 * MARGIN + PICTURE + GAP + WIDTH + GAP + BAR + 0.3, head + body + 0.35 + bars + MARGIN)
    left, top = MARGIN + PICTURE + GAP, head
    sheet.write(f"{item.name}: {lines[0]}", MARGIN, MARGIN, bold=True)
    sheet.write("\n".join(lines[1:]), MARGIN, MARGIN + LINE)
    draw_boxes(sheet.axes(MARGIN, head, PICTURE, PICTURE), item, views_shown(item, item.predicted))
    for side, role in sides:
        sheet.write(textwrap.shorten(f"{role}, logit {side.logit:.2f}", 52, placeholder=" …"), left, top, bold=True)
        shown = draw_side(sheet, item, side, left, top + 0.25)
        if side is item.predicted:
            bar = sheet.axes(left + WIDTH + GAP / 2, top + 0.25, BAR, side_height(item, side) - 0.45)
            sheet.figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=7)
            sheet.write(heat_note(item), left + WIDTH - 3.6, top + 0.05, size=7.5)
        top += side_height(item, side) + 0.3
    _draw_words(sheet, listed, item, head + body + 0.35)
    save_figure(sheet.figure, path, dpi=110)


def headline(item: Explanation) -> str:
    """The prediction, its probability, the true class where it is known, and the prediction of the global view."""
    said = "as the global view" if item.global_name == item.predicted.name else f"global view: {item.global_name}"
    known = "" if item.label is None else "right; " if item.label == item.predicted.name else f"wrong, it is {item.label}; "
    return f"{item.name}: {item.predicted.name} ({known}{100 * item.probability:.0f} %; {said})"


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


def _draw_words(sheet: Sheet, listed: list[Word], item: Explanation, top: float) -> None:
    """Draw what each text adds as bars right and left of zero."""
    sheet.write(textwrap.shorten(f"{words_title(item)}: right of 0 favours {apart(item)[0]}", 170, placeholder=" …"), MARGIN, top - 0.3)
    values = [word.contribution for word in listed]
    axis: Axes = sheet.axes(MARGIN + PICTURE, top, GAP + WIDTH, WORD * len(listed))
    axis.barh(range(len(listed)), values, color=[FOR if value >= 0 else AGAINST for value in values])
    labels = [textwrap.shorten(f"{word.text}  ({described(item, word)})", 62, placeholder=" …") for word in listed]
    axis.set_yticks(range(len(listed)), labels, fontsize=8, parse_math=False)
    axis.set_ylim(len(listed) - 0.5, -0.5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.tick_params(axis="x", labelsize=8)
