"""Published numbers beside those of runs, with the differences in setting: `multicrop compare --published`."""

from collections.abc import Mapping, Sequence

from multicrop.compare.published import Figure, published_figures
from multicrop.compare.run import Run
from multicrop.compare.tables import Table
from multicrop.record import NOT_DECISIVE


def published_table(runs: Sequence[Run]) -> Table:
    """The published numbers whose experiment, data set and model are those of a run.

    Args:
        runs: Finished runs.

    Returns:
        One row per run and published number: both in percent, their difference, and how the settings differ: overrides that only one of
        the two commands has, parts of the data, and the note of the published number.
    """
    paired = [(run, figure) for run in runs for figure in figures_of(run)]
    rows = [_row(run, figure) for run, figure in paired]
    columns = {
        "published": lambda r: f"{r['method']}, {r['metric']} ({r['source']})",
        "setting": lambda r: f"{r['experiment']}, {r['data']}, {r['model']}",
        "published %": lambda r: f"{r['figure']:.2f}",
        "here %": lambda r: f"{r['here']:.2f}",
        "points": lambda r: f"{r['here'] - r['figure']:+.2f}",
        "differences in setting": lambda r: r["differences"] or "none known",
    }
    without = len(runs) - len({id(run) for run, _ in paired})
    note = f"{without} of {len(runs)} runs have no published number: experiment, data set and model must agree; see multicrop published"
    return Table("published numbers of the same settings", "published", columns, rows, notes=(note,) if without else ())


def figures_of(run: Run) -> list[Figure]:
    """The published numbers of a run's setting; of several methods those that the run used, where its command names one."""
    chosen = run.choices
    figures = published_figures(chosen.get("experiment"), chosen.get("dataset", ""), chosen.get("model", ""))
    return [f for f in figures if all(chosen.get(name) == option for name, option in _words(f.command) if name in ("method", "adapter"))]


def _row(run: Run, figure: Figure) -> Mapping:
    row = {name: getattr(figure, name) for name in ("experiment", "model", "method", "metric", "figure", "source")}
    return row | {
        "data": figure.dataset,
        "here": 100 * run.accuracy,
        "differences": "; ".join(differences(run, figure)),
        "record": str(run.folder),
    }


def differences(run: Run, figure: Figure) -> list[str]:
    """What is known to differ between a run and a published number."""
    own, published = _overrides(run), dict(_words(figure.command))
    found = [f"here {name}={value}" for name, value in own.items() if published.get(name, run.choices.get(name)) != value]
    found += [f"published {name}={value}" for name, value in published.items() if name not in own and run.choices.get(name) != value]
    if (split := run.config.get("split", "test")) != "test":
        found.append(f"scored on {split} images")
    if skipped := run.metrics.get("skipped_images"):
        found.append(f"{skipped} unreadable images skipped")
    if figure.note:
        found.append(figure.note)
    return found


def _overrides(run: Run) -> dict[str, str]:
    """The overrides of a run's command that can decide numbers; of those that were swept the values of this run."""
    words = dict(_words(" ".join(run.environment.get("argv", [])[1:])))
    swept = {name: str(run.choices.get(name, run.knobs.get(name, value))) for name, value in words.items() if "," in value}
    return words | swept


def _words(command: str) -> list[tuple[str, str]]:
    """The overrides of a command that can decide numbers, by name."""
    named = [word.partition("=") for word in command.split() if "=" in word and not word.startswith("-")]
    return [(name.lstrip("+"), value) for name, _, value in named if name.lstrip("+").split(".")[0] not in (*NOT_DECISIVE, "split")]
