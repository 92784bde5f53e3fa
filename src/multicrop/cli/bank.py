"""`multicrop bank list|verify|prune`: list the banks of view features in a cache, verify their checksums, delete unused ones."""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DAY = 86_400
COLUMNS = ("data set", "images", "views", "model", "crops", "size", "used", "key")
TEXTS = ("data set", "model", "crops", "key")
SHORTEST = 8  # characters that are left of a text, for instance of the key
KEY = 8  # characters of a bank's key
HELP = "list, verify and prune banks of view features"


@dataclass(frozen=True)
class Entry:
    """One bank in the cache; `manifest` is empty for an unfinished bank."""

    path: Path
    manifest: dict
    size: int  # bytes
    used: float  # time of the last use, seconds since the epoch


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("bank", help=HELP, description=__doc__)
    parser.add_argument("action", choices=["list", "verify", "prune"])
    default = os.environ.get("MULTICROP_CACHE", ".cache/banks")
    parser.add_argument("--cache", type=Path, default=Path(default), help=f"folder of the banks, as paths.cache (default: {default})")
    parser.add_argument("--json", action="store_true", help="list: print JSON instead of a table")
    parser.add_argument("--unused-days", type=float, help="prune: banks that were not used for this number of days")
    parser.add_argument("--unfinished", action="store_true", help="prune: unfinished banks of killed runs")
    parser.add_argument("--yes", action="store_true", help="prune: delete; without it, list what would be deleted")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run one action; the exit status is 1 if `verify` finds damaged shards."""
    if not options.cache.is_dir():
        raise ValueError(f"{options.cache} is not a folder; pass the folder of the banks with --cache (paths.cache of your runs)")
    entries = find(options.cache)
    if options.action == "verify":
        return verify(entries)
    if options.action == "prune":
        return prune(entries, options)
    if options.json:
        print(json.dumps([{"path": str(e.path), "bytes": e.size, "used": e.used, **e.manifest} for e in entries], indent=1))
    else:
        show(entries, options.cache)
    return 0


def find(cache: Path) -> list[Entry]:
    """The banks of a cache, largest first."""
    from multicrop.files import MANIFEST, read_facts

    entries = []
    for path in cache.glob("*/*/v*"):
        if not path.is_dir():
            continue
        files = [file.stat() for file in path.iterdir() if file.is_file()]
        manifest = read_facts(path / MANIFEST) or {}
        used = max((file.st_mtime for file in files), default=path.stat().st_mtime)
        entries.append(Entry(path, manifest, sum(file.st_size for file in files), used))
    return sorted(entries, key=lambda entry: -entry.size)


def show(entries: list[Entry], cache: Path) -> None:
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
    widest = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    texts = [place for place, name in enumerate(COLUMNS) if name in TEXTS]
    while sum(widest) + len(widest) > width and max(widest[place] for place in texts) > SHORTEST:
        widest[max(texts, key=lambda place: widest[place])] -= 1
    return [[cell if len(cell) <= most else f"{cell[: most - 1]}…" for cell, most in zip(row, widest, strict=True)] for row in rows]


def _cells(entry: Entry) -> list[str]:
    facts, identity = entry.manifest, entry.manifest.get("identity", {})
    name, _, knobs = identity.get("policy", "").partition(" ")
    knobs = knobs.translate(str.maketrans({":": "=", "{": "", "}": "", "'": "", ",": ""})).replace("= ", "=")
    policy = f"{name.rsplit('.', 1)[-1]}, seed {identity['seed']}, {knobs}".removesuffix(", ") if identity else ""
    used = f"{(time.time() - entry.used) / DAY:.1f} d ago"
    counts = f"{facts.get('images', '')}", f"{facts.get('views', '')}"
    known = facts.get("dataset", entry.path.parts[-3]), *counts, facts.get("model", "unfinished"), policy
    return [*known, _megabytes(entry.size), used, entry.path.parts[-2][:KEY]]


def verify(entries: list[Entry]) -> int:
    """Verify the checksums of all shards of finished banks."""
    from rich.progress import track

    from multicrop.features.manifest import MANIFEST
    from multicrop.features.shards import ShardFolder

    whole = [entry for entry in entries if entry.manifest]
    damaged = [entry.path / MANIFEST for entry in entries if not entry.manifest and (entry.path / MANIFEST).is_file()]
    for entry in track(whole, description="Verifying"):
        facts = entry.manifest
        folder = ShardFolder(entry.path, entry.path.parts[-2], facts["images"], facts["shard_images"])
        damaged += [folder.shard(index) for index in range(folder.count) if folder.read(index) is None]
    for path in damaged:
        print(f"damaged: {path} (the next run that reads its bank encodes it again)")
    print(f"{len(whole)} banks verified, {len(damaged)} damaged files, {len(entries) - len(whole)} unfinished banks")
    return 1 if damaged else 0


def prune(entries: list[Entry], options: argparse.Namespace) -> int:
    """Delete the selected banks; raises ValueError without --unused-days or --unfinished."""
    if options.unused_days is None and not options.unfinished:
        raise ValueError("prune needs --unused-days N, --unfinished, or both")
    limit = None if options.unused_days is None else time.time() - options.unused_days * DAY
    chosen = [e for e in entries if (limit is not None and e.used < limit) or (options.unfinished and not e.manifest)]
    busy = [entry for entry in chosen if in_use(entry.path)]
    for entry in busy:
        print(f"skipped, a process is filling it: {entry.path}")
    chosen = [entry for entry in chosen if entry not in busy]
    for entry in chosen:
        print(f"{'deleted' if options.yes else 'would delete'}: {entry.path} ({_megabytes(entry.size)})")
        if options.yes:
            shutil.rmtree(entry.path)
            entry.path.with_suffix(".lock").unlink(missing_ok=True)
    verb = "freed" if options.yes else "would be freed (add --yes to delete)"
    print(f"{len(chosen)} banks, {_megabytes(sum(entry.size for entry in chosen))} {verb}")
    return 0


def in_use(path: Path) -> bool:
    """Whether a process holds a lock on a shard of this bank."""
    from filelock import FileLock, Timeout

    for file in path.glob("*.lock"):
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
    return False


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
