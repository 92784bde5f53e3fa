"""`multicrop describe audit|make|show|page`: audit descriptions of classes, generate them with a language model, or show them."""

import argparse
from collections.abc import Callable

HELP = "audit descriptions of classes, generate them with a language model, or show them"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands `describe audit`, `describe make`, `describe show` and `describe page`."""
    parser = add_parser("describe", help=HELP, description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="audit|make|show|page")
    audits = tasks.add_parser("audit", help="find defects of a description file or a packaged description set; exit status 1 on errors")
    audits.add_argument(
        "source",
        metavar="FILE_OR_SET",
        help="a JSON file ({class: [text, ...]} or the packaged format), or the name of a packaged description set",
    )
    _add_classes(audits, required=False)
    audits.add_argument(
        "--model", metavar="FOLDER_OR_ID", help="count tokens with the tokenizer of this encoder (tiny: the embedded one; default: CLIP's)"
    )
    audits.add_argument("--strict", action="store_true", help="also check the rules of the packaged sets (default for a packaged set)")
    audits.add_argument("--examples", type=int, default=2, metavar="N", help="examples per defect (default 2)")
    audits.add_argument("--fix", metavar="OUT.json", help="write the texts with the repairable defects repaired")
    audits.set_defaults(run=run_audit)
    makes = tasks.add_parser("make", help="generate phrases about the parts of every class with a language model")
    _add_classes(makes, required=True)
    makes.add_argument("--out", required=True, metavar="FILE.json", help="the description file; answers are cached in FILE.json.parts")
    makes.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="folder or hub id of a causal language model; with --server the model name on the server",
    )
    makes.add_argument(
        "--server", action="store_true", help="ask the chat-completions server at OPENAI_BASE_URL, with the key in OPENAI_API_KEY"
    )
    makes.add_argument("--questions", metavar="FILE", help="a JSON or YAML list of questions with {class}, instead of the built-in ones")
    makes.add_argument("--max-tokens", type=int, default=200, help="tokens per answer (default 200)")
    makes.add_argument("--temperature", type=float, default=0.7, help="sampling temperature, 0 for greedy decoding (default 0.7)")
    makes.add_argument("--seed", type=int, default=0)
    makes.add_argument("--keep-leaks", action="store_true", help="keep phrases that name their class")
    makes.add_argument("--force", action="store_true", help="overwrite an existing FILE.json")
    makes.set_defaults(run=run_make)
    shows = tasks.add_parser("show", help="print the texts of a class of a packaged description set, alone or beside another class")
    shows.add_argument("set", metavar="SET", help="name of a packaged description set: cub200, fgvc_aircraft, ...")
    shows.add_argument("name", metavar="CLASS", help="class name in any spelling, or stable key")
    shows.add_argument("--against", metavar="CLASS", help="a second class; phrases that tell the two apart are marked")
    shows.add_argument("--model", metavar="FOLDER_OR_ID", help="print the margin of each text under this encoder (tiny: the embedded one)")
    shows.add_argument("--template", default="a photo of a {}.", help="template of the label prompts (default: %(default)s)")
    shows.set_defaults(run=run_show)
    pages = tasks.add_parser("page", help="write a packaged description set as one HTML page to read")
    pages.add_argument("set", metavar="SET", help="name of a packaged description set: cub200, fgvc_aircraft, ...")
    pages.add_argument("-o", "--out", required=True, metavar="PAGE.html", help="the page")
    pages.set_defaults(run=run_page)


def _add_classes(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument(
        "--classes", metavar="FILE", help="class list: one name per line (.txt), or JSON [name], {key: name} or [{wnid, name}]"
    )
    group.add_argument("--dataset", metavar="NAME", help="the class list of a packaged description set: imagenet1k, oxford_pets, ...")


def run_audit(options: argparse.Namespace) -> int:
    """Print the defects; the exit status is 1 if one is an error."""
    from multicrop.text import command

    return command.run_audit(options)


def run_make(options: argparse.Namespace) -> int:
    """Generate the descriptions; the exit status is 1 if their audit finds errors."""
    from multicrop.text import command

    return command.run_make(options)


def run_show(options: argparse.Namespace) -> int:
    """Print the texts of one class or of two."""
    from multicrop.text import command

    if options.model is None:
        return command.run_show(options)
    from multicrop.encoder import load_encoder

    return command.run_show(options, load_encoder(options.model).encode_prompts)


def run_page(options: argparse.Namespace) -> int:
    """Write the page of a description set."""
    from multicrop.text import command

    return command.run_page(options)
