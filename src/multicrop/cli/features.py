"""`multicrop features export|import`: boxes and prompts to encode elsewhere, and the features that come back."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "encode elsewhere: export boxes and prompts, import features"
SPLITS = ("test", "validation", "train")


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands `features export` and `features import`."""
    parser = add_parser("features", help=HELP, description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="export|import")
    exports = tasks.add_parser("export", help="write boxes.parquet and prompts.parquet of the run that the overrides describe")
    exports.add_argument("overrides", nargs="*", metavar="GROUP=NAME", help="overrides as for run.py: dataset=..., crop=..., prompt=...")
    exports.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder to write to")
    exports.add_argument("--splits", nargs="+", choices=SPLITS, default=["test"], help="splits to export (default: test)")
    exports.add_argument("--images", action="store_true", help="write each image as PNG as well")
    exports.set_defaults(run=run_export)
    imports = tasks.add_parser("import", help="make the folder of model=imported from Parquet or safetensors files")
    imports.add_argument("files", nargs="+", type=Path, metavar="FILE", help="features of views: image_id, x1, top, x2, bottom, vector")
    imports.add_argument("--texts", nargs="+", type=Path, required=True, metavar="FILE", help="features of prompts: text, vector")
    imports.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    imports.add_argument("--name", help="the name of the model in records (default: the name of the folder)")
    imports.add_argument("--logit-scale", type=float, default=100.0, help="multiplier of cosine similarities (default: 100)")
    imports.set_defaults(run=run_import)


def run_export(options: argparse.Namespace) -> int:
    """Write the boxes and prompts of a run."""
    from multicrop.data.limit import limited
    from multicrop.features.exchange import BOXES, PROMPTS, export_boxes, export_prompts
    from multicrop.runs.session import Session
    from multicrop.runs.settings import of_command_line

    session = Session(of_command_line(with_template(options.overrides)))
    splits = {name: getattr(session.dataset, name) for name in options.splits}
    splits |= {name: limited(images, session.settings.limit) for name, images in splits.items() if name != "train"}
    if (unknown := session.unknown_images) is not None:
        splits["unknown"] = unknown
    streamed = [name for name, images in splits.items() if not images.indexed]
    if streamed or not any(map(len, splits.values())):
        what = f"reads {', '.join(streamed)} as a stream" if streamed else f"has no images in {', '.join(splits)}"
        raise ValueError(f"{session.dataset.name} {what}; pass dataset.streaming=false, or other --splits")
    views = export_boxes(splits, session.sampler, session.settings["crop_seed"], options.to, pictures=options.images)
    texts = export_prompts(session.prompts, options.to)
    print(f"{options.to / BOXES}: {views} views; {options.to / PROMPTS}: {texts} texts")
    return 0


def with_template(overrides: list[str]) -> list[str]:
    """Overrides whose label prompts are those of model=imported, which reads what comes back, where they name no model."""
    from multicrop.config import CONF
    from multicrop.config.options import option_content

    if any(override.startswith(("model=", "model@")) for override in overrides):
        return overrides
    template = option_content(CONF / "model" / "imported.yaml")["facts"]["template"]
    return [f'model.facts.template="{template}"', *overrides]


def run_import(options: argparse.Namespace) -> int:
    """Make the folder of imported features."""
    from multicrop.features.exchange import import_features

    name = options.name or options.to.resolve().name
    views, texts = import_features(options.files, options.texts, options.to, name=name, logit_scale=options.logit_scale)
    print(f"{views} views and {texts} texts of {name}: python run.py model=imported model.path={options.to}")
    return 0
