"""The tables of experiments/cost for its README, from the rows of results.csv."""

from collections.abc import Mapping, Sequence

from experiments.study import RANGES, markdown, with_interval

SHOWN = (  # way and number of crops; the baseline is 16 random crops
    ("global view", 0),
    *(("random", crops) for crops in (4, 8)),
    *(("quasi_random", crops) for crops in (4, 8, 16)),
    ("diverse", 16),
    *((f"random, {side} px", 16) for side in (80, 64, 48)),
    ("cascade, chosen", 16),
    ("cascade, 25 %", 16),
)


def summary(rows: Sequence[Mapping[str, object]]) -> str:
    """Top-1 in points against 16 random crops with its interval, per stream, beside the mean cost over the streams."""
    streams = list(dict.fromkeys((str(row["data"]), str(row["vendor"])) for row in rows))
    found = {(row["data"], row["vendor"], row["way"], int(str(row["crops"]))): row for row in rows}
    lines = []
    for way, crops in SHOWN:
        cells = [found.get((*stream, way, crops)) for stream in streams]
        if all(cells):
            costs = [float(str(cell["cost"])) for cell in cells if cell]
            name = way if not crops else f"{way}, {crops} crops"
            lines.append([name, f"{sum(costs) / len(costs):.1f}", *(_points(cell) for cell in cells if cell)])
    return markdown(["way", "cost", *(f"{data}, {RANGES.get(vendor, vendor)}" for data, vendor in streams)], lines)


def _points(row: Mapping[str, object]) -> str:
    return with_interval([row[name] for name in ("difference", "low", "high")])
