"""What a run prints: its rows under their names, its cost, and the figures that papers report for its setting."""

from pathlib import Path

import pytest
from rich.console import Console

from multicrop.compare.published import Figure, published_figures
from multicrop.record import ROWS
from multicrop.show import terminal

CHOICES = {"aggregator": "dnd", "method": "tda"}


@pytest.fixture
def printed(monkeypatch):
    """A console of 100 columns, and what was printed on it."""
    console = Console(width=100, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    monkeypatch.setattr(terminal, "console", console)
    return console.export_text


def test_rows_are_named_by_what_was_chosen():
    assert terminal.row_labels(CHOICES, "method", 17) == {
        "global": "global view",
        "crops_mean": "16 crops averaged",
        "aggregated": "dnd",
        "final": "dnd + tda",
    }
    beside = terminal.row_labels(CHOICES, "method", 17, ["dnd_fused"])
    assert list(beside.items())[3:] == [("beside/dnd_fused", "dnd_fused"), ("final", "dnd + tda")]
    bare = terminal.row_labels(CHOICES, None, 1)
    assert "final" not in bare and bare["crops_mean"] == "no crops: the global view"


def test_the_table_holds_accuracy_interval_and_cost_of_every_row(printed):
    numbers = {"accuracy": 0.745, "difference": 0.15, "low": 0.095, "high": 0.2125, "rescued": 106, "lost": 46}
    base = numbers | {"accuracy": 0.595, "difference": 0.0}
    metrics = {"rows": {row: base if row == "global" else numbers for row in ROWS}, "row_seconds": dict.fromkeys(ROWS, 0.25)}
    metrics |= {
        "images": 400,
        "encoder_calls": 6800,
        "bank_reused": True,
        "crops_per_second": 309.4,
        "encode_seconds": 22.0,
        "scoring_seconds": 2.7,
    }
    facts = {"seconds": 27.2, "peak_memory_bytes": 2**29}
    terminal.show_run("title", terminal.row_labels(CHOICES, "method", 17), metrics, facts, Path("out"), Path("out/x.png"))
    table = printed(clear=False)
    (line,) = [line for line in table.splitlines() if "dnd + tda" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["dnd + tda", "74.5", "+15.0 [+9.5, +21.2]", "106/46", "0.25"]
    (first,) = [line for line in table.splitlines() if "│ global view" in line]
    assert [cell.strip() for cell in first.split("│")[1:-1]] == ["global view", "59.5", "", "", "0.25"]
    said = " ".join(table.split())
    for text in ("6,800 views, bank reused, filled at 309 crops per second", "peak memory 0.50 GiB", "record: out", "picture: out/x.png"):
        assert text in said


@pytest.mark.parametrize(
    ("images", "clusters", "said"),
    [
        (400, None, []),
        (400, 40, ["95 % interval over 40 clusters of images that share their content"]),
        (
            30,
            None,
            ["small test set: 30 images; intervals are exact", "a significant difference needs at least 6 images (20 points)"],
        ),
        (400, 12, ["95 % interval over 12 clusters", "only 12 clusters: intervals over fewer than 20 may be too narrow"]),
    ],
)
def test_the_table_says_what_the_interval_is_over_and_what_few_images_can_show(images, clusters, said):
    numbers = {"accuracy": 0.7, "difference": 0.1, "low": 0.0, "high": 0.2, "rescued": 3, "lost": 1, "clusters": clusters}
    caption = terminal.results_table("t", {"final": numbers}, {"final": "x"}, {"final": 1.0}, images).caption
    assert (caption is None) == (not said) and all(text in str(caption) for text in said)


def test_published_figures_of_the_setting_are_printed(printed):
    figures = published_figures("zero_shot/wca", "cub200", "clip_vit_b16")
    assert figures and all(isinstance(figure, Figure) for figure in figures)
    terminal.show_published(figures)
    said = " ".join(printed().split())
    assert all(f"published: {figure.figure:.2f} % ({figure.method}" in said for figure in figures)
    assert published_figures(None, "scenes", "tiny") == []


def test_a_bank_that_was_found_has_no_rate(printed):
    terminal.show_encoded("zoo/test", 1234, 17, None)
    terminal.show_encoded("zoo/train", 5, 17, 1500.4)
    said = printed()
    assert "zoo/test: 1,234 images x 17 views found in the cache" in said
    assert "zoo/train: 5 images x 17 views encoded at 1,500 crops per second" in said
