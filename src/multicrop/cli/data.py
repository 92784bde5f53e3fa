"""`multicrop data check dataset=NAME`: read a data set once and report problems; the exit status is 1 if there are any."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multicrop.data.base import Dataset
    from multicrop.data.checks.check import Findings

SHOWN = 5  # unreadable images and duplicates on the terminal; the report lists all
HELP = "check a data set: counts, sizes, unreadable images, leaks between splits"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("data", help=HELP, description=__doc__)
    parser.add_argument("action", choices=["check"])
    parser.add_argument(
        "overrides", nargs="+", metavar="dataset=NAME", help="overrides as for run.py: dataset=folder dataset.root=PATH ..."
    )
    parser.add_argument("--report", type=Path, help="write the findings to this JSON file")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of test images to this file (.png)")
    parser.add_argument("--per-class", type=int, default=4, help="images per class on the sheet (default: 4)")
    parser.add_argument("--classes", type=int, default=80, help="classes on the sheet (default: 80)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads that read images (default: number of processors)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the data set that the overrides select; the exit status is 1 if it has problems."""
    from multicrop.data.checks.check import check
    from multicrop.data.overview import overview
    from multicrop.files import atomic, write_text

    if options.threads < 1 or options.per_class < 1 or options.classes < 1:
        raise ValueError("--threads, --per-class and --classes must be 1 or more")
    dataset = _dataset(options.overrides)
    print("\n".join(overview(dataset)))
    with _Bars() as step:
        findings = check(dataset, threads=options.threads, per_class=options.per_class, step=step)
    _show(findings)
    if options.report:
        write_text(options.report, json.dumps(findings.as_json(), indent=1))
        print(f"report: {options.report}")
    if options.sheet:
        from PIL import Image

        from multicrop.data.checks.contact_sheet import contact_sheet

        names, pictures = findings.dataset.class_names, findings.pictures
        sheet = contact_sheet(names, pictures, per_class=options.per_class, max_classes=options.classes)
        with atomic(options.sheet) as partial:
            sheet.save(partial, format=Image.registered_extensions().get(options.sheet.suffix.lower(), "PNG"))
        print(f"contact sheet: {options.sheet}")
    print("\n".join(f"problem: {fault}" for fault in findings.wrong) or "no problem was found")
    return 1 if findings.wrong else 0


def _dataset(overrides: list[str]) -> "Dataset":
    """The data set of the composed configuration, as in an experiment."""
    from hydra.errors import InstantiationException

    from multicrop.runs.session import Session
    from multicrop.runs.settings import of_command_line

    session = Session(of_command_line(overrides))
    try:
        return session.dataset
    except InstantiationException as error:
        raise error.__cause__ or error from None


class _Bars:
    """One progress bar per split: the first call with a number of images opens it, each further call advances it by one."""

    def __enter__(self) -> Callable[[str, int | None], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
        self.tasks: dict[str, int] = {}
        self.bar.start()
        return self.step

    def step(self, split: str, count: int | None) -> None:
        if split in self.tasks:
            self.bar.advance(self.tasks[split])
        else:
            self.tasks[split] = self.bar.add_task(split, total=count)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _show(findings: "Findings") -> None:
    """Print a table of the splits, then the problems."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names = findings.dataset.class_names
    title = f"{findings.dataset.name}: {len(names)} classes (smallest / median / largest, or all equal)"
    table = Table(title=escape(title), title_justify="left")
    for column in ("split", "images", "images per class", "width", "height", "unreadable"):
        table.add_column(column, justify="left" if column == "split" else "right", overflow="fold")
    for split, facts in findings.as_json()["splits"].items():
        counts = _three(_spread(list(facts["classes"].values())))
        table.add_row(split, f"{facts['images']:,}", counts, _three(facts["width"]), _three(facts["height"]), str(len(facts["unreadable"])))
    Console().print(table)
    for split, facts in findings.splits.items():
        if lacking := [name for label, name in enumerate(names) if not facts.counts[label]]:
            print(f"{split} has no image of {len(lacking)} classes: {', '.join(lacking[:SHOWN])}")
        for image_id, reason in facts.unreadable[:SHOWN]:
            print(f"unreadable, {split}: {image_id}: {reason}")
    for pair in findings.pairs[:SHOWN]:
        apart = f" ({pair.distance:.1f} of 255 grey levels apart)" if pair.kind == "near" else ""
        print(f"{pair.kind} duplicate: {pair.first[0]} {pair.first[1]} = {pair.second[0]} {pair.second[1]}{apart}")
    if len(findings.pairs) > SHOWN:
        print(f"... and {len(findings.pairs) - SHOWN} more duplicates (--report PATH lists all)")


def _spread(values: list[int]) -> dict[str, float | int]:
    from multicrop.data.checks.check import spread

    return spread(values)


def _three(found: dict[str, float | int]) -> str:
    values = [f"{found[name]:g}" for name in ("min", "median", "max")] if found else [""]
    return values[0] if len(set(values)) == 1 else " / ".join(values)
