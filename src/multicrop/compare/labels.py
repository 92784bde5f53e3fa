"""Labels of methods in tables: what was chosen, and what varies among the methods of a table."""

from collections.abc import Sequence

from multicrop.compare.rows import BASELINES, is_baseline
from multicrop.compare.run import SEEDS, Run


def varying(runs: Sequence[Run]) -> list[str]:
    """The knobs in which these runs differ, without seeds and knobs that follow from the options.

    Of knobs that vary together the one of the task is named, whose value the others take; else the first.
    """
    groups = {group for group in runs[0].choices if len({run.choices.get(group) for run in runs}) > 1}
    own = [run for run in runs if not run.imported]  # exports name options and seeds, and no other knobs
    by_values: dict[tuple, str] = {}
    for name in dict.fromkeys(name for run in own for name in run.knobs if name not in SEEDS):
        group = "aggregator" if name == "task.fusion_weight" else name.split(".")[0]  # which the aggregator's file sets
        values: dict[object, set] = {}  # by option, where the runs have several options of the group
        for run in own:
            option = run.choices.get(group) if group in groups else None
            values.setdefault(option, set()).add(str(run.knobs[name]) if name in run.knobs else None)
        if any(len(found) > 1 for found in values.values()):
            together = tuple(str(run.knobs.get(name)) for run in own)
            by_values[together] = name if name.startswith("task.") else by_values.get(together, name)
    return list(by_values.values())


def label(run: Run, knobs: Sequence[str], groups: Sequence[str]) -> str:
    """The label of a method in tables: its name, and the groups and knobs that vary."""
    extra = [f"{name.rsplit('.', 1)[-1]}={run.knobs[name]}" for name in knobs if name in run.knobs]
    extra += [f"imported from {run.imported['by']}"] if run.imported else []
    return ", ".join([run.name, *(run.choices.get(g, "?") for g in groups), *extra])


def labels(methods: Sequence[Sequence[Run]], group: Sequence[Run]) -> list[str]:
    """The label of each method; baselines are told apart by what varies among them alone, by prompts only where they have to be."""
    others = varying(group), varying_groups(group)
    found = [label(runs[-1], *others) for runs in methods]
    for row in BASELINES.values():
        places = [i for i, runs in enumerate(methods) if is_baseline(runs) and runs[0].choices["aggregator"] == row]
        for place, name in zip(places, _baseline_labels([methods[i][0] for i in places]), strict=True):
            found[place] = name
    return [_told_apart(name, runs[-1]) if found.count(name) > 1 else name for name, runs in zip(found, methods, strict=True)]


def _told_apart(name: str, run: Run) -> str:
    """The label of an imported method whose options are those of another one."""
    return f"{name}, configuration {str(run.imported.get('configuration'))[:6]}" if run.imported else name


def _baseline_labels(runs: Sequence[Run]) -> list[str]:
    """The labels of baselines of one kind; they name the prompt where two are equal without it."""
    if not runs:
        return []
    knobs, groups = varying(runs), varying_groups(runs)
    without_prompt = [name for name in knobs if not name.startswith("prompt.")], [name for name in groups if name != "prompt"]
    short = [label(run, *without_prompt) for run in runs]
    return [name if short.count(name) == 1 else label(run, knobs, groups) for name, run in zip(short, runs, strict=True)]


def varying_groups(runs: Sequence[Run]) -> list[str]:
    """The groups ``model`` and ``prompt`` where these runs differ in them."""
    return [g for g in ("model", "prompt") if len({run.choices.get(g) for run in runs}) > 1]
