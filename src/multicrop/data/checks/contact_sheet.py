"""The contact sheet: a few pictures of each class under its name, as one image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from multicrop.data.checks.check import CELL

GAP, LINE, COLUMNS = 6, 16, 4  # pixels, pixels, classes side by side
INK, PAPER, FRAME = (20, 20, 20), (255, 255, 255), (205, 205, 205)


def contact_sheet(class_names: Sequence[str], pictures: dict[int, list[Image.Image]], *, per_class: int, max_classes: int) -> Image.Image:
    """At most `max_classes` classes, evenly spaced in the list, with `per_class` pictures each; missing pictures are empty frames."""
    count = min(max_classes, len(class_names))
    labels = sorted({round(i * (len(class_names) - 1) / max(1, count - 1)) for i in range(count)})
    width, height = per_class * (CELL + GAP) + 2 * GAP, CELL + LINE + 2 * GAP
    rows = -(-len(labels) // COLUMNS)
    sheet = Image.new("RGB", (min(COLUMNS, len(labels)) * width + GAP, rows * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for position, label in enumerate(labels):
        left, top = GAP + position % COLUMNS * width, GAP + position // COLUMNS * height
        draw.text((left, top), _fitting(f"{label} {class_names[label]}", draw, font, width - 2 * GAP), fill=INK, font=font)
        for number in range(per_class):
            x, y = left + number * (CELL + GAP), top + LINE
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=FRAME)
            if number < len(pictures.get(label, [])):
                small = pictures[label][number]
                sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
    return sheet


def _fitting(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut where it is too long."""
    while len(text) > 4 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip() + "…" if not text.endswith("…") else text[:-3].rstrip() + "…"
    return text
