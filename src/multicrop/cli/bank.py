"""`multicrop bank list|verify|prune|copy`: list the banks of view features in a cache, verify them, delete unused ones, copy them."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multicrop.features.shards import ShardFolder
    from multicrop.files.banks import StoredBank

DAY = 86_400
COLUMNS = ("data set", "images", "views", "model", "crops", "size", "used", "key")
TEXTS = ("data set", "model", "crops", "key")
SHORTEST = 8  # characters that are left of a text, for instance of the key
KEY = 8  # characters of a bank's key
HELP = "list, verify, prune and copy banks of view features"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("bank", help=HELP, description=__doc__)
    parser.add_argument("action", choices=["list", "verify", "prune", "copy"])
    parser.add_argument("places", nargs="*", metavar="PLACE", help="copy: FROM and TO, each the folder or URL of all banks")
    default = os.environ.get("MULTICROP_CACHE", ".cache/banks")
    parser.add_argument("--cache", default=default, help=f"folder or URL of the banks, as paths.cache (default: {default})")
    parser.add_argument("--json", action="store_true", help="list: print JSON instead of a table")
    parser.add_argument("--unused-days", type=float, help="prune: banks that were not used for this number of days")
    parser.add_argument("--unfinished", action="store_true", help="prune: unfinished banks of killed runs")
    parser.add_argument("--yes", action="store_true", help="prune: delete; without it, list what would be deleted")
    parser.add_argument("--only", default="", metavar="TEXT", help="copy: banks whose path contains this text, such as a data set or a key")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run one action; the exit status is 1 if `verify` or `copy` finds damaged shards."""
    from multicrop.files.banks import find

    if (options.action == "copy") != (len(options.places) == 2) or (options.places and options.action != "copy"):
        raise ValueError("multicrop bank copy FROM TO names two places, each the folder or URL of all banks; other actions take --cache")
    if options.action == "copy":
        return copy(find(options.places[0]), options.places[1], options.only)
    entries = find(options.cache)
    if options.action == "verify":
        return verify(entries)
    if options.action == "prune":
        return prune(entries, options)
    if options.json:
        rows = [{"path": str(e), "bytes": e.size, "used": e.used, **e.manifest} for e in entries]
        print(json.dumps([{name: value for name, value in row.items() if name != "image_keys"} for row in rows], indent=1))
    else:
        show(entries, options.cache)
    return 0


def show(entries: "list[StoredBank]", cache: object) -> None:
    """Print one line per bank: sizes, last use, crop policy; texts are cut to the width of the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in TEXTS else "right", no_wrap=True)
    for cells in fitted([_cells(entry) for entry in entries], console.width):
        table.add_row(*map(escape, cells))
    title = f"{len(entries)} banks in {cache}, {_megabytes(sum(entry.size for entry in entries))}"
    console.print(title, soft_wrap=True, markup=False, highlight=False)
    console.print(table)
    console.print("the full paths: multicrop bank list --json", soft_wrap=True)


def fitted(rows: list[list[str]], width: int) -> list[list[str]]:
    """Cut the texts of a table, the longest column first, until a row has at most `width` characters."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    texts = [place for place, name in enumerate(COLUMNS) if name in TEXTS]
    while sum(widths) + len(widths) > width:
        longest = max(texts, key=lambda place: widths[place])
        if widths[longest] <= SHORTEST:
            break
        widths[longest] -= 1
    return [[_cut(cell, most) for cell, most in zip(row, widths, strict=True)] for row in rows]


