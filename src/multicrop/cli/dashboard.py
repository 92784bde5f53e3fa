"""`multicrop dashboard`: make the W&B workspace and report of a project, online with a login, otherwise as JSON."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "make the W&B workspace and report of a project"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("dashboard", help=HELP, description=__doc__)
    parser.add_argument("--project", default="multicrop", help="W&B project (default: multicrop)")
    parser.add_argument("--entity", default="", help="W&B user or team; required to save online")
    parser.add_argument("-o", "--output", type=Path, help="write JSON to this file instead of saving online")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Save online with a login and an entity, otherwise write JSON; raises ValueError without wandb-workspaces."""
    from importlib.util import find_spec

    if find_spec("wandb_workspaces") is None:
        raise ValueError("multicrop dashboard needs wandb-workspaces: pip install 'multicrop[dashboard]'")
    from multicrop.config.machine import wandb_mode
    from multicrop.show import dashboard

    if options.output is None and wandb_mode(None) == "online":
        if not options.entity:
            raise ValueError("saving online needs --entity (your W&B user or team); -o FILE writes JSON instead")
        for made in (dashboard.workspace(options.entity, options.project), dashboard.report(options.entity, options.project, online=True)):
            made.save()
            print(made.url)
        return 0
    path = options.output or Path("dashboard.json")
    dashboard.save_json(options.entity, options.project, path)
    print(f"written: {path}; with a W&B login and --entity the dashboard is saved online")
    return 0
