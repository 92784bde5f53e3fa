"""A W&B workspace and report in code: accuracy by crop and aggregator, cost, curves of shots and streams, rescued images."""

import json
from pathlib import Path

CURVES = (
    ("Accuracy by aggregator", "choices.aggregator", "test/accuracy"),
    ("Accuracy by crop policy", "choices.crop", "test/accuracy"),
    ("Gain over the global view by crop policy", "choices.crop", "test/vs_global/difference"),
)
SCATTERS = (
    ("Accuracy against encoder calls", "s::encoder_calls"),
    ("Few-shot: accuracy by shots", "c::task.shots"),
    ("Streams: accuracy by order", "c::task.order_seed"),
)
IMAGES = ("images/rescued", "images/lost", "images/wrong")


def panels() -> list[tuple[str, list]]:
    """The sections: a name, and its panels."""
    import wandb_workspaces.reports.v2 as wr

    bars = [wr.BarPlot(title=title, metrics=[metric], groupby=f"config.{knob}") for title, knob, metric in CURVES]
    dots = [wr.ScatterPlot(title=title, x=x, y="s::test/accuracy", running_ymax=True) for title, x in SCATTERS]
    columns = ["c::choices.task", "c::choices.crop", "c::choices.aggregator", "s::encoder_calls", "s::test/accuracy"]
    choices = wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=name) for name in columns])
    return [
        ("Accuracy", bars),
        ("Cost", [dots[0], choices]),
        ("Few-shot and streams", dots[1:]),
        ("Rescued and lost images", [wr.MediaBrowser(title=key, media_keys=[key]) for key in IMAGES]),
    ]


def workspace(entity: str, project: str) -> object:
    """The workspace of a project."""
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name=name, panels=made, is_open=True) for name, made in panels()]
    return ws.Workspace(entity=entity, project=project, name="multicrop", sections=sections)


def report(entity: str, project: str, *, online: bool) -> object:
    """The report of a project; offline its run set names no project, for that is looked up on the server."""
    import wandb_workspaces.reports.v2 as wr

    where = {"entity": entity, "project": project} if online else {}
    blocks = []
    for name, made in panels():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[wr.Runset(name="runs", **where)], panels=made)]
    return wr.Report(project=project, entity=entity, title="multicrop", description="Crops and descriptions for CLIP", blocks=blocks)


def save_json(entity: str, project: str, path: Path) -> None:
    """Both as JSON, as the client would send them."""
    # wandb-workspaces has no public way to its JSON: this private method is what its save() calls
    models = {"workspace": workspace(entity, project), "report": report(entity, project, online=False)}
    text = {name: json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True)) for name, made in models.items()}
    path.write_text(json.dumps(text, indent=1, sort_keys=True), encoding="utf-8")
