"""Which shards processes write: a sitecustomize.py that every Python with this folder in PYTHONPATH imports at its start."""

import os
from pathlib import Path

WATCH = """
import os, sys
def shards_written(event, args):
    if event == "os.rename" and str(args[1]).endswith(".safetensors"):
        with open(os.environ["WRITTEN"], "a") as file:
            file.write(f"{os.getpid()} {args[1]}\\n")
sys.addaudithook(shards_written)
"""


def watched(folder: Path, *further: Path) -> dict[str, str]:
    """The environment of processes that note each shard that they write in a file of this folder."""
    (folder / "sitecustomize.py").write_text(WATCH)
    paths = [str(folder), *map(str, further), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "WRITTEN": str(folder / "written")}


def shards_written(folder: Path) -> list[list[str]]:
    """(process, shard) of each shard that was written."""
    path = folder / "written"
    return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []
