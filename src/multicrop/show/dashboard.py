"""A W&B workspace and report: accuracy by crop and aggregator, cost, curves of shots and streams, rescued images.

wandb-workspaces has no public function that returns a workspace or report as JSON, so `save_json` uses the private method that its save()
calls. No other file uses it; tests/test_loggers.py fails if the method is missing or its JSON has another shape.
"""

import json
from pathlib import Path

from multicrop.files import write_text

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
    """The sections as pairs of name and panels."""
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
    """Make the workspace of a project.

    Args:
        entity: W&B user or team.
        project: W&B project.

    Returns:
        The workspace; ``save()`` uploads it.
    """
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name=name, panels=made, is_open=True) for name, made in panels()]
    return ws.Workspace(entity=entity, project=project, name="multicrop", sections=sections)


def report(entity: str, project: str, *, online: bool) -> object:
    """Make the report of a project.

    Args:
        entity: W&B user or team.
        project: W&B project.
        online: Whether the report is for upload; if not, its run set names no project, because the client looks it up on the server.

    Returns:
        The report; ``save()`` uploads it.
    """
    import wandb_workspaces.reports.v2 as wr

    where = {"entity": entity, "project": project} if online else {}
    blocks = []
    for name, made in panels():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[wr.Runset(name="runs", **where)], panels=made)]
    return wr.Report(project=project, entity=entity, title="multicrop", description="Crops and descriptions for CLIP", blocks=blocks)


def save_json(entity: str, project: str, path: Path) -> None:
    """Write workspace and report as JSON, as the client would upload them."""
    models = {"workspace": workspace(entity, project), "report": report(entity, project, online=False)}
    text = {name: json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True)) for name, made in models.items()}
    write_text(path, json.dumps(text, indent=1, sort_keys=True))
