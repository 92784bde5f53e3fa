"""The explanation of one image as a table in the terminal and as facts for JSON, and the files of an explanation."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from multicrop.show.explain.explanation import Explanation
from multicrop.show.explain.page import write_page
from multicrop.show.explain.picture import MOST_WORDS, draw_explanation, headline, words_title


def write_explanation(item: Explanation, stem: Path, console: Console) -> None:
    """Write STEM.png and STEM.html, and print the table of texts and the two paths."""
    picture, html = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.html")
    draw_explanation(item, picture)
    write_page(item, html)
    console.print(f"{headline(item)}\nrunner-up: {item.runner_up.name}\n{words_title(item)}", markup=False, highlight=False)
    console.print(words_table(item))
    console.print(f"picture: {picture}", soft_wrap=True, markup=False)
    console.print(f"page: {html}", soft_wrap=True, markup=False)


def words_table(item: Explanation) -> Table:
    """The texts that add most to the margin between the predicted class and the runner-up."""
    table = Table()
    table.add_column("text", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("logits", justify="right")
    for word in item.words[:MOST_WORDS]:
        table.add_row(escape(word.text), escape(word.side), f"{word.contribution:+.2f}")
    if (rest := item.words[MOST_WORDS:]) and item.is_plan:
        table.add_row(f"{len(rest)} more", "", f"{sum(word.contribution for word in rest):+.2f}")
    return table


def facts(item: Explanation) -> dict[str, object]:
    """What explanations.json says of an image."""
    return {
        "image": item.name,
        "label": item.label,
        "prediction": item.predicted.name,
        "probability": item.probability,
        "runner_up": item.runner_up.name,
        "margin": item.margin,
        "global_view": item.global_name,
        "transport_plan": item.is_plan,
        "crops": item.crop_names(),
        "boxes": item.boxes.tolist(),
        "words": [asdict(word) for word in item.words],
    }
