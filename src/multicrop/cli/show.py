"""`multicrop show NAME`: what an option of a config group is, its knobs with their defaults, its source and its cost."""

import argparse
from collections.abc import Callable

from multicrop.cli.ls import add_folder, folder_of

HELP = "show an option: docstring, knobs, defaults, source"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("show", help=HELP, description=__doc__)
    parser.add_argument("name", help="an option as multicrop ls lists it, or GROUP=NAME where several groups have one of this name")
    add_folder(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print all options of this name."""
    import json

    from multicrop.runs.catalogue import found

    for option in found(options.name, folder_of(options)):
        print(f"{option.group}={option.name} ({option.place})\n\n{option.head}\n")
        training = option.training.removeprefix("training data ").removeprefix("trained on ")
        facts = {"source": option.source, "cost": option.cost, "training data": training, "code": option.target}
        print("\n".join(f"{name}: {value}" for name, value in facts.items() if value))
        for knob in option.knobs:
            missing = knob.default == "???"
            more = "; ".join(filter(None, ("required" * missing, knob.words, knob.comment)))
            default = "" if missing else json.dumps(knob.default, ensure_ascii=False)
            print(f"  {knob.name}={default}{f'  # {more}' if more else ''}")
        print(f"\n{option.docstring}\n" if option.docstring else "")
    return 0
