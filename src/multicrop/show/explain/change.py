"""How probabilities of classes change between two configurations, as HTML with bars; all text is escaped."""

from collections.abc import Sequence
from html import escape

from jaxtyping import Float
from torch import Tensor

MOST_CLASSES = 4
STYLE = (
    "<style>"
    ".change { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }"
    ".change th, .change td { padding: .1rem .5rem; text-align: right; white-space: nowrap }"
    ".change th { font-weight: 500; opacity: .7 }"
    ".change .name { text-align: left; white-space: normal; overflow-wrap: anywhere; opacity: 1 }"
    ".change .bars { width: 25% } .change .bars div { height: .45rem; min-width: 1px; border-radius: 2px }"
    ".change .before { background: #8a8f9c; margin-bottom: 2px } .change .now { background: #7048be }"
    "</style>"
)


def headline(class_names: Sequence[str], before: Float[Tensor, " classes"], now: Float[Tensor, " classes"]) -> str:
    """The predicted class and its probability, with those as configured."""
    first, second = int(now.argmax()), int(before.argmax())
    said = f"{class_names[first]}, {100 * float(now[first]):.0f} %"
    if first == second:
        return f"{said} (as configured: {100 * float(before[first]):.0f} %)"
    return f"{said} (as configured: {class_names[second]}, {100 * float(before[second]):.0f} %)"


def change_table(class_names: Sequence[str], before: Float[Tensor, " classes"], now: Float[Tensor, " classes"]) -> str:
    """The HTML table of the most probable classes of either configuration.

    Args:
        class_names: Names of the classes.
        before: Probabilities as configured.
        now: Probabilities with the changes.

    Returns:
        One row per class: both probabilities as numbers and bars, and their difference in points.
    """
    most = before.maximum(now)
    order: list[int] = most.argsort(descending=True, stable=True)[:MOST_CLASSES].tolist()
    rows = "".join(_row(class_names[c], float(before[c]), float(now[c])) for c in sorted(order, key=lambda c: -float(now[c])))
    head = '<tr><th class="name">class</th><th class="bars"></th><th>as configured</th><th>now</th><th>change</th></tr>'
    return f'{STYLE}<table class="change">{head}{rows}</table>'


def _row(name: str, before: float, now: float) -> str:
    bars = "".join(f'<div class="{role}" style="width:{100 * value:.1f}%"></div>' for role, value in (("before", before), ("now", now)))
    numbers = f"<td>{100 * before:.1f} %</td><td>{100 * now:.1f} %</td><td>{round(100 * (now - before), 1) + 0.0:+.1f}</td>"
    return f'<tr><th class="name">{escape(name)}</th><td class="bars">{bars}</td>{numbers}</tr>'
