"""The explanation of one image as one HTML file that holds all its parts; all text is escaped, and the page uses no network."""

import base64
import io
from html import escape
from pathlib import Path

from matplotlib.colors import to_hex
from PIL import Image

from multicrop.files import write_text
from multicrop.show.explain.carriers import caption, carriers, deciding, views_shown
from multicrop.show.explain.explanation import Explanation, Side
from multicrop.show.explain.picture import headline, matrix_title, words_note, words_title
from multicrop.show.explain.sheet import colour

LONGEST_SIDE = 900  # pixels of the picture inside the page
CROP_SIDE = 64  # pixels of the longer side of a crop beside its text
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { --back: #fff; --text: #1c1c22; --soft: #55555f; --minus: #b3365b; --plus: #2a7f62 }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --text: #e6e8ee; --soft: #a3a9b6; --minus: #e0688c; --plus: #4fb391 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 1rem auto }
body { max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.25rem; overflow-wrap: anywhere } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere }
p { margin: .3rem 0 .7rem; color: var(--soft) }
.top { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
.whole { width: min(28rem, 100%); height: auto; flex: none } .sides { flex: 1 1 22rem; min-width: 0 } .scroll { overflow-x: auto }
rect { fill: transparent; stroke-width: 2; vector-effect: non-scaling-stroke }
svg.active rect:not(.on) { opacity: .12 }
rect.weak, svg.active rect.weak:not(.on) { opacity: 0 } rect.on { stroke-width: 4; opacity: 1 }
.crops { display: flex; gap: .4rem } .crops figure { margin: 0; text-align: center }
figcaption { font-size: .75rem; white-space: nowrap }
table { border-collapse: collapse; font-size: .85rem } th, td { padding: .15rem .35rem; text-align: right }
th.text { text-align: left; font-weight: 500; min-width: 7rem; max-width: 17rem; overflow-wrap: anywhere }
td.cell { min-width: 1.7rem; font-variant-numeric: tabular-nums }
td.on, th.on, figure.on { outline: 2px solid var(--text) } .key { display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem }
.bars { width: 100% }
.bars th { font-weight: 500; text-align: left } .bars th.left { text-align: right } .bars td { text-align: left } .bars .half { width: 22% }
.bar { height: .8rem } .minus { background: var(--minus); margin-left: auto } .plus { background: var(--plus) }
"""
SCRIPT = """
const svg = document.querySelector('.whole');
function light(view) {
  svg.classList.toggle('active', view !== undefined);
  document.querySelectorAll('[data-view]').forEach(e => e.classList.toggle('on', e.dataset.view === view));
}
document.addEventListener('mouseover', e => light(e.target.closest('[data-view]')?.dataset.view));
"""


def page(item: Explanation) -> str:
    """The HTML. Pointing at a box highlights its column in both matrices, pointing at a column its box."""
    sides = "".join(_matrix(item, side, role) for side, role in ((item.predicted, "predicted"), (item.runner_up, "runner-up")))
    title, decided = escape(headline(item)), escape(deciding(item))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style></head><body>'
        f'<h1>{title}</h1><p>{decided}</p><div class="top">{_boxes(item)}<div class="sides">{sides}</div></div>'
        f"{_words(item)}<script>{SCRIPT}</script></body></html>\n"
    )


def write_page(item: Explanation, path: Path) -> None:
    """Write the page."""
    write_text(path, page(item))


def _boxes(item: Explanation) -> str:
    """The image with the boxes of the crops that carry the texts, in the colours of the texts; other boxes are seen when pointed at."""
    image = item.open_image()
    width, height = image.size
    strong, names = views_shown(item, item.predicted), item.crop_names()
    frames = ""
    for view, (text, (left, top, right, bottom)) in enumerate(zip(item.best_texts(), item.boxes.tolist(), strict=True)):
        weak = "" if view in strong else ' class="weak"'
        place = f'x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" height="{bottom - top:.0f}"'
        title = f"{_named(names[view])}: {escape(item.predicted.prompts[text])}"
        frames += f'<rect data-view="{view}"{weak} {place} stroke="{to_hex(colour(text))}"><title>{title}</title></rect>'
    return (
        f'<svg class="whole" viewBox="0 0 {width} {height}" role="img" aria-label="the image and its crops">'
        f'<image id="photo" href="{_data_uri(image)}" width="{width}" height="{height}"/>{frames}</svg>'
    )


def _named(view: str) -> str:
    return "global view" if view == "all" else f"crop {view}"


def _data_uri(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    small.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _matrix(item: Explanation, side: Side, role: str) -> str:
    """The matrix of one class: one row per text with the crops that carry its mass, one column per view."""
    values = side.mass * len(side.mass) if item.is_plan else side.scores
    low, high = (0.0, 1.0) if item.is_plan else (float(values.min()), float(values.max()))
    head = "".join(f'<th data-view="{view}">{name}</th>' for view, name in enumerate(item.crop_names()))
    rows, carried = "", "carried by" if item.is_plan else "most similar"
    for text, prompt in enumerate(side.prompts):
        cells = "".join(_cell(view, value, low, high) for view, value in enumerate(values[:, text].tolist()))
        key = f'<span class="key" style="background:{to_hex(colour(text))}"></span>'
        rows += f'<tr><th class="text">{key}{escape(prompt)}</th><td>{_crops(item, side, text)}</td>{cells}</tr>'
    return (
        f"<h2>{role}: {escape(side.name)}, logit {side.logit:.2f}</h2><p>{escape(matrix_title(item))}</p>"
        f'<div class="scroll"><table><tr><th class="text">text \\ crop</th><th>{carried}</th>{head}</tr>{rows}</table></div>'
    )


def _crops(item: Explanation, side: Side, text: int) -> str:
    """The crops that carry a text, each cut from the one picture of the page, with their shares."""
    shown = ""
    for carrier in carriers(item, side, text):
        left, top, right, bottom = item.boxes[carrier.view].tolist()
        width, height = max(right - left, 1.0), max(bottom - top, 1.0)
        scale = CROP_SIDE / max(width, height)
        box = f'viewBox="{left:.0f} {top:.0f} {width:.0f} {height:.0f}" width="{scale * width:.0f}" height="{scale * height:.0f}"'
        picture = f'<svg {box} role="img" aria-label="{_named(carrier.name)}"><use href="#photo"/></svg>'
        shown += f'<figure data-view="{carrier.view}">{picture}<figcaption>{caption(item, carrier)}</figcaption></figure>'
    return f'<div class="crops">{shown}</div>'


def _cell(view: int, value: float, low: float, high: float) -> str:
    share = min(max((value - low) / max(high - low, 1e-9), 0.0), 1.0)
    ink = ";color:#fff" if share > 0.6 else ""
    return f'<td class="cell" data-view="{view}" style="background:rgba(112,72,190,{share:.2f}){ink}">{value:.2f}</td>'


def _words(item: Explanation) -> str:
    """All texts, largest contribution first, as bars left and right of zero."""
    longest = max((abs(word.contribution) for word in item.words), default=0.0) or 1.0
    rows = ""
    for word in item.words:
        bar = f'<div class="bar {{}}" style="width:{100 * abs(word.contribution) / longest:.0f}%"></div>'
        minus, plus = (bar.format("minus"), "") if word.contribution < 0 else ("", bar.format("plus"))
        rows += (
            f'<tr><th class="text">{escape(word.text)}</th><th class="text">{escape(word.side)}</th><td>{word.contribution:+.2f}</td>'
            f'<td class="half">{minus}</td><td class="half">{plus}</td></tr>'
        )
    head = f'<tr><th class="text">text</th><th class="text">class</th><th></th><th class="left">for {escape(item.runner_up.name)}</th>'
    return (
        f"<h2>What each text adds</h2><p>{escape(words_title(item))}. {escape(words_note(item))}</p>"
        f'<table class="bars">{head}<th>for {escape(item.predicted.name)}</th></tr>{rows}</table>'
    )
