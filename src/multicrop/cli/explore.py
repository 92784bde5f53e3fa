"""`multicrop explore --config chosen.yaml`: a local page that shows how crops, fusion and prompts change the answer for a photo."""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

HELP = "open a local page: drop a photo, change crops, fusion and prompts, and see the answer and its reasons change"
PORT = 8765


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("explore", help=HELP, description=__doc__)
    parser.add_argument("photo", nargs="?", type=Path, help="the photo that is shown first")
    config = "an experiment file such as chosen.yaml, the folder of a record, or a folder that Classifier.save wrote"
    parser.add_argument("--config", type=Path, required=True, help=config)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting as for run.py; may be repeated")
    parser.add_argument("--port", type=int, default=PORT, help="port on 127.0.0.1; 0: any that is free (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    if find_spec("nicegui") is None:
        raise ValueError("multicrop explore needs the extra explore: pip install -c constraints.txt -e '.[explore]'")
    from multicrop.runs.classifier import Classifier
    from multicrop.runs.explore import Explorer
    from multicrop.runs.explore_page import serve

    explorer = Explorer(Classifier.from_config(options.config, *options.set).predictor)
    photo = None if options.photo is None else explorer.photo(options.photo.name, options.photo.read_bytes())
    choices = explorer.session.settings.choices
    shown = [f"{group} {choices[group]}" for group in ("model", "crop", "aggregator") if group in choices]
    title = ", ".join([options.config.name, *shown])
    serve(explorer, photo, title, port=options.port, open_browser=not options.no_browser)
    return 0