def _cut(text: str, most: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _cells(entry: "StoredBank") -> list[str]:
    """The cells of a bank, in the order of COLUMNS."""
    facts = entry.manifest
    return [
        facts.get("dataset", entry.path.parts[-3]),
        str(facts.get("images", "")),
        str(facts.get("views", "")),
        facts.get("model", "unfinished"),
        _crops(facts.get("identity", {})),
        _megabytes(entry.size),
        f"{(time.time() - entry.used) / DAY:.1f} d ago",
        entry.path.parts[-2][:KEY],
    ]


def _crops(identity: dict[str, str]) -> str:
    """The crop policy of a bank: its function, seed and knobs."""
    if not identity:
        return ""
    name, _, knobs = identity.get("policy", "").partition(" ")
    knobs = knobs.translate(str.maketrans({":": "=", "{": "", "}": "", "'": "", ",": ""})).replace("= ", "=")
    return f"{name.rsplit('.', 1)[-1]}, seed {identity['seed']}, {knobs}".removesuffix(", ")


def verify(entries: "list[StoredBank]") -> int:
    """Verify the checksums of all shards of finished banks."""
    from rich.progress import track

    from multicrop.files import MANIFEST
    from multicrop.files.banks import has_manifest

    whole = [entry for entry in entries if entry.manifest]
    damaged = [f"{entry}/{MANIFEST}" for entry in entries if not entry.manifest and has_manifest(entry)]
    with tempfile.TemporaryDirectory() as copies:
        for entry in track(whole, description="Verifying"):
            folder = shards_of(entry, Path(copies))
            damaged += [f"{entry}/{folder.shard(index).name}" for index in range(folder.count) if folder.read(index) is None]
    for path in damaged:
        print(f"damaged: {path} (the next run that reads its bank encodes it again)")
    print(f"{len(whole)} banks verified, {len(damaged)} damaged files, {len(entries) - len(whole)} unfinished banks")
    return 1 if damaged else 0


def copy(entries: "list[StoredBank]", target: str, only: str) -> int:
    """Copy finished banks to another place; banks and shards that are there are verified and not copied again."""
    from rich.progress import track

    from multicrop.features.copies import copy_bank
    from multicrop.files import Objects, is_url

    top = target if is_url(target) else Path(target).absolute().as_uri()
    chosen = [entry for entry in entries if entry.manifest and only in str(entry)]
    damaged: list[str] = []
    whole = 0
    for entry in chosen:
        names = entry.path.parts[-3:]
        source = Objects(entry.url).below(*names) if entry.url else Objects(Path(entry.path).absolute().as_uri())
        with tempfile.TemporaryDirectory() as copies:
            bank = shards_of(entry, Path(copies, "source"))
            steps = copy_bank(bank, source, Objects(top).below(*names), Path(copies))
            unread = [f"{entry}/{name}" for name in track(steps, total=bank.count, description="Copying") if name]
        damaged += unread
        whole += not unread
        print(f"{'not whole' if unread else 'copied'}: {target.rstrip('/')}/{'/'.join(names)} ({_megabytes(entry.size)})")
    for path in damaged:
        print(f"damaged: {path} (the next run that reads its bank encodes it again; then copy again)")
    unfinished = sum(not entry.manifest for entry in entries)
    print(f"{whole} banks copied and verified, {len(damaged)} damaged shards, {unfinished} unfinished banks left out")
    return 1 if damaged else 0


def shards_of(entry: "StoredBank", copies: Path) -> "ShardFolder":
    """The shards of a finished bank; of one in object storage, `copies` holds one shard at a time."""
    from multicrop.features.remote import RemoteShardFolder
    from multicrop.features.shards import ShardFolder
    from multicrop.files import Objects

    known = entry.path.parts[-2], entry.manifest["images"], entry.manifest["shard_images"]
    if not entry.url:
        return ShardFolder(Path(entry.path), *known)
    return RemoteShardFolder(copies / entry.path, *known, objects=Objects(entry.url).below(*entry.path.parts), top=copies, limit=0)


def prune(entries: "list[StoredBank]", options: argparse.Namespace) -> int:
    """Delete the selected banks; raises ValueError without --unused-days or --unfinished."""
    from multicrop.files.banks import delete, in_use

    if options.unused_days is None and not options.unfinished:
        raise ValueError("prune needs --unused-days N, --unfinished, or both")
    limit = None if options.unused_days is None else time.time() - options.unused_days * DAY
    chosen = [e for e in entries if (limit is not None and e.used < limit) or (options.unfinished and not e.manifest)]
    busy = [entry for entry in chosen if in_use(entry)]
    for entry in busy:
        print(f"skipped, a process is filling it: {entry}")
    chosen = [entry for entry in chosen if entry not in busy]
    for entry in chosen:
        print(f"{'deleted' if options.yes else 'would delete'}: {entry} ({_megabytes(entry.size)})")
        if options.yes:
            delete(entry)
    verb = "freed" if options.yes else "would be freed (add --yes to delete)"
    print(f"{len(chosen)} banks, {_megabytes(sum(entry.size for entry in chosen))} {verb}")
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
