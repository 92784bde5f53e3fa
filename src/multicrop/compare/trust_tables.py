"""Tables of measures of confidence: of single runs, and of the methods of a block with their stability over crop seeds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from multicrop.compare.leaderboard import Block, Entry
from multicrop.compare.run import SEEDS, Run
from multicrop.compare.tables import Table, place
from multicrop.compare.trust import confidence_measures, detection_measures, held_out
from multicrop.record import Predictions, Record

CROP_SEED = SEEDS.index("crop_seed")
STABLE, SPREAD = "same_over_crop_seeds", "spread_over_crop_seeds"
SHOWN = {  # headings of what is printed; CSV has all measures
    "accuracy": "top-1",
    "adaptive_ece": "adaptive ECE",
    "class_ece": "class ECE",
    "aurc": "AURC",
    "accuracy_at_0.8": "top-1 of 80 %",
    "auroc_mcm": "AUROC (MCM)",
    "fpr95_mcm": "FPR95 (MCM)",
    "auroc_energy": "AUROC (energy)",
    STABLE: "same over crop seeds",
    SPREAD: "spread over crop seeds",
}
EXPLAINED = (
    "top-1 of 80 %: of the images with the highest confidence; AURC: mean error over all such shares; AUROC and FPR95: of unknown classes, "
    "which are those of ood, or the second half of the classes where a record keeps all logits; --format csv has all measures"
)
STABILITY = "same over crop seeds: images with the same prediction under two crop seeds, mean over pairs of runs; spread: of their accuracy"


def trust_of(record: Record, row: str) -> dict[str, float]:
    """The measures of confidence of one row of a record; unknown classes are those of the run's ``ood``, else its second half of classes.

    Args:
        record: A record of these measures, or of logits of the row.
        row: The row.
    """
    predictions, measured = record.predictions, record.metrics.get("trust", {}).get(row)
    found = {"accuracy": predictions.accuracy(row), **(measured or {})}
    if any(name.startswith("auroc") for name in found) or (measured and record.config.get("logits") != "all"):
        return found
    scores = record.scores(row)
    if not measured:
        found |= confidence_measures(scores.top_probabilities[:, 0].astype(np.float64), predictions.correct(row))
    if scores.log_probabilities is not None:
        logits, known = held_out(scores, predictions.label)
        if known.any() and not known.all():
            found |= detection_measures(logits[known], logits[~known], logit_scale=record.metrics.get("logit_scale"))
    return found


def trust_table(rows: Sequence[Mapping]) -> Table:
    """The table of single runs; missing fields are empty.

    Args:
        rows: Run, row and the measures of `trust_of`.
    """
    columns = {"run": lambda r: str(r["run"]), "row": lambda r: str(r["row"]), **_percent(rows)}
    return Table("Trust measures, %", "trust", columns, rows, notes=(EXPLAINED,))


def methods_table(block: Block) -> Table:
    """The table of the methods of a block: measures that their runs recorded, means over the runs, and stability over crop seeds.

    Args:
        block: The block.
    """
    rows = [place(block) | {"method": entry.label, "runs": len(entry.runs), **measures_of(entry)} for entry in block.entries]
    columns = {"method": lambda r: str(r["method"]), **_percent(rows)}
    notes = (EXPLAINED, *((STABILITY,) if any(STABLE in row for row in rows) else ()))
    return Table(f"Trust measures, %: {block.name}", "trust", columns, rows, notes=notes)


def measures_of(entry: Entry) -> dict[str, float]:
    """The recorded measures of a method that all its runs have, means over the runs, and its stability where runs differ in crop seeds."""
    recorded = [run.metrics.get("trust", {}).get(run.scored_row, {}) for run in entry.runs]
    of_all = [name for name in recorded[0] if all(name in measures for measures in recorded)]
    means = {name: float(np.mean([measures[name] for measures in recorded])) for name in of_all}
    return means | stability(entry.runs)


def stability(runs: Sequence[Run]) -> dict[str, float]:
    """How much the crop seed decides, over the pairs of runs that differ in nothing else; empty where there is no such pair.

    Args:
        runs: Runs of one method on the same images.

    Returns:
        The share of images with the same prediction, and the standard deviation of accuracy over crop seeds, both means over the groups of
        runs with equal other seeds.
    """
    groups: dict[tuple, dict[object, Predictions]] = {}
    for run in runs:
        others = run.seeds[:CROP_SEED] + run.seeds[CROP_SEED + 1 :]
        groups.setdefault(others, {})[run.seeds[CROP_SEED]] = run.sorted_predictions
    several = [(others, list(found.values())) for others, found in groups.items() if len(found) > 1]
    if not several:
        return {}
    same = [np.mean([(one.rows["final"] == two.rows["final"]).mean() for one, two in combinations(found, 2)]) for _, found in several]
    spread = [np.std([one.accuracy() for one in found], ddof=1) for _, found in several]
    return {STABLE: float(np.mean(same)), SPREAD: float(np.mean(spread))}


def _percent(rows: Sequence[Mapping]) -> dict[str, Callable[[Mapping], str]]:
    """A column of percent for each measure that is shown and that some row has."""

    def column(name: str) -> Callable[[Mapping], str]:
        return lambda row: f"{100 * row[name]:.1f}" if name in row else ""

    return {heading: column(name) for name, heading in SHOWN.items() if any(name in row for row in rows)}
