"""Labels of methods in tables: what was chosen, and what varies among the methods of a table."""

from collections.abc import Sequence

from multicrop.compare.rows import is_baseline
from multicrop.compare.run import SEEDS, Run


def varying(runs: Sequence[Run]) -> list[str]:
    """The knobs in which these runs differ, without seeds and knobs that follow from the options; of knobs that vary together the first."""
    chosen = {k for k in runs[0].choices if len({run.choices.get(k) for run in runs}) > 1}
    kept: dict[tuple, str] = {}
    for name in dict.fromkeys(name for run in runs for name in run.knobs):
        top = "aggregator" if name == "task.fusion_weight" else name.split(".")[0]  # which the aggregator's file sets
        by_choice: dict[object, set] = {}
        for run in runs:
            value = str(run.knobs[name]) if name in run.knobs else None
            by_choice.setdefault(run.choices.get(top) if top in chosen else None, set()).add(value)
        if name not in SEEDS and max(map(len, by_choice.values())) > 1:
            kept.setdefault(tuple(str(run.knobs.get(name)) for run in runs), name)
    return list(kept.values())


def label(run: Run, knobs: Sequence[str], groups: Sequence[str]) -> str:
    """The label of a method in tables: its name, and the groups and knobs that vary."""
    extra = [f"{name.rsplit('.', 1)[-1]}={run.knobs[name]}" for name in knobs if name in run.knobs]
    return ", ".join([run.name, *(run.choices.get(g, "?") for g in groups), *extra])


def labels(methods: Sequence[Sequence[Run]], group: Sequence[Run]) -> list[str]:
    """The label of each method; baselines are told apart by what varies among them alone."""
    baselines: dict[str, list[Run]] = {}
    for runs in methods:
        if is_baseline(runs):
            baselines.setdefault(runs[0].choices["aggregator"], []).append(runs[0])
    told = {name: (varying(runs), varying_groups(runs)) for name, runs in baselines.items()}
    others = varying(group), varying_groups(group)
    return [label(runs[-1], *(told[runs[0].choices["aggregator"]] if is_baseline(runs) else others)) for runs in methods]


def varying_groups(runs: Sequence[Run]) -> list[str]:
    """The groups ``model`` and ``prompt`` where these runs differ in them."""
    return [g for g in ("model", "prompt") if len({run.choices.get(g) for run in runs}) > 1]
