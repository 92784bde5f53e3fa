"""`multicrop predict PHOTOS --config chosen.yaml -o predictions.parquet`: classify images without labels by a chosen configuration."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

HELP = "classify images by a chosen configuration: class, probability, and the crop and text that decided"
LISTED = 5  # unreadable images on the terminal; the output has all


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("predict", help=HELP, description=__doc__)
    parser.add_argument("photos", nargs="+", help="images, folders, lists of paths (.txt), tar files, or - for a list on standard input")
    config = "an experiment file such as chosen.yaml, the folder of a record, or a folder that Classifier.save wrote"
    parser.add_argument("--config", type=Path, required=True, help=config)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("predictions.parquet"), help="*.parquet, *.csv or *.jsonl (default: %(default)s)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting as for run.py; may be repeated")
    parser.add_argument("--threads", type=int, default=None, help="threads that read and encode (default: torch's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Predict; the exit status is 1 if images could not be read."""
    from multicrop.data.pictures import found_images
    from multicrop.runs.predict import predict, writer_of
    from multicrop.runs.predict_on_engine import elsewhere

    writer_of(options.output)  # a wrong ending is said before anything is encoded
    if options.threads is not None:
        import torch

        if options.threads < 1:
            raise ValueError(f"--threads must be 1 or more, got {options.threads}")
        torch.set_num_threads(options.threads)
    from multicrop.runs.classifier import Classifier

    predictor = Classifier.from_config(options.config, *options.set).predictor
    sources = [line for given in options.photos for line in (sys.stdin.read().splitlines() if given == "-" else [given]) if line.strip()]
    images = found_images(sources, below=predictor.root)
    there = elsewhere(predictor, options.config.absolute(), tuple(options.set), progress=not options.quiet)
    rows = predict(predictor, images, options.output, progress=not options.quiet, elsewhere=there)
    _show(rows, options.output)
    return int(any(row.error for row in rows))


def _show(rows: list, output: Path) -> None:
    """Print the classes by the number of their images, and what could not be read."""
    from collections import Counter

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    read = [row for row in rows if not row.error]
    table = Table(title=f"{len(read):,} images", title_justify="left")
    for column in ("class", "images", "mean probability"):
        table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for name, count in Counter(row.prediction for row in read).most_common():
        mean = sum(row.probability for row in read if row.prediction == name) / count
        table.add_row(escape(name), f"{count:,}", f"{mean:.2f}")
    Console().print(table)
    if failed := [row for row in rows if row.error]:
        print(f"{len(failed)} images could not be read:", file=sys.stderr)
        print("\n".join(f"  {row.image}: {row.error}" for row in failed[:LISTED]), file=sys.stderr)
        if len(failed) > LISTED:
            print(f"  ... and {len(failed) - LISTED} more, in {output}", file=sys.stderr)
    print(f"predictions: {output}")
